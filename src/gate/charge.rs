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
        let choices = hold.request.choices.max(1);
        let charged = match first {
            Err(ChargeError::Limit { refusal, .. })
                if let Some(fits) =
                    hold.output_left(&refusal.left, &Amounts::default()).filter(|fits| *fits >= choices) =>
            {
                self.counters.admit(&charge(amounts(fits.min(hold.output()))), now).await?
            }
            first => first?,
        };
        let own = charged.held().copied().unwrap_or_default();
        let left = hold.output_left(charged.left(), &own);
        // Backends refuse a maximum above what their model can do, so a request that names none gets none while there is plenty.
        let is_much = |left: &u64| match hold.request.max_output {
            Some(asked) => left / choices >= asked,
            None => *left > hold.bounds.route,
        };
        Ok((charged, left.filter(|left| !is_much(left)).map(|left| (left / choices).max(1))))
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
