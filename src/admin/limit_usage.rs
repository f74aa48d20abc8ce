//! What is used and held of each limit.

use super::context::Admin;
use super::error::AdminError;
use super::schema::{CountWord, OwnerWord, PerWord};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::key::{Measure, Per, Plan};
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::denial::limit_field;
use crate::policy::keys::limit::{LimitName, LimitRule, Limits, MeteredUnits};
use serde::Serialize;
use utoipa::ToSchema;

/// What requests in flight hold in each of [`Per::WINDOWS`].
pub(super) type HeldInWindows = [MeteredUnits; Per::WINDOWS.len()];

/// A limit of a window and its usage.
#[derive(Serialize, ToSchema)]
pub(super) struct LimitUsageView {
    /// The field that sets it: `daily_request_limit`, `quota_limit` or `limits`.
    name: &'static str,
    /// `key` or `plan`: who sets it.
    set_by: &'static str,
    /// Whose usage it counts.
    #[schema(value_type = OwnerWord)]
    of: &'static str,
    /// What it counts.
    #[schema(value_type = CountWord)]
    count: &'static str,
    /// Its window.
    #[schema(value_type = PerWord)]
    per: &'static str,
    /// The used amount, according to the ledger.
    used: u64,
    /// What requests in flight on this node hold besides.
    held: u64,
    /// The limit.
    limit: u64,
    /// Percentage of the limit that is used, with two decimals.
    percentage: f64,
}

/// What is used of a limit, and what is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) used: u64,
    pub(super) held: u64,
}

/// Of `limit`, in percent with two decimals.
#[expect(clippy::cast_precision_loss, reason = "a ratio of counts, to be looked at")]
pub(super) fn percentage(used: u64, limit: u64) -> f64 {
    let share = if limit == 0 { 1.0 } else { used as f64 / limit as f64 };
    (share * 10_000.0).round() / 100.0
}

// === impl Admin, Usage, LimitUsageView ===

impl Admin {
    /// What a subject has used by the ledger and holds on this node, in the windows of `plan` that contain `at`.
    pub(super) async fn used_and_held(
        &self,
        subject: &UsageSubject,
        plan: &Plan,
        at: Timestamp,
    ) -> Result<(UsageTotals, HeldInWindows), AdminError> {
        let used = self.ask(Fault::NotFound, self.deps.store.totals_of(subject, at, plan.calendar)).await?;
        Ok((used, (self.deps.held)(subject, at)))
    }
}

impl Usage {
    /// Of a measure in a window; none: the second is no window.
    pub(super) fn of((used, held): &(UsageTotals, HeldInWindows), count: Measure, per: Per) -> Option<Self> {
        let n = per.window_index()?;
        Some(match count.metered_index() {
            None => Self { used: used.used[n], held: 0 },
            Some(m) => Self { used: used.metered[n][m], held: held[n][m] },
        })
    }
}

impl LimitUsageView {
    /// The usage of all `limits` of a window.
    pub(super) fn all(limits: &Limits, usage: &(UsageTotals, HeldInWindows)) -> Vec<Self> {
        let windows = limits.iter().filter_map(|limit| match limit.rule {
            LimitRule::Window { per, max } => Some((limit, per, max)),
            _ => None,
        });
        let shown = windows.filter_map(|(limit, per, max)| {
            let Usage { used, held } = Usage::of(usage, limit.count, per)?;
            Some(Self {
                name: limit_field(limit.name),
                set_by: if matches!(limit.name, LimitName::PlanKey(_)) { "plan" } else { "key" },
                of: "key",
                count: limit.count.as_str(),
                per: per.as_str(),
                used,
                held,
                limit: max,
                percentage: percentage(used, max),
            })
        });
        shown.collect()
    }
}
