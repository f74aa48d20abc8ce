//! A database that lost its list of live nodes, as after a crash, while Redis is unreachable.

use crate::cluster::{metric, pair_with, sql, wait};
use crate::private_postgres::Server;
use crate::redis::RedisServer;
use crate::support::{Gateway, Key, eventually_true};
use serde_json::json;

/// How many of so many requests a node admits with its fallback.
fn admitted_alone(node: &Gateway, key: &Key, requests: usize) -> usize {
    let admitted = |_: &usize| {
        let response = node.get("/v1/app/x", &key.secret);
        assert!(matches!(response.status, 200 | 429), "{response:?}");
        assert!(response.header("x-keygate-degraded").is_some(), "{response:?}");
        response.status == 200
    };
    (0..requests).filter(admitted).count()
}

#[test]
fn no_node_takes_itself_for_the_only_one_because_the_database_has_forgotten_the_others() {
    const QUOTA: usize = 60;
    let mut redis = RedisServer::start();
    let url = wait(Server::shared().database());
    let pair = pair_with(
        [&url, &url],
        &format!("[counters]\nurl = \"redis://{}\"\nshare_unknown = true\n", redis.address),
    );
    let key = pair.key(json!({"quota_limit": QUOTA, "rate_limit": 1_000, "rate_burst": 100_000}));
    let nodes_seen = |n: &str| pair.nodes().iter().all(|node| metric(node, "keygate_nodes") == n);
    eventually_true("each knows of the other", || nodes_seen("2"));
    // The table loses its rows in a crash of the server. The nodes' next reports are blocked here, so that both read the
    // table while it is empty.
    sql(
        &url,
        "CREATE FUNCTION unheard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER unheard BEFORE INSERT ON nodes FOR EACH ROW EXECUTE FUNCTION unheard();
         TRUNCATE nodes",
    );
    eventually_true("nobody is seen", || nodes_seen("0"));
    sql(&url, "DROP TRIGGER unheard ON nodes");
    redis.stop();
    let gone = |node: &&Gateway| metric(node, "keygate_counter_up") == "0";
    eventually_true("Redis is missed", || pair.nodes().iter().all(gone));
    let admitted = pair.nodes().map(|node| admitted_alone(node, &key, 2 * QUOTA));
    assert!((1..=QUOTA / 2).contains(&admitted[0]), "{admitted:?} of {QUOTA} by one of two");
    assert!(admitted[1] <= QUOTA / 2, "{admitted:?} of {QUOTA} by one of two");
}
