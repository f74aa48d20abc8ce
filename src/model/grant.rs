//! Grants: what is added to a plan's limits for one workspace, until an instant.

use super::id::GrantId;
use super::key::{CEILING_MAX, Ceiling, Measure, Owner, Per, Plan, RATE_MAX};
use crate::clock::Timestamp;

/// An addition to one limit of a workspace's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The id.
    pub id: GrantId,
    /// The limit.
    pub limit: GrantedLimit,
    /// How much is added.
    pub amount: u64,
    /// Why.
    pub reason: String,
    /// Who granted it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// The first instant at which it no longer counts.
    pub until: Timestamp,
}

/// A limit of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantedLimit {
    /// [`Plan::api_ops_rate_limit`].
    ApiOpsRateLimit,
    /// [`Plan::end_user_quota`].
    EndUserQuota,
    /// The one of [`Plan::limits`] with this owner, measure and window.
    Further {
        /// Whose usage it counts.
        of: Owner,
        /// What it counts.
        count: Measure,
        /// Its window.
        per: Per,
    },
}

/// Most grants of a workspace that have not ended.
pub const GRANTS_MAX: usize = 64;

impl GrantedLimit {
    /// The words of its name.
    pub const WORDS: [&'static str; 3] = ["api_ops_rate_limit", "end_user_quota", "limits"];

    /// The name of the plan's field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiOpsRateLimit => Self::WORDS[0],
            Self::EndUserQuota => Self::WORDS[1],
            Self::Further { .. } => Self::WORDS[2],
        }
    }

    /// Whether `plan` has this limit.
    pub fn is_in(self, plan: &Plan) -> bool {
        match self {
            Self::ApiOpsRateLimit | Self::EndUserQuota => true,
            Self::Further { of, count, per } => {
                plan.limits.iter().any(|c| (c.of, c.count, c.per) == (of, count, per))
            }
        }
    }
}

impl Grant {
    /// Whether it counts at that instant.
    pub fn is_in_force(&self, at: Timestamp) -> bool {
        at < self.until
    }
}

/// What `grants` add to a limit at an instant.
pub fn granted(grants: &[Grant], limit: GrantedLimit, at: Timestamp) -> u64 {
    let those = grants.iter().filter(|grant| grant.limit == limit && grant.is_in_force(at));
    those.fold(0_u64, |sum, grant| sum.saturating_add(grant.amount)).min(CEILING_MAX)
}

/// `plan` with everything that `grants` add at an instant.
pub fn raised(plan: &Plan, grants: &[Grant], at: Timestamp) -> Plan {
    let added = |limit| granted(grants, limit, at);
    let mut plan = plan.clone();
    let rate = u64::from(plan.api_ops_rate_limit).saturating_add(added(GrantedLimit::ApiOpsRateLimit));
    plan.api_ops_rate_limit =
        u32::try_from(rate).unwrap_or(RATE_MAX).min(RATE_MAX.max(plan.api_ops_rate_limit));
    let more = |max: u64, limit| max.saturating_add(added(limit)).min(CEILING_MAX.max(max));
    plan.end_user_quota = more(plan.end_user_quota, GrantedLimit::EndUserQuota);
    for ceiling in &mut plan.limits {
        let Ceiling { of, count, per, max } = *ceiling;
        ceiling.max = more(max, GrantedLimit::Further { of, count, per });
    }
    plan
}

/// When the next of these grants ends after an instant.
pub fn next_end(grants: &[Grant], at: Timestamp) -> Option<Timestamp> {
    grants.iter().filter(|grant| grant.is_in_force(at)).map(|grant| grant.until).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::calendar::Calendar;

    #[test]
    fn grants_add_up_and_each_ends_at_its_end() {
        let monthly = Ceiling { of: Owner::Workspace, count: Measure::Requests, per: Per::Month, max: 1_000 };
        let plan = Plan {
            id: "p".parse().expect("an id"),
            api_ops_rate_limit: 10,
            end_user_quota: 20,
            default_daily_request_limit: None,
            limits: [monthly, Ceiling { per: Per::Day, ..monthly }].into(),
            calendar: Calendar::UTC,
        };
        let grant = |limit, amount, until| Grant {
            id: GrantId::new(Timestamp::from_secs(1)),
            limit,
            amount,
            reason: "r".into(),
            created_by: "ada".into(),
            created_at: Timestamp::from_secs(1),
            until: Timestamp::from_secs(until),
        };
        let month = GrantedLimit::Further { of: Owner::Workspace, count: Measure::Requests, per: Per::Month };
        let hour = GrantedLimit::Further { of: Owner::Workspace, count: Measure::Requests, per: Per::Hour };
        let grants = [
            grant(GrantedLimit::EndUserQuota, 5, 10),
            grant(GrantedLimit::EndUserQuota, 7, 20),
            grant(GrantedLimit::ApiOpsRateLimit, u64::MAX, 15),
            grant(month, 1, 15),
            grant(hour, 1, 15),
        ];
        let at = |secs| {
            let plan = raised(&plan, &grants, Timestamp::from_secs(secs));
            (
                plan.api_ops_rate_limit,
                plan.end_user_quota,
                plan.limits.iter().map(|c| c.max).collect::<Vec<_>>(),
            )
        };
        assert_eq!(at(9), (RATE_MAX, 32, vec![1_001, 1_000]));
        assert_eq!(at(10), (RATE_MAX, 27, vec![1_001, 1_000]));
        assert_eq!(at(15), (10, 27, vec![1_000, 1_000]));
        assert_eq!(at(20), (10, 20, vec![1_000, 1_000]));
        let ends = [0, 10, 15, 20].map(|secs| next_end(&grants, Timestamp::from_secs(secs)));
        assert_eq!(ends, [Some(10), Some(15), Some(20), None].map(|end| end.map(Timestamp::from_secs)));
        assert!(month.is_in(&plan) && !hour.is_in(&plan) && GrantedLimit::EndUserQuota.is_in(&plan));
    }
}
