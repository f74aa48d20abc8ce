//! Keygate's own responses. They are written here instead of by Pingora, so that the connection can stay open if the
//! protocol allows it.

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

/// An unread body up to this size is drained; otherwise the connection is closed.
pub(in crate::proxy) const DRAINED: u64 = 64 * 1024;
/// Longest time for draining.
pub(in crate::proxy) const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// The header field of responses to requests whose limits were decided without the shared counters.
pub(in crate::proxy) const DEGRADED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-keygate-degraded"), HeaderValue::from_static("counters"));
/// Maximum number of fields in a response of Keygate's own, including those added by Pingora.
const FIELDS: usize = 9 + ratelimit::FIELDS + 2;

/// A response before it is written.
pub(in crate::proxy) struct Reply {
    pub(in crate::proxy) status: StatusCode,
    pub(in crate::proxy) fields: HeaderMap,
    /// Empty in a response to HEAD.
    pub(in crate::proxy) body: Bytes,
}

/// The response to a denied request.
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

/// Sends the response to a denied request.
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
        // The body was read ahead completely, which Pingora does not know: only its end is left to drain.
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

/// Keeps the backend's `Date` in a response. Over HTTP/1.1 Pingora replaces it with its own, so the connection
/// restores it.
pub(in crate::proxy) fn keep_date(fields: &HeaderMap, version: Version, ctx: &Ctx) {
    if let (Some(date), Some(connection)) = (fields.get(header::DATE), &ctx.connection)
        && version != Version::HTTP_2
    {
        connection.set_date(date.clone());
    }
}

/// Makes this the last response of the connection if the gateway is stopping.
pub(in crate::proxy) fn close_if_stopping(session: &mut Session) {
    if session.is_process_shutting_down() {
        session.set_keepalive(None);
    }
}

/// Frames a response for an HTTP/1.0 client, which does not know chunks: the body ends with the connection (RFC 9112,
/// 6.1). If the connection is closed before the response is complete, it is reset.
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
        // Pingora would frame it in chunks after this.
        return Error::e_explain(ErrorType::InvalidHTTPHeader, "response cannot be delimited in HTTP/1.0");
    }
    response.remove_header(&header::TRANSFER_ENCODING);
    session.set_keepalive(None);
    if let Some(connection) = connection {
        connection.set_close_ends_answer(true);
    }
    Ok(())
}

/// The length of the response body, if the head states it.
pub(in crate::proxy) fn body_length(session: &Session, response: &ResponseHeader) -> Option<u64> {
    let has_none = session.req_header().method == Method::HEAD
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_none {
        return Some(0);
    }
    response.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Decides whether the connection stays open: a small unread body is read and discarded, so that the next request
/// starts at the right place. The connection is closed if the body is large, of unknown length, or held back until
/// 100 Continue.
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

/// Whether this is the status of a final response, not of an interim one.
pub(in crate::proxy) fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// The status of the response, if its head was sent to the client.
pub(in crate::proxy) fn status_written(session: &Session) -> Option<u16> {
    session.response_written().map(|head| head.status).filter(|status| is_final(*status)).map(|s| s.as_u16())
}
