//! One HTTP/1.1 connection: reads each request head completely and validates it strictly, then serves the request.
//!
//! Pingora's own reader has a deadline per read instead of one for the head, accepts heads of a megabyte, repairs
//! what should be refused, and responds to invalid requests without a body. Here Pingora gets a request only if its
//! head is unambiguous.

use super::http2;
use super::listen::Acceptor;
use crate::envelope::last_answer;
use crate::model::fault::Fault;
use crate::model::id::RequestId;
use crate::model::usage::Outcome;
use crate::policy::http::head::{Sound, check, escaped, find_end, is_malformed_prefix, read_partial};
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::proxy::connection::h1_stream::{DroppedStream, H1ClientStream, ReturnedStream};
use crate::proxy::connection::{CloseReason, Connection, REST_WITHIN, Stage};
use crate::proxy::exchange::{self, Exchanged, ReadRequest, Server, spell};
use crate::proxy::observe::access::AccessLogLine;
use bytes::BytesMut;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Bytes of a head besides its target and its fields: method, version, line ends.
const AROUND: usize = 64;
/// What a client that speaks HTTP/2 sends first (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Maximum bytes read and discarded after the last response.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// Result of waiting for a request.
enum NextRequest {
    /// A request.
    Request(ReadRequest),
    /// An invalid request, which is refused.
    Refused(Denial),
    /// The client speaks HTTP/2, without TLS and with prior knowledge.
    Http2,
    /// None: the client has disconnected, or the connection was closed.
    Nothing,
}

/// Serves the requests of a connection, one after the other.
pub(in crate::proxy) async fn serve(
    acceptor: &Acceptor,
    mut client_stream: Box<H1ClientStream>,
    connection: &Arc<Connection>,
) {
    let mut served = 0;
    let dropped = DroppedStream::default();
    client_stream.return_to(&dropped);
    loop {
        let request = match next_request(acceptor, &mut client_stream, connection, served == 0).await {
            NextRequest::Request(request) => request,
            NextRequest::Refused(denial) => {
                return refuse(acceptor, &mut client_stream, connection, &denial).await;
            }
            NextRequest::Http2 => return http2::serve(acceptor, client_stream, connection).await,
            NextRequest::Nothing => return,
        };
        served += 1;
        connection.enter(Stage::Request);
        let is_last = served >= acceptor.limits.requests;
        let gateway = Server {
            proxy: &acceptor.proxy,
            connector: &acceptor.connector,
            stop: &acceptor.stop,
            decides: acceptor.decides(),
        };
        let exchanged = exchange::serve(gateway, &mut client_stream, connection, request, is_last).await;
        let (known, request) = match exchanged {
            Exchanged::Next => continue,
            Exchanged::Last if must_read_rest(&client_stream, connection) => {
                return linger_and_close(&mut client_stream, connection).await;
            }
            Exchanged::Last => {
                if let Err(error) = client_stream.shutdown().await {
                    tracing::trace!(%error, "client disconnected");
                }
                return;
            }
            Exchanged::Gone => return,
            Exchanged::Pingora(known, request) => (known, request),
        };
        let mut prefix = request.head;
        prefix.extend_from_slice(&request.along);
        let mut session = ServerSession::new_http1(client_stream);
        session.set_pipelined_prefix(prefix);
        if is_last {
            session.set_keepalive_reuses_remaining(Some(0));
        }
        session.set_connection_user_context(Some(known));
        let served = tokio::select! {
            biased;
            served = acceptor.phases.process_new_http(session, &acceptor.stop) => served,
            () = connection.is_unheard() => None,
        };
        let Some(reused) = served else {
            match dropped.take() {
                Some(ReturnedStream::Open(open)) => client_stream = open,
                Some(ReturnedStream::Unread(mut client_stream)) => {
                    let denial = connection
                        .first_end()
                        .and_then(CloseReason::denial)
                        .filter(|_| !client_stream.is_answered());
                    return match denial {
                        Some(denial) => refuse(acceptor, &mut client_stream, connection, &denial).await,
                        None => linger_and_close(&mut client_stream, connection).await,
                    };
                }
                None => return,
            }
            if client_stream.flush().await.is_err() {
                return;
            }
            continue;
        };
        let (stream, _) = reused.consume();
        let Ok(back) = stream.into_any().downcast::<H1ClientStream>() else { return };
        client_stream = back;
        if client_stream.let_go().await.is_err() || !client_stream.is_between_requests() {
            return;
        }
    }
}

/// Whether to read what the client still sends for a while, so that it can read its response.
fn must_read_rest(client_stream: &H1ClientStream, connection: &Connection) -> bool {
    let sends_on = !client_stream.is_between_requests() || !client_stream.buffered().is_empty();
    !connection.is_tunnel() && (sends_on || connection.close_reason().is_some())
}

/// Waits for a request head and validates it.
async fn next_request(
    acceptor: &Acceptor,
    client_stream: &mut H1ClientStream,
    connection: &Connection,
    first: bool,
) -> NextRequest {
    let limits = acceptor.limits;
    connection.enter(if first { Stage::FirstByte } else { Stage::Idle });
    let (mut searched, mut in_head, mut may_skip) = (0, false, !first);
    loop {
        // One empty line before a request line is ignored, as RFC 9112, 2.2 asks; some clients send one after a body.
        if may_skip && client_stream.buffered().len() >= 2 {
            if client_stream.buffered().starts_with(b"\r\n") {
                client_stream.skip(2);
            }
            may_skip = false;
        }
        // Proxies that ask over gRPC come to the same address.
        let may_be_http2 = first && acceptor.decides() && begins_http2(client_stream.buffered());
        if may_be_http2 && client_stream.buffered().len() >= HTTP2_PREFACE.len() {
            return NextRequest::Http2;
        }
        if let Some(end) = find_end(client_stream.buffered(), searched).filter(|_| !may_be_http2) {
            return take(client_stream, end, limits.fields);
        }
        let here = client_stream.buffered().len();
        if is_malformed_prefix(client_stream.buffered(), searched) && !may_skip && !may_be_http2 {
            return NextRequest::Refused(Denial::BadRequest(BadRequest::Syntax));
        }
        if here > limits.uri_bytes + AROUND && memchr::memchr(b'\n', client_stream.buffered()).is_none() {
            return NextRequest::Refused(Denial::Plain(Fault::UriTooLong));
        }
        if here > limits.uri_bytes + limits.header_bytes + AROUND {
            return NextRequest::Refused(Denial::Plain(Fault::HeadersTooLarge));
        }
        searched = here;
        if here > 0 && !in_head {
            in_head = true;
            connection.enter(Stage::Head);
        }
        match client_stream.fill().await {
            Ok(1..) => {}
            Err(_) if connection.close_reason() == Some(CloseReason::HeadLate) => {
                return NextRequest::Refused(Denial::Plain(Fault::RequestTimeout));
            }
            Ok(0) | Err(_) => return NextRequest::Nothing,
        }
    }
}

/// Whether these bytes are the begin of HTTP/2, as far as they go.
fn begins_http2(bytes: &[u8]) -> bool {
    let here = bytes.len().min(HTTP2_PREFACE.len());
    here > 0 && bytes[..here] == HTTP2_PREFACE[..here]
}

fn take(client_stream: &mut H1ClientStream, end: usize, fields_max: usize) -> NextRequest {
    let Sound { framing, is_loose } = match check(&client_stream.buffered()[..end], fields_max) {
        Ok(sound) => sound,
        Err(bad) => return NextRequest::Refused(Denial::from(bad)),
    };
    match client_stream.begin(end, framing) {
        Ok(mut head) => {
            let along = head.split_off(end).freeze();
            let escaped = if is_loose { escaped(&head) } else { None };
            let head = escaped.map_or(head, |head| BytesMut::from(head.as_slice()));
            NextRequest::Request(ReadRequest { head: spell(head), along, framing })
        }
        Err(_) => NextRequest::Refused(Denial::BadRequest(BadRequest::Framing)),
    }
}

/// Sends a refusal and closes the connection.
async fn refuse(
    acceptor: &Acceptor,
    client_stream: &mut H1ClientStream,
    connection: &Connection,
    denial: &Denial,
) {
    connection.clear_close_reason(Stage::Linger);
    let now = acceptor.proxy.clock.now();
    let request_id = RequestId::new(now.wall);
    let seen = read_partial(client_stream.buffered());
    let bytes = last_answer(denial, seen, request_id, now.wall);
    let (method, path) = (seen.method.to_owned(), seen.path.to_owned());
    let written = client_stream.write_all(&bytes).await;
    let status = denial.fault().status();
    let elapsed = acceptor.since(now);
    acceptor.count_refused(denial.fault(), elapsed);
    if acceptor.proxy.access.wants(status) {
        let line = AccessLogLine {
            request_id: &request_id.0.to_string(),
            // As for a request without `traceparent`.
            trace_id: request_id.0.simple(),
            method: &method,
            path: &path,
            route: "",
            status,
            outcome: Outcome::Denied,
            fault: Some(denial.fault()),
            address: connection.client(),
            entry: None,
            server: "",
            bytes: (0, 0),
            user_agent: b"",
            version: None,
            is_secure: connection.secure,
            backend_failure: "",
            elapsed,
        };
        line.write();
    }
    match written {
        Ok(()) => linger_and_close(client_stream, connection).await,
        Err(error) => tracing::debug!(%error, "cannot write response: client disconnected"),
    }
}

/// Closes our side of the connection, then reads for a while what the client still sends. Closing a socket with
/// unread bytes, or with bytes still arriving, resets the connection, and the client could lose the last response.
async fn linger_and_close(client_stream: &mut H1ClientStream, connection: &Connection) {
    connection.clear_close_reason(Stage::Linger);
    if let Err(error) = client_stream.shutdown().await {
        tracing::debug!(%error, "cannot write response: client disconnected");
        return;
    }
    if tokio::time::timeout(REST_WITHIN, linger(client_stream, connection)).await.is_err() {
        tracing::debug!(peer = %connection.peer, "client kept sending after its last response");
    }
}

async fn linger(client_stream: &mut H1ClientStream, connection: &Connection) {
    let mut left = LINGER_BYTES;
    loop {
        client_stream.skip(usize::MAX);
        match client_stream.fill().await {
            Ok(n @ 1..) if n < left => left -= n,
            _ => return,
        }
        // The deadline of this stage applies to each pause.
        connection.enter(Stage::Linger);
    }
}
