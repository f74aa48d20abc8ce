//! The plan that a workspace is on, raised by its grants while they are in force.

use super::{PlanInForce, Raise, Workspace};
use crate::clock::Timestamp;
use crate::model::grant::{Grant, next_end, raised};
use crate::model::key::Plan;
use crate::policy::keys::limit::{end_user_limits, workspace_limits};
use arc_swap::Guard;
use std::sync::Arc;

impl Workspace {
    /// Its plan at the instant `at`, with the grants that are in force.
    pub fn plan(&self, at: Timestamp) -> Guard<Arc<PlanInForce>> {
        loop {
            let held = self.plan.load();
            let is_over = |raise: &&Raise| raise.until.is_some_and(|until| until <= at);
            let Some(raise) = held.raise.as_ref().filter(is_over) else { return held };
            // A grant has ended since the last request, or this is the first. What the feed has applied meanwhile stays.
            let raised = Arc::new(PlanInForce::raised(&raise.base, Arc::clone(&raise.grants), at));
            self.plan.compare_and_swap(&held, raised);
        }
    }
}

impl PlanInForce {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            workspace_limits: workspace_limits(&plan),
            end_user_limits: end_user_limits(&plan),
            plan,
            raise: None,
        }
    }

    /// `base`, to be raised by `grants` when it is first used.
    pub(super) fn with(base: &Arc<Self>, grants: Option<Arc<[Grant]>>) -> Arc<Self> {
        let Some(grants) = grants else { return Arc::clone(base) };
        let raise = Raise { base: Arc::clone(base), grants, until: Some(Timestamp::from_micros(i64::MIN)) };
        Arc::new(Self { raise: Some(raise), ..Self::new(base.plan.clone()) })
    }

    /// `base`, raised by the grants that are in force at the instant `at`.
    fn raised(base: &Arc<Self>, grants: Arc<[Grant]>, at: Timestamp) -> Self {
        let (plan, until) = (raised(&base.plan, &grants, at), next_end(&grants, at));
        let raise = Raise { base: Arc::clone(base), grants, until };
        Self { raise: Some(raise), ..Self::new(plan) }
    }

    pub(super) fn grants(&self) -> &[Grant] {
        self.raise.as_ref().map_or(&[], |raise| &raise.grants)
    }
}
