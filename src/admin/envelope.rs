//! The envelope of every answer, with its language, time and request id: the one place where answers are written.
//!
//! Must not know: what any call does. Handlers leave an [`ApiData`] or an [`AdminError`] on the response; a failed response
//! without one (an unknown URL, another layer) gets the envelope of its status. Documents pass through unchanged.

use super::context::AdminState;
use super::error::AdminError;
use crate::clock::Timestamp;
pub(super) use crate::envelope::Envelope;
use crate::model::fault::{ErrorText, Fault, Lang};
use crate::model::id::RequestId;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
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

/// The header by which a page says in which language it is.
const LANGUAGE_TYPE: HeaderName = HeaderName::from_static("x-language-type");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer: gives the request an id and writes the answer.
pub(super) async fn write(State(admin): State<AdminState>, mut request: Request, next: Next) -> Response {
    let id: Box<str> = RequestId::new(admin.now()).to_string().into();
    let lang = language(&request);
    let bodyless = request.method() == Method::HEAD;
    request.extensions_mut().insert(AdminRequestId(id.clone()));
    let mut response = next.run(request).await;
    match json(&mut response, lang, admin.deps.error_text, admin.now()) {
        Some(Ok(json)) => fill(&mut response, json, lang, bodyless),
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

/// An error response for pages that show the field `error`.
#[derive(Serialize)]
struct ShownFailure<'f> {
    code: u32,
    msg: &'f str,
    data: &'f serde_json::Value,
    error: &'f str,
    time: i64,
    /// Every error, in the format of `FastAPI`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<ShownMistake<'f>>,
}

#[derive(Serialize)]
struct ShownMistake<'f> {
    loc: [&'f str; 2],
    msg: &'f str,
    r#type: &'static str,
}

/// The envelope of a response as JSON; none for a document.
fn json(
    response: &mut Response,
    lang: Lang,
    error_text: ErrorText,
    at: Timestamp,
) -> Option<serde_json::Result<String>> {
    if let Some(ApiData(data)) = response.extensions_mut().remove() {
        return Some(serde_json::to_string(&Envelope::ok(data, at)));
    }
    let error = response.extensions_mut().remove::<AdminError>();
    let error = error.or_else(|| foreign_failure(response.status()))?;
    let msg = error.message(lang);
    Some(match error_text {
        ErrorText::Name => serde_json::to_string(&Envelope::fault(error.fault(), msg, error.data(), at)),
        ErrorText::Message => serde_json::to_string(&ShownFailure {
            code: error.fault().code(),
            msg: &msg,
            data: error.data(),
            error: &msg,
            time: at.as_millis(),
            detail: shown_mistakes(&error),
        }),
    })
}

fn shown_mistakes(failure: &AdminError) -> Vec<ShownMistake<'_>> {
    let place = if failure.fault() == Fault::ValidationFailed { "body" } else { "query" };
    let errors = failure.data()["errors"].as_array().into_iter().flatten();
    errors
        .filter_map(|error| {
            let (field, msg) = (error["field"].as_str()?, error["message"].as_str()?);
            Some(ShownMistake { loc: [place, field], msg, r#type: "value_error" })
        })
        .collect()
}

fn fill(response: &mut Response, json: String, lang: Lang, bodyless: bool) {
    let headers = response.headers_mut();
    let language = match lang {
        Lang::En => "en",
        Lang::Zh => "zh",
    };
    headers.insert(header::CONTENT_LANGUAGE, HeaderValue::from_static(language));
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

/// The language of the answer: the one `?lang=` names, or else `X-Language-Type`, or else the one `Accept-Language` prefers.
fn language(request: &Request) -> Lang {
    let query = request.uri().query().unwrap_or_default();
    let named = query.split('&').find_map(|pair| pair.strip_prefix("lang="));
    let field = |name: &HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let wanted = named.filter(|lang| !lang.is_empty()).or_else(|| field(&LANGUAGE_TYPE));
    wanted.or_else(|| field(&header::ACCEPT_LANGUAGE)).map(Lang::preferred).unwrap_or_default()
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
