//! Keys: create, list, change, delete, and give new secrets.

use super::deleted_keys;
use super::key_rows::{insert, insert_old_credential, list, live_record, update};
use super::tenants::plan_of;
use super::tx::Tx;
use super::{PgStore, StoreError, audit, next_version};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::shared::fields::int;
use crate::store::shared::rules::{self, AuditLine};
use crate::store::{Actor, IssuedCredential, KeyFilter, KeyPatch, KeyRecord, Keys, NewKey, Page};
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
        self.write(move |tx| Box::pin(async move { create(tx, key, &by, at).await })).await
    }

    async fn create_keys(
        &self,
        keys: Vec<NewKey>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Vec<Result<Version, StoreError>>, StoreError> {
        let by = by.clone();
        self.write(move |tx| Box::pin(async move { create_each(tx, keys, &by, at).await })).await
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
        if rules::hold_nul([filter.resource_id.as_deref(), filter.search.as_deref()]) {
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
        self.write(move |tx| Box::pin(async move { change(tx, &workspace, id, patch, &by, at).await })).await
    }

    async fn delete_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| Box::pin(async move { delete(tx, &workspace, id, &by, at).await })).await
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
            Box::pin(async move {
                forget_expired_credentials(tx, at).await?;
                deleted_keys::restore(tx, &workspace, id, &peppers, &by, at).await
            })
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
        let old_until = old_until.filter(|until| *until > at);
        self.write(move |tx| {
            Box::pin(async move { regenerate(tx, &workspace, id, new, old_until, &by, at).await })
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
        self.write(move |tx| Box::pin(rehash(tx, id, old, new, pepper_version))).await
    }
}

// === writes ===

async fn create(
    tx: &Tx<'_>,
    key: NewKey,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let version = next_version(tx).await?;
    let (credential, old) = rules::new_credentials(&key, at);
    let plan = plan_of(tx, &key.key.workspace_id).await?.ok_or(StoreError::NotFound("workspace"))?;
    let record = rules::new_key(key, &plan, &by.subject, at)?;
    forget_expired_credentials(tx, at).await?;
    check_digest_is_free(tx, credential.digest).await?;
    insert(tx, &record, &credential, version).await?;
    if let Some(old) = old {
        check_digest_is_free(tx, old.digest).await?;
        insert_old_credential(tx, record.key.id, &old).await?;
    }
    let line = AuditLine {
        action: "key.create",
        workspace: Some(&record.key.workspace_id),
        target: record.key.id.to_string(),
        changes: rules::key_fields(&record),
    };
    audit::add(tx, version, by, at, line).await?;
    Ok(Written { value: record, version })
}

/// Each in a savepoint, so that one refused key does not affect the others.
async fn create_each(
    tx: &Tx<'_>,
    keys: Vec<NewKey>,
    by: &Actor,
    at: Timestamp,
) -> Result<Vec<Result<Version, StoreError>>, StoreError> {
    let mut done = Vec::with_capacity(keys.len());
    for key in keys {
        tx.control("SAVEPOINT one_key").await?;
        let created = create(tx, key, by, at).await;
        match created {
            Ok(written) => {
                tx.control("RELEASE one_key").await?;
                done.push(Ok(written.version));
            }
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                tx.control("ROLLBACK TO one_key; RELEASE one_key").await?;
                done.push(Err(error));
            }
        }
    }
    Ok(done)
}

async fn change(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    patch: KeyPatch,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let version = next_version(tx).await?;
    let before = live_record(tx, workspace, id).await?.ok_or(StoreError::NotFound("key"))?;
    if let Some(asked) = patch.rate_limit {
        let plan = plan_of(tx, workspace).await?.ok_or(StoreError::NotFound("workspace"))?;
        rules::check_rate(asked, &plan)?;
    }
    let after = rules::patched_key(&before, patch, at)?;
    forget_expired_credentials(tx, at).await?;
    update(tx, &after, version).await?;
    let line = AuditLine {
        action: "key.update",
        workspace: Some(workspace),
        target: id.to_string(),
        changes: rules::difference(&rules::key_fields(&before), &rules::key_fields(&after)),
    };
    audit::add(tx, version, by, at, line).await?;
    Ok(Written { value: after, version })
}

async fn delete(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<()>, StoreError> {
    forget_expired_credentials(tx, at).await?;
    deleted_keys::delete(tx, workspace, id, by, at).await
}

/// The current credential becomes the previous one, if it stays valid; any older one ends.
async fn regenerate(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    new: IssuedCredential,
    old_until: Option<Timestamp>,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let version = next_version(tx).await?;
    let mut record = live_record(tx, workspace, id).await?.ok_or(StoreError::NotFound("key"))?;
    forget_expired_credentials(tx, at).await?;
    check_digest_is_free(tx, new.digest).await?;
    let line = AuditLine {
        action: "key.regenerate",
        workspace: Some(workspace),
        target: id.to_string(),
        changes: rules::regenerate_fields(&record.hint, &new, old_until),
    };
    audit::add(tx, version, by, at, line).await?;
    record.hint = new.hint;
    record.updated_at = at;
    let sql = "UPDATE keys SET old_digest = CASE WHEN $2::bigint IS NULL THEN NULL ELSE digest END,
                   old_pepper_version = CASE WHEN $2 IS NULL THEN NULL ELSE pepper_version END,
                   old_secret_id = CASE WHEN $2 IS NULL THEN NULL ELSE secret_id END,
                   old_valid_until = $2, digest = $3, pepper_version = $4, secret_id = $5, hint = $6,
                   search_text = $7, updated_at = $8, version = $9
               WHERE id = $1";
    tx.execute(
        sql,
        &[
            &id.0,
            &old_until.map(Timestamp::as_micros),
            &new.digest.0.as_slice(),
            &i64::from(new.pepper_version),
            &i64::from(new.secret.0),
            &record.hint,
            &rules::search_text(&record),
            &at.as_micros(),
            &int(version.0),
        ],
    )
    .await?;
    Ok(Written { value: record, version })
}

async fn rehash(
    tx: &Tx<'_>,
    id: KeyId,
    old: Digest,
    new: Digest,
    pepper_version: u32,
) -> Result<Option<Version>, StoreError> {
    // Checks before it takes the write lock: another node may have done it.
    let has = "SELECT count(*) FROM keys WHERE id = $1 AND deleted_at IS NULL
                   AND (digest = $2 OR old_digest = $2)";
    if tx.count(has, &[&id.0, &old.0.as_slice()]).await? == 0 {
        return Ok(None);
    }
    let version = next_version(tx).await?;
    let current =
        "UPDATE keys SET digest = $3, pepper_version = $4, version = $5 WHERE id = $1 AND digest = $2
             AND deleted_at IS NULL";
    let before = "UPDATE keys SET old_digest = $3, old_pepper_version = $4, version = $5
                  WHERE id = $1 AND old_digest = $2 AND deleted_at IS NULL";
    let (old, new) = (old.0.as_slice(), new.0.as_slice());
    let (pepper, number) = (i64::from(pepper_version), int(version.0));
    for sql in [current, before] {
        if tx.execute(sql, &[&id.0, &old, &new, &pepper, &number]).await? > 0 {
            return Ok(Some(version));
        }
    }
    tx.undo();
    Ok(None)
}

/// Credentials past their grace period are invalid; nodes see this themselves, so no version is drawn. Without this, their
/// pepper could never be retired.
async fn forget_expired_credentials(tx: &Tx<'_>, at: Timestamp) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET old_digest = NULL, old_pepper_version = NULL, old_secret_id = NULL,
                   old_valid_until = NULL
               WHERE old_valid_until <= $1";
    tx.execute(sql, &[&at.as_micros()]).await?;
    Ok(())
}

/// No index spans both columns, so this looks; writers take turns, so looking is enough. Deleted keys make way.
async fn check_digest_is_free(tx: &Tx<'_>, digest: Digest) -> Result<(), StoreError> {
    let sql = "SELECT (SELECT count(*) FROM keys WHERE digest = $1 AND deleted_at IS NULL)
                    + (SELECT count(*) FROM keys WHERE old_digest = $1 AND deleted_at IS NULL)";
    if tx.count(sql, &[&digest.0.as_slice()]).await? > 0 {
        return Err(rules::secret_taken());
    }
    deleted_keys::release_digest(tx, digest).await
}
