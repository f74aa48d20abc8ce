//! Plans and workspaces.

use super::writes::at_once;
use super::{SqliteStore, StoreError};
use super::{credentials, deleted_keys, end_users, row};
use crate::clock::Timestamp;
use crate::model::grant::Grant;
use crate::model::id::{GrantId, PlanId, WorkspaceId};
use crate::model::key::Plan;
use crate::store::shared::decode::{plan_columns, plan_record_columns, read_plan_record};
use crate::store::shared::decode::{read_workspace, sound_plan_record, sound_workspace, workspace_columns};
use crate::store::shared::limits::limits_to_json;
use crate::store::shared::writes::tenants::TenantRows;
use crate::store::shared::writes::{self, Rows};
use crate::store::shared::{grants, rules};
use crate::store::{Actor, Page, PageRequest, PlanPatch, PlanRecord, Tenants, Version, Written};
use crate::store::{WorkspacePatch, WorkspaceRecord};
use async_trait::async_trait;
use rusqlite::{Transaction, named_params, params};
use std::future::ready;

#[async_trait]
impl Tenants for SqliteStore {
    async fn create_plan(
        &self,
        plan: PlanRecord,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PlanRecord>, StoreError> {
        let (record, by) = (rules::new_plan(plan, at)?, by.clone());
        self.write(move |tx| at_once(writes::tenants::create_plan(tx, record, &by, at))).await
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
        self.write(move |tx| at_once(writes::tenants::update_plan(tx, &id, patch, &by, at))).await
    }

    async fn delete_plan(&self, id: &PlanId, by: &Actor, at: Timestamp) -> Result<Written<()>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| at_once(writes::tenants::delete_plan(tx, &id, &by, at))).await
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
        self.write(move |tx| at_once(writes::tenants::ensure_workspace(tx, id, plan, &by, at))).await
    }

    async fn workspace(&self, id: &WorkspaceId) -> Result<Option<WorkspaceRecord>, StoreError> {
        let id = id.clone();
        self.read(move |tx| Ok(workspace_record(tx, &id)?.map(|written| written.value))).await
    }

    async fn workspaces(&self, page: PageRequest) -> Result<Page<WorkspaceRecord>, StoreError> {
        self.read(move |tx| {
            let total = row::count(tx, "SELECT count(*) FROM workspaces WHERE deleted_at IS NULL", [])?;
            let sql = concat!(
                "SELECT ",
                workspace_columns!(),
                " FROM workspaces WHERE deleted_at IS NULL ORDER BY created_at DESC, id LIMIT ?1 OFFSET ?2"
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
        let (id, plan, by) = (id.clone(), default_plan.clone(), by.clone());
        self.write(move |tx| at_once(writes::tenants::put_workspace(tx, id, patch, plan, &by, at))).await
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
        self.write(move |tx| at_once(writes::tenants::create_grant(tx, &workspace, grant, &by, at))).await
    }

    async fn delete_grant(
        &self,
        workspace: &WorkspaceId,
        id: GrantId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| at_once(writes::tenants::delete_grant(tx, &workspace, id, &by, at))).await
    }

    async fn delete_workspace(
        &self,
        id: &WorkspaceId,
        force: bool,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<u64>, StoreError> {
        let (id, by) = (id.clone(), by.clone());
        self.write(move |tx| at_once(writes::tenants::delete_workspace(tx, &id, force, &by, at))).await
    }

    async fn deleted_workspaces(&self, page: PageRequest) -> Result<Page<WorkspaceId>, StoreError> {
        self.read(move |tx| {
            let total = row::count(tx, "SELECT count(*) FROM workspaces WHERE deleted_at IS NOT NULL", [])?;
            let sql = "SELECT id FROM workspaces WHERE deleted_at IS NOT NULL ORDER BY id LIMIT ?1 OFFSET ?2";
            let page = params![page.pagesize, row::int(page.offset())];
            let items = row::all(tx, sql, page, |f| f.parsed("id"))?;
            Ok(Page::complete(items, total))
        })
        .await
    }

    async fn was_workspace(&self, id: &WorkspaceId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.read(move |tx| is_deleted(tx, &id)).await
    }
}

impl TenantRows for Transaction<'_> {
    fn insert_plan(&self, record: &PlanRecord, version: Version) -> impl Rows<bool> {
        let sql = "INSERT INTO plans (id, description, api_ops_rate_limit, end_user_quota, limits, created_at,
                       updated_at, deleted_at, version, usage_retention_days, default_daily_request_limit,
                       deleted_keys_days, calendar)
                   VALUES (:id, :description, :rate, :quota, :limits, :created, :updated, NULL, :version, :retention,
                       :daily, :deleted, :calendar)
                   ON CONFLICT (id) DO UPDATE SET description = excluded.description,
                       api_ops_rate_limit = excluded.api_ops_rate_limit,
                       end_user_quota = excluded.end_user_quota, limits = excluded.limits,
                       created_at = excluded.created_at, updated_at = excluded.updated_at,
                       deleted_at = NULL, version = excluded.version,
                       usage_retention_days = excluded.usage_retention_days,
                       default_daily_request_limit = excluded.default_daily_request_limit,
                       deleted_keys_days = excluded.deleted_keys_days, calendar = excluded.calendar
                   WHERE plans.deleted_at IS NOT NULL";
        let values = named_params! {
            ":id": record.plan.id.as_str(),
            ":description": record.description,
            ":rate": record.plan.api_ops_rate_limit,
            ":quota": row::int(record.plan.end_user_quota),
            ":limits": limits_to_json(&record.plan.limits).to_string(),
            ":created": record.created_at.as_micros(),
            ":updated": record.updated_at.as_micros(),
            ":version": row::int(version.0),
            ":retention": record.usage_retention_days,
            ":daily": record.plan.default_daily_request_limit.map(row::int),
            ":deleted": record.deleted_keys_days,
            ":calendar": rules::calendar_column(record.plan.calendar),
        };
        ready(row::execute(self, sql, values).map(|made| made > 0))
    }

    fn live_plan(&self, id: &PlanId) -> impl Rows<Option<PlanRecord>> {
        ready(plan_record(self, id))
    }

    fn update_plan(&self, record: &PlanRecord, version: Version) -> impl Rows<()> {
        let sql = "UPDATE plans SET description = :description, api_ops_rate_limit = :rate,
                       end_user_quota = :quota, limits = :limits, updated_at = :updated, version = :version,
                       usage_retention_days = :retention, default_daily_request_limit = :daily,
                       deleted_keys_days = :deleted, calendar = :calendar
                   WHERE id = :id";
        let values = named_params! {
            ":id": record.plan.id.as_str(),
            ":description": record.description,
            ":rate": record.plan.api_ops_rate_limit,
            ":quota": row::int(record.plan.end_user_quota),
            ":limits": limits_to_json(&record.plan.limits).to_string(),
            ":updated": record.updated_at.as_micros(),
            ":version": row::int(version.0),
            ":retention": record.usage_retention_days,
            ":daily": record.plan.default_daily_request_limit.map(row::int),
            ":deleted": record.deleted_keys_days,
            ":calendar": rules::calendar_column(record.plan.calendar),
        };
        ready(row::change(self, sql, values))
    }

    fn bury_plan(&self, id: &PlanId, at: Timestamp, version: Version) -> impl Rows<()> {
        let sql = "UPDATE plans SET deleted_at = ?2, updated_at = ?2, version = ?3 WHERE id = ?1";
        ready(row::change(self, sql, params![id.as_str(), at.as_micros(), row::int(version.0)]))
    }

    fn count_workspaces_on(&self, plan: &PlanId) -> impl Rows<u64> {
        ready(row::count(
            self,
            "SELECT count(*) FROM workspaces WHERE plan_id = ?1 AND deleted_at IS NULL",
            [plan.as_str()],
        ))
    }

    fn workspace(&self, id: &WorkspaceId) -> impl Rows<Option<Written<WorkspaceRecord>>> {
        ready(workspace_record(self, id))
    }

    fn is_deleted_workspace(&self, id: &WorkspaceId) -> impl Rows<bool> {
        ready(is_deleted(self, id))
    }

    fn insert_workspace(&self, record: &WorkspaceRecord, version: Version) -> impl Rows<()> {
        let sql = "INSERT INTO workspaces (id, name, plan_id, end_users, created_at, updated_at, version)
                   VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6)
                   ON CONFLICT (id) DO UPDATE SET name = excluded.name, plan_id = excluded.plan_id,
                       created_at = excluded.created_at, updated_at = excluded.updated_at,
                       version = excluded.version, deleted_at = NULL, grants = '[]'";
        let (id, plan) = (record.id.as_str(), record.plan_id.as_str());
        let (created, updated) = (record.created_at.as_micros(), record.updated_at.as_micros());
        ready(row::change(self, sql, params![id, record.name, plan, created, updated, row::int(version.0)]))
    }

    fn update_workspace(&self, record: &WorkspaceRecord, version: Version) -> impl Rows<()> {
        let sql = "UPDATE workspaces SET name = ?2, plan_id = ?3, grants = ?4, updated_at = ?5, version = ?6
                   WHERE id = ?1";
        let (id, plan) = (record.id.as_str(), record.plan_id.as_str());
        let (grants, updated) = (grants::to_json(&record.grants).to_string(), record.updated_at.as_micros());
        ready(row::change(self, sql, params![id, record.name, plan, grants, updated, row::int(version.0)]))
    }

    fn bury_workspace(&self, id: &WorkspaceId, at: Timestamp, version: Version) -> impl Rows<()> {
        let sql = "UPDATE workspaces SET deleted_at = ?2, updated_at = ?2, end_users = 0, version = ?3 WHERE id = ?1";
        ready(row::change(self, sql, params![id.as_str(), at.as_micros(), row::int(version.0)]))
    }

    fn count_keys_of(&self, id: &WorkspaceId) -> impl Rows<u64> {
        let sql = "SELECT count(*) FROM keys WHERE workspace_id = ?1 AND deleted_at IS NULL";
        ready(row::count(self, sql, [id.as_str()]))
    }

    fn bury_keys_of(&self, id: &WorkspaceId, at: Timestamp, version: Version) -> impl Rows<()> {
        let sql = "UPDATE keys SET deleted_at = ?2, updated_at = ?2, version = ?3
                   WHERE workspace_id = ?1 AND deleted_at IS NULL";
        ready(row::change(self, sql, params![id.as_str(), at.as_micros(), row::int(version.0)]))
    }

    fn erase_credentials_of(&self, id: &WorkspaceId) -> impl Rows<()> {
        ready(deleted_keys::erase_credentials_of(self, id))
    }

    fn bury_upstream_credentials_of(
        &self,
        id: &WorkspaceId,
        at: Timestamp,
        version: Version,
    ) -> impl Rows<()> {
        ready(credentials::bury_all_of(self, id, at, version))
    }

    fn bury_end_users_of(&self, id: &WorkspaceId, version: Version) -> impl Rows<()> {
        ready(end_users::bury_all(self, id, version))
    }
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

/// The plan of a workspace, raised by its grants; none if there is no such workspace.
pub(super) fn plan_of(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    at: Timestamp,
) -> Result<Option<Plan>, StoreError> {
    let sql = concat!(
        "SELECT ",
        plan_columns!(),
        ", w.grants FROM workspaces w JOIN plans p ON p.id = w.plan_id
         WHERE w.id = ?1 AND w.deleted_at IS NULL"
    );
    row::one(tx, sql, [workspace.as_str()], |f| grants::read_raised_plan(f, at))
}

fn workspace_record(
    tx: &Transaction<'_>,
    id: &WorkspaceId,
) -> Result<Option<Written<WorkspaceRecord>>, StoreError> {
    let sql =
        concat!("SELECT ", workspace_columns!(), " FROM workspaces WHERE id = ?1 AND deleted_at IS NULL");
    row::one(tx, sql, [id.as_str()], read_workspace)
}

fn is_deleted(tx: &Transaction<'_>, id: &WorkspaceId) -> Result<bool, StoreError> {
    let sql = "SELECT count(*) FROM workspaces WHERE id = ?1 AND deleted_at IS NOT NULL";
    Ok(row::count(tx, sql, [id.as_str()])? > 0)
}
