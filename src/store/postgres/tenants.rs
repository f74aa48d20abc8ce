//! Plans and workspaces.

use super::tx::Tx;
use super::{PgStore, StoreError, credentials, deleted_keys, end_users};
use crate::clock::Timestamp;
use crate::model::grant::Grant;
use crate::model::id::{GrantId, PlanId, WorkspaceId};
use crate::model::key::Plan;
use crate::store::shared::decode::{plan_columns, plan_record_columns, read_plan_record};
use crate::store::shared::decode::{read_workspace, sound_plan_record, sound_workspace, workspace_columns};
use crate::store::shared::fields::int;
use crate::store::shared::limits::limits_to_json;
use crate::store::shared::writes;
use crate::store::shared::writes::tenants::TenantRows;
use crate::store::shared::{grants, rules};
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
        let (record, by) = (rules::new_plan(plan, at)?, by.clone());
        self.write(move |tx| Box::pin(async move { writes::tenants::create_plan(tx, record, &by, at).await }))
            .await
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
        self.write(move |tx| {
            Box::pin(async move { writes::tenants::update_plan(tx, &id, patch, &by, at).await })
        })
        .await
    }

    async fn delete_plan(&self, id: &PlanId, by: &Actor, at: Timestamp) -> Result<Written<()>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| Box::pin(async move { writes::tenants::delete_plan(tx, &id, &by, at).await }))
            .await
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
        self.write(move |tx| {
            Box::pin(async move { writes::tenants::ensure_workspace(tx, id, plan, &by, at).await })
        })
        .await
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
        self.write(move |tx| {
            Box::pin(async move { writes::tenants::put_workspace(tx, id, patch, plan, &by, at).await })
        })
        .await
    }

    async fn create_grant(
        &self,
        workspace: &WorkspaceId,
        grant: Grant,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<Grant>, StoreError> {
        rules::check_text("reason", &grant.reason)?;
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| {
            Box::pin(async move { writes::tenants::create_grant(tx, &workspace, grant, &by, at).await })
        })
        .await
    }

    async fn delete_grant(
        &self,
        workspace: &WorkspaceId,
        id: GrantId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| {
            Box::pin(async move { writes::tenants::delete_grant(tx, &workspace, id, &by, at).await })
        })
        .await
    }

    async fn delete_workspace(
        &self,
        id: &WorkspaceId,
        force: bool,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<u64>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| {
            Box::pin(async move { writes::tenants::delete_workspace(tx, &id, force, &by, at).await })
        })
        .await
    }

    async fn deleted_workspaces(&self, page: PageRequest) -> Result<Page<WorkspaceId>, StoreError> {
        self.read(move |tx| Box::pin(list_deleted_workspaces(tx, page))).await
    }

    async fn was_workspace(&self, id: &WorkspaceId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.read(move |tx| Box::pin(async move { is_deleted(tx, &id).await })).await
    }
}

impl TenantRows for Tx<'_> {
    async fn insert_plan(&self, record: &PlanRecord, version: Version) -> Result<bool, StoreError> {
        let sql = "INSERT INTO plans (id, description, api_ops_rate_limit, end_user_quota, limits, created_at,
                       updated_at, deleted_at, version, usage_retention_days, default_daily_request_limit,
                       deleted_keys_days, calendar)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, NULL, $8, $9, $10, $11, $12)
                   ON CONFLICT (id) DO UPDATE SET description = excluded.description,
                       api_ops_rate_limit = excluded.api_ops_rate_limit, end_user_quota = excluded.end_user_quota,
                       limits = excluded.limits, created_at = excluded.created_at, updated_at = excluded.updated_at,
                       deleted_at = NULL, version = excluded.version,
                       usage_retention_days = excluded.usage_retention_days,
                       default_daily_request_limit = excluded.default_daily_request_limit,
                       deleted_keys_days = excluded.deleted_keys_days, calendar = excluded.calendar
                   WHERE plans.deleted_at IS NOT NULL";
        let plan = &record.plan;
        let made = self
            .execute(
                sql,
                &[
                    &plan.id.as_str(),
                    &record.description,
                    &i64::from(plan.api_ops_rate_limit),
                    &int(plan.end_user_quota),
                    &limits_to_json(&plan.limits).to_string(),
                    &record.created_at.as_micros(),
                    &record.updated_at.as_micros(),
                    &int(version.0),
                    &record.usage_retention_days.map(i64::from),
                    &plan.default_daily_request_limit.map(int),
                    &i64::from(record.deleted_keys_days),
                    &rules::calendar_column(plan.calendar),
                ],
            )
            .await?;
        Ok(made > 0)
    }

    async fn live_plan(&self, id: &PlanId) -> Result<Option<PlanRecord>, StoreError> {
        plan_record(self, id).await
    }

    async fn update_plan(&self, record: &PlanRecord, version: Version) -> Result<(), StoreError> {
        let sql = "UPDATE plans SET description = $2, api_ops_rate_limit = $3, end_user_quota = $4, limits = $5,
                       updated_at = $6, version = $7, usage_retention_days = $8, default_daily_request_limit = $9,
                       deleted_keys_days = $10, calendar = $11
                   WHERE id = $1";
        let plan = &record.plan;
        self.change(
            sql,
            &[
                &plan.id.as_str(),
                &record.description,
                &i64::from(plan.api_ops_rate_limit),
                &int(plan.end_user_quota),
                &limits_to_json(&plan.limits).to_string(),
                &record.updated_at.as_micros(),
                &int(version.0),
                &record.usage_retention_days.map(i64::from),
                &plan.default_daily_request_limit.map(int),
                &i64::from(record.deleted_keys_days),
                &rules::calendar_column(plan.calendar),
            ],
        )
        .await
    }

    async fn bury_plan(&self, id: &PlanId, at: Timestamp, version: Version) -> Result<(), StoreError> {
        let sql = "UPDATE plans SET deleted_at = $2, updated_at = $2, version = $3 WHERE id = $1";
        self.change(sql, &[&id.as_str(), &at.as_micros(), &int(version.0)]).await
    }

    async fn count_workspaces_on(&self, plan: &PlanId) -> Result<u64, StoreError> {
        self.count(
            "SELECT count(*) FROM workspaces WHERE plan_id = $1 AND deleted_at IS NULL",
            &[&plan.as_str()],
        )
        .await
    }

    async fn workspace(&self, id: &WorkspaceId) -> Result<Option<Written<WorkspaceRecord>>, StoreError> {
        workspace_record(self, id).await
    }

    async fn is_deleted_workspace(&self, id: &WorkspaceId) -> Result<bool, StoreError> {
        is_deleted(self, id).await
    }

    async fn insert_workspace(&self, record: &WorkspaceRecord, version: Version) -> Result<(), StoreError> {
        let sql = "INSERT INTO workspaces (id, name, plan_id, end_users, created_at, updated_at, version)
                   VALUES ($1, $2, $3, 0, $4, $5, $6)
                   ON CONFLICT (id) DO UPDATE SET name = excluded.name, plan_id = excluded.plan_id,
                       created_at = excluded.created_at, updated_at = excluded.updated_at,
                       version = excluded.version, deleted_at = NULL, grants = '[]'";
        let (id, plan) = (record.id.as_str(), record.plan_id.as_str());
        let (created, updated) = (record.created_at.as_micros(), record.updated_at.as_micros());
        self.change(sql, &[&id, &record.name, &plan, &created, &updated, &int(version.0)]).await
    }

    async fn update_workspace(&self, record: &WorkspaceRecord, version: Version) -> Result<(), StoreError> {
        let sql = "UPDATE workspaces SET name = $2, plan_id = $3, grants = $4, updated_at = $5, version = $6
                   WHERE id = $1";
        let (id, plan) = (record.id.as_str(), record.plan_id.as_str());
        let (grants, updated) = (grants::to_json(&record.grants).to_string(), record.updated_at.as_micros());
        self.change(sql, &[&id, &record.name, &plan, &grants, &updated, &int(version.0)]).await
    }

    async fn bury_workspace(
        &self,
        id: &WorkspaceId,
        at: Timestamp,
        version: Version,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE workspaces SET deleted_at = $2, updated_at = $2, end_users = 0, version = $3 WHERE id = $1";
        self.change(sql, &[&id.as_str(), &at.as_micros(), &int(version.0)]).await
    }

    async fn count_keys_of(&self, id: &WorkspaceId) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM keys WHERE workspace_id = $1 AND deleted_at IS NULL";
        self.count(sql, &[&id.as_str()]).await
    }

    async fn bury_keys_of(
        &self,
        id: &WorkspaceId,
        at: Timestamp,
        version: Version,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE keys SET deleted_at = $2, updated_at = $2, version = $3
                   WHERE workspace_id = $1 AND deleted_at IS NULL";
        self.change(sql, &[&id.as_str(), &at.as_micros(), &int(version.0)]).await
    }

    async fn erase_credentials_of(&self, id: &WorkspaceId) -> Result<(), StoreError> {
        deleted_keys::erase_credentials_of(self, id).await
    }

    async fn bury_upstream_credentials_of(
        &self,
        id: &WorkspaceId,
        at: Timestamp,
        version: Version,
    ) -> Result<(), StoreError> {
        credentials::bury_all_of(self, id, at, version).await
    }

    async fn bury_end_users_of(&self, id: &WorkspaceId, version: Version) -> Result<(), StoreError> {
        end_users::bury_all(self, id, version).await
    }
}

// === reads ===

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

/// The plan of a workspace, raised by its grants; none if there is no such workspace.
pub(super) async fn plan_of(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    at: Timestamp,
) -> Result<Option<Plan>, StoreError> {
    let sql = concat!(
        "SELECT ",
        plan_columns!(),
        ", w.grants FROM workspaces w JOIN plans p ON p.id = w.plan_id
         WHERE w.id = $1 AND w.deleted_at IS NULL"
    );
    tx.one(sql, &[&workspace.as_str()], |f| grants::read_raised_plan(f, at)).await
}

async fn list_workspaces(tx: &Tx<'_>, page: PageRequest) -> Result<Page<WorkspaceRecord>, StoreError> {
    let total = tx.count("SELECT count(*) FROM workspaces WHERE deleted_at IS NULL", &[]).await?;
    let sql = concat!(
        "SELECT ",
        workspace_columns!(),
        " FROM workspaces WHERE deleted_at IS NULL ORDER BY created_at DESC, id LIMIT $1 OFFSET $2"
    );
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let items = tx.all(sql, &[&limit, &offset], sound_workspace).await?;
    Ok(Page::of_readable(items, total))
}

async fn list_deleted_workspaces(tx: &Tx<'_>, page: PageRequest) -> Result<Page<WorkspaceId>, StoreError> {
    let total = tx.count("SELECT count(*) FROM workspaces WHERE deleted_at IS NOT NULL", &[]).await?;
    let sql = "SELECT id FROM workspaces WHERE deleted_at IS NOT NULL ORDER BY id LIMIT $1 OFFSET $2";
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let items = tx.all(sql, &[&limit, &offset], |f| f.parsed("id")).await?;
    Ok(Page::complete(items, total))
}

async fn workspace_record(
    tx: &Tx<'_>,
    id: &WorkspaceId,
) -> Result<Option<Written<WorkspaceRecord>>, StoreError> {
    let sql =
        concat!("SELECT ", workspace_columns!(), " FROM workspaces WHERE id = $1 AND deleted_at IS NULL");
    tx.one(sql, &[&id.as_str()], read_workspace).await
}

async fn is_deleted(tx: &Tx<'_>, id: &WorkspaceId) -> Result<bool, StoreError> {
    let sql = "SELECT count(*) FROM workspaces WHERE id = $1 AND deleted_at IS NOT NULL";
    Ok(tx.count(sql, &[&id.as_str()]).await? > 0)
}
