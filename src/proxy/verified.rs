//! What calls of applications hold until these say what was used.
//!
//! Must not know: how an application calls.
//!
//! *Invariant:* each hold ends once: with what its application says, or, when its time is over or the process stops, with
//! what it holds.

use super::holds::HeldUnits;
use crate::counter::Hold;
use crate::metrics::Metrics;
use crate::model::id::{KeyId, RequestId};
use crate::model::tokens::{MeterReading, ReadingSource, TokenCounts};
use crate::model::usage::Outcome;
use crate::policy::meter::held_tokens;
use crate::policy::routing::route::VERIFY;
use crate::usage::PendingRecord;
use quick_cache::sync::Cache;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many ended holds are remembered, so that a repeated call learns that it was done.
const REMEMBERED: usize = 10_000;

/// The holds of this process.
pub struct VerifiedHolds {
    open: Mutex<OpenHolds>,
    /// The holds that their applications ended.
    ended: Cache<RequestId, ()>,
    max: usize,
    /// How long a hold lasts.
    pub timeout: Duration,
}

#[derive(Default)]
struct OpenHolds {
    by_id: HashMap<RequestId, VerifiedHold>,
    /// When each is over, in ns of the monotonic clock, in that order; also of some that have ended.
    due: VecDeque<(u64, RequestId)>,
}

/// One hold, with the record of the call that made it.
pub(super) struct VerifiedHold {
    record: PendingRecord,
    units: HeldUnits,
    held: TokenCounts,
    model: Arc<str>,
}

/// What became of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It ended now, with these tokens.
    Now,
    /// It had ended before, in the same way.
    Before,
    /// It is over, or was made elsewhere.
    Unknown,
}

impl VerifiedHolds {
    /// At most `max` holds, each for `timeout`.
    pub fn new(max: usize, timeout: Duration) -> Self {
        Self { open: Mutex::default(), ended: Cache::new(REMEMBERED), max, timeout }
    }

    /// Whether there is room for another hold.
    pub(super) fn has_room(&self) -> bool {
        self.open().by_id.len() < self.max
    }

    /// Keeps a hold from `now_ns` on.
    pub(super) fn add(&self, id: RequestId, hold: VerifiedHold, now_ns: u64) {
        let over = now_ns.saturating_add(u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX));
        let mut open = self.open();
        open.by_id.insert(id, hold);
        open.due.push_back((over, id));
    }

    /// Ends a hold with what was used.
    pub(super) fn settle(&self, id: RequestId, tokens: TokenCounts, model: Option<Arc<str>>) -> Ended {
        let hold = self.open().by_id.remove(&id);
        let Some(hold) = hold else {
            return if self.ended.get(&id).is_some() { Ended::Before } else { Ended::Unknown };
        };
        self.ended.insert(id, ());
        hold.end(tokens, model, ReadingSource::Reported);
        Ended::Now
    }

    /// Ends what is over at `now_ns` with what it holds.
    pub fn expire(&self, now_ns: u64) {
        let mut over = Vec::new();
        let mut open = self.open();
        while let Some((_, id)) = open.due.pop_front_if(|(due, _)| *due <= now_ns) {
            over.extend(open.by_id.remove(&id));
        }
        drop(open);
        over.into_iter().for_each(VerifiedHold::expire);
    }

    fn open(&self) -> MutexGuard<'_, OpenHolds> {
        // Both collections are valid whatever happened to the thread that held the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VerifiedHolds {
    fn drop(&mut self) {
        let holds = std::mem::take(&mut self.open().by_id);
        holds.into_values().for_each(VerifiedHold::expire);
    }
}

impl VerifiedHold {
    /// What a call of this key holds.
    pub(super) fn new(
        record: PendingRecord,
        key: KeyId,
        hold: Hold,
        model: Arc<str>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let tokens = held_tokens(hold.amounts());
        Self { record, units: HeldUnits::new(key, hold, metrics), held: tokens, model }
    }

    fn expire(self) {
        let held = self.held;
        self.end(held, None, ReadingSource::Held);
    }

    fn end(mut self, tokens: TokenCounts, model: Option<Arc<str>>, source: ReadingSource) {
        let reading = MeterReading {
            tokens,
            model_requested: self.model,
            model_served: model.unwrap_or_default(),
            provider_request_id: Arc::default(),
            cost_nano: None,
            source,
        };
        let used = self.record.metered(VERIFY, reading);
        self.units.settle(&used);
        self.record.complete(Outcome::Decided, 200);
    }
}
