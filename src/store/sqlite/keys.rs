//! Keys: create, list, change, delete, and give new secrets.

use super::deleted_keys;
use super::key_rows::{list, live_record};
use super::rollups;
use super::row;
use super::writes::at_once;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::shared::limits::limits_to_json;
use crate::store::shared::rollup::{RollupTotals, RollupWindow};
use crate::store::shared::rules::{self, DeletedKey};
use crate::store::shared::writes::keys::KeyRows;
use crate::store::shared::writes::{self, Rows};
use crate::store::{
    Actor, Credential, IdempotencyClaim, IssuedCredential, KeyFilter, KeyPatch, KeyRecord, Keys, NewKey, Page,
};
use crate::store::{PageRequest, Version, Written};
use async_trait::async_trait;
use rusqlite::{Transaction, named_params, params};
use serde_json::json;
use std::future::ready;

#[async_trait]
impl Keys for SqliteStore {
    async fn create_key(
        &self,
        key: NewKey,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError> {
        let by = by.clone();
        self.write(move |tx| at_once(writes::keys::create(tx, key, &by, at))).await
    }

    async fn create_keys(
        &self,
        keys: Vec<NewKey>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Vec<Result<Version, StoreError>>, StoreError> {
        let by = by.clone();
        self.write(move |tx| at_once(writes::keys::create_each(tx, keys, &by, at))).await
    }

    async fn key(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| live_record(tx, &workspace, id)).await
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        filter: &KeyFilter,
        page: PageRequest,
    ) -> Result<Page<KeyRecord>, StoreError> {
        let (workspace, filter) = (workspace.clone(), filter.clone());
        self.read(move |tx| list(tx, &workspace, &filter, page)).await
    }

    async fn key_version(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<Version>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| {
            let sql = "SELECT version FROM keys WHERE id = ?1 AND workspace_id = ?2";
            let values = params![id.0.as_bytes(), workspace.as_str()];
            row::one(tx, sql, values, |f| Ok(Version(f.int("version")?)))
        })
        .await
    }

    async fn update_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        patch: KeyPatch,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| at_once(writes::keys::update(tx, &workspace, id, patch, &by, at))).await
    }

    async fn delete_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| at_once(writes::keys::delete(tx, &workspace, id, &by, at))).await
    }

    async fn restore_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        peppers: &[u32],
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError> {
        let (workspace, peppers, by) = (workspace.clone(), peppers.to_vec(), by.clone());
        self.write(move |tx| at_once(writes::keys::restore(tx, &workspace, id, &peppers, &by, at))).await
    }

    async fn regenerate_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        new: IssuedCredential,
        old_until: Option<Timestamp>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| at_once(writes::keys::regenerate(tx, &workspace, id, new, old_until, &by, at)))
            .await
    }

    async fn rehash_key(
        &self,
        id: KeyId,
        old: Digest,
        new: Digest,
        pepper_version: u32,
    ) -> Result<Option<Version>, StoreError> {
        self.write(move |tx| at_once(writes::keys::rehash(tx, id, old, new, pepper_version))).await
    }
}

impl KeyRows for Transaction<'_> {
    fn begin_part(&self) -> impl Rows<()> {
        ready(self.execute_batch("SAVEPOINT part").map_err(Into::into))
    }

    fn keep_part(&self) -> impl Rows<()> {
        ready(self.execute_batch("RELEASE part").map_err(Into::into))
    }

    fn undo_part(&self) -> impl Rows<()> {
        ready(self.execute_batch("ROLLBACK TO part; RELEASE part").map_err(Into::into))
    }

    fn claimed(&self, claim: &IdempotencyClaim) -> impl Rows<Option<(KeyId, bool)>> {
        let sql = "SELECT key_id, fingerprint = ?2 FROM idempotency_keys WHERE id = ?1";
        let values = params![claim.id, claim.fingerprint];
        ready(row::one(self, sql, values, |f| Ok((KeyId(f.uuid("key_id")?), f.bool("fingerprint")?))))
    }

    fn insert_claim(&self, claim: &IdempotencyClaim, key: KeyId, at: Timestamp) -> impl Rows<()> {
        let sql =
            "INSERT INTO idempotency_keys (id, fingerprint, key_id, created_at) VALUES (?1, ?2, ?3, ?4)";
        let values = params![claim.id, claim.fingerprint, key.0.as_bytes(), at.as_micros()];
        ready(row::change(self, sql, values))
    }

    fn forget_claims(&self, before: Timestamp) -> impl Rows<()> {
        let sql = "DELETE FROM idempotency_keys WHERE created_at <= ?1";
        ready(row::change(self, sql, [before.as_micros()]))
    }

    fn live_key(&self, workspace: &WorkspaceId, id: KeyId) -> impl Rows<Option<KeyRecord>> {
        ready(live_record(self, workspace, id))
    }

    fn insert_key(&self, record: &KeyRecord, credential: &Credential, version: Version) -> impl Rows<()> {
        ready(insert(self, record, credential, version))
    }

    fn insert_old_credential(&self, id: KeyId, old: &Credential) -> impl Rows<()> {
        let sql = "UPDATE keys SET old_digest = ?2, old_pepper_version = ?3, old_secret_id = ?4, old_valid_until = ?5
                   WHERE id = ?1";
        let until = old.valid_until.map(Timestamp::as_micros);
        let values = params![id.0.as_bytes(), old.digest.0, old.pepper_version, old.secret.0, until];
        ready(row::change(self, sql, values))
    }

    fn insert_past_usage(&self, id: KeyId, past: &RollupTotals, at: Timestamp) -> impl Rows<()> {
        let marked = "UPDATE keys SET restored_at = ?2 WHERE id = ?1";
        let added = rollups::add(self, &RollupWindow::life_of(id), past);
        ready(added.and_then(|()| row::change(self, marked, params![id.0.as_bytes(), at.as_micros()])))
    }

    fn update_key(&self, record: &KeyRecord, version: Version) -> impl Rows<()> {
        ready(update(self, record, version))
    }

    fn any_key(&self, workspace: &WorkspaceId, id: KeyId) -> impl Rows<Option<DeletedKey>> {
        ready(deleted_keys::find(self, workspace, id))
    }

    fn bury_key(&self, id: KeyId, at: Timestamp, version: Version) -> impl Rows<()> {
        let sql = "UPDATE keys SET deleted_at = ?2, updated_at = ?2, version = ?3 WHERE id = ?1";
        ready(row::change(self, sql, params![id.0.as_bytes(), at.as_micros(), row::int(version.0)]))
    }

    fn revive_key(&self, id: KeyId, at: Timestamp, version: Version) -> impl Rows<()> {
        let sql = "UPDATE keys SET deleted_at = NULL, restored_at = ?2, updated_at = ?2, version = ?3 WHERE id = ?1";
        ready(row::change(self, sql, params![id.0.as_bytes(), at.as_micros(), row::int(version.0)]))
    }

    fn erase_credentials(&self, id: KeyId) -> impl Rows<()> {
        ready(deleted_keys::erase_credentials(self, id))
    }

    fn erase_old_credential(&self, id: KeyId) -> impl Rows<()> {
        let sql = "UPDATE keys SET old_digest = NULL, old_pepper_version = NULL, old_secret_id = NULL,
                       old_valid_until = NULL
                   WHERE id = ?1";
        ready(row::change(self, sql, [id.0.as_bytes()]))
    }

    fn replace_credential(
        &self,
        record: &KeyRecord,
        new: &IssuedCredential,
        old_until: Option<Timestamp>,
        version: Version,
    ) -> impl Rows<()> {
        let sql = "UPDATE keys SET old_digest = CASE WHEN :until IS NULL THEN NULL ELSE digest END,
                       old_pepper_version = CASE WHEN :until IS NULL THEN NULL ELSE pepper_version END,
                       old_secret_id = CASE WHEN :until IS NULL THEN NULL ELSE secret_id END,
                       old_valid_until = :until, digest = :digest, pepper_version = :pepper, secret_id = :secret,
                       hint = :hint, search_text = :search, updated_at = :updated, version = :version
                   WHERE id = :id";
        let values = named_params! {
            ":id": record.key.id.0.as_bytes(),
            ":until": old_until.map(Timestamp::as_micros),
            ":digest": new.digest.0,
            ":pepper": new.pepper_version,
            ":secret": new.secret.0,
            ":hint": record.hint,
            ":search": rules::search_text(record),
            ":updated": record.updated_at.as_micros(),
            ":version": row::int(version.0),
        };
        ready(row::change(self, sql, values))
    }

    fn has_digest(&self, id: KeyId, digest: Digest) -> impl Rows<bool> {
        let sql = "SELECT count(*) FROM keys WHERE id = ?1 AND deleted_at IS NULL
                       AND (digest = ?2 OR old_digest = ?2)";
        ready(row::count(self, sql, params![id.0.as_bytes(), digest.0]).map(|found| found > 0))
    }

    fn replace_digest(
        &self,
        id: KeyId,
        old: Digest,
        new: Digest,
        pepper_version: u32,
        version: Version,
    ) -> impl Rows<bool> {
        ready(replace_digest(self, id, old, new, pepper_version, version))
    }

    fn count_digest(&self, digest: Digest) -> impl Rows<u64> {
        let sql = "SELECT (SELECT count(*) FROM keys WHERE digest = ?1 AND deleted_at IS NULL)
                        + (SELECT count(*) FROM keys WHERE old_digest = ?1 AND deleted_at IS NULL)";
        ready(row::count(self, sql, [digest.0]))
    }

    fn release_digest(&self, digest: Digest) -> impl Rows<()> {
        ready(deleted_keys::release_digest(self, digest))
    }

    fn forget_expired_credentials(&self, at: Timestamp) -> impl Rows<()> {
        let sql = "UPDATE keys SET old_digest = NULL, old_pepper_version = NULL, old_secret_id = NULL,
                       old_valid_until = NULL
                   WHERE old_valid_until <= ?1";
        ready(row::change(self, sql, [at.as_micros()]))
    }
}

fn insert(
    tx: &Transaction<'_>,
    record: &KeyRecord,
    credential: &Credential,
    version: Version,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO keys (id, workspace_id, kind, scopes, resource_id, name, description, metadata, hint,
                   search_text, rate_limit, rate_burst, daily_request_limit, quota_limit, concurrency_limit, limits,
                   allowed_ips, is_active, expires_at, digest, pepper_version, secret_id, created_by, created_at,
                   updated_at, version, end_user, external_id)
               VALUES (:id, :workspace, :kind, :scopes, :resource, :name, :description, :metadata, :hint, :search,
                   :rate_limit, :rate_burst, :daily, :quota, :concurrency, :limits, :ips, :active, :expires,
                   :digest, :pepper, :secret, :by, :created, :updated, :version, :end_user, :external)";
    let (key, ceilings) = (&record.key, &record.key.ceilings);
    row::execute(
        tx,
        sql,
        named_params! {
            ":id": key.id.0.as_bytes(),
            ":workspace": key.workspace_id.as_str(),
            ":kind": key.kind.as_str(),
            ":scopes": key.scopes.joined(),
            ":resource": key.resource_id,
            ":name": record.name,
            ":description": record.description,
            ":metadata": json!(record.metadata).to_string(),
            ":hint": record.hint,
            ":search": rules::search_text(record),
            ":rate_limit": ceilings.rate_limit,
            ":rate_burst": ceilings.rate_burst,
            ":daily": ceilings.daily_request_limit.map(row::int),
            ":quota": ceilings.quota_limit.map(row::int),
            ":concurrency": ceilings.concurrency_limit,
            ":limits": limits_to_json(&ceilings.limits).to_string(),
            ":ips": rules::ips_to_json(&key.allowed_ips).to_string(),
            ":active": key.is_active,
            ":expires": key.expires_at.map(Timestamp::as_micros),
            ":digest": credential.digest.0,
            ":pepper": credential.pepper_version,
            ":secret": credential.secret.0,
            ":by": record.created_by,
            ":created": record.created_at.as_micros(),
            ":updated": record.updated_at.as_micros(),
            ":version": row::int(version.0),
            ":end_user": key.end_user,
            ":external": record.external_id,
        },
    )?;
    Ok(())
}

/// Writes every field that a patch can change.
fn update(tx: &Transaction<'_>, record: &KeyRecord, version: Version) -> Result<(), StoreError> {
    let sql =
        "UPDATE keys SET scopes = :scopes, name = :name, description = :description, metadata = :metadata,
                   search_text = :search, rate_limit = :rate_limit, rate_burst = :rate_burst,
                   daily_request_limit = :daily, quota_limit = :quota, concurrency_limit = :concurrency,
                   limits = :limits, allowed_ips = :ips, is_active = :active, expires_at = :expires,
                   updated_at = :updated, version = :version, external_id = :external
               WHERE id = :id";
    let (key, ceilings) = (&record.key, &record.key.ceilings);
    row::execute(
        tx,
        sql,
        named_params! {
            ":id": key.id.0.as_bytes(),
            ":scopes": key.scopes.joined(),
            ":name": record.name,
            ":description": record.description,
            ":metadata": json!(record.metadata).to_string(),
            ":search": rules::search_text(record),
            ":rate_limit": ceilings.rate_limit,
            ":rate_burst": ceilings.rate_burst,
            ":daily": ceilings.daily_request_limit.map(row::int),
            ":quota": ceilings.quota_limit.map(row::int),
            ":concurrency": ceilings.concurrency_limit,
            ":limits": limits_to_json(&ceilings.limits).to_string(),
            ":ips": rules::ips_to_json(&key.allowed_ips).to_string(),
            ":active": key.is_active,
            ":expires": key.expires_at.map(Timestamp::as_micros),
            ":updated": record.updated_at.as_micros(),
            ":version": row::int(version.0),
            ":external": record.external_id,
        },
    )?;
    Ok(())
}

fn replace_digest(
    tx: &Transaction<'_>,
    id: KeyId,
    old: Digest,
    new: Digest,
    pepper_version: u32,
    version: Version,
) -> Result<bool, StoreError> {
    let current = "UPDATE keys SET digest = ?3, pepper_version = ?4, version = ?5
                   WHERE id = ?1 AND digest = ?2 AND deleted_at IS NULL";
    let before = "UPDATE keys SET old_digest = ?3, old_pepper_version = ?4, version = ?5
                  WHERE id = ?1 AND old_digest = ?2 AND deleted_at IS NULL";
    for sql in [current, before] {
        let values = params![id.0.as_bytes(), old.0, new.0, pepper_version, row::int(version.0)];
        if row::execute(tx, sql, values)? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
