//! Layers around the API for other systems' pages and proxies: a base path, and CORS.
//!
//! Must not know: what any call does. The router of the API stays as it is; these come before it.

use super::context::AdminState;
use crate::policy::http::cors::{Cors, PreflightRequest};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

/// `api`, also under `base_path`, where one is set. Probes and scrapers find what they look for without it.
pub(super) fn under_base_path(api: Router, base_path: &str) -> Router {
    if base_path.is_empty() {
        return api;
    }
    Router::new().nest_service(base_path, api.clone()).fallback_service(api)
}

/// Answers preflights of allowed pages, and adds CORS fields to responses for them.
pub(super) async fn cors(State(admin): State<AdminState>, request: Request, next: Next) -> Response {
    let Some(cors) = &admin.deps.cors else { return next.run(request).await };
    if let Some(answer) = preflight(cors, &request) {
        return (StatusCode::NO_CONTENT, answer).into_response();
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = next.run(request).await;
    cors.mark(response.headers_mut(), origin.as_ref());
    response
}

/// The answer to `request` if it is a preflight.
fn preflight(cors: &Cors, request: &Request) -> Option<HeaderMap> {
    if request.method() != Method::OPTIONS {
        return None;
    }
    let fields = request.headers();
    let method = fields.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let origin = fields.get(header::ORIGIN)?;
    let headers = fields.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    Some(cors.answer(&PreflightRequest { origin, method: &method, headers }))
}
