//! While Redis is gone, nodes enforce their shares: together they stay within the limit, also under load.

use crate::node::{Ledger, Node, Setup, TestKey, in_turn};
use crate::redis::RedisServer;
use keygate::policy::key::Per;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const LIMIT: u64 = 1_500;

/// A steady load of about `per_second`; answers how many were admitted.
async fn load(node: Arc<Node>, key: TestKey, per_second: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut admitted = 0;
    let begun = Instant::now();
    let mut asked = 0;
    while !stop.load(Ordering::SeqCst) {
        let due = u64::try_from(begun.elapsed().as_millis()).expect("short") * per_second / 1_000;
        while asked < due {
            asked += 1;
            admitted += u64::from(key.charge(&node).await.is_ok());
        }
        // A steady load is the subject.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    admitted
}

fn spent(server: &RedisServer, key: &TestKey) -> u64 {
    let answer = server.command(&["HGET", &format!("kg:{{w}}:k:{}", key.id), "u5"]);
    answer.rsplit("\r\n").next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Three nodes at different paces, and one that has long done nothing; Redis dies when so much is spent.
async fn dies_at(dies_at: u64) -> u64 {
    let mut server = RedisServer::start();
    let ledger = Arc::new(Ledger(AtomicU64::new(0)));
    let setup = Setup { ledger: Arc::clone(&ledger), ..Setup::of(4) };
    let nodes = setup.all(&server).await;
    let mut key = TestKey::window(Per::Total, LIMIT);
    // The rate that the key may have: others cannot have spent more than that unseen.
    key.limits[0].rule = keygate::policy::limit::Rule::of(Per::Second, 2_000);
    let idle = Arc::clone(&nodes[3]);
    let mut admitted = u64::from(key.charge(&idle).await.is_ok());
    let stop = Arc::new(AtomicBool::new(false));
    let lanes: Vec<_> = [(0, 300), (1, 150), (2, 50)]
        .into_iter()
        .map(|(n, pace)| tokio::spawn(load(Arc::clone(&nodes[n]), key.clone(), pace, Arc::clone(&stop))))
        .collect();
    let begun = Instant::now();
    while spent(&server, &key) < dies_at {
        assert!(begun.elapsed() < Duration::from_secs(20), "no load");
        // What a writer does: the ledger knows what was spent a moment ago.
        ledger.0.store(spent(&server, &key).saturating_sub(20), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop();
    // All at once on the idle node, before anybody can know what the others did.
    let idle_stop = Arc::clone(&stop);
    let idle_lane = tokio::spawn(load(Arc::clone(&idle), key.clone(), 3_000, idle_stop));
    // Real time is the subject: long enough to spend every share.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let for_a_while: Vec<_> = [0, 1, 2]
        .into_iter()
        .map(|n| tokio::spawn(load(Arc::clone(&nodes[n]), key.clone(), 3_000, Arc::clone(&stop))))
        .collect();
    // By then the ledger has all that was spent before; the idle node hears of it.
    ledger.0.store(dies_at, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    stop.store(true, Ordering::SeqCst);
    for lane in lanes.into_iter().chain(for_a_while).chain([idle_lane]) {
        admitted += lane.await.expect("a lane");
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_under_load_stay_within_the_limit_together_when_redis_dies() {
    let _turn = in_turn().await;
    let (early, middle, late) = tokio::join!(dies_at(200), dies_at(600), dies_at(1_300));
    for (died_at, admitted) in [(200, early), (600, middle), (1_300, late)] {
        println!("Redis died at {died_at} of {LIMIT}: {admitted} admitted in all");
        assert!(admitted <= LIMIT, "{admitted} of {LIMIT}, Redis died at {died_at}");
        // Shares are not thrown away either: what is kept back is little beside what is left.
        let left = LIMIT - died_at;
        assert!(admitted >= died_at + left / 4, "only {admitted} of {LIMIT}, Redis died at {died_at}");
    }
}
