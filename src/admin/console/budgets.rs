//! The limits of a workspace and of its keys, with what is used of them.

use super::api::{key_cursor, query, segment};
use super::chart::Bar;
use super::form::{counts, label_of, windows};
use super::keys::Key;
use super::texts::Texts;
use super::visit::{Frame, Shown, Visit, page};
use super::workspaces::Detail;
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use serde::Deserialize;

/// Keys on a page. The usage of each is read.
const PAGESIZE: &str = "20";

#[derive(Deserialize)]
struct Keys {
    page: KeysPage,
    items: Vec<Key>,
}

#[derive(Deserialize)]
struct KeysPage {
    next_cursor: Option<String>,
}

/// How much of each limit of a key is used.
#[derive(Deserialize)]
pub(super) struct KeyUsage {
    limit_usage: Vec<LimitUsage>,
}

#[derive(Deserialize)]
struct LimitUsage {
    set_by: String,
    count: String,
    per: String,
    used: u64,
    held: u64,
    limit: u64,
}

/// Where the list goes on.
#[derive(Deserialize)]
pub(super) struct BudgetsQuery {
    #[serde(default)]
    cursor: String,
}

#[derive(Template)]
#[template(path = "budgets.html")]
struct BudgetsPage {
    t: &'static Texts,
    frame: Frame,
    bars: Vec<Bar>,
    keys: Vec<KeyBars>,
    is_later: bool,
    next: Option<String>,
}

struct KeyBars {
    name: String,
    link: String,
    bars: Vec<Bar>,
}

pub(super) async fn show(
    visit: Visit,
    Path(workspace): Path<String>,
    Query(asked): Query<BudgetsQuery>,
) -> Shown {
    let api = visit.api(Some(&workspace));
    let refused = |error| visit.refused(Some(&workspace), error);
    let t = visit.t();
    let frame = visit.frame("budgets", t.budgets, Some(&workspace));
    let filter = query(&[("pagesize", PAGESIZE), ("is_active", "any")]);
    let found: Keys =
        api.get(&format!("/apikeys{filter}&cursor={}", key_cursor(&asked.cursor))).await.map_err(refused)?;
    let tenant: Detail = api.get(&format!("/workspaces/{}", segment(&workspace))).await.map_err(refused)?;
    let mut keys = Vec::with_capacity(found.items.len());
    for key in found.items {
        let usage: KeyUsage = api.get(&format!("/apikeys/{}/stats", key.id)).await.map_err(refused)?;
        let mut bars = usage.bars(t);
        Bar::mark_binding(&mut bars);
        keys.push(KeyBars { name: key.name, link: format!("{}/keys/{}", frame.base(), key.id), bars });
    }
    let next = found.page.next_cursor;
    let next = next.map(|cursor| format!("{}/budgets{}", frame.base(), query(&[("cursor", &cursor)])));
    let is_later = !asked.cursor.is_empty();
    Ok(page(StatusCode::OK, &BudgetsPage { t, frame, bars: tenant.bars(t), keys, is_later, next }))
}

impl KeyUsage {
    /// The limits of a key, as bars.
    pub(super) fn bars(&self, t: &'static Texts) -> Vec<Bar> {
        let (counted, per) = (counts(t), windows(t));
        let bar = |limit: &LimitUsage| {
            let label = format!("{} {}", label_of(&counted, &limit.count), label_of(&per, &limit.per));
            let owner = if limit.set_by == "plan" { t.of_plan } else { t.of_key };
            Bar::new(label, owner.into(), (limit.used, limit.held), limit.limit, limit.count == "cost")
        };
        self.limit_usage.iter().map(bar).collect()
    }
}
