//! End users of a workspace: list, look up, read, delete.

use super::apikeys::Deleted;
use super::caller::{WorkspaceReader, WorkspaceWriter};
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, PathSegment, Query, QueryParams};
use super::page::{Listed, millis, page_request};
use crate::model::fault::Fault;
use crate::model::id::EndUserId;
use crate::store::{EndUserRecord, PageRequest};
use axum::extract::State;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

/// The filter of a list of end users.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `EndUserQuery` reads")]
pub(super) struct EndUserParams {
    /// Exactly the one with this id of the customer.
    other_id: Option<String>,
    /// Number of the page, from 1.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 100, default = 10)]
    pagesize: Option<u32>,
}

/// [`EndUserParams`], parsed.
pub(super) struct EndUserQuery {
    other_id: Option<String>,
    page: PageRequest,
}

impl FromParams for EndUserQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        Self { other_id: params.text("other_id"), page: page_request(params) }
    }
}

/// An end user.
#[derive(Serialize, ToSchema)]
pub(super) struct EndUserView {
    /// The id assigned by Keygate.
    id: String,
    workspace_id: String,
    /// The customer's id for it.
    other_id: String,
    /// When it was created, in epoch milliseconds.
    created_at: i64,
}

/// List end users
///
/// Role `viewer`. Newest first; with `other_id` only that one, if it exists.
#[utoipa::path(get, path = "/endusers", tag = "End users", params(EndUserParams), responses(
    (status = 200, description = "A page of end users", body = Envelope<Listed<EndUserView>>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_end_users(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    Query(EndUserQuery { other_id, page }): Query<EndUserQuery>,
) -> Result<ApiResponse<Listed<EndUserView>>, AdminError> {
    let call = admin.deps.store.end_users(&workspace, other_id.as_deref(), page);
    let found = admin.ask(Fault::NotFound, call).await?;
    admin.deps.metrics.store_rows_passed_over.inc_by(found.passed_over);
    Ok(ApiResponse::ok(Listed::new(page, found, EndUserView::new)))
}

/// Read an end user
///
/// Role `viewer`.
#[utoipa::path(get, path = "/endusers/{id}", tag = "End users", params(("id" = String, Path, description = "Which end user")),
responses(
    (status = 200, description = "The end user", body = Envelope<EndUserView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn get_end_user(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<EndUserView>, AdminError> {
    let id: EndUserId = id.id(Fault::EndUserNotFound)?;
    let found = admin.ask(Fault::EndUserNotFound, admin.deps.store.end_user(&workspace, id)).await?;
    found
        .map(|user| ApiResponse::ok(EndUserView::new(user)))
        .ok_or_else(|| AdminError::of(Fault::EndUserNotFound))
}

/// Delete an end user
///
/// Role `admin`. Frees a place in the plan's quota; if the same person comes again, it is a new end user.
#[utoipa::path(delete, path = "/endusers/{id}", tag = "End users", params(("id" = String, Path, description = "Which end user")),
responses(
    (status = 200, description = "It is gone", body = Envelope<Deleted>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn delete_end_user(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<Deleted>, AdminError> {
    let id: EndUserId = id.id(Fault::EndUserNotFound)?;
    let call = admin.deps.store.delete_end_user(&workspace, id, &actor, admin.now());
    admin.write(Fault::EndUserNotFound, call).await?;
    Ok(ApiResponse::ok(Deleted::new(&id)))
}

impl EndUserView {
    fn new(record: EndUserRecord) -> Self {
        let EndUserRecord { id, workspace_id, other_id, created_at } = record;
        Self {
            id: id.to_string(),
            workspace_id: workspace_id.to_string(),
            other_id,
            created_at: millis(created_at),
        }
    }
}
