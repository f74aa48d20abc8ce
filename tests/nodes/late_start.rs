//! Starts while the database is unreachable: not ready, or served from the node's local snapshot.

use crate::cluster::{node, wait};
use crate::private_postgres::Server;
use crate::rows::write;
use crate::support::{Gateway, Key, Origin, Raw, Request, Response, eventually_true, soon};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// Time within which a node serves once its database is back.
const BACK_WITHIN: Duration = Duration::from_secs(2);
const QUOTA: u64 = 10;

fn stand() -> (Server, Origin, Gateway) {
    let (server, origin) = (Server::start(), Origin::start());
    let url = wait(server.database());
    let gateway = node(&origin, &url, "one", "");
    (server, origin, gateway)
}

fn readiness(node: &Gateway) -> Response {
    Raw::connect(node.admin).call(&Request::get("/readyz?verbose"))
}

fn snapshots(node: &Gateway) -> [PathBuf; 2] {
    ["keyring", "spending"].map(|name| node.folder().join(format!("data/journal/{name}.snapshot")))
}

fn status(node: &Gateway, key: &Key) -> u16 {
    node.get("/v1/app/x", &key.secret).status
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Waits until the snapshot of the keyring has that key.
fn wait_for_snapshot_of(node: &Gateway, key: &Key) {
    let id: uuid::Uuid = key.id.parse().unwrap();
    let [keyring, _] = snapshots(node);
    eventually_true("the snapshot has the key", || {
        contains(&fs::read(&keyring).unwrap_or_default(), id.as_bytes())
    });
}

#[test]
fn without_a_snapshot_it_is_not_ready_until_the_database_is_back() {
    let (mut server, _origin, mut gateway) = stand();
    let key = gateway.create_key(json!({"quota_limit": QUOTA}));
    for _ in 0..4 {
        assert_eq!(status(&gateway, &key), 200);
    }
    assert!(gateway.stop().success());
    for path in snapshots(&gateway) {
        fs::remove_file(path).unwrap();
    }
    server.stop();
    let gateway = gateway.restart();
    let answer = readiness(&gateway);
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("connection to the database refused"), "{}", answer.text());
    assert_eq!(Raw::connect(gateway.admin).call(&Request::get("/healthz")).status, 200);
    // Whether there is such a key is unknown.
    assert_eq!(gateway.get("/v1/app/x", &key.secret).fault(), (503, 10_003, "service_unavailable".into()));
    assert_eq!(gateway.admin("GET", "/apikeys", None).status, 503);
    server.start_again();
    soon(BACK_WITHIN, "it serves", || status(&gateway, &key) == 200);
    eventually_true("it is ready", || readiness(&gateway).status == 200);
    let admitted = (0..QUOTA).filter(|_| status(&gateway, &key) == 200).count();
    assert_eq!(admitted, 5, "what was spent before is known");
}

#[test]
fn a_snapshot_is_served_by_until_the_database_is_back() {
    let (mut server, _origin, mut gateway) = stand();
    let [key, deleted] = [json!({"quota_limit": QUOTA}), json!({})].map(|fields| gateway.create_key(fields));
    gateway.managed("DELETE", &format!("/apikeys/{}", deleted.id), None);
    for _ in 0..4 {
        assert_eq!(status(&gateway, &key), 200);
    }
    assert!(gateway.stop().success());
    for path in snapshots(&gateway) {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = fs::read(&path).unwrap();
        let pepper = fs::read_to_string(gateway.folder().join("data/pepper")).unwrap();
        let pepper = pepper.trim().split_once(':').unwrap().1;
        assert!(!contains(&bytes, key.secret.as_bytes()) && !contains(&bytes, pepper.as_bytes()));
        assert!(!contains(&bytes, &hex::decode(pepper).unwrap()));
    }
    server.stop();
    let gateway = gateway.restart();
    assert_eq!(readiness(&gateway).status, 200, "{}", readiness(&gateway).text());
    let admitted = (0..QUOTA).filter(|_| status(&gateway, &key) == 200).count();
    assert_eq!(admitted, 6, "what was spent before is known");
    assert_eq!(status(&gateway, &key), 429);
    assert_eq!(status(&gateway, &deleted), 401);
    assert_eq!(gateway.get("/v1/app/x", "unknown").status, 401);
    assert_eq!(gateway.admin("GET", "/apikeys", None).status, 503);
    server.start_again();
    let other = loop {
        // The admin API answers as soon as the store is open.
        let body = json!({"name": "after", "type": "service", "scopes": ["app"]});
        let made = gateway.admin("POST", "/apikeys", Some(&body));
        if made.status == 200 {
            break made.data()["api_key"].as_str().unwrap().to_owned();
        }
        assert_eq!(made.status, 503, "{}", made.text());
    };
    eventually_true("changes act", || gateway.get("/v1/app/x", &other).status == 200);
    eventually_true("usage is stored", || gateway.stats(&key)["quota_used"] == QUOTA);
    assert_eq!(status(&gateway, &key), 429);
}

#[test]
fn admissions_of_a_killed_node_count_once_while_the_database_is_gone() {
    let (mut server, _origin, mut gateway) = stand();
    let key = gateway.create_key(json!({"quota_limit": QUOTA}));
    for _ in 0..3 {
        assert_eq!(status(&gateway, &key), 200);
    }
    wait_for_snapshot_of(&gateway, &key);
    let [_, spending] = snapshots(&gateway);
    let before = fs::read(&spending).unwrap();
    eventually_true("the three are in the snapshot", || fs::read(&spending).unwrap() != before);
    server.stop();
    for _ in 0..2 {
        assert_eq!(status(&gateway, &key), 200);
    }
    gateway.kill9();
    let gateway = gateway.restart();
    let admitted = (0..QUOTA).filter(|_| status(&gateway, &key) == 200).count();
    assert_eq!(admitted, 5);
    server.start_again();
    eventually_true("usage is stored", || {
        let stats = gateway.admin("GET", &format!("/apikeys/{}/stats", key.id), None);
        stats.status == 200 && stats.data()["quota_used"] == QUOTA
    });
    assert_eq!(status(&gateway, &key), 429);
}

#[test]
fn the_last_good_plan_is_served_by_when_its_row_is_broken() {
    let origin = Origin::start();
    let url = wait(Server::shared().database());
    let mut gateway = node(&origin, &url, "one", "");
    let key = gateway.create_key(json!({}));
    wait_for_snapshot_of(&gateway, &key);
    assert!(gateway.stop().success());
    write(&url, "plans", "default", "api_ops_rate_limit = -1");
    let gateway = gateway.restart();
    assert_eq!(status(&gateway, &key), 200);
    assert_eq!(readiness(&gateway).status, 200, "{}", readiness(&gateway).text());
    eventually_true("it is told", || gateway.stderr().contains("invalid row in the store, it is not served"));
}
