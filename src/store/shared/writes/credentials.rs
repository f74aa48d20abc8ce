//! Administrative writes of credentials for backends.

use super::{Rows, WriteTx};
use crate::clock::Timestamp;
use crate::model::credential::{CredentialSelector, SealedCredential};
use crate::model::id::CredentialId;
use crate::store::shared::credentials::{CREDENTIALS_MAX, audit_fields, audit_target};
use crate::store::shared::rules::AuditLine;
use crate::store::{Actor, CredentialRecord, StoreError, Version, Written};

/// The operations on rows of credentials.
pub(in crate::store) trait CredentialRows: WriteTx {
    /// The id of the row for these requests, which may be a tombstone, and when it was first stored if it is none.
    fn credential_for(
        &self,
        selector: &CredentialSelector,
    ) -> impl Rows<Option<(CredentialId, Option<Timestamp>)>>;
    /// A credential of an upstream that is not deleted.
    fn live_credential(&self, upstream: &str, id: CredentialId) -> impl Rows<Option<CredentialRecord>>;
    /// How many are not deleted.
    fn count_credentials(&self) -> impl Rows<u64>;
    /// Adds a row, or replaces the one with the same id.
    fn put_credential(&self, record: &CredentialRecord, version: Version) -> impl Rows<()>;
    /// Makes a credential a tombstone.
    fn bury_credential(&self, id: CredentialId, at: Timestamp, version: Version) -> impl Rows<()>;
}

/// Stores a credential.
pub(in crate::store) async fn put_credential(
    tx: &impl CredentialRows,
    mut credential: SealedCredential,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<CredentialRecord>, StoreError> {
    let version = tx.next_version().await?;
    if let Some(workspace) = &credential.selector.workspace {
        tx.plan_of(workspace, at).await?.ok_or(StoreError::NotFound("workspace"))?;
    }
    let known = tx.credential_for(&credential.selector).await?;
    let since = known.and_then(|(_, since)| since);
    if since.is_none() && tx.count_credentials().await? >= CREDENTIALS_MAX {
        let why = format!("there are {CREDENTIALS_MAX} credentials already; delete one first");
        return Err(StoreError::Invalid { field: "secret", why });
    }
    credential.id = known.map_or(credential.id, |(id, _)| id);
    let record = CredentialRecord {
        credential,
        created_by: by.subject.clone(),
        created_at: since.unwrap_or(at),
        updated_at: at,
    };
    tx.put_credential(&record, version).await?;
    let action = if since.is_some() { "upstream_credential.update" } else { "upstream_credential.create" };
    add_line(tx, action, &record.credential, version, by, at).await?;
    Ok(Written { value: record, version })
}

/// Deletes a credential.
pub(in crate::store) async fn delete_credential(
    tx: &impl CredentialRows,
    upstream: &str,
    id: CredentialId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<()>, StoreError> {
    let version = tx.next_version().await?;
    let gone = tx.live_credential(upstream, id).await?.ok_or(StoreError::NotFound("credential"))?;
    tx.bury_credential(id, at, version).await?;
    add_line(tx, "upstream_credential.delete", &gone.credential, version, by, at).await?;
    Ok(Written { value: (), version })
}

async fn add_line(
    tx: &impl CredentialRows,
    action: &'static str,
    credential: &SealedCredential,
    version: Version,
    by: &Actor,
    at: Timestamp,
) -> Result<(), StoreError> {
    let (target, changes) = (audit_target(credential), audit_fields(credential));
    tx.add_audit_line(version, by, at, AuditLine { action, workspace: None, target, changes }).await
}
