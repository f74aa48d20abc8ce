//! Several nodes on one PostgreSQL database: each node learns the changes of the others, and none needs the database to
//! serve.

use crate::cluster::{Pair, metric, node, number, pair, pair_with, wait};
use crate::private_postgres::Server;
use crate::support::{Gateway, Hold, Key, Origin, Raw, Request, eventually_true, route};
use serde_json::{Value, json};

fn delete_everywhere(gateway: &Gateway, key: &Key) -> Value {
    gateway.managed("DELETE", &format!("/apikeys/{}?wait=all", key.id), None)
}

#[test]
fn a_key_deleted_on_one_node_is_refused_by_the_other_when_the_call_returns() {
    let Pair { first, mut second, _origin } = pair(&wait(Server::shared().database()));
    for _ in 0..10 {
        let key = first.create_key(json!({}));
        eventually_true("the other node knows the key", || {
            second.get("/v1/app/x", &key.secret).status == 200
        });
        let spread = delete_everywhere(&first, &key)["propagation"].clone();
        assert_eq!((&spread["complete"], &spread["lagging"]), (&json!(true), &json!([])));
        assert_eq!(second.get("/v1/app/x", &key.secret).status, 401);
        let seen = first.managed("GET", &format!("/apikeys/{}/propagation", key.id), None);
        let nodes = seen["nodes"].as_array().unwrap();
        let names: Vec<_> = nodes.iter().map(|node| node["node"].as_str().unwrap()).collect();
        assert_eq!(names, ["first", "second"]);
        assert!(nodes.iter().all(|node| node["applied"] == true && node["live"] == true), "{seen}");
        assert_eq!(nodes[1]["admin"], second.admin.to_string());
    }
    // A node that has stopped in order is not waited for.
    assert!(second.stop().success());
    let key = first.create_key(json!({}));
    assert_eq!(delete_everywhere(&first, &key)["propagation"]["complete"], true);
    let seen = first.managed("GET", &format!("/apikeys/{}/propagation", key.id), None);
    assert_eq!(seen["nodes"].as_array().unwrap().len(), 1, "{seen}");
}

#[test]
fn a_workspace_deleted_on_one_node_is_closed_on_the_other_when_the_call_returns() {
    let Pair { first, second, _origin } = pair(&wait(Server::shared().database()));
    let token = first.mint("admin", "acme");
    let keys: Vec<_> = (0..3).map(|_| first.create_key_as(&token, json!({}))).collect();
    for key in &keys {
        eventually_true("the other node knows the key", || {
            second.get("/v1/app/x", &key.secret).status == 200
        });
    }
    assert_eq!(second.admin_as(&token, "GET", "/apikeys", None).status, 200);
    let deleted = first.managed("DELETE", "/workspaces/acme?force=true&wait=all", None);
    assert_eq!(
        (&deleted["keys"], &deleted["propagation"]["complete"]),
        (&json!(3), &json!(true)),
        "{deleted}"
    );
    for key in &keys {
        assert_eq!([&first, &second].map(|node| node.get("/v1/app/x", &key.secret).status), [401, 401]);
    }
    assert_eq!(first.admin_as(&token, "GET", "/apikeys", None).status, 403);
    eventually_true("the other node refuses its tokens", || {
        second.admin_as(&token, "GET", "/apikeys", None).status == 403
    });
    // The usage of its keys stays. Requests of both nodes reach the ledger after it was deleted, too.
    let usage = || {
        let request = Request::get("/usage").bearer(&first.token()).header("X-Workspace-Id", "acme");
        Raw::connect(first.admin).call(&request).data()["totals"]["total_requests"].clone()
    };
    eventually_true("the usage is there", || usage() == json!(3));
}

#[test]
fn a_grant_made_on_one_node_is_in_force_on_all() {
    let more = "[plans.default]\napi_ops_rate_limit = 1000\nend_user_quota = 10\nlimits = [{ count = \"requests\", per = \"total\", max = 1 }]\n";
    let url = wait(Server::shared().database());
    let Pair { first, second, _origin } = pair_with([&url, &url], more);
    let key = first.create_key(json!({}));
    let admitted = |node: &Gateway| node.get("/v1/app/x", &key.secret).status == 200;
    // Each node counts by itself here: one request on each.
    eventually_true("the other node knows the key", || admitted(&second));
    assert!(!admitted(&second));
    let body = json!({"limit": "limits", "count": "requests", "per": "total", "amount": 1, "reason": "r", "until": 4_000_000_000_u64});
    let grant = first.managed("POST", "/workspaces/default/grants", Some(&body));
    eventually_true("the grant is in force on the other node", || admitted(&second));
    assert!(!admitted(&second));
    // On this one, at once; and until it is taken back.
    assert_eq!([admitted(&first), admitted(&first), admitted(&first)], [true, true, false]);
    let uri = format!("/workspaces/default/grants/{}", grant["id"].as_str().unwrap());
    let shown = || first.managed("GET", "/workspaces/default", None)["quotas"][1].clone();
    assert_eq!((&shown()["limit"], &shown()["granted"]), (&json!(2), &json!(1)));
    first.managed("DELETE", &uri, None);
    assert_eq!((&shown()["limit"], &shown()["granted"]), (&json!(1), &json!(0)));
}

#[test]
fn prices_that_are_put_on_one_node_are_in_force_on_all() {
    let more = route("llm", "/llm", "app", "meter = \"llm\"\nunpriced = \"refuse\"");
    let url = wait(Server::shared().database());
    let Pair { first, second, _origin } = pair_with([&url, &url], &more);
    let key = first.create_key(json!({}));
    let ask = |node: &Gateway| {
        node.call(&Request::post("/llm", r#"{"model":"gpt-4o","messages":[]}"#).bearer(&key.secret)).status
    };
    eventually_true("the other node knows the key", || ask(&second) == 403);
    for round in 0..3 {
        // Each node puts what the other one must learn.
        let [here, there] = if round % 2 == 0 { [&first, &second] } else { [&second, &first] };
        let token = first.token();
        let put = |prices: Value| {
            let put = here.admin_as(&token, "PUT", "/prices", Some(&json!({"prices": prices})));
            assert_eq!(put.status, 200, "{}", put.text());
        };
        put(json!([{"model": "gpt-4o", "input": 1, "output": 2}]));
        assert_eq!(ask(here), 200, "at once on the node that was asked");
        eventually_true("the price is in force on the other node", || ask(there) == 200);
        put(json!([]));
        assert_eq!(ask(here), 403);
        eventually_true("it is gone from the other node", || ask(there) == 403);
    }
}

#[test]
fn a_restored_key_has_spent_on_every_node_what_the_ledger_knows() {
    let url = wait(Server::shared().database());
    let Pair { first, second, _origin } = pair(&url);
    let key = first.create_key(json!({"quota_limit": 3}));
    eventually_true("the other node knows the key", || second.get("/v1/app/x", &key.secret).status == 200);
    assert_eq!(first.get("/v1/app/x", &key.secret).status, 200);
    first.wait_for_logs(&key, 2);
    delete_everywhere(&first, &key);
    let third = node(&_origin, &url, "third", &crate::cluster::shared_with(&first));
    let restored = first.managed("POST", &format!("/apikeys/{}/restore?wait=all", key.id), None);
    assert_eq!(restored["propagation"]["complete"], true, "{restored}");
    // Each node counts by itself: two of three are used, whichever node served them.
    let told = [&second, &third].map(|node| [0; 2].map(|_| node.get("/v1/app/x", &key.secret).status));
    assert_eq!(told, [[200, 429]; 2]);
}

#[test]
fn a_node_that_was_killed_is_named_as_lagging() {
    let Pair { first, mut second, _origin } = pair(&wait(Server::shared().database()));
    let key = first.create_key(json!({}));
    eventually_true("the other node knows the key", || second.get("/v1/app/x", &key.secret).status == 200);
    second.kill9();
    let spread = delete_everywhere(&first, &key)["propagation"].clone();
    assert_eq!((&spread["complete"], &spread["lagging"]), (&json!(false), &json!(["second"])));
}

#[test]
fn usage_of_all_nodes_adds_up() {
    let Pair { first, second, _origin } = pair(&wait(Server::shared().database()));
    let key = first.create_key(json!({}));
    eventually_true("the other node knows the key", || second.get("/v1/app/x", &key.secret).status == 200);
    let before = first.wait_for_logs(&key, first.logs(&key).len().max(1)).len();
    for _ in 0..5 {
        assert_eq!(first.get("/v1/app/x", &key.secret).status, 200);
        assert_eq!(second.get("/v1/app/x", &key.secret).status, 200);
    }
    // Refusals before the key had arrived belong to no key, so everything counted was served.
    eventually_true("all records are stored", || first.logs(&key).len() == before + 10);
    assert_eq!(first.stats(&key)["total_requests"], json!(before + 10));
}

#[test]
fn an_unreachable_database_affects_no_request_and_is_used_again() {
    let mut server = Server::start();
    let Pair { first, second, _origin } = pair(&wait(server.database()));
    let key = first.create_key(json!({}));
    eventually_true("the other node knows the key", || second.get("/v1/app/x", &key.secret).status == 200);
    server.stop();
    for gateway in [&first, &second] {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
        let refused = gateway_write(gateway, &first);
        assert_eq!(refused, 503);
    }
    server.start_again();
    eventually_true("admin writes succeed again", || gateway_write(&second, &first) == 200);
    let after = first.create_key(json!({}));
    eventually_true("the other node follows again", || second.get("/v1/app/x", &after.secret).status == 200);
    eventually_true("usage of the outage is stored", || first.logs(&key).len() == 3);
}

/// The status of creating a key on `gateway`, with the token of `first`.
fn gateway_write(gateway: &Gateway, first: &Gateway) -> u16 {
    static NAMES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let name = format!("try {}", NAMES.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let body = json!({"name": name, "type": "service", "scopes": ["app"]});
    gateway.admin_as(&first.token(), "POST", "/apikeys", Some(&body)).status
}

#[test]
fn migrate_tells_and_does_on_postgres_too() {
    let url = wait(Server::shared().create(""));
    let folder = tempfile::tempdir().unwrap();
    crate::support::write_config(folder.path(), &format!("[store]\nurl = \"{url}\"\n"));
    let run = |args: &[&str]| {
        let args: Vec<&str> = args.iter().copied().chain(["--config", "keygate.toml"]).collect();
        crate::support::keygate(folder.path(), &args)
    };
    let before = run(&["migrate", "--check"]);
    assert_eq!(before.code, Some(1), "{before:?}");
    assert!(before.stdout.starts_with("pending  0001_initial\n"), "{before:?}");
    let done = run(&["migrate"]);
    let pending = before.stdout.matches("pending ").count();
    assert_eq!((done.code, done.stdout.matches("applied ").count()), (Some(0), pending), "{done:?}");
    assert_eq!(run(&["migrate", "--check"]).code, Some(0));
    // And keys can be created with and without a running gateway.
    let made = run(&["keys", "create", "--name", "k", "--scopes", "app"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.stdout.starts_with("sk-service-"), "{made:?}");
}

#[test]
fn the_password_is_in_no_log() {
    let server = Server::shared();
    let url = wait(server.database()).replace("keygate@", "keygate:hunter2secret@");
    let origin = Origin::start();
    let gateway = node(&origin, &url, "n", "[log]\nlevel = \"trace\"\n");
    let key = gateway.create_key(json!({}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    assert!(!gateway.stderr().contains("hunter2secret"));
}

#[test]
fn nodes_that_count_limits_by_themselves_say_so() {
    let Pair { first, second, _origin } = pair(&wait(Server::shared().database()));
    for node in [&first, &second] {
        eventually_true("it is told", || node.stderr().contains("each enforces limits alone"));
    }
}

/// How many requests were admitted by the shared counters and by a node's fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Admitted {
    shared: usize,
    alone: usize,
}

impl std::ops::Add for Admitted {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { shared: self.shared + more.shared, alone: self.alone + more.alone }
    }
}

/// Sends `requests` of `key` to the two nodes in turn, from many connections at once.
fn admitted_by(pair: &Pair, key: &Key, requests: usize) -> Admitted {
    const CONNECTIONS: usize = 6;
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    std::thread::scope(|scope| {
        let lane = |n: usize| {
            let mut connection = if n % 2 == 0 { pair.first.connect() } else { pair.second.connect() };
            let request = &request;
            scope.spawn(move || {
                let mut admitted = Admitted::default();
                for _ in 0..requests / CONNECTIONS {
                    let response = connection.call(request);
                    match (response.status, response.header("x-keygate-degraded")) {
                        (200, None) => admitted.shared += 1,
                        (200, Some(_)) => admitted.alone += 1,
                        (429, _) => {}
                        other => panic!("{other:?}"),
                    }
                }
                admitted
            })
        };
        let lanes: Vec<_> = (0..CONNECTIONS).map(lane).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).fold(Admitted::default(), std::ops::Add::add)
    })
}

/// How often Redis was late for each of the nodes, and how often each used its fallback.
fn disturbances(pair: &Pair) -> [[String; 2]; 2] {
    let of = |node| {
        ["keygate_counters_degraded_total", "keygate_counter_late_total"].map(|name| metric(node, name))
    };
    pair.nodes().map(of)
}

/// Whether Redis answers within 15 ms depends on the machine too. Its grants never exceed the quota; and where it was never
/// late, the whole quota was granted and nothing else.
#[test]
fn nodes_that_share_their_counters_admit_exactly_the_quota_between_them() {
    const QUOTA: usize = 57;
    let server = crate::redis::RedisServer::start();
    let more = format!("[counters]\nurl = \"redis://{}\"\n", server.address);
    let url = wait(Server::shared().database());
    let pair = pair_with([&url, &url], &more);
    let undisturbed = || {
        let key = pair.key(json!({"quota_limit": QUOTA, "rate_limit": 1_000, "rate_burst": 100_000}));
        let before = disturbances(&pair);
        let mut admitted = admitted_by(&pair, &key, 120);
        // Leased units that a node did not need are returned within moments.
        eventually_true("the last units are found again, or cannot be", || {
            admitted = admitted + admitted_by(&pair, &key, 6);
            admitted.shared >= QUOTA || disturbances(&pair) != before
        });
        admitted = admitted + admitted_by(&pair, &key, 60);
        assert!(admitted.shared <= QUOTA, "{admitted:?}");
        if disturbances(&pair) != before {
            return false;
        }
        assert_eq!(admitted, Admitted { shared: QUOTA, alone: 0 });
        eventually_true("the ledger says the same", || pair.first.stats(&key)["quota_used"] == json!(QUOTA));
        true
    };
    // A round takes a tenth of a second, or a second on a machine so busy that most rounds are disturbed.
    assert!((0..200).any(|_| undisturbed()), "Redis was late in every round: {:?}", disturbances(&pair));
}

#[test]
fn a_node_believes_only_the_server_that_its_url_names() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/store_behaviours/certificates");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let mut server = Server::start();
    let plain = wait(server.database());
    server.stop();
    server.use_certificate(&read("server.crt"), &read("server.key"));
    server.start_again();
    let verified =
        plain.replace("sslmode=disable", &format!("sslmode=verify-full&sslrootcert={folder}/root.crt"));
    let Pair { first, second, _origin } = pair(&verified);
    let key = first.create_key(json!({}));
    eventually_true("the other node knows the key", || second.get("/v1/app/x", &key.secret).status == 200);
    let clear = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                     WHERE application_name = 'keygate' AND NOT ssl";
    assert_eq!(number(&plain, clear), 0, "the one that listens is no exception");
    // The name is not in the certificate.
    let other = tempfile::tempdir().unwrap();
    let url = verified.replace("127.0.0.1", "localhost");
    crate::support::write_config(other.path(), &format!("[store]\nurl = \"{url}\"\n"));
    let told = crate::support::keygate(other.path(), &["run", "--config", "keygate.toml"]);
    assert!(told.code.is_some_and(|code| code != 0), "{told:?}");
    assert!(told.stderr.contains("the TLS certificate of the database was rejected"), "{told:?}");
}

#[test]
fn while_a_node_is_upgraded_both_its_processes_follow_and_a_stranger_has_no_place_beside_them() {
    let origin = Origin::start();
    let url = wait(Server::shared().database());
    let mut gateway = node(&origin, &url, "only", "[proxy]\ndrain_timeout = \"10m\"\n");
    let (key, gone) = (gateway.create_key(json!({"quota_limit": 20})), gateway.create_key(json!({})));
    let hold = Hold::new();
    for _ in 0..5 {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    }
    origin.answer_after(&hold);
    let mut slow = gateway.connect();
    slow.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    origin.wait_for_heads(6);
    let old = gateway.upgrade();
    let stranger = |gateway: &Gateway| {
        let refused = gateway.command(&["run"]);
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("is in use by another process"), "{refused:?}");
    };
    stranger(&gateway);
    let spread = delete_everywhere(&gateway, &gone)["propagation"].clone();
    assert_eq!((&spread["complete"], &spread["lagging"]), (&json!(true), &json!([])));
    let seen = gateway.managed("GET", &format!("/apikeys/{}/propagation", key.id), None);
    assert_eq!(seen["nodes"].as_array().unwrap().len(), 2, "the old process is asked as well: {seen}");
    hold.release();
    assert_eq!(slow.response().status, 200);
    drop(slow);
    eventually_true("the old process ends", || gateway.has_ended(old));
    stranger(&gateway);
    eventually_true("all is in the ledger", || gateway.stats(&key)["quota_used"] == 6);
    origin.answer(200, &[], b"{}");
    assert_eq!(gateway.get("/v1/app/x", &key.secret).remaining("quota"), 13);
}
