//! Opening a connection to a server, where no more than so many requests may wait for one.
//!
//! Pingora asks for a connection here only when it has none to use again, so that a place is taken by those who really wait.
//! Must not know: requests. Without such a limit Pingora opens connections by itself.

use super::{NoServer, Upstream, take_place};
use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpStream;

/// What connecting ends with when as many as may wait already.
pub const NO_PLACE: ErrorType = ErrorType::HTTPStatus(503);

/// One request's connection to be.
pub struct Opening {
    upstream: Arc<Upstream>,
    /// Taken when the opening begins, given back when the connection stands or this is dropped.
    place: Mutex<Option<Waiting>>,
}

/// A request that waits for a connection, until this is dropped.
pub(super) struct Waiting(Arc<Upstream>);

impl Upstream {
    /// Has a connection to `peer` opened so, where not all may wait for one.
    pub fn opening(self: &Arc<Self>, peer: &mut HttpPeer) -> Option<Arc<Opening>> {
        if self.settings.most.pending == usize::MAX {
            return None;
        }
        let opening = Arc::new(Opening { upstream: Arc::clone(self), place: Mutex::default() });
        peer.options.custom_l4 = Some(Arc::clone(&opening) as _);
        Some(opening)
    }

    /// Lets a request wait for a connection, if there is room.
    pub(super) fn wait(self: &Arc<Self>) -> Result<Waiting, NoServer> {
        if take_place(&self.pending, self.settings.most.pending) {
            return Ok(Waiting(Arc::clone(self)));
        }
        Err(NoServer::Pending)
    }
}

// === impl Opening ===

impl Opening {
    /// A connection stands, this or another: the request waits no longer.
    pub fn is_done(&self) {
        let waited = self.place().take();
        drop(waited);
    }

    fn place(&self) -> MutexGuard<'_, Option<Waiting>> {
        // A place is whole whatever happened to the thread that held it.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Connect for Opening {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "a server without an address");
        };
        let place = self.upstream.wait().map_err(|why| Error::explain(NO_PLACE, why.as_str()))?;
        *self.place() = Some(place);
        let within = self.upstream.settings.timeouts.connect;
        match tokio::time::timeout(within, TcpStream::connect(address)).await {
            Ok(connected) => connected.or_err(ErrorType::ConnectError, "connecting").map(Stream::from),
            Err(_) => Error::e_explain(ErrorType::ConnectTimedout, "timeout connecting"),
        }
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("upstream", &self.upstream.settings.name).finish_non_exhaustive()
    }
}

// === impl Waiting ===

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}
