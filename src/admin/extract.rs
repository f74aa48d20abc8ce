//! Reads queries, bodies and paths, so that invalid ones are answered like every other mistake.
//!
//! Must not know: what any call does. Bodies are limited in size and time.

use super::context::AdminState;
use super::error::AdminError;
use super::input::json::{self, BadJson};
use super::input::{FieldError, INSTANT_ALLOWED, parse_instant, shown, unknown_field};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::{CredentialId, GrantId, KeyId, WorkspaceId};
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde_json::{Map, Value};
use std::future::poll_fn;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

/// A query parsed as `T`; an unknown parameter is a mistake.
pub(super) struct Query<T>(pub(super) T);

/// A required JSON object.
pub(super) struct Object(pub(super) Map<String, Value>);

/// An optional JSON object.
pub(super) struct OptionalObject(pub(super) Map<String, Value>);

/// The last segment of a path, percent-decoded.
pub(super) struct PathSegment(pub(super) String);

/// A workspace and one of its grants, in a path.
pub(super) struct GrantPath {
    pub(super) workspace: WorkspaceId,
    pub(super) grant: GrantId,
}

/// An upstream and one of its stored credentials, in a path.
pub(super) struct CredentialPath {
    pub(super) upstream: String,
    pub(super) credential: CredentialId,
}

/// A type that can be parsed from a query.
pub(super) trait FromParams: Sized {
    /// Parses every parameter it knows. Mistakes are noted in `params`, and the result is not used then.
    fn from_params(params: &mut QueryParams) -> Self;
}

/// A query that is being parsed.
pub(super) struct QueryParams {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
    errors: Vec<FieldError>,
}

/// Longest time for a body to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Most parameters that are examined.
const PARAMS_MAX: usize = 100;
/// Longest text of a parameter, in characters.
const TEXT_MAX: usize = 1_024;

// === impl QueryParams ===

impl QueryParams {
    fn of(given: Vec<(String, String)>) -> Self {
        Self { given, known: Vec::with_capacity(8), errors: Vec::new() }
    }

    /// An optional parameter, parsed by `rule`, which says what is allowed if it fails.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        rule: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(name);
        let mut values = self.given.iter().filter(|(given, _)| given == name);
        let (_, text) = values.next()?;
        let outcome = if values.next().is_some() { Err("must be given once".into()) } else { rule(text) };
        match outcome {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(name, message);
                None
            }
        }
    }

    /// A text to search for.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.read(name, |text| {
            if text.contains('\0') || text.chars().count() > TEXT_MAX {
                return Err(format!("must be at most {TEXT_MAX} characters, without NUL"));
            }
            Ok(text.to_owned())
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.read(name, |text| text.parse().map_err(|_| "must be one of: true, false".to_owned()))
    }

    /// One of a closed set of words.
    pub(super) fn word<T: FromStr<Err: ToString>>(&mut self, name: &'static str) -> Option<T> {
        self.read(name, |text| text.parse().map_err(|e: T::Err| e.to_string()))
    }

    /// A whole number from `min` to `max`.
    pub(super) fn whole(&mut self, name: &'static str, min: u32, max: u32) -> Option<u32> {
        self.read(name, |text| match text.parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {min} to {max}")),
        })
    }

    /// An instant.
    pub(super) fn instant(&mut self, name: &'static str) -> Option<Timestamp> {
        self.read(name, |text| parse_instant(text).ok_or_else(|| INSTANT_ALLOWED.to_owned()))
    }

    /// Notes a mistake.
    pub(super) fn refuse(&mut self, name: &str, message: impl Into<String>) {
        self.errors.push(FieldError { field: name.to_owned(), message: message.into() });
    }

    fn finish(mut self) -> Vec<FieldError> {
        for (name, _) in &self.given {
            if self.known.contains(&name.as_str()) {
                continue;
            }
            self.errors.push(FieldError { field: shown(name), message: unknown_field(name, &self.known) });
        }
        self.errors
    }
}

impl FromParams for () {
    fn from_params(_: &mut QueryParams) -> Self {}
}

// === the extractors ===

impl<T: FromParams> FromRequestParts<AdminState> for Query<T> {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, _: &AdminState) -> Result<Self, AdminError> {
        let given = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|_| AdminError::parameter("query", "must be name=value pairs joined by &"))?;
        if given.0.len() > PARAMS_MAX {
            return Err(AdminError::parameter("query", format!("must be at most {PARAMS_MAX} parameters")));
        }
        // The language of the answer, which any call may name.
        let given = given.0.into_iter().filter(|(name, _)| name != "lang");
        let mut params = QueryParams::of(given.collect());
        let value = T::from_params(&mut params);
        let errors = params.finish();
        if errors.is_empty() { Ok(Self(value)) } else { Err(AdminError::parameters(errors)) }
    }
}

impl FromRequestParts<AdminState> for PathSegment {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        match Path::<String>::from_request_parts(parts, admin).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(_) => Err(AdminError::of(Fault::NotFound)),
        }
    }
}

impl FromRequestParts<AdminState> for GrantPath {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        let missing = || AdminError::of(Fault::NotFound);
        let both = Path::<(String, String)>::from_request_parts(parts, admin).await;
        let Path((workspace, grant)) = both.map_err(|_| missing())?;
        let (workspace, grant) = (PathSegment(workspace), PathSegment(grant));
        Ok(Self { workspace: workspace.id(Fault::NotFound)?, grant: grant.id(Fault::NotFound)? })
    }
}

impl FromRequestParts<AdminState> for CredentialPath {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        let both = Path::<(String, String)>::from_request_parts(parts, admin).await;
        let Path((upstream, credential)) = both.map_err(|_| AdminError::of(Fault::NotFound))?;
        Ok(Self { upstream, credential: PathSegment(credential).id(Fault::NotFound)? })
    }
}

impl FromRequest<AdminState> for Object {
    type Rejection = AdminError;

    async fn from_request(request: Request, admin: &AdminState) -> Result<Self, AdminError> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, &parts.headers, admin.deps.max_body_bytes).await?;
        object(&parts.headers, &bytes).map(Self)
    }
}

impl FromRequest<AdminState> for OptionalObject {
    type Rejection = AdminError;

    async fn from_request(request: Request, admin: &AdminState) -> Result<Self, AdminError> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, &parts.headers, admin.deps.max_body_bytes).await?;
        if bytes.is_empty() {
            return Ok(Self(Map::new()));
        }
        object(&parts.headers, &bytes).map(Self)
    }
}

impl PathSegment {
    /// The segment as the id of a key.
    pub(super) fn key_id(&self) -> Result<KeyId, AdminError> {
        self.id(Fault::KeyNotFound)
    }

    /// The segment as an id; if it is not a valid id, nothing has it, hence `missing`.
    pub(super) fn id<T: FromStr>(&self, missing: Fault) -> Result<T, AdminError> {
        self.0.parse().map_err(|_| AdminError::of(missing))
    }
}

fn object(headers: &HeaderMap, bytes: &[u8]) -> Result<Map<String, Value>, AdminError> {
    if !says_json(headers) {
        return Err(AdminError::of(Fault::UnsupportedMediaType));
    }
    json::object(bytes).map_err(|bad| match bad {
        BadJson::Twice(path) => AdminError::field(&path, "is there twice"),
        BadJson::Syntax { .. } | BadJson::NoObject => AdminError::field("body", bad.to_string()),
    })
}

/// Whether the content type is `application/json` or `application/*+json`.
fn says_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

pub(super) async fn read(body: Body, headers: &HeaderMap, max: usize) -> Result<Vec<u8>, AdminError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > max) {
        return Err(AdminError::of(Fault::PayloadTooLarge));
    }
    match tokio::time::timeout(BODY_PATIENCE, collect(body, max)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(AdminError::of(Fault::RequestTimeout)),
    }
}

async fn collect(body: Body, max: usize) -> Result<Vec<u8>, AdminError> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| AdminError::of(Fault::BadRequest))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > max {
            return Err(AdminError::of(Fault::PayloadTooLarge));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
