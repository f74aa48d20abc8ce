//! Accepting connections, and ending them: head deadlines, idle time, the drain at shutdown.
//!
//! Pingora's own accept loop has no deadline for a request's head and always sleeps its whole grace period when it
//! stops; this one has, and stops as soon as the last request is answered.

use super::service::Proxy;
use crate::metrics::Metrics;
use pingora::apps::HttpServerApp;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::proxy::HttpProxy;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// How long a failed accept (no descriptors left) rests before it tries again.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// One client connection.
#[derive(Debug)]
pub struct Connection {
    /// The other end.
    pub peer: SocketAddr,
    in_request: AtomicBool,
}

/// Deadlines of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the head of its first request.
    pub head: Duration,
    /// Between requests, the next head included.
    pub idle: Duration,
}

/// Accepts on one listener for as long as the gateway runs.
#[derive(Clone)]
pub struct Acceptor {
    /// What serves connections.
    pub proxy: Arc<HttpProxy<Proxy>>,
    /// When they end by themselves.
    pub deadlines: Deadlines,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Turns true when the gateway stops.
    pub stop: watch::Receiver<bool>,
    /// Held by every connection: when the last is gone, its receiver ends.
    pub open: mpsc::Sender<()>,
}

impl Acceptor {
    /// Accepts until told to stop. Connections accepted so far go on.
    pub async fn run(mut self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.serve(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
        drop(listener);
        // Connections that wait for a next request end now.
        self.proxy.http_cleanup().await;
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        // An answer's head and body are two small writes; the second must not wait for the first's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it was served");
            return;
        }
        let proxy = Arc::clone(&self.proxy);
        let (deadlines, stop, open) = (self.deadlines, self.stop.clone(), self.open.clone());
        let connections = self.metrics.connections.clone();
        tokio::spawn(async move {
            connections.inc();
            serve(proxy, Box::new(L4Stream::from(stream)), peer, deadlines, stop).await;
            connections.dec();
            drop(open);
        });
    }
}

async fn serve(
    proxy: Arc<HttpProxy<Proxy>>,
    stream: Stream,
    peer: SocketAddr,
    deadlines: Deadlines,
    stop: watch::Receiver<bool>,
) {
    let connection = Arc::new(Connection { peer, in_request: AtomicBool::new(false) });
    let mut session = ServerSession::new_http1(stream);
    let mut deadline = deadlines.head;
    loop {
        session.set_connection_user_context(Some(Box::new(Arc::clone(&connection))));
        connection.in_request.store(false, Ordering::Release);
        let served = tokio::select! {
            biased;
            served = proxy.process_new_http(session, &stop) => served,
            () = connection.head_is_late(deadline) => return,
        };
        let Some((stream, settings)) = served.map(pingora::apps::ReusedHttpStream::consume) else { return };
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
        deadline = deadlines.idle;
    }
}

impl Connection {
    /// The head of a request has been read.
    pub fn head_has_arrived(&self) {
        self.in_request.store(true, Ordering::Release);
    }

    /// Returns when no head has arrived within `deadline`; never while a request is being served.
    async fn head_is_late(&self, deadline: Duration) {
        tokio::time::sleep(deadline).await;
        if self.in_request.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    }
}
