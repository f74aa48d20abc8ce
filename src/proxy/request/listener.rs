//! Requests that a listener answers by itself: the health check of load balancers, and the redirect to HTTPS.
//!
//! Must not know: keys, routes. Neither is charged or recorded; a health check is not logged or counted either.

use crate::model::fault::Fault;
use crate::policy::http::field_lines::{EditFields as _, FieldList};
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::X_REQUEST_ID;
use crate::proxy::response::reply::Reply;
use crate::proxy::state::Proxy;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, HOST, LOCATION};
use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode};

impl Proxy {
    /// The response to a request that is for the listener itself; none: it is for a backend.
    pub(in crate::proxy) fn answer_for_listener(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> Option<Result<Reply, Denial>> {
        if let Some(answer) = self.answer_health_check(message, ctx) {
            return Some(answer);
        }
        if ctx.connection.as_ref().is_some_and(|connection| connection.is_for_health_checks()) {
            return Some(Err(Denial::BadRequest(BadRequest::ProxyHeader)));
        }
        if !self.limits.redirect_to_https || ctx.secure {
            return None;
        }
        Some(redirect(message, ctx).ok_or(Denial::Plain(Fault::BadRequest)))
    }

    /// The response to a load balancer's health check; none: it is none.
    pub(in crate::proxy) fn answer_health_check(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> Option<Result<Reply, Denial>> {
        let health = self.health.as_ref().filter(|health| *health.path == *message.path)?;
        if !matches!(*message.method, Method::GET | Method::HEAD) {
            return Some(Err(Denial::MethodNotAllowed("GET, HEAD".into())));
        }
        ctx.is_health_check = true;
        let is_ready = (health.is_ready)();
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Some(Ok(empty(status, ctx)))
    }
}

/// The same URL with `https`, on the port of that scheme. The method stays (RFC 9110, 15.4.9).
fn redirect(message: &RequestMessage<'_>, ctx: &Ctx) -> Option<Reply> {
    let authority = message.authority.or_else(|| message.fields.text(&HOST))?;
    let authority: Authority = authority.parse().ok()?;
    let location = [b"https://", authority.host().as_bytes(), message.target].concat();
    let mut reply = empty(StatusCode::PERMANENT_REDIRECT, ctx);
    reply.fields.insert(LOCATION, HeaderValue::from_bytes(&location).ok()?);
    Some(reply)
}

pub(in crate::proxy) fn empty(status: StatusCode, ctx: &Ctx) -> Reply {
    let mut fields = FieldList::with_capacity(4);
    fields.append(CONTENT_LENGTH, HeaderValue::from_static("0"));
    fields.append(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.append(X_REQUEST_ID, ctx.request_id.clone());
    Reply { status, fields, body: Bytes::new() }
}
