//! One workspace limit over many keys, each with its own calls to Redis, while Redis is reachable only at times.

use crate::chaos::{ChaosProxy, Mode};
use crate::node::{Node, Setup, TestKey, eventually, in_turn};
use crate::redis::RedisServer;
use keygate::model::key::Per;
use keygate::policy::keys::limit::{LimitName, LimitRule};
use std::sync::Arc;
use std::time::Duration;

const MAX: usize = 1_000;
/// Concurrent requests: more than calls allowed in flight.
const LANES: usize = 400;

/// Keys of one workspace with a common limit.
fn keys(count: usize) -> Vec<TestKey> {
    let mut first = TestKey::window(Per::Total, MAX as u64);
    first.workspace_limits = first.limits[1..].iter().copied().collect();
    first.limits = first.limits[..1].iter().copied().collect();
    first.workspace_limits[0].name = LimitName::Workspace(0);
    (0..count).map(|_| TestKey { id: TestKey::rate(1).id, ..first.clone() }).collect()
}

/// One request of each key. Returns how many were admitted.
async fn admitted_of_each(keys: &[TestKey], node: &Arc<Node>) -> usize {
    let lanes = keys.chunks(keys.len().div_ceil(LANES)).map(|keys| {
        let (keys, node) = (keys.to_vec(), Arc::clone(node));
        tokio::spawn(async move {
            let mut admitted = 0;
            for key in &keys {
                admitted += usize::from(key.charge(&node).await.is_ok());
            }
            admitted
        })
    });
    let mut admitted = 0;
    for lane in lanes.collect::<Vec<_>>() {
        admitted += lane.await.expect("a lane");
    }
    admitted
}

fn spent(server: &RedisServer) -> usize {
    usize::try_from(server.spent("kg:{w}:w")).expect("few")
}

/// What a key used while Redis was unreachable is counted with the next call for any other key of the workspace, reported
/// or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_spent_without_redis_are_not_granted_again_when_it_is_back() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    let node = Arc::new(Setup::of(1).node("n", proxy.address).await);
    let keys = keys(2_000);
    proxy.set(Mode::Cut);
    eventually("Redis is missed", || node.metrics.counter_up.get() == 0).await;
    let alone = admitted_of_each(&keys[..800], &node).await;
    assert_eq!(alone, 800, "all that is left is its share");
    proxy.set(Mode::Pass);
    eventually("Redis is found", || node.metrics.counter_up.get() == 1).await;
    let later = admitted_of_each(&keys[800..1_500], &node).await;
    assert!(alone + later <= MAX, "{alone} and {later} of {MAX}");
    eventually("Redis knows of all", || spent(&server) == alone + later).await;
    // With keys that have not been refused before: a refusal is cached for a moment.
    let mut rest = 0;
    for key in &keys[1_500..] {
        rest += usize::from(key.charge(&node).await.is_ok());
    }
    assert_eq!(alone + later + rest, MAX, "and of no more than that");
}

/// More keys need a call than may be in flight, so some requests use the fallback while Redis grants units to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_passes_no_limit_though_not_all_of_it_can_ask() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    for round in 0..5 {
        assert_eq!(server.command(&["FLUSHALL"]), "+OK");
        let node = Arc::new(Setup::of(1).node(&format!("n{round}"), server.address).await);
        let keys = keys(600);
        let mut admitted = 0;
        for _ in 0..3 {
            admitted += admitted_of_each(&keys, &node).await;
        }
        assert!(admitted <= MAX, "{admitted} of {MAX}");
    }
}

/// Two keys that share `max`; Redis cannot count the first.
async fn broken_and_sound(server: &RedisServer, node: &Node, max: u64, workspace: &str) -> [TestKey; 2] {
    let all = keys(2);
    let of_max = |n: usize| {
        let mut key = all[n].clone();
        key.workspace_limits[0].rule = LimitRule::of(Per::Total, max);
        key.workspace = workspace.parse().expect("an id");
        key
    };
    let [broken, sound] = [of_max(0), of_max(1)];
    server.command(&["SET", &format!("kg:{{{workspace}}}:k:{}", broken.id), "no hash"]);
    assert!(broken.charge(node).await.expect("its share is all").degraded());
    [broken, sound]
}

#[tokio::test]
async fn units_owed_by_one_key_are_not_granted_to_another() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let node = Setup::of(1).node("n", server.address).await;
    let [broken, sound] = broken_and_sound(&server, &node, 10, "w").await;
    for _ in 0..5 {
        assert!(broken.charge(&node).await.expect("its share is all").degraded());
    }
    let mut admitted = 0;
    for _ in 0..20 {
        admitted += usize::from(sound.charge(&node).await.is_ok());
    }
    assert_eq!(admitted, 4, "six of ten are spent");
}

#[tokio::test]
async fn units_requested_by_one_key_are_not_spent_by_another() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    for round in 0..5 {
        proxy.set(Mode::Pass);
        let node = Arc::new(Setup::of(1).node(&format!("n{round}"), proxy.address).await);
        let [broken, sound] = broken_and_sound(&server, &node, 2, &format!("w{round}")).await;
        eventually("nobody asks", || node.metrics.counter_asking.get() == 0).await;
        proxy.set(Mode::Late(Duration::from_millis(5)));
        let before = node.metrics.counter_calls.get();
        let asking = tokio::spawn({
            let node = Arc::clone(&node);
            async move { sound.charge(&node).await.is_ok() }
        });
        while node.metrics.counter_calls.get() == before {
            tokio::task::yield_now().await;
        }
        let meanwhile = broken.charge(&node).await.is_ok();
        let asked = asking.await.expect("an answer");
        assert!(!(meanwhile && asked), "one of two is left, and both were admitted");
    }
}
