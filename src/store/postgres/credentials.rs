//! Encrypted credentials for backends.

use super::tx::Tx;
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use crate::model::credential::{CredentialSelector, SealedCredential};
use crate::model::id::{CredentialId, WorkspaceId};
use crate::store::shared::credentials::{credential_record_columns, read_record};
use crate::store::shared::fields::int;
use crate::store::shared::writes::credentials::{self, CredentialRows};
use crate::store::{Actor, CredentialRecord, UpstreamCredentials, Version, Written};
use async_trait::async_trait;

#[async_trait]
impl UpstreamCredentials for PgStore {
    async fn credentials(&self, upstream: Option<&str>) -> Result<Vec<CredentialRecord>, StoreError> {
        let upstream = upstream.map(str::to_owned);
        let sql = concat!(
            "SELECT ",
            credential_record_columns!(),
            " FROM upstream_credentials WHERE sealed IS NOT NULL AND ($1::text IS NULL OR upstream = $1)
             ORDER BY upstream, workspace_id, metadata"
        );
        self.read(move |tx| Box::pin(async move { tx.all(sql, &[&upstream], read_record).await })).await
    }

    async fn put_credential(
        &self,
        credential: SealedCredential,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<CredentialRecord>, StoreError> {
        let by = by.clone();
        self.write(move |tx| {
            Box::pin(async move { credentials::put_credential(tx, credential, &by, at).await })
        })
        .await
    }

    async fn delete_credential(
        &self,
        upstream: &str,
        id: CredentialId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (upstream, by) = (upstream.to_owned(), by.clone());
        self.write(move |tx| {
            Box::pin(async move { credentials::delete_credential(tx, &upstream, id, &by, at).await })
        })
        .await
    }
}

impl CredentialRows for Tx<'_> {
    async fn credential_for(
        &self,
        selector: &CredentialSelector,
    ) -> Result<Option<(CredentialId, Option<Timestamp>)>, StoreError> {
        let sql =
            "SELECT id, CASE WHEN sealed IS NULL THEN NULL ELSE created_at END FROM upstream_credentials
                   WHERE upstream = $1 AND workspace_id = $2 AND metadata = $3";
        let (upstream, workspace) = (&*selector.upstream, selector.workspace_text());
        self.one(sql, &[&upstream, &workspace, &selector.metadata_text()], |f| {
            Ok((CredentialId(f.uuid("id")?), f.maybe_instant("created_at")?))
        })
        .await
    }

    async fn live_credential(
        &self,
        upstream: &str,
        id: CredentialId,
    ) -> Result<Option<CredentialRecord>, StoreError> {
        let sql = concat!(
            "SELECT ",
            credential_record_columns!(),
            " FROM upstream_credentials WHERE upstream = $1 AND id = $2 AND sealed IS NOT NULL"
        );
        self.one(sql, &[&upstream, &id.0], read_record).await
    }

    async fn count_credentials(&self) -> Result<u64, StoreError> {
        self.count("SELECT count(*) FROM upstream_credentials WHERE sealed IS NOT NULL", &[]).await
    }

    async fn put_credential(&self, record: &CredentialRecord, version: Version) -> Result<(), StoreError> {
        let sql = "INSERT INTO upstream_credentials (id, upstream, workspace_id, metadata, header, scheme, key_version,
                       sealed, created_by, created_at, updated_at, version)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                   ON CONFLICT (id) DO UPDATE SET header = excluded.header, scheme = excluded.scheme,
                       key_version = excluded.key_version, sealed = excluded.sealed,
                       created_by = excluded.created_by, created_at = excluded.created_at,
                       updated_at = excluded.updated_at, version = excluded.version";
        let CredentialRecord { credential, created_by, created_at, updated_at } = record;
        let selector = &credential.selector;
        self.change(
            sql,
            &[
                &credential.id.0,
                &&*selector.upstream,
                &selector.workspace_text(),
                &selector.metadata_text(),
                &&*credential.header,
                &credential.scheme.as_deref().unwrap_or(""),
                &i64::from(credential.key_version),
                &&*credential.sealed,
                created_by,
                &created_at.as_micros(),
                &updated_at.as_micros(),
                &int(version.0),
            ],
        )
        .await
    }

    async fn bury_credential(
        &self,
        id: CredentialId,
        at: Timestamp,
        version: Version,
    ) -> Result<(), StoreError> {
        let sql =
            "UPDATE upstream_credentials SET sealed = NULL, updated_at = $2, version = $3 WHERE id = $1";
        self.change(sql, &[&id.0, &at.as_micros(), &int(version.0)]).await
    }
}

/// Makes all credentials of a workspace tombstones.
pub(super) async fn bury_all_of(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    at: Timestamp,
    version: Version,
) -> Result<(), StoreError> {
    let sql = "UPDATE upstream_credentials SET sealed = NULL, updated_at = $2, version = $3
               WHERE workspace_id = $1 AND sealed IS NOT NULL";
    tx.change(sql, &[&workspace.as_str(), &at.as_micros(), &int(version.0)]).await
}
