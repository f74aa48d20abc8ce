//! A request over HTTP/1.1 before Pingora sees it: decided from the head as it stands, and refused right here where that
//! takes no more than writing an answer, which costs half of what it does behind a parser and a session.
//!
//! Must not know: how anything is decided ([`super::decide`]) or worded ([`crate::proxy::response::reply`]). Where a head is not plain, or
//! the connection needs to be handled in any way, the answer is left to Pingora.

use crate::gate::{Denied, NamedEndUser};
use crate::model::usage::Outcome;
use crate::policy::http::fields::{FieldLine, HeaderFields};
use crate::policy::http::head::split_head;
use crate::policy::http::path::{canonical, split_target};
use crate::proxy::connection::Connection;
use crate::proxy::connection::h1_stream::H1ClientStream;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::response::reply::{self, Reply};
use crate::proxy::state::Proxy;
use http::header::{CONNECTION, EXPECT, HeaderValue, UPGRADE};
use http::{Method, Version};
use pingora::protocols::http::date::get_cached_date;
use smallvec::SmallVec;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;

/// So many fields need no allocation.
const FIELDS: usize = 16;

/// A request that has been let in: where its bytes are, and how it stands with its connection.
pub(in crate::proxy) struct RawRequest<'a> {
    /// Its head, and what of its body came along.
    pub(in crate::proxy) bytes: &'a [u8],
    pub(in crate::proxy) has_body: bool,
    /// Whether nothing stands against another request on this connection.
    pub(in crate::proxy) may_stay: bool,
}

/// What became of it.
pub(in crate::proxy) enum FastPathOutcome {
    /// Pingora serves it, with what is known of it.
    Continue(Box<Ctx>),
    /// It is answered, and the next may come.
    Answered,
    /// It was to be answered, and the client is gone.
    Gone,
}

/// Looks at a request.
pub(in crate::proxy) async fn try_fast_path(
    proxy: &Proxy,
    client_stream: &mut H1ClientStream,
    connection: &Arc<Connection>,
    arrived: RawRequest<'_>,
) -> FastPathOutcome {
    let mut ctx = Box::new(proxy.ctx());
    ctx.connection = Some(Arc::clone(connection));
    let Some(PlainHead { method, target, path, version, fields }) = parse_plain(arrived.bytes) else {
        return FastPathOutcome::Continue(ctx);
    };
    let message = RequestMessage {
        method: &method,
        target,
        path,
        authority: None,
        version,
        fields: HeaderFields::List(&fields),
        has_body: arrived.has_body,
    };
    proxy.begin(&message, &mut ctx);
    let Some(decided) = decide(proxy, &message, &mut ctx).await else {
        return FastPathOutcome::Continue(ctx);
    };
    match decided {
        Err(denied)
            if arrived.may_stay
                && client_stream.is_between_requests()
                && may_keep_alive(version, message.fields) =>
        {
            refuse(proxy, client_stream, &message, &mut ctx, &denied).await
        }
        decided => {
            ctx.decided = Some(decided);
            FastPathOutcome::Continue(ctx)
        }
    }
}

/// A head as most are: its path needs no other spelling, and nothing is asked of Keygate but to pass it on.
struct PlainHead<'r> {
    method: Method,
    target: &'r [u8],
    path: &'r str,
    version: Version,
    fields: SmallVec<[FieldLine<'r>; FIELDS]>,
}

fn parse_plain(bytes: &[u8]) -> Option<PlainHead<'_>> {
    let request_head = split_head(bytes)?;
    if request_head.target.first() != Some(&b'/') {
        return None;
    }
    let method = Method::from_bytes(request_head.method).ok()?;
    // A preflight is answered, not decided.
    if method == Method::OPTIONS {
        return None;
    }
    let (path, _) = split_target(request_head.target).ok()?;
    if canonical(path).is_ok_and(|path| path.was_respelled()) {
        return None;
    }
    Some(PlainHead {
        method,
        target: request_head.target,
        path: std::str::from_utf8(path).ok()?,
        version: if request_head.is_11 { Version::HTTP_11 } else { Version::HTTP_10 },
        fields: request_head.fields().collect(),
    })
}

/// None: its body says on whose behalf it comes, and has to be read first.
async fn decide(
    proxy: &Proxy,
    message: &RequestMessage<'_>,
    ctx: &mut Ctx,
) -> Option<Result<(), Box<Denied>>> {
    let decided = match proxy.permit(message, ctx) {
        Err(denied) => Err(denied),
        Ok(permit) => match permit.end_user().clone() {
            NamedEndUser::Body => {
                ctx.permit = Some(permit);
                return None;
            }
            NamedEndUser::Nobody => proxy.admit(message, ctx, permit, None).await,
            NamedEndUser::Header(name) => proxy.admit(message, ctx, permit, Some(&name)).await,
        },
    };
    proxy.record_decision_time(ctx);
    Some(decided)
}

/// Whether the connection stays open by the protocol, and without a word about it.
fn may_keep_alive(version: Version, fields: HeaderFields<'_>) -> bool {
    let stays = fields.all(&CONNECTION).all(|asked| asked.eq_ignore_ascii_case(b"keep-alive"));
    let asks = |name| fields.first(name).is_some();
    version == Version::HTTP_11 && stays && !asks(&UPGRADE) && !asks(&EXPECT)
}

async fn refuse(
    proxy: &Proxy,
    client_stream: &mut H1ClientStream,
    message: &RequestMessage<'_>,
    ctx: &mut Ctx,
    denied: &Denied,
) -> FastPathOutcome {
    proxy.on_refused(message, ctx, denied);
    let at = proxy.clock.now().wall;
    let (left, limits) = (denied.left.as_ref(), &proxy.limits);
    let Ok(answer) = reply::answer(message, ctx, limits, &denied.denial, left, at) else {
        return FastPathOutcome::Gone;
    };
    let told = write(client_stream, &answer).await.is_ok();
    let written = told.then_some(answer.status.as_u16());
    let sent = if told { u64::try_from(answer.body.len()).unwrap_or(u64::MAX) } else { 0 };
    proxy.ended(message, ctx, Outcome::Denied, written, (0, sent));
    if told { FastPathOutcome::Answered } else { FastPathOutcome::Gone }
}

async fn write(client_stream: &mut H1ClientStream, answer: &Reply) -> std::io::Result<()> {
    client_stream.write_all(&to_bytes(answer, &get_cached_date())).await?;
    client_stream.flush().await
}

/// The answer as HTTP/1.1 writes it.
fn to_bytes(answer: &Reply, date: &HeaderValue) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1_024);
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(answer.status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(answer.status.canonical_reason().unwrap_or_default().as_bytes());
    let mut field = |name: &str, value: &HeaderValue| {
        for part in [b"\r\n", name.as_bytes(), b": ", value.as_bytes()] {
            bytes.extend_from_slice(part);
        }
    };
    answer.fields.iter().for_each(|(name, value)| field(name.as_str(), value));
    field("date", date);
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes.extend_from_slice(&answer.body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    #[test]
    fn an_answer_in_bytes() {
        let mut fields = HeaderMap::new();
        fields.insert("a", HeaderValue::from_static("1"));
        let answer = Reply { status: StatusCode::TOO_MANY_REQUESTS, fields, body: Bytes::from_static(b"{}") };
        assert_eq!(
            to_bytes(&answer, &HeaderValue::from_static("now")),
            b"HTTP/1.1 429 Too Many Requests\r\na: 1\r\ndate: now\r\n\r\n{}"
        );
    }

    #[test]
    fn only_plain_heads_are_looked_at_and_only_plain_connections_stay() {
        let looked_at = |line: &str, field: &str| {
            let head = format!("{line}\r\nHost: h\r\n{field}\r\n");
            let plain = parse_plain(head.as_bytes())?;
            Some(may_keep_alive(plain.version, HeaderFields::List(&plain.fields)))
        };
        for line in ["GET http://h/a HTTP/1.1", "OPTIONS /a HTTP/1.1", "GET /%61 HTTP/1.1"] {
            assert_eq!(looked_at(line, ""), None, "{line}");
        }
        // What is refused needs no spelling.
        assert_eq!(looked_at("GET /a/../b HTTP/1.1", ""), Some(true));
        for (field, stays) in [
            ("", true),
            ("Connection: Keep-Alive\r\n", true),
            ("Connection: close\r\n", false),
            ("Connection: keep-alive, upgrade\r\n", false),
            ("Connection: keep-alive\r\nConnection: close\r\n", false),
            ("Upgrade: websocket\r\n", false),
            ("Expect: 100-continue\r\n", false),
        ] {
            assert_eq!(looked_at("GET /a?b HTTP/1.1", field), Some(stays), "{field}");
        }
        assert_eq!(looked_at("GET /a HTTP/1.0", ""), Some(false));
    }
}
