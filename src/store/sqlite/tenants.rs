//! Plans and workspaces.

use super::audit;
use super::row;
use super::{SqliteStore, StoreError, next_version};
use crate::clock::Timestamp;
use crate::model::id::{PlanId, WorkspaceId};
use crate::model::key::Plan;
use crate::store::shared::decode::{plan_columns, plan_record_columns, read_plan, read_plan_record};
use crate::store::shared::decode::{read_workspace, sound_plan_record, sound_workspace, workspace_columns};
use crate::store::shared::rules;
use crate::store::{Actor, Page, PageRequest, PlanPatch, PlanRecord, Tenants, Written};
use crate::store::{WorkspacePatch, WorkspaceRecord};
use async_trait::async_trait;
use rusqlite::{Transaction, named_params, params};

#[async_trait]
impl Tenants for SqliteStore {
    async fn create_plan(
        &self,
        plan: PlanRecord,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PlanRecord>, StoreError> {
        let by = by.clone();
        let record = PlanRecord { created_at: at, updated_at: at, ..plan };
        rules::check_plan(&record)?;
        self.write(move |tx| {
            let version = next_version(tx)?;
            // A tombstone with this id is replaced; a live plan is not.
            let sql =
                "INSERT INTO plans (id, description, api_ops_rate_limit, end_user_quota, limits, created_at,
                           updated_at, deleted_at, version, usage_retention_days, default_daily_request_limit,
                           deleted_keys_days)
                       VALUES (:id, :description, :rate, :quota, :limits, :at, :at, NULL, :version, :retention, :daily,
                           :deleted)
                       ON CONFLICT (id) DO UPDATE SET description = excluded.description,
                           api_ops_rate_limit = excluded.api_ops_rate_limit,
                           end_user_quota = excluded.end_user_quota, limits = excluded.limits,
                           created_at = excluded.created_at, updated_at = excluded.updated_at,
                           deleted_at = NULL, version = excluded.version,
                           usage_retention_days = excluded.usage_retention_days,
                           default_daily_request_limit = excluded.default_daily_request_limit,
                           deleted_keys_days = excluded.deleted_keys_days
                       WHERE plans.deleted_at IS NOT NULL";
            let made = row::execute(
                tx,
                sql,
                named_params! {
                    ":id": record.plan.id.as_str(),
                    ":description": record.description,
                    ":rate": record.plan.api_ops_rate_limit,
                    ":quota": row::int(record.plan.end_user_quota),
                    ":limits": rules::limits_to_json(&record.plan.limits).to_string(),
                    ":at": at.as_micros(),
                    ":version": row::int(version.0),
                    ":retention": record.usage_retention_days,
                    ":deleted": record.deleted_keys_days,
                    ":daily": record.plan.default_daily_request_limit.map(row::int),
                },
            )?;
            if made == 0 {
                return Err(StoreError::AlreadyExists("plan"));
            }
            let changes = rules::plan_fields(&record);
            let target = record.plan.id.to_string();
            audit::add(
                tx,
                version,
                &by,
                at,
                rules::AuditLine { action: "plan.create", workspace: None, target, changes },
            )?;
            Ok(Written { value: record, version })
        })
        .await
    }

    async fn plan(&self, id: &PlanId) -> Result<Option<PlanRecord>, StoreError> {
        let id = id.clone();
        self.read(move |tx| plan_record(tx, &id)).await
    }

    async fn plans(&self, page: PageRequest) -> Result<Page<PlanRecord>, StoreError> {
        self.read(move |tx| {
            let total = row::count(tx, "SELECT count(*) FROM plans WHERE deleted_at IS NULL", [])?;
            let sql = concat!(
                "SELECT ",
                plan_columns!(),
                ", ",
                plan_record_columns!(),
                " FROM plans p
                 WHERE p.deleted_at IS NULL ORDER BY p.id LIMIT ?1 OFFSET ?2"
            );
            let items =
                row::all(tx, sql, params![page.pagesize, row::int(page.offset())], sound_plan_record)?;
            Ok(Page::of_readable(items, total))
        })
        .await
    }

    async fn update_plan(
        &self,
        id: &PlanId,
        patch: PlanPatch,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PlanRecord>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| {
            let before = plan_record(tx, &id)?.ok_or(StoreError::NotFound("plan"))?;
            let after = rules::patched_plan(&before, patch, at)?;
            let version = next_version(tx)?;
            let sql = "UPDATE plans SET description = :description, api_ops_rate_limit = :rate,
                           end_user_quota = :quota, limits = :limits, updated_at = :at, version = :version,
                           usage_retention_days = :retention, default_daily_request_limit = :daily,
                           deleted_keys_days = :deleted
                       WHERE id = :id";
            row::execute(
                tx,
                sql,
                named_params! {
                    ":id": id.as_str(),
                    ":description": after.description,
                    ":rate": after.plan.api_ops_rate_limit,
                    ":quota": row::int(after.plan.end_user_quota),
                    ":limits": rules::limits_to_json(&after.plan.limits).to_string(),
                    ":at": at.as_micros(),
                    ":version": row::int(version.0),
                    ":retention": after.usage_retention_days,
                    ":deleted": after.deleted_keys_days,
                    ":daily": after.plan.default_daily_request_limit.map(row::int),
                },
            )?;
            let changes = rules::difference(&rules::plan_fields(&before), &rules::plan_fields(&after));
            let target = id.to_string();
            audit::add(
                tx,
                version,
                &by,
                at,
                rules::AuditLine { action: "plan.update", workspace: None, target, changes },
            )?;
            Ok(Written { value: after, version })
        })
        .await
    }

    async fn delete_plan(&self, id: &PlanId, by: &Actor, at: Timestamp) -> Result<Written<()>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| {
            let before = plan_record(tx, &id)?.ok_or(StoreError::NotFound("plan"))?;
            let on_it = "SELECT count(*) FROM workspaces WHERE plan_id = ?1";
            let workspaces = row::count(tx, on_it, [id.as_str()])?;
            if workspaces > 0 {
                return Err(StoreError::PlanInUse { workspaces });
            }
            let version = next_version(tx)?;
            let sql = "UPDATE plans SET deleted_at = ?2, updated_at = ?2, version = ?3 WHERE id = ?1";
            row::execute(tx, sql, params![id.as_str(), at.as_micros(), row::int(version.0)])?;
            let changes = rules::plan_fields(&before);
            let target = id.to_string();
            audit::add(
                tx,
                version,
                &by,
                at,
                rules::AuditLine { action: "plan.delete", workspace: None, target, changes },
            )?;
            Ok(Written { value: (), version })
        })
        .await
    }

    async fn ensure_workspace(
        &self,
        id: &WorkspaceId,
        plan: &PlanId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<WorkspaceRecord>, StoreError> {
        // Nearly always it exists; then the writer is not needed.
        let known = id.clone();
        if let Some(written) = self.read(move |tx| workspace_record(tx, &known)).await? {
            return Ok(written);
        }
        let (id, plan, by) = (id.clone(), plan.clone(), by.clone());
        self.write(move |tx| match workspace_record(tx, &id)? {
            Some(written) => Ok(written),
            None => create_workspace(tx, rules::blank_workspace(id, plan, at), &by, at),
        })
        .await
    }

    async fn workspace(&self, id: &WorkspaceId) -> Result<Option<WorkspaceRecord>, StoreError> {
        let id = id.clone();
        self.read(move |tx| Ok(workspace_record(tx, &id)?.map(|written| written.value))).await
    }

    async fn workspaces(&self, page: PageRequest) -> Result<Page<WorkspaceRecord>, StoreError> {
        self.read(move |tx| {
            let total = row::count(tx, "SELECT count(*) FROM workspaces", [])?;
            let sql = concat!(
                "SELECT ",
                workspace_columns!(),
                " FROM workspaces ORDER BY created_at DESC, id LIMIT ?1 OFFSET ?2"
            );
            let page = params![page.pagesize, row::int(page.offset())];
            let items = row::all(tx, sql, page, sound_workspace)?;
            Ok(Page::of_readable(items, total))
        })
        .await
    }

    async fn put_workspace(
        &self,
        id: &WorkspaceId,
        patch: WorkspacePatch,
        default_plan: &PlanId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<WorkspaceRecord>, StoreError> {
        let (id, default_plan, by) = (id.clone(), default_plan.clone(), by.clone());
        self.write(move |tx| {
            if let Some(before) = workspace_record(tx, &id)? {
                return update_workspace(tx, &before.value, patch, &by, at);
            }
            let blank = rules::blank_workspace(id, default_plan, at);
            create_workspace(tx, rules::patched_workspace(&blank, patch, at)?, &by, at)
        })
        .await
    }
}

// === writes ===

fn create_workspace(
    tx: &Transaction<'_>,
    record: WorkspaceRecord,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    plan_record(tx, &record.plan_id)?.ok_or(StoreError::NotFound("plan"))?;
    let version = next_version(tx)?;
    let sql = "INSERT INTO workspaces (id, name, plan_id, end_users, created_at, updated_at, version)
               VALUES (?1, ?2, ?3, 0, ?4, ?4, ?5)";
    let values = params![
        record.id.as_str(),
        record.name,
        record.plan_id.as_str(),
        at.as_micros(),
        row::int(version.0)
    ];
    row::execute(tx, sql, values)?;
    let line = rules::AuditLine {
        action: "workspace.create",
        workspace: Some(&record.id),
        target: record.id.to_string(),
        changes: rules::workspace_fields(&record),
    };
    audit::add(tx, version, by, at, line)?;
    Ok(Written { value: record, version })
}

fn update_workspace(
    tx: &Transaction<'_>,
    before: &WorkspaceRecord,
    patch: WorkspacePatch,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    let after = rules::patched_workspace(before, patch, at)?;
    plan_record(tx, &after.plan_id)?.ok_or(StoreError::NotFound("plan"))?;
    let version = next_version(tx)?;
    let sql = "UPDATE workspaces SET name = ?2, plan_id = ?3, updated_at = ?4, version = ?5 WHERE id = ?1";
    let values =
        params![after.id.as_str(), after.name, after.plan_id.as_str(), at.as_micros(), row::int(version.0)];
    row::execute(tx, sql, values)?;
    let line = rules::AuditLine {
        action: "workspace.update",
        workspace: Some(&after.id),
        target: after.id.to_string(),
        changes: rules::difference(&rules::workspace_fields(before), &rules::workspace_fields(&after)),
    };
    audit::add(tx, version, by, at, line)?;
    Ok(Written { value: after, version })
}

// === reads ===

fn plan_record(tx: &Transaction<'_>, id: &PlanId) -> Result<Option<PlanRecord>, StoreError> {
    let sql = concat!(
        "SELECT ",
        plan_columns!(),
        ", ",
        plan_record_columns!(),
        " FROM plans p WHERE p.id = ?1 AND p.deleted_at IS NULL"
    );
    row::one(tx, sql, [id.as_str()], read_plan_record)
}

/// The plan of a workspace; none if there is no such workspace.
pub(super) fn plan_of(tx: &Transaction<'_>, workspace: &WorkspaceId) -> Result<Option<Plan>, StoreError> {
    let sql = concat!(
        "SELECT ",
        plan_columns!(),
        " FROM workspaces w JOIN plans p ON p.id = w.plan_id WHERE w.id = ?1"
    );
    row::one(tx, sql, [workspace.as_str()], read_plan)
}

fn workspace_record(
    tx: &Transaction<'_>,
    id: &WorkspaceId,
) -> Result<Option<Written<WorkspaceRecord>>, StoreError> {
    let sql = concat!("SELECT ", workspace_columns!(), " FROM workspaces WHERE id = ?1");
    row::one(tx, sql, [id.as_str()], read_workspace)
}
