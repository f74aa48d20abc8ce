//! The list of keys.

use super::api::{key_cursor, query};
use super::show;
use super::texts::Texts;
use super::visit::{Frame, Shown, Visit, page};
use crate::clock::Timestamp;
use crate::model::fault::Lang;
use crate::model::key::KeyType;
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Keys on a page.
const PAGESIZE: &str = "25";
/// How near its end a key must be to be marked.
const SOON_MS: i64 = 7 * 24 * 3_600 * 1_000;

/// A key, as the API shows it.
#[derive(Clone, Deserialize)]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) hint: String,
    pub(super) r#type: String,
    pub(super) scopes: Vec<String>,
    pub(super) resource_id: String,
    pub(super) rate_limit: u64,
    pub(super) rate_burst: Option<u64>,
    pub(super) daily_request_limit: Option<u64>,
    pub(super) quota_limit: Option<u64>,
    pub(super) quota_used: u64,
    pub(super) concurrency_limit: Option<u64>,
    pub(super) limits: Vec<Value>,
    pub(super) allowed_ips: Vec<String>,
    pub(super) end_user: Option<String>,
    pub(super) metadata: Map<String, Value>,
    pub(super) is_active: bool,
    pub(super) is_expired: bool,
    pub(super) expires_at: Option<i64>,
    pub(super) last_used_at: Option<i64>,
    pub(super) usage_count: u64,
    pub(super) created_by: String,
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
    pub(super) deleted_at: Option<i64>,
}

/// The state of a key at a glance.
#[derive(Clone)]
pub(super) struct State {
    /// The class of its mark.
    pub(super) mark: &'static str,
    pub(super) text: String,
}

#[derive(Deserialize)]
struct Keys {
    page: KeysPage,
    items: Vec<Key>,
}

#[derive(Deserialize)]
struct KeysPage {
    next_cursor: Option<String>,
}

/// What is searched for.
#[derive(Deserialize)]
pub(super) struct KeysQuery {
    #[serde(default)]
    search: String,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    resource: String,
    #[serde(default)]
    cursor: String,
}

#[derive(Template)]
#[template(path = "keys.html")]
struct KeysPageView {
    t: &'static Texts,
    frame: Frame,
    rows: Vec<Row>,
    asked: KeysQuery,
    types: Vec<&'static str>,
    /// Where the next part is; none at the end.
    next: Option<String>,
    /// Whether this is not the first part.
    is_later: bool,
    /// Whether anything is searched for.
    is_filtered: bool,
    is_deleted: bool,
}

struct Row {
    key: Key,
    state: State,
    requests: String,
    last: String,
    last_exact: String,
}

pub(super) async fn list(
    visit: Visit,
    Path(workspace): Path<String>,
    Query(asked): Query<KeysQuery>,
) -> Shown {
    let is_deleted = asked.state == "deleted";
    let active = match asked.state.as_str() {
        "active" => "true",
        "disabled" => "false",
        _ => "any",
    };
    let filter = query(&[
        ("pagesize", PAGESIZE),
        ("search", asked.search.trim()),
        ("type", &asked.r#type),
        ("resource_id", asked.resource.trim()),
        ("is_active", active),
        ("is_deleted", if is_deleted { "true" } else { "false" }),
    ]);
    let path = format!("/apikeys{filter}&cursor={}", key_cursor(&asked.cursor));
    let found = visit.api(Some(&workspace)).get::<Keys>(&path).await;
    let Keys { page: part, items } = found.map_err(|error| visit.refused(Some(&workspace), error))?;
    let (t, now) = (visit.t(), visit.now());
    let rows = items.into_iter().map(|key| Row::new(key, t, now, visit.lang())).collect();
    let frame = visit.frame("keys", t.keys, Some(&workspace));
    let next = part.next_cursor.map(|cursor| {
        let KeysQuery { search, r#type, state, resource, .. } = &asked;
        let pairs = [
            ("search", &**search),
            ("type", r#type),
            ("state", state),
            ("resource", resource),
            ("cursor", &cursor),
        ];
        format!("{}/keys{}", frame.base(), query(&pairs))
    });
    let is_later = !asked.cursor.is_empty();
    let is_filtered =
        [&asked.search, &asked.r#type, &asked.state, &asked.resource].iter().any(|f| !f.is_empty());
    let types = KeyType::WORDS.to_vec();
    Ok(page(
        StatusCode::OK,
        &KeysPageView { t, frame, rows, asked, types, next, is_later, is_filtered, is_deleted },
    ))
}

impl Row {
    fn new(key: Key, t: &'static Texts, now: Timestamp, lang: Lang) -> Self {
        let last = key.last_used_at;
        Self {
            state: State::of(&key, t, now, lang),
            requests: show::count(key.usage_count),
            last: last.map_or_else(|| t.never.to_owned(), |at| show::distance(at, now, lang)),
            last_exact: last.map(show::instant).unwrap_or_default(),
            key,
        }
    }
}

impl State {
    /// What matters most about a key.
    pub(super) fn of(key: &Key, t: &'static Texts, now: Timestamp, lang: Lang) -> Self {
        let until = |at| show::distance(at, now, lang);
        let (mark, text) = match key {
            Key { deleted_at: Some(at), .. } => ("off", format!("{} {}", t.deleted, until(*at))),
            Key { is_active: false, .. } => ("off", t.disabled.to_owned()),
            Key { is_expired: true, .. } => ("bad", t.expired.to_owned()),
            Key { quota_limit: Some(limit), quota_used, .. } if quota_used >= limit => {
                ("bad", t.used_up.to_owned())
            }
            Key { expires_at: Some(at), .. } if at - now.as_millis() < SOON_MS => {
                ("warn", format!("{} {}", t.expires, until(*at)))
            }
            _ => ("good", t.active.to_owned()),
        };
        Self { mark, text }
    }
}
