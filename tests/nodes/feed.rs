//! A change made through one node takes effect on the others in time, whatever happens to its notification; and a caller
//! that waits for all nodes waits for the right ones and not for ever.

use crate::chaos::Mode;
use crate::cluster::{Line, Pair, node, number, pair, pair_with, shared_with, sql, wait};
use crate::private_postgres::Server;
use crate::support::{Gateway, Key, Spare, eventually, eventually_true, soon};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Duration;

/// The promised delay of a change, and the tolerance of a test that measures it.
const ACTS_WITHIN: Duration = Duration::from_millis(2_000 + 700);

/// A second node with its own proxy to the database.
fn pair_with_line(more: &str) -> (Pair, Line, String) {
    let url = wait(Server::shared().database());
    let line = Line::to(&url);
    let pair = pair_with([&url, &line.url], more);
    (pair, line, url)
}

/// Disables and enables `key` through the first node, and checks that the second applies each change in time.
fn act_in_time(pair: &Pair, key: &Key) {
    for active in [false, true, false, true] {
        pair.first.update_key(key, &json!({ "is_active": active }));
        acts_in_time(&pair.second, key, active);
    }
}

fn acts_in_time(node: &Gateway, key: &Key, active: bool) {
    soon(ACTS_WITHIN, "it acts on the change", || {
        (node.get("/v1/app/x", &key.secret).status == 200) == active
    });
}

fn delete_everywhere(node: &Gateway, key: &Key) -> Value {
    node.managed("DELETE", &format!("/apikeys/{}?wait=all", key.id), None)["propagation"].clone()
}

#[test]
fn the_notification_connection_hangs() {
    let (pair, line, _) = pair_with_line("");
    let key = pair.key(json!({}));
    line.set(Mode::HangIfSaid("LISTEN"));
    act_in_time(&pair, &key);
}

#[test]
fn the_notification_connection_is_cut() {
    let url = wait(Server::shared().database());
    let pair = pair(&url);
    let key = pair.key(json!({}));
    for _ in 0..3 {
        sql(
            &url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        );
        act_in_time(&pair, &key);
    }
}

#[test]
fn a_change_without_notification_is_found() {
    let url = wait(Server::shared().database());
    let pair = pair(&url);
    let key = pair.key(json!({}));
    for active in [false, true] {
        // What a node would write, without the notification.
        let write = format!(
            "WITH next AS (UPDATE change_seq SET value = value + 1 RETURNING value)
             UPDATE keys SET is_active = {active}, version = (SELECT value FROM next)"
        );
        sql(&url, &write);
        pair.nodes().iter().for_each(|node| acts_in_time(node, &key, active));
    }
}

#[test]
fn connections_that_die_silently_are_replaced() {
    let (pair, line, _) = pair_with_line("");
    let key = pair.key(json!({}));
    line.set(Mode::HangIfOld);
    act_in_time(&pair, &key);
    // The first call that hangs shows that the pool of administrators is broken, not one connection after the other.
    soon(Duration::from_secs(12), "keys can be made", || pair.try_create(&pair.second, "again") == 200);
}

#[test]
fn a_notification_connection_that_is_dead_is_replaced() {
    // Polling is so rare that only a notification delivers changes in time.
    let (pair, line, url) = pair_with_line("[keyring]\npoll_interval = \"60s\"\n");
    let key = pair.first.create_key(json!({}));
    eventually_true("the other node knows the key", || {
        pair.second.get("/v1/app/x", &key.secret).status == 200
    });
    line.set(Mode::HangIfOld);
    let ears = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name = 'keygate' AND (query LIKE 'LISTEN%' OR query = '')";
    // The connections of both nodes, and the dead one, which the server has not noticed.
    eventually_true("it listens again", || number(&url, ears) >= 3);
    pair.first.update_key(&key, &json!({ "is_active": false }));
    acts_in_time(&pair.second, &key, false);
}

#[test]
fn a_node_that_was_held_up_acts_as_soon_as_it_goes_on() {
    let pair = pair(&wait(Server::shared().database()));
    let (key, other) = (pair.key(json!({})), pair.key(json!({})));
    pair.second.signal("STOP");
    pair.first.update_key(&key, &json!({ "is_active": false }));
    let begun = Spare::begin();
    let spread = delete_everywhere(&pair.first, &other);
    assert_eq!((&spread["complete"], &spread["lagging"]), (&json!(false), &json!(["second"])));
    assert!(begun.elapsed() <= ACTS_WITHIN, "nobody waits for it for ever: {:?}", begun.elapsed());
    pair.second.signal("CONT");
    acts_in_time(&pair.second, &key, false);
    let seen = eventually("it has told the others", || {
        let seen = pair.first.managed("GET", &format!("/apikeys/{}/propagation", other.id), None);
        (seen["complete"] == true).then_some(seen)
    });
    assert_eq!(seen["nodes"].as_array().unwrap().len(), 2, "{seen}");
}

#[test]
fn a_node_that_joins_serves_nothing_that_is_said_to_be_gone_everywhere() {
    let url = wait(Server::shared().database());
    let Pair { first, second: _second, _origin } = pair(&url);
    let keys: Vec<Key> = (0..300).map(|_| first.create_key(json!({}))).collect();
    let (gone, joined) = (Mutex::new(Vec::new()), Mutex::new(false));
    // Until the end: killed nodes would be waited for.
    let mut thirds = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for key in &keys {
                // A node that has just joined may lag; then the response does not claim that all nodes have the change.
                if delete_everywhere(&first, key)["complete"] == true {
                    gone.lock().unwrap().push(key);
                }
                if *joined.lock().unwrap() {
                    return;
                }
            }
        });
        for _ in 0..3 {
            let third = node(&_origin, &url, "third", &shared_with(&first));
            let until = gone.lock().unwrap().clone();
            for (n, key) in until.iter().enumerate().rev() {
                assert_eq!(third.get("/v1/app/x", &key.secret).status, 401, "{n} of {}", until.len());
            }
            thirds.push(third);
        }
        *joined.lock().unwrap() = true;
    });
    assert!(!gone.lock().unwrap().is_empty());
}

#[test]
fn two_nodes_that_write_at_once_agree_in_the_end() {
    let url = wait(Server::shared().database());
    let pair = pair(&url);
    let keys: Vec<Key> = (0..4).map(|_| pair.key(json!({}))).collect();
    let created: Vec<u16> = std::thread::scope(|scope| {
        let lanes: Vec<_> = pair
            .nodes()
            .into_iter()
            .flat_map(|node| keys.iter().enumerate().map(move |(n, key)| (node, n, key)))
            .map(|(node, n, key)| {
                let pair = &pair;
                scope.spawn(move || {
                    for turn in 0..10 {
                        let patch = json!({"is_active": turn % 2 == 0});
                        let path = format!("/apikeys/{}", key.id);
                        let told = node.admin_as(&pair.first.token(), "PUT", &path, Some(&patch));
                        assert_eq!(told.status, 200, "{}", told.text());
                    }
                    pair.try_create(node, &format!("only one {n}"))
                })
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    let of = |status: u16| created.iter().filter(|s| **s == status).count();
    assert_eq!((of(200), of(409)), (keys.len(), keys.len()), "{created:?}");
    for key in &keys {
        pair.wait_for(key);
        let path = format!("/apikeys/{}", key.id);
        let stored = pair.first.managed("GET", &path, None)["is_active"] == true;
        for node in pair.nodes() {
            assert_eq!(node.get("/v1/app/x", &key.secret).status == 200, stored);
        }
    }
    let twice = "SELECT count(*) FROM (SELECT version FROM audit GROUP BY version HAVING count(*) > 1) t";
    assert_eq!(number(&url, twice), 0);
}

#[test]
fn a_database_that_lost_its_last_changes_is_believed() {
    let url = wait(Server::shared().database());
    let pair = pair(&url);
    let (kept, lost) = (pair.key(json!({})), pair.key(json!({})));
    // A failover to a replica that lags: the last write is lost.
    sql(
        &url,
        &format!(
            "BEGIN; SET LOCAL session_replication_role = replica;
             DELETE FROM keys WHERE id = '{0}'; DELETE FROM audit WHERE target = '{0}';
             UPDATE change_seq SET value = value - 1; COMMIT",
            lost.id
        ),
    );
    for node in pair.nodes() {
        acts_in_time(node, &lost, false);
        assert_eq!(node.get("/v1/app/x", &kept.secret).status, 200);
        eventually_true("and says so", || node.stderr().contains("store version went backwards"));
    }
    // The number is used again, for another change.
    pair.first.update_key(&kept, &json!({ "is_active": false }));
    acts_in_time(&pair.second, &kept, false);
}

#[test]
fn old_keys_are_too_old_only_after_max_stale() {
    let url = wait(Server::shared().database());
    let line = Line::to(&url);
    let pair = pair_with([&url, &line.url], "[keyring]\nmax_stale = \"3s\"\n");
    let key = pair.key(json!({}));
    let asked = |node: &Gateway| node.admin_as(&pair.first.token(), "GET", "/readyz?verbose", None);
    let ready = || asked(&pair.second);
    line.set(Mode::Hang);
    let not = eventually("it is not ready any more", || Some(ready()).filter(|r| r.status == 503));
    let checks = not.data()["checks"].as_array().unwrap().clone();
    let feed = checks.iter().find(|check| check["name"] == "change_feed").unwrap();
    assert_eq!(feed["ok"], false);
    assert!(feed["detail"].as_str().unwrap().ends_with("ms ago"), "{feed}");
    eventually_true("the other is well", || asked(&pair.first).status == 200);
    assert_eq!(ready().status, 503);
    assert_eq!(pair.second.get("/v1/app/x", &key.secret).status, 200, "it serves whoever comes all the same");
    line.set(Mode::Pass);
    eventually_true("it is ready again", || ready().status == 200);
}

#[test]
fn a_duplicate_node_name_is_logged_and_affects_nobody() {
    let url = wait(Server::shared().database());
    let Pair { first, second, _origin } = pair(&url);
    let twin = node(&_origin, &url, "first", &shared_with(&first));
    for node in [&first, &twin] {
        eventually_true("it is told", || node.stderr().contains("has the same node.name first"));
    }
    let key = first.create_key(json!({}));
    let spread = delete_everywhere(&first, &key);
    assert_eq!(spread["complete"], true, "each of the two counts: {spread}");
    assert_eq!(twin.get("/v1/app/x", &key.secret).status, 401);
    assert!(!second.stderr().contains("another node on this store"));
}
