//! Keys: create, list, change, delete, and give new secrets.

use super::deleted_keys;
use super::key_rows::{insert, list, live_record, update};
use super::rollups;
use super::tx::Tx;
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::shared::fields::int;
use crate::store::shared::rollup::{RollupTotals, RollupWindow};
use crate::store::shared::rules::{self, DeletedKey};
use crate::store::shared::writes;
use crate::store::shared::writes::keys::KeyRows;
use crate::store::{
    Actor, Credential, IdempotencyClaim, IssuedCredential, KeyFilter, KeyPatch, KeyRecord, Keys, NewKey, Page,
};
use crate::store::{PageRequest, Version, Written};
use async_trait::async_trait;

#[async_trait]
impl Keys for PgStore {
    async fn create_key(
        &self,
        key: NewKey,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError> {
        let by = by.clone();
        self.write(move |tx| Box::pin(async move { writes::keys::create(tx, key, &by, at).await })).await
    }

    async fn create_keys(
        &self,
        keys: Vec<NewKey>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Vec<Result<Version, StoreError>>, StoreError> {
        let by = by.clone();
        self.write(move |tx| Box::pin(async move { writes::keys::create_each(tx, keys, &by, at).await }))
            .await
    }

    async fn key(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| Box::pin(async move { live_record(tx, &workspace, id).await })).await
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        filter: &KeyFilter,
        page: PageRequest,
    ) -> Result<Page<KeyRecord>, StoreError> {
        if rules::hold_nul([
            filter.resource_id.as_deref(),
            filter.external_id.as_deref(),
            filter.search.as_deref(),
        ]) {
            return Ok(Page::complete(Vec::new(), 0));
        }
        let (workspace, filter) = (workspace.clone(), filter.clone());
        self.read(move |tx| Box::pin(async move { list(tx, &workspace, &filter, page).await })).await
    }

    async fn key_version(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<Version>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| {
            Box::pin(async move {
                let sql = "SELECT version FROM keys WHERE id = $1 AND workspace_id = $2";
                tx.one(sql, &[&id.0, &workspace.as_str()], |f| Ok(Version(f.int("version")?))).await
            })
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
        self.write(move |tx| {
            Box::pin(async move { writes::keys::update(tx, &workspace, id, patch, &by, at).await })
        })
        .await
    }

    async fn delete_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| Box::pin(async move { writes::keys::delete(tx, &workspace, id, &by, at).await }))
            .await
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
        self.write(move |tx| {
            Box::pin(async move { writes::keys::restore(tx, &workspace, id, &peppers, &by, at).await })
        })
        .await
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
        self.write(move |tx| {
            Box::pin(
                async move { writes::keys::regenerate(tx, &workspace, id, new, old_until, &by, at).await },
            )
        })
        .await
    }

    async fn rehash_key(
        &self,
        id: KeyId,
        old: Digest,
        new: Digest,
        pepper_version: u32,
    ) -> Result<Option<Version>, StoreError> {
        self.write(move |tx| Box::pin(writes::keys::rehash(tx, id, old, new, pepper_version))).await
    }
}

impl KeyRows for Tx<'_> {
    async fn begin_part(&self) -> Result<(), StoreError> {
        self.control("SAVEPOINT part").await
    }

    async fn keep_part(&self) -> Result<(), StoreError> {
        self.control("RELEASE part").await
    }

    async fn undo_part(&self) -> Result<(), StoreError> {
        self.control("ROLLBACK TO part; RELEASE part").await
    }

    async fn claimed(&self, claim: &IdempotencyClaim) -> Result<Option<(KeyId, bool)>, StoreError> {
        let sql = "SELECT key_id, fingerprint = $2 FROM idempotency_keys WHERE id = $1";
        let (id, fingerprint) = (claim.id.as_slice(), claim.fingerprint.as_slice());
        self.one(sql, &[&id, &fingerprint], |f| Ok((KeyId(f.uuid("key_id")?), f.bool("fingerprint")?))).await
    }

    async fn insert_claim(
        &self,
        claim: &IdempotencyClaim,
        key: KeyId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO idempotency_keys (id, fingerprint, key_id, created_at) VALUES ($1, $2, $3, $4)";
        let (id, fingerprint) = (claim.id.as_slice(), claim.fingerprint.as_slice());
        self.execute(sql, &[&id, &fingerprint, &key.0, &at.as_micros()]).await.map(drop)
    }

    async fn forget_claims(&self, before: Timestamp) -> Result<(), StoreError> {
        let sql = "DELETE FROM idempotency_keys WHERE created_at <= $1";
        self.execute(sql, &[&before.as_micros()]).await.map(drop)
    }

    async fn live_key(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        live_record(self, workspace, id).await
    }

    async fn insert_key(
        &self,
        record: &KeyRecord,
        credential: &Credential,
        version: Version,
    ) -> Result<(), StoreError> {
        insert(self, record, credential, version).await
    }

    async fn insert_old_credential(&self, id: KeyId, old: &Credential) -> Result<(), StoreError> {
        let sql = "UPDATE keys SET old_digest = $2, old_pepper_version = $3, old_secret_id = $4, old_valid_until = $5
                   WHERE id = $1";
        let until = old.valid_until.map(Timestamp::as_micros);
        let (pepper, secret) = (i64::from(old.pepper_version), i64::from(old.secret.0));
        self.change(sql, &[&id.0, &old.digest.0.as_slice(), &pepper, &secret, &until]).await
    }

    async fn insert_past_usage(
        &self,
        id: KeyId,
        past: &RollupTotals,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        rollups::add(self, &[(RollupWindow::life_of(id), past.clone())].into()).await?;
        self.change("UPDATE keys SET restored_at = $2 WHERE id = $1", &[&id.0, &at.as_micros()]).await
    }

    async fn update_key(&self, record: &KeyRecord, version: Version) -> Result<(), StoreError> {
        update(self, record, version).await
    }

    async fn any_key(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<DeletedKey>, StoreError> {
        deleted_keys::find(self, workspace, id).await
    }

    async fn bury_key(&self, id: KeyId, at: Timestamp, version: Version) -> Result<(), StoreError> {
        let sql = "UPDATE keys SET deleted_at = $2, updated_at = $2, version = $3 WHERE id = $1";
        self.change(sql, &[&id.0, &at.as_micros(), &int(version.0)]).await
    }

    async fn revive_key(&self, id: KeyId, at: Timestamp, version: Version) -> Result<(), StoreError> {
        let sql = "UPDATE keys SET deleted_at = NULL, restored_at = $2, updated_at = $2, version = $3 WHERE id = $1";
        self.change(sql, &[&id.0, &at.as_micros(), &int(version.0)]).await
    }

    async fn erase_credentials(&self, id: KeyId) -> Result<(), StoreError> {
        deleted_keys::erase_credentials(self, id).await
    }

    async fn erase_old_credential(&self, id: KeyId) -> Result<(), StoreError> {
        let sql = "UPDATE keys SET old_digest = NULL, old_pepper_version = NULL, old_secret_id = NULL,
                       old_valid_until = NULL
                   WHERE id = $1";
        self.change(sql, &[&id.0]).await
    }

    async fn replace_credential(
        &self,
        record: &KeyRecord,
        new: &IssuedCredential,
        old_until: Option<Timestamp>,
        version: Version,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE keys SET old_digest = CASE WHEN $2::bigint IS NULL THEN NULL ELSE digest END,
                       old_pepper_version = CASE WHEN $2 IS NULL THEN NULL ELSE pepper_version END,
                       old_secret_id = CASE WHEN $2 IS NULL THEN NULL ELSE secret_id END,
                       old_valid_until = $2, digest = $3, pepper_version = $4, secret_id = $5, hint = $6,
                       search_text = $7, updated_at = $8, version = $9
                   WHERE id = $1";
        self.change(
            sql,
            &[
                &record.key.id.0,
                &old_until.map(Timestamp::as_micros),
                &new.digest.0.as_slice(),
                &i64::from(new.pepper_version),
                &i64::from(new.secret.0),
                &record.hint,
                &rules::search_text(record),
                &record.updated_at.as_micros(),
                &int(version.0),
            ],
        )
        .await
    }

    async fn has_digest(&self, id: KeyId, digest: Digest) -> Result<bool, StoreError> {
        let sql = "SELECT count(*) FROM keys WHERE id = $1 AND deleted_at IS NULL
                       AND (digest = $2 OR old_digest = $2)";
        Ok(self.count(sql, &[&id.0, &digest.0.as_slice()]).await? > 0)
    }

    async fn replace_digest(
        &self,
        id: KeyId,
        old: Digest,
        new: Digest,
        pepper_version: u32,
        version: Version,
    ) -> Result<bool, StoreError> {
        let current = "UPDATE keys SET digest = $3, pepper_version = $4, version = $5
                       WHERE id = $1 AND digest = $2 AND deleted_at IS NULL";
        let before = "UPDATE keys SET old_digest = $3, old_pepper_version = $4, version = $5
                      WHERE id = $1 AND old_digest = $2 AND deleted_at IS NULL";
        let (old, new) = (old.0.as_slice(), new.0.as_slice());
        let (pepper, number) = (i64::from(pepper_version), int(version.0));
        for sql in [current, before] {
            if self.execute(sql, &[&id.0, &old, &new, &pepper, &number]).await? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn count_digest(&self, digest: Digest) -> Result<u64, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM keys WHERE digest = $1 AND deleted_at IS NULL)
                        + (SELECT count(*) FROM keys WHERE old_digest = $1 AND deleted_at IS NULL)";
        self.count(sql, &[&digest.0.as_slice()]).await
    }

    async fn release_digest(&self, digest: Digest) -> Result<(), StoreError> {
        deleted_keys::release_digest(self, digest).await
    }

    async fn forget_expired_credentials(&self, at: Timestamp) -> Result<(), StoreError> {
        let sql = "UPDATE keys SET old_digest = NULL, old_pepper_version = NULL, old_secret_id = NULL,
                       old_valid_until = NULL
                   WHERE old_valid_until <= $1";
        self.change(sql, &[&at.as_micros()]).await
    }
}
