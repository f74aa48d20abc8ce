//! The one connection to Redis: there while Redis answers in time, gone at the first sign that it does not.
//!
//! Must not know: limits. When Redis is gone, one task looks for it; everybody else is told at once that it is gone. Of a
//! cluster, parts may be gone while the others are asked on.
//!
//! *Invariant:* a connection is handed out only after Redis has taken a write and answered within [`PROBE_WITHIN`].

use super::endpoint::{ANSWER_WITHIN, CallFailure, LinkError, RedisConnection, RedisEndpoint};
use crate::clock::Clock;
use crate::metrics::Metrics;
use arc_swap::{ArcSwap, ArcSwapOption};
use redis::{Cmd, RedisError, Value};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Slower than this and Redis is no use: no request waits longer.
const PROBE_WITHIN: Duration = Duration::from_millis(15);
/// How often a connection that nobody uses is tried.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks for Redis: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Answers in a row that may be late before Redis, or a part of it, counts as gone.
const LATE_MAX: u32 = 3;
/// How long a part of a cluster that failed is left alone.
const PART_LEFT_FOR: Duration = Duration::from_secs(1);
/// For how long after Redis was found again others may not have found it, or not have been heard, in ns.
const JUST_BACK_NS: u64 = 1_500_000_000;
/// Parts that are told apart. Keys that share a hash tag are in one.
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
    /// When it last answered in time before the connection that is in use, and since when that has been in use, in steady ns.
    lost_ns: AtomicU64,
    back_ns: AtomicU64,
    /// How many connections there have been.
    made: AtomicU64,
    /// How often it was tried whether Redis is there: each try has a mark of its own.
    probes: AtomicU64,
    /// The mark that was there last.
    mark: AtomicU64,
    /// How often it turned out that Redis, though it was there, had forgotten what it was told.
    forgotten: AtomicU64,
}

/// A connection that is in use.
struct OpenLink {
    connection: RedisConnection,
    /// What the server's process is called.
    server: String,
    /// One part for a server, many for a cluster.
    parts: Box<[LinkPart]>,
}

/// What fails together.
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

    /// The next connection is made so. Those that there are stay.
    pub(in crate::counter) fn set_place(&self, place: RedisEndpoint) {
        self.place.store(Arc::new(place));
    }

    /// Looks for Redis once.
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

    /// Looks for Redis whenever it is gone, for as long as somebody needs it.
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

    /// Whether `part` may be asked.
    pub(in crate::counter) fn is_up_for(&self, part: u32, now_ns: u64) -> bool {
        self.current.load().as_ref().is_some_and(|up| up.part(part).is_up(now_ns))
    }

    /// How many connections there have been; a new one may be to another server than the last.
    pub(in crate::counter) fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// How often Redis has been found to have forgotten what it was told.
    pub(in crate::counter) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    /// Redis has been found to have forgotten what it was told.
    pub(in crate::counter) fn mark_forgotten(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
    }

    /// What the server's process is called; empty when that is not known, and in a cluster.
    pub(in crate::counter) fn server(&self) -> String {
        self.current.load().as_ref().map_or_else(String::new, |up| up.server.clone())
    }

    /// When Redis last answered in time, in steady ns.
    pub(in crate::counter) fn last_well_ns(&self) -> u64 {
        self.well_ns.load(Ordering::Relaxed)
    }

    /// How long ago Redis was lost, if that was found again just now: other nodes may not have been heard yet.
    pub(in crate::counter) fn lost_for(&self, now_ns: u64) -> Option<Duration> {
        let is_just_back = now_ns.saturating_sub(self.back_ns.load(Ordering::Relaxed)) < JUST_BACK_NS;
        let lost_for_ns = now_ns.saturating_sub(self.lost_ns.load(Ordering::Relaxed));
        is_just_back.then(|| Duration::from_nanos(lost_for_ns))
    }

    fn mark_well(&self) {
        self.well_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    /// Asks. An answer later than `patience` counts against Redis, though it is still taken in.
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
            self.give_up(&up, part, "answers too late");
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

    /// Leaves `part` alone for a while or, where there is only one, gives the connection up; a new one is looked for.
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

    /// Only the connection that failed is given up, never one that was made since.
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
        // Twice, because one pause of the other side is no outage.
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
            Err(_) => Err(LinkError::Gone("answers too late".into())),
        }
    }

    /// Another mark than before, were it one of a probe whose answer was lost: what Redis had was thrown away.
    fn found(&self, mark: u64) {
        let before = self.mark.swap(mark, Ordering::AcqRel);
        if before != 0 && before != mark {
            self.mark_forgotten();
        }
    }

    fn now_ns(&self) -> u64 {
        self.clock.now().steady_ns
    }

    /// Nodes that lost Redis together do not look for it together.
    fn jitter(&self, pause: Duration) -> Duration {
        let spread = u64::try_from(pause.as_nanos() / 2).unwrap_or(0).max(1);
        // The steady clock counts from each node's own start.
        Duration::from_nanos(self.now_ns() % spread)
    }
}

// === impl Up, Part ===

impl OpenLink {
    /// The part that keys with this number are in.
    fn part(&self, number: u32) -> &LinkPart {
        // There is always one, and never so many that their number would not fit.
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
