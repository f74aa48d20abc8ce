//! The envelope of every answer, with its language, time and request id: the one place where answers are written.
//!
//! Must not know: what any call does. Handlers leave an [`ApiData`] or an [`AdminError`] on the response; a failed response
//! without one (an unknown URL, another layer) gets the envelope of its status. Documents pass through unchanged.

use super::context::AdminState;
use super::error::AdminError;
use crate::clock::Timestamp;
pub(super) use crate::envelope::Envelope;
use crate::model::fault::{Fault, Lang};
use crate::model::id::RequestId;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;

/// The data of a successful call as JSON.
#[derive(Clone)]
struct ApiData(Arc<RawValue>);

/// A successful answer.
pub(super) struct ApiResponse<T> {
    status: StatusCode,
    data: T,
}

/// The id of the current admin request, in its extensions.
#[derive(Clone)]
pub(super) struct AdminRequestId(pub(super) Box<str>);

/// The details of an error; most have none.
#[derive(Serialize, ToSchema)]
pub(super) struct Detail {
    /// All mistakes, if the request had some.
    errors: Option<Vec<DetailError>>,
}

/// One mistake in a request.
#[derive(Serialize, ToSchema)]
pub(super) struct DetailError {
    /// The field.
    #[schema(example = "limits[1].max")]
    field: String,
    /// What is allowed.
    #[schema(example = "must be a whole number from 1 to 9007199254740991")]
    message: String,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer: gives the request an id and writes the answer.
pub(super) async fn write(State(admin): State<AdminState>, mut request: Request, next: Next) -> Response {
    let id: Box<str> = RequestId::new(admin.now()).to_string().into();
    let lang = language(request.headers());
    let bodyless = request.method() == Method::HEAD;
    request.extensions_mut().insert(AdminRequestId(id.clone()));
    let mut response = next.run(request).await;
    match json(&mut response, lang, admin.now()) {
        Some(Ok(json)) => fill(&mut response, json, bodyless),
        Some(Err(error)) => tracing::error!(%error, "cannot serialize response as JSON"),
        None => {}
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The answer after a panic of a handler.
#[expect(clippy::needless_pass_by_value, reason = "the signature that the layer calls")]
pub(super) fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let what = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(what, "admin request handler panicked");
    AdminError::of(Fault::Internal).into_response()
}

/// The envelope of a response as JSON; none for a document.
fn json(response: &mut Response, lang: Lang, at: Timestamp) -> Option<serde_json::Result<String>> {
    if let Some(ApiData(data)) = response.extensions_mut().remove() {
        return Some(serde_json::to_string(&Envelope::ok(data, at)));
    }
    let error = response.extensions_mut().remove::<AdminError>();
    let error = error.or_else(|| foreign_failure(response.status()))?;
    let envelope = Envelope::fault(error.fault(), error.message(lang), error.data(), at);
    Some(serde_json::to_string(&envelope))
}

fn fill(response: &mut Response, json: String, bodyless: bool) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(json.len()));
    *response.body_mut() = if bodyless { Body::empty() } else { Body::from(json) };
}

fn foreign_failure(status: StatusCode) -> Option<AdminError> {
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let fault = match status {
        StatusCode::NOT_FOUND => Fault::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Fault::MethodNotAllowed,
        StatusCode::REQUEST_TIMEOUT => Fault::RequestTimeout,
        StatusCode::PAYLOAD_TOO_LARGE => Fault::PayloadTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Fault::UnsupportedMediaType,
        s if s.is_client_error() => Fault::BadRequest,
        _ => Fault::Internal,
    };
    Some(AdminError::of(fault))
}

fn language(headers: &HeaderMap) -> Lang {
    let wanted = headers.get(header::ACCEPT_LANGUAGE).and_then(|v| v.to_str().ok());
    wanted.map(Lang::preferred).unwrap_or_default()
}

// === impl ApiResponse ===

impl<T> ApiResponse<T> {
    /// 200 with `data`.
    pub(super) const fn ok(data: T) -> Self {
        Self { status: StatusCode::OK, data }
    }

    /// 201 with `data`, which is new.
    pub(super) const fn created(data: T) -> Self {
        Self { status: StatusCode::CREATED, data }
    }
}

impl<T: Serialize> IntoResponse for ApiResponse<T> {
    fn into_response(self) -> Response {
        match serde_json::value::to_raw_value(&self.data) {
            Ok(json) => {
                let mut response = self.status.into_response();
                response.extensions_mut().insert(ApiData(json.into()));
                response
            }
            Err(error) => {
                tracing::error!(%error, "cannot serialize response as JSON");
                AdminError::of(Fault::Internal).into_response()
            }
        }
    }
}
