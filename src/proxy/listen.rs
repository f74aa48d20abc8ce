//! Accepting connections: the table takes them in, a task serves each, the last to go ends the drain at shutdown.
//!
//! Pingora's own accept loop has no deadline for a request's head and always sleeps its whole grace period when it
//! stops; this one stops as soon as the last request is answered.

use super::connections::Connections;
use super::http1;
use super::service::Proxy;
use super::wire::Wire;
use crate::clock::Clock;
use crate::metrics::Metrics;
use pingora::apps::HttpServerApp;
use pingora::proxy::HttpProxy;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// How long a failed accept (no descriptors left) rests before it tries again.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// How large a head may be before any of it is understood.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// Bytes of all header fields.
    pub header_bytes: usize,
    /// Number of header fields.
    pub fields: usize,
    /// Requests of one connection.
    pub requests: u64,
}

/// Accepts on one listener for as long as the gateway runs.
#[derive(Clone)]
pub struct Acceptor {
    /// What serves requests.
    pub proxy: Arc<HttpProxy<Proxy>>,
    /// The table of connections.
    pub connections: Arc<Connections>,
    /// Sizes.
    pub limits: HeadLimits,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
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
                Ok((stream, peer)) => self.take_in(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
        drop(listener);
        self.proxy.http_cleanup().await;
    }

    fn take_in(&self, stream: TcpStream, peer: SocketAddr) {
        // An answer's head and body may be two small writes; the second must not wait for the first's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it was served");
            return;
        }
        let registered = match self.connections.register(peer) {
            Ok(registered) => registered,
            Err(refused) => {
                self.metrics.connections_refused.with_label_values(&[refused.as_str()]).inc();
                return;
            }
        };
        let acceptor = self.clone();
        tokio::spawn(async move {
            let connection = registered.connection();
            let wire = Box::new(Wire::new(stream, Arc::clone(connection)));
            http1::serve(&acceptor, wire, connection).await;
        });
    }
}
