//! Backends: which server gets a request, and how it is spoken to.
//!
//! Must not know: keys, limits, routes. Requests find out who may be chosen from memory alone; names are looked up and
//! servers probed by [`maintain()`], on the I/O runtime. When no server is left, the request gets none.
//!
//! *Invariant:* what is known of a server (its health, what it has in flight) outlives a change of the group's members.

pub(super) mod attempts;
mod connect_permit;
mod maintain;
mod probe;
mod protocol;
mod server;
mod streams;

pub use connect_permit::{ConnectPermit, NO_PLACE};
pub use maintain::maintain;
pub(super) use probe::is_local_shortage;
pub use probe::{HttpProbe, Probe};
pub use protocol::{BadTls, HttpVersion, UpstreamProtocol, UpstreamTls, UpstreamTlsFiles};
pub use server::{Server, ServerFailure, ServerInFlightGuard};
pub use streams::UpstreamStream;

use crate::clock::{Clock, Now};
use crate::metrics::Metrics;
use crate::policy::upstream::balance::{Balancer, Balancing, Candidate};
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

/// Tells connections that may become tunnels from others. None of them is used again.
const TUNNELS: u64 = 0x7475_6e6e_656c_7300;

/// A group of servers.
pub struct Upstream {
    /// How it is to behave.
    pub settings: UpstreamSettings,
    /// All servers, in the order of the names they come from.
    members: Mutex<Vec<ServerMember>>,
    /// Those that may be chosen; made anew whenever that changes.
    server_set: ArcSwap<ServerSet>,
    turn: AtomicUsize,
    /// Requests that ever came.
    requests: AtomicU64,
    /// Those in flight, and those of them that wait for a connection.
    in_flight: AtomicUsize,
    pending: AtomicUsize,
    budget: Mutex<RetryBudget>,
    /// Where HTTP/2 may be spoken: what keys have in flight.
    streams: Option<StreamSlots>,
    /// Wakes whoever lets ejected servers back in.
    ejected: Notify,
    /// Asks for another look-up of the names, where there are any.
    moved: Notify,
    /// What has taken its place, and knows of its servers since. Set with `members` locked.
    successor: OnceLock<Arc<Self>>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

/// How a group behaves.
#[derive(Clone)]
pub struct UpstreamSettings {
    /// Its name in the config.
    pub name: Arc<str>,
    /// Where its servers are.
    pub names: Box<[ServerSpec]>,
    /// Which server gets a request.
    pub balancing: Balancing,
    /// With a hash: the largest share of the mean load, in percent; 0 for no bound.
    pub hash_load_percent: u32,
    /// How often names are looked up again.
    pub resolve_every: Duration,
    /// How long a server may take.
    pub timeouts: Timeouts,
    /// How servers are spoken to.
    pub protocol: UpstreamProtocol,
    /// How much may be going on at once.
    pub most: ConcurrencyLimits,
    /// Most attempts at one request.
    pub attempts: u32,
    /// How many requests may be sent again.
    pub budget: RetryBudgetRule,
    /// How servers are probed; none where they are not.
    pub probe: Option<Probe>,
    /// When a server that fails requests is taken out.
    pub eject: EjectRule,
}

/// A server as the config names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// A name or an address.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    /// The share of each of its addresses.
    pub weight: u16,
}

/// How long a backend may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To accept a connection.
    pub connect: Duration,
    /// Between the end of the request and the first byte of the answer, where that is less than `read`.
    pub first_byte: Option<Duration>,
    /// Between two reads.
    pub read: Duration,
    /// For one write.
    pub write: Duration,
    /// An idle connection is kept for reuse this long; keep it below the server's own keep-alive time.
    pub idle: Duration,
    /// The whole request; none for as long as it likes.
    pub request: Option<Duration>,
    /// A tunnel through which nothing passes, in either direction.
    pub tunnel: Duration,
}

/// How much may be going on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimits {
    /// Requests in flight.
    pub requests: usize,
    /// Requests that wait for a connection.
    pub pending: usize,
    /// Requests in flight at one server.
    pub per_server: usize,
}

/// Why a request finds no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoServer {
    /// Every server is down, ejected or tried already.
    Down,
    /// The upstream has as many requests in flight as it may.
    Requests,
    /// As many as may already wait for a connection.
    Pending,
    /// Every server has as many in flight as it may.
    Servers,
}

/// What becomes of a request that may be sent again: it is, or the budget is used up.
pub const RETRIES: [&str; 2] = ["sent_again", "over_budget"];

/// A request in flight at an upstream, until this is dropped.
pub struct RequestPermit(Arc<Upstream>);

/// What a request brings to the choice of its server.
#[derive(Clone, Copy)]
pub struct PickContext<'r> {
    /// Bits that nobody can foresee.
    pub random: u64,
    /// The hash of what binds it to a server, where the group chooses by it.
    pub name: u64,
    /// The servers it has been to.
    pub tried: &'r [Arc<Server>],
}

/// One server of the group.
#[derive(Clone)]
struct ServerMember {
    server: Arc<Server>,
    weight: u16,
    /// Which of the names it comes from.
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
    /// A group that has no server until its names are looked up.
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

    /// Lets a request in, if there is room.
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
        // Whoever takes the last place at a server in between sends this round again.
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

    /// A server may not be where it was: no connection, a connection that ended, or none to use again. Has its name
    /// looked up at once.
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

    /// Whether one more request may be sent again.
    pub fn may_repeat(&self) -> bool {
        let requests = self.requests.load(Ordering::Relaxed);
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(requests, self.now().steady_ns, self.settings.budget)
    }

    /// How Pingora is to speak to `server`.
    pub fn peer(&self, server: &Server) -> Box<HttpPeer> {
        let timeouts = &self.settings.timeouts;
        let mut peer = self.settings.protocol.peer(server);
        peer.options.connection_timeout = Some(timeouts.connect);
        // Pingora gives the TLS handshake as long again; together they have no more than that.
        let rounds = if self.settings.protocol.is_tls() { 2 } else { 1 };
        peer.options.total_connection_timeout = Some(timeouts.connect * rounds);
        peer.options.read_timeout = Some(timeouts.read);
        peer.options.write_timeout = Some(timeouts.write);
        peer.options.idle_timeout = Some(timeouts.idle);
        Box::new(peer)
    }

    /// Has `peer` use the connections that `stream` may.
    pub fn choose_connections(peer: &mut HttpPeer, stream: &UpstreamStream) {
        peer.group_key = stream.group();
        if stream.is_apart() {
            peer.options.idle_timeout = peer.options.idle_timeout.map(|idle| idle.min(APART_IDLE));
        }
    }

    /// Has `peer` make a connection that may become a tunnel: over HTTP/1.1, and for this request alone.
    pub fn make_tunnel(&self, peer: &mut HttpPeer) {
        peer.group_key = self.settings.protocol.group() ^ TUNNELS;
        peer.options.alpn = ALPN::H1;
        peer.options.idle_timeout = Some(Duration::ZERO);
    }

    /// A request was answered with a status below 500, to the answer's end.
    pub fn succeeded(&self, server: &Server) {
        server.answered();
    }

    /// A request failed at `server`, which may be one failure too many.
    pub fn failed(&self, server: &Server, failure: ServerFailure) {
        let members = self.lock();
        if let Some(successor) = self.successor.get() {
            drop(members);
            return successor.failed(server, failure);
        }
        self.metrics.upstream_failures.inc();
        if !members.iter().any(|m| std::ptr::eq(Arc::as_ptr(&m.server), server)) {
            // It has left while the request was there, and what is known of it with it.
            return;
        }
        let (name, rule) = (&*self.settings.name, self.settings.eject);
        self.metrics.upstream_results.with_label_values(&[name, &server.text, failure.as_str()]).inc();
        if failure != ServerFailure::Status && server.should_log(self.now()) {
            tracing::warn!(
                upstream = name,
                server = &*server.text,
                failure = failure.as_str(),
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

    /// Takes the place of `old`: knows its servers as far as it has them too, and hears of what becomes of requests that are
    /// still there. A name that could not be looked up has the addresses that it had.
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
            // The verdict was another question's, and nobody may ask that again.
            for member in &next {
                member.server.forget_probes();
            }
        }
        *members = next;
        // Nobody else sets it; from here on whoever has locked `old` finds it.
        self.refresh(&members);
        old.successor.get_or_init(|| Arc::clone(self));
    }

    /// Stops showing its servers, but for those that `successor` has.
    pub fn forget(&self, successor: Option<&Self>) {
        let kept: Vec<SocketAddr> =
            successor.map(|s| s.all_members().iter().map(|m| m.server.address).collect()).unwrap_or_default();
        for member in self.all_members().iter().filter(|m| !kept.contains(&m.server.address)) {
            self.metrics.forget_server(&self.settings.name, &member.server.text);
        }
    }

    /// Uses what looking the names up has found; where that failed, in place of an address, the addresses of that name
    /// stay. With nothing found at all, everything stays.
    fn apply_lookup(&self, found: &[Option<Vec<SocketAddr>>]) {
        let mut members = self.lock();
        if self.successor.get().is_some() {
            return;
        }
        let mut next: Vec<ServerMember> = Vec::with_capacity(members.len());
        for (named, addresses) in found.iter().enumerate() {
            let kept = || members.iter().filter(|m| m.named == named).map(|m| m.server.address).collect();
            for address in addresses.clone().unwrap_or_else(kept) {
                // Two names for one server do not make it two.
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

    /// What a probe of `server` has found.
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

    /// Lets those back in whose time is over. Answers when the next one's is.
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
        // Nothing between the lock and its release leaves the members half changed.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn was_tried(server: &Server, tried: &[Arc<Server>]) -> bool {
    tried.iter().any(|t| t.address == server.address)
}

/// Counts one more unless there are `most` already.
fn take_place(count: &AtomicUsize, most: usize) -> bool {
    if count.fetch_add(1, Ordering::Relaxed) < most {
        return true;
    }
    count.fetch_sub(1, Ordering::Relaxed);
    false
}

// === impl ServerSpec ===

impl ServerSpec {
    /// As `Host` has it: without the port where that is the scheme's own.
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

    /// The metric's label.
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
