//! Administrative writes of keys.

use super::{Rows, WriteTx};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::shared::rollup::RollupTotals;
use crate::store::shared::rules::{self, AuditLine, DeletedKey};
use crate::store::{
    Actor, Credential, IdempotencyClaim, IssuedCredential, KeyPatch, KeyRecord, NewKey, StoreError,
};
use crate::store::{Version, Written};
use serde_json::json;

/// The operations on rows of keys.
pub(in crate::store) trait KeyRows: WriteTx {
    /// Begins a part of the transaction that can be rolled back by itself.
    fn begin_part(&self) -> impl Rows<()>;
    /// Ends this part and keeps it.
    fn keep_part(&self) -> impl Rows<()>;
    /// Ends this part and rolls it back.
    fn undo_part(&self) -> impl Rows<()>;

    /// Which key the request has made, and whether it was the same one; none: it was not sent before.
    fn claimed(&self, claim: &IdempotencyClaim) -> impl Rows<Option<(KeyId, bool)>>;
    fn insert_claim(&self, claim: &IdempotencyClaim, key: KeyId, at: Timestamp) -> impl Rows<()>;
    /// Deletes claims from before that instant.
    fn forget_claims(&self, before: Timestamp) -> impl Rows<()>;

    /// A key that is not deleted.
    fn live_key(&self, workspace: &WorkspaceId, id: KeyId) -> impl Rows<Option<KeyRecord>>;
    fn insert_key(&self, record: &KeyRecord, credential: &Credential, version: Version) -> impl Rows<()>;
    /// Adds the previous credential of an imported key.
    fn insert_old_credential(&self, id: KeyId, old: &Credential) -> impl Rows<()>;
    /// Adds the usage of an imported key from before its import, and tells nodes to read it before the key is used.
    fn insert_past_usage(&self, id: KeyId, past: &RollupTotals, at: Timestamp) -> impl Rows<()>;
    /// Writes every field that a patch can change.
    fn update_key(&self, record: &KeyRecord, version: Version) -> impl Rows<()>;
    /// A key, deleted or not.
    fn any_key(&self, workspace: &WorkspaceId, id: KeyId) -> impl Rows<Option<DeletedKey>>;
    /// Makes a key a tombstone. It keeps its credentials.
    fn bury_key(&self, id: KeyId, at: Timestamp, version: Version) -> impl Rows<()>;
    /// Makes a tombstone a key again.
    fn revive_key(&self, id: KeyId, at: Timestamp, version: Version) -> impl Rows<()>;
    /// Erases the credentials of a key.
    fn erase_credentials(&self, id: KeyId) -> impl Rows<()>;
    /// Erases the previous credential of a key.
    fn erase_old_credential(&self, id: KeyId) -> impl Rows<()>;
    /// Writes `new`, and the hint and the time of `record`. The current credential becomes the previous one, if it stays valid
    /// until `old_until`; any older one ends.
    fn replace_credential(
        &self,
        record: &KeyRecord,
        new: &IssuedCredential,
        old_until: Option<Timestamp>,
        version: Version,
    ) -> impl Rows<()>;

    /// Whether a key that is not deleted has that digest, the current or the previous one.
    fn has_digest(&self, id: KeyId, digest: Digest) -> impl Rows<bool>;
    /// Writes `new` in the place of `old`; false when the key does not have `old`.
    fn replace_digest(
        &self,
        id: KeyId,
        old: Digest,
        new: Digest,
        pepper_version: u32,
        version: Version,
    ) -> impl Rows<bool>;
    /// How many credentials of keys that are not deleted have that digest. No index covers both columns, so this is
    /// a query; the write lock makes it reliable.
    fn count_digest(&self, digest: Digest) -> impl Rows<u64>;
    /// Erases the credentials of deleted keys that have that digest.
    fn release_digest(&self, digest: Digest) -> impl Rows<()>;
    /// Erases credentials past their grace period. They are invalid already; nodes see this themselves, so no version is drawn.
    /// Without this, their pepper could never be retired.
    fn forget_expired_credentials(&self, at: Timestamp) -> impl Rows<()>;
}

/// Adds a key.
pub(in crate::store) async fn create(
    tx: &impl KeyRows,
    key: NewKey,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let version = tx.next_version().await?;
    if let Some(claim) = &key.once {
        claim_request(tx, claim, key.key.id, at).await?;
    }
    let (credential, old) = rules::new_credentials(&key, at);
    let plan = tx.plan_of(&key.key.workspace_id, at).await?.ok_or(StoreError::NotFound("workspace"))?;
    let record = rules::new_key(key, &plan, &by.subject, at)?;
    tx.forget_expired_credentials(at).await?;
    claim_digest(tx, credential.digest).await?;
    tx.insert_key(&record, &credential, version).await?;
    if let Some(old) = old {
        claim_digest(tx, old.digest).await?;
        tx.insert_old_credential(record.key.id, &old).await?;
    }
    if let Some(past) = rules::past_usage(&record) {
        tx.insert_past_usage(record.key.id, &past, at).await?;
    }
    let line = AuditLine {
        action: "key.create",
        workspace: Some(&record.key.workspace_id),
        target: record.key.id.to_string(),
        changes: rules::key_fields(&record),
    };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: record, version })
}

/// Adds keys, each in a part of its own, so that one refused key does not affect the others.
pub(in crate::store) async fn create_each(
    tx: &impl KeyRows,
    keys: Vec<NewKey>,
    by: &Actor,
    at: Timestamp,
) -> Result<Vec<Result<Version, StoreError>>, StoreError> {
    let mut done = Vec::with_capacity(keys.len());
    for key in keys {
        tx.begin_part().await?;
        match create(tx, key, by, at).await {
            Ok(written) => {
                tx.keep_part().await?;
                done.push(Ok(written.version));
            }
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                tx.undo_part().await?;
                done.push(Err(error));
            }
        }
    }
    Ok(done)
}

/// Changes a key.
pub(in crate::store) async fn update(
    tx: &impl KeyRows,
    workspace: &WorkspaceId,
    id: KeyId,
    patch: KeyPatch,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let version = tx.next_version().await?;
    let before = tx.live_key(workspace, id).await?.ok_or(StoreError::NotFound("key"))?;
    if let Some(asked) = patch.rate_limit {
        let plan = tx.plan_of(workspace, at).await?.ok_or(StoreError::NotFound("workspace"))?;
        rules::check_rate(asked, &plan)?;
    }
    let after = rules::patched_key(&before, patch, at)?;
    tx.forget_expired_credentials(at).await?;
    tx.update_key(&after, version).await?;
    let line = AuditLine {
        action: "key.update",
        workspace: Some(workspace),
        target: id.to_string(),
        changes: rules::difference(&rules::key_fields(&before), &rules::key_fields(&after)),
    };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: after, version })
}

/// Deletes a key.
pub(in crate::store) async fn delete(
    tx: &impl KeyRows,
    workspace: &WorkspaceId,
    id: KeyId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<()>, StoreError> {
    let version = tx.next_version().await?;
    tx.forget_expired_credentials(at).await?;
    let found = tx.any_key(workspace, id).await?.filter(|key| key.record.deleted_at.is_none());
    let DeletedKey { record: before, days, .. } = found.ok_or(StoreError::NotFound("key"))?;
    tx.bury_key(id, at, version).await?;
    if days == 0 {
        tx.erase_credentials(id).await?;
    }
    let line = AuditLine {
        action: "key.delete",
        workspace: Some(workspace),
        target: id.to_string(),
        changes: rules::fields([("name", json!(before.name)), ("hint", json!(before.hint))]),
    };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: (), version })
}

/// Undoes the deletion of a key. `peppers` are the versions that secrets can be checked with.
pub(in crate::store) async fn restore(
    tx: &impl KeyRows,
    workspace: &WorkspaceId,
    id: KeyId,
    peppers: &[u32],
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let version = tx.next_version().await?;
    tx.forget_expired_credentials(at).await?;
    let deleted = tx.any_key(workspace, id).await?.ok_or(StoreError::NotFound("key"))?;
    let plan = tx.plan_of(workspace, at).await?.ok_or(StoreError::NotFound("workspace"))?;
    let record = rules::restored_key(&deleted, &plan, peppers, at)?;
    if deleted.has_lost_old_pepper(peppers) {
        tx.erase_old_credential(id).await?;
    }
    tx.revive_key(id, at, version).await?;
    let (target, changes) = (id.to_string(), rules::restore_fields(&deleted));
    let line = AuditLine { action: "key.restore", workspace: Some(workspace), target, changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: record, version })
}

/// Gives a key a new credential.
pub(in crate::store) async fn regenerate(
    tx: &impl KeyRows,
    workspace: &WorkspaceId,
    id: KeyId,
    new: IssuedCredential,
    old_until: Option<Timestamp>,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    let version = tx.next_version().await?;
    let before = tx.live_key(workspace, id).await?.ok_or(StoreError::NotFound("key"))?;
    tx.forget_expired_credentials(at).await?;
    claim_digest(tx, new.digest).await?;
    let old_until = old_until.filter(|until| *until > at);
    let changes = rules::regenerate_fields(&before.hint, &new, old_until);
    let after = KeyRecord { hint: new.hint.clone(), updated_at: at, ..before };
    tx.replace_credential(&after, &new, old_until, version).await?;
    let target = id.to_string();
    let line = AuditLine { action: "key.regenerate", workspace: Some(workspace), target, changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: after, version })
}

/// Replaces a digest by one made with a newer pepper. This is not an administrative write: it has no audit line.
pub(in crate::store) async fn rehash(
    tx: &impl KeyRows,
    id: KeyId,
    old: Digest,
    new: Digest,
    pepper_version: u32,
) -> Result<Option<Version>, StoreError> {
    // Checks before it takes the write lock: another node may have done it.
    if !tx.has_digest(id, old).await? {
        return Ok(None);
    }
    let version = tx.next_version().await?;
    if tx.replace_digest(id, old, new, pepper_version, version).await? {
        return Ok(Some(version));
    }
    tx.undo().await?;
    Ok(None)
}

/// A request makes one key only, however often and wherever it arrives: the write lock orders its repetitions, and the claim is
/// stored with the key or not at all.
async fn claim_request(
    tx: &impl KeyRows,
    claim: &IdempotencyClaim,
    key: KeyId,
    at: Timestamp,
) -> Result<(), StoreError> {
    tx.forget_claims(at.minus(IdempotencyClaim::VALID)).await?;
    match tx.claimed(claim).await? {
        Some((made, true)) => Err(StoreError::Repeated(made)),
        Some((_, false)) => Err(StoreError::IdempotencyKeyReused),
        None => tx.insert_claim(claim, key, at).await,
    }
}

/// A secret belongs to one key only. A deleted key that has it loses it.
async fn claim_digest(tx: &impl KeyRows, digest: Digest) -> Result<(), StoreError> {
    if tx.count_digest(digest).await? > 0 {
        return Err(rules::secret_taken());
    }
    tx.release_digest(digest).await
}
