//! Keygate's own responses. They are written here instead of by Pingora, so that the connection can stay open if the
//! protocol allows it.

use crate::clock::Timestamp;
use crate::counter::LimitsLeft;
use crate::model::fault::{Fault, Lang};
use crate::policy::http::coding::CODINGS;
use crate::policy::http::field_lines::{EditFields as _, FieldList};
use crate::policy::keys::credential::challenges;
use crate::policy::keys::denial::Denial;
use crate::proxy::connection::Connection;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::content_length;
use crate::proxy::message::headers::X_REQUEST_ID;
use crate::proxy::message::ratelimit;
use crate::proxy::response::error_body::{self, ErrorParts, grpc_status};
use crate::proxy::state::ProxyLimits;
use bytes::Bytes;
use http::header::{self, EXPECT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// An unread body up to this size is drained; otherwise the connection is closed.
pub(in crate::proxy) const DRAINED: u64 = 64 * 1024;
/// Longest time for draining.
pub(in crate::proxy) const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// The header field of responses to requests whose limits were decided without the shared counters.
pub(in crate::proxy) const DEGRADED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-keygate-degraded"), HeaderValue::from_static("counters"));
/// When to retry, in ms: SDKs of `OpenAI` and Anthropic prefer it to `Retry-After`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// Whether to retry: SDKs of `OpenAI` and Anthropic follow it. Without it, they retry every 429.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The longest wait after which SDKs retry by themselves. For a longer one they would retry too soon, in vain.
const WORTH_WAITING: Duration = Duration::from_mins(1);
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Fields that a response of Keygate's own has at most, in the usual cases.
const FIELDS: usize = 20;

/// A response before it is written.
pub(in crate::proxy) struct Reply {
    pub(in crate::proxy) status: StatusCode,
    pub(in crate::proxy) fields: FieldList,
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
    let form = ctx.route.as_ref().map_or(limits.errors, |route| route.errors);
    let request_id = ctx.request_id.to_str().unwrap_or_default();
    let body = error_body::body(form, &ErrorParts { denial, lang: ctx.lang, request_id, at });
    let mut fields = FieldList::with_capacity(FIELDS);
    fields.append(header::CONTENT_TYPE, HeaderValue::from_static(error_body::media_type(form)));
    fields.append(header::CONTENT_LENGTH, body.len().into());
    fields.append(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.append(X_REQUEST_ID, ctx.request_id.clone());
    let retry_after = denial.retry_after_secs();
    say_when_to_retry(&mut fields, denial);
    if let Denial::MethodNotAllowed(allowed) = denial {
        fields.append(
            header::ALLOW,
            HeaderValue::from_str(allowed).or_else(|_| {
                Error::e_because(ErrorType::InvalidHTTPHeader, "allow", "methods of a route are tokens")
            })?,
        );
    }
    if fault.status() == 401 {
        let places = ctx.route.as_ref().map_or(&[][..], |route| &route.secret_from);
        for challenge in challenges(places) {
            fields.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
    }
    if *denial == Denial::ContentCoding {
        fields.append(header::ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
    }
    if ctx.degraded {
        fields.append(DEGRADED.0, DEGRADED.1);
    }
    if let Some(left) = left {
        ratelimit::write(&mut fields, limits.families, left, ctx.charged_at, retry_after)?;
    }
    if let Some(cors) = ctx.route.as_ref().and_then(|route| route.cors.as_ref()) {
        let origin = message.fields.first(&header::ORIGIN);
        cors.mark(&mut fields, origin.and_then(|o| HeaderValue::from_bytes(o).ok()).as_ref());
    }
    if is_grpc(message) {
        return grpc_reply(fields, denial);
    }
    let status = StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = if *message.method == Method::HEAD { Bytes::new() } else { Bytes::from(body) };
    Ok(Reply { status, fields, body })
}

/// `Retry-After` is exact to the second; clients that know `retry-after-ms` wait no longer than necessary. A refusal for
/// which waiting does not help says so, because clients would repeat every 429.
fn say_when_to_retry(fields: &mut FieldList, denial: &Denial) {
    let wait = denial.retry_after();
    if let (Some(wait), Some(secs)) = (wait, denial.retry_after_secs()) {
        fields.append(header::RETRY_AFTER, secs.into());
        fields.append(RETRY_AFTER_MS, whole_ms(wait).into());
    }
    let is_refusal = denial.fault().status() < 500 && denial.fault() != Fault::RequestTimeout;
    if is_refusal && wait.is_none_or(|wait| wait > WORTH_WAITING) {
        fields.append(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

/// Milliseconds, rounded up, so that waiting this long is enough.
fn whole_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// Whether the caller expects its status as gRPC sends it, which only HTTP/2 can.
fn is_grpc(message: &RequestMessage<'_>) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let media_type = message.fields.first(&header::CONTENT_TYPE).unwrap_or_default();
    let after = media_type.strip_prefix(GRPC);
    message.version == Version::HTTP_2
        && after.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// A response of trailers only: HTTP knows nothing of the failure, gRPC everything.
fn grpc_reply(mut fields: FieldList, denial: &Denial) -> pingora::Result<Reply> {
    let message = HeaderValue::from_str(&grpc_message(&denial.message(Lang::En)))
        .or_else(|error| Error::e_because(ErrorType::InvalidHTTPHeader, "grpc-message", error))?;
    fields.remove(&header::CONTENT_LENGTH);
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(GRPC_STATUS, grpc_status(denial.fault()).into());
    fields.insert(GRPC_MESSAGE, message);
    Ok(Reply { status: StatusCode::OK, fields, body: Bytes::new() })
}

/// Text as gRPC sends it in a field: percent-encoded but for visible ASCII and spaces.
fn grpc_message(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                // Writing to a String cannot fail.
                let _written = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
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
    (parts.status, parts.headers) = (answer.status, answer.fields.into());
    ctx.is_answered_by_grpc = parts.headers.contains_key(&GRPC_STATUS);
    let head_only = answer.body.is_empty();
    if ctx.is_answered_by_grpc {
        // The head ends the stream, as clients expect of a response without messages. Pingora's other call would end it
        // with an empty part of a body.
        let head = HttpTask::Header(Box::new(ResponseHeader::from(parts)), true);
        session.write_response_tasks(vec![head]).await?;
        return Ok(());
    }
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

/// Frames a response whose length is not known before it ends, for a client that knows chunks.
pub(in crate::proxy) fn frame_without_length(
    session: &Session,
    response: &mut ResponseHeader,
) -> pingora::Result<()> {
    response.remove_header(&header::CONTENT_LENGTH);
    if session.req_header().version == Version::HTTP_11 {
        response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
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
