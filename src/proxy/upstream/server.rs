//! One server: its requests in flight, and whether it may get requests.
//!
//! Must not know: its group, the protocol. A successful request takes no lock here.

use super::connection::IdleConnections;
use super::streams::Generation;
use super::take_place;
use crate::clock::Now;
use crate::metrics::Metrics;
use crate::policy::upstream::balance::hash;
use crate::policy::upstream::health::{EjectRule, EjectionState, ProbeRule, ProbeState};
use prometheus::{IntCounter, IntGauge};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Failing requests of a server are logged at most once in this many nanoseconds.
const TELL_EVERY_NS: u64 = 60_000_000_000;

/// One address of a server.
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    /// The same as text, for records and metrics.
    pub text: Arc<str>,
    /// Its configured name or address.
    pub host: Box<str>,
    /// The same with the port, as in `Host`.
    pub authority: Box<str>,
    /// Its identity for hashing.
    pub(super) identity: u64,
    /// Its HTTP/2 connections that are shared by keys.
    pub(super) shared: Generation,
    /// Its connections over HTTP/1.1 that nobody uses.
    pub(super) idle: IdleConnections,
    in_flight: AtomicUsize,
    in_flight_shown: IntGauge,
    answered: IntCounter,
    up: IntGauge,
    health: Mutex<ServerHealth>,
    /// Whether there are failures that a success would reset, or a line of the log that it would end.
    has_failures: AtomicBool,
    /// When a failure was last logged; 0: never.
    told_ns: AtomicU64,
    /// Whether the log says that requests fail, and not yet that they succeed again.
    is_told_failing: AtomicBool,
    /// Why the last connection could not be opened, until it is logged.
    connect_error: Mutex<Option<String>>,
}

/// The state of a server.
#[derive(Clone, Copy, Default)]
struct ServerHealth {
    probed: ProbeState,
    ejection: EjectionState,
}

/// A request in flight at a server, until this is dropped.
pub struct ServerInFlightGuard(Arc<Server>);

/// Failures at a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFailure {
    /// No connection.
    Connect,
    /// It did not accept the connection in time.
    ConnectTimeout,
    /// It did not finish the TLS handshake in time.
    TlsTimeout,
    /// It did not read the request for too long.
    WriteTimeout,
    /// It did not begin to respond in time.
    FirstByteTimeout,
    /// It paused for too long within its response.
    ReadTimeout,
    /// The timeout of the whole request has passed.
    RequestTimeout,
    /// The connection broke, or the response was invalid.
    Broken,
    /// A status of 500 or more.
    Status,
}

// === impl Server ===

impl Server {
    /// A new server of the upstream `upstream`.
    pub(super) fn new(
        upstream: &str,
        address: SocketAddr,
        (host, authority): (&str, &str),
        metrics: &Metrics,
    ) -> Self {
        let text: Arc<str> = address.to_string().into();
        let labels = [upstream, &*text];
        metrics.show_server(upstream, &text);
        Self {
            address,
            identity: hash(text.as_bytes()),
            host: host.into(),
            authority: authority.into(),
            shared: Generation::default(),
            idle: IdleConnections::default(),
            in_flight: AtomicUsize::new(0),
            in_flight_shown: metrics.upstream_in_flight.with_label_values(&labels),
            answered: metrics.upstream_results.with_label_values(&[upstream, &text, "answered"]),
            up: metrics.upstream_up.with_label_values(&labels),
            health: Mutex::default(),
            has_failures: AtomicBool::new(false),
            told_ns: AtomicU64::new(0),
            is_told_failing: AtomicBool::new(false),
            connect_error: Mutex::default(),
            text,
        }
    }

    /// Whether it is this one.
    pub(super) fn is(&self, address: SocketAddr, host: &str, authority: &str) -> bool {
        self.address == address && self.is_called(host, authority)
    }

    /// Whether it has this name.
    pub(super) fn is_called(&self, host: &str, authority: &str) -> bool {
        *self.host == *host && *self.authority == *authority
    }

    /// Counts a request as in flight, unless there are `most` already.
    pub(super) fn occupy(server: &Arc<Self>, most: usize) -> Option<ServerInFlightGuard> {
        if !take_place(&server.in_flight, most) {
            return None;
        }
        server.in_flight_shown.inc();
        Some(ServerInFlightGuard(Arc::clone(server)))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed) as u64
    }

    /// Whether it may get requests.
    pub fn is_up(&self) -> bool {
        let health = self.lock();
        health.probed.is_up() && !health.ejection.is_out()
    }

    /// Whether its last request failed.
    fn has_failures(&self) -> bool {
        self.has_failures.load(Ordering::Relaxed)
    }

    /// Whether to log a failed request: at most one in [`TELL_EVERY_NS`]. Failures that are not logged do not delay the
    /// next line.
    pub(super) fn should_log(&self, now: Now) -> bool {
        let told = self.told_ns.load(Ordering::Relaxed);
        let is_due = told == 0 || now.steady_ns.saturating_sub(told) >= TELL_EVERY_NS;
        let now_ns = now.steady_ns.max(1);
        let logs = is_due
            && self.told_ns.compare_exchange(told, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if logs {
            self.is_told_failing.store(true, Ordering::Relaxed);
        }
        logs
    }

    /// A request was answered. Returns whether the log said before that requests fail.
    pub(super) fn answered(&self) -> bool {
        self.answered.inc();
        if !self.has_failures() {
            return false;
        }
        // The flag changes under the lock: a failure right after must not be reset with those before.
        let mut health = self.lock();
        health.ejection.succeeded();
        let has_failures = health.ejection.has_failures();
        self.has_failures.store(has_failures, Ordering::Relaxed);
        drop(health);
        !has_failures && self.is_told_failing.swap(false, Ordering::Relaxed)
    }

    /// Why the last connection could not be opened.
    pub(in crate::proxy) fn note_connect_error(&self, cause: String) {
        *self.connect_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
    }

    /// The same, for one line of the log.
    pub(super) fn take_connect_error(&self) -> Option<String> {
        self.connect_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns the duration if this ejects it.
    pub(super) fn failed(&self, now: Now, rule: EjectRule, down: usize, all: usize) -> Option<Duration> {
        let mut health = self.lock();
        let lasts = health.ejection.failed(now.steady_ns, rule, down, all);
        let is_told = self.is_told_failing.load(Ordering::Relaxed);
        self.has_failures.store(health.ejection.has_failures() || is_told, Ordering::Relaxed);
        lasts
    }

    pub(super) fn readmit(&self, now: Now, rule: EjectRule) -> bool {
        let mut health = self.lock();
        let back = health.ejection.readmit(now.steady_ns, rule);
        self.has_failures.store(health.ejection.has_failures(), Ordering::Relaxed);
        back
    }

    pub(super) fn out_until_ns(&self) -> Option<u64> {
        self.lock().ejection.until_ns()
    }

    /// The new verdict, if the probe has changed it.
    pub(super) fn probed(&self, good: bool, rule: ProbeRule) -> Option<bool> {
        let mut health = self.lock();
        let was_up = health.probed.is_up();
        health.probed = health.probed.after(good, rule);
        let is_up = health.probed.is_up();
        (is_up != was_up).then_some(is_up)
    }

    /// Resets the state of probes.
    pub(super) fn forget_probes(&self) {
        self.lock().probed = ProbeState::default();
    }

    /// Failures in a row.
    #[cfg(test)]
    pub(super) fn failures(&self) -> u32 {
        self.lock().ejection.failures()
    }

    pub(super) fn publish_health(&self) {
        self.up.set(self.is_up().into());
    }

    fn lock(&self) -> MutexGuard<'_, ServerHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl ServerInFlightGuard ===

impl ServerInFlightGuard {
    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.0
    }
}

impl Deref for ServerInFlightGuard {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Drop for ServerInFlightGuard {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.in_flight_shown.dec();
    }
}

// === impl ServerFailure ===

impl ServerFailure {
    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect_failed",
            Self::ConnectTimeout => "connect_timed_out",
            Self::TlsTimeout => "tls_timed_out",
            Self::WriteTimeout => "write_timed_out",
            Self::FirstByteTimeout => "first_byte_timed_out",
            Self::ReadTimeout => "read_timed_out",
            Self::RequestTimeout => "request_timed_out",
            Self::Broken => "broke_off",
            Self::Status => "error_status",
        }
    }
}
