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
use crate::model::calendar::Calendar;
use crate::model::key::{Ceiling, Count, Key, Per, Plan};
pub use list::Limits;
use std::time::Duration;
use window_count::{WindowCounts, seconds};

/// A limit in force: a rule with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Which limit of the contract this is.
    pub name: LimitName,
    /// What it counts.
    pub count: Count,
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
    /// The n-th of the plan's `limits[]`, counted over the workspace.
    Workspace(u8),
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
    /// In the order of [`Per::WINDOWS`].
    windows: [WindowCounts; Per::WINDOWS.len()],
}

/// The debt of one token bucket. It is kept with its rate, so that a changed rate or burst takes effect at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(clippy::struct_field_names, reason = "all are nanoseconds of one clock")]
struct Bucket {
    /// The steady time in ns at which the bucket is full again, if one unit refills in `step_ns`.
    full_at_ns: u64,
    /// Nanoseconds in which one unit refilled when the bucket was last charged; 0: unknown.
    step_ns: u64,
    /// The steady time at which it was last charged.
    at_ns: u64,
    /// The sum by which refunds have moved `full_at_ns` forward.
    refunded_ns: u64,
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

const NS: u64 = 1_000_000_000;

// === the limits in force ===

/// The limits of `key` under `plan` that are counted per key. The lower of the two rates applies.
pub fn key_limits(key: &Key, plan: &Plan) -> Limits {
    let own = &key.ceilings;
    let plan_rules = plan.api_ops_rate_limit < own.rate_limit;
    let rate = own.rate_limit.min(plan.api_ops_rate_limit);
    // A burst may exceed the key's own rate. Under a lowered plan it may not exceed the plan's limit.
    let burst = own.rate_burst.unwrap_or(rate);
    let burst = if plan_rules { burst.min(plan.api_ops_rate_limit) } else { burst };
    let requests = |name, rule| Limit { name, count: Count::Requests, rule };
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
    limits
}

/// The limits of `plan` that are counted over all keys of a workspace together.
pub fn workspace_limits(plan: &Plan) -> Limits {
    let list = (0_u8..).zip(plan.limits.iter()).map(|(n, c)| Limit::further(LimitName::Workspace(n), c));
    list.collect::<Limits>().in_calendar(plan.calendar)
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
    pub fn restored(at: Timestamp, calendar: Calendar, used: [u64; Per::WINDOWS.len()]) -> Self {
        let mut state = Self { calendar, ..Self::default() };
        for ((counts, window), used) in state.windows.iter_mut().zip(Window::all(calendar, at)).zip(used) {
            counts.turn(&window).used = used;
        }
        state
    }

    /// Whether `cost` units may be charged to all of `limits` at `now`. Changes nothing.
    pub fn check(&self, limits: &Limits, cost: u64, now: Now) -> Result<(), LimitReached> {
        let mut worst: Option<LimitReached> = None;
        for limit in limits.iter() {
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
            LimitRule::Window { per, max } => {
                if self.count(per, calendar, now.wall).saturating_add(cost) <= max {
                    return Ok(());
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

    /// Charges `cost` units. Call only after [`CounterState::check`] succeeded with the same `now`.
    pub fn take(&mut self, limits: &Limits, cost: u64, now: Now) -> Mark {
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
        self.hold(cost);
        mark
    }

    /// Switches to the windows of `calendar`. Current windows continue their counts.
    pub fn follow(&mut self, calendar: Calendar, at: Timestamp) {
        if self.calendar != calendar {
            self.calendar = calendar;
            for (counts, window) in self.windows.iter_mut().zip(Window::all(calendar, at)) {
                counts.turn(&window);
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
                self.bucket_mut(limit.name).empty_buckets(step_ns(rate), burst, at_ns);
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
            LimitRule::Window { per, max } => Remaining {
                units: max.saturating_sub(self.count(per, calendar, now.wall)),
                reset: self.reset(per, calendar, now.wall),
            },
            LimitRule::InFlight { max } => {
                Remaining { units: max.saturating_sub(self.in_flight), reset: None }
            }
        }
    }

    /// What was spent in the window of `at`. The second is a bucket, so its result is 0.
    pub fn used(&self, per: Per, at: Timestamp) -> u64 {
        self.count(per, self.calendar, at)
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

// === impl Bucket ===

impl Bucket {
    /// How long it takes until the bucket is full. Charged units refill as if the current rate and burst had always
    /// applied, so that nobody waits longer than these require.
    fn debt_ns(&self, step_ns: u64, burst: u64, now_ns: u64) -> u64 {
        self.full_at(step_ns, burst).saturating_sub(now_ns)
    }

    fn full_at(&self, step_ns: u64, burst: u64) -> u64 {
        let debt = self.full_at_ns.saturating_sub(self.at_ns);
        let debt = if step_ns == self.step_ns { debt } else { self.rescaled(debt, step_ns) };
        self.at_ns.saturating_add(debt.min(step_ns.saturating_mul(burst)))
    }

    /// The same number of units, refilled at another rate.
    #[cold]
    fn rescaled(&self, debt_ns: u64, step_ns: u64) -> u64 {
        if self.step_ns == 0 {
            return debt_ns;
        }
        let scaled = (u128::from(debt_ns) * u128::from(step_ns)).div_ceil(u128::from(self.step_ns));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    fn charge(&mut self, step_ns: u64, burst: u64, cost: u64, now_ns: u64) {
        let debt = self.debt_ns(step_ns, burst, now_ns);
        if step_ns != self.step_ns {
            self.forget_marks(now_ns);
        }
        self.step_ns = step_ns;
        self.at_ns = now_ns;
        self.full_at_ns = now_ns.saturating_add(debt).saturating_add(step_ns.saturating_mul(cost));
    }

    const fn mark(&self) -> u64 {
        self.full_at_ns.saturating_add(self.refunded_ns)
    }

    /// Refunds what had not been refilled when the bucket was last charged. What has refilled since does not matter,
    /// because the bucket would be full.
    fn refund(&mut self, cost: u64, mark: u64) {
        let unfilled = mark.saturating_sub(self.refunded_ns).saturating_sub(self.at_ns);
        let refund = unfilled.min(self.step_ns.saturating_mul(cost));
        self.full_at_ns = self.full_at_ns.saturating_sub(refund);
        self.refunded_ns = self.refunded_ns.saturating_add(refund);
    }

    /// Earlier charges can no longer be refunded, because it is unknown how much of them is left.
    const fn forget_marks(&mut self, now_ns: u64) {
        let debt = self.full_at_ns.saturating_sub(now_ns);
        self.refunded_ns = self.refunded_ns.saturating_add(debt);
    }

    fn empty_buckets(&mut self, step_ns: u64, burst: u64, at_ns: u64) {
        let full_at_ns = at_ns.saturating_add(step_ns.saturating_mul(burst));
        if self.full_at(step_ns, burst) < full_at_ns {
            self.forget_marks(at_ns);
            *self = Self { full_at_ns, step_ns, at_ns, refunded_ns: self.refunded_ns };
        }
    }

    /// Sets the debt to the greater of its own and that of another bucket whose rate is unknown.
    fn set_debt(&mut self, ahead_ns: u64, now_ns: u64) {
        let full_at_ns = now_ns.saturating_add(ahead_ns);
        if self.full_at_ns < full_at_ns {
            *self = Self { full_at_ns, at_ns: now_ns, ..*self };
        }
    }
}

/// Nanoseconds in which one unit refills, rounded up so that the rate is never exceeded.
const fn step_ns(rate: u64) -> u64 {
    // A rate of zero is refused where limits are configured; here it would refuse every charge.
    if rate == 0 { u64::MAX } else { NS.div_ceil(rate) }
}

mod list;
mod window_count;

#[cfg(test)]
mod tests;
