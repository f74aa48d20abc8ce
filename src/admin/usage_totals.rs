//! Totals of the requests of a workspace: in total, by key, resource, end user, route and model.

use super::caller::WorkspaceReader;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Query, QueryParams};
use super::page::{Listed, fractional_millis, in_order, millis, page_request};
use super::usage::SpentView;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::fault::Fault;
use crate::model::key::Per;
use crate::policy::keys::calendar::Window;
use crate::store::{
    Page, PageRequest, UsageGroup, UsageGroupName, UsageGroupTotal, UsageTotal, UsageTotalsFilter,
};
use axum::extract::State;
use serde::Serialize;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// Longest range of totals of end users. There may be very many of them, and each has a row for each day.
const END_USER_SPAN: Duration = Duration::from_hours(31 * 24);

// === requests ===

/// Parameters of the totals.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `UsageTotalsQuery` reads")]
pub(super) struct UsageTotalsParams {
    /// `key`, `resource`, `end_user`, `route` or `model`: also totals of each. Absent: only totals of the workspace.
    group_by: Option<String>,
    /// Only of keys of this resource. Not together with `group_by=end_user`, `route` or `model`.
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
        let group_by: Option<UsageGroup> = params.word("group_by");
        let by_others = group_by.filter(|by| !matches!(by, UsageGroup::Key | UsageGroup::Resource));
        if let Some(by) = by_others
            && filter.resource_id.is_some()
        {
            params.refuse("resource_id", format!("cannot be given with group_by={}", by.as_str()));
        }
        let is_long = filter.days.is_some_and(|(from, to)| to.since(from) > END_USER_SPAN);
        if group_by == Some(UsageGroup::EndUser) && is_long {
            params.refuse("from", "must be at most 31 days before to with group_by=end_user");
        }
        Self { group_by, filter, page: page_request(params) }
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
    /// `key`, `resource`, `end_user`, `route`, `model`, or null.
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
    #[serde(flatten)]
    spent: SpentView,
    bytes_in: u64,
    bytes_out: u64,
    /// Epoch milliseconds; null: not yet.
    last_used_at: Option<i64>,
    /// Mean response time in milliseconds; null: there were no responses.
    avg_response_time: Option<f64>,
}

/// Totals of a key, resource, end user, route or model.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageGroupView {
    #[serde(flatten)]
    of: UsageGroupNameView,
    #[serde(flatten)]
    total: UsageTotalView,
}

/// What a group is of; only the fields of this kind of group are there.
#[derive(Default, Serialize, ToSchema)]
pub(super) struct UsageGroupNameView {
    /// With `group_by=key`: the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    /// With `group_by=key`: what people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// With `group_by=key` or `resource`.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_id: Option<String>,
    /// With `group_by=end_user`: the end user.
    #[serde(skip_serializing_if = "Option::is_none")]
    end_user_id: Option<String>,
    /// With `group_by=end_user`: the customer's name for it, unless it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    other_id: Option<String>,
    /// With `group_by=route`: the route's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// With `group_by=model`: the model that answered, or else the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

// === handlers ===

/// Totals of a workspace
///
/// Role `viewer`. The time does not depend on the length of the ledger; usage of deleted keys counts. Groups of end users,
/// routes and models have what was recorded since the version that keeps them; a request without an end user, without a
/// route or without a meter is in the totals and in no such group.
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
            tokens,
            cost_nano,
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
            spent: SpentView::new(tokens, cost_nano),
            bytes_in,
            bytes_out,
            last_used_at: last_at.map(millis),
            avg_response_time: mean_us.map(fractional_millis),
        }
    }
}

impl UsageGroupView {
    fn new(group: UsageGroupTotal) -> Self {
        let UsageGroupTotal { of, total } = group;
        Self { of: UsageGroupNameView::new(of), total: UsageTotalView::new(total) }
    }
}

impl UsageGroupNameView {
    fn new(of: UsageGroupName) -> Self {
        let none = Self::default();
        match of {
            UsageGroupName::Key { id, name, resource_id } => Self {
                key_id: Some(id.to_string()),
                name: Some(name),
                resource_id: Some(resource_id),
                ..none
            },
            UsageGroupName::Resource(resource) => Self { resource_id: Some(resource), ..none },
            UsageGroupName::EndUser { id, other_id } => {
                Self { end_user_id: Some(id.to_string()), other_id, ..none }
            }
            UsageGroupName::Route(route) => Self { route: Some(route), ..none },
            UsageGroupName::Model(model) => Self { model: Some(model), ..none },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
