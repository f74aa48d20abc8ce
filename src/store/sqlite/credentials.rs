//! Encrypted credentials for backends.

use super::row;
use super::writes::at_once;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::model::credential::{CredentialSelector, SealedCredential};
use crate::model::id::{CredentialId, WorkspaceId};
use crate::store::shared::credentials::{credential_record_columns, read_record};
use crate::store::shared::writes::Rows;
use crate::store::shared::writes::credentials::{self, CredentialRows};
use crate::store::{Actor, CredentialRecord, UpstreamCredentials, Version, Written};
use async_trait::async_trait;
use rusqlite::{Transaction, named_params, params};
use std::future::ready;

#[async_trait]
impl UpstreamCredentials for SqliteStore {
    async fn credentials(&self, upstream: Option<&str>) -> Result<Vec<CredentialRecord>, StoreError> {
        let upstream = upstream.map(str::to_owned);
        self.read(move |tx| {
            let sql = concat!(
                "SELECT ",
                credential_record_columns!(),
                " FROM upstream_credentials WHERE sealed IS NOT NULL AND (?1 IS NULL OR upstream = ?1)
                 ORDER BY upstream, workspace_id, metadata"
            );
            row::all(tx, sql, params![upstream], read_record)
        })
        .await
    }

    async fn put_credential(
        &self,
        credential: SealedCredential,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<CredentialRecord>, StoreError> {
        let by = by.clone();
        self.write(move |tx| at_once(credentials::put_credential(tx, credential, &by, at))).await
    }

    async fn delete_credential(
        &self,
        upstream: &str,
        id: CredentialId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (upstream, by) = (upstream.to_owned(), by.clone());
        self.write(move |tx| at_once(credentials::delete_credential(tx, &upstream, id, &by, at))).await
    }
}

impl CredentialRows for Transaction<'_> {
    fn credential_for(
        &self,
        selector: &CredentialSelector,
    ) -> impl Rows<Option<(CredentialId, Option<Timestamp>)>> {
        let sql =
            "SELECT id, CASE WHEN sealed IS NULL THEN NULL ELSE created_at END FROM upstream_credentials
                   WHERE upstream = ?1 AND workspace_id = ?2 AND metadata = ?3";
        let values = params![selector.upstream, selector.workspace_text(), selector.metadata_text()];
        ready(row::one(self, sql, values, |f| {
            Ok((CredentialId(f.uuid("id")?), f.maybe_instant("created_at")?))
        }))
    }

    fn live_credential(&self, upstream: &str, id: CredentialId) -> impl Rows<Option<CredentialRecord>> {
        let sql = concat!(
            "SELECT ",
            credential_record_columns!(),
            " FROM upstream_credentials WHERE upstream = ?1 AND id = ?2 AND sealed IS NOT NULL"
        );
        ready(row::one(self, sql, params![upstream, id.0.as_bytes()], read_record))
    }

    fn count_credentials(&self) -> impl Rows<u64> {
        ready(row::count(self, "SELECT count(*) FROM upstream_credentials WHERE sealed IS NOT NULL", []))
    }

    fn put_credential(&self, record: &CredentialRecord, version: Version) -> impl Rows<()> {
        let sql = "INSERT INTO upstream_credentials (id, upstream, workspace_id, metadata, header, scheme, key_version,
                       sealed, created_by, created_at, updated_at, version)
                   VALUES (:id, :upstream, :workspace, :metadata, :header, :scheme, :key, :sealed, :by, :created,
                       :updated, :version)
                   ON CONFLICT (id) DO UPDATE SET header = excluded.header, scheme = excluded.scheme,
                       key_version = excluded.key_version, sealed = excluded.sealed,
                       created_by = excluded.created_by, created_at = excluded.created_at,
                       updated_at = excluded.updated_at, version = excluded.version";
        let CredentialRecord { credential, created_by, created_at, updated_at } = record;
        let selector = &credential.selector;
        let values = named_params! {
            ":id": credential.id.0.as_bytes(),
            ":upstream": selector.upstream,
            ":workspace": selector.workspace_text(),
            ":metadata": selector.metadata_text(),
            ":header": credential.header,
            ":scheme": credential.scheme.as_deref().unwrap_or(""),
            ":key": credential.key_version,
            ":sealed": &*credential.sealed,
            ":by": created_by,
            ":created": created_at.as_micros(),
            ":updated": updated_at.as_micros(),
            ":version": row::int(version.0),
        };
        ready(row::change(self, sql, values))
    }

    fn bury_credential(&self, id: CredentialId, at: Timestamp, version: Version) -> impl Rows<()> {
        let sql =
            "UPDATE upstream_credentials SET sealed = NULL, updated_at = ?2, version = ?3 WHERE id = ?1";
        ready(row::change(self, sql, params![id.0.as_bytes(), at.as_micros(), row::int(version.0)]))
    }
}

/// Makes all credentials of a workspace tombstones.
pub(super) fn bury_all_of(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    at: Timestamp,
    version: Version,
) -> Result<(), StoreError> {
    let sql = "UPDATE upstream_credentials SET sealed = NULL, updated_at = ?2, version = ?3
               WHERE workspace_id = ?1 AND sealed IS NOT NULL";
    row::change(tx, sql, params![workspace.as_str(), at.as_micros(), row::int(version.0)])
}
