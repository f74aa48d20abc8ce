//! One usage record for each request with a known secret, however it ended; none for others.

use crate::support::{
    Gateway, Hold, Key, Origin, Request, eventually, eventually_true, one_route, route, stand,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn the_record_of_a_served_request_tells_what_happened() {
    let origin = Origin::start();
    let gateway = Gateway::start(&(one_route(origin.address) + "[node]\nname = \"node-7\"\n"));
    origin.answer(201, &[], b"{\"answer\": 42}");
    let key = gateway.create_key(json!({}));
    let request = Request::post("/v1/app/chat%20room?q=private", "{\"question\": 1}").bearer(&key.secret);
    let request = request.header("User-Agent", "tester/1.0").header("X-End-User-Id", "alice");
    let response = gateway.call(&request);
    assert_eq!(response.status, 201);
    let rows = gateway.wait_for_logs(&key, 1);
    let row = &rows[0];
    let end_user = gateway.managed("GET", "/endusers?other_id=alice", None)["items"][0]["id"].clone();
    for (field, value) in [
        ("request_id", json!(response.header("x-request-id"))),
        ("api_key_id", json!(key.id)),
        ("endpoint", json!("/v1/app/chat%20room")),
        ("method", json!("POST")),
        ("route", json!("app")),
        ("status_code", json!(201)),
        ("outcome", json!("served")),
        ("error", json!("")),
        ("degraded", json!(false)),
        ("bytes_in", json!(15)),
        ("bytes_out", json!(14)),
        ("tokens_used", json!(0)),
        ("ip_address", json!("127.0.0.1")),
        ("user_agent", json!("tester/1.0")),
        ("end_user_id", end_user),
        ("upstream", json!(origin.address.to_string())),
        ("node", json!("node-7")),
    ] {
        assert_eq!(row[field], value, "{field} of {row:#}");
    }
    let (ttfb, whole) = (row["ttfb_ms"].as_f64().unwrap(), row["response_time"].as_f64().unwrap());
    assert!(0.0 < ttfb && ttfb <= whole && whole < 30_000.0, "{ttfb} {whole}");
    assert!(row["created_at"].as_u64().unwrap() > 1_600_000_000_000);
    assert!(!row.to_string().contains("private"), "the query is nobody's business");
}

#[test]
fn records_say_when_they_were_decided_without_shared_counters() {
    let origin = Origin::start();
    let mut redis = crate::redis::RedisServer::start();
    let counters = format!("[counters]\nurl = \"redis://{}\"\n", redis.address);
    let gateway = Gateway::start(&(one_route(origin.address) + &counters));
    let call = |key: &Key| {
        let response = gateway.get("/v1/app/x", &key.secret);
        let is_degraded = response.header("x-keygate-degraded").is_some();
        (response.header("x-request-id").expect("an id").to_owned(), response.status, is_degraded)
    };
    let new_key = || gateway.create_key(json!({"quota_limit": 8}));
    let (mut key, mut told) = (new_key(), Vec::new());
    // A Redis that has just been started grants nothing for a moment.
    eventually_true("Redis grants a first request", || {
        key = new_key();
        told = vec![call(&key)];
        told[0].1 == 200
    });
    redis.stop();
    told.extend((0..9).map(|_| call(&key)));
    let kinds: BTreeSet<_> = told.iter().map(|(_, status, is_degraded)| (*status, *is_degraded)).collect();
    assert!(kinds.is_superset(&BTreeSet::from([(200, false), (200, true), (429, true)])), "{told:?}");
    let kept: Vec<_> = gateway.wait_for_logs(&key, told.len()).iter().rev().map(as_told).collect();
    assert_eq!(kept, told);
}

/// What the client received, as in the record: the request's id, the status, and whether it was degraded.
fn as_told(row: &Value) -> (String, u16, bool) {
    let id = row["request_id"].as_str().expect("an id").to_owned();
    let status = row["status_code"].as_u64().and_then(|code| code.try_into().ok()).expect("a status");
    (id, status, row["degraded"].as_bool().expect("a flag"))
}

#[test]
fn refused_requests_of_a_known_key_are_recorded_with_their_reason() {
    let origin = Origin::start();
    let bound = route("bound", "/v1/bound/{id}", "app", "resource = \"path:id\"");
    let gateway = Gateway::start(&(one_route(origin.address) + &bound));
    let key = gateway.create_key(json!({"type": "app", "resource_id": "r1", "quota_limit": 1}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 429);
    assert_eq!(gateway.get("/v1/bound/r2", &key.secret).status, 403);
    gateway.update_key(&key, &json!({"is_active": false}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 401);
    let rows = gateway.wait_for_logs(&key, 4);
    let told: Vec<_> = rows
        .iter()
        .map(|r| (r["status_code"].as_u64(), r["outcome"].as_str(), r["error"].as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Some(401), Some("denied"), Some("api_key_inactive")),
            (Some(403), Some("denied"), Some("api_key_invalid_resource")),
            (Some(429), Some("denied"), Some("quota_exceeded")),
            (Some(200), Some("served"), Some("")),
        ]
    );
    let stats = gateway.stats(&key);
    assert_eq!((stats["total_requests"].as_u64(), stats["denied"].as_u64()), (Some(1), Some(3)));
    assert_eq!(stats["quota_used"], 1);
}

#[test]
fn requests_of_nobody_and_to_nowhere_leave_no_record() {
    let (_origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    gateway.call(&Request::get("/v1/app/x"));
    gateway.get("/v1/app/x", "nonsense");
    gateway.get("/nowhere", &key.secret);
    gateway.get("/v1/app/..", &key.secret);
    // The ledger is written in order: once this record is there, the others would be.
    gateway.get("/v1/app/last", &key.secret);
    let rows = gateway.wait_for_logs(&key, 1);
    assert_eq!(rows[0]["endpoint"], "/v1/app/last");
    let metrics = gateway.admin("GET", "/metrics", None).text();
    assert!(metrics.contains("keygate_usage_accepted_total 1\n"), "{metrics}");
    assert!(metrics.contains("keygate_usage_shed_total 0\n"));
}

#[test]
fn a_client_that_goes_away_leaves_an_aborted_record() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut before = gateway.connect();
    before.send(&Request::get("/v1/app/before").bearer(&key.secret).bytes());
    origin.wait_for_heads(1);
    before.hang_up();
    let rows = gateway.wait_for_logs(&key, 1);
    assert_eq!((rows[0]["outcome"].as_str(), rows[0]["status_code"].as_u64()), (Some("aborted"), Some(499)));
    let go_on = hold.clone();
    origin.script(move |_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")?;
        go_on.wait(1);
        out.write_all(b"0\r\n\r\n")
    });
    let mut midway = gateway.connect();
    midway.send(&Request::get("/v1/app/midway").bearer(&key.secret).bytes());
    assert_eq!(midway.response_head().status, 200);
    assert_eq!(midway.chunk().as_deref(), Some(b"half".as_slice()));
    midway.hang_up();
    let rows = gateway.wait_for_logs(&key, 2);
    assert_eq!((rows[0]["outcome"].as_str(), rows[0]["status_code"].as_u64()), (Some("aborted"), Some(200)));
    hold.release();
}

#[test]
fn a_backend_that_breaks_off_leaves_an_upstream_failed_record() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    origin.script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")?;
        Err(std::io::ErrorKind::Other.into())
    });
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    assert_eq!(client.response_head().status, 200);
    let rows = gateway.wait_for_logs(&key, 1);
    assert_eq!(
        (rows[0]["outcome"].as_str(), rows[0]["status_code"].as_u64()),
        (Some("upstream_failed"), Some(200))
    );
}

#[test]
fn requests_beyond_the_drain_time_are_recorded_as_interrupted() {
    let (origin, mut gateway) = stand("[proxy]\ndrain_timeout = \"200ms\"\n");
    let key = gateway.create_key(json!({"quota_limit": 10}));
    assert_eq!(gateway.get("/v1/app/answered", &key.secret).status, 200);
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/cut").bearer(&key.secret).bytes());
    origin.wait_for_heads(2);
    assert!(gateway.stop().success());
    hold.release();
    let gateway = gateway.restart();
    let rows = gateway.wait_for_logs(&key, 2);
    let told: Vec<_> = rows.iter().map(|r| (r["endpoint"].as_str(), r["outcome"].as_str())).collect();
    assert_eq!(
        told,
        [(Some("/v1/app/cut"), Some("interrupted")), (Some("/v1/app/answered"), Some("served"))]
    );
    assert_eq!(gateway.stats(&key)["quota_used"], 2, "it had reached the backend, so it was charged");
}

#[test]
fn every_request_of_many_is_in_the_ledger_exactly_once() {
    let (_origin, gateway) = stand("");
    let keys: Vec<_> = (0..4).map(|_| gateway.create_key(json!({"rate_limit": 1000}))).collect();
    std::thread::scope(|scope| {
        for key in &keys {
            scope.spawn(|| {
                let mut client = gateway.connect();
                for n in 0..100 {
                    let request = Request::get(&format!("/v1/app/{n}")).bearer(&key.secret);
                    assert!(matches!(client.call(&request).status, 200));
                }
            });
        }
    });
    for key in &keys {
        let stats = eventually("all are counted", || {
            Some(gateway.stats(key)).filter(|s| s["total_requests"].as_u64() >= Some(100))
        });
        assert_eq!((stats["total_requests"].as_u64(), stats["quota_used"].as_u64()), (Some(100), Some(100)));
        let mut ends: Vec<Value> = gateway.logs(key).iter().map(|r| r["endpoint"].clone()).collect();
        ends.sort_by_key(ToString::to_string);
        ends.dedup();
        assert_eq!(ends.len(), 100);
    }
    let accounts = gateway.settled_accounts();
    assert_eq!((accounts.accepted, accounts.stored, accounts.shed), (400, 400, 0));
}
