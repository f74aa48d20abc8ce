//! Decisions for a proxy in front: the same verdicts, charges, records and refusals as for requests that are forwarded.

use crate::public::public;
use crate::support::{
    Gateway, Key, Origin, Raw, Request, Response, eventually_true, one_route, route, stand,
};
use serde_json::{Value, json};
use std::net::SocketAddr;

const DECIDE: &str = "[decide]\nlisten = [\"127.0.0.1:0\"]\n";
const CLIENT: &str = "192.0.2.7";
/// Where a proxy states the request.
const SOURCES: [&str; 3] = ["original", "forwarded", "request"];

pub(crate) fn decide_at(gateway: &Gateway) -> SocketAddr {
    gateway.ready["decide"].as_str().expect("an address").parse().unwrap()
}

/// The call of a proxy about `method target`.
fn call(source: &str, method: &str, target: &str) -> Request {
    let request = match source {
        "original" => Request::get("/decide/original")
            .header("X-Original-Method", method)
            .header("X-Original-URI", target),
        "forwarded" => Request::get("/decide/forwarded")
            .header("X-Forwarded-Method", method)
            .header("X-Forwarded-Uri", target),
        _ => Request::new(method, &format!("/decide/request{target}")),
    };
    request.header("X-Forwarded-For", CLIENT)
}

fn ask(gateway: &Gateway, request: &Request) -> Response {
    Raw::connect(decide_at(gateway)).call(request)
}

fn started(more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let gateway = Gateway::start(&(one_route(origin.address) + more + DECIDE));
    (origin, gateway)
}

/// What two responses to the same request have in common: no ids, no times.
pub(crate) fn comparable(response: &Response) -> (u16, Vec<(String, String)>, Value) {
    let mut body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    if let Some(body) = body.as_object_mut() {
        body.remove("time");
    }
    let differs =
        ["x-request-id", "date", "content-length", "x-keygate-body", "x-ratelimit-reset", "connection"];
    let mut fields = response.headers.clone();
    for (name, value) in &mut fields {
        name.make_ascii_lowercase();
        // Without the seconds until a limit is whole again.
        let parts = value.split(';').filter(|part| name != "ratelimit" || !part.starts_with("t="));
        *value = parts.collect::<Vec<_>>().join(";");
    }
    fields.retain(|(name, _)| !differs.contains(&name.as_str()));
    fields.sort();
    (response.status, fields, body)
}

#[test]
fn a_refusal_is_the_one_that_the_client_would_get_from_the_proxy() {
    let more = route("deep", "/deep/{id}", "app", "resource = \"path:id\"\nerrors = \"openai\"");
    let (origin, gateway) = started(&more);
    let key = gateway.create_key(json!({}));
    let bound = gateway.create_key(json!({"type": "rag", "resource_id": "r"}));
    let spent = gateway.create_key(json!({"quota_limit": 1}));
    let elsewhere = gateway.create_key(json!({"allowed_ips": ["198.51.100.0/24"]}));
    assert_eq!(gateway.get("/v1/app/x", &spent.secret).status, 200);
    let requests = [
        ("GET", "/nowhere", &key),
        ("GET", "/v1/app/%2e%2e/admin", &key),
        ("GET", "/v1/app//x", &key),
        ("GET", "/v1/app/a%2Fb", &key),
        ("GET", "/v1/app/a%5Cb", &key),
        ("GET", "/v1/app/%252e", &key),
        ("TRACE", "/v1/app/x", &key),
        ("GET", "/v1/app/x", &bound),
        ("GET", "/deep/other", &bound),
        ("GET", "/v1/app/x", &spent),
        ("GET", "/v1/app/x", &elsewhere),
        ("GET", "/v1/app/x", &Key { id: String::new(), secret: "nonsense".into() }),
    ];
    for (method, target, key) in requests {
        let forwarded = gateway.call(&Request::new(method, target).bearer(&key.secret));
        assert!(forwarded.status >= 400, "{method} {target}: {forwarded:?}");
        for source in SOURCES {
            let decided = ask(&gateway, &call(source, method, target).bearer(&key.secret));
            let (mut one, mut other) = (comparable(&forwarded), comparable(&decided));
            // The address that is not allowed is the client's own.
            for body in [&mut one.2, &mut other.2] {
                if let Some(data) = body["data"].as_object_mut() {
                    data.remove("address");
                }
            }
            assert_eq!(one, other, "{source}: {method} {target}");
        }
    }
    assert_eq!(origin.requests().len(), 1, "decisions forward nothing");
}

#[test]
fn an_admitted_request_is_answered_with_whose_it_is_and_what_is_left() {
    let (origin, gateway) = started("");
    let key = gateway.create_key(json!({"daily_request_limit": 10}));
    let request = Request::get("/v1/app/x").bearer(&key.secret).header("X-End-User-Id", "u");
    let forwarded = gateway.call(&request);
    let told = origin.last();
    let identity = |fields: &[(String, String)]| {
        let mut all: Vec<_> =
            fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        all.retain(|(name, _)| name.starts_with("x-keygate-"));
        all.sort();
        all
    };
    for (n, source) in (1..).zip(SOURCES) {
        let request = call(source, "POST", "/v1/app/x?y=z").bearer(&key.secret);
        let decided = ask(&gateway, &request.header("X-End-User-Id", "u").header("X-Keygate-Key-Id", "mine"));
        assert_eq!((decided.status, decided.body.len()), (200, 0), "{decided:?}");
        assert_eq!(identity(&decided.headers), identity(&told.headers));
        assert_eq!(
            decided.number("x-ratelimit-remaining-day"),
            forwarded.number("x-ratelimit-remaining-day") - n
        );
        assert!(
            decided.header("authorization").is_none()
                && !decided.headers.iter().any(|(_, v)| v.contains(&key.secret))
        );
    }
    let rows = gateway.wait_for_logs(&key, 4);
    let decided: Vec<_> = rows.iter().filter(|row| row["outcome"] == "decided").collect();
    assert_eq!(decided.len(), 3, "{rows:?}");
    for row in decided {
        for (field, value) in [
            ("method", json!("POST")),
            ("endpoint", json!("/v1/app/x")),
            ("route", json!("app")),
            ("status_code", json!(200)),
            ("ip_address", json!(CLIENT)),
        ] {
            assert_eq!(row[field], value, "{field}: {row}");
        }
    }
    assert_eq!(
        gateway
            .metrics()
            .lines()
            .filter(|l| l.contains("outcome=\"decided\",route=\"app\"") && l.ends_with(" 3"))
            .count(),
        1
    );
}

#[test]
fn a_call_that_states_no_request_is_refused_and_says_what_is_missing() {
    let (_origin, gateway) = started("");
    let secret = gateway.create_key(json!({})).secret;
    for (request, field) in [
        (Request::get("/v1/app/x"), Value::Null),
        (Request::get("/decide/original").header("X-Forwarded-For", CLIENT), json!("x-original-method")),
        (
            Request::get("/decide/forwarded")
                .header("X-Forwarded-Uri", "/v1/app/x")
                .header("X-Forwarded-For", CLIENT),
            json!("x-forwarded-method"),
        ),
        (Request::get("/decide/request/v1/app/x"), json!("x-forwarded-for")),
        // The field that a client adds does not count where the proxy states the request elsewhere.
        (
            call("forwarded", "GET", "/v1/app/x").header("X-Forwarded-Uri", "/v1/app/y"),
            json!("x-forwarded-uri"),
        ),
    ] {
        let refused = ask(&gateway, &request.bearer(&secret));
        assert_eq!(refused.fault(), (400, 1000, "bad_request".into()), "{refused:?}");
        assert_eq!(refused.json()["data"], json!({"reason": "original_request", "field": field}));
    }
    let spoofed = call("forwarded", "GET", "/nowhere").header("X-Original-URI", "/v1/app/x");
    assert_eq!(ask(&gateway, &spoofed.bearer(&secret)).status, 404);
}

#[test]
fn the_body_of_an_answer_follows_the_method_of_the_call() {
    let (_origin, gateway) = started("");
    let mut connection = Raw::connect(decide_at(&gateway));
    // The connection stays in step: a body that is not announced, or announced and not sent, would break the next answer.
    for source in ["original", "request", "original"] {
        let refused = connection.call(&call(source, "HEAD", "/v1/app/x"));
        assert_eq!(refused.status, 401);
        assert_eq!(refused.body.is_empty(), source == "request", "{refused:?}");
        if source == "original" {
            assert_eq!(refused.header("x-keygate-body").map(str::as_bytes), Some(&refused.body[..]));
        }
    }
    let key = gateway.create_key(json!({}));
    assert_eq!(connection.call(&call("request", "HEAD", "/v1/app/x").bearer(&key.secret)).status, 200);
    assert_eq!(connection.call(&call("original", "PUT", "/v1/app/x").bearer(&key.secret)).status, 200);
}

#[test]
fn a_place_in_flight_is_free_again_when_the_answer_arrives() {
    let (_origin, gateway) = started("");
    let secret = gateway.create_key(json!({"concurrency_limit": 1})).secret;
    let mut connection = Raw::connect(decide_at(&gateway));
    for _ in 0..20 {
        assert_eq!(connection.call(&call("original", "GET", "/v1/app/x").bearer(&secret)).status, 200);
    }
}

#[test]
fn preflights_and_public_routes_need_no_key_and_tell_no_identity() {
    let (_origin, gateway) = started(&public("open", "/open", ""));
    let preflight = call("forwarded", "OPTIONS", "/v1/app/x")
        .header("Origin", "https://page.test")
        .header("Access-Control-Request-Method", "GET");
    for request in [preflight, call("original", "GET", "/open").header("X-Keygate-Key-Id", "mine")] {
        let decided = ask(&gateway, &request);
        assert_eq!(decided.status, 200, "{decided:?}");
        // Empty, so that a proxy that copies them overwrites what the client claims to be.
        let identity: Vec<_> = decided
            .headers
            .iter()
            .filter(|(name, _)| name.to_ascii_lowercase().starts_with("x-keygate-"))
            .collect();
        assert!(identity.len() == 8 && identity.iter().all(|(_, value)| value.is_empty()), "{identity:?}");
    }
    assert_eq!(ask(&gateway, &call("forwarded", "OPTIONS", "/v1/app/x")).status, 401, "no preflight");
}

#[test]
fn a_grpc_call_is_refused_with_a_status_that_the_proxy_cannot_take_for_a_success() {
    let (_origin, gateway) = started("");
    let request = call("request", "POST", "/v1/app/x").header("Content-Type", "application/grpc");
    assert_eq!(ask(&gateway, &request).status, 401);
}

#[test]
fn the_health_check_is_that_of_the_listener_and_not_of_a_request() {
    let (_origin, gateway) = started("[proxy]\nhealth_path = \"/healthz\"\n");
    assert_eq!(ask(&gateway, &Request::get("/healthz")).status, 200);
    assert_eq!(ask(&gateway, &call("original", "GET", "/healthz")).status, 404, "no route has it");
}

#[test]
fn only_a_listener_for_decisions_decides() {
    let (_origin, gateway) = stand("");
    assert_eq!(gateway.ready.get("decide"), None);
    let key = gateway.create_key(json!({}));
    let forwarded = gateway.call(&call("original", "GET", "/v1/app/x").bearer(&key.secret));
    assert_eq!(forwarded.status, 404, "the listeners for clients have no such path");
}

#[test]
fn an_upgrade_hands_the_listener_over() {
    let (_origin, mut gateway) = started("");
    let secret = gateway.create_key(json!({"quota_limit": 3})).secret;
    let at = decide_at(&gateway);
    assert_eq!(ask(&gateway, &call("original", "GET", "/v1/app/x").bearer(&secret)).status, 200);
    let before = gateway.upgrade();
    eventually_true("the old process has told what was spent", || gateway.has_ended(before));
    assert_eq!(decide_at(&gateway), at);
    for status in [200, 200, 429] {
        assert_eq!(ask(&gateway, &call("original", "GET", "/v1/app/x").bearer(&secret)).status, status);
    }
}
