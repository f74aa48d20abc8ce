//! Requests for language models that are changed: made to ask for their usage, or for no more output than was admitted. The body
//! is read, and single fields of it change.
//!
//! Must not know: how the body arrives.

use super::ahead::facts_of;
use super::attempt::ForwardError;
use super::body::{ReadAhead, read_ahead};
use super::decide::coding_of;
use crate::gate::Admission;
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
        rule.is_some_and(|rule| rule.include_usage && rule.is_llm())
            && message.has_body
            && *message.method == Method::POST
            // Without the event that is hidden, the length of the answer is unknown, which HTTP/1.0 has no framing for.
            && message.version != Version::HTTP_10
            && is_completions(path_for_backend(message, ctx))
            && coding_of(message.fields) == Some(Coding::Identity)
    }

    /// Whether its body must be read for that, and may be.
    pub(in crate::proxy) fn has_to_read_for_usage(&self, message: &RequestMessage<'_>, ctx: &Ctx) -> bool {
        !ctx.is_read_ahead
            && message.content_length().is_none_or(|length| length <= self.limits.end_user_body_bytes)
            && Self::may_ask_for_usage(message, ctx)
    }

    /// Makes the request ask for its usage if it wants a stream that would not say it, and for no more output than was admitted.
    /// Its body has been read. Returns the changed body.
    pub(in crate::proxy) fn change_body(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> Result<Option<Bytes>, ForwardError> {
        let (Some(body), Some(connection)) = (&ctx.body, &ctx.connection) else { return Ok(None) };
        let asking = self.edits_asking_for_usage(message, ctx, body);
        let asks_usage = asking.is_some();
        let max_output = ctx.admission.as_ref().and_then(Admission::max_output);
        let limiting =
            max_output.and_then(|max| BodyEdits::limiting_output(body, path_for_backend(message, ctx), max));
        let Some(edits) = [limiting, asking].into_iter().flatten().reduce(BodyEdits::and) else {
            return Ok(None);
        };
        let mut changed = BufferedBody::new(connection, Some(edits.length(body)));
        if !edits.parts(body).all(|part| changed.add(part)) {
            return Err(ForwardError::Unavailable);
        }
        let changed = changed.whole();
        ctx.body = Some(changed.clone());
        if let Some(meter) = &mut ctx.meter {
            meter.asks_usage |= asks_usage;
        }
        Ok(Some(changed))
    }

    /// What makes a request ask for its usage; none if it does so or must not.
    fn edits_asking_for_usage(
        &self,
        message: &RequestMessage<'_>,
        ctx: &Ctx,
        body: &Bytes,
    ) -> Option<BodyEdits> {
        if body.len() as u64 > self.limits.end_user_body_bytes || !Self::may_ask_for_usage(message, ctx) {
            return None;
        }
        let found;
        let facts = if let Some(facts) = &ctx.facts {
            Some(&**facts)
        } else {
            found = facts_of(body, Coding::Identity, u64::MAX);
            found.as_ref()
        };
        facts.filter(|facts| facts.streams && !facts.asks_usage)?;
        BodyEdits::asking_for_usage(body)
    }

    /// Reads the body of a request that Pingora forwards, and changes it, where that is needed.
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
        self.change_body(&RequestMessage::of(session.req_header(), has_body), ctx).map(|_| ())
    }
}

/// Whether the maximum of the request can be lowered: its body has been read, is not compressed, and has a place for it.
pub(super) fn can_be_clamped(message: &RequestMessage<'_>, ctx: &Ctx) -> bool {
    let body = ctx.body.as_ref().filter(|_| ctx.facts.is_some());
    coding_of(message.fields) == Some(Coding::Identity)
        && body.is_some_and(|body| {
            // Every other maximum is larger.
            BodyEdits::limiting_output(body, path_for_backend(message, ctx), 1).is_some()
        })
}

/// The path for the backend, which names the dialect.
fn path_for_backend<'r>(message: &RequestMessage<'r>, ctx: &'r Ctx) -> &'r str {
    ctx.rewritten.as_deref().unwrap_or(message.path)
}

/// Sets the header fields of a request to a backend whose body may have changed: its length, and that its stream is not to be
/// compressed if an event of it is to be found and hidden.
pub(in crate::proxy) fn set_body_fields(fields: &mut HeaderMap, ctx: &Ctx) {
    let (Some(body), Some(meter)) = (&ctx.body, &ctx.meter) else { return };
    if meter.asks_usage {
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
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
