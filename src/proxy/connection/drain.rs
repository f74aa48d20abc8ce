//! Reading an answer on to its end although its client has left.
//!
//! Must not know: why. Whoever serves a request offers it for that ([`Connection::offer_drain`]). When the client's stream
//! finds that the client has left, it begins the drain ([`Connection::begin_drain`]), takes every write from then on and
//! throws it away. Whatever ends a request ends its drain, and so do its time and the gateway's stop.

use super::deadlines::ms;
use super::{CloseReason, Connection};
use crate::metrics::Metrics;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The answers that this node drains, and how many it may at once.
#[derive(Debug)]
pub struct AnswerDrains {
    max: usize,
    within: Duration,
    active: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// Whether the answer of a connection's request is drained.
#[derive(Default)]
pub(super) struct DrainState {
    step: AtomicU8,
    /// Where it counts, from the offer to the end.
    drains: Mutex<Option<Arc<AnswerDrains>>>,
    /// When it must have ended, in milliseconds.
    ends: AtomicU64,
}

/// The request is not drained when its client leaves.
const NOT_OFFERED: u8 = 0;
/// It is, if there is room.
const OFFERED: u8 = 1;
/// The client has left, and the answer is read on.
const DRAINING: u8 = 2;
/// It was, and the request has ended.
const ENDED: u8 = 3;

// === impl AnswerDrains ===

impl AnswerDrains {
    /// At most `max` at once, each for at most this time.
    pub fn new(max: usize, within: Duration, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { max, within, active: AtomicUsize::new(0), metrics })
    }

    fn enter(&self) -> bool {
        let has_room = self.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, |active| {
            (active < self.max).then_some(active + 1)
        });
        match has_room {
            Ok(_) => self.metrics.answers_draining.inc(),
            Err(_) => self.count("full"),
        }
        has_room.is_ok()
    }

    fn leave(&self, result: &str) {
        self.active.fetch_sub(1, Ordering::AcqRel);
        self.metrics.answers_draining.dec();
        self.count(result);
    }

    fn count(&self, result: &str) {
        self.metrics.answers_drained.with_label_values(&[result]).inc();
    }
}

// === impl Connection ===

impl Connection {
    /// The request's answer is to be read to its end even if the client leaves.
    pub(in crate::proxy) fn offer_drain(&self, drains: &Arc<AnswerDrains>) {
        *self.drains() = Some(Arc::clone(drains));
        self.drain.step.store(OFFERED, Ordering::Release);
    }

    /// The client has left after it has sent its whole request. Returns whether the answer is read on; if not, its request ends.
    pub(in crate::proxy) fn begin_drain(&self) -> bool {
        if self.drain.step.load(Ordering::Acquire) != OFFERED {
            return self.is_draining();
        }
        // A client that the gateway sends away has not left; a tunnel has no answer.
        if self.close_reason().is_some() || self.is_tunnel() {
            return false;
        }
        let mut drains = self.drains();
        let within = drains.as_ref().filter(|drains| drains.enter()).map(|drains| drains.within);
        let Some(within) = within else {
            *drains = None;
            self.drain.step.store(NOT_OFFERED, Ordering::Release);
            return false;
        };
        self.drain.ends.store(self.shared.now_ms().saturating_add(ms(within)), Ordering::Relaxed);
        self.drain.step.store(DRAINING, Ordering::Release);
        true
    }

    /// Whether the client has left and the answer is read on.
    pub(in crate::proxy) fn is_draining(&self) -> bool {
        self.drain.step.load(Ordering::Acquire) == DRAINING
    }

    /// Whether that is so, or was until the request ended.
    pub(in crate::proxy) fn was_drained(&self) -> bool {
        self.drain.step.load(Ordering::Acquire) >= DRAINING
    }

    /// The request has ended; `is_whole`: with its whole answer.
    pub(in crate::proxy) fn end_drain(&self, is_whole: bool) {
        let mut drains = self.drains();
        let Some(drains) = drains.take() else { return };
        let next = if self.is_draining() { ENDED } else { NOT_OFFERED };
        self.drain.step.store(next, Ordering::Release);
        if next == ENDED {
            drains.leave(if is_whole { "complete" } else { self.first_end().map_or("backend", result) });
        }
    }

    /// Why the drain must end, if there is one and it must.
    pub(super) fn drain_overdue(&self, now: u64, is_stopping: bool) -> Option<CloseReason> {
        if !self.is_draining() {
            None
        } else if is_stopping {
            Some(CloseReason::DrainStopped)
        } else {
            (now >= self.drain.ends.load(Ordering::Relaxed)).then_some(CloseReason::DrainLate)
        }
    }

    fn drains(&self) -> MutexGuard<'_, Option<Arc<AnswerDrains>>> {
        // The value is valid even if a thread panicked while it held the lock.
        self.drain.drains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The label in metrics of a drain that ended because its connection was closed for this reason.
const fn result(end: CloseReason) -> &'static str {
    match end {
        CloseReason::DrainLate => "timeout",
        CloseReason::DrainStopped | CloseReason::Stopping => "shutdown",
        CloseReason::KeyGone | CloseReason::KeyInactive | CloseReason::KeyExpired => "key",
        _ => "backend",
    }
}

/// The results of a client that leaves, as in the metric.
pub const DRAIN_RESULTS: [&str; 6] = ["complete", "full", "timeout", "key", "shutdown", "backend"];
