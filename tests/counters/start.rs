//! What a node refuses to start with, and what it starts with all the same.

use crate::node::{Setup, TestKey, place};
use crate::redis::RedisServer;
use keygate::counter::{RedisKind, RedisPlace};
use keygate::policy::key::Per;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn a_redis_that_may_evict_is_refused_with_what_to_set() {
    let server = RedisServer::with(&["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]);
    let refused = Setup::of(1).try_node("n", server.address).await.err().expect("refused").to_string();
    assert!(
        refused.contains("allkeys-lru") && refused.contains("CONFIG SET maxmemory-policy noeviction"),
        "{refused}"
    );
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    assert!(Setup::of(1).try_node("n", server.address).await.is_ok());
}

#[tokio::test]
async fn a_redis_without_a_ceiling_evicts_nothing_whatever_its_policy() {
    let server = RedisServer::with(&["--maxmemory-policy", "volatile-lru"]);
    assert!(Setup::of(1).try_node("n", server.address).await.is_ok());
}

#[tokio::test]
async fn a_node_starts_without_redis_and_shares() {
    let mut server = RedisServer::start();
    server.stop();
    let node = Setup::of(1).node("n", server.address).await;
    let key = TestKey::window(Per::Day, 10);
    assert!(key.charge(&node).await.expect("its share is all of it").degraded());
}

#[tokio::test]
async fn what_a_node_did_not_spend_it_gives_back_when_it_stops() {
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let key = TestKey::window(Per::Total, 100_000);
    let mut admitted = 0;
    for _ in 0..3_000 {
        admitted += u64::from(key.charge(&node).await.is_ok());
    }
    node.counters.close().await;
    let kept = server.command(&["HGET", &format!("kg1:{{w}}:k:{}", key.id), "u5"]);
    assert!(kept.ends_with(&format!("\r\n{admitted}")), "{kept} after {admitted}");
}

#[tokio::test]
async fn a_password_is_asked_for_and_given() {
    let server = RedisServer::with(&["--requirepass", "hunter2"]);
    let key = TestKey::window(Per::Day, 10);
    let stranger = Setup::of(1).node("n", server.address).await;
    assert!(key.charge(&stranger).await.expect("its share").degraded());
    let known = RedisPlace { password: Some("hunter2".into()), ..place(server.address) };
    assert!(!format!("{known:?}").contains("hunter2"));
    let node = Setup::of(1).node_at("n", known).await.expect("a node");
    assert!(!key.charge(&node).await.expect("admitted").degraded());
}

#[tokio::test]
async fn a_cluster_counts_a_key_and_its_workspace_together() {
    let folder = std::env::temp_dir().join(format!("keygate-cluster-{}", std::process::id()));
    let file = folder.display().to_string();
    let server = RedisServer::with(&["--cluster-enabled", "yes", "--cluster-config-file", &file]);
    assert_eq!(server.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "+OK");
    let begun = Instant::now();
    // A cluster cannot be waited for in any other way than by asking it.
    while !server.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
        assert!(begun.elapsed() < Duration::from_secs(10), "the cluster does not come up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let place = RedisPlace { kind: RedisKind::Cluster, ..place(server.address) };
    let node = Setup::of(1).node_at("n", place).await.expect("a node");
    let mut key = TestKey::window(Per::Day, 10);
    key.workspace_limits = key.limits.iter().skip(1).copied().collect();
    key.workspace_limits[0].name = keygate::policy::limit::LimitName::Workspace(0);
    assert!(!key.charge(&node).await.expect("admitted").degraded());
    drop(server);
    std::fs::remove_file(folder).expect("the cluster's file");
}
