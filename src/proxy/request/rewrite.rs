//! Requests for language models that are made to ask for their usage: the body is read, and one field of it changed.
//!
//! Must not know: how the body arrives.

use super::ahead::facts_of;
use super::attempt::ForwardError;
use super::body::{ReadAhead, read_ahead};
use super::decide::coding_of;
use crate::model::fault::Fault;
use crate::policy::http::coding::Coding;
use crate::policy::keys::denial::Denial;
use crate::policy::meter::{BodyEdits, is_completions};
use crate::proxy::connection::BufferedBody;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::state::Proxy;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Method, Version};
use pingora::proxy::Session;
use std::sync::Arc;

impl Proxy {
    /// Whether the request may have to be made to ask for its usage.
    pub(in crate::proxy) fn may_ask_for_usage(message: &RequestMessage<'_>, ctx: &Ctx) -> bool {
        let rule = ctx.route.as_ref().filter(|_| ctx.meter.is_some()).and_then(|route| route.meter.as_ref());
        let path = ctx.rewritten.as_deref().unwrap_or(message.path);
        rule.is_some_and(|rule| rule.include_usage && rule.is_llm())
            && message.has_body
            && *message.method == Method::POST
            // Without the event that is hidden, the length of the answer is unknown, which HTTP/1.0 has no framing for.
            && message.version != Version::HTTP_10
            && is_completions(path)
            && coding_of(message.fields) == Some(Coding::Identity)
    }

    /// Whether its body must be read for that, and may be.
    pub(in crate::proxy) fn has_to_read_for_usage(&self, message: &RequestMessage<'_>, ctx: &Ctx) -> bool {
        !ctx.is_read_ahead
            && message.content_length().is_none_or(|length| length <= self.limits.end_user_body_bytes)
            && Self::may_ask_for_usage(message, ctx)
    }

    /// Makes the request ask for its usage if it wants a stream that would not say it. Its body has been read. Returns the
    /// changed body.
    pub(in crate::proxy) fn ask_for_usage(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> Result<Option<Bytes>, ForwardError> {
        let is_short = |body: &&Bytes| body.len() as u64 <= self.limits.end_user_body_bytes;
        let Some(body) = ctx.body.as_ref().filter(is_short).filter(|_| Self::may_ask_for_usage(message, ctx))
        else {
            return Ok(None);
        };
        let found;
        let facts = if let Some(facts) = &ctx.facts {
            Some(&**facts)
        } else {
            found = facts_of(body, Coding::Identity, u64::MAX);
            found.as_ref()
        };
        if !facts.is_some_and(|facts| facts.streams && !facts.asks_usage) {
            return Ok(None);
        }
        let (Some(edits), Some(connection)) = (BodyEdits::asking_for_usage(body), &ctx.connection) else {
            return Ok(None);
        };
        let mut changed = BufferedBody::new(connection, Some(edits.length(body)));
        if !edits.parts(body).all(|part| changed.add(part)) {
            return Err(ForwardError::Unavailable);
        }
        let changed = changed.whole();
        ctx.body = Some(changed.clone());
        if let Some(meter) = &mut ctx.meter {
            meter.asks_usage = true;
        }
        Ok(Some(changed))
    }

    /// Reads the body of a request that Pingora forwards, and makes the request ask for its usage, where that is needed.
    pub(in crate::proxy) async fn prepare_body(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<(), ForwardError> {
        let has_body = !session.is_body_empty();
        if self.has_to_read_for_usage(&RequestMessage::of(session.req_header(), has_body), ctx)
            && let Some(connection) = ctx.connection.as_ref().map(Arc::clone)
        {
            ctx.is_read_ahead = true;
            let read = read_ahead(session, self.limits.end_user_body_bytes, &connection).await;
            match read.map_err(|denial| failed_read(&denial))? {
                ReadAhead::Whole(body) => ctx.body = Some(body),
                ReadAhead::TooLong(start) => ctx.body_start.bytes = Some(start),
            }
        }
        self.ask_for_usage(&RequestMessage::of(session.req_header(), has_body), ctx).map(|_| ())
    }
}

/// Sets the header fields of a request to a backend that was made to ask for its usage: of another length, and for a stream
/// that is not compressed, so that the event that is hidden can be found.
pub(in crate::proxy) fn set_usage_fields(fields: &mut HeaderMap, ctx: &Ctx) {
    let Some(body) = ctx.body.as_ref().filter(|_| ctx.meter.as_ref().is_some_and(|meter| meter.asks_usage))
    else {
        return;
    };
    fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if fields.contains_key(CONTENT_LENGTH) {
        fields.insert(CONTENT_LENGTH, body.len().into());
    }
}

/// Why a body of an admitted request could not be read.
pub(in crate::proxy) fn failed_read(denial: &Denial) -> ForwardError {
    match denial {
        Denial::Plain(Fault::ServiceUnavailable) => ForwardError::Unavailable,
        _ => ForwardError::ClientLate,
    }
}
