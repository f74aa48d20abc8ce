//! Decisions while Redis is unreachable: a node spends what it was promised.
//!
//! Must not know: how Redis is called, or the ledger.

use super::pool::FallbackState;
use super::{KeyState, LeaseState, LeasedUnit, Leases, spend};
use crate::counter::{Charge, ChargeError, Charged, LimitsLeft};
use crate::model::outage::OnFailure;
use smallvec::SmallVec;
use std::sync::Arc;

impl Leases {
    /// Decides without Redis.
    pub(super) fn charge_fallback(
        &self,
        subject: &Arc<KeyState>,
        charge: &Charge<'_>,
    ) -> Result<Charged, ChargeError> {
        let now = self.now();
        let is_up = self.link.is_up_for(subject.group.part, now.steady_ns);
        let (well_ns, nodes) = (self.link.last_well_ns(), self.nodes());
        let outage = |state: &mut LeaseState| {
            let well_ns = *state.fallback_since_ns.get_or_insert(well_ns);
            let gone_since_ns = (!is_up).then_some(well_ns);
            FallbackState { nodes, share_unknown: self.config.share_unknown, gone_since_ns, well_ns }
        };
        let mut key = subject.lock();
        let mut workspace = subject.group.counted(charge.workspace_limits);
        // An answer may have arrived just when this request stopped waiting, or for only one of the two subjects.
        let in_hand = [
            key.pool.can_spend(now.steady_ns),
            workspace.as_mut().is_none_or(|w| w.pool.can_spend(now.steady_ns)),
        ];
        if in_hand == [true, true] {
            let (unit, left) = spend(subject, &mut key, workspace.as_deref_mut(), now);
            return Ok(Charged { taken: None, unit: Some(unit), hold: None, left, degraded: false });
        }
        self.config.metrics.counters_degraded.inc();
        if self.config.on_failure == OnFailure::Deny {
            return Err(ChargeError::Unavailable);
        }
        let mut parts: SmallVec<[(&mut LeaseState, FallbackState, bool); 2]> = SmallVec::new();
        for (state, in_hand) in [Some(&mut *key), workspace.as_deref_mut()].into_iter().zip(in_hand) {
            let Some(state) = state else { continue };
            let outage = outage(state);
            parts.push((state, outage, in_hand));
        }
        if self.config.on_failure == OnFailure::Share {
            let refusals = parts.iter_mut().filter(|(.., in_hand)| !in_hand);
            let refusals =
                refusals.filter_map(|(state, outage, _)| state.pool.may_spend_fallback(outage, now).err());
            if let Some(refusal) = refusals.max_by_key(|refusal| refusal.refused.retry) {
                return Err(ChargeError::Limit { refusal, degraded: true });
            }
        }
        let mut left = LimitsLeft::new();
        let mut spent = parts.iter_mut().map(|(state, outage, in_hand)| {
            let spent = if *in_hand { state.pool.spend(now) } else { state.pool.spend_fallback(outage, now) };
            left.extend(state.pool.left_fallback(now));
            spent
        });
        let (of_key, of_workspace) = (spent.next(), spent.next());
        drop(spent);
        drop(parts);
        let Some(of_key) = of_key else { return Err(ChargeError::Unavailable) };
        drop(workspace);
        drop(key);
        subject.list();
        let unit = LeasedUnit { subject: Arc::clone(subject), of_key, of_workspace, is_ended: false };
        Ok(Charged { taken: None, unit: Some(unit), hold: None, left, degraded: true })
    }
}
