//! The overview of a workspace, from roll-ups only.

use super::api::{key_cursor, query, segment};
use super::chart::{Bar, Chart, Series, charts};
use super::keys::{Key, State};
use super::node::{CheckRow, checks};
use super::texts::Texts;
use super::usage::{GroupRow, Usage, numbers, rows};
use super::visit::{Frame, Shown, Visit, page};
use super::workspaces::Detail;
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use serde::Deserialize;

#[derive(Deserialize)]
struct Keys {
    items: Vec<Key>,
}

/// The range of the charts.
#[derive(Deserialize)]
pub(super) struct OverviewQuery {
    #[serde(default)]
    span: String,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    t: &'static Texts,
    frame: Frame,
    is_month: bool,
    numbers: Vec<(&'static str, String)>,
    charts: Vec<Chart>,
    column: &'static str,
    rows: Vec<GroupRow>,
    bars: Vec<Bar>,
    /// Name, page, what is to be seen to: of the newest keys.
    attention: Vec<(String, String, State)>,
    has_keys: bool,
    checks: Vec<CheckRow>,
}

pub(super) async fn show(
    visit: Visit,
    Path(workspace): Path<String>,
    Query(asked): Query<OverviewQuery>,
) -> Shown {
    let api = visit.api(Some(&workspace));
    let refused = |error| visit.refused(Some(&workspace), error);
    let (t, now, lang) = (visit.t(), visit.now(), visit.lang());
    let is_month = asked.span == "month";
    let days = if is_month { 29 } else { 0 };
    let from = (now.as_millis() - days * 86_400_000).to_string();
    let to = now.as_millis().to_string();
    let range = if is_month { query(&[("interval", "day"), ("from", &from)]) } else { String::new() };
    let series: Series = api.get(&format!("/usage/series{range}")).await.map_err(refused)?;
    let busiest = query(&[("group_by", "key"), ("pagesize", "5"), ("from", &from), ("to", &to)]);
    let usage: Usage = api.get(&format!("/usage{busiest}")).await.map_err(refused)?;
    let tenant: Detail = api.get(&format!("/workspaces/{}", segment(&workspace))).await.map_err(refused)?;
    let keys: Keys =
        api.get(&format!("/apikeys?pagesize=100&cursor={}", key_cursor(""))).await.map_err(refused)?;
    let frame = visit.frame("overview", t.overview, Some(&workspace));
    let has_keys = !keys.items.is_empty();
    let looked_at = keys.items.into_iter().filter_map(|key| {
        let state = State::of(&key, t, now, lang);
        let link = format!("{}/keys/{}", frame.base(), key.id);
        matches!(state.mark, "bad" | "warn").then_some((key.name, link, state))
    });
    let attention = looked_at.take(8).collect();
    let mut bars = tenant.bars(t);
    Bar::mark_binding(&mut bars);
    let view = OverviewPage {
        t,
        is_month,
        numbers: numbers(&usage.totals, t),
        charts: charts(&series.points, is_month, t),
        column: t.key,
        rows: rows(&usage.items, frame.base(), t),
        bars,
        attention,
        has_keys,
        checks: checks(&visit),
        frame,
    };
    Ok(page(StatusCode::OK, &view))
}
