//! What one node holds of one subject (a key, or a workspace): units granted by Redis, and a promise for when it is
//! unreachable.
//!
//! Pure: no I/O, no clock. docs/explanation/redis.md describes the protocol; `grant.lua` is the other side.
//!
//! *Invariant:* a unit is spent within [`LIFE`] of its debit and before the first of its windows ends, or is returned.
//! *Invariant:* without Redis, no more is spent in a window than Redis has reserved for this node: unspent granted units
//! and the promise. Whatever is lost on the way (a call, an answer, a node) makes nodes admit fewer requests.

use crate::clock::{Now, Timestamp};
use crate::counter::{LimitsLeft, Refusal};
use crate::model::calendar::Calendar;
use crate::model::key::Per;
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::{
    CounterState, Limit, LimitReached, LimitRule, Limits, Mark, Remaining, RetryAfter,
};
use std::collections::VecDeque;
use std::time::Duration;

mod call;
mod fallback;

/// The calendar windows, in the order of the script.
pub const WINDOWS: [Per; 6] = Per::WINDOWS;
/// How long a granted unit is valid. The script subtracts as much from a burst while units are granted in advance.
pub const LIFE: Duration = Duration::from_millis(50);
/// How long after a call Redis reserves the promise of a node.
pub const PROMISE: Duration = Duration::from_secs(10);
/// How long Redis counts the requests in flight of a silent node.
const PLACES_LIFE: Duration = Duration::from_secs(5);
/// How often requests in flight are reported again.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How long a node does not call after Redis said that a rate is empty, so that a flood does not reach Redis.
const PACE: Duration = Duration::from_millis(25);
/// How long a refusal by a window is cached: at first, and at most. Other nodes may return units meanwhile.
const BELIEVED: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// `Retry-After` when a promise is used up: about the time until Redis is tried again.
const PROMISE_RETRY: Duration = Duration::from_secs(1);
/// Fewer units than this are not granted in advance.
const AHEAD_MIN: u64 = 4;
/// Most units granted in advance.
const AHEAD_MAX: u64 = 10_000;
/// A calendar step back of less than this is ignored.
const STEP_MIN: Duration = Duration::from_secs(1);
/// Most minutes for which unreported units are kept separately.
const UNTOLD_MAX: usize = 240;
const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;

/// One subject on this node.
#[derive(Clone, Debug, Default)]
pub struct SubjectPool {
    limits: Limits,
    own: [OwnWindow; WINDOWS.len()],
    /// The calendar of those windows.
    calendar: Calendar,
    /// The latest instant of the calendar so far.
    latest: Timestamp,
    /// Numbers the windows of this node, and the units by the windows they were spent in.
    generation: u64,
    hand: VecDeque<GrantedUnits>,
    /// The number of the last call.
    seq: u64,
    /// Since when the current Redis counts this subject, by its clock in µs; 0: it never answered.
    epoch: i64,
    /// When it last answered, by its clock.
    heard_at: Option<Timestamp>,
    /// Until when the promise is valid even if Redis works, in steady ns.
    promised_until_ns: u64,
    /// Whether Redis may not know what this node holds, because an answer was lost.
    unsure: bool,
    /// Units spent without Redis: reported in the last call, and since then.
    telling: Vec<OutstandingUnits>,
    untold: Vec<OutstandingUnits>,
    returned: u64,
    returned_at_us: i64,
    /// Rates without Redis.
    rates: CounterState,
    /// The desired number of granted units: the recent demand within [`LIFE`].
    target: u64,
    /// Whether a request has found too few granted units for those after it.
    is_wanting: bool,
    is_leaving: bool,
    attempts: u64,
    asked_at_ns: u64,
    exhausted: Option<Exhausted>,
    believed: Duration,
    left: LimitsLeft,
    left_at_ns: u64,
    in_flight: u64,
    /// Places for requests that are not charged yet.
    held: u64,
    peak_in_flight: u64,
    places: u64,
    places_from_ns: u64,
}

/// One window on this node.
#[derive(Clone, Copy, Debug, Default)]
struct OwnWindow {
    window: Window,
    since: u64,
    /// What was spent in it through this node.
    spent: u64,
    /// The part of this that Redis is known to have counted, unspent granted units included.
    told: u64,
    /// What all nodes together had spent at the last answer.
    heard: u64,
    /// What may be spent without Redis; none if it never said.
    promise: Option<u64>,
    /// What was spent without Redis since the last call was sent.
    fallback: u64,
}

/// Units of one grant.
#[derive(Clone, Copy, Debug)]
struct GrantedUnits {
    units: u64,
    at_us: i64,
    until_ns: u64,
}

/// A cached refusal.
#[derive(Clone, Copy, Debug)]
struct Exhausted {
    limit: Limit,
    retry: RetryAfter,
    from_ns: u64,
    until_ns: u64,
}

/// Units spent without Redis that are not reported yet, and when, by Redis' clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutstandingUnits {
    /// µs since the epoch.
    pub at_us: i64,
    /// Units.
    pub units: u64,
}

/// What one request took from one subject.
#[derive(Clone, Copy, Debug)]
pub struct TakenUnits {
    generation: u64,
    mark: Mark,
    /// When it was debited, by Redis' clock in µs; none if it was spent without Redis.
    debited_us: Option<i64>,
}

/// The part of a call that concerns one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The number of the call; Redis processes each once, and none that is older than one it has processed.
    pub seq: u64,
    /// The epoch of the last answer; 0: none.
    pub epoch: i64,
    /// The limits to charge.
    pub limits: Limits,
    /// Waiting requests.
    pub waiting: u64,
    /// Units for them, beyond the granted ones.
    pub need: u64,
    /// Further units in advance.
    pub ahead: u64,
    /// Whether the node shuts down and needs no promise.
    pub leaves: bool,
    /// What this node reports of each of [`WINDOWS`].
    pub windows: [WindowReport; WINDOWS.len()],
    /// Returned units, and when the first of them was debited.
    pub returned: (u64, i64),
    /// Units spent without Redis.
    pub untold: Vec<OutstandingUnits>,
    /// The ledger's total of each window, if Redis does not know the subject.
    pub ledger: Option<[u64; WINDOWS.len()]>,
    /// Requests in flight, if they are limited.
    pub places: Option<u64>,
    /// Places wanted beyond those of waiting requests.
    pub ahead_places: u64,
    /// The limit of requests in flight.
    pub max_places: u64,
}

/// The report of a node about one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowReport {
    /// The number of the window.
    pub since: u64,
    /// Units spent through it, unspent granted units included.
    pub spent: u64,
    /// The part of this that Redis has confirmed.
    pub told: u64,
    /// What all nodes had spent at the last answer.
    pub heard: u64,
    /// What it may still spend without a call.
    pub held: u64,
}

/// The answer of Redis for one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Its clock in µs.
    pub now_us: i64,
    /// Since when it counts, by its clock in µs.
    pub epoch: i64,
    /// Units debited.
    pub units: u64,
    /// Whether Redis counts but does not grant yet, because other nodes may have to report first.
    pub is_held_back: bool,
    /// Places that this node now has.
    pub places: u64,
    /// What may be spent of each window without a call.
    pub promises: [u64; WINDOWS.len()],
    /// What all nodes have spent of each window.
    pub used: [u64; WINDOWS.len()],
    /// Why nothing was granted to waiting requests.
    pub refused: Option<(Limit, RetryAfter)>,
    /// What is left of each limit, in the order of the call.
    pub left: LimitsLeft,
}

/// The inputs of a decision without Redis.
#[derive(Clone, Copy, Debug)]
pub struct FallbackState {
    /// Number of live nodes.
    pub nodes: u64,
    /// Whether limits without a promise are divided by the number of nodes; otherwise such a subject is refused.
    pub share_unknown: bool,
    /// Since when Redis has been unreachable, in steady ns, if it is.
    pub gone_since_ns: Option<u64>,
    /// When it last worked, in steady ns.
    pub well_ns: u64,
}

const fn ns(d: Duration) -> u64 {
    // No duration here is longer than a few seconds.
    d.as_secs() * 1_000_000_000 + d.subsec_nanos() as u64
}

// === what is in hand ===

impl SubjectPool {
    /// Notes one more request and the limits in force. Units granted under other limits are returned.
    pub fn attempt(&mut self, limits: &Limits) {
        self.attempts = self.attempts.saturating_add(1);
        if self.limits != *limits {
            self.retire();
            self.exhausted = None;
            self.limits.clone_from(limits);
        }
    }

    /// Whether one more request may be admitted from granted units.
    pub fn can_spend(&mut self, now_ns: u64) -> bool {
        self.expire(now_ns);
        self.has_place(now_ns) && !self.hand.is_empty()
    }

    /// Admits one request. Call only after [`Self::can_spend`] has returned true.
    pub fn spend(&mut self, now: Now) -> TakenUnits {
        let mut debited_us = None;
        if let Some(batch) = self.hand.front_mut() {
            batch.units -= 1;
            debited_us = Some(batch.at_us);
            if batch.units == 0 {
                self.hand.pop_front();
            }
        }
        let mark = self.rates.take_rates(&self.limits, 1, now);
        self.count();
        TakenUnits { generation: self.generation, mark, debited_us }
    }

    fn count(&mut self) {
        for own in &mut self.own {
            own.spent = own.spent.saturating_add(1);
        }
        self.in_flight += 1;
        self.peak_in_flight = self.peak_in_flight.max(self.in_flight);
    }

    /// Refunds a request that was not forwarded.
    pub fn give_back(&mut self, spent: &TakenUnits) {
        for own in self.own.iter_mut().filter(|own| own.since <= spent.generation) {
            own.spent = own.spent.saturating_sub(1);
        }
        self.rates.give_back_rates(&self.limits, 1, spent.mark);
        match spent.debited_us {
            Some(at_us) => self.comes_back(1, at_us),
            // The earliest is the most likely to be in the ledger already.
            None => {
                if let Some(first) = self.telling.iter_mut().chain(&mut self.untold).find(|u| u.units > 0) {
                    first.units -= 1;
                }
            }
        }
        self.end();
    }

    /// A request has ended.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.on_freed();
    }

    /// Takes a place for a request that is charged later, if there is one as far as this node knows.
    pub fn hold(&mut self, limits: &Limits) -> Result<(), Box<Refusal>> {
        let full =
            |l: &&Limit| matches!(l.rule, LimitRule::InFlight { max } if self.in_flight + self.held >= max);
        if let Some(limit) = limits.iter().find(full) {
            let retry = if limit.max() > 0 { RetryAfter::Release } else { RetryAfter::Never };
            return Err(Box::new(Refusal {
                refused: LimitReached { limit: *limit, retry },
                left: self.left.clone(),
            }));
        }
        self.held += 1;
        Ok(())
    }

    /// Releases the place of [`Self::hold`].
    pub fn unhold(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.on_freed();
    }

    fn on_freed(&mut self) {
        if self.exhausted.is_some_and(|e| e.retry == RetryAfter::Release) {
            self.exhausted = None;
        }
    }

    /// Returns all granted units.
    pub fn retire(&mut self) {
        self.is_wanting = false;
        while let Some(batch) = self.hand.pop_front() {
            self.comes_back(batch.units, batch.at_us);
        }
    }

    /// Returns everything that Redis has reserved for this node, which shuts down.
    pub fn leave(&mut self) {
        self.retire();
        self.is_leaving = true;
        for own in &mut self.own {
            own.promise = None;
        }
    }

    /// Returns units that were granted for waiting requests and that none of them took: the grant used the whole burst,
    /// which is not available for later requests.
    pub fn retire_unless(&mut self, ahead: u64) {
        if ahead == 0 {
            self.retire();
        }
    }

    fn expire(&mut self, now_ns: u64) {
        while let Some(batch) = self.hand.front().copied().filter(|b| now_ns >= b.until_ns) {
            self.hand.pop_front();
            self.comes_back(batch.units, batch.at_us);
        }
    }

    fn comes_back(&mut self, units: u64, at_us: i64) {
        self.returned_at_us = if self.returned == 0 { at_us } else { self.returned_at_us.min(at_us) };
        self.returned = self.returned.saturating_add(units);
    }

    fn units(&self) -> u64 {
        self.hand.iter().map(|b| b.units).sum()
    }

    fn max_places(&self) -> Option<u64> {
        self.limits
            .iter()
            .find_map(|l| if let LimitRule::InFlight { max } = l.rule { Some(max) } else { None })
    }

    fn has_place(&self, now_ns: u64) -> bool {
        let alive = now_ns.saturating_sub(self.places_from_ns) < ns(PLACES_LIFE) - ns(RENEW_EVERY);
        self.max_places().is_none() || (alive && self.in_flight < self.places)
    }

    /// Moves to the windows of this instant. Units granted in other windows become invalid. A window that overlaps the one
    /// before is the same window under another calendar, and goes on.
    fn turn(&mut self, calendar: Calendar, wall: Timestamp) {
        if wall < self.latest && self.latest.since(wall) < STEP_MIN {
            return;
        }
        self.latest = wall;
        if self.calendar == calendar && self.own.iter().all(|own| own.window.contains(wall)) {
            return;
        }
        self.calendar = calendar;
        for (own, window) in self.own.iter_mut().zip(Window::all(calendar, wall)) {
            if own.window.overlaps(&window) {
                own.window = window;
            } else {
                self.generation += 1;
                *own = OwnWindow { window, since: self.generation, ..OwnWindow::default() };
                // They are not returned: they were paid in a window that is over, and stay counted in the others.
                self.hand.clear();
            }
        }
    }
}

// === refusals ===

impl SubjectPool {
    /// The cached refusal.
    pub fn refusal(&self, now_ns: u64) -> Option<Box<Refusal>> {
        let known = self.exhausted.filter(|e| now_ns < e.until_ns)?;
        let passed = Duration::from_nanos(now_ns.saturating_sub(known.from_ns));
        let retry = match known.retry {
            RetryAfter::Wait(wait) => {
                RetryAfter::Wait(wait.saturating_sub(passed).max(Duration::from_nanos(1)))
            }
            other => other,
        };
        Some(Box::new(Refusal {
            refused: LimitReached { limit: known.limit, retry },
            left: self.left(now_ns),
        }))
    }

    /// What is left of each limit, granted units included.
    pub fn left(&self, now_ns: u64) -> LimitsLeft {
        let passed = Duration::from_nanos(now_ns.saturating_sub(self.left_at_ns));
        let (units, places) = (self.units(), self.places.saturating_sub(self.in_flight));
        let shown = |(limit, left): &(Limit, Remaining)| {
            let in_hand = if matches!(limit.rule, LimitRule::InFlight { .. }) { places } else { units };
            let reset = left.reset.map(|r| r.saturating_sub(passed));
            (*limit, Remaining { units: left.units.saturating_add(in_hand), reset })
        };
        self.left.iter().map(shown).collect()
    }

    /// Caches a refusal, or that a rate is empty for the moment.
    fn believe(&mut self, ask: &LeaseRequest, grant: &LeaseGrant, now_ns: u64) {
        let paced = |limit: Limit| (limit, RetryAfter::Wait(pace(&limit)));
        let Some((limit, retry)) = grant.refused.or_else(|| self.emptied(ask, grant).map(paced)) else {
            self.exhausted = None;
            self.believed = Duration::ZERO;
            return;
        };
        let (retry, holds) = match (limit.rule, retry) {
            (LimitRule::Bucket { .. }, RetryAfter::Wait(wait)) => {
                let wait = wait.max(pace(&limit));
                (RetryAfter::Wait(wait), wait)
            }
            (_, RetryAfter::Release) => (retry, PACE),
            (_, RetryAfter::Wait(wait)) => (retry, self.believe_longer().min(wait)),
            (_, RetryAfter::Never) => (retry, self.believe_longer()),
        };
        let until_ns = now_ns.saturating_add(ns(holds));
        self.exhausted = Some(Exhausted { limit, retry, from_ns: now_ns, until_ns });
    }

    fn believe_longer(&mut self) -> Duration {
        let (first, most) = BELIEVED;
        self.believed = (self.believed * 2).clamp(first, most);
        self.believed
    }

    /// The rate that this answer has exhausted, if it granted less than requested.
    fn emptied(&self, ask: &LeaseRequest, grant: &LeaseGrant) -> Option<Limit> {
        if grant.units >= ask.need + ask.ahead {
            return None;
        }
        let empty =
            |(l, left): &&(Limit, Remaining)| matches!(l.rule, LimitRule::Bucket { .. }) && left.units == 0;
        self.left.iter().find(empty).map(|(limit, _)| *limit)
    }
}

/// How long not to call for an exhausted rate: never so long that its bucket could overflow.
fn pace(limit: &Limit) -> Duration {
    let LimitRule::Bucket { rate, burst } = limit.rule else { return PACE };
    let rate = rate.max(1);
    let (step, whole) = (1_000_000_000 / rate, burst.saturating_mul(1_000_000_000) / rate);
    PACE.min(Duration::from_nanos(whole / 4)).max(Duration::from_nanos(step))
}
