//! The audit log: who changed what, when, from where.

use super::caller::Auditor;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Query, QueryParams};
use super::page::{Listed, in_order, millis, page_request};
use crate::model::fault::Fault;
use crate::store::{AuditFilter, AuditRecord, PageRequest};
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

/// The filter of a list of lines.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `AuditQuery` reads")]
pub(super) struct AuditParams {
    /// Only this action, e.g. `key.update`.
    action: Option<String>,
    /// Only this record, by its id.
    target: Option<String>,
    /// `true`: lines of the platform (plans, workspaces, prices, reloaded configs) instead of a workspace's. Role `platform`.
    #[param(default = false)]
    platform: Option<bool>,
    /// Not before: epoch seconds, epoch milliseconds or RFC 3339.
    from: Option<String>,
    /// Not at or after.
    to: Option<String>,
    /// Number of the page, from 1.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 100, default = 10)]
    pagesize: Option<u32>,
}

/// [`AuditParams`], parsed.
pub(super) struct AuditQuery {
    filter: AuditFilter,
    of_platform: bool,
    page: PageRequest,
}

impl FromParams for AuditQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        let (from, to) = (params.instant("from"), params.instant("to"));
        in_order(params, ("from", "to"), from, to);
        let (action, target) = (params.text("action"), params.text("target"));
        let of_platform = params.flag("platform").unwrap_or(false);
        Self { filter: AuditFilter { action, target, from, to }, of_platform, page: page_request(params) }
    }
}

/// One line of the audit log.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditView {
    id: String,
    /// The time, in epoch milliseconds.
    at: i64,
    /// Null for lines of the platform.
    workspace_id: Option<String>,
    /// The subject of the token.
    subject: String,
    role: String,
    address: Option<String>,
    request_id: Option<String>,
    /// The action, e.g. `key.update`.
    action: String,
    /// The changed record.
    target: String,
    /// The old and the new value of each field.
    changes: Value,
}

/// List the audit log
///
/// Role `admin`: lines of the workspace of the call. Role `platform`: also those of the platform (plans, workspaces, prices,
/// reloaded configs), with `platform=true` or a token and call that name no workspace. Newest first.
#[utoipa::path(get, path = "/audit", tag = "Audit", params(AuditParams), responses(
    (status = 200, description = "A page of lines", body = Envelope<Listed<AuditView>>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_audit(
    State(admin): State<AdminState>,
    Auditor { workspace, is_platform }: Auditor,
    Query(AuditQuery { filter, of_platform, page }): Query<AuditQuery>,
) -> Result<ApiResponse<Listed<AuditView>>, AdminError> {
    if of_platform && !is_platform {
        return Err(AdminError::of(Fault::Forbidden));
    }
    let workspace = workspace.filter(|_| !of_platform);
    let found = admin.ask(Fault::NotFound, admin.deps.store.audit(workspace.as_ref(), &filter, page)).await?;
    Ok(ApiResponse::ok(Listed::new(page, found, AuditView::new)))
}

impl AuditView {
    fn new(record: AuditRecord) -> Self {
        let AuditRecord { id, at, workspace_id, subject, role, address, request_id, action, target, changes } =
            record;
        Self {
            id: id.to_string(),
            at: millis(at),
            workspace_id: workspace_id.map(|id| id.to_string()),
            subject,
            role,
            address: address.map(|ip| ip.to_string()),
            request_id,
            action,
            target,
            changes,
        }
    }
}
