//! Connections to servers over HTTP/1.1: opens them, keeps them while idle, and reuses them.
//!
//! Must not know: requests, and the bytes that a connection carries. TLS connections are opened by Pingora's
//! connector, as for Pingora's own requests.
//!
//! *Invariant:* a connection carries one request at a time. It is reused only for upstreams with the same connection
//! settings.

use super::{NoServer, Server, Upstream};
use crate::proxy::connection::socket::is_local_shortage as lacks;
use crate::proxy::upstream::is_local_shortage;
use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::upstreams::peer::ALPN;
use pingora::{Error, ErrorType};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Maximum number of idle connections per server.
const IDLE_MAX: usize = 4_096;

/// A connection to a server.
pub enum UpstreamConnection {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Stream),
}

/// Why a connection to a server could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Too many requests wait for a connection already.
    Pending,
    /// This machine has no descriptors, ports or memory left.
    LocalShortage,
    /// TCP connect timed out.
    Timeout,
    /// The TLS handshake timed out.
    TlsTimeout,
    /// The connection was refused or broke off.
    Failed,
}

/// Idle connections to a server; the most recently used is last.
#[derive(Default)]
pub(super) struct IdleConnections(Mutex<Vec<IdleConnection>>);

struct IdleConnection {
    connection: UpstreamConnection,
    /// Identifies the connection settings, see `UpstreamProtocol::group`.
    group: u64,
    since: Instant,
}

// === impl Upstream ===

impl Upstream {
    /// An idle connection to `server`, if there is one.
    pub fn idle_connection(&self, server: &Server) -> Option<UpstreamConnection> {
        server.idle.take(self.settings.protocol.group(), self.settings.timeouts.idle)
    }

    /// Opens a connection to `server` for HTTP/1.1. `left` limits the time to the rest of the request's timeout.
    pub async fn connect(
        self: &Arc<Self>,
        server: &Server,
        connector: &TransportConnector,
        left: Option<Duration>,
    ) -> Result<UpstreamConnection, ConnectError> {
        let _waits = self.wait().map_err(|_: NoServer| ConnectError::Pending)?;
        let within = |span: Duration| left.map_or(span, |left| span.min(left));
        if self.settings.protocol.is_tls() {
            let mut peer = self.peer(server);
            peer.options.alpn = ALPN::H1;
            let options = &mut peer.options;
            options.connection_timeout = options.connection_timeout.map(within);
            options.total_connection_timeout = options.total_connection_timeout.map(within);
            let connected = connector.new_stream(&*peer).await;
            return connected.map(UpstreamConnection::Tls).map_err(|error| {
                server.note_connect_error(cause_of(&error));
                ConnectError::of(&error)
            });
        }
        let connecting = TcpStream::connect(server.address);
        let Ok(connected) = tokio::time::timeout(within(self.settings.timeouts.connect), connecting).await
        else {
            return Err(ConnectError::Timeout);
        };
        let stream = connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        stream.map(UpstreamConnection::Plain).map_err(|error| {
            let is_shortage = lacks(&error);
            server.note_connect_error(error.to_string());
            if is_shortage { ConnectError::LocalShortage } else { ConnectError::Failed }
        })
    }

    /// Keeps a connection for later requests, unless the idle timeout is zero. If the server has been removed
    /// meanwhile, the connection closes with it.
    pub fn keep_connection(&self, server: &Server, connection: UpstreamConnection) {
        if !self.settings.timeouts.idle.is_zero() {
            server.idle.put(self.settings.protocol.group(), connection);
        }
    }

    /// Closes connections that were idle for too long, or that the server has closed.
    pub(super) fn close_idle_connections(&self) {
        for member in self.all_members() {
            member.server.idle.close_old(self.settings.timeouts.idle);
        }
    }
}

// === impl IdleConnections ===

impl IdleConnections {
    fn take(&self, group: u64, max_age: Duration) -> Option<UpstreamConnection> {
        loop {
            let mut idle = self.lock().pop()?;
            // A connection of another group, too old or closed is dropped; the next one is tried.
            if idle.group == group && idle.since.elapsed() < max_age && idle.connection.probe_open() {
                return Some(idle.connection);
            }
        }
    }

    fn put(&self, group: u64, connection: UpstreamConnection) {
        let idle = IdleConnection { connection, group, since: Instant::now() };
        let mut all = self.lock();
        if all.len() < IDLE_MAX {
            all.push(idle);
        }
    }

    fn close_old(&self, max_age: Duration) {
        let closed: Vec<_> = {
            let mut all = self.lock();
            all.extract_if(.., |idle| idle.since.elapsed() >= max_age || !idle.connection.probe_open())
                .collect()
        };
        // Connections are closed after the lock is released.
        drop(closed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        // The list is valid even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl UpstreamConnection ===

impl UpstreamConnection {
    /// Whether the connection is open and has nothing to read, as an idle one should.
    fn probe_open(&mut self) -> bool {
        match self {
            Self::Plain(stream) => {
                matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Tls(stream) => {
                let (mut byte, mut context) = ([0], Context::from_waker(Waker::noop()));
                Pin::new(stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }
}

impl AsyncRead for UpstreamConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for UpstreamConnection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

// === impl ConnectError ===

/// What an error of Pingora's connector says at its root, for the log.
pub(in crate::proxy) fn cause_of(error: &Error) -> String {
    let kind = error.root_etype().as_str();
    let mut root: &dyn std::error::Error = error.root_cause();
    while let Some(deeper) = root.source() {
        root = deeper;
    }
    // Pingora's own error names its type, which is said already.
    if root.is::<Error>() { kind.to_owned() } else { format!("{kind}: {root}") }
}

impl ConnectError {
    /// The reason for an error of Pingora.
    pub fn of(error: &Error) -> Self {
        // Pingora uses one error type for both timeouts; only the message differs.
        let in_handshake =
            error.context.as_ref().is_some_and(|context| !context.as_str().starts_with("timeout "));
        match &error.etype {
            etype if *etype == super::NO_PLACE => Self::Pending,
            etype if is_local_shortage(etype) => Self::LocalShortage,
            ErrorType::ConnectTimedout if in_handshake => Self::TlsTimeout,
            ErrorType::ConnectTimedout => Self::Timeout,
            _ => Self::Failed,
        }
    }
}
