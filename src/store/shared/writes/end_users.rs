//! Writes of end users: the atomic creation of a new one, and deletion.
//!
//! *Invariant:* a write locks the row of the workspace before it reads its end users, so nobody else adds or deletes one meanwhile.

use super::{Rows, WriteTx};
use crate::clock::Timestamp;
use crate::model::id::{EndUserId, WorkspaceId};
use crate::store::shared::rules::{self, AuditLine};
use crate::store::{Actor, EndUserAdmission, EndUserRecord, StoreError, Version, Written};
use serde_json::json;

/// The operations on rows of end users.
pub(in crate::store) trait EndUserRows: WriteTx {
    /// Locks the row of a workspace and returns its number of end users; none if there is no such workspace.
    fn lock_workspace(&self, id: &WorkspaceId) -> impl Rows<Option<u64>>;
    /// Adds to the number of end users of a workspace.
    fn count_end_users(&self, workspace: &WorkspaceId, more: i64) -> impl Rows<()>;

    /// The end user with this name.
    fn end_user_named(&self, workspace: &WorkspaceId, other_id: &str) -> impl Rows<Option<EndUserId>>;
    fn end_user(&self, workspace: &WorkspaceId, id: EndUserId) -> impl Rows<Option<EndUserRecord>>;
    fn insert_end_user(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        id: EndUserId,
        at: Timestamp,
    ) -> impl Rows<()>;
    /// Adds those whose id and name are new, and returns how many.
    fn insert_missing_end_users(&self, workspace: &WorkspaceId, users: &[EndUserRecord]) -> impl Rows<u64>;
    /// Deletes an end user, and leaves a tombstone for the change feed.
    fn bury_end_user(&self, workspace: &WorkspaceId, user: &EndUserRecord, version: Version)
    -> impl Rows<()>;
}

/// The end user with this name, created if it is new and the quota permits. This is not an administrative write: it draws
/// no version.
pub(in crate::store) async fn admit(
    tx: &impl EndUserRows,
    workspace: &WorkspaceId,
    other_id: &str,
    id: EndUserId,
    at: Timestamp,
) -> Result<EndUserAdmission, StoreError> {
    let there = tx.lock_workspace(workspace).await?.ok_or(StoreError::NotFound("workspace"))?;
    if let Some(id) = tx.end_user_named(workspace, other_id).await? {
        return Ok(EndUserAdmission::Admitted(id));
    }
    let quota = tx.plan_of(workspace, at).await?.ok_or(StoreError::NotFound("workspace"))?.end_user_quota;
    if there >= quota {
        return Ok(EndUserAdmission::Full { quota });
    }
    tx.count_end_users(workspace, 1).await?;
    tx.insert_end_user(workspace, other_id, id, at).await?;
    Ok(EndUserAdmission::Admitted(id))
}

/// Adds end users as they were in another store.
pub(in crate::store) async fn restore(
    tx: &impl EndUserRows,
    workspace: &WorkspaceId,
    users: &[EndUserRecord],
    by: &Actor,
    at: Timestamp,
) -> Result<u64, StoreError> {
    let version = tx.next_version().await?;
    tx.lock_workspace(workspace).await?.ok_or(StoreError::NotFound("workspace"))?;
    let new = tx.insert_missing_end_users(workspace, users).await?;
    if new == 0 {
        tx.undo().await?;
        return Ok(0);
    }
    tx.count_end_users(workspace, i64::try_from(new).unwrap_or(i64::MAX)).await?;
    let line = AuditLine {
        action: "enduser.import",
        workspace: Some(workspace),
        target: workspace.to_string(),
        changes: rules::fields([("end_users", json!(new))]),
    };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(new)
}

/// Deletes an end user.
pub(in crate::store) async fn delete(
    tx: &impl EndUserRows,
    workspace: &WorkspaceId,
    id: EndUserId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<()>, StoreError> {
    let version = tx.next_version().await?;
    tx.lock_workspace(workspace).await?.ok_or(StoreError::NotFound("end user"))?;
    let gone = tx.end_user(workspace, id).await?.ok_or(StoreError::NotFound("end user"))?;
    tx.count_end_users(workspace, -1).await?;
    tx.bury_end_user(workspace, &gone, version).await?;
    let line = AuditLine {
        action: "enduser.delete",
        workspace: Some(workspace),
        target: id.to_string(),
        changes: rules::fields([("other_id", json!(gone.other_id))]),
    };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: (), version })
}
