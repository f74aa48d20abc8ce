//! The connection to Redis. It is used while Redis answers in time, and dropped at the first failure.
//!
//! Must not know: limits. When Redis is unreachable, one task tries to reconnect; all others fail at once. In a cluster,
//! parts may be unreachable while the others are used.
//!
//! *Invariant:* a connection is used only after Redis has accepted a write and answered within [`PROBE_WITHIN`].

use super::endpoint::{ANSWER_WITHIN, CallFailure, LinkError, RedisConnection, RedisEndpoint};
use crate::clock::Clock;
use crate::metrics::Metrics;
use arc_swap::{ArcSwap, ArcSwapOption};
use redis::{Cmd, RedisError, Value};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Longest answer to a probe: no request waits longer.
const PROBE_WITHIN: Duration = Duration::from_millis(15);
/// How often an unused connection is probed.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Delay between two attempts to connect: first and longest.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Late answers in a row after which Redis, or a part of a cluster, counts as unreachable.
const LATE_MAX: u32 = 3;
/// How long a failed part of a cluster is not used.
const PART_LEFT_FOR: Duration = Duration::from_secs(1);
/// How long after a reconnect other nodes may not have reconnected or reported yet, in ns.
const JUST_BACK_NS: u64 = 1_500_000_000;
/// Number of parts of a cluster that fail separately. Keys with the same hash tag are in one part.
const PARTS: usize = 4_096;

/// The connection, if there is one.
pub(in crate::counter) struct Link {
    place: ArcSwap<RedisEndpoint>,
    node: String,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    current: ArcSwapOption<OpenLink>,
    lost: Notify,
    /// When it last answered in time, in steady ns.
    well_ns: AtomicU64,
    /// When it last answered in time before the current connection, and when that was opened, in steady ns.
    lost_ns: AtomicU64,
    back_ns: AtomicU64,
    /// Number of connections so far.
    made: AtomicU64,
    /// Number of probes: each has its own mark.
    probes: AtomicU64,
    /// The mark that was found last.
    mark: AtomicU64,
    /// How often Redis was found to have lost its data without a reconnect.
    forgotten: AtomicU64,
}

/// A connection in use.
struct OpenLink {
    connection: RedisConnection,
    /// The run id of the server.
    server: String,
    /// One part for a server, many for a cluster.
    parts: Box<[LinkPart]>,
}

/// Keys that fail together.
#[derive(Default)]
struct LinkPart {
    late: AtomicU32,
    left_until_ns: AtomicU64,
}

impl Link {
    pub(in crate::counter) fn new(
        place: RedisEndpoint,
        node: &str,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let well_ns = AtomicU64::new(clock.now().steady_ns);
        Self {
            place: ArcSwap::from_pointee(place),
            node: node.to_owned(),
            clock,
            metrics,
            current: ArcSwapOption::empty(),
            lost: Notify::new(),
            well_ns,
            lost_ns: AtomicU64::new(0),
            back_ns: AtomicU64::new(0),
            made: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        }
    }

    /// Sets the endpoint for the next connection. Open connections stay.
    pub(in crate::counter) fn set_place(&self, place: RedisEndpoint) {
        self.place.store(Arc::new(place));
    }

    /// Tries to connect once.
    pub(in crate::counter) async fn probe_once(&self) -> Result<(), LinkError> {
        self.metrics.counter_connects.inc();
        let well_ns = self.last_well_ns();
        let mut connection = self.place.load_full().connect().await?;
        let server = connection.vet().await?;
        self.probe(&mut connection).await?;
        let parts = if connection.is_cluster() { PARTS } else { 1 };
        let parts = (0..parts).map(|_| LinkPart::default()).collect();
        self.lost_ns.store(well_ns, Ordering::Relaxed);
        self.back_ns.store(self.now_ns(), Ordering::Relaxed);
        self.current.store(Some(Arc::new(OpenLink { connection, server, parts })));
        self.made.fetch_add(1, Ordering::Release);
        self.metrics.counter_up.set(1);
        Ok(())
    }

    /// Reconnects whenever Redis is unreachable, while `needed` exists.
    pub(in crate::counter) async fn maintain<T>(self: Arc<Self>, needed: Weak<T>) {
        let mut pause = LOOK_AGAIN.0;
        let mut told = false;
        while needed.strong_count() > 0 {
            if self.is_up() {
                (pause, told) = (LOOK_AGAIN.0, false);
                tokio::select! {
                    () = self.lost.notified() => {}
                    () = tokio::time::sleep(PROBE_EVERY) => self.check().await,
                }
                continue;
            }
            match self.probe_once().await {
                Ok(()) => {
                    tracing::info!("counters: connected to Redis");
                    continue;
                }
                Err(error @ LinkError::Unfit(_)) if !told => {
                    tracing::error!(%error, "counters: Redis refused, limits are enforced per node");
                }
                Err(error) if !told => {
                    tracing::warn!(%error, "counters: connection to Redis lost, limits are enforced per node");
                }
                Err(error) => tracing::debug!(%error, "counters: reconnecting to Redis failed"),
            }
            told = true;
            tokio::time::sleep(pause + self.jitter(pause)).await;
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
    }

    pub(in crate::counter) fn is_up(&self) -> bool {
        self.current.load().is_some()
    }

    /// Whether `part` may be called.
    pub(in crate::counter) fn is_up_for(&self, part: u32, now_ns: u64) -> bool {
        self.current.load().as_ref().is_some_and(|up| up.part(part).is_up(now_ns))
    }

    /// Number of connections so far; a new one may be to another server.
    pub(in crate::counter) fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// How often Redis was found to have lost its data.
    pub(in crate::counter) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    /// Notes that Redis has lost its data.
    pub(in crate::counter) fn mark_forgotten(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
    }

    /// The run id of the server; empty if unknown, and in a cluster.
    pub(in crate::counter) fn server(&self) -> String {
        self.current.load().as_ref().map_or_else(String::new, |up| up.server.clone())
    }

    /// When Redis last answered in time, in steady ns.
    pub(in crate::counter) fn last_well_ns(&self) -> u64 {
        self.well_ns.load(Ordering::Relaxed)
    }

    /// How long Redis was unreachable, if it was just reconnected: other nodes may not have reported yet.
    pub(in crate::counter) fn lost_for(&self, now_ns: u64) -> Option<Duration> {
        let is_just_back = now_ns.saturating_sub(self.back_ns.load(Ordering::Relaxed)) < JUST_BACK_NS;
        let lost_for_ns = now_ns.saturating_sub(self.lost_ns.load(Ordering::Relaxed));
        is_just_back.then(|| Duration::from_nanos(lost_for_ns))
    }

    fn mark_well(&self) {
        self.well_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    /// Calls Redis. An answer later than `patience` counts as a failure, although it is still used.
    pub(in crate::counter) async fn call(
        &self,
        part: u32,
        command: &Cmd,
        patience: Duration,
    ) -> Result<Value, CallFailure> {
        let Some(up) = self.current.load_full() else {
            return Err(CallFailure::Link("gone".into()));
        };
        let mut connection = up.connection.clone();
        let mut answer = std::pin::pin!(connection.run(command));
        if let Ok(answered) = tokio::time::timeout(patience, &mut answer).await {
            if answered.is_ok() {
                up.part(part).late.store(0, Ordering::Relaxed);
                self.mark_well();
            }
            return answered.map_err(|error| self.judge(&up, part, &error));
        }
        self.metrics.counter_late.inc();
        if up.part(part).late.fetch_add(1, Ordering::Relaxed) + 1 >= LATE_MAX {
            self.give_up(&up, part, "response timeout");
        }
        match tokio::time::timeout(ANSWER_WITHIN, &mut answer).await {
            Ok(answered) => answered.map_err(|error| self.judge(&up, part, &error)),
            Err(_) => Err(CallFailure::Link("no answer".into())),
        }
    }

    fn judge(&self, up: &Arc<OpenLink>, part: u32, error: &RedisError) -> CallFailure {
        let trouble = CallFailure::of(error);
        if let CallFailure::Link(why) = &trouble
            && !trouble.is_no_script()
        {
            self.give_up(up, part, why);
        }
        trouble
    }

    /// Stops using `part` for a while or, if there is only one, drops the connection; a new one is opened.
    pub(in crate::counter) fn on_failure(&self, part: u32, why: &str) {
        if let Some(up) = self.current.load_full() {
            self.give_up(&up, part, why);
        }
    }

    fn give_up(&self, up: &Arc<OpenLink>, part: u32, why: &str) {
        if up.parts.len() > 1 {
            up.part(part).leave(self.now_ns());
            tracing::debug!(why, part, "counters: Redis cluster slot unavailable, not used for one second");
            return;
        }
        self.drop_connection(up, why);
    }

    /// Drops only the connection that failed, never a newer one.
    fn drop_connection(&self, up: &Arc<OpenLink>, why: &str) {
        let seen = self.current.compare_and_swap(up, None);
        if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, up)) {
            tracing::warn!(why, "counters: connection to Redis lost, limits are enforced per node");
            self.metrics.counter_up.set(0);
            self.lost.notify_one();
        }
    }

    async fn check(&self) {
        let Some(up) = self.current.load_full() else { return };
        // Twice, because a short pause of the server is not an outage.
        let mut connection = up.connection.clone();
        if self.probe(&mut connection).await.is_err()
            && let Err(error) = self.probe(&mut connection).await
        {
            self.drop_connection(&up, &error.to_string());
        }
    }

    async fn probe(&self, connection: &mut RedisConnection) -> Result<(), LinkError> {
        let mark = self.probes.fetch_add(1, Ordering::Relaxed) + 1;
        match tokio::time::timeout(PROBE_WITHIN, connection.probe(&self.node, mark)).await {
            Ok(Ok(found)) => {
                self.mark_well();
                if let Some(found) = found {
                    self.found(found);
                }
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(LinkError::Gone("response timeout".into())),
        }
    }

    /// A different mark means that Redis has lost its data, even if it is from a probe whose answer was lost.
    fn found(&self, mark: u64) {
        let before = self.mark.swap(mark, Ordering::AcqRel);
        if before != 0 && before != mark {
            self.mark_forgotten();
        }
    }

    fn now_ns(&self) -> u64 {
        self.clock.now().steady_ns
    }

    /// Nodes that lost Redis at the same time should not all reconnect at once.
    fn jitter(&self, pause: Duration) -> Duration {
        let spread = u64::try_from(pause.as_nanos() / 2).unwrap_or(0).max(1);
        // The steady clock begins at the start of each node, so it differs.
        Duration::from_nanos(self.now_ns() % spread)
    }
}

// === impl Up, Part ===

impl OpenLink {
    /// The part of keys with this number.
    fn part(&self, number: u32) -> &LinkPart {
        // There is always at least one, and the number of parts fits.
        &self.parts[number as usize % self.parts.len()]
    }
}

impl LinkPart {
    fn is_up(&self, now_ns: u64) -> bool {
        now_ns >= self.left_until_ns.load(Ordering::Relaxed)
    }

    fn leave(&self, now_ns: u64) {
        let until_ns = now_ns.saturating_add(u64::try_from(PART_LEFT_FOR.as_nanos()).unwrap_or(u64::MAX));
        self.left_until_ns.store(until_ns, Ordering::Relaxed);
    }
}
