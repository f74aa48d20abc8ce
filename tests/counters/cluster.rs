//! A Redis Cluster of three masters: a slot migrates under load, a server dies, and keys on other servers are not affected.

use crate::node::{Node, Setup, TestKey, eventually, in_turn, place};
use crate::redis::{RedisServer, free_port};
use crate::spare::Spare;
use keygate::counter::{RedisEndpoint, RedisKind};
use keygate::model::key::Per;
use keygate::policy::keys::limit::LimitName;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The slot range of each server.
const RANGES: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

struct Cluster {
    servers: Vec<RedisServer>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let servers: Vec<RedisServer> = (0..3)
            .map(|n| {
                let file = folder.path().join(format!("nodes-{n}")).display().to_string();
                let bus = free_port().to_string();
                RedisServer::with(&[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-config-file",
                    &file,
                    "--cluster-port",
                    &bus,
                    "--cluster-node-timeout",
                    "1000",
                    "--cluster-require-full-coverage",
                    "no",
                ])
            })
            .collect();
        for (server, (from, to)) in servers.iter().zip(RANGES) {
            assert_eq!(server.command(&["CLUSTER", "ADDSLOTSRANGE", from, to]), "+OK");
        }
        for (n, server) in servers.iter().enumerate() {
            assert_eq!(server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]), "+OK");
        }
        for other in &servers[1..] {
            let (ip, port) = (other.address.ip().to_string(), other.address.port().to_string());
            let bus = other.command(&["CONFIG", "GET", "cluster-port"]);
            let bus = bus.rsplit("\r\n").next().expect("a port").to_owned();
            assert_eq!(servers[0].command(&["CLUSTER", "MEET", &ip, &port, &bus]), "+OK");
        }
        let cluster = Self { servers, _folder: folder };
        eventually("the cluster is formed", || {
            cluster.servers.iter().all(|s| {
                let info = s.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
        })
        .await;
        cluster
    }

    fn place(&self) -> RedisEndpoint {
        let servers = self.servers.iter().map(|s| (s.address.ip().to_string(), s.address.port())).collect();
        RedisEndpoint { kind: RedisKind::Cluster, servers, ..place(self.servers[0].address) }
    }

    async fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes = Vec::new();
        for name in ["a", "b"] {
            nodes.push(Arc::new(Setup::strict(2).node_at(name, self.place()).await.expect("a node")));
        }
        nodes
    }

    fn slot_of(&self, workspace: &str) -> u16 {
        let answer = self.servers[0].command(&["CLUSTER", "KEYSLOT", &format!("{{{workspace}}}")]);
        answer.trim_start_matches(':').parse().expect("a slot")
    }

    /// Which server has the slot of a workspace.
    fn home_of(&self, workspace: &str) -> usize {
        let slot = self.slot_of(workspace);
        RANGES.iter().position(|(_, to)| slot <= to.parse().expect("a slot")).expect("a server")
    }

    fn name_of(&self, server: usize) -> String {
        let answer = self.servers[server].command(&["CLUSTER", "MYID"]);
        answer.rsplit("\r\n").next().expect("a name").to_owned()
    }
}

/// A key, counted on its workspace too, in a workspace whose slot is on that server.
fn key_at(cluster: &Cluster, server: usize, max: u64) -> TestKey {
    let workspace =
        (0..).map(|n| format!("w{n}")).find(|w| cluster.home_of(w) == server).expect("one of many");
    let mut key = TestKey::window(Per::Total, max);
    key.workspace = workspace.parse().expect("an id");
    key.workspace_limits = key.limits.iter().skip(1).copied().collect();
    key.workspace_limits[0].name = LimitName::Workspace(0);
    key
}

/// Some hundreds of requests per second until `stop`. Returns how many were admitted, and how many were refused because
/// Redis was unavailable.
async fn load(node: Arc<Node>, key: TestKey, stop: Arc<AtomicBool>) -> (u64, u64) {
    let (mut admitted, mut unavailable) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        match key.charge(&node).await {
            Ok(_) => admitted += 1,
            Err(keygate::counter::ChargeError::Unavailable) => unavailable += 1,
            Err(keygate::counter::ChargeError::Limit { .. }) => {}
        }
        // A steady load is what the test needs.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (admitted, unavailable)
}

fn spent(server: &RedisServer, key: &TestKey) -> u64 {
    server.spent(&format!("kg:{{{}}}:k:{}", key.workspace, key.id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_under_load_takes_its_counts_along() {
    let _turn = in_turn().await;
    let cluster = Cluster::start().await;
    let nodes = cluster.nodes().await;
    let key = key_at(&cluster, 0, 2_000);
    let (from, to) = (&cluster.servers[0], &cluster.servers[1]);
    let stop = Arc::new(AtomicBool::new(false));
    let lanes: Vec<_> =
        nodes.iter().map(|n| tokio::spawn(load(Arc::clone(n), key.clone(), Arc::clone(&stop)))).collect();
    eventually("some hundreds are admitted", || spent(from, &key) >= 500).await;
    let slot = cluster.slot_of(key.workspace.as_str()).to_string();
    let (from_name, to_name) = (cluster.name_of(0), cluster.name_of(1));
    assert_eq!(to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_name]), "+OK");
    assert_eq!(from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_name]), "+OK");
    // One key after the other, as migration tools do; in between, neither server has all the keys of a call.
    let hashes = [format!("kg:{{{}}}:k:{}", key.workspace, key.id), format!("kg:{{{}}}:w", key.workspace)];
    for hash in &hashes {
        let (ip, port) = (to.address.ip().to_string(), to.address.port().to_string());
        assert_eq!(from.command(&["MIGRATE", &ip, &port, hash, "0", "5000"]), "+OK");
    }
    for server in &cluster.servers {
        assert_eq!(server.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_name]), "+OK");
    }
    let moved = Spare::begin();
    let at_move = spent(to, &key);
    eventually("counting goes on at the new server", || spent(to, &key) > at_move).await;
    assert!(moved.elapsed() < Duration::from_secs(3), "{:?}", moved.elapsed());
    eventually("all of it is spent", || spent(to, &key) >= 2_000).await;
    stop.store(true, Ordering::SeqCst);
    let mut admitted = 0;
    for lane in lanes {
        admitted += lane.await.expect("a lane").0;
    }
    assert!((1_900..=2_000).contains(&admitted), "{admitted}");
}

/// In a cluster no single mark covers all servers: a node that finds a missing key writes everything that it knows again.
#[tokio::test]
async fn a_server_that_is_emptied_hears_of_every_key_when_one_is_asked_for() {
    let _turn = in_turn().await;
    let cluster = Cluster::start().await;
    let nodes = cluster.nodes().await;
    let (asked, quiet) = (key_at(&cluster, 0, 1_000_000), key_at(&cluster, 0, 1_000_000));
    let server = &cluster.servers[0];
    for _ in 0..5 {
        assert!(asked.decided(&nodes[0]).await.is_ok() && quiet.decided(&nodes[0]).await.is_ok());
    }
    eventually("Redis has the exact count", || spent(server, &quiet) == 5).await;
    assert_eq!(server.command(&["FLUSHALL"]), "+OK");
    let begun = Spare::begin();
    while spent(server, &quiet) < 5 {
        assert!(begun.elapsed() < Duration::from_secs(3), "it is told again");
        assert!(asked.decided(&nodes[0]).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_other_servers_are_unaffected_when_one_dies() {
    let _turn = in_turn().await;
    let mut cluster = Cluster::start().await;
    let nodes = cluster.nodes().await;
    let (dead, alive) = (key_at(&cluster, 0, 1_000_000), key_at(&cluster, 1, 1_000_000));
    for key in [&dead, &alive] {
        assert!(key.decided(&nodes[0]).await.is_ok());
    }
    // This node knows only the server that stays, so its requests wait for nothing but the machine.
    let server = cluster.servers[1].address;
    let beside = Arc::new(Setup::strict(1).node("beside", server).await);
    let mut key_beside = TestKey::window(Per::Total, 1_000_000);
    key_beside.workspace = alive.workspace.clone();
    cluster.servers[0].stop();
    let stop = Arc::new(AtomicBool::new(false));
    let lane = |node: &Arc<Node>, key: &TestKey| {
        tokio::spawn(load(Arc::clone(node), key.clone(), Arc::clone(&stop)))
    };
    let (of_dead, of_alive) = (lane(&nodes[0], &dead), lane(&nodes[0], &alive));
    let of_beside = lane(&beside, &key_beside);
    // Real time: the other servers need this long to agree that one is dead.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    stop.store(true, Ordering::SeqCst);
    let (_, unavailable) = of_dead.await.expect("a lane");
    assert!(unavailable > 0, "its server is dead");
    let (admitted, unavailable) = of_alive.await.expect("a lane");
    let (_, by_the_machine) = of_beside.await.expect("a lane");
    assert!(
        unavailable <= admitted / 50 + 3 * by_the_machine,
        "{unavailable} of {admitted} went without Redis, and {by_the_machine} for want of the machine"
    );
    // A node that starts now finds what is left of the cluster.
    let late = Setup::strict(2).node_at("c", cluster.place()).await.expect("a node");
    assert!(alive.decided(&late).await.is_ok());
}
