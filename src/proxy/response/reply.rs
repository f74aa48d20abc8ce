//! Keygate's own answers, written by hand so that the connection stays open when the protocol allows it.

use crate::clock::Timestamp;
use crate::counter::LimitsLeft;
use crate::envelope::Envelope;
use crate::policy::http::coding::CODINGS;
use crate::policy::keys::denial::Denial;
use crate::proxy::connection::Connection;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::content_length;
use crate::proxy::message::headers::X_REQUEST_ID;
use crate::proxy::message::ratelimit;
use crate::proxy::state::ProxyLimits;
use bytes::Bytes;
use http::header::{self, EXPECT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};
use std::sync::Arc;
use std::time::Duration;

/// An unread body up to this size is drained rather than the connection closed.
pub(in crate::proxy) const DRAINED: u64 = 64 * 1024;
/// How long draining may take.
pub(in crate::proxy) const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// Tells that limits were decided without the counters that nodes share.
pub(in crate::proxy) const DEGRADED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-keygate-degraded"), HeaderValue::from_static("counters"));
/// How many fields an answer of ours has, at most, and what Pingora adds.
const FIELDS: usize = 9 + ratelimit::FIELDS + 2;

/// An answer that is not written yet.
pub(in crate::proxy) struct Reply {
    pub(in crate::proxy) status: StatusCode,
    pub(in crate::proxy) fields: HeaderMap,
    /// Empty where only the head is asked for.
    pub(in crate::proxy) body: Bytes,
}

/// What is said to `denial`.
pub(in crate::proxy) fn answer(
    message: &RequestMessage<'_>,
    ctx: &Ctx,
    limits: &ProxyLimits,
    denial: &Denial,
    left: Option<&LimitsLeft>,
    at: Timestamp,
) -> pingora::Result<Reply> {
    let fault = denial.fault();
    let envelope = Envelope::fault(fault, denial.message(ctx.lang), denial.detail(), at);
    let body = serde_json::to_vec(&envelope).unwrap_or_default();
    let mut fields = HeaderMap::with_capacity(FIELDS);
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(header::CONTENT_LENGTH, body.len().into());
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_REQUEST_ID, ctx.request_id.clone());
    let retry_after = denial.retry_after_secs();
    if let Some(secs) = retry_after {
        fields.insert(header::RETRY_AFTER, secs.into());
    }
    if fault.status() == 401 {
        fields.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if *denial == Denial::ContentCoding {
        fields.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
    }
    if ctx.degraded {
        fields.insert(DEGRADED.0, DEGRADED.1);
    }
    if let Some(left) = left {
        ratelimit::write(&mut fields, limits.families, left, ctx.charged_at, retry_after)?;
    }
    if let Some(cors) = ctx.route.as_ref().and_then(|route| route.cors.as_ref()) {
        let origin = message.fields.first(&header::ORIGIN);
        cors.mark(&mut fields, origin.and_then(|o| HeaderValue::from_bytes(o).ok()).as_ref());
    }
    let status = StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = if *message.method == Method::HEAD { Bytes::new() } else { Bytes::from(body) };
    Ok(Reply { status, fields, body })
}

/// Answers with `denial`.
pub(in crate::proxy) async fn deny(
    session: &mut Session,
    ctx: &mut Ctx,
    limits: &ProxyLimits,
    denial: &Denial,
    left: Option<&LimitsLeft>,
    at: Timestamp,
) -> pingora::Result<()> {
    ctx.fault = Some(denial.fault());
    if ctx.body.is_some() {
        // It has come whole, and nobody but us knows: what is left of it is its end.
        session.drain_request_body().await?;
    }
    keep_open_if_possible(session);
    let has_body = !session.is_body_empty();
    let answer = answer(&RequestMessage::of(session.req_header(), has_body), ctx, limits, denial, left, at)?;
    let mut parts = http::Response::new(()).into_parts().0;
    (parts.status, parts.headers) = (answer.status, answer.fields);
    let head_only = answer.body.is_empty();
    session.write_response_header(Box::new(ResponseHeader::from(parts)), head_only).await?;
    if !head_only {
        session.write_response_body(Some(answer.body), true).await?;
    }
    Ok(())
}

/// An answer keeps the time at which its backend says that it was made. Over HTTP/1.1 Pingora writes its own in place of
/// it, so the connection is told.
pub(in crate::proxy) fn keep_date(fields: &HeaderMap, version: Version, ctx: &Ctx) {
    if let (Some(date), Some(connection)) = (fields.get(header::DATE), &ctx.connection)
        && version != Version::HTTP_2
    {
        connection.set_date(date.clone());
    }
}

/// The last answer on a connection says that it is the last.
pub(in crate::proxy) fn close_if_stopping(session: &mut Session) {
    if session.is_process_shutting_down() {
        session.set_keepalive(None);
    }
}

/// Nobody says to a client of HTTP/1.0 in chunks where an answer ends, but by closing the connection (RFC 9112, 6.1). Until
/// it has ended, what closes the connection resets it.
pub(in crate::proxy) fn frame_by_close(
    session: &mut Session,
    response: &mut ResponseHeader,
    connection: Option<&Arc<Connection>>,
) -> pingora::Result<()> {
    let no_body = session.req_header().method == Method::HEAD
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let is_framed = response.headers.contains_key(header::CONTENT_LENGTH);
    if no_body || is_framed {
        return Ok(());
    }
    if response.version == Version::HTTP_2 {
        // Pingora puts it into chunks after this.
        return Error::e_explain(ErrorType::InvalidHTTPHeader, "response cannot be delimited in HTTP/1.0");
    }
    response.remove_header(&header::TRANSFER_ENCODING);
    session.set_keepalive(None);
    if let Some(connection) = connection {
        connection.ends_answer(true);
    }
    Ok(())
}

/// How long the body of an answer is, as far as its head says.
pub(in crate::proxy) fn body_length(session: &Session, response: &ResponseHeader) -> Option<u64> {
    let has_none = session.req_header().method == Method::HEAD
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_none {
        return Some(0);
    }
    response.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A small body that is still to come is read and thrown away, so that the next request begins where it should. A large
/// or unknown one, or one the client holds back until it is asked for, closes the connection.
pub(in crate::proxy) fn keep_open_if_possible(session: &mut Session) {
    close_if_stopping(session);
    if session.is_body_done() {
        return;
    }
    let waits = session.req_header().headers.contains_key(EXPECT);
    if waits || content_length(session).is_none_or(|l| l > DRAINED) {
        session.set_keepalive(None);
        return;
    }
    session.set_close_on_response_before_downstream_finish(false);
    session.set_total_drain_timeout(Some(DRAIN_WITHIN));
}

/// Whether this is an answer, and not only word that one will come.
pub(in crate::proxy) fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// The status of the answer that the client has been given.
pub(in crate::proxy) fn status_written(session: &Session) -> Option<u16> {
    session.response_written().map(|head| head.status).filter(|status| is_final(*status)).map(|s| s.as_u16())
}
