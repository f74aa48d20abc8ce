//! What a node spends of a subject without Redis: its promise, and its share of windows that began since.

use super::{
    FallbackState, Limit, LimitReached, LimitRule, Limits, LimitsLeft, MINUTE_US, Now, OutstandingUnits,
    OwnWindow, PROMISE_RETRY, Per, Refusal, Remaining, RetryAfter, SECOND_US, SubjectPool, TakenUnits,
    Timestamp, UNTOLD_MAX,
};
use crate::model::amounts::Amounts;
use crate::model::key::Measure;

impl SubjectPool {
    /// Whether a request that takes so many units may be admitted without Redis.
    pub fn may_spend_fallback(
        &mut self,
        units: u64,
        outage: &FallbackState,
        now: Now,
    ) -> Result<(), Box<Refusal>> {
        self.turn_own(now.wall);
        if units == 0 {
            return Ok(());
        }
        let nodes = outage.nodes.max(1);
        let share = self.share_of_rates(nodes);
        if nodes > 1 {
            // A single node has spent everything that was spent; of several nodes, others may have spent what there was.
            self.rates.empty_buckets(&share, outage.well_ns);
        }
        let requests = Amounts::default().with(Measure::Requests, units);
        let mut refused = self.rates.check(&share, &requests, now).err();
        for limit in self.limits.iter() {
            let retry = match limit.rule {
                LimitRule::Window { per, max } if !self.may_spend_window((per, max), units, outage, now) => {
                    PROMISE_RETRY
                }
                LimitRule::InFlight { max } if self.in_flight >= max / nodes => PROMISE_RETRY,
                _ => continue,
            };
            let retry = if limit.max() < units { RetryAfter::Never } else { RetryAfter::Wait(retry) };
            if refused.is_none_or(|r| retry > r.retry) {
                refused = Some(LimitReached { limit: *limit, retry });
            }
        }
        let Some(mut refused) = refused else { return Ok(()) };
        if let Some(whole) = self.limits.iter().find(|l| l.name == refused.limit.name) {
            refused.limit = *whole;
        }
        if refused.retry == RetryAfter::Never && refused.limit.max() >= units {
            refused.retry = RetryAfter::Wait(PROMISE_RETRY);
        }
        Err(Box::new(Refusal { refused, left: self.left_fallback(now) }))
    }

    fn turn_own(&mut self, wall: Timestamp) {
        let calendar = self.limits.calendar;
        self.turn(calendar, wall);
    }

    fn share_of_rates(&self, nodes: u64) -> Limits {
        self.limits.iter().filter_map(|l| share_of_rate(l, nodes)).collect()
    }

    fn may_spend_window(&self, (per, max): (Per, u64), units: u64, outage: &FallbackState, now: Now) -> bool {
        let Some(own) = per.window_index().map(|n| &self.own[n]) else { return false };
        // Nobody else is granted what was promised: for a while, and as long as no Redis could grant it.
        let keeps = now.steady_ns < self.promised_until_ns
            || outage.gone_since_ns.is_some_and(|gone_ns| gone_ns < self.promised_until_ns);
        let with_this = own.on_hold.saturating_add(units);
        let is_in_share = own.spent.saturating_add(with_this) <= max / outage.nodes.max(1);
        match own.promise {
            Some(promise) if keeps && promise >= units => true,
            None if self.heard_at.is_some_and(|heard_at| heard_at < own.window.start) => is_in_share,
            _ => outage.share_unknown && is_in_share && own.known().saturating_add(with_this) <= max,
        }
    }

    /// Admits one request without Redis.
    pub fn spend_fallback(&mut self, units: u64, outage: &FallbackState, now: Now) -> TakenUnits {
        self.turn_own(now.wall);
        for own in &mut self.own {
            own.fallback = own.fallback.saturating_add(units);
            own.promise = own.promise.map(|p| p.saturating_sub(units));
        }
        let share = self.share_of_rates(outage.nodes.max(1));
        let mark = self.rates.take_rates(&share, units, now);
        self.count(units);
        if !self.is_held() {
            self.note_unreported(units, now.wall.as_micros());
        }
        TakenUnits { units, generation: self.generation, mark, debited_us: None }
    }

    /// What is left for this node.
    pub fn left_fallback(&self, now: Now) -> LimitsLeft {
        let left = |limit: &Limit| {
            let remaining = match limit.rule {
                LimitRule::Window { per, max } => {
                    let own = per.window_index().map_or(OwnWindow::default(), |n| self.own[n]);
                    let units = own.promise.unwrap_or_else(|| max.saturating_sub(own.spent + own.on_hold));
                    Remaining { units, reset: own.window.left(now.wall) }
                }
                LimitRule::Bucket { .. } => self.rates.remaining(limit, self.limits.calendar, now),
                LimitRule::InFlight { max } => {
                    Remaining { units: max.saturating_sub(self.in_flight), reset: None }
                }
            };
            (*limit, remaining)
        };
        self.limits.iter().map(left).collect()
    }

    pub(super) fn note_unreported(&mut self, units: u64, at_us: i64) {
        match self.untold.last_mut() {
            Some(last) if last.at_us.div_euclid(SECOND_US) == at_us.div_euclid(SECOND_US) => {
                last.units += units;
                last.at_us = last.at_us.max(at_us);
            }
            _ => {
                if self.untold.len() > UNTOLD_MAX {
                    fold(&mut self.untold);
                }
                self.untold.push(OutstandingUnits { at_us, units });
            }
        }
    }
}

/// Keeps unreported units per minute, and at most so many entries. Merged units get the later time, so that they are less
/// likely to be taken for units that the ledger has.
pub(super) fn fold(all: &mut Vec<OutstandingUnits>) {
    if all.len() <= UNTOLD_MAX {
        return;
    }
    let mut folded: Vec<OutstandingUnits> = Vec::new();
    for next in all.drain(..) {
        match folded.last_mut() {
            Some(last) if last.at_us.div_euclid(MINUTE_US) == next.at_us.div_euclid(MINUTE_US) => {
                *last =
                    OutstandingUnits { at_us: last.at_us.max(next.at_us), units: last.units + next.units };
            }
            _ => folded.push(next),
        }
    }
    while folded.len() > UNTOLD_MAX {
        let oldest = folded.remove(0);
        if let Some(next) = folded.first_mut() {
            next.units += oldest.units;
        }
    }
    *all = folded;
}

fn share_of_rate(limit: &Limit, nodes: u64) -> Option<Limit> {
    let LimitRule::Bucket { rate, burst } = limit.rule else { return None };
    Some(Limit { rule: LimitRule::Bucket { rate: rate / nodes, burst: burst / nodes }, ..*limit })
}
