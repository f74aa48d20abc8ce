//! One HTTP/1.1 connection: reads each head whole and strictly, then lets Pingora serve the request.
//!
//! Pingora's own reader has a deadline for each read instead of one for the head, takes a megabyte of it, mends what
//! should be refused, and answers what it cannot read without a body. Here a request reaches it only when it has one
//! reading.

use super::listen::Acceptor;
use crate::envelope::last_answer;
use crate::model::fault::Fault;
use crate::model::id::RequestId;
use crate::model::usage::Outcome;
use crate::policy::http::head::{Framing, Sound, check, escaped, find_end, glimpse, is_hopeless};
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::proxy::connection::h1_stream::{Dropped, Left, Wire};
use crate::proxy::connection::{Connection, End, REST_WITHIN, Stage};
use crate::proxy::observe::access::Line;
use crate::proxy::request::fast_path::{self, Arrived, Fronted};
use bytes::BytesMut;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// What of a head is neither its target nor its fields: method, version, line ends.
const AROUND: usize = 64;
/// Most of what still comes after a last answer that is read and thrown away.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// What came of waiting for a request.
enum Next {
    /// A request, with what of its body came along, and whether it has one.
    Request(BytesMut, bool),
    /// Something that is refused.
    Refused(Denial),
    /// Nothing: the client left, or was sent away.
    Nothing,
}

/// Serves one request after the other.
pub(in crate::proxy) async fn serve(acceptor: &Acceptor, mut wire: Box<Wire>, connection: &Arc<Connection>) {
    let mut served = 0;
    let dropped = Dropped::default();
    wire.is_kept_in(&dropped);
    loop {
        let (prefix, has_body) = match next_request(acceptor, &mut wire, connection, served == 0).await {
            Next::Request(prefix, has_body) => (prefix, has_body),
            Next::Refused(denial) => return refuse(acceptor, &mut wire, connection, &denial).await,
            Next::Nothing => return,
        };
        served += 1;
        connection.enter(Stage::Request);
        let is_last = served >= acceptor.limits.requests;
        let may_stay = !is_last && !*acceptor.stop.borrow();
        let arrived = Arrived { bytes: &prefix, has_body, may_stay };
        let known = match fast_path::look(&acceptor.proxy, &mut wire, connection, arrived).await {
            Fronted::Known(ctx) => ctx,
            Fronted::Answered => continue,
            Fronted::Gone => return,
        };
        let mut session = ServerSession::new_http1(wire);
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
                Some(Left::Open(open)) => wire = open,
                Some(Left::Unread(mut wire)) => {
                    let denial = connection.first_end().and_then(End::denial).filter(|_| !wire.is_answered());
                    return match denial {
                        Some(denial) => refuse(acceptor, &mut wire, connection, &denial).await,
                        None => say_no_more(&mut wire, connection).await,
                    };
                }
                None => return,
            }
            if wire.flush().await.is_err() {
                return;
            }
            continue;
        };
        let (stream, _) = reused.consume();
        let Ok(back) = stream.into_any().downcast::<Wire>() else { return };
        wire = back;
        if wire.let_go().await.is_err() || !wire.is_between_requests() {
            return;
        }
    }
}

/// Waits for a head and looks at it.
async fn next_request(acceptor: &Acceptor, wire: &mut Wire, connection: &Connection, first: bool) -> Next {
    let limits = acceptor.limits;
    connection.enter(if first { Stage::FirstByte } else { Stage::Idle });
    let (mut searched, mut in_head, mut may_skip) = (0, false, !first);
    loop {
        // An empty line before a request line is forgiven, as RFC 9112, 2.2 asks; some clients end a body with it.
        if may_skip && wire.ahead().len() >= 2 {
            if wire.ahead().starts_with(b"\r\n") {
                wire.skip(2);
            }
            may_skip = false;
        }
        if let Some(end) = find_end(wire.ahead(), searched) {
            return take(wire, end, limits.fields);
        }
        let here = wire.ahead().len();
        if is_hopeless(wire.ahead(), searched) && !may_skip {
            return Next::Refused(Denial::BadRequest(BadRequest::Syntax));
        }
        if here > limits.uri_bytes + AROUND && memchr::memchr(b'\n', wire.ahead()).is_none() {
            return Next::Refused(Denial::Plain(Fault::UriTooLong));
        }
        if here > limits.uri_bytes + limits.header_bytes + AROUND {
            return Next::Refused(Denial::Plain(Fault::HeadersTooLarge));
        }
        searched = here;
        if here > 0 && !in_head {
            in_head = true;
            connection.enter(Stage::Head);
        }
        match wire.more().await {
            Ok(1..) => {}
            Err(_) if connection.ends() == Some(End::HeadLate) => {
                return Next::Refused(Denial::Plain(Fault::RequestTimeout));
            }
            Ok(0) | Err(_) => return Next::Nothing,
        }
    }
}

fn take(wire: &mut Wire, end: usize, fields_max: usize) -> Next {
    let Sound { framing, is_loose } = match check(&wire.ahead()[..end], fields_max) {
        Ok(sound) => sound,
        Err(bad) => return Next::Refused(Denial::from(bad)),
    };
    match wire.begin(end, framing) {
        Ok(prefix) => {
            let escaped = if is_loose { escaped(&prefix) } else { None };
            let prefix = escaped.map_or(prefix, |head| BytesMut::from(head.as_slice()));
            Next::Request(prefix, framing != Framing::NoBody)
        }
        Err(_) => Next::Refused(Denial::BadRequest(BadRequest::Framing)),
    }
}

/// Says why, and closes.
async fn refuse(acceptor: &Acceptor, wire: &mut Wire, connection: &Connection, denial: &Denial) {
    connection.survive(Stage::Linger);
    let now = acceptor.proxy.clock.now();
    let request_id = RequestId::new(now.wall);
    let seen = glimpse(wire.ahead());
    let bytes = last_answer(denial, seen, request_id, now.wall);
    let (method, path) = (seen.method.to_owned(), seen.path.to_owned());
    let written = wire.write_all(&bytes).await;
    let status = denial.fault().status();
    let elapsed = acceptor.since(now);
    acceptor.count_refused(denial.fault(), elapsed);
    if acceptor.proxy.access.wants(status) {
        let line = Line {
            request_id: &request_id.0.to_string(),
            // As that of a request which brings none.
            trace_id: request_id.0.simple(),
            method: &method,
            path: &path,
            route: "",
            status,
            outcome: Outcome::Denied,
            address: connection.client(),
            backend_failure: "",
            elapsed,
        };
        line.write();
    }
    match written {
        Ok(()) => say_no_more(wire, connection).await,
        Err(error) => tracing::debug!(%error, "the client did not take the answer"),
    }
}

/// Ends our side of the connection. What the client still sends is read for a while, because closing a socket with
/// unread bytes in it, or with bytes on their way to it, would take the last answer away from the client.
async fn say_no_more(wire: &mut Wire, connection: &Connection) {
    connection.survive(Stage::Linger);
    if let Err(error) = wire.shutdown().await {
        tracing::debug!(%error, "the client did not take the answer");
        return;
    }
    if tokio::time::timeout(REST_WITHIN, linger(wire, connection)).await.is_err() {
        tracing::debug!(peer = %connection.peer, "a client went on sending after its last answer");
    }
}

async fn linger(wire: &mut Wire, connection: &Connection) {
    let mut left = LINGER_BYTES;
    loop {
        wire.skip(usize::MAX);
        match wire.more().await {
            Ok(n @ 1..) if n < left => left -= n,
            _ => return,
        }
        // The deadline of this stage is for a pause.
        connection.enter(Stage::Linger);
    }
}
