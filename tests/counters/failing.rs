//! Redis gone, hung, slow, lying or empty: requests go on, nobody waits long, no limit is passed.

use crate::chaos::{ChaosProxy, Mode};
use crate::node::{Ledger, Node, Setup, TestKey, in_turn};
use crate::patience::FAILURES;
use crate::redis::RedisServer;
use keygate::counter::{Declined, OnFailure};
use keygate::policy::fault::Fault;
use keygate::policy::key::Per;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// After each kind of trouble, Redis is used again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_found_again_within_two_seconds_however_it_failed() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    for (name, mode) in FAILURES {
        let node = Setup::of(1).node("n", proxy.address).await;
        let key = TestKey::window(Per::Total, 1_000_000);
        assert!(!key.charge(&node).await.expect("admitted").degraded(), "{name}: before");
        proxy.set(mode);
        // Until what was leased is spent or out of date, and Redis is given up.
        let failed = Instant::now();
        while !key.charge(&node).await.expect("its share is all").degraded() {
            assert!(failed.elapsed() < Duration::from_secs(2), "{name}: nobody noticed");
        }
        proxy.set(Mode::Pass);
        recovers(&node, &key, name).await;
    }
}

/// Charges until the node shares again.
async fn recovers(node: &Node, key: &TestKey, name: &str) {
    let healed = Instant::now();
    while key.charge(node).await.expect("admitted").degraded() {
        assert!(healed.elapsed() < Duration::from_secs(2), "{name}: no recovery within 2 s");
        // How soon is the subject.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_forgotten_script_is_sent_again() {
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let key = TestKey::window(Per::Total, 10);
    assert!(key.charge(&node).await.is_ok());
    assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "+OK");
    assert!(!key.charge(&node).await.expect("admitted").degraded());
}

#[tokio::test]
async fn a_wrong_type_at_one_key_hurts_no_other() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let (bad, good) = (TestKey::window(Per::Total, 3), TestKey::window(Per::Total, 3));
    server.command(&["SET", &format!("kg:{{w}}:k:{}", bad.id), "somebody else's"]);
    let admitted = admitted_of(&bad, &[&node], 10).await;
    assert_eq!(admitted, 3, "its share is all of it");
    assert!(!good.charge(&node).await.expect("admitted").degraded());
}

async fn admitted_of(key: &TestKey, nodes: &[&Node], requests: usize) -> u64 {
    let mut admitted = 0;
    for n in 0..requests {
        admitted += u64::from(key.charge(nodes[n % nodes.len()]).await.is_ok());
    }
    admitted
}

#[tokio::test]
async fn shares_of_all_nodes_stay_within_what_was_left() {
    let _turn = in_turn().await;
    let mut server = RedisServer::start();
    for (before, after) in [(0, 100), (30, 70), (97, 2)] {
        let setup = Setup::of(3);
        let (a, b, c) = (
            setup.node("a", server.address).await,
            setup.node("b", server.address).await,
            setup.node("c", server.address).await,
        );
        let key = TestKey::window(Per::Total, 100);
        // All of it through one node; the others hear of it last.
        let mut admitted = admitted_of(&key, &[&a], before).await;
        admitted += admitted_of(&key, &[&a, &b, &c], 3).await;
        assert_eq!(admitted, before as u64 + 3);
        server.stop();
        admitted += admitted_of(&key, &[&a, &b, &c], 300).await;
        assert!(admitted <= 100, "{before} before: {admitted}");
        // Rounding down, and the node that spent most has nothing left of its share.
        assert!(admitted >= before as u64 + 3 + after / 3, "{before} before: only {admitted}");
        server.restart();
    }
}

#[tokio::test]
async fn one_node_alone_admits_all_that_was_left() {
    let mut server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let key = TestKey::window(Per::Total, 10);
    assert_eq!(admitted_of(&key, &[&node], 4).await, 4);
    server.stop();
    assert_eq!(admitted_of(&key, &[&node], 20).await, 6);
}

#[tokio::test]
async fn a_rate_without_redis_is_shared() {
    let _turn = in_turn().await;
    let mut server = RedisServer::start();
    let setup = Setup::of(2);
    let nodes = [setup.node("a", server.address).await, setup.node("b", server.address).await];
    let key = TestKey::rate(100);
    let mut admitted = admitted_of(&key, &[&nodes[0]], 300).await;
    let begun = Instant::now();
    server.stop();
    // Real time is the subject: a second of asking for all there is.
    while begun.elapsed() < Duration::from_secs(1) {
        admitted += admitted_of(&key, &[&nodes[0], &nodes[1]], 2).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let allowed = 100 + 100 * u64::try_from(begun.elapsed().as_millis()).expect("short") / 1_000 + 20;
    assert!((150..=allowed).contains(&admitted), "{admitted} of {allowed}");
}

#[tokio::test]
async fn deny_denies_and_allow_allows() {
    let mut server = RedisServer::start();
    let deny = Setup { on_failure: OnFailure::Deny, ..Setup::of(1) }.node("d", server.address).await;
    let allow = Setup { on_failure: OnFailure::Allow, ..Setup::of(1) }.node("a", server.address).await;
    server.stop();
    let key = TestKey::window(Per::Total, 2);
    assert_eq!(key.charge(&deny).await.expect_err("denied"), Declined::Unavailable);
    assert_eq!(admitted_of(&key, &[&allow], 5).await, 5);
    assert_eq!(Fault::ServiceUnavailable.status(), 503);
}

#[tokio::test]
async fn an_emptied_redis_goes_on_where_the_ledger_stands() {
    let _turn = in_turn().await;
    let mut server = RedisServer::start();
    let ledger = Arc::new(Ledger(AtomicU64::new(60)));
    let setup = Setup { ledger: Arc::clone(&ledger), ..Setup::of(2) };
    let (a, b) = (setup.node("a", server.address).await, setup.node("b", server.address).await);
    let key = TestKey::window(Per::Total, 100);
    assert_eq!(admitted_of(&key, &[&a, &b], 10).await, 10, "sixty are spent, says the ledger");
    ledger.0.store(70, Ordering::SeqCst);
    server.restart();
    // Real time is the subject: what a node had in hand when Redis went is good for 50 ms, whatever the ledger says.
    tokio::time::sleep(Duration::from_millis(60)).await;
    until_shared(&key, &[&a, &b], &ledger).await;
    for n in 0..200 {
        let admitted = key.charge([&a, &b][n % 2]).await.is_ok();
        ledger.0.fetch_add(u64::from(admitted), Ordering::SeqCst);
    }
    let spent = ledger.0.load(Ordering::SeqCst);
    // What was spent without Redis just before it was filled is counted twice when the ledger was quicker.
    assert!((90..=100).contains(&spent), "{spent}");
}

/// Charges until both nodes share again, and tells the ledger as a writer would.
async fn until_shared(key: &TestKey, nodes: &[&Node], ledger: &Ledger) {
    let begun = Instant::now();
    for node in nodes {
        loop {
            let charged = key.charge(node).await.expect("there is room");
            ledger.0.fetch_add(1, Ordering::SeqCst);
            if !charged.degraded() {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(2), "no recovery within 2 s");
            // How soon is the subject.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
async fn what_was_spent_without_redis_is_told_to_it() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    let node = Setup::of(1).node("n", proxy.address).await;
    let key = TestKey::window(Per::Total, 1_000);
    assert_eq!(admitted_of(&key, &[&node], 5).await, 5);
    proxy.set(Mode::Cut);
    let mut admitted = 5 + admitted_of(&key, &[&node], 7).await;
    proxy.set(Mode::Pass);
    let begun = Instant::now();
    while key.charge(&node).await.expect("admitted").degraded() {
        admitted += 1;
        assert!(begun.elapsed() < Duration::from_secs(2), "no recovery within 2 s");
        // How soon is the subject.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    admitted += 1;
    node.counters.close().await;
    let kept = server.command(&["HGET", &format!("kg:{{w}}:k:{}", key.id), "u5"]);
    assert!(kept.ends_with(&format!("\r\n{admitted}")), "{kept} after {admitted}");
}

#[tokio::test]
async fn a_flood_over_the_limit_does_not_reach_redis() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let key = TestKey::window(Per::Total, 5);
    assert_eq!(admitted_of(&key, &[&node], 20_000).await, 5);
    let calls = node.metrics.counter_calls.get();
    assert!(calls < 40, "{calls} calls for 20 000 requests");
}
