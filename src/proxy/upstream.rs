//! Backends: which server gets a request, and how it is spoken to.
//!
//! Must not know: keys, limits. A server that cannot be reached is passed over for the next one, as long as nothing of
//! the request has been sent.

use arc_swap::ArcSwap;
use pingora::upstreams::peer::HttpPeer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A group of servers.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in the config.
    pub name: Box<str>,
    servers: Box<[(Box<str>, u16)]>,
    addresses: ArcSwap<Vec<Server>>,
    next: AtomicUsize,
    timeouts: Timeouts,
}

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The same as text, for headers and records.
    pub text: Arc<str>,
}

/// How long a backend may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To accept a connection.
    pub connect: Duration,
    /// Between two reads.
    pub read: Duration,
    /// For one write.
    pub write: Duration,
    /// An idle connection is kept for reuse this long; keep it below the server's own keep-alive time.
    pub idle: Duration,
}

impl Upstream {
    /// A group of `servers` (host, port). Its names are looked up by [`Upstream::resolve`].
    pub fn new(name: &str, servers: Box<[(Box<str>, u16)]>, timeouts: Timeouts) -> Self {
        let addresses = ArcSwap::from_pointee(Vec::new());
        Self { name: name.into(), servers, addresses, next: AtomicUsize::new(0), timeouts }
    }

    /// Looks the servers' names up and uses what is found from now on. A name that cannot be looked up is left out,
    /// and while none can the addresses found before stay in use. Answers the names that failed.
    pub async fn resolve(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut failed = Vec::new();
        for (host, port) in &self.servers {
            match tokio::net::lookup_host((&**host, *port)).await {
                Ok(addresses) => found.extend(addresses.map(Server::at)),
                Err(error) => failed.push(format!("{host}: {error}")),
            }
        }
        if !found.is_empty() && found != **self.addresses.load() {
            self.addresses.store(Arc::new(found));
        }
        failed
    }

    /// Whether every server is named by its address, so that there is nothing to look up again.
    pub fn is_static(&self) -> bool {
        self.servers.iter().all(|(host, _)| host.parse::<std::net::IpAddr>().is_ok())
    }

    /// The place in the round at which a new request begins.
    pub fn start(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The server for the `attempt`-th try (from 0) of a request that began at `start`; none when all were tried.
    pub fn server(&self, start: usize, attempt: usize) -> Option<Server> {
        let addresses = self.addresses.load();
        if attempt >= addresses.len() {
            return None;
        }
        addresses.get(start.wrapping_add(attempt) % addresses.len()).cloned()
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.addresses.load().len()
    }

    /// Whether there is no address at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How Pingora is to speak to `server`.
    pub fn peer(&self, server: &Server) -> Box<HttpPeer> {
        let mut peer = HttpPeer::new(server.address, false, String::new());
        peer.options.connection_timeout = Some(self.timeouts.connect);
        peer.options.total_connection_timeout = Some(self.timeouts.connect);
        peer.options.read_timeout = Some(self.timeouts.read);
        peer.options.write_timeout = Some(self.timeouts.write);
        peer.options.idle_timeout = Some(self.timeouts.idle);
        Box::new(peer)
    }
}

impl Server {
    fn at(address: SocketAddr) -> Self {
        Self { address, text: address.to_string().into() }
    }
}
