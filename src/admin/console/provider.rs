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
use crate::admin::oidc::{Access, Flow, NotSignedIn, Oidc, Person, SignInEnd, error_code};
use axum::extract::{Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
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
        Err(why) => return failed(&console, &parts, &why, next).await,
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
        Some(oidc) => {
            let (response, ended) = answered(&console, oidc, &parts).await;
            oidc.count(ended);
            response
        }
        None => refuse(&console, &parts, SignInRefusal::NoProvider, ""),
    };
    response.headers_mut().append(header::SET_COOKIE, cookies::no_flow());
    response
}

async fn answered(console: &Console, oidc: &Oidc, parts: &Parts) -> (Response, SignInEnd) {
    let (address, now) = (address(parts), console.admin.now());
    if !console.attempts.may_try(address, now) {
        return (refuse(console, parts, SignInRefusal::TooMany, ""), SignInEnd::Refused);
    }
    let begun = cookies::read(&parts.headers, cookies::FLOW)
        .and_then(|cookie| session::open_flow(&console.admin.deps.peppers, oidc, cookie, now));
    let answer = Query::<Answer>::try_from_uri(&parts.uri).map(|Query(answer)| answer).unwrap_or_default();
    let flow = begun.filter(|flow| session::is_same(&flow.state, &answer.state));
    let Some(flow) = flow else {
        // Pages of other sites can have a browser ask for this, so it does not count against its address.
        note_refused(console, parts, "unknown", "state").await;
        return (refuse(console, parts, SignInRefusal::NotBegunHere, ""), SignInEnd::Refused);
    };
    let next = &*flow.next;
    let (shown, why, subject) = match session_of(oidc, &answer, &flow, console).await {
        Ok((person, access, cookie)) => {
            return (enter_person(console, parts, &person, &access, cookie, next).await, SignInEnd::Done);
        }
        Err(NoSession::Refused(shown, why, subject)) => (shown, why, subject),
        Err(NoSession::NotSignedIn(why)) => {
            let ended = match &why {
                NotSignedIn::Away(_) => SignInEnd::Failed,
                NotSignedIn::Refused(_) => SignInEnd::Refused,
            };
            return (failed(console, parts, &why, next).await, ended);
        }
    };
    // Whoever is in no group is known, so that is no guess.
    if shown != SignInRefusal::NoGroup {
        console.attempts.on_failed(address, now);
    }
    note_refused(console, parts, &subject, &why).await;
    (refuse(console, parts, shown, next), SignInEnd::Refused)
}

/// Why there is no session.
enum NoSession {
    /// What the page says, and what the audit log says of whom.
    Refused(SignInRefusal, String, String),
    NotSignedIn(NotSignedIn),
}

/// Who has signed in, what they may do, and the cookie of their session.
async fn session_of(
    oidc: &Oidc,
    answer: &Answer,
    flow: &Flow,
    console: &Console,
) -> Result<(Person, Access, HeaderValue), NoSession> {
    let refused = |shown, why: &str, subject: &str| NoSession::Refused(shown, why.into(), subject.into());
    if answer.iss.as_deref().is_some_and(|issuer| !oidc.is_issuer(issuer)) {
        return Err(refused(SignInRefusal::Failed, "issuer", "unknown"));
    }
    if !answer.error.is_empty() {
        let why = format!("provider_{}", error_code(&answer.error));
        return Err(refused(SignInRefusal::ByProvider, &why, "unknown"));
    }
    let person = oidc.redeem(&answer.code, flow).await.map_err(NoSession::NotSignedIn)?;
    let access = oidc.access(&person);
    let access = access.ok_or_else(|| refused(SignInRefusal::NoGroup, "no_group", &person.subject))?;
    let sealed = session::seal_person(&console.admin.deps.peppers, oidc, &person, console.admin.now());
    let cookie = sealed.and_then(|sealed| cookies::session(&sealed, is_encrypted(oidc)));
    let cookie = cookie.ok_or_else(|| refused(SignInRefusal::Failed, "too_many_groups", &person.subject))?;
    Ok((person, access, cookie))
}

/// The provider cannot be used, or says what cannot be believed.
async fn failed(console: &Console, parts: &Parts, why: &NotSignedIn, next: &str) -> Response {
    match why {
        NotSignedIn::Away(why) => {
            tracing::warn!(%why, "console sign-in failed: the identity provider cannot be used");
            note_refused(console, parts, "unknown", "provider_away").await;
            refuse(console, parts, SignInRefusal::Away, next)
        }
        NotSignedIn::Refused(why) => {
            console.attempts.on_failed(address(parts), console.admin.now());
            note_refused(console, parts, "unknown", why).await;
            refuse(console, parts, SignInRefusal::Failed, next)
        }
    }
}

fn is_encrypted(oidc: &Oidc) -> bool {
    oidc.public_url().starts_with("https:")
}
