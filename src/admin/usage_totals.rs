//! Totals of the requests of a workspace: in total, by key and by resource.

use super::caller::WorkspaceReader;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Query, QueryParams};
use super::page::{Listed, fractional_millis, in_order, millis, page_request};
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::fault::Fault;
use crate::model::key::Per;
use crate::policy::keys::calendar::Window;
use crate::store::{Page, PageRequest, UsageGroup, UsageGroupTotal, UsageTotal, UsageTotalsFilter};
use axum::extract::State;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

// === requests ===

/// Parameters of the totals.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `UsageTotalsQuery` reads")]
pub(super) struct UsageTotalsParams {
    /// `key` or `resource`: also totals of each. Absent: only totals of the workspace.
    group_by: Option<String>,
    /// Only of keys of this resource.
    resource_id: Option<String>,
    /// First instant: epoch seconds, epoch milliseconds or RFC 3339; totals begin with its UTC day. Absent: with the first
    /// request.
    from: Option<String>,
    /// First instant after the range; totals end with the UTC day before it, or with its own UTC day if it is not at
    /// midnight. Absent: now.
    to: Option<String>,
    /// Number of the page of groups, from 1.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    /// Groups on a page.
    #[param(minimum = 1, maximum = 100, default = 10)]
    pagesize: Option<u32>,
}

/// [`UsageTotalsParams`], parsed.
pub(super) struct UsageTotalsQuery {
    group_by: Option<UsageGroup>,
    filter: UsageTotalsFilter,
    page: PageRequest,
}

impl FromParams for UsageTotalsQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        let (from, to) = (params.instant("from"), params.instant("to"));
        in_order(params, ("from", "to"), from, to);
        let filter =
            UsageTotalsFilter { days: whole_days(from, to), resource_id: params.text("resource_id") };
        Self { group_by: params.word("group_by"), filter, page: page_request(params) }
    }
}

/// The UTC days from that of `from` to that before `to`; none: all.
fn whole_days(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<(Timestamp, Timestamp)> {
    if from.is_none() && to.is_none() {
        return None;
    }
    let day = |at| Window::of(Per::Day, Calendar::UTC, at);
    let first = day(from.unwrap_or_default()).start;
    let to = to.unwrap_or(Timestamp::MAX);
    let last = if day(to).start == to { to } else { day(to).end };
    Some((first, last.min(Timestamp::MAX)))
}

// === answers ===

/// Totals of a workspace, and of its keys or resources.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageTotalsView {
    /// `key`, `resource`, or null.
    group_by: Option<&'static str>,
    /// Start of the first UTC day, in epoch milliseconds; null: with the first request.
    from: Option<i64>,
    /// End of the last UTC day; null: now.
    to: Option<i64>,
    totals: UsageTotalView,
    /// The groups with any usage, those with the most requests first.
    #[serde(flatten)]
    groups: Listed<UsageGroupView>,
}

/// Totals of requests.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageTotalView {
    /// Requests that reached a backend.
    total_requests: u64,
    /// Denied requests; they are not in the total.
    denied: u64,
    /// Requests that were not denied and reached no backend; they are not in the total.
    unreached: u64,
    /// Requests that failed behind the gateway.
    errors: u64,
    /// Charged requests.
    quota_used: u64,
    tokens_used: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Epoch milliseconds; null: not yet.
    last_used_at: Option<i64>,
    /// Mean response time in milliseconds; null: there were no responses.
    avg_response_time: Option<f64>,
}

/// Totals of a key or resource.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageGroupView {
    /// The key; only with `group_by=key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    resource_id: String,
    #[serde(flatten)]
    total: UsageTotalView,
}

// === handlers ===

/// Totals of a workspace
///
/// Role `viewer`. The time does not depend on the length of the ledger; usage of deleted keys counts.
#[utoipa::path(get, path = "/usage", tag = "Usage", params(UsageTotalsParams), responses(
    (status = 200, description = "Totals", body = Envelope<UsageTotalsView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn workspace_usage(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    Query(UsageTotalsQuery { group_by, filter, page }): Query<UsageTotalsQuery>,
) -> Result<ApiResponse<UsageTotalsView>, AdminError> {
    let store = &admin.deps.store;
    let totals = admin.ask(Fault::NotFound, store.workspace_usage(&workspace, &filter)).await?;
    let groups = match group_by {
        None => Page::complete(Vec::new(), 0),
        Some(by) => {
            admin.ask(Fault::NotFound, store.workspace_usage_by(&workspace, &filter, by, page)).await?
        }
    };
    let days = filter.days;
    Ok(ApiResponse::ok(UsageTotalsView {
        group_by: group_by.map(UsageGroup::as_str),
        from: days.map(|(from, _)| from).filter(|from| *from > Timestamp::default()).map(millis),
        to: days.map(|(_, to)| to).filter(|to| *to < Timestamp::MAX).map(millis),
        totals: UsageTotalView::new(totals),
        groups: Listed::new(page, groups, UsageGroupView::new),
    }))
}

// === views ===

impl UsageTotalView {
    fn new(total: UsageTotal) -> Self {
        let UsageTotal {
            reached,
            denied,
            unreached,
            errors,
            charged,
            tokens_used,
            bytes_in,
            bytes_out,
            last_at,
            mean_us,
        } = total;
        Self {
            total_requests: reached,
            denied,
            unreached,
            errors,
            quota_used: charged,
            tokens_used,
            bytes_in,
            bytes_out,
            last_used_at: last_at.map(millis),
            avg_response_time: mean_us.map(fractional_millis),
        }
    }
}

impl UsageGroupView {
    fn new(group: UsageGroupTotal) -> Self {
        let UsageGroupTotal { key, resource_id, total } = group;
        let (key_id, name) = key.map(|(id, name)| (id.to_string(), name)).unzip();
        Self { key_id, name, resource_id, total: UsageTotalView::new(total) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_range_is_moved_outwards_to_whole_days() {
        let day = |n: i64| Timestamp::from_secs(n * 86_400);
        let noon = |n| day(n).plus(Duration::from_hours(12));
        assert_eq!(whole_days(None, None), None);
        assert_eq!(whole_days(Some(noon(3)), Some(noon(5))), Some((day(3), day(6))));
        assert_eq!(whole_days(Some(day(3)), Some(day(5))), Some((day(3), day(5))));
        assert_eq!(whole_days(None, Some(noon(5))), Some((day(0), day(6))));
        assert_eq!(whole_days(Some(noon(5)), None), Some((day(5), Timestamp::MAX)));
    }
}
