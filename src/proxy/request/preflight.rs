//! CORS preflights: answered here or passed on to the backend. Responses get the CORS headers of the route.
//!
//! Must not know: keys. A preflight carries none, is not charged, and gives the backend no client identity.

use crate::gate::{Denied, RequestView};
use crate::policy::http::cors::PreflightRequest;
use crate::policy::http::path::{canonical, has_encoded_slash};
use crate::policy::keys::denial::Denial;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::X_REQUEST_ID;
use crate::proxy::response::reply::Reply;
use crate::proxy::state::Proxy;
use bytes::Bytes;
use http::header::{ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, EXPECT, ORIGIN, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

/// Result of handling a request that may need no key: one for the listener itself, or a preflight.
pub(in crate::proxy) enum EarlyOutcome {
    /// It is neither, or presents a key: handled like any other request.
    No,
    /// The response is sent.
    Answered,
    /// It is forwarded to the backend, which responds, or refused because its address sent too many.
    Decided(Result<(), Box<Denied>>),
}

/// The same before a response is written.
pub(in crate::proxy) enum EarlyDecision {
    /// It is neither, or presents a key.
    No,
    /// The response to send.
    Answer(Reply),
    /// It is forwarded to the backend, or refused.
    Decided(Result<(), Box<Denied>>),
}

impl Proxy {
    /// Responds to a request for the listener itself, and to a preflight if the route has CORS rules. Passes a preflight on if the
    /// route leaves CORS to its backend.
    pub(in crate::proxy) async fn answer_early(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora::Result<EarlyOutcome> {
        let has_body = !session.is_body_empty();
        let answer = match self.decide_early(&RequestMessage::of(session.req_header(), has_body), ctx) {
            EarlyDecision::No => return Ok(EarlyOutcome::No),
            EarlyDecision::Decided(decided) => return Ok(EarlyOutcome::Decided(decided)),
            EarlyDecision::Answer(answer) => answer,
        };
        let mut parts = http::Response::new(()).into_parts().0;
        (parts.status, parts.headers) = (answer.status, answer.fields.into());
        crate::proxy::response::reply::keep_open_if_possible(session);
        session.write_response_header(Box::new(ResponseHeader::from(parts)), true).await?;
        Ok(EarlyOutcome::Answered)
    }

    /// Whether a request is for the listener itself or a preflight, and how it is handled.
    pub(in crate::proxy) fn decide_early(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> EarlyDecision {
        match self.answer_for_listener(message, ctx) {
            None => {}
            Some(Ok(reply)) => return EarlyDecision::Answer(reply),
            Some(Err(denial)) => return EarlyDecision::Decided(Err(Denied::early(denial, None))),
        }
        self.decide_preflight(message, ctx)
    }

    /// Whether a request is a preflight, and how it is handled.
    pub(in crate::proxy) fn decide_preflight(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> EarlyDecision {
        if *message.method != Method::OPTIONS {
            return EarlyDecision::No;
        }
        let Some(mut fields) = Self::preflight_answer(message, ctx) else {
            return self.pass_preflight(message, ctx).map_or(EarlyDecision::No, EarlyDecision::Decided);
        };
        fields.insert(X_REQUEST_ID, ctx.request_id.clone());
        let (status, fields) = (StatusCode::NO_CONTENT, fields.into());
        EarlyDecision::Answer(Reply { status, fields, body: Bytes::new() })
    }

    /// Whether a preflight is forwarded without a key; none if it is not a preflight, or is handled like any other
    /// request.
    fn pass_preflight(&self, message: &RequestMessage<'_>, ctx: &mut Ctx) -> Option<Result<(), Box<Denied>>> {
        let fields = message.fields;
        let method =
            fields.first(&ACCESS_CONTROL_REQUEST_METHOD).filter(|_| fields.first(&ORIGIN).is_some())?;
        let method = Method::from_bytes(method).ok()?;
        // A browser's preflight has no body, no upgrade and no expectation.
        if message.has_body || fields.first(&UPGRADE).is_some() || fields.first(&EXPECT).is_some() {
            return None;
        }
        self.check_message(message).ok()?;
        let view = RequestView {
            method: message.method,
            path: message.path,
            target: message.target,
            encoded_slash: has_encoded_slash(message.path),
            fields,
            address: ctx.address,
            now: ctx.arrived,
        };
        let mut preflight = self.gate.preflight(&ctx.routing.routes, &view, &method)?;
        ctx.route = Some(preflight.route().clone());
        ctx.rewritten = preflight.take_rewritten();
        if let Some(Err(wait)) = self.preflights.as_ref().map(|preflights| preflights.check(ctx.address)) {
            return Some(Err(Denied::early(Denial::TooManyPreflights(wait), Some(preflight.route()))));
        }
        ctx.keyless = Some(preflight);
        Some(Ok(()))
    }

    fn preflight_answer(message: &RequestMessage<'_>, ctx: &mut Ctx) -> Option<HeaderMap> {
        let value = |name| message.fields.first(name).and_then(|value| HeaderValue::from_bytes(value).ok());
        let (origin, method) = (value(&ORIGIN)?, value(&ACCESS_CONTROL_REQUEST_METHOD)?);
        let method: Method = method.to_str().ok()?.parse().ok()?;
        // An invalid path is refused by the usual checks.
        canonical(message.path.as_bytes()).ok().filter(|p| !p.was_respelled())?;
        let route = ctx.routing.routes.find(&method, message.path)?.route.clone();
        if has_encoded_slash(message.path) && !route.encoded_slash {
            return None;
        }
        let headers = value(&ACCESS_CONTROL_REQUEST_HEADERS);
        let asked = PreflightRequest { origin: &origin, method: &method, headers: headers.as_ref() };
        let answer = route.cors.as_ref()?.answer(&asked);
        ctx.route = Some(route);
        Some(answer)
    }
}
