//! Signing in and out, and what a visitor prefers.

use super::Console;
use super::api::query;
use super::cookies::{self, LANGUAGE, Preferences, THEME};
use super::form::FormData;
use super::origin::{is_encrypted, is_led_here, is_same_origin};
use super::session::{self, Holder};
use super::texts::Texts;
use super::visit::{Change, Frame, Visit, base, go_on_to, lead_to, message_page, page, read_form};
use crate::admin::auth::Identity;
use crate::admin::error::AdminError;
use crate::admin::oidc::{Access, Person};
use crate::model::fault::Fault;
use crate::model::id::WorkspaceId;
use crate::store::{Actor, SignIn};
use askama::Template;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
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
    provider: Option<ProviderLinks>,
}

/// How to sign in with the identity provider.
struct ProviderLinks {
    /// Its server.
    host: String,
    /// Where that begins.
    start: String,
    /// The same for somebody else than the provider knows.
    again: String,
}

/// Why nobody has signed in with the identity provider, as pages say it: no more than whoever tries may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignInRefusal {
    /// There is no provider.
    NoProvider,
    /// It was begun in another browser, or too long ago, or has ended already.
    NotBegunHere,
    /// Too many have failed.
    TooMany,
    /// The provider cannot be used at the moment.
    Away,
    /// The provider has refused.
    ByProvider,
    /// Nothing is granted to any group of theirs.
    NoGroup,
    /// What the provider says cannot be believed.
    Failed,
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

pub(super) async fn form(
    State(console): State<Arc<Console>>,
    Query(asked): Query<SignInQuery>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let shown = SignInPage { is_over: !asked.over.is_empty(), ..sign_in_page(&console, &parts, &asked.next) };
    page(StatusCode::OK, &shown)
}

fn sign_in_page(console: &Console, parts: &Parts, next: &str) -> SignInPage {
    // Not the path of the request, which may be an answer of the provider and counts once.
    let preferences = Preferences::of(&parts.headers);
    let path = format!("/console/sign-in{}", query(&[("next", next)]));
    let frame = Frame::new(preferences, Texts::of(preferences.lang).sign_in, &path, None);
    let provider = console.admin.deps.oidc.as_ref().map(|oidc| {
        // Under the name that the provider leads back to: cookies of another one would not come with that.
        let link = |again| {
            let query = query(&[("next", next), ("again", again)]);
            format!("{}/console/oidc/start{query}", oidc.public_url())
        };
        ProviderLinks { host: oidc.host().to_owned(), start: link(""), again: link("1") }
    });
    SignInPage { t: frame.t, frame, next: next.to_owned(), is_over: false, error: None, provider }
}

/// Says that nobody has signed in with the identity provider, and how to try again.
pub(super) fn refuse(console: &Console, parts: &Parts, why: SignInRefusal, next: &str) -> Response {
    let shown = sign_in_page(console, parts, next);
    let error = Some(why.text(shown.t).to_owned());
    page(why.status(), &SignInPage { error, ..shown })
}

/// Signs in with an admin token.
pub(super) async fn sign_in(State(console): State<Arc<Console>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let refused = |status, message: String, next: &str| {
        page(status, &SignInPage { error: Some(message), ..sign_in_page(&console, &parts, next) })
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
            note_refused(&console, &parts, "unknown", error.fault().name()).await;
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
        // Pages of other sites can have a browser ask for this, so it does not count against its address.
        if !is_led_here(&parts.headers) {
            console.attempts.on_failed(address, now);
        }
        if codes.is_some() {
            note_refused(&console, &parts, "unknown", "code").await;
        }
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
    let cookie = session::seal_token(&console.admin.deps.peppers, token, now)
        .and_then(|sealed| cookies::session(&sealed, is_encrypted(parts)));
    let Some(cookie) = cookie else {
        return Err(AdminError::of(Fault::TokenInvalid).saying(
            format!("The token has more than {} bytes, which no cookie can hold", session::TOKEN_MAX),
            format!("令牌超过 {} 字节，无法保存在 Cookie 中", session::TOKEN_MAX),
        ));
    };
    note(console, parts, &identity, SignIn::Done { name: None }).await;
    Ok(entered(cookie, next))
}

/// Begins a session of a person, of whom the audit log of each of their workspaces has a line.
pub(super) async fn enter_person(
    console: &Console,
    parts: &Parts,
    person: &Person,
    access: &Access,
    cookie: HeaderValue,
    next: &str,
) -> Response {
    let done = SignIn::Done { name: Some(person.name.clone()) };
    match access.workspaces() {
        [] => note(console, parts, &access.identity(&person.subject, None), done).await,
        several => {
            for (workspace, _) in several {
                let identity = access.identity(&person.subject, Some(workspace));
                note(console, parts, &identity, done.clone()).await;
            }
        }
    }
    entered(cookie, next)
}

fn entered(cookie: HeaderValue, next: &str) -> Response {
    let mut response = lead_to(place_after(next));
    response.headers_mut().append(header::SET_COOKIE, cookie);
    response
}

/// Where to go after signing in: a path of the console, so never another site.
pub(super) fn place_after(next: &str) -> &str {
    if next.starts_with("/console/") { next } else { "/console" }
}

/// Adds a refused sign-in to the audit trail of the platform, unless there have been many.
pub(super) async fn note_refused(console: &Console, parts: &Parts, subject: &str, reason: &str) {
    let address = address(parts);
    tracing::warn!(?address, subject, reason, "console sign-in refused");
    if !console.attempts.may_note(console.admin.now()) {
        return;
    }
    let by = Actor { subject: subject.to_owned(), role: "none", address, request_id: None };
    write_down(console, None, &by, SignIn::Refused { reason: reason.to_owned() }).await;
}

/// Adds a sign-in to the audit trail.
async fn note(console: &Console, parts: &Parts, identity: &Identity, ended: SignIn) {
    let Identity { subject, role, workspace, .. } = identity;
    let by =
        Actor { subject: subject.clone(), role: role.as_str(), address: address(parts), request_id: None };
    write_down(console, workspace.as_ref(), &by, ended).await;
}

/// While the store is away it is logged instead: the console must be there during an outage.
async fn write_down(console: &Console, workspace: Option<&WorkspaceId>, by: &Actor, ended: SignIn) {
    let call = console.admin.deps.store.note_sign_in(workspace, &ended, by, console.admin.now());
    if console.admin.ask(Fault::NotFound, call).await.is_err() {
        let Actor { subject, role, address, .. } = by;
        tracing::warn!(
            subject,
            role,
            ?address,
            ?ended,
            "console sign-in not in the audit log: store unavailable"
        );
    }
}

/// Ends the session here, and with the identity provider where that is possible.
pub(super) async fn sign_out(Change { visit, .. }: Change) -> Response {
    let place = match (&visit.session.holder, &visit.console.admin.deps.oidc) {
        (Holder::Person(person), Some(oidc)) => oidc.end_session_url(person).await,
        _ => None,
    };
    let mut response = match place {
        // A form may not redirect to another server.
        Some(place) => go_on_to(visit.t(), visit.preferences, place),
        None => lead_to("/console/sign-in"),
    };
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

pub(super) fn address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_canonical())
}

impl SignInRefusal {
    /// The status of its page.
    fn status(self) -> StatusCode {
        match self {
            Self::NoProvider => StatusCode::NOT_FOUND,
            Self::NotBegunHere => StatusCode::BAD_REQUEST,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Away => StatusCode::SERVICE_UNAVAILABLE,
            Self::ByProvider | Self::NoGroup => StatusCode::FORBIDDEN,
            Self::Failed => StatusCode::UNAUTHORIZED,
        }
    }

    fn text(self, t: &Texts) -> &'static str {
        match self {
            Self::NoProvider => t.no_provider,
            Self::NotBegunHere => t.not_begun_here,
            Self::TooMany => t.too_many_tries,
            Self::Away => t.provider_away,
            Self::ByProvider => t.provider_refused,
            Self::NoGroup => t.no_group,
            Self::Failed => t.provider_failed,
        }
    }
}
