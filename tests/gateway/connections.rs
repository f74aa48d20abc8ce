//! A refusal keeps the connection open where the protocol allows it, and the next request is parsed from the right byte.

use crate::support::{Hold, Request, stand};
use serde_json::json;

#[test]
fn one_connection_carries_refusals_and_answers_in_sequence() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let spent = gateway.create_key(json!({"quota_limit": 1})).secret;
    assert_eq!(gateway.get("/v1/app/x", &spent).status, 200);
    let mut client = gateway.connect();
    for (request, status) in [
        (Request::get("/v1/app/x"), 401),
        (Request::get("/nowhere").bearer(&secret), 404),
        (Request::get("/v1/app/x").bearer(&spent), 429),
        (Request::get("/v1/app/..").bearer(&secret), 400),
        (Request::get("/v1/app/x").bearer("nonsense"), 401),
        (Request::new("HEAD", "/nowhere").bearer(&secret), 404),
        (Request::get("/v1/app/last").bearer(&secret), 200),
    ] {
        assert_eq!(client.call(&request).status, status, "{request:?}");
    }
    assert_eq!(origin.last().target, "/v1/app/last");
}

#[test]
fn a_small_body_that_nobody_read_is_not_taken_for_the_next_request() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    // The body looks like a request, so that a wrong offset would be noticed.
    let smuggled = Request::get("/v1/app/smuggled").bearer(&secret).bytes();
    for refused in [
        Request::post("/v1/app/x", smuggled.clone()),
        Request::post("/nowhere", smuggled.clone()).bearer(&secret),
        Request::post("/v1/app/..", smuggled.clone()).bearer(&secret),
        Request::post("/v1/app/x", vec![b'x'; 60_000]),
    ] {
        let response = client.call(&refused);
        assert!((400..500).contains(&response.status), "{response:?}");
    }
    assert_eq!(client.call(&Request::get("/v1/app/next").bearer(&secret)).status, 200);
    let seen: Vec<_> = origin.requests().into_iter().map(|r| r.target).collect();
    assert_eq!(seen, ["/v1/app/next"]);
}

#[test]
fn a_small_body_that_comes_after_its_refusal_is_drained() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    let refused = Request::post("/v1/app/x", "a body that comes late");
    client.send(&refused.head());
    assert_eq!(client.response().status, 401);
    client.send(b"a body that comes late");
    assert_eq!(client.call(&Request::get("/v1/app/next").bearer(&secret)).status, 200);
    assert_eq!(origin.count(), 1);
}

#[test]
fn a_large_chunked_or_held_back_body_closes_the_connection() {
    let (origin, gateway) = stand("");
    for request in [
        Request::post("/v1/app/x", vec![b'x'; 65 * 1024]),
        Request::new("POST", "/v1/app/x").header("Transfer-Encoding", "chunked"),
        Request::post("/v1/app/x", "small").header("Expect", "100-continue"),
    ] {
        let mut client = gateway.connect();
        client.send(&request.head());
        let response = client.response();
        assert_eq!(response.fault(), (401, 3007, "api_key_missing".into()));
        assert_eq!(
            response.header("connection").map(str::to_lowercase).as_deref(),
            Some("close"),
            "{request:?}"
        );
        assert!(client.is_closed());
    }
    assert_eq!(origin.count(), 0);
}

#[test]
fn admitted_requests_share_connections_on_both_sides() {
    let (origin, gateway) = stand("[proxy]\nthreads = 1\n");
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    for n in 0..20 {
        let target = format!("/v1/app/{n}");
        assert_eq!(client.call(&Request::post(&target, format!("body {n}")).bearer(&secret)).status, 200);
        assert_eq!((origin.last().target, origin.last().body), (target, format!("body {n}").into_bytes()));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    let two = [
        Request::get("/v1/app/1").bearer(&secret).bytes(),
        Request::get("/v1/app/2").bearer(&secret).bytes(),
    ];
    client.send(&two.concat());
    assert_eq!((client.response().status, client.response().status), (200, 200));
    let seen: Vec<_> = origin.requests().into_iter().map(|r| r.target).collect();
    assert_eq!(seen, ["/v1/app/1", "/v1/app/2"]);
}

#[test]
fn a_head_that_drips_in_is_cut_off_and_a_slow_answer_is_not() {
    let (origin, gateway) = stand("[proxy]\nheader_timeout = \"300ms\"\nidle_timeout = \"1s\"\n");
    let secret = gateway.create_key(json!({})).secret;
    let mut drip = gateway.connect();
    drip.send(b"GET /v1/app/x HTTP/1.1\r\nHost: h\r\nX-Never-");
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut patient = gateway.connect();
    patient.send(&Request::get("/v1/app/x").bearer(&secret).bytes());
    origin.wait_for_heads(1);
    assert_eq!(drip.response().fault(), (408, 1000, "request_timeout".into()));
    assert!(drip.is_closed(), "half a head is worth nothing");
    assert_eq!(origin.count(), 1);
    // By now the waiting one has waited longer than the timeout of a head.
    hold.release();
    assert_eq!(patient.response().status, 200);
    assert!(patient.is_closed(), "an idle connection ends by itself");
}
