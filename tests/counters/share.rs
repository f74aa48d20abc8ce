//! Without Redis, nodes enforce their shares: together they stay within the limit, also under load.

use crate::node::{Ledger, Node, PATIENCE, Setup, TestKey, eventually, in_turn};
use crate::redis::RedisServer;
use keygate::model::key::Per;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const LIMIT: u64 = 1_500;
const SECOND_NS: u64 = 1_000_000_000;
/// A share counts as used up when so many requests in a row were refused: its rate alone would admit one in six.
const REFUSED_MIN: u64 = 500;

/// The totals of all loads, and whether they may end.
#[derive(Default)]
struct Loads {
    admitted: AtomicU64,
    stop: AtomicBool,
}

/// A steady load of about `per_second`. After a stall it does not catch up: a node can only assume that the others continue
/// at their previous pace. `refused` counts the refusals since the last admission.
async fn load(node: Arc<Node>, key: TestKey, per_second: u64, loads: Arc<Loads>, refused: Arc<AtomicU64>) {
    let (mut last, mut due_ns) = (Instant::now(), 0);
    while !loads.stop.load(Ordering::SeqCst) {
        let passed = last.elapsed().min(Duration::from_millis(20));
        last = Instant::now();
        due_ns += u64::try_from(passed.as_nanos()).expect("short") * per_second;
        while due_ns >= SECOND_NS {
            due_ns -= SECOND_NS;
            if key.charge(&node).await.is_ok() {
                loads.admitted.fetch_add(1, Ordering::SeqCst);
                refused.store(0, Ordering::SeqCst);
            } else {
                refused.fetch_add(1, Ordering::SeqCst);
            }
        }
        // A steady load is what the test needs.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn spent(server: &RedisServer, key: &TestKey) -> u64 {
    server.spent(&format!("kg:{{w}}:k:{}", key.id))
}

/// Three nodes at different paces and an idle one; Redis dies when this much is used.
async fn dies_at(dies_at: u64) -> u64 {
    let mut server = RedisServer::start();
    let ledger = Arc::new(Ledger::of(0));
    let setup = Setup { ledger: Arc::clone(&ledger), ..Setup::of(4) };
    let nodes = setup.all(&server).await;
    let mut key = TestKey::window(Per::Total, LIMIT);
    // The rate limit of the key: other nodes cannot have used more than that unnoticed.
    key.limits[0].rule = keygate::policy::keys::limit::LimitRule::of(Per::Second, 2_000);
    let loads = Arc::new(Loads::default());
    loads.admitted.fetch_add(u64::from(key.charge(&nodes[3]).await.is_ok()), Ordering::SeqCst);
    let refused: [Arc<AtomicU64>; 4] = Default::default();
    let lane = |n: usize, pace| {
        let (loads, refused) = (Arc::clone(&loads), Arc::clone(&refused[n]));
        tokio::spawn(load(Arc::clone(&nodes[n]), key.clone(), pace, loads, refused))
    };
    let mut lanes: Vec<_> =
        [(0, 300), (1, 150), (2, 50)].into_iter().map(|(n, pace)| lane(n, pace)).collect();
    let begun = Instant::now();
    while spent(&server, &key) < dies_at {
        assert!(begun.elapsed() < PATIENCE, "no load");
        // As a writer does: the ledger lags a moment behind.
        ledger.units.store(spent(&server, &key).saturating_sub(20), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop();
    let before = loads.admitted.load(Ordering::SeqCst);
    let is_spent = |n: usize| refused[n].load(Ordering::SeqCst) >= REFUSED_MIN;
    // All at once on the idle node, before it can learn what the others used.
    lanes.push(lane(3, 3_000));
    // Real time: long enough to use up every share.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    eventually("the idle node has spent its share", || is_spent(3)).await;
    lanes.extend([0, 1, 2].map(|n| lane(n, 3_000)));
    // By then the ledger has everything used before, and the idle node learns of it.
    ledger.units.store(before, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    eventually("every node has spent its share", || (0..4).all(is_spent)).await;
    loads.stop.store(true, Ordering::SeqCst);
    for lane in lanes {
        lane.await.expect("a lane");
    }
    loads.admitted.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_under_load_stay_within_the_limit_together_when_redis_dies() {
    let _turn = in_turn().await;
    let (early, middle, late) = tokio::join!(dies_at(200), dies_at(600), dies_at(1_300));
    for (died_at, admitted) in [(200, early), (600, middle), (1_300, late)] {
        println!("Redis died at {died_at} of {LIMIT}: {admitted} admitted in all");
        assert!(admitted <= LIMIT, "{admitted} of {LIMIT}, Redis died at {died_at}");
        // Shares are not wasted either: what is kept back is small compared with what is left.
        let left = LIMIT - died_at;
        assert!(admitted >= died_at + left / 4, "only {admitted} of {LIMIT}, Redis died at {died_at}");
    }
}

/// Charges `key` at every node in turn until none admits anything more. Returns how many were admitted.
async fn all_there_is(key: &TestKey, nodes: &[&Node]) -> u64 {
    let mut admitted = 0;
    for n in 0..nodes.len() * 600 {
        admitted += u64::from(key.charge(nodes[n % nodes.len()]).await.is_ok());
    }
    admitted
}

/// The older node still believes it is the only one when Redis dies.
#[tokio::test]
async fn a_node_that_another_has_not_counted_yet_passes_no_limit_when_redis_dies() {
    const MAX: u64 = 400;
    let _turn = in_turn().await;
    let mut server = RedisServer::start();
    for before in [0, 90, 250] {
        let older = Setup { share_unknown: false, ..Setup::of(1) }.node("older", server.address).await;
        let key = TestKey::window(Per::Hour, MAX);
        let mut admitted = key.until_shared(&older).await;
        for _ in 0..before {
            admitted += u64::from(key.charge(&older).await.is_ok());
        }
        let newer = Setup::of(2).node("newer", server.address).await;
        admitted += u64::from(key.charge(&newer).await.is_ok());
        server.stop();
        admitted += all_there_is(&key, &[&newer, &older]).await;
        assert!(admitted <= MAX, "{admitted} of {MAX}, {before} before");
        server.restart();
    }
}

/// Of two nodes, one has never seen the key, and the ledger reports too late what the other has used.
#[tokio::test]
async fn a_node_that_knows_nothing_of_a_key_admits_nothing_when_redis_dies() {
    const MAX: u64 = 400;
    let _turn = in_turn().await;
    let mut server = RedisServer::start();
    let ledger = Arc::new(Ledger { delay: Duration::from_millis(40), ..Ledger::default() });
    let setup = Setup { ledger, ..Setup::of(2) };
    let (busy, idle) = (setup.node("busy", server.address).await, setup.node("idle", server.address).await);
    let key = TestKey::window(Per::Hour, MAX);
    let (begun, mut admitted) = (Instant::now(), key.until_shared(&busy).await);
    while admitted < 390 {
        match key.charge(&busy).await {
            Ok(_) => admitted += 1,
            // An answer was late. What finds Redis again runs on this thread, too.
            Err(_) => tokio::task::yield_now().await,
        }
        assert!(begun.elapsed() < PATIENCE, "Redis never answers in time");
    }
    server.stop();
    let alone = all_there_is(&key, &[&idle]).await;
    assert_eq!(alone, 0, "it may spend nothing that it was not promised");
    admitted += all_there_is(&key, &[&busy]).await;
    assert!(admitted <= MAX, "{admitted} of {MAX}");
}
