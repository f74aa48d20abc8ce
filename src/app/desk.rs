//! Where the admin API is served: like the proxy it first stops accepting, and serves those who are there until the end.

use axum::serve::{Listener, ListenerExt};
use std::io;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How much of it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Desk {
    /// All of it.
    Open,
    /// Nobody is taken in any more: another process does that.
    Closing,
    /// Calls in flight finish.
    Closed,
}

/// A listener until it is told to stop: then its socket is closed here, and nobody comes any more.
struct Until {
    listener: Option<TcpListener>,
    address: SocketAddr,
    desk: watch::Receiver<Desk>,
}

impl Listener for Until {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        if let Some(listener) = &mut self.listener {
            tokio::select! {
                biased;
                _ = self.desk.wait_for(|desk| *desk > Desk::Open) => {}
                accepted = Listener::accept(listener) => return accepted,
            }
        }
        self.listener = None;
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Serves until the desk is closed and the last call is answered.
pub(super) async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    router: axum::Router,
    desk: watch::Receiver<Desk>,
) {
    let mut closed = desk.clone();
    let until = Until { listener: Some(listener), address, desk }.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "an admin connection ended before it was served");
        }
    });
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let stopped = async move {
        // A sender that is gone means the same.
        let waited = closed.wait_for(|desk| *desk == Desk::Closed).await;
        drop(waited);
    };
    if let Err(error) = axum::serve(until, service).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "the admin listener ended");
    }
}
