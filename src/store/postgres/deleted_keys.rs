//! Deleted keys: kept for a while so that a deletion can be undone, then without their digests.

use super::key_rows::select_keys;
use super::tx::Tx;
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::shared::decode::{deleted_key_columns, key_columns, key_record_columns, read_deleted_key};
use crate::store::shared::fields::int;
use crate::store::shared::retention::STEP;
use crate::store::shared::rules::DeletedKey;

/// What a key loses with its credentials.
macro_rules! no_credentials {
    () => {
        "digest = NULL, pepper_version = NULL, secret_id = NULL, old_digest = NULL, old_pepper_version = NULL,
         old_secret_id = NULL, old_valid_until = NULL"
    };
}

/// A key, deleted or not.
pub(super) async fn find(
    tx: &Tx<'_>,
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
         WHERE k.id = $1 AND k.workspace_id = $2"
    );
    tx.one(sql, &[&id.0, &workspace.as_str()], read_deleted_key).await
}

/// Erases the credentials of a key.
pub(super) async fn erase_credentials(tx: &Tx<'_>, id: KeyId) -> Result<(), StoreError> {
    tx.change(concat!("UPDATE keys SET ", no_credentials!(), " WHERE id = $1"), &[&id.0]).await
}

/// Erases the credentials of all deleted keys of a workspace.
pub(super) async fn erase_credentials_of(tx: &Tx<'_>, workspace: &WorkspaceId) -> Result<(), StoreError> {
    let sql = concat!(
        "UPDATE keys SET ",
        no_credentials!(),
        " WHERE workspace_id = $1 AND deleted_at IS NOT NULL AND digest IS NOT NULL"
    );
    tx.change(sql, &[&workspace.as_str()]).await
}

/// A digest that is given to another key is removed from a deleted one.
pub(super) async fn release_digest(tx: &Tx<'_>, digest: Digest) -> Result<(), StoreError> {
    let sql = concat!(
        "UPDATE keys SET ",
        no_credentials!(),
        " WHERE deleted_at IS NOT NULL AND (digest = $1 OR old_digest = $1)"
    );
    tx.change(sql, &[&digest.0.as_slice()]).await
}

impl PgStore {
    /// Erases the digests of keys that can no longer be restored at `now`, at most [`STEP`]; returns of how many.
    pub(super) async fn erase_deleted(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let sql = concat!(
                    "UPDATE keys SET ",
                    no_credentials!(),
                    " WHERE id IN (SELECT k.id FROM keys k JOIN workspaces w ON w.id = k.workspace_id
                           JOIN plans p ON p.id = w.plan_id
                           WHERE k.deleted_at IS NOT NULL AND k.digest IS NOT NULL
                               AND k.deleted_at + p.deleted_keys_days * 86400000000 <= $1 LIMIT $2)"
                );
                tx.execute(sql, &[&now.as_micros(), &int(STEP)]).await
            })
        })
        .await
    }
}
