//! Grants: list, add, remove.

use super::apikeys::Deleted;
use super::caller::PlatformAdmin;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{GrantPath, Object, PathSegment, Query};
use super::input::CreateGrantInput;
use super::page::millis;
use super::schema::{CountWord, GrantCreate, GrantedLimitWord, OwnerWord, PerWord};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::grant::{Grant, GrantedLimit};
use crate::model::id::WorkspaceId;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// An addition to a limit of a workspace's plan.
#[derive(Serialize, ToSchema)]
pub(super) struct GrantView {
    /// UUIDv7.
    id: String,
    /// The limit.
    #[schema(value_type = GrantedLimitWord)]
    limit: &'static str,
    /// Whose usage it counts; only for `limits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<OwnerWord>)]
    of: Option<&'static str>,
    /// What it counts; only for `limits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CountWord>)]
    count: Option<&'static str>,
    /// Its window; only for `limits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PerWord>)]
    per: Option<&'static str>,
    /// How much is added.
    amount: u64,
    /// Why.
    reason: String,
    /// Epoch milliseconds: the first instant at which it no longer counts.
    until: i64,
    /// Whether it counts now.
    is_active: bool,
    /// Who granted it.
    created_by: String,
    /// Epoch milliseconds.
    created_at: i64,
}

/// The grants of a workspace.
#[derive(Serialize, ToSchema)]
pub(super) struct Grants {
    /// Oldest first; also those that have ended.
    items: Vec<GrantView>,
}

/// List the grants of a workspace
///
/// Role `platform`. Grants that have ended are listed until there are too many.
#[utoipa::path(get, path = "/workspaces/{id}/grants", tag = "Workspaces",
params(("id" = String, Path, description = "Which workspace")), responses(
    (status = 200, description = "Its grants", body = Envelope<Grants>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_grants(
    State(admin): State<AdminState>,
    _: PlatformAdmin,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<Grants>, AdminError> {
    let id: WorkspaceId = id.id(Fault::NotFound)?;
    let found = admin.ask(Fault::NotFound, admin.deps.store.workspace(&id)).await?;
    let workspace = found.ok_or_else(|| AdminError::of(Fault::NotFound))?;
    let now = admin.now();
    let items = workspace.grants.into_iter().map(|grant| GrantView::new(grant, now)).collect();
    Ok(ApiResponse::ok(Grants { items }))
}

/// Grant more of a limit
///
/// Role `platform`. Adds to a limit of the workspace's plan until an instant, on every node. Grants of one limit add up.
#[utoipa::path(post, path = "/workspaces/{id}/grants", tag = "Workspaces",
params(("id" = String, Path, description = "Which workspace")), request_body = GrantCreate, responses(
    (status = 201, description = "The grant", body = Envelope<GrantView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn create_grant(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    id: PathSegment,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<GrantView>, AdminError> {
    let at = admin.now();
    let grant = CreateGrantInput::read(&body, at).map_err(AdminError::fields)?.into_grant(&actor.subject, at);
    if let GrantedLimit::Further { count, .. } = grant.limit
        && let Some(why) = admin.deps.backends.why_uncounted(count, None)
    {
        return Err(AdminError::field("count", why));
    }
    let id: WorkspaceId = id.id(Fault::NotFound)?;
    let call = admin.deps.store.create_grant(&id, grant, &actor, at);
    let made = admin.write(Fault::NotFound, call).await?;
    Ok(ApiResponse::created(GrantView::new(made, at)))
}

/// Take a grant back
///
/// Role `platform`. It ends now, on every node.
#[utoipa::path(delete, path = "/workspaces/{id}/grants/{grant_id}", tag = "Workspaces",
params(("id" = String, Path, description = "Which workspace"), ("grant_id" = String, Path, description = "Which grant")),
responses(
    (status = 200, description = "It is gone", body = Envelope<Deleted>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn delete_grant(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    GrantPath { workspace, grant }: GrantPath,
    Query(()): Query<()>,
) -> Result<ApiResponse<Deleted>, AdminError> {
    let call = admin.deps.store.delete_grant(&workspace, grant, &actor, admin.now());
    admin.write(Fault::NotFound, call).await?;
    Ok(ApiResponse::ok(Deleted::new(&grant)))
}

impl GrantView {
    fn new(grant: Grant, now: Timestamp) -> Self {
        let is_active = grant.is_in_force(now);
        let Grant { id, limit, amount, reason, created_by, created_at, until } = grant;
        let (of, count, per) = match limit {
            GrantedLimit::Further { of, count, per } => {
                (Some(of.as_str()), Some(count.as_str()), Some(per.as_str()))
            }
            GrantedLimit::ApiOpsRateLimit | GrantedLimit::EndUserQuota => (None, None, None),
        };
        Self {
            id: id.to_string(),
            limit: limit.as_str(),
            of,
            count,
            per,
            amount,
            reason,
            until: millis(until),
            is_active,
            created_by,
            created_at: millis(created_at),
        }
    }
}
