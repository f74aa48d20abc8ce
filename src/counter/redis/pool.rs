//! What one node has of one measure of one subject: units granted by Redis, and a promise for when it is unreachable.
//!
//! Requests are spent when they are admitted. Of every other measure a request takes a *hold*, which is settled when it is
//! known what was used; [`SubjectPool::held`] makes a pool of that kind.
//!
//! Pure: no I/O, no clock. docs/explanation/redis.md describes the protocol; `grant.lua` is the other side.
//!
//! *Invariant:* a unit is spent within [`LIFE`] of its debit and before the first of its windows ends, or is returned.
//! *Invariant:* without Redis, no more is spent or held in a window than Redis has reserved for this node: unspent granted
//! units, holds and the promise. Whatever is lost on the way (a call, an answer) makes nodes admit fewer requests.
//! *Invariant:* a hold counts in the windows in which it was taken, and so does what it is settled to.

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
mod refusals;

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
/// How often holds are reported again, so that Redis does not release them with a promise that has expired.
const RENEW_HOLDS_EVERY: Duration = Duration::from_secs(3);
/// Most minutes for which unreported units are kept separately.
const UNTOLD_MAX: usize = 240;
const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;

/// One measure of one subject on this node.
#[derive(Clone, Debug, Default)]
pub struct SubjectPool {
    limits: Limits,
    kind: PoolKind,
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

/// What requests take of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PoolKind {
    /// Units that are spent at once.
    #[default]
    Spent,
    /// Holds that are settled later.
    Held,
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
    /// What requests hold.
    on_hold: u64,
    /// What Redis is known to reserve for holds and unspent granted units.
    told_hold: u64,
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
    /// Who wants less may still be granted it.
    units: u64,
    from_ns: u64,
    until_ns: u64,
}

/// Units spent without Redis, or settled, that are not reported yet, and when, by Redis' clock.
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
    units: u64,
    generation: u64,
    mark: Mark,
    /// When it was debited, by Redis' clock in µs; none if it was spent without Redis.
    debited_us: Option<i64>,
}

/// What waiting requests need of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Units for all of them.
    pub units: u64,
    /// Units for the one that needs least.
    pub least: u64,
}

/// The part of a call that concerns one measure of one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The number of the call; Redis processes each once, and none that is older than one it has processed.
    pub seq: u64,
    /// The epoch of the last answer; 0: none.
    pub epoch: i64,
    /// The limits to charge.
    pub limits: Limits,
    /// Units for waiting requests.
    pub waiting: u64,
    /// The part of this that exceeds the granted ones.
    pub need: u64,
    /// Units for the waiting request that needs least.
    pub least: u64,
    /// Further units in advance.
    pub ahead: u64,
    /// Whether the node shuts down and needs no promise.
    pub leaves: bool,
    /// What this node reports of each of [`WINDOWS`].
    pub windows: [WindowReport; WINDOWS.len()],
    /// Of each window, what requests hold or may hold at once: granted units included. None for requests, which are spent at
    /// once.
    pub holds: Option<[u64; WINDOWS.len()]>,
    /// Returned units, and when the first of them was debited.
    pub returned: (u64, i64),
    /// Units spent without Redis, or settled.
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
    /// What all nodes hold of each window.
    pub on_hold: [u64; WINDOWS.len()],
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

impl FallbackState {
    /// The same for a subject that has been decided for without Redis since then.
    #[must_use]
    pub fn since(&self, fallback_since_ns: Option<u64>) -> Self {
        let well_ns = fallback_since_ns.unwrap_or(self.well_ns);
        Self { well_ns, gone_since_ns: self.gone_since_ns.map(|_| well_ns), ..*self }
    }
}

impl OwnWindow {
    /// What all nodes have spent, as far as this one knows.
    const fn known(&self) -> u64 {
        self.heard.saturating_add(self.spent.saturating_sub(self.told))
    }
}

impl TakenUnits {
    /// How many.
    pub const fn units(&self) -> u64 {
        self.units
    }
}

const fn ns(d: Duration) -> u64 {
    // No duration here is longer than a few seconds.
    d.as_secs() * 1_000_000_000 + d.subsec_nanos() as u64
}

// === what is in hand ===

impl SubjectPool {
    /// A pool of a measure of which requests take holds.
    pub fn held() -> Self {
        Self { kind: PoolKind::Held, ..Self::default() }
    }

    fn is_held(&self) -> bool {
        self.kind == PoolKind::Held
    }

    /// Numbers the windows of this pool from `first`, so that Redis does not take it for an earlier one of this node.
    #[must_use]
    pub fn numbered_from(self, first: u64) -> Self {
        Self { generation: first, ..self }
    }

    /// Sets the limits in force. Units granted under other limits are returned.
    pub fn set_limits(&mut self, limits: &Limits) {
        if self.limits != *limits {
            self.retire();
            self.exhausted = None;
            self.limits.clone_from(limits);
        }
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.limits.is_empty()
    }

    /// Notes one more request, which wants so many units.
    pub const fn attempt(&mut self, units: u64) {
        self.attempts = self.attempts.saturating_add(units);
    }

    /// Whether a request may be admitted that takes so many of the granted units.
    pub fn can_spend(&mut self, units: u64, now_ns: u64) -> bool {
        self.expire(now_ns);
        self.has_place(now_ns) && self.units() >= units
    }

    /// Admits one request. Call only after [`Self::can_spend`] has returned true.
    pub fn spend(&mut self, units: u64, now: Now) -> TakenUnits {
        if units == 0 {
            // Nobody may have called for it yet.
            self.turn(self.limits.calendar, now.wall);
        }
        let (mut debited_us, mut missing) = (None, units);
        while missing > 0
            && let Some(batch) = self.hand.front_mut()
        {
            let taken = missing.min(batch.units);
            batch.units -= taken;
            missing -= taken;
            debited_us = debited_us.or(Some(batch.at_us));
            if batch.units == 0 {
                self.hand.pop_front();
            }
        }
        let mark = self.rates.take_rates(&self.limits, units, now);
        self.count(units);
        TakenUnits { units, generation: self.generation, mark, debited_us }
    }

    fn count(&mut self, units: u64) {
        if self.is_held() {
            self.own.iter_mut().for_each(|own| own.on_hold = own.on_hold.saturating_add(units));
            return;
        }
        self.own.iter_mut().for_each(|own| own.spent = own.spent.saturating_add(units));
        self.in_flight += 1;
        self.peak_in_flight = self.peak_in_flight.max(self.in_flight);
    }

    /// Ends a hold: `actual` units were used. More than was held counts at once, and Redis is told with the next call. Returns
    /// by how much more a limit is exceeded now, as far as this node knows.
    pub fn settle(&mut self, hold: &TakenUnits, actual: u64, wall: Timestamp) -> u64 {
        let before = self.excess();
        let mut is_in_all = true;
        for own in &mut self.own {
            if own.since > hold.generation {
                is_in_all = false;
                continue;
            }
            own.on_hold = own.on_hold.saturating_sub(hold.units);
            own.spent = own.spent.saturating_add(actual);
        }
        // What was held before a window began is not subtracted from what was spent in it.
        if actual > 0 && is_in_all {
            self.note_unreported(actual, wall.as_micros());
        }
        if actual < hold.units {
            self.exhausted = None;
        }
        self.excess().saturating_sub(before)
    }

    /// What requests hold in each of [`WINDOWS`], by the last window.
    pub fn on_hold(&self) -> [u64; WINDOWS.len()] {
        self.own.map(|own| own.on_hold)
    }

    /// By how much a limit is exceeded.
    fn excess(&self) -> u64 {
        let over = |limit: &Limit| match limit.rule {
            LimitRule::Window { per, max } => Some(self.own[per.window_index()?].known().saturating_sub(max)),
            _ => None,
        };
        self.limits.iter().filter_map(over).max().unwrap_or(0)
    }

    /// Refunds a request that was not forwarded.
    pub fn give_back(&mut self, spent: &TakenUnits) {
        let is_held = self.is_held();
        for own in self.own.iter_mut().filter(|own| own.since <= spent.generation) {
            let count = if is_held { &mut own.on_hold } else { &mut own.spent };
            *count = count.saturating_sub(spent.units);
        }
        if is_held {
            self.exhausted = None;
            return;
        }
        self.rates.give_back_rates(&self.limits, spent.units, spent.mark);
        match spent.debited_us {
            Some(at_us) => self.comes_back(spent.units, at_us),
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
