//! Propagation of a change to all nodes: which node has applied it, and waiting for all live ones.
//!
//! Must not know: how nodes follow the store; it reads their reports. If the store is unreachable, the wait ends, and the
//! response says that not all nodes are known to have the change.

use super::caller::{PlatformAdmin, WorkspaceReader};
use super::context::{Admin, AdminState};
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, PathSegment, Query, QueryParams};
use crate::model::fault::Fault;
use crate::store::{NodeRow, Version};
use axum::extract::State;
use serde::Serialize;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// How often reports are read while a call waits for other nodes.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Which nodes to wait for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `WaitQuery` reads")]
pub(super) struct WaitParams {
    /// `all`: respond when every live node has applied the change, or after two seconds with the lagging ones in
    /// `propagation`. Absent: when this node has applied it.
    wait: Option<String>,
}

/// [`WaitParams`], parsed.
pub(super) struct WaitQuery {
    for_all: bool,
}

/// The propagation when the response was written; only with `wait=all`.
#[derive(Serialize, ToSchema)]
pub(super) struct Spread {
    /// The version of the change.
    version: u64,
    /// Whether every live node has applied it.
    complete: bool,
    /// Names of live nodes that have not reported it yet.
    lagging: Vec<String>,
}

/// The propagation of the newest change of a key.
#[derive(Serialize, ToSchema)]
pub(super) struct PropagationView {
    /// The version of the newest change of this key.
    version: u64,
    /// Whether every live node has applied it.
    complete: bool,
    nodes: Vec<NodeView>,
}

/// The nodes.
#[derive(Serialize, ToSchema)]
pub(super) struct NodesView {
    items: Vec<ReportedNode>,
}

/// What a node has last reported.
#[derive(Serialize, ToSchema)]
pub(super) struct ReportedNode {
    /// The configured name.
    node: String,
    /// The process; this id is made at its start.
    boot_id: String,
    /// The address of its admin API; null: not reported yet.
    admin: Option<String>,
    /// The newest version applied there, of any record.
    applied_version: u64,
    /// Whether it has reported within the last ten seconds.
    live: bool,
    /// Milliseconds since its last report.
    seen_ms_ago: u64,
}

/// A node, as last reported.
#[derive(Serialize, ToSchema)]
pub(super) struct NodeView {
    /// The configured name.
    node: String,
    /// The process; this id is made at its start.
    boot_id: String,
    /// The address of its admin API; null: not reported yet.
    admin: Option<String>,
    /// The newest version applied there, of any record.
    applied_version: u64,
    /// Whether it has applied the newest change of this key.
    applied: bool,
    /// Whether it has reported within the last ten seconds.
    live: bool,
    /// Milliseconds since its last report.
    seen_ms_ago: u64,
}

/// Show the propagation of a key's newest change
///
/// Role `viewer`. Also for a deleted key.
#[utoipa::path(get, path = "/apikeys/{id}/propagation", tag = "API keys", params(("id" = String, Path, description = "Which key")), responses(
    (status = 200, description = "Which node has it in force", body = Envelope<PropagationView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn key_propagation(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<PropagationView>, AdminError> {
    let store = &admin.deps.store;
    let found = admin.ask(Fault::KeyNotFound, store.key_version(&workspace, id.key_id()?)).await?;
    let version = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    let nodes = admin.ask(Fault::NotFound, store.nodes()).await?;
    let complete = lagging(&nodes, version).is_empty();
    let nodes = nodes.into_iter().map(|node| NodeView::new(node, version)).collect();
    Ok(ApiResponse::ok(PropagationView { version: version.0, complete, nodes }))
}

/// List the nodes
///
/// Role `platform`. What each has last reported.
#[utoipa::path(get, path = "/nodes", tag = "Operation", responses(
    (status = 200, description = "The nodes", body = Envelope<NodesView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_nodes(
    State(admin): State<AdminState>,
    _: PlatformAdmin,
    Query(()): Query<()>,
) -> Result<ApiResponse<NodesView>, AdminError> {
    let nodes = admin.ask(Fault::NotFound, admin.deps.store.nodes()).await?;
    Ok(ApiResponse::ok(NodesView { items: nodes.into_iter().map(ReportedNode::new).collect() }))
}

/// Waits as `query` says, at most as long as a write may take. The change is stored in any case.
pub(super) async fn spread(admin: &Admin, query: &WaitQuery, version: Version) -> Option<Spread> {
    if !query.for_all {
        return None;
    }
    let mut last = None;
    let all_have_it = async {
        loop {
            match admin.deps.store.nodes().await {
                Ok(nodes) => {
                    let behind = last.insert(lagging(&nodes, version));
                    if behind.is_empty() {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot read node reports"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let in_time = tokio::time::timeout(admin.deps.write_timeout, all_have_it).await.is_ok();
    Some(Spread { version: version.0, complete: in_time, lagging: last.unwrap_or_default() })
}

/// Names of the live nodes that have not reported `version`.
fn lagging(nodes: &[NodeRow], version: Version) -> Vec<String> {
    let behind = nodes.iter().filter(|node| node.is_live() && node.reached < version);
    behind.map(|node| node.name.to_string()).collect()
}

impl FromParams for WaitQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        let wait = params.read("wait", |text| match text {
            "all" => Ok(true),
            _ => Err("must be all, or absent".into()),
        });
        Self { for_all: wait.unwrap_or(false) }
    }
}

impl ReportedNode {
    fn new(node: NodeRow) -> Self {
        let live = node.is_live();
        let NodeRow { boot, name, admin, reached, seen_ago } = node;
        Self {
            node: name.into(),
            boot_id: boot.to_string(),
            admin: admin.map(Into::into),
            applied_version: reached.0,
            live,
            seen_ms_ago: u64::try_from(seen_ago.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl NodeView {
    fn new(node: NodeRow, version: Version) -> Self {
        let (live, applied) = (node.is_live(), node.reached >= version);
        let NodeRow { boot, name, admin, reached, seen_ago } = node;
        Self {
            node: name.into(),
            boot_id: boot.to_string(),
            admin: admin.map(Into::into),
            applied_version: reached.0,
            applied,
            live,
            seen_ms_ago: u64::try_from(seen_ago.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
