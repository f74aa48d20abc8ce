//! The message heads of an exchange: parses the client's request head, and writes the request head for the backend
//! and the response head for the client.
//!
//! Must not know: connections. The rules for header fields are the same as over HTTP/2.

use super::pipe::WireFraming;
use crate::policy::http::answer::{AnswerHead, BodyEnd};
use crate::policy::http::field_lines::{EditFields, FieldLines};
use crate::policy::http::fields::{FieldLine, HeaderFields};
use crate::policy::http::head::{Framing, lower_names, split_head};
use crate::policy::http::path::{canonical, split_target};
use crate::policy::routing::forward::HostRule;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::X_REQUEST_ID;
use crate::proxy::request::forward;
use crate::proxy::response::reply::Reply;
use crate::proxy::state::Proxy;
use bytes::BytesMut;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HOST, HeaderName, HeaderValue, ORIGIN,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version};
use pingora::protocols::http::date::get_cached_date;
use smallvec::SmallVec;

/// This many header fields need no allocation.
const FIELDS: usize = 16;
/// Usual size of a head, in bytes.
const HEAD: usize = 1_024;

/// A parsed request head.
pub(super) struct ParsedHead<'r> {
    pub(super) method: Method,
    pub(super) target: &'r [u8],
    pub(super) path: &'r str,
    pub(super) version: Version,
    pub(super) fields: SmallVec<[FieldLine<'r>; FIELDS]>,
}

/// Normalizes a head before it is evaluated and forwarded: field names in lower case, the target in origin form and
/// canonical spelling. A target without a canonical spelling is left unchanged and refused later.
pub(in crate::proxy) fn spell(mut head: BytesMut) -> BytesMut {
    lower_names(&mut head);
    respelled(&head).unwrap_or(head)
}

fn respelled(head: &[u8]) -> Option<BytesMut> {
    let target = split_head(head)?.target;
    let (path, query) = split_target(target).ok()?;
    let path = canonical(path).ok()?;
    if target.first() == Some(&b'/') && !path.was_respelled() {
        return None;
    }
    let from = memchr::memchr(b' ', head)? + 1;
    let mut spelled = BytesMut::with_capacity(head.len());
    for part in [&head[..from], path.as_bytes(), if query.is_empty() { b"" } else { b"?" }, query] {
        spelled.extend_from_slice(part);
    }
    spelled.extend_from_slice(&head[from + target.len()..]);
    Some(spelled)
}

// === impl ParsedHead ===

impl<'r> ParsedHead<'r> {
    /// Parses a head that has been validated; none if it is invalid all the same.
    pub(super) fn of(head: &'r [u8]) -> Option<Self> {
        let parts = split_head(head)?;
        let path = split_target(parts.target).map_or(&b""[..], |(path, _)| path);
        Some(Self {
            method: Method::from_bytes(parts.method).ok()?,
            target: parts.target,
            path: std::str::from_utf8(path).unwrap_or_default(),
            version: if parts.is_11 { Version::HTTP_11 } else { Version::HTTP_10 },
            fields: parts.fields().collect(),
        })
    }

    /// The head in the form used throughout the proxy.
    pub(super) fn message(&self, has_body: bool) -> RequestMessage<'_> {
        RequestMessage {
            method: &self.method,
            target: self.target,
            path: self.path,
            authority: None,
            version: self.version,
            fields: HeaderFields::List(&self.fields),
            has_body,
        }
    }
}

/// Whether the connection persists as far as the request says (RFC 9112, 9.3).
pub(super) fn stays_open(message: &RequestMessage<'_>) -> bool {
    let mut names = message.fields.all(&CONNECTION).flat_map(|value| value.split(|b| *b == b','));
    let mut asks_to_stay = message.version == Version::HTTP_11;
    let closes = names.any(|name| {
        asks_to_stay |= name.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
        name.trim_ascii().eq_ignore_ascii_case(b"close")
    });
    asks_to_stay && !closes
}

/// Writes the request head for the backend; none if the request was not admitted.
pub(super) fn request_head(
    proxy: &Proxy,
    ctx: &Ctx,
    message: &RequestMessage<'_>,
    framing: Framing,
) -> pingora::Result<Option<Vec<u8>>> {
    let HeaderFields::List(read) = message.fields else { return Ok(None) };
    let trace = proxy.tracing.forwarded_context(message.fields, ctx);
    let Some(told) = proxy.forward_context(ctx, message.path, trace) else { return Ok(None) };
    let mut fields = FieldLines::new(read.iter().copied());
    end_hop(&mut fields, message, framing, ctx.attempts.asks_tunnel);
    ctx.routing.headers.to_backend(&mut fields, &told)?;
    // After `to_backend`, which reports the Host of the client to the backend.
    forward::set_host(&mut fields, &told.route.forward.host, ctx.attempts.server())?;
    if !fields.has(&HOST) {
        forward::set_host(&mut fields, &HostRule::Server, ctx.attempts.server())?;
    }
    forward::apply(&mut fields, &told.route.forward.request);
    if ctx.meter.as_ref().is_some_and(|meter| meter.asks_usage) {
        // The event that is hidden can be found only in a stream that is not compressed.
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if ctx.is_read_ahead || message.version == Version::HTTP_10 {
        // The body is already here, or the client speaks HTTP/1.0, which has no 100-continue (RFC 9110, 10.1.1).
        fields.remove(&EXPECT);
    }
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(message.method.as_str().as_bytes());
    head.push(b' ');
    match &ctx.rewritten {
        None => head.extend_from_slice(message.target),
        Some(path) => {
            head.extend_from_slice(path.as_bytes());
            if let Some(at) = memchr::memchr(b'?', message.target) {
                head.extend_from_slice(&message.target[at..]);
            }
        }
    }
    head.extend_from_slice(b" HTTP/1.1\r\n");
    fields.write_to(&mut head);
    Ok(Some(head))
}

/// Removes the hop-by-hop fields of a request and writes those for the next hop: the framing of the body, and the
/// upgrade if one is requested.
fn end_hop(fields: &mut FieldLines<'_>, message: &RequestMessage<'_>, framing: Framing, asks_tunnel: bool) {
    let nominated = |name: &str| {
        let is_it = |token: &[u8]| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        message.fields.all(&CONNECTION).any(|value| value.split(|b| *b == b',').any(is_it))
    };
    let has_connection = message.fields.first(&CONNECTION).is_some();
    fields.remove_if(|name| {
        matches!(
            name,
            "connection"
                | "content-length"
                | "http2-settings"
                | "keep-alive"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "proxy-connection"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
        ) || (has_connection && nominated(name))
    });
    match framing {
        Framing::Length(length) => fields.append(CONTENT_LENGTH, length.into()),
        Framing::Chunked => fields.append(TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
        Framing::NoBody if message.fields.first(&CONTENT_LENGTH).is_some() => {
            fields.append(CONTENT_LENGTH, 0.into());
        }
        Framing::NoBody => {}
    }
    if asks_tunnel {
        fields.append(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.append(UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Writes the response head for the client. A client of HTTP/1.0 gets no chunks: without a length, the body ends with
/// the connection.
pub(super) fn answer_head(
    proxy: &Proxy,
    ctx: &Ctx,
    message: &RequestMessage<'_>,
    (answer, read, hides_usage): (&AnswerHead, &mut [u8], bool),
    (framing, stays): (WireFraming, bool),
) -> pingora::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(answer.status_and_reason(read));
    head.extend_from_slice(b"\r\n");
    let mut fields = FieldLines::new(answer.fields(read));
    let is_upgrade = answer.status == 101;
    let origin = message.fields.first(&ORIGIN).and_then(|origin| HeaderValue::from_bytes(origin).ok());
    proxy.edit_answer(&mut fields, ctx, is_upgrade, origin.as_ref())?;
    if hides_usage {
        fields.remove(&CONTENT_LENGTH);
    }
    let says_coding = *message.method == Method::HEAD && message.version == Version::HTTP_11;
    if framing == WireFraming::Chunked && !fields.has(&TRANSFER_ENCODING) {
        fields.append(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if framing == WireFraming::Plain && !says_coding {
        fields.remove(&TRANSFER_ENCODING);
    }
    if !is_upgrade {
        if !fields.has(&DATE) {
            fields.append(DATE, get_cached_date());
        }
        fields.append(CONNECTION, whether_it_stays(stays));
    }
    fields.write_to(&mut head);
    Ok(head)
}

/// Writes the head of an interim response.
pub(super) fn interim_head(ctx: &Ctx, answer: &AnswerHead, read: &mut [u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(answer.status_and_reason(read));
    head.extend_from_slice(b"\r\n");
    let mut fields = FieldLines::new(answer.fields(read));
    crate::proxy::message::headers::end_hop(&mut fields, false);
    fields.insert(X_REQUEST_ID, ctx.request_id.clone());
    fields.write_to(&mut head);
    head
}

/// Writes a response of Keygate's own.
pub(super) fn own_answer(answer: &Reply, stays: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + answer.body.len());
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(answer.status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(answer.status.canonical_reason().unwrap_or_default().as_bytes());
    bytes.extend_from_slice(b"\r\n");
    let mut field = |name: &HeaderName, value: &HeaderValue| {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    };
    answer.fields.iter().for_each(|(name, value)| field(name, value));
    field(&DATE, &get_cached_date());
    field(&CONNECTION, &whether_it_stays(stays));
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&answer.body);
    bytes
}

/// The value of the `Connection` field: whether another request may follow.
const fn whether_it_stays(stays: bool) -> HeaderValue {
    HeaderValue::from_static(if stays { "keep-alive" } else { "close" })
}

/// How a response body is framed for the client. A body that ends with the backend's connection is sent in chunks if
/// the client supports them, so that the client's connection can stay open.
pub(super) fn framing_for(message: &RequestMessage<'_>, end: BodyEnd) -> WireFraming {
    match end {
        BodyEnd::Chunked | BodyEnd::Close if message.version == Version::HTTP_11 => WireFraming::Chunked,
        _ => WireFraming::Plain,
    }
}
