//! Decisions while Redis is unreachable: a node spends what it was promised.
//!
//! Must not know: how Redis is called, or the ledger.

use super::pool::FallbackState;
use super::subject::{self, ChargedSubjects, LockedStates, TakenList};
use super::{Leases, can_spend, left, spend};
use crate::clock::Now;
use crate::counter::{ChargeError, Charged, LimitsLeft, Refusal};
use crate::model::amounts::Amounts;
use crate::model::outage::OnFailure;

impl Leases {
    /// Decides without Redis.
    pub(super) fn charge_fallback(
        &self,
        subjects: &ChargedSubjects,
        amounts: &Amounts,
    ) -> Result<Charged, ChargeError> {
        let now = self.now();
        let mut states = subjects.lock();
        // An answer may have arrived just when this request stopped waiting.
        if can_spend(&mut states, amounts, now.steady_ns) {
            let taken = spend(&mut states, amounts, now);
            let left = left(&states, now.steady_ns);
            drop(states);
            let (unit, hold) = subject::charged(subjects, taken, amounts);
            return Ok(Charged::shared(unit, hold, left, false));
        }
        self.config.metrics.counters_degraded.inc();
        if self.config.on_failure == OnFailure::Deny {
            return Err(ChargeError::Unavailable);
        }
        let outage = self.outage(subjects.key.group.part, now.steady_ns);
        for (_, state) in &mut states {
            state.fallback_since_ns.get_or_insert(outage.well_ns);
        }
        if self.config.on_failure == OnFailure::Share
            && let Some(refusal) = refusal_fallback(&mut states, amounts, &outage, now)
        {
            return Err(ChargeError::Limit { refusal, degraded: true });
        }
        let (taken, left) = spend_fallback(&mut states, amounts, &outage, now);
        drop(states);
        subjects.list();
        let (unit, hold) = subject::charged(subjects, taken, amounts);
        Ok(Charged::shared(unit, hold, left, true))
    }

    /// The inputs of a decision without Redis.
    fn outage(&self, part: u32, now_ns: u64) -> FallbackState {
        let (well_ns, share_unknown) = (self.link.last_well_ns(), self.config.share_unknown);
        let gone_since_ns = (!self.link.is_up_for(part, now_ns)).then_some(well_ns);
        FallbackState { nodes: self.nodes(), share_unknown, gone_since_ns, well_ns }
    }
}

/// The longest refusal of pools that have too few granted units.
fn refusal_fallback(
    states: &mut LockedStates<'_>,
    amounts: &Amounts,
    outage: &FallbackState,
    now: Now,
) -> Option<Box<Refusal>> {
    let mut longest: Option<Box<Refusal>> = None;
    for (_, state) in states {
        let outage = outage.since(state.fallback_since_ns);
        for (_, pool, units) in state.charged(amounts) {
            if !pool.can_spend(units, now.steady_ns)
                && let Err(refusal) = pool.may_spend_fallback(units, &outage, now)
                && longest.as_ref().is_none_or(|longest| refusal.refused.retry >= longest.refused.retry)
            {
                longest = Some(refusal);
            }
        }
    }
    longest
}

/// Takes granted units where there are enough, and promised ones elsewhere.
fn spend_fallback(
    states: &mut LockedStates<'_>,
    amounts: &Amounts,
    outage: &FallbackState,
    now: Now,
) -> (TakenList, LimitsLeft) {
    let (mut taken, mut left) = (TakenList::new(), LimitsLeft::new());
    for (slot, state) in states {
        let outage = outage.since(state.fallback_since_ns);
        for (measure, pool, units) in state.charged(amounts) {
            let spent = if pool.can_spend(units, now.steady_ns) {
                pool.spend(units, now)
            } else {
                pool.spend_fallback(units, &outage, now)
            };
            taken.push((*slot, measure, spent));
            left.extend(pool.left_fallback(now));
        }
    }
    (taken, left)
}
