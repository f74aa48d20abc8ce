//! Keys: create, list, change, delete, and give new secrets.

use super::audit;
use super::deleted_keys;
use super::key_rows::{list, live_record};
use super::row;
use super::tenants::plan_of;
use super::{SqliteStore, StoreError, next_version};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::shared::rules;
use crate::store::{Actor, Credential, IssuedCredential, KeyFilter, KeyPatch, KeyRecord, Keys, NewKey, Page};
use crate::store::{PageRequest, Version, Written};
use async_trait::async_trait;
use rusqlite::{Transaction, named_params, params};
use serde_json::json;

#[async_trait]
impl Keys for SqliteStore {
    async fn create_key(
        &self,
        key: NewKey,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError> {
        let by = by.clone();
        self.write(move |tx| create(tx, key, &by, at)).await
    }

    async fn create_keys(
        &self,
        keys: Vec<NewKey>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Vec<Result<Version, StoreError>>, StoreError> {
        let by = by.clone();
        self.write(move |tx| {
            let mut done = Vec::with_capacity(keys.len());
            for key in keys {
                tx.execute_batch("SAVEPOINT one_key")?;
                let created = create(tx, key, &by, at);
                if created.is_err() {
                    tx.execute_batch("ROLLBACK TO one_key")?;
                }
                tx.execute_batch("RELEASE one_key")?;
                match created {
                    Err(error) if error.is_transient() => return Err(error),
                    other => done.push(other.map(|written| written.version)),
                }
            }
            Ok(done)
        })
        .await
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
        self.write(move |tx| {
            let before = live_record(tx, &workspace, id)?.ok_or(StoreError::NotFound("key"))?;
            if let Some(asked) = patch.rate_limit {
                let plan = plan_of(tx, &workspace)?.ok_or(StoreError::NotFound("workspace"))?;
                rules::check_rate(asked, &plan)?;
            }
            let after = rules::patched_key(&before, patch, at)?;
            forget_expired_credentials(tx, at)?;
            let version = next_version(tx)?;
            update(tx, &after, version)?;
            let line = rules::AuditLine {
                action: "key.update",
                workspace: Some(&workspace),
                target: id.to_string(),
                changes: rules::difference(&rules::key_fields(&before), &rules::key_fields(&after)),
            };
            audit::add(tx, version, &by, at, line)?;
            Ok(Written { value: after, version })
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
        self.write(move |tx| {
            forget_expired_credentials(tx, at)?;
            deleted_keys::delete(tx, &workspace, id, &by, at)
        })
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
            forget_expired_credentials(tx, at)?;
            deleted_keys::restore(tx, &workspace, id, &peppers, &by, at)
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
            let mut record = live_record(tx, &workspace, id)?.ok_or(StoreError::NotFound("key"))?;
            forget_expired_credentials(tx, at)?;
            check_digest_is_free(tx, new.digest)?;
            let old_until = old_until.filter(|until| *until > at);
            let version = next_version(tx)?;
            replace_credential(tx, id, &new, old_until, version, at)?;
            let line = rules::AuditLine {
                action: "key.regenerate",
                workspace: Some(&workspace),
                target: id.to_string(),
                changes: rules::regenerate_fields(&record.hint, &new, old_until),
            };
            audit::add(tx, version, &by, at, line)?;
            record.hint = new.hint;
            record.updated_at = at;
            write_search_text(tx, &record)?;
            Ok(Written { value: record, version })
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
        self.write(move |tx| {
            let sql = "SELECT digest = ?2 FROM keys WHERE id = ?1 AND deleted_at IS NULL
                           AND (digest = ?2 OR old_digest = ?2)";
            let found = row::one(tx, sql, params![id.0.as_bytes(), old.0], |f| f.bool("digest"))?;
            let Some(is_current) = found else { return Ok(None) };
            let version = next_version(tx)?;
            let sql = if is_current {
                "UPDATE keys SET digest = ?2, pepper_version = ?3, version = ?4 WHERE id = ?1"
            } else {
                "UPDATE keys SET old_digest = ?2, old_pepper_version = ?3, version = ?4 WHERE id = ?1"
            };
            row::execute(tx, sql, params![id.0.as_bytes(), new.0, pepper_version, row::int(version.0)])?;
            Ok(Some(version))
        })
        .await
    }
}

fn create(
    tx: &Transaction<'_>,
    key: NewKey,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let (credential, old) = rules::new_credentials(&key, at);
    let plan = plan_of(tx, &key.key.workspace_id)?.ok_or(StoreError::NotFound("workspace"))?;
    let record = rules::new_key(key, &plan, &by.subject, at)?;
    forget_expired_credentials(tx, at)?;
    check_digest_is_free(tx, credential.digest)?;
    let version = next_version(tx)?;
    insert(tx, &record, &credential, version)?;
    if let Some(old) = old {
        check_digest_is_free(tx, old.digest)?;
        insert_old_credential(tx, record.key.id, &old)?;
    }
    let line = rules::AuditLine {
        action: "key.create",
        workspace: Some(&record.key.workspace_id),
        target: record.key.id.to_string(),
        changes: rules::key_fields(&record),
    };
    audit::add(tx, version, by, at, line)?;
    Ok(Written { value: record, version })
}

// === writes ===

fn insert(
    tx: &Transaction<'_>,
    record: &KeyRecord,
    credential: &Credential,
    version: Version,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO keys (id, workspace_id, kind, scopes, resource_id, name, description, metadata, hint,
                   search_text, rate_limit, rate_burst, daily_request_limit, quota_limit, concurrency_limit, limits,
                   allowed_ips, is_active, expires_at, digest, pepper_version, secret_id, created_by, created_at,
                   updated_at, version)
               VALUES (:id, :workspace, :kind, :scopes, :resource, :name, :description, :metadata, :hint, :search,
                   :rate_limit, :rate_burst, :daily, :quota, :concurrency, :limits, :ips, :active, :expires,
                   :digest, :pepper, :secret, :by, :created, :updated, :version)";
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
            ":limits": rules::limits_to_json(&ceilings.limits).to_string(),
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
        },
    )?;
    Ok(())
}

/// The previous credential of an imported key.
fn insert_old_credential(tx: &Transaction<'_>, id: KeyId, old: &Credential) -> Result<(), StoreError> {
    let sql =
        "UPDATE keys SET old_digest = ?2, old_pepper_version = ?3, old_secret_id = ?4, old_valid_until = ?5
               WHERE id = ?1";
    let until = old.valid_until.map(Timestamp::as_micros);
    row::execute(tx, sql, params![id.0.as_bytes(), old.digest.0, old.pepper_version, old.secret.0, until])?;
    Ok(())
}

/// Writes every field that a patch can change.
fn update(tx: &Transaction<'_>, record: &KeyRecord, version: Version) -> Result<(), StoreError> {
    let sql =
        "UPDATE keys SET scopes = :scopes, name = :name, description = :description, metadata = :metadata,
                   search_text = :search, rate_limit = :rate_limit, rate_burst = :rate_burst,
                   daily_request_limit = :daily, quota_limit = :quota, concurrency_limit = :concurrency,
                   limits = :limits, allowed_ips = :ips, is_active = :active, expires_at = :expires,
                   updated_at = :updated, version = :version
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
            ":limits": rules::limits_to_json(&ceilings.limits).to_string(),
            ":ips": rules::ips_to_json(&key.allowed_ips).to_string(),
            ":active": key.is_active,
            ":expires": key.expires_at.map(Timestamp::as_micros),
            ":updated": record.updated_at.as_micros(),
            ":version": row::int(version.0),
        },
    )?;
    Ok(())
}

/// The current credential becomes the previous one, if it stays valid; any older one ends.
fn replace_credential(
    tx: &Transaction<'_>,
    id: KeyId,
    new: &IssuedCredential,
    old_until: Option<Timestamp>,
    version: Version,
    at: Timestamp,
) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET old_digest = CASE WHEN :until IS NULL THEN NULL ELSE digest END,
                   old_pepper_version = CASE WHEN :until IS NULL THEN NULL ELSE pepper_version END,
                   old_secret_id = CASE WHEN :until IS NULL THEN NULL ELSE secret_id END,
                   old_valid_until = :until, digest = :digest, pepper_version = :pepper, secret_id = :secret,
                   hint = :hint, updated_at = :at, version = :version
               WHERE id = :id";
    row::execute(
        tx,
        sql,
        named_params! {
            ":id": id.0.as_bytes(),
            ":until": old_until.map(Timestamp::as_micros),
            ":digest": new.digest.0,
            ":pepper": new.pepper_version,
            ":secret": new.secret.0,
            ":hint": new.hint,
            ":at": at.as_micros(),
            ":version": row::int(version.0),
        },
    )?;
    Ok(())
}

fn write_search_text(tx: &Transaction<'_>, record: &KeyRecord) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET search_text = ?2 WHERE id = ?1";
    row::execute(tx, sql, params![record.key.id.0.as_bytes(), rules::search_text(record)])?;
    Ok(())
}

/// Credentials past their grace period are invalid; nodes see this themselves, so no version is drawn. Without this, their
/// pepper could never be retired.
fn forget_expired_credentials(tx: &Transaction<'_>, at: Timestamp) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET old_digest = NULL, old_pepper_version = NULL, old_secret_id = NULL,
                   old_valid_until = NULL
               WHERE old_valid_until <= ?1";
    row::execute(tx, sql, [at.as_micros()])?;
    Ok(())
}

/// No index spans both columns, so this queries both; writes are serialized, so that is enough. Deleted keys give way.
fn check_digest_is_free(tx: &Transaction<'_>, digest: Digest) -> Result<(), StoreError> {
    let sql = "SELECT (SELECT count(*) FROM keys WHERE digest = ?1 AND deleted_at IS NULL)
                    + (SELECT count(*) FROM keys WHERE old_digest = ?1 AND deleted_at IS NULL)";
    if row::count(tx, sql, [digest.0])? > 0 {
        return Err(rules::secret_taken());
    }
    deleted_keys::release_digest(tx, digest)
}
