//! Header fields for backends and for clients, and fields that no client can forge.

use crate::support::{Gateway, Origin, Request, Response, one_route, stand};
use serde_json::json;

const X_FAMILY: [&str; 5] = [
    "x-ratelimit-limit-qps",
    "x-ratelimit-remaining-qps",
    "x-ratelimit-limit-day",
    "x-ratelimit-remaining-day",
    "x-ratelimit-reset",
];
const IETF_FAMILY: [&str; 2] = ["ratelimit-policy", "ratelimit"];

fn has(response: &Response, family: &[&str]) -> bool {
    let there = family.iter().filter(|name| response.header(name).is_some()).count();
    assert!(there == 0 || there == family.len(), "a family comes whole: {response:?}");
    there > 0
}

#[test]
fn both_families_are_on_admitted_and_limit_denied_answers_and_on_no_other() {
    let (_origin, gateway) = stand("");
    let key = gateway.create_key(json!({"quota_limit": 1, "rate_limit": 7, "daily_request_limit": 500}));
    let admitted = gateway.get("/v1/app/x", &key.secret);
    let denied = gateway.get("/v1/app/x", &key.secret);
    assert_eq!((admitted.status, denied.status), (200, 429));
    for response in [&admitted, &denied] {
        assert!(has(response, &X_FAMILY) && has(response, &IETF_FAMILY));
        assert_eq!(response.number("x-ratelimit-limit-qps"), 7);
        assert_eq!(response.number("x-ratelimit-limit-day"), 500);
        assert_eq!(response.number("x-ratelimit-remaining-day"), 499);
        assert_eq!(
            response.header("ratelimit-policy"),
            Some("\"rate\";q=7;w=1, \"daily\";q=500;w=86400, \"quota\";q=1")
        );
        assert_eq!(response.remaining("quota"), 0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(response.number("x-ratelimit-reset").abs_diff(now) < 60, "epoch seconds");
    }
    let bound = gateway.create_key(json!({"type": "rag", "resource_id": "r"}));
    for other in [
        gateway.call(&Request::get("/v1/app/x")),
        gateway.get("/v1/app/x", "nonsense"),
        gateway.get("/nowhere", &key.secret),
        gateway.get("/v1/app/..", &key.secret),
        gateway.get("/v1/app/x", &bound.secret),
    ] {
        assert!(!has(&other, &X_FAMILY) && !has(&other, &IETF_FAMILY), "{other:?}");
        assert!(other.header("x-request-id").is_some());
    }
}

#[test]
fn each_family_can_be_switched_off() {
    let origin = Origin::start();
    for (families, x, ietf) in
        [("[\"x-ratelimit\"]", true, false), ("[\"ratelimit\"]", false, true), ("[]", false, false)]
    {
        let gateway = Gateway::start(&format!(
            "{}[proxy]\nrate_limit_headers = {families}\n",
            one_route(origin.address)
        ));
        let secret = gateway.create_key(json!({"daily_request_limit": 1})).secret;
        let (admitted, denied) = (gateway.get("/v1/app/x", &secret), gateway.get("/v1/app/x", &secret));
        for response in [&admitted, &denied] {
            assert_eq!((has(response, &X_FAMILY), has(response, &IETF_FAMILY)), (x, ietf), "{families}");
        }
    }
}

#[test]
fn limit_headers_of_a_backend_are_replaced() {
    let (origin, gateway) = stand("");
    origin.answer(
        200,
        &[("X-RateLimit-Limit-QPS", "9999"), ("RateLimit", "\"x\";r=9"), ("X-Request-Id", "mine")],
        b"{}",
    );
    let response = gateway.get("/v1/app/x", &gateway.create_key(json!({})).secret);
    for name in ["x-ratelimit-limit-qps", "ratelimit", "x-request-id"] {
        assert_eq!(
            response.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count(),
            1,
            "{name}"
        );
    }
    assert_eq!(response.number("x-ratelimit-limit-qps"), 50);
    assert_ne!(response.header("x-request-id"), Some("mine"));
}

fn is_uuid_v7(text: &str) -> bool {
    text.len() == 36 && text.as_bytes()[14] == b'7' && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

#[test]
fn one_fresh_request_id_is_in_the_answer_the_upstream_request_and_the_record() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let request = Request::get("/v1/app/x").bearer(&key.secret).header("X-Request-Id", "of the client");
        let response = gateway.call(&request);
        let id = response.header("x-request-id").expect("an id").to_owned();
        assert!(is_uuid_v7(&id), "{id}");
        assert_eq!(
            (origin.last().header("x-request-id"), origin.last().times("x-request-id")),
            (Some(id.as_str()), 1)
        );
        assert!(!seen.contains(&id), "fresh each time");
        seen.push(id);
    }
    let rows = gateway.wait_for_logs(&key, 3);
    let recorded: Vec<_> = rows.iter().rev().map(|r| r["request_id"].as_str().unwrap()).collect();
    assert_eq!(recorded, seen);
    let refused = gateway.call(&Request::get("/v1/app/x").header("X-Request-Id", "of the client"));
    assert!(is_uuid_v7(refused.header("x-request-id").unwrap()));
}

#[test]
fn a_trusted_request_id_is_kept_if_it_is_sound() {
    let (origin, gateway) = stand("[proxy]\ntrust_request_id = true\n");
    let key = gateway.create_key(json!({}));
    let ask = |id: &str| {
        let response =
            gateway.call(&Request::get("/v1/app/x").bearer(&key.secret).header("X-Request-Id", id));
        let answered = response.header("x-request-id").unwrap().to_owned();
        assert_eq!(origin.last().header("x-request-id"), Some(answered.as_str()));
        answered
    };
    assert_eq!(ask("trace-42/a"), "trace-42/a");
    for unsound in ["", "two words", &"x".repeat(129)] {
        assert!(is_uuid_v7(&ask(unsound)), "{unsound:?}");
    }
    let rows = gateway.wait_for_logs(&key, 4);
    assert_eq!(rows[3]["request_id"], "trace-42/a");
    assert!(is_uuid_v7(rows[3]["id"].as_str().unwrap()), "the record's own id stays ours");
}

#[test]
fn a_sound_traceparent_is_passed_on_and_otherwise_a_trace_begins() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let sound = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request =
        Request::get("/v1/app/x").bearer(&secret).header("traceparent", sound).header("tracestate", "a=1");
    gateway.call(&request);
    assert_eq!(
        (origin.last().header("traceparent"), origin.last().header("tracestate")),
        (Some(sound), Some("a=1"))
    );
    for unsound in
        ["", "nonsense", "00-00000000000000000000000000000000-b7ad6b7169203331-01", &sound.to_uppercase()]
    {
        let request = Request::get("/v1/app/x")
            .bearer(&secret)
            .header("traceparent", unsound)
            .header("tracestate", "a=1");
        gateway.call(&request);
        let seen = origin.last();
        let line = seen.header("traceparent").expect("a trace");
        assert!(line.len() == 55 && line.starts_with("00-") && line != unsound, "{line}");
        assert_eq!((seen.times("traceparent"), seen.header("tracestate")), (1, None));
    }
}

#[test]
fn identity_headers_sent_by_a_client_never_reach_the_origin() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({"type": "app", "resource_id": "r1"}));
    let spoofed = [
        "X-Keygate-Key-Id",
        "x-keygate-key-id",
        "X_Keygate_Key_Id",
        "X-Keygate_Key-Id",
        "X-Keygate-Workspace-Id",
        "X_Keygate_Workspace_Id",
        "X-Keygate-Key-Type",
        "X-Keygate-Scopes",
        "X_KEYGATE_SCOPES",
        "X-Keygate-Resource-Id",
        "X-Keygate-End-User-Id",
        "X_Keygate_End_User_Id",
        "X-Keygate-Invented",
        "X_Keygate_Invented",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X_Forwarded_Host",
        "X-Forwarded-Port",
        "X-Real-IP",
        "X_Real_IP",
        "Forwarded",
        "X_Request_Id",
        "X_Api_Key",
        "X_End_User_Id",
    ];
    let mut request = Request::get("/v1/app/x").bearer(&key.secret);
    for name in spoofed {
        request = request.header(name, "spoofed");
    }
    assert_eq!(gateway.call(&request).status, 200);
    let seen = origin.last();
    assert!(!seen.head.contains("spoofed"), "{}", seen.head);
    for (name, value) in [
        ("x-keygate-key-id", key.id.as_str()),
        ("x-keygate-workspace-id", "default"),
        ("x-keygate-key-type", "app"),
        ("x-keygate-scopes", "app"),
        ("x-keygate-resource-id", "r1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "gateway.test"),
    ] {
        assert_eq!((seen.header(name), seen.times(name)), (Some(value), 1), "{name}");
    }
    assert_eq!(seen.times("x-keygate-end-user-id"), 0);
}

#[test]
fn naming_our_headers_in_connection_does_not_take_them_off() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let nominated =
        "X-Keygate-Key-Id, X-Keygate-Scopes, X-Keygate-Workspace-Id, X-Request-Id, traceparent, X-Secret-Hop";
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let response = gateway.call(&request.header("Connection", nominated).header("X-Secret-Hop", "1"));
    assert_eq!(response.status, 200);
    let seen = origin.last();
    assert_eq!(seen.header("x-keygate-key-id"), Some(key.id.as_str()));
    for name in ["x-keygate-scopes", "x-keygate-workspace-id", "x-request-id", "traceparent"] {
        assert_eq!(seen.times(name), 1, "{name}");
    }
    assert_eq!(seen.header("x-secret-hop"), None);
}

#[test]
fn fields_for_one_hop_end_there_in_both_directions() {
    let (origin, gateway) = stand("");
    origin.answer(
        200,
        &[("Keep-Alive", "timeout=99"), ("Proxy-Authenticate", "Basic"), ("Trailer", "X-T"), ("X-Kept", "1")],
        b"{}",
    );
    let request = Request::get("/v1/app/x").bearer(&gateway.create_key(json!({})).secret);
    let request = request
        .header("TE", "trailers")
        .header("Keep-Alive", "timeout=9")
        .header("Proxy-Authorization", "Basic x");
    let response =
        gateway.call(&request.header("Upgrade", "h2c").header("X-Kept", "1").header("Accept", "*/*"));
    for name in ["te", "keep-alive", "proxy-authorization", "upgrade"] {
        assert_eq!(origin.last().header(name), None, "{name}");
    }
    assert_eq!((origin.last().header("x-kept"), origin.last().header("accept")), (Some("1"), Some("*/*")));
    for name in ["keep-alive", "proxy-authenticate", "trailer"] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert_eq!(response.header("x-kept"), Some("1"));
}
