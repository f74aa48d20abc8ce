//! Opens a connection to a server, if the number of requests that wait for one is limited, or for a tunnel.
//!
//! Pingora asks for a connection here only if it has none to reuse, so only requests that really wait count.
//!
//! Must not know: requests. In all other cases Pingora opens connections itself.

use super::{NoServer, Upstream, take_place};
use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The error when too many requests wait already.
pub const NO_PLACE: ErrorType = ErrorType::HTTPStatus(503);

/// The permit of one request to open a connection.
pub struct ConnectPermit {
    upstream: Arc<Upstream>,
    /// Whether it is for a tunnel.
    is_tunnel: bool,
    /// Taken when opening begins, released when the connection is open or this is dropped.
    place: Mutex<Option<ConnectWaitGuard>>,
}

/// A request that waits for a connection, until this is dropped.
pub(super) struct ConnectWaitGuard(Arc<Upstream>);

/// A connection for a request that asks for a tunnel.
///
/// Pingora ends a tunnel right after it has begun if it reads the backend's 101 before it has noted that the request has no
/// body, and the order of the two is not defined. So the first read after a write returns pending once, and everything else
/// that is due happens first.
#[derive(Debug)]
struct TunnelStream {
    stream: TcpStream,
    has_written: bool,
}

impl Upstream {
    /// Makes Pingora open a connection to `peer` this way, if waiting is limited or for a tunnel.
    pub fn connect_permit(
        self: &Arc<Self>,
        peer: &mut HttpPeer,
        is_tunnel: bool,
    ) -> Option<Arc<ConnectPermit>> {
        if self.settings.most.pending == usize::MAX && !is_tunnel {
            return None;
        }
        let opening =
            Arc::new(ConnectPermit { upstream: Arc::clone(self), is_tunnel, place: Mutex::default() });
        peer.options.custom_l4 = Some(Arc::clone(&opening) as _);
        Some(opening)
    }

    /// Lets a request wait for a connection, if there is room.
    pub(super) fn wait(self: &Arc<Self>) -> Result<ConnectWaitGuard, NoServer> {
        if take_place(&self.pending, self.settings.most.pending) {
            return Ok(ConnectWaitGuard(Arc::clone(self)));
        }
        Err(NoServer::Pending)
    }
}

// === impl ConnectPermit ===

impl ConnectPermit {
    /// A connection is open, this or another: the request no longer waits.
    pub fn finish(&self) {
        let waited = self.place().take();
        drop(waited);
    }

    fn place(&self) -> MutexGuard<'_, Option<ConnectWaitGuard>> {
        // The permit is valid whatever happened to the thread that held the lock.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Connect for ConnectPermit {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "upstream server has no address");
        };
        let place = self.upstream.wait().map_err(|why| Error::explain(NO_PLACE, why.as_str()))?;
        *self.place() = Some(place);
        let within = self.upstream.settings.timeouts.connect;
        match tokio::time::timeout(within, TcpStream::connect(address)).await {
            Ok(connected) => {
                let stream = connected.or_err(ErrorType::ConnectError, "connecting")?;
                if !self.is_tunnel {
                    return Ok(Stream::from(stream));
                }
                let stream = TunnelStream { stream, has_written: false };
                Ok(Stream::from(VirtualSocketStream::new(Box::new(stream))))
            }
            Err(_) => Error::e_explain(ErrorType::ConnectTimedout, "timeout connecting"),
        }
    }
}

impl fmt::Debug for ConnectPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectPermit")
            .field("upstream", &self.upstream.settings.name)
            .finish_non_exhaustive()
    }
}

// === impl TunnelStream ===

impl VirtualSocket for TunnelStream {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_written) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_written = true;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// === impl ConnectWaitGuard ===

impl Drop for ConnectWaitGuard {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}
