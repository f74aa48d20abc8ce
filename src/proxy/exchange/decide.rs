//! Decides a request for a proxy in front that forwards it: the same steps as for a request that is forwarded, except that
//! the answer goes to the proxy.
//!
//! Must not know: which proxy asks. What it states is read by [`crate::policy::http::original`]; from there on the request is
//! checked and spelled like any other.
//!
//! *Invariant:* only a request that was admitted is answered with a status below 300.

use super::body::RequestBody;
use super::heads::{self, ParsedHead};
use super::verify::ApplicationCall;
use super::{Decision, Exchange, Exchanged, ReadRequest, Server, spell};
use crate::gate::Denied;
use crate::policy::http::field_lines::EditFields as _;
use crate::policy::http::head::{Framing, check, escaped, split_head};
use crate::policy::http::original::{OriginalSource, original_head, original_source};
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::proxy::connection::Connection;
use crate::proxy::connection::h1_stream::H1ClientStream;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::{X_FORWARDED_FOR, X_FORWARDED_PROTO, tell_identity};
use crate::proxy::message::ratelimit;
use crate::proxy::request::listener::empty;
use crate::proxy::request::outcome::release_permits;
use crate::proxy::response::reply::{DEGRADED, Reply};
use crate::proxy::state::Proxy;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use smallvec::SmallVec;
use std::sync::Arc;

/// The body of a refusal again, for a proxy that passes no body on but can read fields.
const X_KEYGATE_BODY: HeaderName = HeaderName::from_static("x-keygate-body");

/// Where applications find the description of their calls.
const DOCUMENT_PATH: &str = "/openapi.json";
/// It is held against the calls by `tests/edge/verify.rs`.
const DOCUMENT: &[u8] = include_bytes!("openapi.json");

/// The call of the proxy.
pub(super) struct Call {
    /// Its method, which need not be that of the request.
    pub(super) method: Method,
    /// Whether a refusal repeats its body in a field.
    repeats_body: bool,
}

/// Serves one call.
pub(super) async fn serve(
    server: Server<'_>,
    client: &mut H1ClientStream,
    connection: &Arc<Connection>,
    request: &ReadRequest,
    is_last: bool,
    ctx: &mut Ctx,
) -> Exchanged {
    let (Some(call), Ok(body)) = (ParsedHead::of(&request.head), RequestBody::of(request)) else {
        return Exchanged::Gone;
    };
    let call_message = call.message(body.exists());
    let original = original(&request.head, server.proxy.limits.header_fields);
    let parsed = original.as_ref().ok().and_then(|head| ParsedHead::of(head));
    let message = parsed.as_ref().map_or(call_message, |parsed| parsed.message(body.exists()));
    connection.set_in_exchange(true);
    ctx.is_decision = true;
    server.proxy.begin(&message, ctx);
    server.proxy.find_original_client(&message, ctx);
    let may_stay = !is_last && heads::stays_open(&call_message);
    let source = original_source(call.target).map(|(source, _)| source);
    let repeats_body = source == Some(OriginalSource::OriginalFields);
    let asked = Some(Call { method: call.method.clone(), repeats_body });
    let mut exchange =
        Exchange { server, client, connection, message, ctx, body, may_stay, written: None, sent: 0, asked };
    if let Some(answer) = server.proxy.answer_health_check(&call_message, exchange.ctx) {
        return match answer {
            Ok(reply) => exchange.answer(&reply).await,
            Err(denial) => exchange.refuse(&Denied::early(denial, None)).await,
        };
    }
    if call_message.path == DOCUMENT_PATH {
        // Neither logged nor counted, like the health check.
        exchange.ctx.is_health_check = true;
        return match document(&call_message, exchange.ctx) {
            Ok(reply) => exchange.answer(&reply).await,
            Err(denial) => exchange.refuse(&Denied::early(denial, None)).await,
        };
    }
    if let Some(application) = ApplicationCall::at(call_message.path) {
        exchange.message = call_message;
        return exchange.serve_application(application).await;
    }
    if let Err(denial) = &original {
        return exchange.refuse(&Denied::early(denial.clone(), None)).await;
    }
    match exchange.decide().await {
        Decision::Refuse(denied) => exchange.refuse(&denied).await,
        // A preflight that Keygate would answer: what it would say is of use to the proxy.
        Decision::Answer(reply) => exchange.answer(&Reply { status: StatusCode::OK, ..reply }).await,
        Decision::Forward => exchange.allow().await,
        // Nothing is forwarded, whatever the backend speaks.
        Decision::Pingora => exchange.abandon(None),
    }
}

/// The description of what applications call.
fn document(call: &RequestMessage<'_>, ctx: &Ctx) -> Result<Reply, Denial> {
    let body = match *call.method {
        Method::GET => Bytes::from_static(DOCUMENT),
        Method::HEAD => Bytes::new(),
        _ => return Err(Denial::MethodNotAllowed("GET, HEAD".into())),
    };
    let mut reply = empty(StatusCode::OK, ctx);
    reply.fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.fields.insert(CONTENT_LENGTH, DOCUMENT.len().into());
    Ok(Reply { body, ..reply })
}

/// The head of the request that a call asks about, in the form in which it would be forwarded.
fn original(call: &[u8], fields_max: usize) -> Result<BytesMut, Denial> {
    let original = original_head(call).map_err(|bad| Denial::BadRequest(BadRequest::Original(bad)))?;
    spelled(original, fields_max).map(|(head, _)| head)
}

/// A head that is not validated yet, in that form, and how its message ends.
pub(super) fn spelled(head: Vec<u8>, fields_max: usize) -> Result<(BytesMut, Framing), Denial> {
    let sound = check(&head, fields_max)?;
    let head = if sound.is_loose { escaped(&head).unwrap_or(head) } else { head };
    let spelled = spell(BytesMut::from(head.as_slice()));
    // As for any request: it was validated, so it has these parts.
    if split_head(&spelled).is_none() {
        return Err(Denial::BadRequest(BadRequest::Syntax));
    }
    Ok((spelled, sound.framing))
}

impl Exchange<'_> {
    /// Tells the proxy that the request was admitted, and whose it is.
    async fn allow(&mut self) -> Exchanged {
        let Ok(reply) = self.server.proxy.allowed(self.ctx) else { return self.abandon(None) };
        // A decision is not in flight any longer, and nobody tells what the backend used.
        self.ctx.settle_meter(false, self.body.read);
        release_permits(self.ctx);
        self.answer(&reply).await
    }

    /// The message that a refusal answers: the request, but the body of the answer depends on the call's method.
    pub(super) fn answered_message(&self) -> RequestMessage<'_> {
        let method = self.asked.as_ref().map_or(self.message.method, |call| &call.method);
        RequestMessage { method, ..self.message }
    }

    /// Adds to a refusal what only a call for a decision gets.
    pub(super) fn complete_refusal(&self, answer: &mut Reply) {
        if self.asked.as_ref().is_some_and(|call| call.repeats_body)
            && let Ok(body) = HeaderValue::from_bytes(&answer.body)
        {
            answer.fields.insert(X_KEYGATE_BODY, body);
        }
    }
}

impl Proxy {
    /// The answer to a call about a request that was admitted.
    pub(super) fn allowed(&self, ctx: &Ctx) -> pingora::Result<Reply> {
        let mut reply = empty(StatusCode::OK, ctx);
        if let Some(route) = &ctx.route {
            tell_identity(&mut reply.fields, ctx.admission.as_ref(), route)?;
        }
        if let Some(admission) = &ctx.admission {
            let families = self.limits.families;
            ratelimit::write(&mut reply.fields, families, admission.left(), ctx.charged_at, None)?;
        }
        if ctx.degraded {
            reply.fields.insert(DEGRADED.0, DEGRADED.1);
        }
        Ok(reply)
    }

    /// Finds the address and the scheme of the client of the proxy that asks.
    fn find_original_client(&self, message: &RequestMessage<'_>, ctx: &mut Ctx) {
        let Some(connection) = &ctx.connection else { return };
        let hops: SmallVec<[&[u8]; 4]> = message.fields.all(&X_FORWARDED_FOR).collect();
        let schemes: SmallVec<[&[u8]; 4]> = message.fields.all(&X_FORWARDED_PROTO).collect();
        let found = self.trusted.client_of_proxy(connection.client(), hops.iter().copied());
        ctx.address = found.address;
        ctx.secure = found.is_secure(schemes.iter().copied()).unwrap_or(false);
    }
}
