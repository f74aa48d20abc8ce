//! The admin listener: HTTP/1.1 with bounded connections and deadlines.
//!
//! Must not know: what any call does. Requests are parsed strictly (`stream`); `table` decides which connection is closed
//! for a new one. HTTP/2 is not supported here: administration does not need it, and its streams and windows would have to
//! be limited as well.

mod stream;
mod table;

use crate::clock::Clock;
use crate::metrics::Metrics;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use stream::AdminClientStream;
use table::{AdminConnectionGuard, AdminConnectionTable};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// Pause after a failed accept (no descriptors left).
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Limits and deadlines for clients of the admin listener.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections in total.
    pub connections: usize,
    /// Connections from one address; an IPv6 /64 counts as one.
    pub connections_per_address: usize,
    /// Longest time until the first byte of a new connection.
    pub first_byte: Duration,
    /// Longest time for a request head, first byte to last.
    pub head: Duration,
    /// Longest time between two requests.
    pub idle: Duration,
    /// Longest time in which a client reads nothing of its response.
    pub write: Duration,
    /// Longest request target, in bytes.
    pub uri_bytes: usize,
    /// Largest header block, in bytes.
    pub header_bytes: usize,
    /// Most header fields.
    pub header_fields: usize,
}

/// The state of the admin server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// Serving.
    Open,
    /// No new connections: another process accepts them.
    Closing,
    /// Calls in flight finish.
    Closed,
}

/// The admin server.
pub struct AdminServer {
    /// Answers requests.
    pub router: Router,
    /// Limits for clients.
    pub limits: ServerLimits,
    /// For the date of answers written here.
    pub clock: Arc<dyn Clock>,
    /// Counts connections.
    pub metrics: Arc<Metrics>,
    /// The state.
    pub state: watch::Receiver<ServerState>,
}

/// State shared by all connections.
struct ServerShared {
    service: TowerToHyperService<Router>,
    limits: ServerLimits,
    clock: Arc<dyn Clock>,
    table: Arc<AdminConnectionTable>,
    state: watch::Receiver<ServerState>,
}

impl AdminServer {
    /// Serves until the state is closed and the last call is answered.
    pub async fn serve(self, listener: TcpListener) {
        let Self { router, limits, clock, metrics, state } = self;
        let table = AdminConnectionTable::new(limits, metrics);
        let shared = Arc::new(ServerShared {
            service: TowerToHyperService::new(router),
            limits,
            clock,
            table,
            state: state.clone(),
        });
        // Held by every connection: when the last one ends, the receiver does.
        let (open, mut all_closed) = mpsc::channel::<()>(1);
        accept(&shared, &listener, state.clone(), &open).await;
        drop((listener, open));
        all_closed.recv().await;
    }
}

/// Accepts connections until the state changes.
async fn accept(
    shared: &Arc<ServerShared>,
    listener: &TcpListener,
    mut state: watch::Receiver<ServerState>,
    open: &mpsc::Sender<()>,
) {
    let mut is_short = false;
    loop {
        let accepted = tokio::select! {
            biased;
            // A dropped sender means the same.
            _ = state.wait_for(|state| *state > ServerState::Open) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                is_short = false;
                let Some(registered) = shared.table.register(peer.ip()) else { continue };
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "admin connection closed before it was served");
                    continue;
                }
                let (shared, open) = (Arc::clone(shared), open.clone());
                tokio::spawn(async move {
                    serve(&shared, stream, peer, registered).await;
                    drop(open);
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut is_short, true) {
                    tracing::warn!(%error, "cannot accept admin connections, new ones wait");
                }
                if is_out_of_resources(&error) {
                    shared.table.make_room();
                }
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Serves one connection until it ends, is evicted, or the server stops.
async fn serve(shared: &ServerShared, stream: TcpStream, peer: SocketAddr, registered: AdminConnectionGuard) {
    let connection = Arc::clone(registered.connection());
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        shared.service.call(request)
    });
    let stream =
        AdminClientStream::new(stream, Arc::clone(&connection), shared.limits, Arc::clone(&shared.clock));
    let mut http = http1::Builder::new();
    // Deadlines and the size of heads are checked by the stream. A client that closes its side still gets its response.
    http.header_read_timeout(None).half_close(true).max_headers(shared.limits.header_fields);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut state = shared.state.clone();
    let mut is_closing = false;
    loop {
        tokio::select! {
            biased;
            () = connection.evicted() => return,
            _ = state.wait_for(|state| *state == ServerState::Closed), if !is_closing => {
                is_closing = true;
                served.as_mut().graceful_shutdown();
            }
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, %peer, "admin connection ended");
                }
                return;
            }
        }
    }
}

/// Whether the machine has no descriptors or memory for another connection.
fn is_out_of_resources(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| lacking.contains(&error))
}
