//! Health, readiness, metrics, and the OpenAPI document.

use super::caller::bearer;
use super::context::{AdminState, Readiness, ReadinessCheck};
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Query, QueryParams};
use crate::model::fault::Fault;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

/// Whether to include details.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `ReadyQuery` reads")]
pub(super) struct ReadyParams {
    /// With any value except `false`: list the checks.
    verbose: Option<String>,
}

/// [`ReadyParams`], parsed.
pub(super) struct ReadyQuery {
    verbose: bool,
}

impl FromParams for ReadyQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        Self { verbose: params.text("verbose").is_some_and(|text| text != "false") }
    }
}

/// The process is alive.
#[derive(Serialize, ToSchema)]
pub(super) struct AliveView {
    alive: bool,
}

/// Whether this node is ready for traffic.
#[derive(Serialize, ToSchema)]
pub(super) struct ReadyView {
    ready: bool,
    /// The checks; only with `verbose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Vec<CheckView>>,
}

/// A check of readiness.
#[derive(Serialize, ToSchema)]
pub(super) struct CheckView {
    name: &'static str,
    ok: bool,
    detail: String,
}

/// Is the process alive
///
/// No token. 200 as long as the process answers.
#[utoipa::path(get, path = "/healthz", tag = "Health", security(()), responses(
    (status = 200, description = "It is", body = Envelope<AliveView>),
))]
pub(super) async fn healthz() -> ApiResponse<AliveView> {
    ApiResponse::ok(AliveView { alive: true })
}

/// Is this node ready for traffic
///
/// No token.
#[utoipa::path(get, path = "/readyz", tag = "Health", security(()), params(ReadyParams), responses(
    (status = 200, description = "Yes", body = Envelope<ReadyView>),
    (status = 503, description = "No", body = Envelope<ReadyView>),
    (status = 400, description = "A parameter is not valid", body = Envelope<Detail>),
))]
pub(super) async fn readyz(
    State(admin): State<AdminState>,
    Query(query): Query<ReadyQuery>,
) -> Result<ApiResponse<ReadyView>, AdminError> {
    let Readiness { ready, checks } = (admin.deps.readiness)();
    let checks = query.verbose.then(|| checks.into_iter().map(CheckView::new).collect());
    let view = ReadyView { ready, checks };
    if ready {
        return Ok(ApiResponse::ok(view));
    }
    let data = serde_json::to_value(&view).unwrap_or_default();
    Err(AdminError::of(Fault::ServiceUnavailable).with_data(data))
}

/// Prometheus metrics
///
/// No token, unless the configuration sets one for metrics.
#[utoipa::path(get, path = "/metrics", tag = "Health", security((), ("metrics" = [])), responses(
    (status = 200, description = "Text format 0.0.4", body = String, content_type = "text/plain"),
    (status = 401, description = "The metrics token is missing or wrong", body = Envelope<Detail>),
))]
pub(super) async fn metrics(
    State(admin): State<AdminState>,
    headers: HeaderMap,
) -> Result<Response, AdminError> {
    if let Some(wanted) = &admin.deps.metrics_token
        && !wanted.admits(bearer(&headers)?)
    {
        return Err(AdminError::of(Fault::TokenInvalid));
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, admin.deps.metrics.render()).into_response())
}

/// This document
///
/// No token.
#[utoipa::path(get, path = "/openapi.json", tag = "Health", security(()), responses(
    (status = 200, description = "OpenAPI 3.1", content_type = "application/json"),
))]
pub(super) async fn openapi_json(State(admin): State<AdminState>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, admin.document.clone()).into_response()
}

impl CheckView {
    fn new(check: ReadinessCheck) -> Self {
        let ReadinessCheck { name, ok, detail } = check;
        Self { name, ok, detail }
    }
}
