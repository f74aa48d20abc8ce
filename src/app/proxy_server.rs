//! The proxy's runtime, its listeners and its table of connections.

use super::upgrade::{ListenerFds, ListenerKind};
use super::watched::WatchedFiles;
use super::{CoreServices, StartError, components, tls};
use crate::config::Config;
use crate::keyring::Keyring;
use crate::policy::keys::authorize::check_active;
use crate::policy::keys::denial::Denial;
use crate::proxy::connection::table::{ConnectionLimits, ConnectionTable, KeyCheck};
use crate::proxy::connection::{CloseReason, Deadlines};
use crate::proxy::server::listen::{Acceptor, HeadLimits, ListenerProtocol};
use crate::proxy::{Phases, Proxy};
use crate::server_tls::{Certificates, TlsContext};
use pingora::apps::HttpServerOptions;
use pingora::connectors::TransportConnector;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// How long a client may go on sending after a last answer.
const LINGER: Duration = Duration::from_secs(2);
/// How often the gateway looks for holds that are over.
const EXPIRE_EVERY: Duration = Duration::from_millis(250);
/// Most header fields that Pingora accepts.
const FIELDS_MAX: usize = 256;
/// Idle connections to backends that are kept, per worker thread.
const IDLE_UPSTREAM_CONNECTIONS: usize = 2_048;

/// Accepts and serves requests.
pub(super) struct ProxyServer {
    pub(super) runtime: Runtime,
    /// Its addresses.
    pub(super) addresses: Vec<SocketAddr>,
    /// Its addresses for TLS, and for HTTP/2 without TLS.
    pub(super) addresses_tls: Vec<SocketAddr>,
    pub(super) addresses_h2c: Vec<SocketAddr>,
    /// Where proxies ask for decisions.
    pub(super) addresses_decide: Vec<SocketAddr>,
    /// The TLS context, if there are TLS listeners.
    tls: Option<Arc<TlsContext>>,
    /// Ends when the last connection is closed.
    pub(super) all_closed: mpsc::Receiver<()>,
    /// The listeners and what accepts from them, until that begins.
    acceptors: Vec<(Acceptor, TcpListener)>,
}

impl ProxyServer {
    /// Starts accepting connections, until the gateway stops. Returns the TLS context.
    pub(super) fn accept(&mut self) -> Option<Arc<Certificates>> {
        for (acceptor, listener) in self.acceptors.drain(..) {
            self.runtime.spawn(acceptor.run(listener));
        }
        self.tls.take().map(|tls| Arc::clone(tls.certificates()))
    }
}

/// Prepares accepting, including every fallible step. It ends when `stopped` turns true.
pub(super) fn open(
    config: &Config,
    core: &CoreServices,
    proxy: Proxy,
    keyring: &Arc<Keyring>,
    listener_fds: &ListenerFds,
    files: &WatchedFiles,
    stopped: watch::Receiver<bool>,
) -> Result<ProxyServer, StartError> {
    let runtime = components::runtime("keygate-proxy", components::threads(config.proxy.threads))?;
    let (open, all_closed) = mpsc::channel(1);
    let tls = tls::of_proxy(config, &core.metrics)?;
    let proxy = Arc::new(proxy);
    let key_check = (config.proxy.revocation_check, key_check(core, keyring));
    let acceptor = Acceptor {
        protocol: ListenerProtocol::Http1,
        proxy_protocol: config.proxy.proxy_protocol,
        phases: Arc::new(http_proxy_of(config, Phases(Arc::clone(&proxy)))),
        proxy,
        connector: Arc::new(TransportConnector::new(None)),
        connections: ConnectionTable::new(
            deadlines(config),
            bounds(config),
            key_check,
            Arc::clone(&core.metrics),
        ),
        limits: head_limits(config),
        stop: stopped,
        open,
    };
    runtime.spawn(Arc::clone(&acceptor.connections).watch(acceptor.stop.clone()));
    if !config.decide.listen.is_empty() {
        runtime.spawn(expire_holds(Arc::clone(&acceptor.proxy), acceptor.stop.clone()));
    }
    let mut acceptors = Vec::new();
    let mut listen_at = |kind, places: &[SocketAddr], protocol: &ListenerProtocol| {
        let mut found = Vec::with_capacity(places.len());
        for address in places {
            let listener = listener_fds.listen(kind, *address, runtime.handle())?;
            found.push(listener.local_addr().unwrap_or(*address));
            acceptors.push((Acceptor { protocol: protocol.clone(), ..acceptor.clone() }, listener));
        }
        Ok::<_, StartError>(found)
    };
    let addresses = listen_at(ListenerKind::Http1, &config.proxy.listen, &ListenerProtocol::Http1)?;
    let addresses_h2c = listen_at(ListenerKind::H2c, &config.proxy.listen_h2c, &ListenerProtocol::Http2)?;
    let addresses_decide = listen_at(ListenerKind::Decide, &config.decide.listen, &ListenerProtocol::Decide)?;
    let mut addresses_tls = Vec::new();
    if let Some(tls) = &tls {
        let spoken = ListenerProtocol::Tls(Arc::clone(tls));
        addresses_tls = listen_at(ListenerKind::Tls, &config.proxy.listen_tls, &spoken)?;
        runtime.spawn(Arc::clone(tls).follow());
        tls::watch("proxy.certificates", tls, files);
        let tls = Arc::clone(tls);
        let look = move || tls.look_at_client_ca().map_err(|error| error.to_string());
        files.add("proxy.client_ca_file", look);
    }
    drop(acceptor);
    Ok(ProxyServer {
        runtime,
        addresses,
        addresses_tls,
        addresses_h2c,
        addresses_decide,
        tls,
        all_closed,
        acceptors,
    })
}

/// Ends what applications hold and do not settle in time. What is left when the gateway stops ends when the proxy is dropped.
async fn expire_holds(proxy: Arc<Proxy>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(EXPIRE_EVERY);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            _ = ticks.tick() => proxy.applications.holds.expire(proxy.clock.now().steady_ns),
        }
    }
}

fn http_proxy_of(config: &Config, proxy: Phases) -> HttpProxy<Phases> {
    let mut http = http_proxy(&Arc::new(server_conf(config)), proxy);
    let mut options = HttpServerOptions::default();
    // Otherwise Pingora refuses it without a body; here it is refused like any other unsupported request.
    options.allow_connect_method_proxying = true;
    http.server_options = Some(options);
    http
}

/// Whether the key of a running request is still valid.
fn key_check(core: &CoreServices, keyring: &Arc<Keyring>) -> KeyCheck {
    let (clock, ring) = (Arc::clone(&core.clock), Arc::clone(keyring));
    Box::new(move |known| {
        let at = clock.now().wall;
        let Some(entry) = ring.current(known, at) else { return Some(CloseReason::KeyGone) };
        match check_active(&entry.key, at) {
            Ok(()) => None,
            Err(Denial::KeyExpired) => Some(CloseReason::KeyExpired),
            Err(_) => Some(CloseReason::KeyInactive),
        }
    })
}

fn server_conf(config: &Config) -> ServerConf {
    let threads = components::threads(config.proxy.threads);
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
        last_request: config.proxy.drain_idle,
    }
}

fn bounds(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        connections: components::max_connections(config),
        per_address: config.proxy.max_connections_per_address,
        body_rate: config.proxy.min_body_rate,
        bytes: config.proxy.max_bytes_in_flight,
    }
}

const fn head_limits(config: &Config) -> HeadLimits {
    HeadLimits {
        uri_bytes: config.proxy.max_uri_bytes,
        header_bytes: config.proxy.max_header_bytes,
        // Requests above the configured number are refused later, by an answer that can keep the connection.
        fields: FIELDS_MAX,
        requests: config.proxy.max_requests_per_connection,
        streams: config.proxy.max_http2_streams,
    }
}
