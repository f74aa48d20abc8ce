//! A master, a replica and a Sentinel: the master dies under load, and counting continues from the same state.

use crate::node::{Node, PATIENCE, Setup, TestKey, eventually, in_turn, place};
use crate::redis::{RedisServer, free_port};
use crate::spare::Spare;
use keygate::counter::{RedisEndpoint, RedisKind};
use keygate::model::key::Per;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Sentinel declares a master dead after this time, and needs a moment to promote another.
const DOWN_AFTER: Duration = Duration::from_millis(400);

struct Watched {
    master: RedisServer,
    replica: RedisServer,
    sentinel: RedisServer,
    _folder: tempfile::TempDir,
}

impl Watched {
    fn start() -> Self {
        let master = RedisServer::start();
        let of = format!("127.0.0.1 {}", master.address.port());
        let replica = RedisServer::with(&["--replicaof", &of, "--repl-diskless-sync-delay", "0"]);
        wait_until("the replica follows", || {
            replica.command(&["INFO", "replication"]).contains("link_status:up")
        });
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sentinel.conf");
        let port = free_port();
        let lines = [
            format!("port {port}"),
            "bind 127.0.0.1".into(),
            format!("dir {}", folder.path().display()),
            format!("sentinel monitor main {of} 1"),
            format!("sentinel down-after-milliseconds main {}", DOWN_AFTER.as_millis()),
            "sentinel failover-timeout main 3000".into(),
            "requirepass guard".into(),
        ];
        std::fs::write(&file, lines.join("\n") + "\n").expect("a file");
        let address = SocketAddr::new(master.address.ip(), port);
        let sentinel = RedisServer::of_file(&file, address, &["--sentinel"]);
        let watched = Self { master, replica, sentinel, _folder: folder };
        wait_until("the Sentinel knows the replica", || {
            watched.ask_sentinel(&["SENTINEL", "MASTER", "main"]).contains("num-slaves\r\n$1\r\n1")
        });
        watched
    }

    fn place(&self) -> RedisEndpoint {
        RedisEndpoint {
            kind: RedisKind::Sentinel("main".into()),
            sentinel_password: Some("guard".into()),
            ..place(self.sentinel.address)
        }
    }

    fn ask_sentinel(&self, words: &[&str]) -> String {
        self.sentinel.commands(&[&["AUTH", "guard"], words])
    }
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what} at last");
        // The state of another process can only be polled.
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_under_load_passes_no_limit_and_loses_no_count() {
    let _turn = in_turn().await;
    let mut watched = Watched::start();
    let setup = Setup::strict(2);
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        nodes.push(Arc::new(setup.node_at(name, watched.place()).await.expect("a node")));
    }
    let key = TestKey::window(Per::Total, 3_000);
    let stop = Arc::new(AtomicBool::new(false));
    let lanes: Vec<_> = nodes
        .iter()
        .map(|node| tokio::spawn(load(Arc::clone(node), key.clone(), Arc::clone(&stop))))
        .collect();
    eventually("some hundreds are admitted", || spent(&watched.master, &key) >= 600).await;
    watched.master.stop();
    // A Sentinel that notices that it was stalled itself does nothing for half a minute.
    let port = watched.replica.address.port().to_string();
    eventually("the replica is promoted, and the Sentinel says so", || {
        watched.replica.command(&["ROLE"]).contains("master")
            && watched.ask_sentinel(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]).contains(&port)
    })
    .await;
    let promoted = Spare::begin();
    for node in &nodes {
        eventually("both nodes count at the new master", || node.metrics.counter_up.get() == 1).await;
    }
    // Two seconds from the promotion, and some tolerance for the test.
    assert!(promoted.elapsed() < Duration::from_secs(4), "{:?}", promoted.elapsed());
    eventually("all of it is spent", || spent(&watched.replica, &key) >= 3_000).await;
    stop.store(true, Ordering::SeqCst);
    let mut admitted = 0;
    for lane in lanes {
        admitted += lane.await.expect("a lane");
    }
    assert!(admitted <= 3_000, "{admitted}");
    // Units held by the nodes when the master died are lost, not used twice: 50 ms of requests.
    assert!(admitted >= 2_700, "{admitted}");
}

/// Some hundreds of requests per second until `stop`. Returns how many were admitted.
async fn load(node: Arc<Node>, key: TestKey, stop: Arc<AtomicBool>) -> u64 {
    let mut admitted = 0;
    while !stop.load(Ordering::SeqCst) {
        admitted += u64::from(key.charge(&node).await.is_ok());
        // A steady load is what the test needs.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    admitted
}

fn spent(server: &RedisServer, key: &TestKey) -> u64 {
    server.spent(&format!("kg:{{w}}:k:{}", key.id))
}

#[tokio::test]
async fn a_master_that_no_sentinel_knows_is_a_mistake() {
    let watched = Watched::start();
    let other = RedisEndpoint { kind: RedisKind::Sentinel("other".into()), ..watched.place() };
    let why = Setup::of(1).node_at("n", other).await.err().expect("refused").to_string();
    assert!(why.contains("no Sentinel knows a master of this name"), "{why}");
    let stranger = RedisEndpoint { sentinel_password: None, ..watched.place() };
    let node = Setup::of(1).node_at("n", stranger).await;
    assert!(
        node.is_err()
            || !TestKey::window(Per::Day, 1)
                .charge(&node.expect("a node"))
                .await
                .is_ok_and(|c| !c.degraded())
    );
}
