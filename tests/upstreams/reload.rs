//! Reload: a new config replaces the running one completely or not at all, and no request is affected.

use crate::group::Group;
use crate::support::{
    Gateway, Hold, Origin, Request, Response, eventually_true, route, upstream, write_config,
};
use rusqlite::TransactionBehavior;
use serde_json::json;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn reload(gateway: &Gateway) -> Response {
    gateway.admin("POST", "/reload", None)
}

/// A route `/v1/NAME` to that upstream.
fn named(name: &str, to: &str) -> String {
    route(name, &format!("/v1/{name}"), to, "")
}

#[test]
fn routes_and_upstreams_change_together_by_call_and_by_signal() {
    let (one, two) = (Origin::start(), Origin::start());
    one.answer(200, &[], b"one");
    two.answer(200, &[], b"two");
    let gateway = Gateway::start(&(upstream("a", one.address) + &named("x", "a")));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let text = |path: &str| gateway.get(path, &secret).text();
    assert_eq!(text("/v1/x"), "one");

    // The same indexes now mean other upstreams.
    let next = upstream("b", two.address) + &upstream("a", one.address) + &named("x", "b") + &named("y", "a");
    write_config(gateway.folder(), &(next + "[plans.gold]\napi_ops_rate_limit = 5\n"));
    let done = reload(&gateway);
    assert_eq!((done.status, done.data()), (200, json!({"routes": 2, "upstreams": 2})));
    assert_eq!((text("/v1/x"), text("/v1/y")), ("two".into(), "one".into()));
    assert_eq!(gateway.managed("GET", "/plans/gold", None)["api_ops_rate_limit"], 5);

    write_config(gateway.folder(), &(upstream("a", one.address) + &named("z", "a")));
    gateway.signal("HUP");
    eventually_true("the signal has reloaded", || gateway.get("/v1/z", &secret).status == 200);
    assert_eq!(gateway.get("/v1/x", &secret).fault(), (404, 4000, "route_not_found".into()));
}

#[test]
fn a_mistake_leaves_everything_as_it_was_and_all_are_told() {
    let origin = Origin::start();
    let gateway = Gateway::start(&(upstream("a", origin.address) + &named("x", "a")));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let path = gateway.folder().join("keygate.toml");
    let before = std::fs::read_to_string(&path).unwrap();
    let mistakes = |wrong: &str| {
        std::fs::write(&path, wrong).unwrap();
        let refused = reload(&gateway);
        assert_eq!(refused.fault(), (400, 1001, "validation_failed".into()));
        let errors = refused.data()["errors"].clone();
        let lines: Vec<String> = errors
            .as_array()
            .unwrap()
            .iter()
            .map(|e| format!("{}: {}", e["field"].as_str().unwrap(), e["message"].as_str().unwrap()))
            .collect();
        assert_eq!(gateway.get("/v1/x", &secret).status, 200);
        lines.join("\n")
    };
    let told = mistakes("proxy.threads = -1\n[[routes]]\npath = \"/\"\nupstream = \"nowhere\"\n");
    assert!(told.contains("keygate.toml:1:17 proxy.threads: must be a whole number"), "{told}");
    assert!(told.contains("keygate.toml:4:12 routes[0].upstream: there is no upstream"), "{told}");
    let told = mistakes(&(before.clone() + "\n[store]\nurl = \"sqlite:other.db\"\n[node]\nname = \"n2\"\n"));
    for key in ["store.url", "node.name"] {
        assert!(told.contains(&format!("{key}: it has changed, and that takes a restart")), "{told}");
    }
    let told = mistakes(&(before.clone() + &named("../y", "a")));
    assert!(told.contains("routes[1].path: "), "{told}");
    // A reload by signal reports in the log.
    std::fs::write(&path, "proxy.threads = -1\n").unwrap();
    gateway.signal("HUP");
    eventually_true("it is told", || gateway.stderr().contains("proxy.threads: must be a whole number"));
    eventually_true("it is told", || gateway.stderr().contains("the running config stays in force"));
    std::fs::write(&path, before).unwrap();
    assert_eq!(reload(&gateway).status, 200);
    // Only the operator's role may reload.
    for role in ["viewer", "admin"] {
        let token = gateway.mint(role, "default");
        assert_eq!(gateway.admin_as(&token, "POST", "/reload", None).status, 403);
    }
}

#[test]
fn applied_reloads_are_audited_and_refused_ones_are_not() {
    let origin = Origin::start();
    let gateway = Gateway::start(&(upstream("a", origin.address) + &named("x", "a")));
    let lines = || gateway.managed("GET", "/audit?platform=true&action=config.reload", None)["items"].clone();
    write_config(gateway.folder(), "[proxy]\nthreads = 3\n");
    assert_eq!(reload(&gateway).status, 400);
    assert_eq!(lines(), json!([]));
    let both = upstream("a", origin.address) + &named("x", "a") + &named("y", "a");
    write_config(gateway.folder(), &both);
    assert_eq!(reload(&gateway).status, 200);
    let line = lines()[0].clone();
    assert_eq!(line["changes"], json!({"routes": {"from": ["x"], "to": ["x", "y"]}}));
    assert!(
        line["role"] == "platform" && line["address"] == "127.0.0.1" && line["request_id"].is_string(),
        "{line}"
    );
    gateway.signal("HUP");
    eventually_true("the signal leaves a line too", || lines()[1].is_object());
    let line = lines()[0].clone();
    assert_eq!(
        (&line["subject"], &line["role"], &line["changes"]),
        (&json!("keygate"), &json!("local"), &json!({}))
    );
}

#[test]
fn a_reload_whose_caller_hangs_up_is_done_all_the_same() {
    let origin = Origin::start();
    let config = |routes: &str| {
        let patient = "[store]\nbusy_timeout = \"60s\"\n";
        format!("{}{routes}{patient}", upstream("a", origin.address))
    };
    let gateway = Gateway::start(&config(&named("x", "a")));
    let secret = gateway.create_key(json!({})).secret;
    // It has to wait for the store.
    write_config(gateway.folder(), &config(&(named("x", "a") + &named("y", "a"))));
    let mut store = rusqlite::Connection::open(gateway.folder().join("data/keygate.db")).unwrap();
    let held_up = store.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();

    let mut caller = TcpStream::connect(gateway.admin).unwrap();
    caller.write_all(&Request::new("POST", "/reload").bearer(&gateway.token()).bytes()).unwrap();
    drop(caller);
    held_up.rollback().unwrap();
    eventually_true("the config is in force", || gateway.get("/v1/y", &secret).status == 200);
    let lines = gateway.managed("GET", "/audit?platform=true&action=config.reload", None)["items"].clone();
    assert_eq!(lines.as_array().unwrap().len(), 1, "{lines}");
    assert_eq!(lines[0]["changes"], json!({"routes": {"from": ["x"], "to": ["x", "y"]}}));
    eventually_true("it is told", || gateway.stderr().contains("config reloaded"));
}

#[test]
fn requests_in_flight_finish_where_they_began() {
    let origin = Origin::start();
    let hold = Hold::new();
    origin.answer_after(&hold);
    let gateway = Gateway::start(&(upstream("a", origin.address) + &named("x", "a")));
    let secret = gateway.create_key(json!({})).secret;
    let mut connection = gateway.connect();
    connection.send(&Request::get("/v1/x").bearer(&secret).bytes());
    origin.wait_for_heads(1);
    write_config(gateway.folder(), "");
    assert_eq!(reload(&gateway).status, 200);
    hold.release();
    assert_eq!(connection.response().status, 200);
    assert_eq!(
        connection.call(&Request::get("/v1/x").bearer(&secret)).status,
        404,
        "the next one is told by the new"
    );
}

#[test]
fn server_state_and_connections_survive_a_reload() {
    let group = Group::start(&[1, 1], "[upstreams.eject]\nafter = 1\nfirst = \"1h\"\nlongest = \"1h\"\n");
    group.origins[0].answer(503, &[], b"");
    while group.counts()[0] == 0 {
        group.get();
    }
    let up = |n| group.metric_of("keygate_upstream_up", n, "");
    assert_eq!((up(0), up(1)), (Some(0), Some(1)));
    group.get_many(3, ("X-Any", "1"));
    let (connections, asked) = (group.origins[1].connections(), group.counts()[0]);
    let path = group.gateway.folder().join("keygate.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    // First nothing of the upstream changes, then something does.
    for change in [("path = \"/v1/app/{rest*}\"", "path = \"/v1/app/{all*}\""), ("after = 1", "after = 2")] {
        let config = std::fs::read_to_string(&path).unwrap();
        assert!(config.contains(change.0), "{config}");
        std::fs::write(&path, config.replace(change.0, change.1)).unwrap();
        assert_eq!(reload(&group.gateway).status, 200);
        group.get_many(5, ("X-Any", "1"));
        assert_eq!((up(0), up(1)), (Some(0), Some(1)), "{change:?}");
        assert_eq!((group.origins[1].connections(), group.counts()[0]), (connections, asked), "{change:?}");
    }
    // A removed upstream is not shown any more.
    write_config(group.gateway.folder(), "");
    assert_eq!(reload(&group.gateway).status, 200);
    assert_eq!((up(0), up(1)), (None, None));
    std::fs::write(&path, config).unwrap();
    assert_eq!(reload(&group.gateway).status, 200);
    assert_eq!((up(0), up(1)), (Some(1), Some(1)), "one that comes back is a new one");
}

#[test]
fn a_loop_of_reloads_under_load_fails_no_request() {
    const RELOADS: usize = 40;
    let origins = [Origin::start(), Origin::start()];
    let config = |n: usize| {
        // The upstream changes every time, and so does the order of the routes.
        let servers = if n % 2 == 0 { [0, 1] } else { [1, 0] };
        let addresses =
            servers.map(|s| format!("\"{} weight={}\"", origins[s].address, 1 + n % 3)).join(", ");
        let upstream = format!("[[upstreams]]\nname = \"a\"\nservers = [{addresses}]\n");
        let routes = if n % 2 == 0 { ["x", "y"] } else { ["y", "x"] };
        upstream + &named(routes[0], "a") + &named(routes[1], "a")
    };
    let gateway = Gateway::start(&config(0));
    let secret = gateway.create_key(json!({"rate_limit": 1000, "daily_request_limit": 10_000_000})).secret;
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for path in ["/v1/x", "/v1/y", "/v1/x"] {
            let (gateway, secret, stop, served) = (&gateway, &secret, &stop, &served);
            scope.spawn(move || {
                let mut connection = gateway.connect();
                let request = Request::get(path).bearer(secret);
                while !stop.load(Ordering::Acquire) {
                    let response = connection.call(&request);
                    if response.status == 429 {
                        continue;
                    }
                    assert_eq!(response.status, 200, "{}", response.text());
                    served.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        for n in 1..=RELOADS {
            let before = served.load(Ordering::Acquire);
            write_config(gateway.folder(), &config(n));
            assert_eq!(reload(&gateway).status, 200);
            eventually_true("requests are served", || served.load(Ordering::Acquire) >= before + 10);
        }
        stop.store(true, Ordering::Release);
    });
    assert!(served.load(Ordering::Acquire) >= RELOADS * 10);
}
