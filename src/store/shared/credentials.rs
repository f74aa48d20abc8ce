//! Credentials for backends as they are stored, and what the audit log says of them.

use super::fields::RowReader;
use super::rules::{self, AuditFields};
use crate::model::credential::{CredentialSelector, MetadataEntry, SealedCredential};
use crate::model::id::CredentialId;
use crate::store::{Change, CredentialRecord, StoreError};
use serde_json::json;

/// Most credentials that are not deleted.
pub(in crate::store) const CREDENTIALS_MAX: u64 = 10_000;

/// The columns for [`read_credential`].
macro_rules! credential_columns {
    () => {
        "id, upstream, workspace_id, metadata, header, scheme, key_version, sealed"
    };
}
pub(in crate::store) use credential_columns;

/// The columns for [`read_record`].
macro_rules! credential_record_columns {
    () => {
        concat!(
            $crate::store::shared::credentials::credential_columns!(),
            ", created_by, created_at, updated_at"
        )
    };
}
pub(in crate::store) use credential_record_columns;

fn read_credential(f: &mut RowReader<'_>) -> Result<SealedCredential, StoreError> {
    let invalid = |column: &str| StoreError::Corrupt(format!("{column} has an invalid value"));
    let optional = |text: &str| (!text.is_empty()).then(|| Box::<str>::from(text));
    let id = CredentialId(f.uuid("id")?);
    let upstream = f.text("upstream")?.into();
    let workspace = optional(f.text("workspace_id")?);
    let workspace = workspace.map(|id| id.parse().map_err(|_| invalid("workspace_id"))).transpose()?;
    let metadata = optional(f.text("metadata")?);
    let metadata =
        metadata.map(|text| MetadataEntry::parse(&text).ok_or_else(|| invalid("metadata"))).transpose()?;
    Ok(SealedCredential {
        id,
        selector: CredentialSelector { upstream, workspace, metadata },
        header: f.text("header")?.into(),
        scheme: optional(f.text("scheme")?),
        key_version: f.int("key_version")?,
        sealed: f.blob("sealed")?.into(),
    })
}

/// A row of the feed: with `sealed` first, which a tombstone lacks.
pub(in crate::store) fn read_change(f: &mut RowReader<'_>) -> Result<Change, StoreError> {
    if f.maybe_blob("sealed")?.is_none() {
        return Ok(Change::CredentialRemoved(CredentialId(f.uuid("id")?)));
    }
    read_credential(f).map(Change::Credential)
}

pub(in crate::store) fn read_record(f: &mut RowReader<'_>) -> Result<CredentialRecord, StoreError> {
    Ok(CredentialRecord {
        credential: read_credential(f)?,
        created_by: f.text("created_by")?.to_owned(),
        created_at: f.instant("created_at")?,
        updated_at: f.instant("updated_at")?,
    })
}

/// What a credential is for, for the audit log.
pub(in crate::store) fn audit_fields(credential: &SealedCredential) -> AuditFields {
    let SealedCredential { id: _, selector, header, scheme, key_version, sealed: _ } = credential;
    rules::fields([
        ("workspace_id", json!(selector.workspace.as_ref().map(ToString::to_string))),
        ("metadata", json!(selector.metadata.as_ref().map(ToString::to_string))),
        ("header", json!(header)),
        ("scheme", json!(scheme)),
        ("key_version", json!(key_version)),
    ])
}

/// What an audit line is about.
pub(in crate::store) fn audit_target(credential: &SealedCredential) -> String {
    format!("{}/{}", credential.selector.upstream, credential.id)
}
