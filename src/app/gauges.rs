//! Background tasks that observe the gateway: its gauges, and the other nodes that use its store.

use super::CoreServices;
use super::live_nodes::LiveNodesTracker;
use super::upgrade::UpgradeState;
use crate::clock::Clock;
use crate::config::{Config, CountersLocation};
use crate::keyring::Keyring;
use crate::metrics::Metrics;
use crate::store::{NodeRow, Nodes};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use uuid::Uuid;

/// How often the gauges of the keyring are set.
const GAUGES_EVERY: Duration = Duration::from_secs(1);
/// How often the store is asked for other nodes.
const LOOK_FOR_NODES_EVERY: Duration = Duration::from_secs(1);
/// The most time until a node that reports is counted by all others.
const LOOK_WITHIN: Duration = Duration::from_millis(500);

/// Starts all of them on `io`.
pub(super) fn start(
    config: &Config,
    core: &CoreServices,
    keyring: &Arc<Keyring>,
    upgrade_state: &Arc<UpgradeState>,
    io: &Handle,
) {
    io.spawn(gauges(Arc::clone(keyring), Arc::clone(&core.metrics), Arc::clone(&core.clock)));
    io.spawn(crate::usage::maintain_ledger(core.store.clone(), Arc::clone(&core.clock)));
    let counts_alone = config.counters.location == CountersLocation::Memory;
    let (store, metrics) = (core.store.clone(), Arc::clone(&core.metrics));
    let own = (core.boot, config.node.name.clone());
    let live_nodes = core.live_nodes.tracker(LOOK_FOR_NODES_EVERY);
    io.spawn(watch_nodes(store, metrics, live_nodes, own, counts_alone, Arc::clone(upgrade_state)));
}

/// Waits until the other nodes have counted this one, which reported at that time: without Redis each of them divides
/// limits of new windows by the number of nodes. A single node does not wait.
pub(super) async fn until_counted(config: &Config, core: &CoreServices, reported: tokio::time::Instant) {
    if config.counters.location == CountersLocation::Memory {
        return;
    }
    let others = match core.store.nodes().await {
        Ok(nodes) => nodes.iter().any(|n| n.is_live() && n.boot != core.boot),
        // There may be some.
        Err(_) => true,
    };
    if others {
        tokio::time::sleep_until(reported + LOOK_FOR_NODES_EVERY + LOOK_WITHIN).await;
    }
}

async fn gauges(keyring: Arc<Keyring>, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) {
    let number = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
    loop {
        metrics.keyring_keys.set(number(keyring.len() as u128));
        metrics.keyring_broken.set(number(keyring.broken() as u128));
        metrics.keyring_version.set(number(keyring.version().0.into()));
        metrics.keyring_lag_ms.set(number(keyring.age(clock.now()).map_or(0, |a| a.as_millis())));
        tokio::time::sleep(GAUGES_EVERY).await;
    }
}

/// Watches the other nodes that use the store, for the process `boot` called `name`. During an upgrade two processes have
/// that name. If each node counts on its own, several nodes are logged.
async fn watch_nodes(
    store: Arc<dyn Nodes>,
    metrics: Arc<Metrics>,
    mut live_nodes: LiveNodesTracker,
    (boot, name): (Uuid, String),
    counts_alone: bool,
    upgrade_state: Arc<UpgradeState>,
) {
    let begun = tokio::time::Instant::now();
    let (mut told, mut twin_reported) = (1, false);
    loop {
        match store.nodes().await {
            Ok(nodes) => {
                let live = nodes.iter().filter(|n| n.is_live()).count();
                metrics.nodes.set(i64::try_from(live).unwrap_or(i64::MAX));
                // Whether the store knows this one yet or not.
                let besides = nodes.iter().filter(|n| n.is_live() && n.boot != boot).count();
                live_nodes.on_nodes(besides, tokio::time::Instant::now());
                let siblings = upgrade_state.siblings.count();
                let others = live.saturating_sub(siblings).max(1);
                if counts_alone && others > told {
                    tracing::warn!(
                        nodes = others,
                        "several nodes share this store but not their counters, each enforces limits alone (set counters.url)"
                    );
                }
                told = others;
                // One without a heartbeat since this one started is its predecessor.
                let is_twin =
                    |n: &NodeRow| n.boot != boot && *n.name == *name && n.seen_ago < begun.elapsed();
                let has_twin = nodes.iter().filter(|n| n.is_live() && is_twin(n)).count() > siblings;
                if has_twin && !twin_reported {
                    tracing::warn!(
                        "another node on this store has the same node.name {name}, usage cannot distinguish them"
                    );
                }
                twin_reported = has_twin;
            }
            Err(error) => {
                live_nodes.on_no_answer();
                tracing::debug!(%error, "cannot read the list of nodes");
            }
        }
        tokio::time::sleep(LOOK_FOR_NODES_EVERY).await;
    }
}
