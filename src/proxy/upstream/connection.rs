//! Connections to servers over HTTP/1.1: made, kept while they are idle, and used again.
//!
//! Must not know: requests, what passes over a connection. Those inside TLS are made by Pingora's connector, as it makes
//! its own.
//!
//! *Invariant:* a connection is used by one request at a time, and never for an upstream that asks for another kind.

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

/// Most idle connections that are kept to one server.
const IDLE_MAX: usize = 4_096;

/// A connection to a server.
pub enum UpstreamConnection {
    /// In clear text.
    Plain(TcpStream),
    /// Inside TLS.
    Tls(Stream),
}

/// How connecting to a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// As many requests wait for a connection as may.
    Pending,
    /// This machine lacks what it takes.
    LocalShortage,
    /// It was not accepted in time.
    Timeout,
    /// It was accepted, and TLS was not agreed on in time.
    TlsTimeout,
    /// It was refused, or broke off.
    Failed,
}

/// Connections to a server that nobody uses, the one used last at the end.
#[derive(Default)]
pub(super) struct IdleConnections(Mutex<Vec<IdleConnection>>);

struct IdleConnection {
    connection: UpstreamConnection,
    /// What tells its kind from others.
    group: u64,
    since: Instant,
}

// === impl Upstream ===

impl Upstream {
    /// A connection to `server` that was used before, if one is left.
    pub fn idle_connection(&self, server: &Server) -> Option<UpstreamConnection> {
        server.idle.take(self.settings.protocol.group(), self.settings.timeouts.idle)
    }

    /// Makes a connection to `server`, over which HTTP/1.1 is spoken, within what is left of a request's time.
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
            return connected.map(UpstreamConnection::Tls).map_err(|error| ConnectError::of(&error));
        }
        let connecting = TcpStream::connect(server.address);
        let Ok(connected) = tokio::time::timeout(within(self.settings.timeouts.connect), connecting).await
        else {
            return Err(ConnectError::Timeout);
        };
        let stream = connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        stream
            .map(UpstreamConnection::Plain)
            .map_err(|error| if lacks(&error) { ConnectError::LocalShortage } else { ConnectError::Failed })
    }

    /// Keeps a connection for the next request, if this server is still one of ours.
    pub fn keep_connection(&self, server: &Server, connection: UpstreamConnection) {
        if !self.settings.timeouts.idle.is_zero() {
            server.idle.put(self.settings.protocol.group(), connection);
        }
    }

    /// Closes connections that have been idle for too long, or that their server has closed.
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
            // The others are as old, and go when they are looked at.
            if idle.group == group && idle.since.elapsed() < max_age && idle.connection.is_open() {
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
            all.extract_if(.., |idle| idle.since.elapsed() >= max_age || !idle.connection.is_open()).collect()
        };
        // Closing is nothing to wait for with the lock held.
        drop(closed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        // A list is whole whatever happened to the thread that held it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl UpstreamConnection ===

impl UpstreamConnection {
    /// Whether it is open and silent, as one should be that nobody uses.
    fn is_open(&mut self) -> bool {
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

impl ConnectError {
    /// What Pingora says.
    pub fn of(error: &Error) -> Self {
        // Pingora has one kind of error for both times, and says more in words.
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
