//! Signing in and out, and what a visitor prefers.

use super::Console;
use super::cookies::{self, LANGUAGE, Preferences, THEME};
use super::form::FormData;
use super::origin::{is_encrypted, is_led_here, is_same_origin};
use super::session;
use super::texts::Texts;
use super::visit::{Change, Frame, Visit, base, lead_to, message_page, page, read_form};
use crate::admin::auth::Identity;
use crate::admin::error::AdminError;
use crate::model::fault::Fault;
use crate::model::id::WorkspaceId;
use crate::store::Actor;
use askama::Template;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    t: &'static Texts,
    frame: Frame,
    next: String,
    is_over: bool,
    error: Option<String>,
}

/// Where to go after signing in, and whether a session has just ended.
#[derive(Deserialize)]
pub(super) struct SignInQuery {
    #[serde(default)]
    next: String,
    #[serde(default)]
    over: String,
}

/// The workspace to go to.
#[derive(Deserialize)]
pub(super) struct GoQuery {
    #[serde(default)]
    workspace: String,
}

/// The first page: the visitor's workspace, or the list of all.
pub(super) async fn start(visit: Visit) -> Response {
    match &visit.identity.workspace {
        Some(own) => lead_to(&base(own.as_str())),
        None if visit.is_platform() => lead_to("/console/workspaces"),
        None => visit.message(StatusCode::NOT_FOUND).into_response(),
    }
}

/// Goes to a workspace by its id.
pub(super) async fn go(visit: Visit, Query(to): Query<GoQuery>) -> Response {
    match to.workspace.trim().parse::<WorkspaceId>() {
        Ok(id) => lead_to(&base(id.as_str())),
        Err(_) => visit.message(StatusCode::NOT_FOUND).into_response(),
    }
}

pub(super) async fn form(Query(asked): Query<SignInQuery>, request: Request) -> Response {
    let frame = frame(&request.into_parts().0);
    let is_over = !asked.over.is_empty();
    page(StatusCode::OK, &SignInPage { t: frame.t, frame, next: asked.next, is_over, error: None })
}

/// Signs in with an admin token.
pub(super) async fn sign_in(State(console): State<Arc<Console>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let refused = |status, message: String, next: &str| {
        let frame = frame(&parts);
        page(
            status,
            &SignInPage { t: frame.t, frame, next: next.into(), is_over: false, error: Some(message) },
        )
    };
    let t = Texts::of(Preferences::of(&parts.headers).lang);
    // There is no session yet whose token could be in the form. A page of another site cannot get this far.
    if !is_same_origin(&parts.headers) {
        return refused(StatusCode::FORBIDDEN, t.other_origin.into(), "");
    }
    let form = match read_form(&parts, body, &console).await {
        Ok(form) => form,
        Err(status) => return refused(status, t.failed.into(), ""),
    };
    let next = form.get("next");
    let (address, now) = (address(&parts), console.admin.now());
    if !console.attempts.may_try(address, now) {
        return refused(StatusCode::TOO_MANY_REQUESTS, t.too_many_tries.into(), next);
    }
    match enter(&console, &parts, form.get("token").trim(), next).await {
        Ok(response) => response,
        Err(error) => {
            let status = StatusCode::from_u16(error.fault().status()).unwrap_or(StatusCode::UNAUTHORIZED);
            if status == StatusCode::SERVICE_UNAVAILABLE {
                return refused(status, t.identity_away.into(), next);
            }
            console.attempts.on_failed(address, now);
            tracing::warn!(?address, fault = error.fault().name(), "console sign-in refused");
            refused(status, error.message(Preferences::of(&parts.headers).lang).into_owned(), next)
        }
    }
}

/// Signs in with a code that is valid once.
pub(super) async fn by_code(
    State(console): State<Arc<Console>>,
    Path(code): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let address = address(&parts);
    let now = console.admin.now();
    let may_try = address.is_some_and(|address| address.is_loopback())
        && !is_led_here(&parts.headers)
        && console.attempts.may_try(address, now);
    let codes = console.admin.deps.sign_in_codes.as_ref().filter(|_| may_try);
    let Some(token) = codes.and_then(|codes| codes.redeem(&code, now)) else {
        console.attempts.on_failed(address, now);
        let frame = frame(&parts);
        let message = frame.t.code_used.to_owned();
        return message_page(StatusCode::NOT_FOUND, frame, message, Vec::new());
    };
    match enter(&console, &parts, &token, "").await {
        Ok(response) => response,
        Err(error) => {
            let status = StatusCode::from_u16(error.fault().status()).unwrap_or(StatusCode::UNAUTHORIZED);
            message_page(status, frame(&parts), String::new(), Vec::new())
        }
    }
}

/// Begins a session with `token`.
async fn enter(console: &Console, parts: &Parts, token: &str, next: &str) -> Result<Response, AdminError> {
    let now = console.admin.now();
    let identity = console.admin.identify(token).await?;
    let cookie = session::seal(&console.admin.deps.peppers, token, now)
        .and_then(|sealed| cookies::session(&sealed, is_encrypted(parts)));
    let Some(cookie) = cookie else {
        return Err(AdminError::of(Fault::TokenInvalid).saying(
            format!("The token has more than {} bytes, which no cookie can hold", session::TOKEN_MAX),
            format!("令牌超过 {} 字节，无法保存在 Cookie 中", session::TOKEN_MAX),
        ));
    };
    note(console, &identity, address(parts)).await;
    // A path of the console, so never another site.
    let next = if next.starts_with("/console/") { next } else { "/console" };
    let mut response = lead_to(next);
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}

/// Adds the sign-in to the audit trail. While the store is away it is logged instead: the console must be there during an outage.
async fn note(console: &Console, identity: &Identity, address: Option<IpAddr>) {
    let Identity { subject, role, workspace, .. } = identity;
    let by = Actor { subject: subject.clone(), role: role.as_str(), address, request_id: None };
    let call = console.admin.deps.store.note_sign_in(workspace.as_ref(), &by, console.admin.now());
    if console.admin.ask(Fault::NotFound, call).await.is_err() {
        tracing::warn!(
            subject,
            role = role.as_str(),
            ?address,
            "console sign-in not in the audit log: store unavailable"
        );
    }
}

pub(super) async fn sign_out(_: Change) -> Response {
    let mut response = lead_to("/console/sign-in");
    response.headers_mut().append(header::SET_COOKIE, cookies::no_session());
    response
}

/// Remembers the language or the colours. There may be no session, and nothing else changes.
pub(super) async fn prefer(State(console): State<Arc<Console>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let form = read_form(&parts, body, &console).await.ok().filter(|_| is_same_origin(&parts.headers));
    let Some(form) = form else {
        return message_page(StatusCode::FORBIDDEN, frame(&parts), String::new(), Vec::new());
    };
    let mut response = lead_to(back(&form));
    for (cookie, field, allowed) in
        [(LANGUAGE, "lang", &["en", "zh"][..]), (THEME, "theme", &["auto", "light", "dark"])]
    {
        let wanted = Some(form.get(field)).filter(|value| allowed.contains(value));
        if let Some(line) = wanted.and_then(|value| cookies::preference(cookie, value)) {
            response.headers_mut().append(header::SET_COOKIE, line);
        }
    }
    response
}

/// The page that a form was on, if it is one of the console that can be shown again.
fn back(form: &FormData) -> &str {
    let back = form.get("back");
    if back == "/console" || back.starts_with("/console/") { back } else { "/console" }
}

fn frame(parts: &Parts) -> Frame {
    let preferences = Preferences::of(&parts.headers);
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    Frame::new(preferences, Texts::of(preferences.lang).sign_in, &path, None)
}

fn address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_canonical())
}
