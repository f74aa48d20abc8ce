//! What a node refuses to start with, and what it starts with all the same.

use crate::node::{Setup, TestKey};
use crate::redis::RedisServer;
use keygate::policy::key::Per;

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
