//! Deleted keys: kept for a while so that a deletion can be undone, then without their digests.

use super::key_rows::select_keys;
use super::{SqliteStore, StoreError, row};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::shared::decode::{deleted_key_columns, key_columns, key_record_columns, read_deleted_key};
use crate::store::shared::retention::STEP;
use crate::store::shared::rules::DeletedKey;
use rusqlite::{Transaction, params};

/// What a key loses with its credentials.
macro_rules! no_credentials {
    () => {
        "digest = NULL, pepper_version = NULL, secret_id = NULL, old_digest = NULL, old_pepper_version = NULL,
         old_secret_id = NULL, old_valid_until = NULL"
    };
}

/// A key, deleted or not.
pub(super) fn find(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
) -> Result<Option<DeletedKey>, StoreError> {
    let sql = concat!(
        "SELECT ",
        key_columns!(),
        ", ",
        key_record_columns!(),
        ", ",
        deleted_key_columns!(),
        select_keys!(),
        "JOIN workspaces w ON w.id = k.workspace_id JOIN plans p ON p.id = w.plan_id
         WHERE k.id = ?1 AND k.workspace_id = ?2"
    );
    row::one(tx, sql, params![id.0.as_bytes(), workspace.as_str()], read_deleted_key)
}

/// Erases the credentials of a key.
pub(super) fn erase_credentials(tx: &Transaction<'_>, id: KeyId) -> Result<(), StoreError> {
    row::change(tx, concat!("UPDATE keys SET ", no_credentials!(), " WHERE id = ?1"), [id.0.as_bytes()])
}

/// Erases the credentials of all deleted keys of a workspace.
pub(super) fn erase_credentials_of(tx: &Transaction<'_>, workspace: &WorkspaceId) -> Result<(), StoreError> {
    let sql = concat!(
        "UPDATE keys SET ",
        no_credentials!(),
        " WHERE workspace_id = ?1 AND deleted_at IS NOT NULL AND digest IS NOT NULL"
    );
    row::change(tx, sql, [workspace.as_str()])
}

/// A digest that is given to another key is removed from a deleted one.
pub(super) fn release_digest(tx: &Transaction<'_>, digest: Digest) -> Result<(), StoreError> {
    let sql = concat!(
        "UPDATE keys SET ",
        no_credentials!(),
        " WHERE deleted_at IS NOT NULL AND (digest = ?1 OR old_digest = ?1)"
    );
    row::change(tx, sql, [digest.0])
}

impl SqliteStore {
    /// Erases the digests of keys that can no longer be restored at `now`, at most [`STEP`]; returns of how many.
    pub(super) async fn erase_deleted(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.write(move |tx| {
            let sql = concat!(
                "UPDATE keys SET ",
                no_credentials!(),
                " WHERE id IN (SELECT k.id FROM keys k JOIN workspaces w ON w.id = k.workspace_id
                       JOIN plans p ON p.id = w.plan_id
                       WHERE k.deleted_at IS NOT NULL AND k.digest IS NOT NULL
                           AND k.deleted_at + p.deleted_keys_days * 86400000000 <= ?1 LIMIT ?2)"
            );
            let erased = row::execute(tx, sql, params![now.as_micros(), row::int(STEP)])?;
            Ok(u64::try_from(erased).unwrap_or(u64::MAX))
        })
        .await
    }
}
