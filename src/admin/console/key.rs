//! One key: what it may do and how much is left now, its charts, its requests, its changes, and what can be done with it.

use super::api::{query, segment};
use super::audit::{AuditLines, AuditRow};
use super::budgets::KeyUsage;
use super::chart::{Bar, Chart, Series, charts};
use super::key_form::{self, Issued, secret_page};
use super::keys::{Key, State};
use super::show;
use super::texts::Texts;
use super::visit::{Change, Frame, Instead, Shown, Visit, base, lead_to, page};
use super::workspaces::Detail;
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The statistics of a key.
#[derive(Deserialize)]
struct Stats {
    total_requests: u64,
    requests_today: u64,
    denied: u64,
    error_rate: f64,
    tokens_used: u64,
    cost_nano: u64,
    p50: f64,
    p95: f64,
    #[serde(flatten)]
    limits: KeyUsage,
}

#[derive(Deserialize)]
struct Logs {
    page: LogsPage,
    items: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct LogsPage {
    next_cursor: Option<String>,
}

/// The range of the charts.
#[derive(Deserialize)]
pub(super) struct KeyQuery {
    #[serde(default)]
    span: String,
}

/// What requests are searched for.
#[derive(Deserialize)]
pub(super) struct RequestsQuery {
    #[serde(default)]
    status: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    to: String,
    #[serde(default)]
    cursor: String,
}

#[derive(Template)]
#[template(path = "key.html")]
struct KeyPage {
    t: &'static Texts,
    frame: Frame,
    here: String,
    key: Key,
    state: State,
    facts: Vec<(&'static str, String)>,
    numbers: Vec<(&'static str, String)>,
    bars: Vec<Bar>,
    charts: Vec<Chart>,
    is_month: bool,
    requests: Vec<RequestRow>,
    trail: Vec<AuditRow>,
    /// What is wrong with the name typed to delete it.
    wrong_name: bool,
}

#[derive(Template)]
#[template(path = "requests.html")]
struct RequestsPage {
    t: &'static Texts,
    frame: Frame,
    here: String,
    key: Key,
    requests: Vec<RequestRow>,
    asked: RequestsQuery,
    next: Option<String>,
    is_later: bool,
    wrong: Option<String>,
}

/// A request in a list.
pub(super) struct RequestRow {
    at: String,
    method: String,
    path: String,
    status: u64,
    mark: &'static str,
    outcome: String,
    time: String,
    tokens: String,
    details: Vec<(String, String)>,
}

pub(super) async fn show(
    visit: Visit,
    Path((workspace, id)): Path<(String, String)>,
    Query(asked): Query<KeyQuery>,
) -> Shown {
    shown(&visit, &workspace, &id, &asked.span, false).await
}

async fn shown(visit: &Visit, workspace: &str, id: &str, span: &str, wrong_name: bool) -> Shown {
    let key = key_form::read(visit, workspace, id).await?;
    let api = visit.api(Some(workspace));
    let (t, now, lang) = (visit.t(), visit.now(), visit.lang());
    let refused = |error| visit.refused(Some(workspace), error);
    let path = format!("/apikeys/{}", segment(id));
    let is_month = span == "month";
    let range = if is_month {
        let from = now.as_millis() - 29 * 86_400_000;
        query(&[("interval", "day"), ("from", &from.to_string())])
    } else {
        String::new()
    };
    let stats: Stats = api.get(&format!("{path}/stats")).await.map_err(refused)?;
    let series: Series = api.get(&format!("{path}/usage{range}")).await.map_err(refused)?;
    let logs: Logs = api.get(&format!("{path}/logs?pagesize=8")).await.map_err(refused)?;
    let tenant: Detail = api.get(&format!("/workspaces/{}", segment(workspace))).await.map_err(refused)?;
    let trail = if visit.can_write() {
        let path = format!("/audit?pagesize=10&target={}", key.id);
        api.get::<AuditLines>(&path).await.map_err(refused)?.rows()
    } else {
        Vec::new()
    };
    let mut bars = stats.limits.bars(t);
    bars.extend(tenant.bars(t));
    Bar::mark_binding(&mut bars);
    let numbers = vec![
        (t.requests, show::count(stats.total_requests)),
        (t.today, show::count(stats.requests_today)),
        (t.denied, show::count(stats.denied)),
        (t.error_rate, show::percent(stats.error_rate * 100.0)),
        (t.tokens, show::count(stats.tokens_used)),
        (t.cost, show::money(stats.cost_nano)),
        (t.p50, show::millis(stats.p50)),
        (t.p95, show::millis(stats.p95)),
    ];
    let frame = visit.frame("keys", &key.name, Some(workspace));
    let here = format!("{}/keys/{}", frame.base(), key.id);
    let view = KeyPage {
        t,
        frame,
        here,
        state: State::of(&key, t, now, lang),
        facts: facts(&key, t),
        numbers,
        bars,
        charts: charts(&series.points, is_month, t),
        is_month,
        requests: logs.items.iter().map(|record| RequestRow::new(record, t)).collect(),
        trail,
        wrong_name,
        key,
    };
    Ok(page(if wrong_name { StatusCode::BAD_REQUEST } else { StatusCode::OK }, &view))
}

fn facts(key: &Key, t: &'static Texts) -> Vec<(&'static str, String)> {
    let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
    let instant = |at: i64| format!("{} UTC", show::instant(at));
    let burst = key.rate_burst.map(|n| format!(", {} {}", t.burst, show::count(n))).unwrap_or_default();
    let mut facts = vec![
        (t.key_type, key.r#type.clone()),
        (t.resource, key.resource_id.clone()),
        (t.scopes, or(key.scopes.join(" "), t.none)),
        (
            t.rate_limit,
            format!("{}{} {burst}", show::count(key.rate_limit), t.a_second).trim_end().to_owned(),
        ),
        (t.concurrency, key.concurrency_limit.map_or_else(|| t.no_limit.to_owned(), show::count)),
        (t.expires_at, key.expires_at.map_or_else(|| t.never.to_owned(), instant)),
        (t.allowed_ips, or(key.allowed_ips.join(", "), t.any_address)),
    ];
    facts.extend(key.end_user.clone().map(|user| (t.end_user, user)));
    facts.extend(
        key.metadata.iter().next().map(|_| (t.metadata, Value::Object(key.metadata.clone()).to_string())),
    );
    facts.push((t.created, format!("{} · {}", instant(key.created_at), key.created_by)));
    facts.push((t.changed, instant(key.updated_at)));
    facts
}

pub(super) async fn requests(
    visit: Visit,
    Path((workspace, id)): Path<(String, String)>,
    Query(asked): Query<RequestsQuery>,
) -> Shown {
    let key = key_form::read(&visit, &workspace, &id).await?;
    let utc = |text: &str| if text.is_empty() { String::new() } else { format!("{text}:00Z") };
    let (from, to) = (utc(&asked.from), utc(&asked.to));
    let filter = query(&[
        ("pagesize", "50"),
        ("status_code", asked.status.trim()),
        ("endpoint", asked.path.trim()),
        ("start_date", &from),
        ("end_date", &to),
        ("cursor", &asked.cursor),
    ]);
    let found = visit.api(Some(&workspace)).get::<Logs>(&format!("/apikeys/{}/logs{filter}", key.id)).await;
    let (logs, wrong) = match found {
        Ok(logs) => (logs, None),
        Err(refused) if refused.status == StatusCode::BAD_REQUEST => {
            (Logs { page: LogsPage { next_cursor: None }, items: Vec::new() }, Some(refused.message))
        }
        Err(refused) => return Err(visit.refused(Some(&workspace), refused)),
    };
    let t = visit.t();
    let frame = visit.frame("keys", &format!("{} · {}", t.requests, key.name), Some(&workspace));
    let here = format!("{}/keys/{}", frame.base(), key.id);
    let next = logs.page.next_cursor.map(|cursor| {
        let RequestsQuery { status, path, from, to, .. } = &asked;
        let pairs = [("status", &**status), ("path", path), ("from", from), ("to", to), ("cursor", &cursor)];
        format!("{here}/requests{}", query(&pairs))
    });
    let requests = logs.items.iter().map(|record| RequestRow::new(record, t)).collect();
    let is_later = !asked.cursor.is_empty();
    Ok(page(StatusCode::OK, &RequestsPage { t, frame, here, key, requests, asked, next, is_later, wrong }))
}

impl RequestRow {
    fn new(record: &Map<String, Value>, t: &'static Texts) -> Self {
        let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let whole = |name: &str| record.get(name).and_then(Value::as_u64);
        let status = whole("status_code").unwrap_or(0);
        let outcome = match text("outcome").as_str() {
            "served" => t.o_served.to_owned(),
            "denied" => format!("{}: {}", t.o_denied, text("error")),
            "upstream_failed" => t.o_upstream_failed.to_owned(),
            "aborted" => t.o_aborted.to_owned(),
            "interrupted" => t.o_interrupted.to_owned(),
            other => other.to_owned(),
        };
        let mark = match (text("outcome").as_str(), status) {
            ("served", ..400) => "good",
            ("denied", _) | ("served", ..500) => "warn",
            _ => "bad",
        };
        let shown = |value: &Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            other => Some(other.to_string()),
        };
        let details = record.iter().filter_map(|(name, value)| match name.as_str() {
            "created_at" => Some((name.clone(), format!("{} UTC", show::instant(value.as_i64()?)))),
            "cost_nano" => Some(("cost".to_owned(), show::money(value.as_u64()?))),
            _ => Some((name.clone(), shown(value)?)),
        });
        Self {
            at: show::instant(record.get("created_at").and_then(Value::as_i64).unwrap_or(0)),
            method: text("method"),
            path: text("endpoint"),
            status,
            mark,
            outcome,
            time: show::millis(record.get("response_time").and_then(Value::as_f64).unwrap_or(0.0)),
            tokens: whole("tokens_used").filter(|n| *n > 0).map_or_else(|| "–".into(), show::count),
            details: details.collect(),
        }
    }
}

// === what can be done with a key ===

pub(super) async fn set_active(Path((workspace, id)): Path<(String, String)>, change: Change) -> Shown {
    let is_active = change.form.get("is_active") == "true";
    let body = Map::from_iter([("is_active".to_owned(), json!(is_active))]);
    let path = format!("/apikeys/{}", segment(&id));
    done(&change.visit, &workspace, Method::PUT, &path, body).await?;
    Ok(lead_to(&format!("{}/keys/{}", base(&workspace), segment(&id))))
}

pub(super) async fn regenerate(Path((workspace, id)): Path<(String, String)>, change: Change) -> Shown {
    let visit = &change.visit;
    let seconds = change.form.get("grace").parse::<u64>().unwrap_or(0);
    let body = Map::from_iter([("grace_period_seconds".to_owned(), json!(seconds))]);
    let path = format!("/apikeys/{}/regenerate", segment(&id));
    let issued = visit.api(Some(&workspace)).send::<Issued>(Method::POST, &path, body).await;
    let issued = issued.map_err(|refused| visit.refused(Some(&workspace), refused))?;
    let until = visit.now().plus(std::time::Duration::from_secs(seconds));
    let grace =
        if seconds == 0 { String::new() } else { format!("{} UTC", show::instant(until.as_millis())) };
    Ok(secret_page(visit, &workspace, issued, grace))
}

pub(super) async fn delete(Path((workspace, id)): Path<(String, String)>, change: Change) -> Shown {
    let visit = &change.visit;
    let key = key_form::read(visit, &workspace, &id).await?;
    // The name protects from deleting another key than the one that is meant.
    if change.form.get("name").trim() != key.name {
        return shown(visit, &workspace, &id, "", true).await;
    }
    done(visit, &workspace, Method::DELETE, &format!("/apikeys/{}", segment(&id)), Map::new()).await?;
    Ok(lead_to(&format!("{}/keys?state=deleted", base(&workspace))))
}

pub(super) async fn restore(Path((workspace, id)): Path<(String, String)>, change: Change) -> Shown {
    let path = format!("/apikeys/{}/restore", segment(&id));
    done(&change.visit, &workspace, Method::POST, &path, Map::new()).await?;
    Ok(lead_to(&format!("{}/keys/{}", base(&workspace), segment(&id))))
}

async fn done(
    visit: &Visit,
    workspace: &str,
    method: Method,
    path: &str,
    body: Map<String, Value>,
) -> Result<(), Instead> {
    let outcome = visit.api(Some(workspace)).send::<Value>(method, path, body).await;
    outcome.map(drop).map_err(|refused| visit.refused(Some(workspace), refused))
}
