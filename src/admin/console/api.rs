//! Calls of the admin API, within the process.
//!
//! *Invariant:* the console reads and writes only through these calls, as its visitor. What a role may do, which
//! workspace it sees, what is valid and what is audited are therefore decided in one place, for pages as for programs.

use super::wording::in_chinese;
use crate::admin::auth::Identity;
use crate::admin::caller::{SignedIn, WORKSPACE};
use crate::admin::cursor;
use crate::admin::input::FieldError;
use crate::model::fault::Lang;
use crate::store::KeyCursor;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode, header};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::net::SocketAddr;

/// Largest answer that is read, in bytes. A page of a hundred records is far below.
const ANSWER_MAX: usize = 16 << 20;

/// The API as one visitor may call it, about one workspace or none.
#[derive(Clone, Copy)]
pub(super) struct Api<'v> {
    pub(super) router: &'v Router,
    pub(super) caller: Caller<'v>,
    pub(super) workspace: Option<&'v str>,
    pub(super) lang: Lang,
    pub(super) peer: Option<SocketAddr>,
}

/// Who calls.
#[derive(Clone, Copy)]
pub(super) enum Caller<'v> {
    /// Whoever has this admin token.
    Token(&'v str),
    /// Somebody whom the identity provider has identified.
    Person(&'v Identity),
}

/// A refusal of the API.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    /// For people, in their language.
    pub(super) message: String,
    /// The mistakes of a form.
    pub(super) errors: Vec<FieldError>,
}

/// An answer of the API; `data` has another form when it is a refusal.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    msg: String,
    data: Value,
}

impl Api<'_> {
    /// Reads.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refused> {
        self.call(Method::GET, path, None).await
    }

    /// Changes something; an empty body is none.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Map<String, Value>,
    ) -> Result<T, Refused> {
        self.call(method, path, (!body.is_empty()).then_some(body)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Map<String, Value>>,
    ) -> Result<T, Refused> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT_LANGUAGE, if self.lang == Lang::Zh { "zh" } else { "en" });
        request = match self.caller {
            Caller::Token(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            Caller::Person(identity) => request.extension(SignedIn(identity.clone())),
        };
        if let Some(workspace) = self.workspace {
            request = request.header(WORKSPACE, workspace);
        }
        if let Some(peer) = self.peer {
            request = request.extension(ConnectInfo(peer));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(Value::Object(body).to_string()));
        // An id that cannot stand in a URL names nothing.
        let request = request.body(body).map_err(|_| Refused::of(StatusCode::NOT_FOUND))?;
        let answered = TowerToHyperService::new(self.router.clone()).call(request).await;
        let response = answered.unwrap_or_else(|never| match never {});
        let status = response.status();
        let broken = |error: &dyn std::fmt::Display| {
            tracing::error!(path, %error, "console cannot read an answer of the admin API");
            Refused::of(StatusCode::INTERNAL_SERVER_ERROR)
        };
        let bytes = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await;
        let bytes = bytes.map_err(|error| broken(&error))?;
        let Answer { msg, data } = serde_json::from_slice(&bytes).map_err(|error| broken(&error))?;
        if !status.is_success() {
            let mut errors = mistakes(&data, &msg);
            if self.lang == Lang::Zh {
                for error in &mut errors {
                    error.message = in_chinese(&error.message).unwrap_or(std::mem::take(&mut error.message));
                }
            }
            return Err(Refused { status, message: msg, errors });
        }
        serde_json::from_value(data).map_err(|error| broken(&error))
    }
}

impl Refused {
    /// A refusal that says nothing more.
    pub(super) fn of(status: StatusCode) -> Self {
        Self { status, message: String::new(), errors: Vec::new() }
    }
}

/// The mistakes that a refusal lists, or the field that its message is about.
fn mistakes(data: &Value, message: &str) -> Vec<FieldError> {
    if let Some(field) = data["field"].as_str() {
        return vec![FieldError { field: field.to_owned(), message: message.to_owned() }];
    }
    let listed = data["errors"].as_array().into_iter().flatten();
    listed
        .filter_map(|error| {
            let text = |name: &str| error[name].as_str().map(str::to_owned);
            Some(FieldError { field: text("field")?, message: text("message")? })
        })
        .collect()
}

/// Where a list of keys begins: with a cursor the API does not count them, also on the first page.
pub(super) fn key_cursor(given: &str) -> String {
    let KeyCursor { created_at, id } = KeyCursor::START;
    if given.is_empty() { cursor::encode(created_at, id.0) } else { given.to_owned() }
}

/// One segment of a path, percent-encoded.
pub(super) fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// A query of the pairs that are not empty, with its question mark.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.push_str(&segment(value));
    }
    text
}
