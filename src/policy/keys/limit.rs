//! The rule of each kind of limit: may this be charged now, and if not, when?
//!
//! These functions are the specification of every counter. They know no clock, no lock and no other node: they take a
//! [`Now`] and a [`CounterState`] and return a result. A counter backend is correct if it agrees with them.
//!
//! *Invariant:* a window goes on when its calendar is changed: what was spent in it counts in the one that takes its place.
//! *Invariant:* a refusal changes no state.
//! *Invariant:* what is refused until `t` is admitted at `t` if nothing else was charged meanwhile.
//! *Invariant:* a calendar that steps forward and back again forgets nothing.

use super::calendar::Window;
use crate::clock::{Now, Timestamp};
use crate::model::amounts::Amounts;
use crate::model::calendar::Calendar;
use crate::model::key::{Ceiling, Key, Measure, Owner, Per, Plan};
use bucket::{Bucket, step_ns};
pub use list::Limits;
use metered::MeteredState;
pub use metered::{MeteredCount, MeteredUnits};
use smallvec::SmallVec;
use std::time::Duration;
use window_count::{WindowCounts, seconds};

/// A limit in force: a rule with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Which limit of the contract this is.
    pub name: LimitName,
    /// What it counts.
    pub count: Measure,
    /// Its rule.
    pub rule: LimitRule,
}

/// Which limit, for messages, headers and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitName {
    /// `rate_limit`; the plan's value if `plan` is true.
    Rate {
        /// Whether the plan, not the key, set the rate in force.
        plan: bool,
    },
    /// `daily_request_limit`.
    Daily,
    /// `quota_limit`.
    Quota,
    /// `concurrency_limit`.
    Concurrency,
    /// The n-th of the key's `limits[]`.
    Key(u8),
    /// The n-th of the plan's `limits[]`, counted for each key.
    PlanKey(u8),
    /// The n-th of the plan's `limits[]`, counted over the workspace.
    Workspace(u8),
    /// The n-th of the plan's `limits[]`, counted for each end user.
    EndUser(u8),
}

/// How charges are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitRule {
    /// A token bucket of `burst` units that refills by `rate` per second (GCRA, ITU-T I.371).
    Bucket {
        /// Refill in units per second.
        rate: u64,
        /// Capacity in units.
        burst: u64,
    },
    /// At most `max` in each calendar window.
    Window {
        /// The window; never [`Per::Second`].
        per: Per,
        /// Units per window.
        max: u64,
    },
    /// At most `max` at once.
    InFlight {
        /// Units in flight.
        max: u64,
    },
}

/// What one key or workspace has spent. The default is nothing.
///
/// Every window is counted, whether a limit is set on it or not. So a limit that is set or raised later counts what really
/// happened, and two limits on one window do not charge it twice.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CounterState {
    /// The bucket of `rate_limit`.
    rate: Bucket,
    /// The bucket of a further limit per second.
    second: Bucket,
    /// Requests in flight.
    in_flight: u64,
    /// The calendar of these windows.
    calendar: Calendar,
    /// Requests, in the order of [`Per::WINDOWS`].
    windows: [WindowCounts<u64>; Per::WINDOWS.len()],
    /// What meters find out; none before the first metered request.
    metered: Option<Box<MeteredState>>,
}

/// The position of a charge in the buckets of a subject, for a refund: the oldest charges refill first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mark {
    rate: u64,
    second: u64,
}

/// The time in ns until the two buckets of a subject are full again. It is independent of the origin of the steady clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BucketDebt {
    /// Of `rate_limit`.
    pub rate_ns: u64,
    /// Of a further limit per second.
    pub second_ns: u64,
}

/// Why a charge was refused: the limit with the longest wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitReached {
    /// Which limit.
    pub limit: Limit,
    /// When the charge would be admitted.
    pub retry: RetryAfter,
}

/// What is left of a limit, for response headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Units that could be charged now.
    pub units: u64,
    /// Time until the limit is whole again; none for a total and for requests in flight.
    pub reset: Option<Duration>,
}

/// When a refused charge would be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryAfter {
    /// When a request in flight ends.
    Release,
    /// After this long, if nothing else is charged meanwhile.
    Wait(Duration),
    /// Never while the limit stays as it is.
    Never,
}

// === the limits in force ===

/// The limits of `key` under `plan` that are counted per key. The lower of the two rates applies.
pub fn key_limits(key: &Key, plan: &Plan) -> Limits {
    let own = &key.ceilings;
    let plan_rules = plan.api_ops_rate_limit < own.rate_limit;
    let rate = own.rate_limit.min(plan.api_ops_rate_limit);
    // A burst may exceed the key's own rate. Under a lowered plan it may not exceed the plan's limit.
    let burst = own.rate_burst.unwrap_or(rate);
    let burst = if plan_rules { burst.min(plan.api_ops_rate_limit) } else { burst };
    let requests = |name, rule| Limit { name, count: Measure::Requests, rule };
    let mut limits = Limits::new().in_calendar(plan.calendar);
    limits.push(requests(
        LimitName::Rate { plan: plan_rules },
        LimitRule::Bucket { rate: rate.into(), burst: burst.into() },
    ));
    if let Some(max) = own.daily_request_limit {
        limits.push(requests(LimitName::Daily, LimitRule::Window { per: Per::Day, max }));
    }
    if let Some(max) = own.quota_limit {
        limits.push(requests(LimitName::Quota, LimitRule::Window { per: Per::Total, max }));
    }
    if let Some(max) = own.concurrency_limit {
        limits.push(requests(LimitName::Concurrency, LimitRule::InFlight { max: max.into() }));
    }
    limits.extend((0_u8..).zip(own.limits.iter()).map(|(n, c)| Limit::further(LimitName::Key(n), c)));
    for limit in plan_limits(plan, Owner::Key) {
        // There is one bucket for the second, so the lower of the two applies.
        let second =
            limits.iter_mut().find(|l| matches!(l.name, LimitName::Key(_)) && l.per() == Some(Per::Second));
        match second {
            Some(own) if limit.per() == Some(Per::Second) => {
                if limit.max() < own.max() {
                    *own = limit;
                }
            }
            _ => limits.push(limit),
        }
    }
    limits
}

/// The limits of `plan` that are counted over all keys of a workspace together.
pub fn workspace_limits(plan: &Plan) -> Limits {
    plan_limits(plan, Owner::Workspace).collect::<Limits>().in_calendar(plan.calendar)
}

/// The limits of `plan` that are counted for each end user.
pub fn end_user_limits(plan: &Plan) -> Limits {
    plan_limits(plan, Owner::EndUser).collect::<Limits>().in_calendar(plan.calendar)
}

fn plan_limits(plan: &Plan, of: Owner) -> impl Iterator<Item = Limit> {
    let those = (0_u8..).zip(plan.limits.iter()).filter(move |(_, ceiling)| ceiling.of == of);
    those.map(move |(n, ceiling)| {
        let name = match of {
            Owner::Workspace => LimitName::Workspace(n),
            Owner::Key => LimitName::PlanKey(n),
            Owner::EndUser => LimitName::EndUser(n),
        };
        Limit::further(name, ceiling)
    })
}

// === impl BucketDebt, Limit ===

impl BucketDebt {
    /// Whether both buckets are full.
    pub const fn is_nothing(self) -> bool {
        self.rate_ns == 0 && self.second_ns == 0
    }
}

impl Limit {
    fn further(name: LimitName, ceiling: &Ceiling) -> Self {
        Self { name, count: ceiling.count, rule: LimitRule::of(ceiling.per, ceiling.max) }
    }

    /// The limit's number.
    pub const fn max(&self) -> u64 {
        match self.rule {
            LimitRule::Bucket { rate, .. } => rate,
            LimitRule::Window { max, .. } | LimitRule::InFlight { max } => max,
        }
    }

    /// The window; none for requests in flight.
    pub const fn per(&self) -> Option<Per> {
        match self.rule {
            LimitRule::Bucket { .. } => Some(Per::Second),
            LimitRule::Window { per, .. } => Some(per),
            LimitRule::InFlight { .. } => None,
        }
    }
}

// === impl LimitRule ===

impl LimitRule {
    /// The rule for at most `max` per `per`.
    pub const fn of(per: Per, max: u64) -> Self {
        match per {
            Per::Second => Self::Bucket { rate: max, burst: max },
            per => Self::Window { per, max },
        }
    }
}

// === impl CounterState ===

impl CounterState {
    /// The state from the ledger's totals for the windows of `calendar` that contain `at`.
    pub fn restored(
        at: Timestamp,
        calendar: Calendar,
        used: &[u64; Per::WINDOWS.len()],
        metered: &[MeteredUnits; Per::WINDOWS.len()],
    ) -> Self {
        let mut state = Self { calendar, ..Self::default() };
        for ((counts, window), used) in state.windows.iter_mut().zip(Window::all(calendar, at)).zip(used) {
            counts.turn(&window).used = *used;
        }
        for (n, units) in metered.iter().enumerate().filter(|(_, units)| **units != MeteredUnits::default()) {
            state.metered_mut(n, at).used = *units;
        }
        state
    }

    /// Whether `amounts` may be charged to all of `limits` at `now`. Changes nothing. A measure of which nothing is
    /// charged is not checked.
    pub fn check(&self, limits: &Limits, amounts: &Amounts, now: Now) -> Result<(), LimitReached> {
        let mut worst: Option<LimitReached> = None;
        for limit in limits.iter() {
            let cost = amounts.get(limit.count);
            let Err(retry) = self.check_one(limit, limits.calendar, cost, now) else { continue };
            if worst.is_none_or(|w| retry > w.retry) {
                worst = Some(LimitReached { limit: *limit, retry });
            }
        }
        worst.map_or(Ok(()), Err)
    }

    fn check_one(&self, limit: &Limit, calendar: Calendar, cost: u64, now: Now) -> Result<(), RetryAfter> {
        match limit.rule {
            LimitRule::Bucket { rate, burst } => {
                let step = step_ns(rate);
                let debt = self.bucket(limit.name).debt_ns(step, burst, now.steady_ns);
                let charged = debt.saturating_add(step.saturating_mul(cost));
                let allowed = step.saturating_mul(burst);
                if charged <= allowed {
                    return Ok(());
                }
                if cost > burst {
                    return Err(RetryAfter::Never);
                }
                Err(RetryAfter::Wait(Duration::from_nanos(charged - allowed)))
            }
            LimitRule::Window { .. } if cost == 0 => Ok(()),
            LimitRule::Window { per, max } => {
                let (used, held) = self.used_and_held(limit.count, per, calendar, now.wall);
                let with_it = used.saturating_add(cost);
                if with_it.saturating_add(held) <= max {
                    return Ok(());
                }
                if with_it <= max {
                    // Only holds are in the way.
                    return Err(RetryAfter::Release);
                }
                match self.reset(per, calendar, now.wall) {
                    Some(left) if cost <= max => Err(RetryAfter::Wait(left)),
                    _ => Err(RetryAfter::Never),
                }
            }
            LimitRule::InFlight { max } => {
                if self.in_flight.saturating_add(cost) <= max {
                    return Ok(());
                }
                Err(if cost <= max { RetryAfter::Release } else { RetryAfter::Never })
            }
        }
    }

    /// Charges `amounts`: requests are used, the rest is held. Call only after [`CounterState::check`] succeeded with the
    /// same `now`.
    pub fn take(&mut self, limits: &Limits, amounts: &Amounts, now: Now) -> Mark {
        let cost = amounts.get(Measure::Requests);
        let mark = self.take_rates(limits, cost, now);
        self.follow(limits.calendar, now.wall);
        let at_s = seconds(now.wall);
        for (per, counts) in Per::WINDOWS.into_iter().zip(&mut self.windows) {
            let count = if counts.newest.contains(at_s) {
                &mut counts.newest
            } else {
                counts.turn(&Window::of(per, limits.calendar, now.wall))
            };
            count.used = count.used.saturating_add(cost);
        }
        if amounts.is_metered() {
            self.metered.get_or_insert_default().hold(&amounts.metered(), limits.calendar, now.wall);
        }
        self.hold(cost);
        mark
    }

    /// Replaces what was held since a charge at `charged_at` by what was used; nothing used releases the hold. Returns by
    /// how much more each measure now exceeds one of `limits`.
    pub fn settle(
        &mut self,
        limits: &Limits,
        hold: &Amounts,
        used: &Amounts,
        charged_at: Timestamp,
    ) -> MeteredUnits {
        let mut passed = MeteredUnits::default();
        let Some(state) = &mut self.metered else { return passed };
        let windows = limits.iter().filter_map(|limit| match limit.rule {
            LimitRule::Window { per, max } => Some((limit.count.metered_index()?, per, max)),
            _ => None,
        });
        let over = |state: &MeteredState, (n, per, max): (usize, Per, u64)| {
            state.count(per, limits.calendar, charged_at).of(n).0.saturating_sub(max)
        };
        let before: SmallVec<[u64; 8]> = windows.clone().map(|window| over(state, window)).collect();
        state.settle(&hold.metered(), &used.metered(), charged_at);
        for (window, before) in windows.zip(before) {
            let more = over(state, window).saturating_sub(before);
            passed[window.0] = passed[window.0].max(more);
        }
        passed
    }

    /// Switches to the windows of `calendar`. Current windows continue their counts.
    pub fn follow(&mut self, calendar: Calendar, at: Timestamp) {
        if self.calendar != calendar {
            self.calendar = calendar;
            for (counts, window) in self.windows.iter_mut().zip(Window::all(calendar, at)) {
                counts.turn(&window);
            }
            if let Some(metered) = &mut self.metered {
                metered.follow(calendar, at);
            }
        }
    }

    /// Charges `cost` units to the buckets only.
    pub fn take_rates(&mut self, limits: &[Limit], cost: u64, now: Now) -> Mark {
        for limit in limits {
            if let LimitRule::Bucket { rate, burst } = limit.rule {
                self.bucket_mut(limit.name).charge(step_ns(rate), burst, cost, now.steady_ns);
            }
        }
        Mark { rate: self.rate.mark(), second: self.second.mark() }
    }

    /// Refunds [`Self::take_rates`]. What time has already refilled is not refunded again.
    pub fn give_back_rates(&mut self, limits: &[Limit], cost: u64, mark: Mark) {
        for limit in limits {
            match (limit.rule, limit.name) {
                (LimitRule::Bucket { .. }, LimitName::Rate { .. }) => self.rate.refund(cost, mark.rate),
                (LimitRule::Bucket { .. }, _) => self.second.refund(cost, mark.second),
                _ => {}
            }
        }
    }

    /// Counts `cost` units in flight that are not charged yet.
    pub fn hold(&mut self, cost: u64) {
        self.in_flight = self.in_flight.saturating_add(cost);
    }

    /// Refunds a charge of `cost` units made at `charged_at` against `limits`.
    pub fn give_back(&mut self, limits: &[Limit], cost: u64, charged_at: Now, mark: Mark) {
        self.give_back_rates(limits, cost, mark);
        let at_s = seconds(charged_at.wall);
        for counts in &mut self.windows {
            counts.subtract(at_s, cost);
        }
        self.release(cost);
    }

    /// Treats the buckets of `limits` as empty at `at_ns`, unless they are emptier: other nodes may have spent them.
    pub fn empty_buckets(&mut self, limits: &[Limit], at_ns: u64) {
        for limit in limits {
            if let LimitRule::Bucket { rate, burst } = limit.rule {
                self.bucket_mut(limit.name).empty(step_ns(rate), burst, at_ns);
            }
        }
    }

    /// Ends units in flight; their charge stays.
    pub fn release(&mut self, cost: u64) {
        self.in_flight = self.in_flight.saturating_sub(cost);
    }

    /// The remaining units of each of `limits` at `now`.
    pub fn left<'l>(
        &self,
        limits: &'l Limits,
        now: Now,
    ) -> impl Iterator<Item = (Limit, Remaining)> + use<'_, 'l> {
        limits.iter().map(move |l| (*l, self.remaining(l, limits.calendar, now)))
    }

    /// What is left of `limit` at `now`.
    pub fn remaining(&self, limit: &Limit, calendar: Calendar, now: Now) -> Remaining {
        match limit.rule {
            LimitRule::Bucket { rate, burst } => {
                let step = step_ns(rate);
                let debt = self.bucket(limit.name).debt_ns(step, burst, now.steady_ns);
                let units = burst.saturating_sub(debt.div_ceil(step));
                Remaining { units, reset: Some(Duration::from_nanos(debt)) }
            }
            LimitRule::Window { per, max } => {
                let (used, held) = self.used_and_held(limit.count, per, calendar, now.wall);
                Remaining {
                    units: max.saturating_sub(used).saturating_sub(held),
                    reset: self.reset(per, calendar, now.wall),
                }
            }
            LimitRule::InFlight { max } => {
                Remaining { units: max.saturating_sub(self.in_flight), reset: None }
            }
        }
    }

    /// What was spent in the window of `at`. The second is a bucket, so its result is 0.
    pub fn used(&self, per: Per, at: Timestamp) -> u64 {
        self.count(per, self.calendar, at)
    }

    /// What meters found out in the window of `at`, and what is held of it.
    pub fn metered(&self, per: Per, at: Timestamp) -> MeteredCount {
        self.metered.as_ref().map_or_else(MeteredCount::default, |m| m.count(per, self.calendar, at))
    }

    /// The same of the `n`-th of [`Per::WINDOWS`], to be corrected by what was counted elsewhere.
    pub fn metered_mut(&mut self, n: usize, at: Timestamp) -> &mut MeteredCount {
        self.metered.get_or_insert_default().count_mut(n, self.calendar, at)
    }

    /// What was used of a measure in the window of `at`, and what is held. Requests hold nothing.
    fn used_and_held(&self, measure: Measure, per: Per, calendar: Calendar, at: Timestamp) -> (u64, u64) {
        let Some(n) = measure.metered_index() else { return (self.count(per, calendar, at), 0) };
        self.metered.as_ref().map_or((0, 0), |metered| metered.count(per, calendar, at).of(n))
    }

    /// Whose windows these are.
    pub const fn calendar(&self) -> Calendar {
        self.calendar
    }

    fn count(&self, per: Per, calendar: Calendar, at: Timestamp) -> u64 {
        let Some(counts) = per.window_index().map(|n| &self.windows[n]) else { return 0 };
        // Also if that window belongs to another calendar: it would continue its count.
        if counts.newest.contains(seconds(at)) {
            return counts.newest.used;
        }
        counts.used(&Window::of(per, calendar, at))
    }

    /// The time from `at` to the end of its window.
    fn reset(&self, per: Per, calendar: Calendar, at: Timestamp) -> Option<Duration> {
        let known = per.window_index().map(|n| self.windows[n].newest);
        match known {
            Some(newest) if self.calendar == calendar && newest.contains(seconds(at)) => {
                newest.end().map(|end| end.since(at))
            }
            _ => Window::of(per, calendar, at).left(at),
        }
    }

    /// The debt of its buckets at `now`.
    pub const fn debt(&self, now: Now) -> BucketDebt {
        BucketDebt {
            rate_ns: self.rate.full_at_ns.saturating_sub(now.steady_ns),
            second_ns: self.second.full_at_ns.saturating_sub(now.steady_ns),
        }
    }

    /// Applies a change that was counted elsewhere to the window of `at`.
    pub fn correct(&mut self, per: Per, at: Timestamp, by: i64) {
        let Some(counts) = per.window_index().map(|n| &mut self.windows[n]) else { return };
        if by < 0 {
            counts.subtract(seconds(at), by.unsigned_abs());
        } else if by > 0 {
            let count = counts.turn(&Window::of(per, self.calendar, at));
            count.used = count.used.saturating_add(by.unsigned_abs());
        }
    }

    /// Requests in flight.
    pub const fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Applies a change of requests in flight that was counted elsewhere.
    pub const fn correct_in_flight(&mut self, by: i64) {
        self.in_flight = self.in_flight.saturating_add_signed(by);
    }

    /// Sets the debt of its buckets at `now` to the greater of their own and the one reported from elsewhere.
    pub fn set_debt(&mut self, debt: BucketDebt, now: Now) {
        self.rate.set_debt(debt.rate_ns, now.steady_ns);
        self.second.set_debt(debt.second_ns, now.steady_ns);
    }

    const fn bucket(&self, name: LimitName) -> &Bucket {
        match name {
            LimitName::Rate { .. } => &self.rate,
            _ => &self.second,
        }
    }

    const fn bucket_mut(&mut self, name: LimitName) -> &mut Bucket {
        match name {
            LimitName::Rate { .. } => &mut self.rate,
            _ => &mut self.second,
        }
    }
}

mod bucket;
mod list;
mod metered;
mod window_count;

#[cfg(test)]
mod tests;
