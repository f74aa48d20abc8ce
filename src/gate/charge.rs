//! What a request is charged, and how much output fits where the route clamps it.

use super::Gate;
use crate::clock::Now;
use crate::counter::{Charge, ChargeError, Charged};
use crate::keyring::{Entry, PlanInForce};
use crate::model::amounts::Amounts;
use crate::model::id::EndUserId;
use crate::model::key::Measure;
use crate::policy::keys::limit::Limits;
use crate::policy::meter::{PlannedHold, capped};
use crate::policy::routing::route::Route;

impl Gate {
    /// Charges every limit, or none. With it, the most output tokens of each answer, if the route clamps it.
    pub(super) async fn charge(
        &self,
        entry: &Entry,
        plan: &PlanInForce,
        end_user: Option<EndUserId>,
        hold: Option<&PlannedHold<'_>>,
        now: Now,
    ) -> Result<(Charged, Option<u64>), ChargeError> {
        let limits = entry.limits(plan);
        let charge = |amounts| charge_of(entry, &limits, plan, end_user, amounts);
        let Some(hold) = hold else {
            return Ok((self.counters.admit(&charge(Amounts::REQUEST), now).await?, None));
        };
        let amounts = |output| {
            let of_key = capped(hold.amounts(output), &limits);
            let of_workspace = capped(of_key, &plan.workspace_limits);
            if end_user.is_some() { capped(of_workspace, &plan.end_user_limits) } else { of_workspace }
        };
        let first = self.counters.admit(&charge(amounts(hold.output())), now).await;
        if !hold.clamp {
            return Ok((first?, None));
        }
        let charged = match first {
            Err(ChargeError::Limit { refusal, .. })
                if let Some(fits) =
                    hold.output_left(&refusal.left, &Amounts::default()).filter(|fits| *fits > 0) =>
            {
                self.counters.admit(&charge(amounts(fits.min(hold.output()))), now).await?
            }
            first => first?,
        };
        let own = charged.held().copied().unwrap_or_default();
        let most = hold.output_left(charged.left(), &own).map(|most| most / hold.request.choices.max(1));
        let asked = hold.request.max_output;
        Ok((charged, most.map(|most| most.max(1)).filter(|most| asked.is_none_or(|asked| *most < asked))))
    }
}

pub(super) fn charge_of<'r>(
    entry: &'r Entry,
    limits: &'r Limits,
    plan: &'r PlanInForce,
    end_user: Option<EndUserId>,
    amounts: Amounts,
) -> Charge<'r> {
    Charge {
        key: entry.key.id,
        key_limits: limits,
        workspace: &entry.workspace.id,
        workspace_limits: &plan.workspace_limits,
        end_user: end_user.map(|id| (id, &plan.end_user_limits)),
        amounts,
    }
}

/// What every request on this route holds at least.
pub(super) fn least(route: &Route) -> Amounts {
    let measures = if route.meter.is_some() { &Measure::METERED[..] } else { &[] };
    measures.iter().fold(Amounts::REQUEST, |amounts, measure| amounts.with(*measure, 1))
}
