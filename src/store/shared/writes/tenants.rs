//! Administrative writes of plans and workspaces.

use super::{Rows, WriteTx};
use crate::clock::Timestamp;
use crate::model::grant::Grant;
use crate::model::id::{GrantId, PlanId, WorkspaceId};
use crate::store::shared::grants;
use crate::store::shared::rules::{self, AuditLine};
use crate::store::{
    Actor, PlanPatch, PlanRecord, StoreError, Version, WorkspacePatch, WorkspaceRecord, Written,
};
use serde_json::json;

/// The operations on rows of plans and workspaces.
pub(in crate::store) trait TenantRows: WriteTx {
    /// Adds a plan; false if there is a live plan with this id. A tombstone with this id is replaced.
    fn insert_plan(&self, record: &PlanRecord, version: Version) -> impl Rows<bool>;
    /// A plan that is not deleted.
    fn live_plan(&self, id: &PlanId) -> impl Rows<Option<PlanRecord>>;
    fn update_plan(&self, record: &PlanRecord, version: Version) -> impl Rows<()>;
    /// Makes a plan a tombstone.
    fn bury_plan(&self, id: &PlanId, at: Timestamp, version: Version) -> impl Rows<()>;
    /// How many workspaces have this plan.
    fn count_workspaces_on(&self, plan: &PlanId) -> impl Rows<u64>;

    fn workspace(&self, id: &WorkspaceId) -> impl Rows<Option<Written<WorkspaceRecord>>>;
    /// Whether there is a tombstone of this workspace.
    fn is_deleted_workspace(&self, id: &WorkspaceId) -> impl Rows<bool>;
    /// Adds a workspace; a tombstone with this id is replaced.
    fn insert_workspace(&self, record: &WorkspaceRecord, version: Version) -> impl Rows<()>;
    fn update_workspace(&self, record: &WorkspaceRecord, version: Version) -> impl Rows<()>;
    /// Makes a workspace a tombstone without end users. No end user can be added from then on.
    fn bury_workspace(&self, id: &WorkspaceId, at: Timestamp, version: Version) -> impl Rows<()>;
    /// How many keys of a workspace are not deleted.
    fn count_keys_of(&self, id: &WorkspaceId) -> impl Rows<u64>;
    /// Makes all keys of a workspace tombstones.
    fn bury_keys_of(&self, id: &WorkspaceId, at: Timestamp, version: Version) -> impl Rows<()>;
    /// Erases the credentials of all deleted keys of a workspace.
    fn erase_credentials_of(&self, id: &WorkspaceId) -> impl Rows<()>;
    /// Makes all credentials for backends of a workspace tombstones.
    fn bury_upstream_credentials_of(
        &self,
        id: &WorkspaceId,
        at: Timestamp,
        version: Version,
    ) -> impl Rows<()>;
    /// Makes all end users of a workspace tombstones.
    fn bury_end_users_of(&self, id: &WorkspaceId, version: Version) -> impl Rows<()>;
}

// === plans ===

/// Adds a plan.
pub(in crate::store) async fn create_plan(
    tx: &impl TenantRows,
    record: PlanRecord,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<PlanRecord>, StoreError> {
    let version = tx.next_version().await?;
    if !tx.insert_plan(&record, version).await? {
        return Err(StoreError::AlreadyExists("plan"));
    }
    let (target, changes) = (record.plan.id.to_string(), rules::plan_fields(&record));
    let line = AuditLine { action: "plan.create", workspace: None, target, changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: record, version })
}

/// Changes a plan.
pub(in crate::store) async fn update_plan(
    tx: &impl TenantRows,
    id: &PlanId,
    patch: PlanPatch,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<PlanRecord>, StoreError> {
    let version = tx.next_version().await?;
    let before = tx.live_plan(id).await?.ok_or(StoreError::NotFound("plan"))?;
    let after = rules::patched_plan(&before, patch, at)?;
    tx.update_plan(&after, version).await?;
    let changes = rules::difference(&rules::plan_fields(&before), &rules::plan_fields(&after));
    let line = AuditLine { action: "plan.update", workspace: None, target: id.to_string(), changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: after, version })
}

/// Deletes a plan that no workspace has.
pub(in crate::store) async fn delete_plan(
    tx: &impl TenantRows,
    id: &PlanId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<()>, StoreError> {
    let version = tx.next_version().await?;
    let before = tx.live_plan(id).await?.ok_or(StoreError::NotFound("plan"))?;
    let workspaces = tx.count_workspaces_on(id).await?;
    if workspaces > 0 {
        return Err(StoreError::PlanInUse { workspaces });
    }
    tx.bury_plan(id, at, version).await?;
    let changes = rules::plan_fields(&before);
    let line = AuditLine { action: "plan.delete", workspace: None, target: id.to_string(), changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: (), version })
}

// === workspaces ===

/// The workspace, created with `plan` if it does not exist.
pub(in crate::store) async fn ensure_workspace(
    tx: &impl TenantRows,
    id: WorkspaceId,
    plan: PlanId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    let version = tx.next_version().await?;
    if let Some(written) = tx.workspace(&id).await? {
        tx.undo().await?;
        return Ok(written);
    }
    // A token that still names it does not bring it back.
    if tx.is_deleted_workspace(&id).await? {
        return Err(StoreError::WorkspaceDeleted);
    }
    create_workspace(tx, blank_workspace(id, plan, at), version, by, at).await
}

/// Changes a workspace, or creates it, also if it was deleted.
pub(in crate::store) async fn put_workspace(
    tx: &impl TenantRows,
    id: WorkspaceId,
    patch: WorkspacePatch,
    default_plan: PlanId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    let version = tx.next_version().await?;
    let Some(Written { value: before, .. }) = tx.workspace(&id).await? else {
        let blank = blank_workspace(id, default_plan, at);
        return create_workspace(tx, rules::patched_workspace(&blank, patch, at)?, version, by, at).await;
    };
    let after = rules::patched_workspace(&before, patch, at)?;
    tx.live_plan(&after.plan_id).await?.ok_or(StoreError::NotFound("plan"))?;
    tx.update_workspace(&after, version).await?;
    let line = AuditLine {
        action: "workspace.update",
        workspace: Some(&after.id),
        target: after.id.to_string(),
        changes: rules::difference(&rules::workspace_fields(&before), &rules::workspace_fields(&after)),
    };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: after, version })
}

/// Adds to a limit of a workspace's plan.
pub(in crate::store) async fn create_grant(
    tx: &impl TenantRows,
    workspace: &WorkspaceId,
    grant: Grant,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<Grant>, StoreError> {
    let version = tx.next_version().await?;
    let mut record = tx.workspace(workspace).await?.ok_or(StoreError::NotFound("workspace"))?.value;
    let plan = tx.live_plan(&record.plan_id).await?.ok_or(StoreError::NotFound("plan"))?.plan;
    record.grants = grants::with(&record.grants, &grant, &plan, at)?;
    record.updated_at = at;
    tx.update_workspace(&record, version).await?;
    let (target, changes) = (grant.id.to_string(), grants::audit_fields(&grant));
    let line = AuditLine { action: "grant.create", workspace: Some(workspace), target, changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: grant, version })
}

/// Removes a grant.
pub(in crate::store) async fn delete_grant(
    tx: &impl TenantRows,
    workspace: &WorkspaceId,
    id: GrantId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<()>, StoreError> {
    let version = tx.next_version().await?;
    let mut record = tx.workspace(workspace).await?.ok_or(StoreError::NotFound("workspace"))?.value;
    let (rest, gone) = grants::without(&record.grants, id).ok_or(StoreError::NotFound("grant"))?;
    record.grants = rest;
    record.updated_at = at;
    tx.update_workspace(&record, version).await?;
    let (target, changes) = (id.to_string(), grants::audit_fields(&gone));
    let line = AuditLine { action: "grant.delete", workspace: Some(workspace), target, changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: (), version })
}

/// Deletes a workspace with its end users and, with `force`, its keys. Returns how many keys.
pub(in crate::store) async fn delete_workspace(
    tx: &impl TenantRows,
    id: &WorkspaceId,
    force: bool,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<u64>, StoreError> {
    let version = tx.next_version().await?;
    let found = tx.workspace(id).await?.ok_or(StoreError::NotFound("workspace"))?;
    let before = found.value;
    let keys = tx.count_keys_of(id).await?;
    if keys > 0 && !force {
        return Err(StoreError::WorkspaceInUse { keys });
    }
    // Waits for end users that are being added, and keeps out others.
    tx.bury_workspace(id, at, version).await?;
    tx.bury_keys_of(id, at, version).await?;
    let plan = tx.live_plan(&before.plan_id).await?.ok_or(StoreError::NotFound("plan"))?;
    if plan.deleted_keys_days == 0 {
        tx.erase_credentials_of(id).await?;
    }
    tx.bury_upstream_credentials_of(id, at, version).await?;
    tx.bury_end_users_of(id, version).await?;
    let mut changes = rules::workspace_fields(&before);
    changes.extend(rules::fields([("keys", json!(keys)), ("end_users", json!(before.end_users))]));
    let line = AuditLine { action: "workspace.delete", workspace: Some(id), target: id.to_string(), changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: keys, version })
}

async fn create_workspace(
    tx: &impl TenantRows,
    record: WorkspaceRecord,
    version: Version,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    tx.live_plan(&record.plan_id).await?.ok_or(StoreError::NotFound("plan"))?;
    tx.insert_workspace(&record, version).await?;
    let line = AuditLine {
        action: "workspace.create",
        workspace: Some(&record.id),
        target: record.id.to_string(),
        changes: rules::workspace_fields(&record),
    };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: record, version })
}

/// A new workspace without a name.
fn blank_workspace(id: WorkspaceId, plan_id: PlanId, at: Timestamp) -> WorkspaceRecord {
    WorkspaceRecord {
        id,
        name: String::new(),
        plan_id,
        end_users: 0,
        grants: Box::default(),
        created_at: at,
        updated_at: at,
    }
}
