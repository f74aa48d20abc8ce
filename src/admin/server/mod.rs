//! The admin listener, with or without TLS, and its Unix socket: HTTP/1.1 with bounded connections and deadlines.
//!
//! Must not know: what any call does. Requests are parsed strictly (`stream`); `table` decides which connection is closed
//! for a new one. HTTP/2 is not supported here: administration does not need it, and its streams and windows would have to
//! be limited as well.

mod socket;
mod stream;
mod table;

use super::caller::{LocalCaller, OverTls};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::server_tls::TlsContext;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use stream::AdminClientStream;
use table::{AdminCloseReason, AdminConnectionGuard, AdminConnectionTable};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_rustls::server::TlsStream;

/// Pause after a failed accept (no descriptors left).
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How often the file of the Unix socket is looked after.
const LOOK_AFTER_SOCKET: Duration = Duration::from_secs(2);

pub use socket::AdminSocketListener;

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
    /// TLS of the listener; none: it speaks plain HTTP.
    pub tls: Option<Arc<TlsContext>>,
    /// Limits for clients.
    pub limits: ServerLimits,
    /// For the date of answers written here.
    pub clock: Arc<dyn Clock>,
    /// Counts connections.
    pub metrics: Arc<Metrics>,
    /// The state.
    pub state: watch::Receiver<ServerState>,
}

/// A new connection.
enum AdminClient {
    Network(TcpStream, SocketAddr),
    Socket(UnixStream),
}

/// State shared by all connections.
struct ServerShared {
    service: TowerToHyperService<Router>,
    tls: Option<Arc<TlsContext>>,
    limits: ServerLimits,
    clock: Arc<dyn Clock>,
    table: Arc<AdminConnectionTable>,
    state: watch::Receiver<ServerState>,
}

impl AdminServer {
    /// Serves until the state is closed and the last call is answered.
    pub async fn serve(self, listener: TcpListener, socket: Option<AdminSocketListener>) {
        let Self { router, tls, limits, clock, metrics, state } = self;
        if let Some(tls) = &tls {
            tokio::spawn(Arc::clone(tls).follow());
        }
        let table = AdminConnectionTable::new(limits, metrics);
        let shared = Arc::new(ServerShared {
            service: TowerToHyperService::new(router),
            tls,
            limits,
            clock,
            table,
            state: state.clone(),
        });
        // Held by every connection: when the last one ends, the receiver does.
        let (open, mut all_closed) = mpsc::channel::<()>(1);
        let from_socket = async {
            if let Some(socket) = socket {
                accept_local(&shared, socket, state.clone(), &open).await;
            }
        };
        tokio::join!(accept(&shared, &listener, state.clone(), &open), from_socket);
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
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "admin connection closed before it was served");
                    continue;
                }
                begin(shared, AdminClient::Network(stream, peer), open);
            }
            Err(error) => rest(shared, &error, &mut is_short).await,
        }
    }
}

/// The same for the Unix socket. Connections that wait in its queue when the state changes are served, too: the kernel
/// would reset them, while those of a TCP listener go to the process that takes over.
async fn accept_local(
    shared: &Arc<ServerShared>,
    mut socket: AdminSocketListener,
    mut state: watch::Receiver<ServerState>,
    open: &mpsc::Sender<()>,
) {
    let mut is_short = false;
    let mut look = tokio::time::interval(LOOK_AFTER_SOCKET);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = state.wait_for(|state| *state > ServerState::Open) => break,
            accepted = socket.accept() => Some(accepted),
            _ = look.tick() => None,
        };
        match accepted {
            Some(Ok(stream)) => {
                is_short = false;
                begin(shared, AdminClient::Socket(stream), open);
            }
            Some(Err(error)) => rest(shared, &error, &mut is_short).await,
            None => socket.repair().await,
        }
    }
    while let Some(Ok(stream)) = socket.accept().now_or_never() {
        begin(shared, AdminClient::Socket(stream), open);
    }
}

/// After a failed accept.
async fn rest(shared: &ServerShared, error: &io::Error, is_short: &mut bool) {
    if !std::mem::replace(is_short, true) {
        tracing::warn!(%error, "cannot accept admin connections, new ones wait");
    }
    if is_out_of_resources(error) {
        shared.table.make_room();
    }
    tokio::time::sleep(ACCEPT_REST).await;
}

/// Serves a new connection, unless there is no room for it.
fn begin(shared: &Arc<ServerShared>, client: AdminClient, open: &mpsc::Sender<()>) {
    let Some(registered) = shared.table.register(client.address()) else { return };
    let (shared, open) = (Arc::clone(shared), open.clone());
    tokio::spawn(async move {
        match client {
            AdminClient::Network(stream, peer) => {
                let caller = move |request: &mut Request<Incoming>| {
                    request.extensions_mut().insert(ConnectInfo(peer));
                };
                match &shared.tls {
                    None => serve(&shared, stream, caller, registered).await,
                    Some(tls) => {
                        let caller = move |request: &mut Request<Incoming>| {
                            request.extensions_mut().insert(OverTls);
                            caller(request);
                        };
                        if let Some(stream) = encrypted(&shared, tls, stream, &registered).await {
                            serve(&shared, stream, caller, registered).await;
                        }
                    }
                }
            }
            AdminClient::Socket(stream) => {
                let user = stream.peer_cred().map_or_else(|_| "?".to_owned(), |peer| peer.uid().to_string());
                let local = LocalCaller { subject: format!("socket:{user}") };
                let caller = move |request: &mut Request<Incoming>| {
                    request.extensions_mut().insert(local.clone());
                };
                serve(&shared, stream, caller, registered).await;
            }
        }
        drop(open);
    });
}

/// Does the TLS handshake. It has as much time as a first request head. None: the connection is over.
async fn encrypted(
    shared: &ServerShared,
    tls: &TlsContext,
    stream: TcpStream,
    registered: &AdminConnectionGuard,
) -> Option<Box<TlsStream<TcpStream>>> {
    let connection = registered.connection();
    let mut state = shared.state.clone();
    let agreed = tokio::select! {
        biased;
        () = connection.evicted() => return None,
        _ = state.wait_for(|state| *state == ServerState::Closed) => return None,
        agreed = timeout(shared.limits.first_byte + shared.limits.head, tls.acceptor().accept(stream)) => agreed,
    };
    match agreed {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            connection.close(AdminCloseReason::Tls);
            None
        }
        Err(_) => {
            connection.close(AdminCloseReason::FirstByteTimeout);
            None
        }
    }
}

/// Serves one connection until it ends, is evicted, or the server stops. `caller` tells each request who sends it.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &ServerShared,
    stream: S,
    caller: impl Fn(&mut Request<Incoming>),
    registered: AdminConnectionGuard,
) {
    let connection = Arc::clone(registered.connection());
    let service = service_fn(|mut request: Request<Incoming>| {
        caller(&mut request);
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
                    tracing::debug!(%error, "admin connection ended");
                }
                return;
            }
        }
    }
}

impl AdminClient {
    /// What it counts as among addresses: all clients of the socket are one.
    const fn address(&self) -> IpAddr {
        match self {
            Self::Network(_, peer) => peer.ip(),
            Self::Socket(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// Whether the machine has no descriptors or memory for another connection.
fn is_out_of_resources(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| lacking.contains(&error))
}
