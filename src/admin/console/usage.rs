//! What a workspace has used, by key, resource, end user, route and model.

use super::api::query;
use super::show;
use super::texts::Texts;
use super::visit::{Frame, Shown, Visit, page};
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use serde::Deserialize;

/// Totals of a workspace and of groups, as the API shows them.
#[derive(Deserialize)]
pub(super) struct Usage {
    pub(super) totals: Total,
    page: GroupsPage,
    pub(super) items: Vec<Group>,
}

#[derive(Deserialize)]
struct GroupsPage {
    page: u32,
    hasnext: bool,
}

#[derive(Deserialize)]
pub(super) struct Total {
    #[serde(rename = "total_requests")]
    pub(super) requests: u64,
    pub(super) denied: u64,
    pub(super) unreached: u64,
    pub(super) errors: u64,
    pub(super) tokens_used: u64,
    pub(super) cost_nano: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

#[derive(Deserialize)]
pub(super) struct Group {
    pub(super) key_id: Option<String>,
    pub(super) name: Option<String>,
    resource_id: Option<String>,
    end_user_id: Option<String>,
    other_id: Option<String>,
    route: Option<String>,
    model: Option<String>,
    #[serde(flatten)]
    pub(super) total: Total,
}

/// What is shown.
#[derive(Deserialize)]
pub(super) struct UsageQuery {
    #[serde(default)]
    by: String,
    #[serde(default)]
    days: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "usage.html")]
struct UsagePage {
    t: &'static Texts,
    frame: Frame,
    here: String,
    /// Value, label, whether it is chosen.
    groups: Vec<(&'static str, &'static str, bool)>,
    spans: Vec<(&'static str, &'static str, bool)>,
    numbers: Vec<(&'static str, String)>,
    column: &'static str,
    rows: Vec<GroupRow>,
    previous: Option<String>,
    next: Option<String>,
}

pub(super) struct GroupRow {
    pub(super) name: String,
    /// The page of the key; empty where there is none.
    pub(super) link: String,
    pub(super) requests: String,
    pub(super) denied: String,
    pub(super) errors: String,
    pub(super) tokens: String,
    pub(super) cost: String,
    /// Of the largest, of 100.
    pub(super) width: f64,
}

pub(super) async fn show(
    visit: Visit,
    Path(workspace): Path<String>,
    Query(asked): Query<UsageQuery>,
) -> Shown {
    let t = visit.t();
    let by = ["key", "resource", "end_user", "route", "model"]
        .into_iter()
        .find(|by| *by == asked.by)
        .unwrap_or("key");
    let days = ["1", "7", "30", "all"].into_iter().find(|days| *days == asked.days).unwrap_or("30");
    let from = match days.parse::<i64>() {
        // Whole days of UTC, today included.
        Ok(days) => (visit.now().as_millis() - (days - 1) * 86_400_000).to_string(),
        Err(_) if by == "end_user" => (visit.now().as_millis() - 29 * 86_400_000).to_string(),
        Err(_) => String::new(),
    };
    let to = if from.is_empty() { String::new() } else { visit.now().as_millis().to_string() };
    let filter =
        query(&[("group_by", by), ("pagesize", "25"), ("from", &from), ("to", &to), ("page", &asked.page)]);
    let found = visit.api(Some(&workspace)).get::<Usage>(&format!("/usage{filter}")).await;
    let usage = found.map_err(|refused| visit.refused(Some(&workspace), refused))?;
    let frame = visit.frame("usage", t.usage, Some(&workspace));
    let here = format!("{}/usage", frame.base());
    let to = |number: u32| {
        format!("{here}{}", query(&[("by", by), ("days", days), ("page", &number.to_string())]))
    };
    let previous = (usage.page.page > 1).then(|| to(usage.page.page - 1));
    let next = usage.page.hasnext.then(|| to(usage.page.page + 1));
    let groups = [
        ("key", t.key),
        ("resource", t.resource),
        ("end_user", t.end_user),
        ("route", t.route),
        ("model", t.model),
    ];
    let column = groups.iter().find(|(value, _)| *value == by).map_or(t.key, |(_, label)| label);
    let groups = groups.map(|(value, label)| (value, label, value == by)).to_vec();
    let spans = [("1", t.today), ("7", t.seven_days), ("30", t.last_month), ("all", t.all_time)];
    let spans = spans.map(|(value, label)| (value, label, value == days)).to_vec();
    let view = UsagePage {
        t,
        here: here.clone(),
        groups,
        spans,
        numbers: numbers(&usage.totals, t),
        column,
        rows: rows(&usage.items, frame.base(), t),
        frame,
        previous,
        next,
    };
    Ok(page(StatusCode::OK, &view))
}

/// The totals, as a page shows them.
pub(super) fn numbers(total: &Total, t: &'static Texts) -> Vec<(&'static str, String)> {
    vec![
        (t.requests, show::count(total.requests)),
        (t.denied, show::count(total.denied)),
        (t.errors, show::count(total.errors)),
        (t.unreached, show::count(total.unreached)),
        (t.tokens, show::count(total.tokens_used)),
        (t.cost, show::money(total.cost_nano)),
        (t.traffic, format!("{} / {}", show::bytes(total.bytes_in), show::bytes(total.bytes_out))),
    ]
}

/// The groups, as a list shows them.
#[expect(clippy::cast_precision_loss, reason = "to be drawn")]
pub(super) fn rows(groups: &[Group], base: &str, t: &'static Texts) -> Vec<GroupRow> {
    let largest = groups.iter().map(|group| group.total.requests).max().unwrap_or(0).max(1);
    let row = |group: &Group| {
        let names = [
            &group.name,
            &group.other_id,
            &group.end_user_id,
            &group.route,
            &group.model,
            &group.resource_id,
        ];
        let name = names.into_iter().flatten().next().cloned();
        let link = group.key_id.as_ref().map(|id| format!("{base}/keys/{id}")).unwrap_or_default();
        GroupRow {
            name: name.unwrap_or_else(|| t.none.to_owned()),
            link,
            requests: show::count(group.total.requests),
            denied: show::count(group.total.denied),
            errors: show::count(group.total.errors),
            tokens: show::count(group.total.tokens_used),
            cost: show::money(group.total.cost_nano),
            width: (group.total.requests as f64 / largest as f64 * 1_000.0).round() / 10.0,
        }
    };
    groups.iter().map(row).collect()
}
