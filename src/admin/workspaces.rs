//! Workspaces: list, read, change or create.

use super::caller::{PlatformAdmin, WorkspaceVisitor};
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{Object, PathSegment, Query};
use super::input::UpdateWorkspaceInput;
use super::page::{Listed, PageParams, millis};
use super::schema::WorkspaceUpdate;
use crate::model::fault::Fault;
use crate::model::id::WorkspaceId;
use crate::store::{PageRequest, StoreError, WorkspaceRecord};
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

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
/// Role `platform`, or any role for one's own workspace.
#[utoipa::path(get, path = "/workspaces/{id}", tag = "Workspaces", params(("id" = String, Path, description = "Which workspace")),
responses(
    (status = 200, description = "The workspace", body = Envelope<WorkspaceView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn get_workspace(
    State(admin): State<AdminState>,
    visitor: WorkspaceVisitor,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<WorkspaceView>, AdminError> {
    if let WorkspaceVisitor::Only(own) = &visitor
        && own.as_str() != id.0
    {
        return Err(AdminError::of(Fault::WorkspaceNoAccess));
    }
    let id: WorkspaceId = id.id(Fault::NotFound)?;
    let found = admin.ask(Fault::NotFound, admin.deps.store.workspace(&id)).await?;
    found.map(|w| ApiResponse::ok(WorkspaceView::new(w))).ok_or_else(|| AdminError::of(Fault::NotFound))
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

impl WorkspaceView {
    fn new(record: WorkspaceRecord) -> Self {
        let WorkspaceRecord { id, name, plan_id, end_users, created_at, updated_at } = record;
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
