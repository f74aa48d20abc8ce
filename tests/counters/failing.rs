//! Redis unreachable, hung, slow, answering nonsense or empty: requests continue, waiting is bounded, no limit is exceeded.

use crate::chaos::{ChaosProxy, Mode};
use crate::node::{Ledger, Node, PATIENCE, Setup, TestKey, eventually, in_turn};
use crate::patience::FAILURES;
use crate::redis::RedisServer;
use crate::spare::Spare;
use keygate::counter::{ChargeError, OnFailure};
use keygate::model::fault::Fault;
use keygate::model::key::Per;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// After each kind of failure, Redis is used again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_found_again_within_two_seconds_however_it_failed() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    for (name, mode) in FAILURES {
        let node = Setup::of(1).node("n", proxy.address).await;
        let key = TestKey::window(Per::Total, 1_000_000);
        key.until_shared(&node).await;
        proxy.set(mode);
        // Until the leased units are used up or expired and Redis counts as unreachable.
        let failed = Spare::begin();
        while !key.charge(&node).await.expect("its share is all").degraded() {
            assert!(failed.elapsed() < Duration::from_secs(2), "{name}: nobody noticed");
            tokio::task::yield_now().await;
        }
        proxy.set(Mode::Pass);
        recovers(&node, &key, name).await;
    }
}

/// Charges until the node shares its counters again.
async fn recovers(node: &Node, key: &TestKey, name: &str) {
    let healed = Spare::begin();
    while key.charge(node).await.expect("admitted").degraded() {
        assert!(healed.elapsed() < Duration::from_secs(2), "{name}: no recovery within 2 s");
        // Real time is measured.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_too_long_takes_no_memory_and_counting_goes_on() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    let node = Setup::of(1).node("n", proxy.address).await;
    let key = TestKey::window(Per::Total, 1_000_000);
    key.until_shared(&node).await;
    proxy.set(Mode::Flood);
    eventually("a connection is flooded", || proxy.flooded() > 0).await;
    while !key.charge(&node).await.expect("its share is all").degraded() {
        tokio::task::yield_now().await;
    }
    // Bytes that were in flight when the connection was closed.
    assert!(proxy.flooded() < 32 << 20, "{}", proxy.flooded());
    proxy.set(Mode::Pass);
    recovers(&node, &key, "flood").await;
}

#[tokio::test]
async fn a_forgotten_script_is_sent_again() {
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let (key, other) = (TestKey::window(Per::Total, 1_000_000), TestKey::window(Per::Total, 1_000_000));
    key.until_shared(&node).await;
    assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "+OK");
    other.until_shared(&node).await;
}

#[tokio::test]
async fn a_wrong_type_at_one_redis_key_affects_no_other() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let (bad, good) = (TestKey::window(Per::Total, 3), TestKey::window(Per::Total, 1_000_000));
    server.command(&["SET", &format!("kg:{{w}}:k:{}", bad.id), "somebody else's"]);
    let admitted = admitted_of(&bad, &[&node], 10).await;
    assert_eq!(admitted, 3, "its share is all of it");
    good.until_shared(&node).await;
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
        let (nodes, key) = spent_until_the_end(&server, before).await;
        let nodes: Vec<&Node> = nodes.iter().map(|node| &**node).collect();
        server.stop();
        let admitted = before as u64 + 3 + admitted_of(&key, &nodes, 300).await;
        assert!(admitted <= 100, "{before} before: {admitted}");
        // Rounding down, units in hand that expired unspent, and the node that spent most has nothing left of its share.
        assert!(admitted >= before as u64 + 3 + after / 4, "{before} before: only {admitted}");
        server.restart();
    }
}

/// Three nodes and a key of 100, of which so many are used through one node and then one through each, all in time for
/// Redis: the other nodes learn of it last. If a node had to use the fallback, the test starts again with new ones.
async fn spent_until_the_end(server: &RedisServer, before: usize) -> (Vec<Arc<Node>>, TestKey) {
    let begun = Instant::now();
    loop {
        let (nodes, key) = (Setup::of(3).all(server).await, TestKey::window(Per::Total, 100));
        let in_turn = [0].iter().cycle().take(before).chain(&[0, 1, 2]);
        let mut is_shared = true;
        for n in in_turn {
            is_shared &= key.charge(&nodes[*n]).await.is_ok_and(|charged| !charged.degraded());
        }
        if is_shared {
            return (nodes, key);
        }
        assert!(begun.elapsed() < PATIENCE, "Redis never answers all in time");
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
    let begun = Instant::now();
    let mut admitted = key.until_shared(&nodes[0]).await;
    admitted += admitted_of(&key, &[&nodes[0]], 300).await;
    server.stop();
    let gone = Instant::now();
    // Real time: a second of requests as fast as possible.
    while gone.elapsed() < Duration::from_secs(1) {
        admitted += admitted_of(&key, &[&nodes[0], &nodes[1]], 2).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let allowed = 100 + 100 * u64::try_from(begun.elapsed().as_millis()).expect("short") / 1_000 + 20;
    assert!((150..=allowed).contains(&admitted), "{admitted} of {allowed}");
}

#[tokio::test]
async fn on_failure_deny_refuses_and_allow_admits() {
    let mut server = RedisServer::start();
    let deny = Setup { on_failure: OnFailure::Deny, ..Setup::of(1) }.node("d", server.address).await;
    let allow = Setup { on_failure: OnFailure::Allow, ..Setup::of(1) }.node("a", server.address).await;
    server.stop();
    let key = TestKey::window(Per::Total, 2);
    assert_eq!(key.charge(&deny).await.expect_err("denied"), ChargeError::Unavailable);
    assert_eq!(admitted_of(&key, &[&allow], 5).await, 5);
    assert_eq!(Fault::ServiceUnavailable.status(), 503);
}

#[tokio::test]
async fn an_emptied_redis_goes_on_where_the_ledger_stands() {
    let _turn = in_turn().await;
    let mut server = RedisServer::start();
    let ledger = Arc::new(Ledger::of(60));
    let setup = Setup { ledger: Arc::clone(&ledger), ..Setup::of(2) };
    let (a, b) = (setup.node("a", server.address).await, setup.node("b", server.address).await);
    let key = TestKey::window(Per::Total, 100);
    let first = key.until_shared(&a).await + key.until_shared(&b).await;
    for n in 0..10 {
        drop(key.charge([&a, &b][n % 2]).await.expect("sixty are spent, says the ledger"));
    }
    ledger.units.store(70 + first, Ordering::SeqCst);
    server.restart();
    // Real time: units held when Redis became unreachable are usable for 50 ms, whatever the ledger says.
    tokio::time::sleep(Duration::from_millis(60)).await;
    until_shared(&key, &[&a, &b], &ledger).await;
    for n in 0..200 {
        let admitted = key.charge([&a, &b][n % 2]).await.is_ok();
        ledger.units.fetch_add(u64::from(admitted), Ordering::SeqCst);
    }
    let spent = ledger.units.load(Ordering::SeqCst);
    // Units used without Redis just before it was filled are counted twice when the ledger was faster.
    assert!((90..=100).contains(&spent), "{spent}");
}

/// Charges until both nodes share again, and adds to the ledger as a writer would.
async fn until_shared(key: &TestKey, nodes: &[&Node], ledger: &Ledger) {
    let begun = Spare::begin();
    for node in nodes {
        loop {
            let charged = key.charge(node).await;
            ledger.units.fetch_add(u64::from(charged.is_ok()), Ordering::SeqCst);
            if charged.is_ok_and(|charged| !charged.degraded()) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(2), "no recovery within 2 s");
            // Real time is measured.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
async fn units_spent_without_redis_are_reported_to_it() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    let tried = Instant::now();
    loop {
        let node = Setup::of(1).node("n", proxy.address).await;
        let key = TestKey::window(Per::Total, 1_000);
        assert_eq!(admitted_of(&key, &[&node], 5).await, 5);
        proxy.set(Mode::Cut);
        let mut admitted = 5 + admitted_of(&key, &[&node], 7).await;
        proxy.set(Mode::Pass);
        let begun = Spare::begin();
        while key.charge(&node).await.expect("admitted").degraded() {
            admitted += 1;
            assert!(begun.elapsed() < Duration::from_secs(2), "no recovery within 2 s");
            // Real time is measured.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        admitted += 1;
        if node.closes().await {
            assert_eq!(server.spent(&format!("kg:{{w}}:k:{}", key.id)), admitted);
            return;
        }
        assert!(tried.elapsed() < PATIENCE, "it never closes in time");
    }
}

/// The answer grants units to a node that has admitted a request without Redis, and Redis does not know of that request
/// yet.
#[tokio::test]
async fn admissions_during_a_late_answer_are_paid_from_it() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    for _ in 0..10 {
        let node = Setup::of(1).node("n", proxy.address).await;
        let key = TestKey::window(Per::Total, 5);
        proxy.set(Mode::Late(Duration::from_millis(25)));
        assert!(key.charge(&node).await.expect("its share is all").degraded());
        eventually("the answer has come", || node.metrics.counter_asking.get() == 0).await;
        proxy.set(Mode::Pass);
        let admitted = 1 + admitted_of(&key, &[&node], 50).await;
        assert!(admitted <= 5, "{admitted} of five");
    }
}

#[tokio::test]
async fn a_flood_over_the_limit_does_not_reach_redis() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let key = TestKey::window(Per::Total, 5);
    let begun = Instant::now();
    let admitted = admitted_of(&key, &[&node], 20_000).await;
    // Units that Redis granted in a lost answer are used by no node.
    assert!(admitted == 5 || (admitted < 5 && node.metrics.counter_late.get() > 0), "{admitted} of five");
    let calls = node.metrics.counter_calls.get();
    // Other nodes may return units, so Redis is called now and then, up to once a second.
    let calls_max = 40 + 2 * begun.elapsed().as_secs();
    assert!(calls < calls_max, "{calls} calls for 20 000 requests");
}
