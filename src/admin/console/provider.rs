//! Signing in with an identity provider: the way there, and the way back.
//!
//! Must not know: what the provider and its tokens say (`oidc`), or what a role may do.
//!
//! *Invariant:* an answer of the provider counts only in the browser that has asked for it, and there once: the cookie of the sign-in
//! leaves with the answer.

use super::Console;
use super::cookies;
use super::session;
use super::sign_in::{SignInRefusal, address, enter_person, note_refused, place_after, refuse};
use super::visit::lead_to;
use crate::admin::oidc::{Flow, NotSignedIn, Oidc, error_code};
use axum::extract::{Query, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Deserialize;
use std::sync::Arc;

/// Where to go after signing in, and whether as somebody else than the provider knows.
#[derive(Deserialize)]
pub(super) struct StartQuery {
    #[serde(default)]
    next: String,
    #[serde(default)]
    again: String,
}

/// The provider's answer (RFC 6749, 4.1.2; RFC 9207).
#[derive(Default, Deserialize)]
struct Answer {
    #[serde(default)]
    state: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
    iss: Option<String>,
}

/// Longest page to go to afterwards, in bytes: it is in a cookie meanwhile.
const NEXT_MAX: usize = 1_024;

/// Leads to the provider.
pub(super) async fn start(
    State(console): State<Arc<Console>>,
    Query(asked): Query<StartQuery>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let Some(oidc) = &console.admin.deps.oidc else {
        return refuse(&console, &parts, SignInRefusal::NoProvider, "");
    };
    let next = if asked.next.len() <= NEXT_MAX { place_after(&asked.next) } else { place_after("") };
    let flow = Flow::new(next);
    let place = match oidc.authorization_url(&flow, !asked.again.is_empty()).await {
        Ok(place) => place,
        Err(why) => return failed(&console, &parts, &why, next, "unknown").await,
    };
    let sealed = session::seal_flow(&console.admin.deps.peppers, oidc, &flow, console.admin.now());
    let cookie = sealed.and_then(|sealed| cookies::flow(&sealed, is_encrypted(oidc)));
    let Some(cookie) = cookie else {
        return refuse(&console, &parts, SignInRefusal::Failed, next);
    };
    let mut response = lead_to(&place);
    response.headers_mut().append(header::SET_COOKIE, cookie);
    response
}

/// The way back.
pub(super) async fn callback(State(console): State<Arc<Console>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let mut response = match &console.admin.deps.oidc {
        Some(oidc) => answered(&console, oidc, &parts).await,
        None => refuse(&console, &parts, SignInRefusal::NoProvider, ""),
    };
    response.headers_mut().append(header::SET_COOKIE, cookies::no_flow());
    response
}

async fn answered(console: &Console, oidc: &Oidc, parts: &Parts) -> Response {
    let (address, now) = (address(parts), console.admin.now());
    if !console.attempts.may_try(address, now) {
        return refuse(console, parts, SignInRefusal::TooMany, "");
    }
    let begun = cookies::read(&parts.headers, cookies::FLOW)
        .and_then(|cookie| session::open_flow(&console.admin.deps.peppers, oidc, cookie, now));
    let answer = Query::<Answer>::try_from_uri(&parts.uri).map(|Query(answer)| answer).unwrap_or_default();
    let flow = begun.filter(|flow| session::is_same(&flow.state, &answer.state));
    let Some(flow) = flow else {
        return refused(console, parts, SignInRefusal::NotBegunHere, "state", "", "unknown").await;
    };
    let next = &*flow.next;
    if answer.iss.as_deref().is_some_and(|issuer| !oidc.is_issuer(issuer)) {
        return refused(console, parts, SignInRefusal::Failed, "issuer", next, "unknown").await;
    }
    if !answer.error.is_empty() {
        let why = format!("provider_{}", error_code(&answer.error));
        return refused(console, parts, SignInRefusal::ByProvider, &why, next, "unknown").await;
    }
    let person = match oidc.redeem(&answer.code, &flow).await {
        Ok(person) => person,
        Err(why) => return failed(console, parts, &why, next, "unknown").await,
    };
    let Some(access) = oidc.access(&person) else {
        return refused(console, parts, SignInRefusal::NoGroup, "no_group", next, &person.subject).await;
    };
    let sealed = session::seal_person(&console.admin.deps.peppers, oidc, &person, now);
    let cookie = sealed.and_then(|sealed| cookies::session(&sealed, is_encrypted(oidc)));
    match cookie {
        Some(cookie) => enter_person(console, parts, &person, &access, cookie, next).await,
        None => {
            refused(console, parts, SignInRefusal::Failed, "too_many_groups", next, &person.subject).await
        }
    }
}

/// Nobody is signed in.
async fn failed(console: &Console, parts: &Parts, why: &NotSignedIn, next: &str, subject: &str) -> Response {
    match why {
        NotSignedIn::Away(why) => {
            tracing::warn!(%why, "console sign-in failed: the identity provider cannot be used");
            note_refused(console, parts, subject, "provider_away").await;
            refuse(console, parts, SignInRefusal::Away, next)
        }
        NotSignedIn::Refused(why) => refused(console, parts, SignInRefusal::Failed, why, next, subject).await,
    }
}

/// Refuses a sign-in, which counts against the address.
async fn refused(
    console: &Console,
    parts: &Parts,
    shown: SignInRefusal,
    why: &str,
    next: &str,
    subject: &str,
) -> Response {
    console.attempts.on_failed(address(parts), console.admin.now());
    note_refused(console, parts, subject, why).await;
    refuse(console, parts, shown, next)
}

fn is_encrypted(oidc: &Oidc) -> bool {
    oidc.public_url().starts_with("https:")
}
