//! Backends: which server gets a request, and how Keygate connects to it.
//!
//! Must not know: keys, limits, routes. The choice uses memory only; [`maintain()`] resolves names and probes servers on
//! the I/O runtime. If no server is left, the request gets none.
//!
//! *Invariant:* the state of a server (health, requests in flight) survives a change of the group's members.

pub(super) mod attempts;
mod connect_permit;
mod connection;
mod credentials;
mod maintain;
mod probe;
mod protocol;
mod server;
mod streams;

pub use crate::model::server::HttpVersion;
pub use connect_permit::{ConnectPermit, NO_PLACE};
pub(in crate::proxy) use connection::cause_of;
pub use connection::{ConnectError, UpstreamConnection};
pub use credentials::{CredentialSet, StoredCredentials};
pub use maintain::maintain;
pub(super) use probe::is_local_shortage;
pub use probe::{HttpProbe, Probe, ServerTrial, try_servers};
pub use protocol::{BadTls, UpstreamProtocol, UpstreamTls, UpstreamTlsFiles};
pub use server::{Server, ServerFailure, ServerInFlightGuard};
pub use streams::UpstreamStream;

use crate::clock::{Clock, Now};
use crate::metrics::Metrics;
use crate::policy::upstream::balance::{Balancer, Balancing, Candidate};
use crate::policy::upstream::credential::UpstreamCredential;
use crate::policy::upstream::health::{EjectRule, ProbeRule};
use crate::policy::upstream::retry::{RetryBudget, RetryBudgetRule};
use arc_swap::ArcSwap;
use pingora::upstreams::peer::{ALPN, HttpPeer};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use streams::{APART_IDLE, StreamSlots};
use tokio::sync::Notify;

/// Separates connections that may become tunnels from others. They are not reused.
const TUNNELS: u64 = 0x7475_6e6e_656c_7300;

/// A group of servers.
pub struct Upstream {
    /// Its settings.
    pub settings: UpstreamSettings,
    /// All servers, in the order of their configured names.
    members: Mutex<Vec<ServerMember>>,
    /// The servers that may be chosen; rebuilt whenever that changes.
    server_set: ArcSwap<ServerSet>,
    turn: AtomicUsize,
    /// Number of requests so far.
    requests: AtomicU64,
    /// Requests in flight, and those of them that wait for a connection.
    in_flight: AtomicUsize,
    pending: AtomicUsize,
    budget: Mutex<RetryBudget>,
    /// Requests in flight per key, if HTTP/2 may be used.
    streams: Option<StreamSlots>,
    /// Wakes the task that readmits ejected servers.
    ejected: Notify,
    /// Triggers a look-up of the names, if there are any.
    moved: Notify,
    /// The upstream that replaced this one, and has the state of its servers. Set with `members` locked.
    successor: OnceLock<Arc<Self>>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

/// The settings of a group.
#[derive(Clone)]
pub struct UpstreamSettings {
    /// Its name in the config.
    pub name: Arc<str>,
    /// Its servers as configured.
    pub names: Box<[ServerSpec]>,
    /// Which server gets a request.
    pub balancing: Balancing,
    /// With a hash: the largest share of the mean load, in percent; 0: no bound.
    pub hash_load_percent: u32,
    /// How often names are resolved again.
    pub resolve_every: Duration,
    /// How long a server may take.
    pub timeouts: Timeouts,
    /// The protocol.
    pub protocol: UpstreamProtocol,
    /// Limits on concurrent requests.
    pub most: ConcurrencyLimits,
    /// Most attempts per request.
    pub attempts: u32,
    /// The retry budget.
    pub budget: RetryBudgetRule,
    /// Active health checks; none: off.
    pub probe: Option<Probe>,
    /// Ejection of servers that fail requests.
    pub eject: EjectRule,
    /// Credentials for the backend: a request gets the first that is for its key.
    pub credentials: Box<[UpstreamCredential]>,
    /// Those of the store, which come before them.
    pub stored: Arc<CredentialSet>,
}

/// A configured server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// A name or an address.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    /// The weight of each of its addresses.
    pub weight: u16,
}

/// Timeouts of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection.
    pub connect: Duration,
    /// From the end of the request to the first byte of the response, if less than `read`.
    pub first_byte: Option<Duration>,
    /// Between two reads.
    pub read: Duration,
    /// For one write.
    pub write: Duration,
    /// How long an idle connection is kept; should be below the server's own keep-alive timeout.
    pub idle: Duration,
    /// The whole request; none: no limit.
    pub request: Option<Duration>,
    /// A tunnel without data in either direction.
    pub tunnel: Duration,
}

/// Limits on concurrency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimits {
    /// Requests in flight.
    pub requests: usize,
    /// Requests that wait for a connection.
    pub pending: usize,
    /// Requests in flight at one server.
    pub per_server: usize,
}

/// Why a request gets no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoServer {
    /// Every server is down, ejected or tried already.
    Down,
    /// The upstream's limit of requests in flight is reached.
    Requests,
    /// The limit of requests that wait for a connection is reached.
    Pending,
    /// Every server's limit of requests in flight is reached.
    Servers,
}

/// Results for a request that may be retried: it is, or the budget is used up.
pub const RETRIES: [&str; 2] = ["sent_again", "over_budget"];

/// A request in flight at an upstream, until this is dropped.
pub struct RequestPermit(Arc<Upstream>);

/// The inputs for choosing a server.
#[derive(Clone, Copy)]
pub struct PickContext<'r> {
    /// Unpredictable bits.
    pub random: u64,
    /// The hash of the name that binds it to a server, if the group balances by it.
    pub name: u64,
    /// The servers already tried.
    pub tried: &'r [Arc<Server>],
}

/// One server of the group.
#[derive(Clone)]
struct ServerMember {
    server: Arc<Server>,
    weight: u16,
    /// The index of its configured name.
    named: usize,
}

/// The servers that may be chosen.
#[derive(Default)]
struct ServerSet {
    servers: Box<[Arc<Server>]>,
    balance: Balancer,
}

// === impl Upstream ===

impl Upstream {
    /// A group without servers until its names are resolved.
    pub fn new(settings: UpstreamSettings, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Self {
        for why in NoServer::ALL {
            metrics.upstream_unavailable.with_label_values(&[&*settings.name, why.as_str()]);
        }
        for outcome in RETRIES {
            metrics.upstream_retries.with_label_values(&[&*settings.name, outcome]);
        }
        let streams = settings.protocol.may_be_http2().then(StreamSlots::new);
        Self {
            settings,
            members: Mutex::default(),
            server_set: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            budget: Mutex::default(),
            streams,
            ejected: Notify::new(),
            moved: Notify::new(),
            successor: OnceLock::new(),
            metrics,
            clock,
        }
    }

    /// Admits a request, if there is room.
    pub fn enter(self: &Arc<Self>) -> Result<RequestPermit, NoServer> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if take_place(&self.in_flight, self.settings.most.requests) {
            return Ok(RequestPermit(Arc::clone(self)));
        }
        Err(NoServer::Requests)
    }

    /// The server for a request.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<ServerInFlightGuard, NoServer> {
        let server_set = self.server_set.load();
        let most = self.settings.most.per_server;
        // If another request takes the last place at a server meanwhile, this tries again.
        for _ in 0..=server_set.servers.len() {
            let Some(chosen) = self.choose(&server_set, context, most) else { break };
            if let Some(busy) = Server::occupy(&server_set.servers[chosen], most) {
                return Ok(busy);
            }
        }
        let full = server_set.servers.iter().any(|s| !was_tried(s, context.tried));
        if full {
            return Err(NoServer::Servers);
        }
        self.may_have_moved();
        Err(NoServer::Down)
    }

    /// A server may have moved: no connection, a broken one, or none to reuse. Triggers a look-up of its name.
    pub fn may_have_moved(&self) {
        if self.has_names() {
            self.moved.notify_one();
        }
    }

    /// Whether any server is given by name.
    fn has_names(&self) -> bool {
        self.settings.names.iter().any(|named| named.host.parse::<IpAddr>().is_err())
    }

    fn choose(&self, server_set: &ServerSet, context: &PickContext<'_>, most: usize) -> Option<usize> {
        let usable = |n: usize| {
            let server = &server_set.servers[n];
            !was_tried(server, context.tried) && server.in_flight() < most as u64
        };
        let in_flight = |n: usize| server_set.servers[n].in_flight();
        match &self.settings.balancing {
            Balancing::RoundRobin => {
                server_set.balance.round_robin(self.turn.fetch_add(1, Ordering::Relaxed), usable)
            }
            Balancing::LeastConnections => server_set.balance.least_loaded(context.random, in_flight, usable),
            Balancing::Hash(_) => server_set.balance.rendezvous(
                context.name,
                self.settings.hash_load_percent,
                in_flight,
                usable,
            ),
        }
    }

    /// Whether there is a server that is not among `tried`.
    pub fn has_another(&self, tried: &[Arc<Server>]) -> bool {
        self.server_set.load().servers.iter().any(|s| !was_tried(s, tried))
    }

    /// Takes one retry from the budget, if there is one.
    pub fn may_repeat(&self) -> bool {
        let requests = self.requests.load(Ordering::Relaxed);
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(requests, self.now().steady_ns, self.settings.budget)
    }

    /// Pingora's settings for `server`.
    pub fn peer(&self, server: &Server) -> Box<HttpPeer> {
        let timeouts = &self.settings.timeouts;
        let mut peer = self.settings.protocol.peer(server);
        peer.options.connection_timeout = Some(timeouts.connect);
        // Pingora gives the TLS handshake the same time again; together they get no more.
        let rounds = if self.settings.protocol.is_tls() { 2 } else { 1 };
        peer.options.total_connection_timeout = Some(timeouts.connect * rounds);
        peer.options.read_timeout = Some(timeouts.read);
        peer.options.write_timeout = Some(timeouts.write);
        peer.options.idle_timeout = Some(timeouts.idle);
        Box::new(peer)
    }

    /// Restricts `peer` to the connections that `stream` may use.
    pub fn choose_connections(peer: &mut HttpPeer, stream: &UpstreamStream) {
        peer.group_key = stream.group();
        if stream.is_apart() {
            peer.options.idle_timeout = peer.options.idle_timeout.map(|idle| idle.min(APART_IDLE));
        }
    }

    /// Makes `peer` open a connection that may become a tunnel: HTTP/1.1, and for this request only.
    pub fn make_tunnel(&self, peer: &mut HttpPeer) {
        peer.group_key = self.settings.protocol.group() ^ TUNNELS;
        peer.options.alpn = ALPN::H1;
        peer.options.idle_timeout = Some(Duration::ZERO);
    }

    /// A request was answered with a status below 500, up to the end of the response.
    pub fn succeeded(&self, server: &Server) {
        if server.answered() {
            tracing::info!(
                upstream = &*self.settings.name,
                server = &*server.text,
                host = &*server.host,
                "requests to upstream server succeed again"
            );
        }
    }

    /// A request failed at `server`, which may eject it.
    pub fn failed(&self, server: &Server, failure: ServerFailure) {
        let members = self.lock();
        if let Some(successor) = self.successor.get() {
            drop(members);
            return successor.failed(server, failure);
        }
        self.metrics.upstream_failures.inc();
        if !members.iter().any(|m| std::ptr::eq(Arc::as_ptr(&m.server), server)) {
            // It was removed while the request ran, with its state.
            return;
        }
        let (name, rule) = (&*self.settings.name, self.settings.eject);
        self.metrics.upstream_results.with_label_values(&[name, &server.text, failure.as_str()]).inc();
        if failure != ServerFailure::Status && server.should_log(self.now()) {
            let cause = server.take_connect_error().filter(|_| failure == ServerFailure::Connect);
            tracing::warn!(
                upstream = name,
                server = &*server.text,
                host = &*server.host,
                failure = failure.as_str(),
                cause = cause.as_deref().unwrap_or(""),
                "requests to upstream server are failing"
            );
        }
        let down = members.iter().filter(|m| !m.server.is_up()).count();
        let Some(lasts) = server.failed(self.now(), rule, down, members.len()) else { return };
        self.metrics.upstream_ejections.with_label_values(&[name, &server.text]).inc();
        tracing::warn!(
            upstream = name,
            server = &*server.text,
            last_failure = failure.as_str(),
            seconds = lasts.as_secs_f64(),
            "upstream server ejected after consecutive failures"
        );
        self.refresh(&members);
        self.ejected.notify_one();
    }

    /// Replaces `old`: takes over the state of its servers that both have, and gets the results of requests that are still
    /// running. A name that could not be resolved keeps its addresses.
    pub fn take_over(self: &Arc<Self>, old: &Self) {
        let is_tls = self.settings.protocol.is_tls();
        let mut members = self.lock();
        let known = old.lock();
        let mut next: Vec<ServerMember> = Vec::with_capacity(known.len());
        for (named, name) in self.settings.names.iter().enumerate() {
            let authority = name.authority(is_tls);
            let was = || known.iter().map(|m| &m.server).filter(|s| s.is_called(&name.host, &authority));
            let found = members.iter().filter(|m| m.named == named).map(|m| &m.server);
            let servers: Vec<_> =
                found.map(|s| was().find(|w| w.address == s.address).unwrap_or(s)).collect();
            let servers = if servers.is_empty() { was().collect() } else { servers };
            for server in servers {
                if !next.iter().any(|m| m.server.address == server.address) {
                    next.push(ServerMember { server: Arc::clone(server), weight: name.weight, named });
                }
            }
        }
        if self.settings.probe != old.settings.probe {
            // The verdict came from another kind of probe, which may not run again.
            for member in &next {
                member.server.forget_probes();
            }
        }
        *members = next;
        // Nobody else sets it; from here on, whoever locks `old` finds it.
        self.refresh(&members);
        old.successor.get_or_init(|| Arc::clone(self));
    }

    /// Removes the metrics of its servers, except of those that `successor` has.
    pub fn forget(&self, successor: Option<&Self>) {
        let kept: Vec<SocketAddr> =
            successor.map(|s| s.all_members().iter().map(|m| m.server.address).collect()).unwrap_or_default();
        for member in self.all_members().iter().filter(|m| !kept.contains(&m.server.address)) {
            self.metrics.forget_server(&self.settings.name, &member.server.text);
        }
    }

    /// Applies the result of a look-up; where it failed, that name keeps its addresses. If nothing was found at all,
    /// everything stays.
    fn apply_lookup(&self, found: &[Option<Vec<SocketAddr>>]) {
        let mut members = self.lock();
        if self.successor.get().is_some() {
            return;
        }
        let mut next: Vec<ServerMember> = Vec::with_capacity(members.len());
        for (named, addresses) in found.iter().enumerate() {
            let kept = || members.iter().filter(|m| m.named == named).map(|m| m.server.address).collect();
            for address in addresses.clone().unwrap_or_else(kept) {
                // Two names for one address are one server.
                if next.iter().any(|m| m.server.address == address) {
                    continue;
                }
                let name = &self.settings.names[named];
                let authority = name.authority(self.settings.protocol.is_tls());
                let known = members.iter().find(|m| m.server.is(address, &name.host, &authority));
                let server = known.map_or_else(
                    || {
                        let called = (&*name.host, &*authority);
                        Arc::new(Server::new(&self.settings.name, address, called, &self.metrics))
                    },
                    |m| Arc::clone(&m.server),
                );
                next.push(ServerMember { server, weight: name.weight, named });
            }
        }
        let same = next.len() == members.len()
            && next
                .iter()
                .zip(&*members)
                .all(|(a, b)| Arc::ptr_eq(&a.server, &b.server) && a.named == b.named);
        if next.is_empty() || same {
            return;
        }
        for gone in members.iter().filter(|m| !next.iter().any(|n| n.server.address == m.server.address)) {
            self.metrics.forget_server(&self.settings.name, &gone.server.text);
        }
        tracing::info!(upstream = &*self.settings.name, servers = next.len(), "upstream servers resolved");
        *members = next;
        self.refresh(&members);
    }

    /// The result of a probe of `server`.
    fn probed(&self, server: &Server, good: bool, rule: ProbeRule, detail: &str) {
        let members = self.lock();
        if self.successor.get().is_some() {
            return;
        }
        if !good {
            self.may_have_moved();
        }
        let Some(up) = server.probed(good, rule) else { return };
        let (upstream, text) = (&*self.settings.name, &*server.text);
        if up {
            tracing::info!(upstream, server = text, "upstream server up: health checks pass");
        } else {
            tracing::warn!(upstream, server = text, detail, "upstream server down: health checks fail");
        }
        self.refresh(&members);
    }

    /// Readmits servers whose ejection is over. Returns the time until the next one.
    fn readmit(&self, now: Now) -> Option<Duration> {
        let members = self.lock();
        if self.successor.get().is_some() {
            return None;
        }
        let mut changed = false;
        for member in &*members {
            if member.server.readmit(now, self.settings.eject) {
                changed = true;
                let (upstream, server) = (&*self.settings.name, &*member.server.text);
                tracing::info!(upstream, server, "upstream server readmitted after ejection");
            }
        }
        if changed {
            self.refresh(&members);
        }
        let next = members.iter().filter_map(|m| m.server.out_until_ns()).min()?;
        Some(Duration::from_nanos(next.saturating_sub(now.steady_ns)))
    }

    fn refresh(&self, members: &[ServerMember]) {
        let up: Vec<&ServerMember> = members.iter().filter(|m| m.server.is_up()).collect();
        if up.is_empty() && !members.is_empty() {
            tracing::error!(upstream = &*self.settings.name, "no healthy server left in upstream");
        }
        let candidate = |m: &&ServerMember| Candidate { weight: m.weight, identity: m.server.identity };
        let balance = Balancer::new(up.iter().map(candidate).collect());
        let servers = up.iter().map(|m| Arc::clone(&m.server)).collect();
        for member in members {
            member.server.publish_health();
        }
        self.server_set.store(Arc::new(ServerSet { servers, balance }));
    }

    fn all_members(&self) -> Vec<ServerMember> {
        self.lock().clone()
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ServerMember>> {
        // No panic between lock and release leaves the members half changed.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn was_tried(server: &Server, tried: &[Arc<Server>]) -> bool {
    tried.iter().any(|t| t.address == server.address)
}

/// Counts one more, unless there are `most` already.
fn take_place(count: &AtomicUsize, most: usize) -> bool {
    if count.fetch_add(1, Ordering::Relaxed) < most {
        return true;
    }
    count.fetch_sub(1, Ordering::Relaxed);
    false
}

// === impl ServerSpec ===

impl ServerSpec {
    /// As in `Host`: without the port if it is the scheme's default.
    pub(super) fn authority(&self, is_tls: bool) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { (*self.host).to_owned() };
        match (self.port, is_tls) {
            (80, false) | (443, true) => host,
            (port, _) => format!("{host}:{port}"),
        }
    }
}

// === impl RequestPermit ===

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl NoServer ===

impl NoServer {
    const ALL: [Self; 4] = [Self::Down, Self::Requests, Self::Pending, Self::Servers];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Requests => "max_requests",
            Self::Pending => "max_pending",
            Self::Servers => "max_requests_per_server",
        }
    }
}

#[cfg(test)]
mod tests;
