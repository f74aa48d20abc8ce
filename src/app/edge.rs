//! The proxy's own runtime, its listeners and the table of its connections.

use super::{Base, StartError, parts};
use crate::config::Config;
use crate::proxy::Proxy;
use crate::proxy::connection::Deadlines;
use crate::proxy::connections::{Bounds, Connections};
use crate::proxy::listen::{Acceptor, HeadLimits};
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// How long a client may go on sending after a last answer.
const LINGER: Duration = Duration::from_secs(2);
/// Most header fields that Pingora takes.
const FIELDS_MAX: usize = 256;
/// Idle connections to backends that are kept, per worker thread of the proxy.
const IDLE_UPSTREAM_CONNECTIONS: usize = 2_048;

/// What accepts and serves requests.
pub(super) struct Edge {
    pub(super) runtime: Runtime,
    /// Where it listens.
    pub(super) addresses: Vec<SocketAddr>,
    /// Ends when the last connection is closed.
    pub(super) all_closed: mpsc::Receiver<()>,
}

/// Listens and accepts until `stopped` turns true.
pub(super) fn open(
    config: &Config,
    base: &Base,
    proxy: Proxy,
    stopped: watch::Receiver<bool>,
) -> Result<Edge, StartError> {
    let runtime = parts::runtime("keygate-proxy", parts::threads(config.proxy.threads))?;
    let (open, all_closed) = mpsc::channel(1);
    let acceptor = Acceptor {
        proxy: Arc::new(http_proxy(&Arc::new(server_conf(config)), proxy)),
        connections: Connections::new(deadlines(config), bounds(config), Arc::clone(&base.metrics)),
        limits: head_limits(config),
        metrics: Arc::clone(&base.metrics),
        clock: Arc::clone(&base.clock),
        stop: stopped,
        open,
    };
    runtime.spawn(Arc::clone(&acceptor.connections).watch(acceptor.stop.clone()));
    let mut addresses = Vec::new();
    for address in &config.proxy.listen {
        let listener = runtime.block_on(parts::listen("proxy", *address))?;
        addresses.push(listener.local_addr().unwrap_or(*address));
        runtime.spawn(acceptor.clone().run(listener));
    }
    Ok(Edge { runtime, addresses, all_closed })
}

fn server_conf(config: &Config) -> ServerConf {
    let threads = parts::threads(config.proxy.threads);
    ServerConf {
        threads,
        upstream_keepalive_pool_size: IDLE_UPSTREAM_CONNECTIONS * threads,
        ..ServerConf::default()
    }
}

fn deadlines(config: &Config) -> Deadlines {
    Deadlines {
        first_byte: config.proxy.first_byte_timeout,
        head: config.proxy.header_timeout,
        idle: config.proxy.idle_timeout,
        body: config.proxy.body_timeout,
        write: config.proxy.write_timeout,
        linger: LINGER,
    }
}

const fn bounds(config: &Config) -> Bounds {
    Bounds {
        connections: config.proxy.max_connections,
        per_address: config.proxy.max_connections_per_address,
        body_rate: config.proxy.min_body_rate,
        bytes: config.proxy.max_bytes_in_flight,
    }
}

const fn head_limits(config: &Config) -> HeadLimits {
    HeadLimits {
        uri_bytes: config.proxy.max_uri_bytes,
        header_bytes: config.proxy.max_header_bytes,
        // More than is configured is refused later, by an answer that can keep the connection.
        fields: FIELDS_MAX,
        requests: config.proxy.max_requests_per_connection,
    }
}
