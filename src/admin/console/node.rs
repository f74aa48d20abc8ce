//! This node and the others: readiness, versions, and a reload of the config.

use super::show;
use super::texts::Texts;
use super::visit::{Change, Frame, Shown, Visit, lead_to, message_page, page};
use askama::Template;
use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
pub(super) struct Nodes {
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "node")]
    name: String,
    admin: Option<String>,
    applied_version: u64,
    live: bool,
    seen_ms_ago: u64,
}

/// A node in a list.
pub(super) struct NodeRow {
    name: String,
    admin: String,
    version: String,
    behind: u64,
    live: bool,
    seen: String,
}

/// A check of this node's readiness.
pub(super) struct CheckRow {
    pub(super) name: &'static str,
    pub(super) ok: bool,
    pub(super) detail: String,
}

#[derive(Template)]
#[template(path = "node.html")]
struct NodePage {
    t: &'static Texts,
    frame: Frame,
    checks: Vec<CheckRow>,
    facts: Vec<(&'static str, String)>,
    /// None: the store is away.
    nodes: Option<Vec<NodeRow>>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    if !visit.is_platform() {
        return Err(visit.message(StatusCode::FORBIDDEN));
    }
    let t = visit.t();
    let nodes = visit.api(None).get::<Nodes>("/nodes").await.ok().map(Nodes::rows);
    let deps = &visit.console.admin.deps;
    let keys = show::count(u64::try_from(deps.keyring.len()).unwrap_or(u64::MAX));
    let facts = vec![(t.version, env!("CARGO_PKG_VERSION").to_owned()), (t.keys_in_memory, keys)];
    let frame = visit.frame("node", t.node, None);
    Ok(page(StatusCode::OK, &NodePage { t, frame, checks: checks(&visit), facts, nodes }))
}

pub(super) async fn reload(change: Change) -> Shown {
    let visit = &change.visit;
    match visit.api(None).send::<Value>(Method::POST, "/reload", Map::new()).await {
        Ok(_) => Ok(lead_to("/console/node")),
        Err(refused) if refused.status == StatusCode::BAD_REQUEST => {
            let t = visit.t();
            let mistakes = refused.errors.into_iter().map(|error| (error.field, error.message)).collect();
            let frame = visit.frame("node", t.reload_failed, None);
            Ok(message_page(refused.status, frame, t.reload_failed_hint.to_owned(), mistakes))
        }
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

/// The checks of this node, from memory.
pub(super) fn checks(visit: &Visit) -> Vec<CheckRow> {
    let checks = (visit.console.admin.deps.readiness)().checks.into_iter();
    checks.map(|check| CheckRow { name: check.name, ok: check.ok, detail: check.detail }).collect()
}

impl Nodes {
    /// The nodes, with how far each is behind the newest.
    pub(super) fn rows(self) -> Vec<NodeRow> {
        let newest = self.items.iter().map(|node| node.applied_version).max().unwrap_or(0);
        let row = |node: Node| NodeRow {
            behind: newest - node.applied_version,
            version: show::count(node.applied_version),
            name: node.name,
            admin: node.admin.unwrap_or_default(),
            live: node.live,
            seen: show::count(node.seen_ms_ago / 1_000),
        };
        self.items.into_iter().map(row).collect()
    }
}
