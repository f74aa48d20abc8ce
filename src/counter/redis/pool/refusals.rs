//! Why a request is refused without a call, and what is left of each limit.

use super::{
    BELIEVED, Duration, Exhausted, LeaseGrant, LeaseRequest, Limit, LimitReached, LimitRule, LimitsLeft,
    PACE, Refusal, Remaining, RetryAfter, SubjectPool, ns,
};

impl SubjectPool {
    /// The cached refusal of a request that takes so many units.
    pub fn refusal(&self, units: u64, now_ns: u64) -> Option<Box<Refusal>> {
        let known = self.exhausted.filter(|e| now_ns < e.until_ns && units >= e.units)?;
        let passed = Duration::from_nanos(now_ns.saturating_sub(known.from_ns));
        let retry = match known.retry {
            _ if matches!(known.limit.rule, LimitRule::Window { max, .. } if units > max) => {
                RetryAfter::Never
            }
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
    pub(super) fn believe(&mut self, ask: &LeaseRequest, grant: &LeaseGrant, now_ns: u64) {
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
        self.exhausted = Some(Exhausted { limit, retry, units: ask.least, from_ns: now_ns, until_ns });
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
