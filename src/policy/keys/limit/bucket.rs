//! A token bucket (GCRA): how far it is from full, whatever its rate becomes.
//!
//! Must not know: limits, calendars.

const NS: u64 = 1_000_000_000;

/// The debt of one token bucket. It is kept with its rate, so that a changed rate or burst takes effect at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(clippy::struct_field_names, reason = "all are nanoseconds of one clock")]
pub(super) struct Bucket {
    /// The steady time in ns at which the bucket is full again, if one unit refills in `step_ns`.
    pub(super) full_at_ns: u64,
    /// Nanoseconds in which one unit refilled when the bucket was last charged; 0: unknown.
    step_ns: u64,
    /// The steady time at which it was last charged.
    at_ns: u64,
    /// The sum by which refunds have moved `full_at_ns` forward.
    refunded_ns: u64,
}

// === impl Bucket ===

impl Bucket {
    /// How long it takes until the bucket is full. Charged units refill as if the current rate and burst had always
    /// applied, so that nobody waits longer than these require.
    pub(super) fn debt_ns(&self, step_ns: u64, burst: u64, now_ns: u64) -> u64 {
        self.full_at(step_ns, burst).saturating_sub(self.not_before_last(now_ns))
    }

    /// A thread that had to wait between the clock and this bucket finds it charged at a later time than its own. It is that late by
    /// now, and what has refilled meanwhile is not a debt.
    fn not_before_last(&self, now_ns: u64) -> u64 {
        now_ns.max(self.at_ns)
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

    pub(super) fn charge(&mut self, step_ns: u64, burst: u64, cost: u64, now_ns: u64) {
        let debt = self.debt_ns(step_ns, burst, now_ns);
        let now_ns = self.not_before_last(now_ns);
        if step_ns != self.step_ns {
            self.forget_marks(now_ns);
        }
        self.step_ns = step_ns;
        self.at_ns = now_ns;
        self.full_at_ns = now_ns.saturating_add(debt).saturating_add(step_ns.saturating_mul(cost));
    }

    pub(super) const fn mark(&self) -> u64 {
        self.full_at_ns.saturating_add(self.refunded_ns)
    }

    /// Refunds what had not been refilled when the bucket was last charged. What has refilled since does not matter,
    /// because the bucket would be full.
    pub(super) fn refund(&mut self, cost: u64, mark: u64) {
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

    pub(super) fn empty(&mut self, step_ns: u64, burst: u64, at_ns: u64) {
        let full_at_ns = at_ns.saturating_add(step_ns.saturating_mul(burst));
        if self.full_at(step_ns, burst) < full_at_ns {
            self.forget_marks(at_ns);
            *self = Self { full_at_ns, step_ns, at_ns, refunded_ns: self.refunded_ns };
        }
    }

    /// Sets the debt to the greater of its own and that of another bucket whose rate is unknown.
    pub(super) fn set_debt(&mut self, ahead_ns: u64, now_ns: u64) {
        let full_at_ns = now_ns.saturating_add(ahead_ns);
        if self.full_at_ns < full_at_ns {
            *self = Self { full_at_ns, at_ns: now_ns, ..*self };
        }
    }
}

/// Nanoseconds in which one unit refills, rounded up so that the rate is never exceeded.
pub(super) const fn step_ns(rate: u64) -> u64 {
    // A rate of zero is refused where limits are configured; here it would refuse every charge.
    if rate == 0 { u64::MAX } else { NS.div_ceil(rate) }
}
