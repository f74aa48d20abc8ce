//! What one node owns of one key's limits: units that are already debited in Redis, and places in flight.
//!
//! A unit pays every limit of the key and of its workspace at once, so that one number is all a request has to look at.
//! Pure: no I/O, no clock. When Redis is gone, units that are still valid are spent and nothing new is granted.
//!
//! *Invariant:* a unit is spent within [`LIFE`] of its debit and before the first of its windows ends, or goes back.
//! *Invariant:* whatever is lost on the way (a call, an answer, a node) was debited before: losing it admits fewer.

use super::{Left, Refusal};
use crate::clock::Timestamp;
use crate::policy::limit::{Limit, Limits, Refused, Remaining, RetryAfter, Rule, window_end};
use std::collections::VecDeque;
use std::time::Duration;

/// How long a unit may be kept. The script takes the same off the burst while units are leased ahead of need.
pub const LIFE: Duration = Duration::from_millis(50);
/// How long Redis remembers the places of a node that has gone silent.
const PLACES_LIFE: Duration = Duration::from_secs(5);
/// How often places are renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// A node that was told "empty" lets a rate fill up for as long, so that a flood does not reach Redis.
const PACE: Duration = Duration::from_millis(25);
/// How long a refusal by a window is believed at first, and at most; other nodes may give units back meanwhile.
const BELIEVED: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Fewer units than this in one lease are not worth one: they are taken when they are needed.
const LEASE_MIN: u64 = 4;
/// Most units in one lease.
const LEASE_MAX: u64 = 10_000;
/// Minutes of which adjustments are kept apart.
const ADJUSTMENTS_MAX: usize = 240;
const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;

/// The units and places of one key on this node.
#[derive(Debug, Default)]
pub struct Lease {
    /// What the units were paid against.
    limits: Limits,
    batches: VecDeque<Batch>,
    /// Units wanted in hand: what was lately asked for within [`LIFE`].
    target: u64,
    attempts: u64,
    asked_at_ns: u64,
    exhausted: Option<Exhausted>,
    believed: Duration,
    left: Left,
    left_at_ns: u64,
    in_flight: u64,
    peak_in_flight: u64,
    places: u64,
    places_from_ns: u64,
    adjustments: Vec<Adjustment>,
    /// Units spent without Redis that questions on their way tell of.
    telling: u64,
    /// Redis's clock in µs when this node's steady one read so many ns.
    redis_clock: Option<(i64, u64)>,
}

/// Units of one grant.
#[derive(Clone, Copy, Debug)]
struct Batch {
    units: u64,
    at_us: i64,
    until_ns: u64,
}

/// A refusal that is believed without asking again.
#[derive(Clone, Copy, Debug)]
struct Exhausted {
    limit: Limit,
    retry: RetryAfter,
    from_ns: u64,
    until_ns: u64,
}

/// Units spent without Redis (positive) or given back to it (negative), and when by Redis's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjustment {
    /// µs since the epoch.
    pub at_us: i64,
    /// Units.
    pub units: i64,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Take {
    /// It has a unit, debited at that instant of Redis's clock in µs.
    Unit(i64),
    /// It is over a limit.
    Refused(Box<Refusal>),
    /// Redis must be asked.
    Ask,
}

/// What Redis is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The limits to charge.
    pub limits: Limits,
    /// Requests that wait.
    pub need: u64,
    /// Units in hand.
    pub have: u64,
    /// Units wanted beyond.
    pub ahead: u64,
    /// Places held, if places are limited.
    pub places: Option<u64>,
    /// Places wanted beyond those of waiting requests.
    pub ahead_places: u64,
    /// The ceiling of places.
    pub max_places: u64,
    /// What was spent or given back.
    pub adjustments: Vec<Adjustment>,
    /// Units that other keys of the workspace have spent on this node and Redis may not know of.
    pub others_owe: u64,
}

/// What Redis answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Redis's clock in µs.
    pub now_us: i64,
    /// Units debited.
    pub units: u64,
    /// Places this node now holds.
    pub places: u64,
    /// Places free.
    pub places_left: u64,
    /// Why nothing was granted to the requests that wait.
    pub refused: Option<(Limit, RetryAfter)>,
    /// What is left of each limit, in the order asked.
    pub left: Left,
    /// Since when, in µs, Redis has counted; what was granted before is not counted any more.
    pub made_us: i64,
}

const fn ns(d: Duration) -> u64 {
    // No duration here is longer than a few seconds.
    d.as_secs() * 1_000_000_000 + d.subsec_nanos() as u64
}

// === impl Lease ===

impl Lease {
    /// Takes one unit and one place, as one request that is charged against `limits` needs them.
    pub fn take(&mut self, limits: &Limits, now_ns: u64) -> Take {
        self.attempts = self.attempts.saturating_add(1);
        if self.limits != *limits {
            self.retire();
            self.exhausted = None;
            self.limits.clone_from(limits);
        }
        if let Some(at_us) = self.spend(now_ns) {
            return Take::Unit(at_us);
        }
        match self.refusal(now_ns) {
            Some(refusal) => Take::Refused(refusal),
            None => Take::Ask,
        }
    }

    /// Takes one unit and one place from what is in hand. Answers when it was debited.
    pub fn spend(&mut self, now_ns: u64) -> Option<i64> {
        self.expire(now_ns);
        if !self.has_place(now_ns) {
            return None;
        }
        let batch = self.batches.front_mut()?;
        batch.units -= 1;
        let at_us = batch.at_us;
        if batch.units == 0 {
            self.batches.pop_front();
        }
        self.start();
        Some(at_us)
    }

    /// The refusal that is still believed.
    pub fn refusal(&self, now_ns: u64) -> Option<Box<Refusal>> {
        let known = self.exhausted.filter(|e| now_ns < e.until_ns)?;
        let passed = Duration::from_nanos(now_ns.saturating_sub(known.from_ns));
        let retry = match known.retry {
            RetryAfter::Wait(wait) => {
                RetryAfter::Wait(wait.saturating_sub(passed).max(Duration::from_nanos(1)))
            }
            other => other,
        };
        Some(Box::new(Refusal { refused: Refused { limit: known.limit, retry }, left: self.left(now_ns) }))
    }

    /// Whether it is time to ask for more, before a request has to wait for it.
    pub fn is_low(&self) -> bool {
        let paced = self.exhausted.is_some();
        !paced && self.target >= LEASE_MIN && self.units() <= self.target / 2
    }

    /// What to ask Redis for when `waiting` requests wait.
    pub fn ask(&mut self, waiting: u64, now_ns: u64) -> Ask {
        self.expire(now_ns);
        // Five milliseconds at least, or the first few requests after a pause would pass for a flood.
        let elapsed = now_ns.saturating_sub(self.asked_at_ns).max(ns(LIFE) / 10);
        let demand = self.attempts.saturating_mul(ns(LIFE)) / elapsed;
        self.target = u64::midpoint(self.target, demand).min(LEASE_MAX);
        self.attempts = 0;
        self.asked_at_ns = now_ns;
        let have = self.units();
        let ahead = if self.target < LEASE_MIN {
            0
        } else {
            self.target.saturating_sub(have.saturating_sub(waiting))
        };
        let ahead_places = if waiting > 0 { self.in_flight } else { 0 };
        self.call(waiting, ahead, self.in_flight, ahead_places)
    }

    /// Whether Redis should hear something now though nobody waits.
    pub fn is_due(&self, now_ns: u64) -> bool {
        let expired = self.batches.front().is_some_and(|b| now_ns >= b.until_ns);
        expired || !self.adjustments.is_empty() || self.places_are_due(now_ns)
    }

    /// What Redis should hear though nobody waits: units unspent, units spent without it, places to renew or leave.
    /// With `tell`, it is to hear from this node even if there is none of that.
    pub fn settle(&mut self, tell: bool, now_ns: u64) -> Option<Ask> {
        self.expire(now_ns);
        let places_are_due = self.places_are_due(now_ns);
        let used_places = self.peak_in_flight.max(self.in_flight);
        self.peak_in_flight = self.in_flight;
        if self.adjustments.is_empty() && !places_are_due && !tell {
            return None;
        }
        Some(self.call(0, 0, used_places.min(self.places).max(self.in_flight), 0))
    }

    fn places_are_due(&self, now_ns: u64) -> bool {
        let unused = self.places > self.in_flight;
        let old = now_ns.saturating_sub(self.places_from_ns) >= ns(RENEW_EVERY);
        self.max_places().is_some() && (unused || (self.places > 0 && old))
    }

    /// Whether Redis will have to hear something sooner or later.
    pub fn owes(&self) -> bool {
        !self.adjustments.is_empty() || !self.batches.is_empty() || self.places > 0
    }

    fn call(&mut self, need: u64, ahead: u64, holding: u64, ahead_places: u64) -> Ask {
        let max_places = self.max_places();
        self.telling = self.telling.saturating_add(spent(&self.adjustments));
        // Until the answer, no request may take a place that Redis is being told is free.
        self.places = self.places.min(holding);
        Ask {
            limits: self.limits.clone(),
            need,
            have: if need > 0 { self.units() } else { 0 },
            ahead,
            places: max_places.map(|_| holding),
            ahead_places,
            max_places: max_places.unwrap_or(0),
            adjustments: std::mem::take(&mut self.adjustments),
            others_owe: 0,
        }
    }

    /// A question is over, whatever becomes of it.
    pub fn is_over(&mut self, ask: &Ask) {
        self.telling = self.telling.saturating_sub(spent(&ask.adjustments));
    }

    /// Units spent without Redis of which it may not know.
    pub fn owed(&self) -> u64 {
        self.telling.saturating_add(spent(&self.adjustments))
    }

    /// Takes in what Redis answered to a question sent at `sent_ns`.
    pub fn answer(&mut self, ask: &Ask, grant: &Grant, sent_ns: u64, now_ns: u64) {
        if self.limits != ask.limits {
            self.adjust(grant.now_us, -signed(grant.units));
            return;
        }
        self.redis_clock = Some((grant.now_us, sent_ns));
        // Redis was emptied meanwhile: it does not know of these units any more.
        self.batches.retain(|b| b.at_us >= grant.made_us);
        let units = self.pay(grant);
        if units > 0 {
            let until_ns = sent_ns.saturating_add(self.life_ns(grant.now_us));
            self.batches.push_back(Batch { units, at_us: grant.now_us, until_ns });
        }
        if ask.places.is_some() {
            self.places = grant.places;
            self.places_from_ns = sent_ns;
        }
        self.left.clone_from(&grant.left);
        self.left_at_ns = now_ns;
        if ask.need > 0 || ask.ahead > 0 {
            self.believe(ask, grant, now_ns);
        }
    }

    /// Pays what was admitted without Redis while it was being asked, of which it knew nothing when it granted these. Answers
    /// how many are left.
    fn pay(&mut self, grant: &Grant) -> u64 {
        let mut left = grant.units;
        let owed = |a: &&mut Adjustment| {
            a.units > 0 && a.at_us.div_euclid(MINUTE_US) == grant.now_us.div_euclid(MINUTE_US)
        };
        for owed in self.adjustments.iter_mut().filter(owed) {
            let paid = left.min(owed.units.unsigned_abs());
            owed.units -= signed(paid);
            left -= paid;
        }
        self.adjustments.retain(|a| a.units != 0);
        left
    }

    /// An answer came after another question was asked: what it granted goes back.
    pub fn too_late(&mut self, grant: &Grant) {
        self.adjust(grant.now_us, -signed(grant.units));
    }

    /// Gives back what a question for waiting requests alone brought and nobody took.
    pub fn retire(&mut self) {
        while let Some(batch) = self.batches.pop_front() {
            self.adjust(batch.at_us, -signed(batch.units));
        }
    }

    /// A question was not answered. Whether Redis acted on it is unknown, so only what it must not miss is told again.
    pub fn unanswered(&mut self, ask: &Ask) {
        for owed in ask.adjustments.iter().filter(|a| a.units > 0) {
            self.adjust(owed.at_us, owed.units);
        }
    }

    /// A question was not acted on.
    pub fn unheard(&mut self, ask: &Ask) {
        for adjustment in &ask.adjustments {
            self.adjust(adjustment.at_us, adjustment.units);
        }
    }

    /// A request was admitted without Redis. Answers the instant it is to be debited at.
    pub fn owe(&mut self, now_ns: u64, wall: Timestamp) -> i64 {
        let at_us = self.redis_now(now_ns, wall);
        self.adjust(at_us, 1);
        self.start();
        at_us
    }

    /// A request was not forwarded after all.
    pub fn give_back(&mut self, at_us: i64) {
        self.adjust(at_us, -1);
        self.end();
    }

    /// A request is over.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.exhausted.is_some_and(|e| e.retry == RetryAfter::Release) {
            self.exhausted = None;
        }
    }

    /// What is left of each limit, units in hand included.
    pub fn left(&self, now_ns: u64) -> Left {
        let passed = Duration::from_nanos(now_ns.saturating_sub(self.left_at_ns));
        let (units, places) = (self.units(), self.places.saturating_sub(self.in_flight));
        let shown = |(limit, left): &(Limit, Remaining)| {
            let in_hand = if matches!(limit.rule, Rule::InFlight { .. }) { places } else { units };
            let reset = left.reset.map(|r| r.saturating_sub(passed));
            (*limit, Remaining { units: left.units.saturating_add(in_hand), reset })
        };
        self.left.iter().map(shown).collect()
    }

    fn start(&mut self) {
        self.in_flight += 1;
        self.peak_in_flight = self.peak_in_flight.max(self.in_flight);
    }

    /// Units in hand.
    pub fn units(&self) -> u64 {
        self.batches.iter().map(|b| b.units).sum()
    }

    fn max_places(&self) -> Option<u64> {
        self.limits.iter().find_map(|l| if let Rule::InFlight { max } = l.rule { Some(max) } else { None })
    }

    fn has_place(&self, now_ns: u64) -> bool {
        let alive = now_ns.saturating_sub(self.places_from_ns) < ns(PLACES_LIFE) - ns(RENEW_EVERY);
        self.max_places().is_none() || (alive && self.in_flight < self.places)
    }

    /// How long a unit debited at `at_us` may be kept: not beyond the end of any window that it was paid in.
    fn life_ns(&self, at_us: i64) -> u64 {
        let at = Timestamp::from_micros(at_us);
        let windows = self.limits.iter().filter_map(|l| match l.rule {
            Rule::Window { per, .. } => window_end(per, at).map(|end| end.since(at)),
            _ => None,
        });
        windows.min().map_or(ns(LIFE), |end| ns(LIFE.min(end)))
    }

    fn expire(&mut self, now_ns: u64) {
        while let Some(batch) = self.batches.front().copied().filter(|b| now_ns >= b.until_ns) {
            self.batches.pop_front();
            self.adjust(batch.at_us, -signed(batch.units));
        }
    }

    /// Remembers a refusal, or that a rate is empty for the moment.
    fn believe(&mut self, ask: &Ask, grant: &Grant, now_ns: u64) {
        let paced = |limit: Limit| (limit, RetryAfter::Wait(pace(&limit)));
        let Some((limit, retry)) = grant.refused.or_else(|| self.emptied(ask, grant).map(paced)) else {
            self.exhausted = None;
            self.believed = Duration::ZERO;
            return;
        };
        let (retry, holds) = match (limit.rule, retry) {
            (Rule::Bucket { .. }, RetryAfter::Wait(wait)) => {
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

    /// The rate that this answer has taken the last of, if it gave less than was asked for.
    fn emptied(&self, ask: &Ask, grant: &Grant) -> Option<Limit> {
        if grant.units >= ask.need.saturating_sub(ask.have) + ask.ahead {
            return None;
        }
        let empty =
            |(l, left): &&(Limit, Remaining)| matches!(l.rule, Rule::Bucket { .. }) && left.units == 0;
        self.left.iter().find(empty).map(|(limit, _)| *limit)
    }

    fn redis_now(&self, now_ns: u64, wall: Timestamp) -> i64 {
        match self.redis_clock {
            Some((us, at_ns)) => us.saturating_add(signed(now_ns.saturating_sub(at_ns) / 1_000)),
            None => wall.as_micros(),
        }
    }

    /// Keeps adjustments apart by second, and those of past minutes by minute: every window holds whole minutes, and
    /// what is older than a few seconds is in the ledger from which an emptied Redis is filled.
    fn adjust(&mut self, at_us: i64, units: i64) {
        if units == 0 {
            return;
        }
        let adjustment = Adjustment { at_us, units };
        if let Some(known) = self.adjustments.iter_mut().find(|a| a.is_like(&adjustment, SECOND_US)) {
            known.merge(&adjustment);
            return;
        }
        if !self.adjustments.iter().any(|a| a.is_like(&adjustment, MINUTE_US)) {
            self.fold();
        }
        self.adjustments.push(adjustment);
    }

    fn fold(&mut self) {
        let mut folded: Vec<Adjustment> = Vec::with_capacity(self.adjustments.len());
        for adjustment in self.adjustments.drain(..) {
            match folded.iter_mut().find(|a| a.is_like(&adjustment, MINUTE_US)) {
                Some(known) => known.merge(&adjustment),
                None => folded.push(adjustment),
            }
        }
        while folded.len() > ADJUSTMENTS_MAX {
            // Of an outage of hours the oldest two minutes become one, told at the later.
            let oldest = folded.remove(0);
            match folded.iter_mut().find(|a| (a.units > 0) == (oldest.units > 0)) {
                Some(next) => next.units = next.units.saturating_add(oldest.units),
                None => break,
            }
        }
        self.adjustments = folded;
    }
}

// === impl Ask, Adjustment ===

impl Ask {
    /// Units spent without Redis that it tells of.
    pub fn owed(&self) -> u64 {
        spent(&self.adjustments)
    }

    /// The most units that the answer may bring.
    pub const fn may_bring(&self) -> u64 {
        self.need.saturating_sub(self.have).saturating_add(self.ahead)
    }
}

impl Adjustment {
    const fn is_like(&self, other: &Self, span_us: i64) -> bool {
        let same_span = self.at_us.div_euclid(span_us) == other.at_us.div_euclid(span_us);
        same_span && (self.units > 0) == (other.units > 0)
    }

    /// What was spent counts as late, and what is given back as early: both on the side that admits fewer.
    const fn merge(&mut self, other: &Self) {
        self.units = self.units.saturating_add(other.units);
        let take_other = if self.units > 0 { other.at_us > self.at_us } else { other.at_us < self.at_us };
        if take_other {
            self.at_us = other.at_us;
        }
    }
}

/// How long a rate that was emptied is let fill up: never so long that its bucket could overflow.
fn pace(limit: &Limit) -> Duration {
    let Rule::Bucket { rate, burst } = limit.rule else { return PACE };
    let rate = rate.max(1);
    let (step, whole) = (1_000_000_000 / rate, burst.saturating_mul(1_000_000_000) / rate);
    PACE.min(Duration::from_nanos(whole / 4)).max(Duration::from_nanos(step))
}

fn spent(adjustments: &[Adjustment]) -> u64 {
    adjustments.iter().filter(|a| a.units > 0).map(|a| a.units.unsigned_abs()).sum()
}

fn signed(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}
