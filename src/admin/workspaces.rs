//! Workspaces: list, read, change or create.

use super::caller::{PlatformAdmin, WorkspaceVisitor};
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Object, PathSegment, Query, QueryParams};
use super::input::UpdateWorkspaceInput;
use super::limit_usage::{HeldInWindows, Usage, percentage};
use super::page::{Listed, PageParams, millis};
use super::propagation::{Spread, WaitParams, WaitQuery, spread};
use super::schema::{CountWord, PerWord, WorkspaceUpdate};
use crate::model::fault::Fault;
use crate::model::grant::{GrantedLimit, granted, raised};
use crate::model::id::WorkspaceId;
use crate::model::key::{Ceiling, Owner, Plan};
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::store::{PageRequest, StoreError, WorkspaceRecord};
use axum::extract::State;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

/// A workspace.
#[derive(Serialize, ToSchema)]
pub(super) struct WorkspaceView {
    id: String,
    /// Empty until it is set.
    name: String,
    plan_id: String,
    /// Number of end users.
    end_users: u64,
    /// Epoch milliseconds.
    created_at: i64,
    /// Epoch milliseconds.
    updated_at: i64,
}

/// A workspace with the usage of its quotas.
#[derive(Serialize, ToSchema)]
pub(super) struct WorkspaceDetail {
    #[serde(flatten)]
    workspace: WorkspaceView,
    /// The highest rate of one key, in requests per second, with what is granted.
    api_ops_rate_limit: u32,
    /// How much of it is granted.
    api_ops_rate_limit_granted: u64,
    /// Every quota of the workspace: the plan's `end_user_quota` and its `limits` of the workspace, except those per second.
    quotas: Vec<QuotaView>,
}

/// A quota and its usage.
#[derive(Serialize, ToSchema)]
pub(super) struct QuotaView {
    /// `end_user_quota` or `limits`.
    name: &'static str,
    /// What it counts; only for `limits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CountWord>)]
    count: Option<&'static str>,
    /// Its window; only for `limits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PerWord>)]
    per: Option<&'static str>,
    /// The used amount, according to the ledger.
    used: u64,
    /// What requests in flight on this node hold besides.
    held: u64,
    /// The limit in force, with what is granted.
    limit: u64,
    /// How much of it is granted.
    granted: u64,
    /// Percentage of the limit, with two decimals; more than 100 after a plan was lowered.
    percentage: f64,
}

/// A deletion.
#[derive(Serialize, ToSchema)]
pub(super) struct DeletedWorkspace {
    /// How many keys were deleted with the workspace.
    keys: u64,
    /// Only with `wait=all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    propagation: Option<Spread>,
}

/// The query of a deletion, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `DeleteQuery` reads")]
pub(super) struct DeleteParams {
    /// Delete the workspace although it has keys: they are deleted with it.
    force: Option<bool>,
}

/// Whether keys are deleted as well, and what the response waits for.
pub(super) struct DeleteQuery {
    force: bool,
    wait: WaitQuery,
}

impl FromParams for DeleteQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        let force = params.read("force", |text| text.parse().map_err(|_| "must be true or false".into()));
        Self { force: force.unwrap_or(false), wait: WaitQuery::from_params(params) }
    }
}

/// List workspaces
///
/// Role `platform`. Newest first.
#[utoipa::path(get, path = "/workspaces", tag = "Workspaces", params(PageParams), responses(
    (status = 200, description = "A page of workspaces", body = Envelope<Listed<WorkspaceView>>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_workspaces(
    State(admin): State<AdminState>,
    _: PlatformAdmin,
    Query(page): Query<PageRequest>,
) -> Result<ApiResponse<Listed<WorkspaceView>>, AdminError> {
    let found = admin.ask(Fault::NotFound, admin.deps.store.workspaces(page)).await?;
    admin.deps.metrics.store_rows_passed_over.inc_by(found.passed_over);
    Ok(ApiResponse::ok(Listed::new(page, found, WorkspaceView::new)))
}

/// Read a workspace
///
/// Role `platform`, or any role for one's own workspace. Includes the usage of each quota.
#[utoipa::path(get, path = "/workspaces/{id}", tag = "Workspaces", params(("id" = String, Path, description = "Which workspace")),
responses(
    (status = 200, description = "The workspace", body = Envelope<WorkspaceDetail>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn get_workspace(
    State(admin): State<AdminState>,
    visitor: WorkspaceVisitor,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<WorkspaceDetail>, AdminError> {
    if let WorkspaceVisitor::Only(own) = &visitor
        && own.as_str() != id.0
    {
        return Err(AdminError::of(Fault::WorkspaceNoAccess));
    }
    let id: WorkspaceId = id.id(Fault::NotFound)?;
    let found = admin.ask(Fault::NotFound, admin.deps.store.workspace(&id)).await?;
    let workspace = found.ok_or_else(|| AdminError::of(Fault::NotFound))?;
    let store = &admin.deps.store;
    let plan = admin.ask(Fault::NotFound, store.plan(&workspace.plan_id)).await?;
    let plan = plan.ok_or_else(|| AdminError::of(Fault::NotFound))?.plan;
    let subject = UsageSubject::Workspace(id);
    let now = admin.now();
    let usage = admin.used_and_held(&subject, &plan, now).await?;
    let plan = raised(&plan, &workspace.grants, now);
    let granted = |limit| granted(&workspace.grants, limit, now);
    Ok(ApiResponse::ok(WorkspaceDetail {
        api_ops_rate_limit: plan.api_ops_rate_limit,
        api_ops_rate_limit_granted: granted(GrantedLimit::ApiOpsRateLimit),
        quotas: quotas(&plan, workspace.end_users, &usage, granted),
        workspace: WorkspaceView::new(workspace),
    }))
}

/// Change a workspace, or create it
///
/// Role `platform`. A new workspace without a plan gets the default plan.
#[utoipa::path(put, path = "/workspaces/{id}", tag = "Workspaces", params(("id" = String, Path, description = "Which workspace")),
request_body = WorkspaceUpdate, responses(
    (status = 200, description = "The workspace as it is now", body = Envelope<WorkspaceView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn put_workspace(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    id: PathSegment,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<WorkspaceView>, AdminError> {
    let id: WorkspaceId =
        id.0.parse()
            .map_err(|bad: crate::model::id::BadTextId| AdminError::parameter("id", bad.to_string()))?;
    let patch = UpdateWorkspaceInput::read(&body).map_err(AdminError::fields)?.into_patch();
    let deps = &admin.deps;
    let call = async {
        let put = deps.store.put_workspace(&id, patch, &deps.default_plan, &actor, admin.now()).await;
        // The workspace is created if it does not exist, so only its plan can be missing.
        put.map_err(|error| match error {
            StoreError::NotFound(_) => {
                StoreError::Invalid { field: "plan_id", why: "there is no such plan".into() }
            }
            other => other,
        })
    };
    let workspace = admin.write(Fault::NotFound, call).await?;
    Ok(ApiResponse::ok(WorkspaceView::new(workspace)))
}

/// Delete a workspace
///
/// Role `platform`. Its keys end everywhere at once, as when each is deleted, and its end users are removed. Usage, statistics
/// and the audit trail stay as long as retention keeps them; role `platform` reads them with `X-Workspace-Id`. A token that
/// still names the workspace is refused and does not create it again; `PUT /workspaces/{id}` does.
#[utoipa::path(delete, path = "/workspaces/{id}", tag = "Workspaces",
params(("id" = String, Path, description = "Which workspace"), DeleteParams, WaitParams), responses(
    (status = 200, description = "How many keys were deleted with it", body = Envelope<DeletedWorkspace>),
    (status = 409, description = "It has keys, and `force` is not set", body = Envelope<Detail>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn delete_workspace(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    id: PathSegment,
    Query(query): Query<DeleteQuery>,
) -> Result<ApiResponse<DeletedWorkspace>, AdminError> {
    let id: WorkspaceId = id.id(Fault::NotFound)?;
    let call = admin.deps.store.delete_workspace(&id, query.force, &actor, admin.now());
    let deleted = admin.write_versioned(Fault::NotFound, call).await?;
    admin.forget(&id);
    let propagation = spread(&admin, &query.wait, deleted.version).await;
    Ok(ApiResponse::ok(DeletedWorkspace { keys: deleted.value, propagation }))
}

/// The usage of every quota of `plan`, which contains what is granted.
fn quotas(
    plan: &Plan,
    end_users: u64,
    usage: &(UsageTotals, HeldInWindows),
    granted: impl Fn(GrantedLimit) -> u64,
) -> Vec<QuotaView> {
    let of_end_users = (plan.end_user_quota, granted(GrantedLimit::EndUserQuota));
    let of_all = Usage { used: end_users, held: 0 };
    let mut all = vec![QuotaView::new("end_user_quota", None, of_all, of_end_users)];
    for ceiling in plan.limits.iter().filter(|ceiling| ceiling.of == Owner::Workspace) {
        // A rate is no quota.
        let Some(usage) = Usage::of(usage, ceiling.count, ceiling.per) else { continue };
        let further = GrantedLimit::Further { of: ceiling.of, count: ceiling.count, per: ceiling.per };
        all.push(QuotaView::new("limits", Some(ceiling), usage, (ceiling.max, granted(further))));
    }
    all
}

impl QuotaView {
    fn new(
        name: &'static str,
        ceiling: Option<&Ceiling>,
        usage: Usage,
        (limit, granted): (u64, u64),
    ) -> Self {
        let Usage { used, held } = usage;
        Self {
            name,
            count: ceiling.map(|c| c.count.as_str()),
            per: ceiling.map(|c| c.per.as_str()),
            used,
            held,
            limit,
            granted,
            percentage: percentage(used, limit),
        }
    }
}

impl WorkspaceView {
    fn new(record: WorkspaceRecord) -> Self {
        let WorkspaceRecord { id, name, plan_id, end_users, grants: _, created_at, updated_at } = record;
        Self {
            id: id.to_string(),
            name,
            plan_id: plan_id.to_string(),
            end_users,
            created_at: millis(created_at),
            updated_at: millis(updated_at),
        }
    }
}
