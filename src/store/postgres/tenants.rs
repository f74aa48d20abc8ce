//! Plans and workspaces.

use super::tx::Tx;
use super::{PgStore, StoreError, audit, next_version};
use crate::clock::Timestamp;
use crate::model::id::{PlanId, WorkspaceId};
use crate::model::key::Plan;
use crate::store::shared::decode::{plan_columns, plan_record_columns, read_plan, read_plan_record};
use crate::store::shared::decode::{read_workspace, sound_plan_record, sound_workspace, workspace_columns};
use crate::store::shared::fields::int;
use crate::store::shared::rules::{self, AuditLine};
use crate::store::{Actor, Page, PageRequest, PlanPatch, PlanRecord, Tenants, Version, Written};
use crate::store::{WorkspacePatch, WorkspaceRecord};
use async_trait::async_trait;

#[async_trait]
impl Tenants for PgStore {
    async fn create_plan(
        &self,
        plan: PlanRecord,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PlanRecord>, StoreError> {
        let by = by.clone();
        let record = PlanRecord { created_at: at, updated_at: at, ..plan };
        rules::check_plan(&record)?;
        self.write(move |tx| Box::pin(async move { create_plan(tx, record, &by, at).await })).await
    }

    async fn plan(&self, id: &PlanId) -> Result<Option<PlanRecord>, StoreError> {
        let id = id.clone();
        self.read(move |tx| Box::pin(async move { plan_record(tx, &id).await })).await
    }

    async fn plans(&self, page: PageRequest) -> Result<Page<PlanRecord>, StoreError> {
        self.read(move |tx| Box::pin(list_plans(tx, page))).await
    }

    async fn update_plan(
        &self,
        id: &PlanId,
        patch: PlanPatch,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PlanRecord>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| Box::pin(async move { update_plan(tx, &id, patch, &by, at).await })).await
    }

    async fn delete_plan(&self, id: &PlanId, by: &Actor, at: Timestamp) -> Result<Written<()>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| Box::pin(async move { delete_plan(tx, &id, &by, at).await })).await
    }

    async fn ensure_workspace(
        &self,
        id: &WorkspaceId,
        plan: &PlanId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<WorkspaceRecord>, StoreError> {
        // Nearly always it exists; then no write lock is needed.
        let known = id.clone();
        let looked = self.read(move |tx| Box::pin(async move { workspace_record(tx, &known).await }));
        if let Some(written) = looked.await? {
            return Ok(written);
        }
        let (id, plan, by) = (id.clone(), plan.clone(), by.clone());
        self.write(move |tx| Box::pin(async move { ensure_workspace(tx, id, plan, &by, at).await })).await
    }

    async fn workspace(&self, id: &WorkspaceId) -> Result<Option<WorkspaceRecord>, StoreError> {
        let id = id.clone();
        let found = self.read(move |tx| Box::pin(async move { workspace_record(tx, &id).await }));
        Ok(found.await?.map(|written| written.value))
    }

    async fn workspaces(&self, page: PageRequest) -> Result<Page<WorkspaceRecord>, StoreError> {
        self.read(move |tx| Box::pin(list_workspaces(tx, page))).await
    }

    async fn put_workspace(
        &self,
        id: &WorkspaceId,
        patch: WorkspacePatch,
        default_plan: &PlanId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<WorkspaceRecord>, StoreError> {
        let (id, plan, by) = (id.clone(), default_plan.clone(), by.clone());
        self.write(move |tx| Box::pin(async move { put_workspace(tx, id, patch, plan, &by, at).await })).await
    }
}

// === plans ===

async fn create_plan(
    tx: &Tx<'_>,
    record: PlanRecord,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<PlanRecord>, StoreError> {
    let version = next_version(tx).await?;
    // A tombstone with this id is replaced; a live plan is not.
    let sql = "INSERT INTO plans (id, description, api_ops_rate_limit, end_user_quota, limits, created_at, updated_at,
                   deleted_at, version, usage_retention_days, default_daily_request_limit, deleted_keys_days)
               VALUES ($1, $2, $3, $4, $5, $6, $6, NULL, $7, $8, $9, $10)
               ON CONFLICT (id) DO UPDATE SET description = excluded.description,
                   api_ops_rate_limit = excluded.api_ops_rate_limit, end_user_quota = excluded.end_user_quota,
                   limits = excluded.limits, created_at = excluded.created_at, updated_at = excluded.updated_at,
                   deleted_at = NULL, version = excluded.version,
                   usage_retention_days = excluded.usage_retention_days,
                   default_daily_request_limit = excluded.default_daily_request_limit,
                   deleted_keys_days = excluded.deleted_keys_days
               WHERE plans.deleted_at IS NOT NULL";
    let plan = &record.plan;
    let made = tx
        .execute(
            sql,
            &[
                &plan.id.as_str(),
                &record.description,
                &i64::from(plan.api_ops_rate_limit),
                &int(plan.end_user_quota),
                &rules::limits_to_json(&plan.limits).to_string(),
                &at.as_micros(),
                &int(version.0),
                &record.usage_retention_days.map(i64::from),
                &plan.default_daily_request_limit.map(int),
                &i64::from(record.deleted_keys_days),
            ],
        )
        .await?;
    if made == 0 {
        return Err(StoreError::AlreadyExists("plan"));
    }
    let changes = rules::plan_fields(&record);
    let target = plan.id.to_string();
    let line = AuditLine { action: "plan.create", workspace: None, target, changes };
    audit::add(tx, version, by, at, line).await?;
    Ok(Written { value: record, version })
}

async fn update_plan(
    tx: &Tx<'_>,
    id: &PlanId,
    patch: PlanPatch,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<PlanRecord>, StoreError> {
    let version = next_version(tx).await?;
    let before = plan_record(tx, id).await?.ok_or(StoreError::NotFound("plan"))?;
    let after = rules::patched_plan(&before, patch, at)?;
    let sql = "UPDATE plans SET description = $2, api_ops_rate_limit = $3, end_user_quota = $4, limits = $5,
                   updated_at = $6, version = $7, usage_retention_days = $8, default_daily_request_limit = $9,
                   deleted_keys_days = $10
               WHERE id = $1";
    tx.execute(
        sql,
        &[
            &id.as_str(),
            &after.description,
            &i64::from(after.plan.api_ops_rate_limit),
            &int(after.plan.end_user_quota),
            &rules::limits_to_json(&after.plan.limits).to_string(),
            &at.as_micros(),
            &int(version.0),
            &after.usage_retention_days.map(i64::from),
            &after.plan.default_daily_request_limit.map(int),
            &i64::from(after.deleted_keys_days),
        ],
    )
    .await?;
    let changes = rules::difference(&rules::plan_fields(&before), &rules::plan_fields(&after));
    let line = AuditLine { action: "plan.update", workspace: None, target: id.to_string(), changes };
    audit::add(tx, version, by, at, line).await?;
    Ok(Written { value: after, version })
}

async fn delete_plan(tx: &Tx<'_>, id: &PlanId, by: &Actor, at: Timestamp) -> Result<Written<()>, StoreError> {
    let version = next_version(tx).await?;
    let before = plan_record(tx, id).await?.ok_or(StoreError::NotFound("plan"))?;
    let on_it = "SELECT count(*) FROM workspaces WHERE plan_id = $1";
    let workspaces = tx.count(on_it, &[&id.as_str()]).await?;
    if workspaces > 0 {
        return Err(StoreError::PlanInUse { workspaces });
    }
    let sql = "UPDATE plans SET deleted_at = $2, updated_at = $2, version = $3 WHERE id = $1";
    tx.execute(sql, &[&id.as_str(), &at.as_micros(), &int(version.0)]).await?;
    let changes = rules::plan_fields(&before);
    let line = AuditLine { action: "plan.delete", workspace: None, target: id.to_string(), changes };
    audit::add(tx, version, by, at, line).await?;
    Ok(Written { value: (), version })
}

async fn list_plans(tx: &Tx<'_>, page: PageRequest) -> Result<Page<PlanRecord>, StoreError> {
    let total = tx.count("SELECT count(*) FROM plans WHERE deleted_at IS NULL", &[]).await?;
    let sql = concat!(
        "SELECT ",
        plan_columns!(),
        ", ",
        plan_record_columns!(),
        " FROM plans p WHERE p.deleted_at IS NULL ORDER BY p.id LIMIT $1 OFFSET $2"
    );
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let items = tx.all(sql, &[&limit, &offset], sound_plan_record).await?;
    Ok(Page::of_readable(items, total))
}

async fn plan_record(tx: &Tx<'_>, id: &PlanId) -> Result<Option<PlanRecord>, StoreError> {
    let sql = concat!(
        "SELECT ",
        plan_columns!(),
        ", ",
        plan_record_columns!(),
        " FROM plans p WHERE p.id = $1 AND p.deleted_at IS NULL"
    );
    tx.one(sql, &[&id.as_str()], read_plan_record).await
}

/// The plan of a workspace; none if there is no such workspace.
pub(super) async fn plan_of(tx: &Tx<'_>, workspace: &WorkspaceId) -> Result<Option<Plan>, StoreError> {
    let sql = concat!(
        "SELECT ",
        plan_columns!(),
        " FROM workspaces w JOIN plans p ON p.id = w.plan_id WHERE w.id = $1"
    );
    tx.one(sql, &[&workspace.as_str()], read_plan).await
}

// === workspaces ===

async fn ensure_workspace(
    tx: &Tx<'_>,
    id: WorkspaceId,
    plan: PlanId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    let version = next_version(tx).await?;
    if let Some(written) = workspace_record(tx, &id).await? {
        tx.undo();
        return Ok(written);
    }
    create_workspace(tx, rules::blank_workspace(id, plan, at), version, by, at).await
}

async fn put_workspace(
    tx: &Tx<'_>,
    id: WorkspaceId,
    patch: WorkspacePatch,
    default_plan: PlanId,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    let version = next_version(tx).await?;
    if let Some(before) = workspace_record(tx, &id).await? {
        return update_workspace(tx, &before.value, patch, version, by, at).await;
    }
    let blank = rules::blank_workspace(id, default_plan, at);
    create_workspace(tx, rules::patched_workspace(&blank, patch, at)?, version, by, at).await
}

async fn create_workspace(
    tx: &Tx<'_>,
    record: WorkspaceRecord,
    version: Version,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    plan_record(tx, &record.plan_id).await?.ok_or(StoreError::NotFound("plan"))?;
    let sql = "INSERT INTO workspaces (id, name, plan_id, end_users, created_at, updated_at, version)
               VALUES ($1, $2, $3, 0, $4, $4, $5)";
    let (id, plan) = (record.id.as_str(), record.plan_id.as_str());
    tx.execute(sql, &[&id, &record.name, &plan, &at.as_micros(), &int(version.0)]).await?;
    let line = AuditLine {
        action: "workspace.create",
        workspace: Some(&record.id),
        target: record.id.to_string(),
        changes: rules::workspace_fields(&record),
    };
    audit::add(tx, version, by, at, line).await?;
    Ok(Written { value: record, version })
}

async fn update_workspace(
    tx: &Tx<'_>,
    before: &WorkspaceRecord,
    patch: WorkspacePatch,
    version: Version,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    let after = rules::patched_workspace(before, patch, at)?;
    plan_record(tx, &after.plan_id).await?.ok_or(StoreError::NotFound("plan"))?;
    let sql = "UPDATE workspaces SET name = $2, plan_id = $3, updated_at = $4, version = $5 WHERE id = $1";
    let (id, plan) = (after.id.as_str(), after.plan_id.as_str());
    tx.execute(sql, &[&id, &after.name, &plan, &at.as_micros(), &int(version.0)]).await?;
    let line = AuditLine {
        action: "workspace.update",
        workspace: Some(&after.id),
        target: after.id.to_string(),
        changes: rules::difference(&rules::workspace_fields(before), &rules::workspace_fields(&after)),
    };
    audit::add(tx, version, by, at, line).await?;
    Ok(Written { value: after, version })
}

async fn list_workspaces(tx: &Tx<'_>, page: PageRequest) -> Result<Page<WorkspaceRecord>, StoreError> {
    let total = tx.count("SELECT count(*) FROM workspaces", &[]).await?;
    let sql = concat!(
        "SELECT ",
        workspace_columns!(),
        " FROM workspaces ORDER BY created_at DESC, id LIMIT $1 OFFSET $2"
    );
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let items = tx.all(sql, &[&limit, &offset], sound_workspace).await?;
    Ok(Page::of_readable(items, total))
}

async fn workspace_record(
    tx: &Tx<'_>,
    id: &WorkspaceId,
) -> Result<Option<Written<WorkspaceRecord>>, StoreError> {
    let sql = concat!("SELECT ", workspace_columns!(), " FROM workspaces WHERE id = $1");
    tx.one(sql, &[&id.as_str()], read_workspace).await
}
