//! One HTTP/2 connection: each stream is a request of its own. Limits apply to the memory of all streams together.

use super::listen::Acceptor;
use crate::proxy::connection::h1_stream::H1ClientStream;
use crate::proxy::connection::h2_stream::H2ClientStream;
use crate::proxy::connection::{CloseReason, Connection, Stage};
use crate::proxy::exchange::ext_authz;
use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use pingora::apps::HttpServerApp;
use std::sync::{Arc, Mutex, PoisonError};

/// Response bytes of a stream that may wait for the client's flow control window.
const SEND_BUFFER: usize = 64 * 1024;
/// Flow control windows for request bodies: of a stream, and of a connection.
const STREAM_WINDOW: u32 = 64 * 1024 - 1;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

type Streams = h2::server::Connection<Box<H1ClientStream>, Bytes>;

/// Serves streams until the client disconnects, the connection is closed, or the gateway stops.
pub(in crate::proxy) async fn serve(
    acceptor: &Acceptor,
    client_stream: Box<H1ClientStream>,
    connection: &Arc<Connection>,
) {
    // The HTTP/2 layer reads the bytes unchanged. The client stream only enforces the deadlines.
    connection.mark_tunnel();
    let mut streams = match options(acceptor).handshake(client_stream).await {
        Ok(streams) => streams,
        Err(error) => {
            tracing::debug!(%error, "HTTP/2 handshake failed");
            return;
        }
    };
    let mut stop = acceptor.stop.clone();
    let active = Arc::default();
    let (mut served, mut leaving) = (0, false);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop), if !leaving => {
                streams.graceful_shutdown();
                leaving = true;
                continue;
            }
            () = connection.closed() => break,
            accepted = streams.accept() => accepted,
        };
        match accepted {
            Some(Ok((request, respond))) => {
                served += 1;
                if served >= acceptor.limits.requests && !leaving {
                    streams.graceful_shutdown();
                    leaving = true;
                }
                let busy = ActiveStreamGuard::new(&active, connection);
                let connection = Arc::clone(connection);
                tokio::spawn(serve_stream(acceptor.clone(), request, respond, connection, busy));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "HTTP/2 connection closed");
                return;
            }
            None => return,
        }
    }
    say_goodbye(streams, connection).await;
}

/// Sends GOAWAY to a client whose connection is closed between requests. It names the last stream that was served, so
/// that the client can retry later ones (RFC 9113, 6.8).
async fn say_goodbye(mut streams: Streams, connection: &Connection) {
    if !connection.close_reason().is_some_and(CloseReason::can_take_leave) {
        return;
    }
    connection.clear_close_reason(Stage::Linger);
    streams.abrupt_shutdown(Reason::NO_ERROR);
    // Limited by the deadline of the stage.
    while let Some(Ok(_)) = streams.accept().await {}
}

async fn serve_stream(
    acceptor: Acceptor,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    connection: Arc<Connection>,
    _busy: ActiveStreamGuard,
) {
    let registered = acceptor.connections.register_stream(&connection);
    let stream = registered.connection();
    if acceptor.decides() {
        let decided = ext_authz::serve(&acceptor.proxy, acceptor.limits.fields, request, respond, stream);
        tokio::select! {
            biased;
            () = stream.closed() => {}
            () = decided => {}
        }
        return;
    }
    let session = H2ClientStream::session(request, respond, Arc::clone(stream));
    tokio::select! {
        biased;
        // Dropping the session resets the stream.
        () = stream.closed() => {}
        _ = acceptor.phases.process_new_http(session, &acceptor.stop) => {}
    }
}

fn options(acceptor: &Acceptor) -> Builder {
    let limits = acceptor.limits;
    let mut options = Builder::new();
    // A head somewhat too large is refused by Keygate with the error envelope; h2 refuses only much larger ones, with
    // an empty 431. h2 adds 32 bytes per field, and HTTP/2 may split cookies that are one field in HTTP/1.1.
    let header_bytes = u32::try_from(2 * limits.uri_bytes + 4 * limits.header_bytes).unwrap_or(u32::MAX);
    options
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(header_bytes)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER);
    options
}

/// Counts a stream that is being served. With the first one the connection is busy, with the last one it becomes
/// idle.
struct ActiveStreamGuard {
    /// Number of streams. Locked while the stage of the connection is set, so that the last change wins.
    active: Arc<Mutex<usize>>,
    connection: Arc<Connection>,
}

impl ActiveStreamGuard {
    fn new(active: &Arc<Mutex<usize>>, connection: &Arc<Connection>) -> Self {
        let busy = Self { active: Arc::clone(active), connection: Arc::clone(connection) };
        busy.count(|active| active + 1);
        busy
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *active;
        *active = change(before);
        match (before, *active) {
            (0, _) => self.connection.enter(Stage::Request),
            (_, 0) => self.connection.enter(Stage::Idle),
            _ => {}
        }
    }
}

impl Drop for ActiveStreamGuard {
    fn drop(&mut self) {
        self.count(|active| active - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::connection::{ConnectionDefaults, Deadlines};
    use std::time::Duration;

    #[test]
    fn a_connection_with_a_stream_waits_for_nothing_however_the_others_come_and_go() {
        let hour = Duration::from_hours(1);
        let deadlines = Deadlines {
            first_byte: hour,
            head: hour,
            idle: hour,
            body: hour,
            write: hour,
            linger: hour,
            last_request: hour,
        };
        let shared = Arc::new(ConnectionDefaults::new(deadlines, 0, 0));
        let peer = "192.0.2.1:1".parse().expect("an address");
        let connection = Arc::new(Connection::new(peer, false, &shared));
        let active = Arc::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        let busy = ActiveStreamGuard::new(&active, &connection);
                        assert_eq!(connection.rank(), None, "it is being served");
                        drop(busy);
                    }
                });
            }
        });
        assert!(connection.rank().is_some(), "it waits for its next request");
    }
}
