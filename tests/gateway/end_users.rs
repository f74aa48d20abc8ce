//! End users: found where the route says, counted once, never above the plan's quota.

use crate::support::{Gateway, Origin, Raw, Request, route, stand, upstream};
use serde_json::{Value, json};
use std::sync::Mutex;

/// Routes that find the end user in the body's `user`, in a header of their own, or nowhere.
fn start(more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", "")
        + &route("body", "/v1/body", "app", "end_user = \"body:user\"")
        + &route("other", "/v1/other", "app", "end_user = \"header:X-Customer\"")
        + &route("none", "/v1/none", "app", "end_user = \"none\"")
        + more;
    let gateway = Gateway::start(&config);
    (origin, gateway)
}

fn quota(n: u64) -> String {
    format!("[plans.default]\nend_user_quota = {n}\napi_ops_rate_limit = 1000000\n")
}

/// The existing end users by the customer's names.
fn existing(gateway: &Gateway) -> Vec<String> {
    let mut names = Vec::new();
    for page in 1.. {
        let data = gateway.managed("GET", &format!("/endusers?pagesize=100&page={page}"), None);
        let items = data["items"].as_array().unwrap();
        names.extend(items.iter().map(|i| i["other_id"].as_str().unwrap().to_owned()));
        if data["page"]["hasnext"] == false {
            break;
        }
    }
    names.sort_unstable();
    names
}

fn id_of(gateway: &Gateway, name: &str) -> String {
    let data = gateway.managed("GET", &format!("/endusers?other_id={name}"), None);
    data["items"][0]["id"].as_str().expect("an end user of that name").to_owned()
}

fn chunked(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn the_header_names_the_end_user_and_the_origin_learns_who_it_is() {
    let (origin, gateway) = start("");
    let key = gateway.create_key(json!({}));
    let from = |target: &str, name: &str, value: &str| {
        gateway.call(&Request::get(target).bearer(&key.secret).header(name, value)).status
    };
    assert_eq!(from("/v1/app/x", "X-End-User-Id", "alice"), 200);
    let id = id_of(&gateway, "alice");
    assert_eq!(origin.last().header("x-keygate-end-user-id"), Some(id.as_str()));
    assert_eq!(origin.last().header("x-end-user-id"), Some("alice"), "what the client said goes on");
    assert_eq!(from("/v1/other", "X-Customer", "alice"), 200);
    assert_eq!(origin.last().header("x-keygate-end-user-id"), Some(id.as_str()), "one name, one end user");
    assert_eq!(from("/v1/other", "X-End-User-Id", "bob"), 200);
    assert_eq!(origin.last().header("x-keygate-end-user-id"), None, "this route reads another header");
    assert_eq!(from("/v1/none", "X-End-User-Id", "carol"), 200);
    assert_eq!(existing(&gateway), ["alice"]);
    let rows = gateway.wait_for_logs(&key, 4);
    let of: Vec<_> = rows.iter().rev().map(|r| r["end_user_id"].clone()).collect();
    assert_eq!(of, [json!(id), json!(id), Value::Null, Value::Null]);
}

#[test]
fn a_header_that_names_nobody_or_two_is_a_bad_request() {
    let (origin, gateway) = start("");
    let secret = gateway.create_key(json!({"quota_limit": 5})).secret;
    let long = "x".repeat(256);
    for names in [vec![""], vec!["   "], vec!["alice", "bob"], vec!["alice", "alice"], vec![long.as_str()]] {
        let request = Request::get("/v1/app/x").bearer(&secret);
        let request = names.iter().fold(request, |r, name| r.header("X-End-User-Id", name));
        let response = gateway.call(&request);
        assert_eq!(response.fault(), (400, 1000, "bad_request".into()), "{names:?}");
        assert_eq!(response.data()["reason"], "end_user_header");
    }
    assert_eq!(origin.count(), 0);
    assert_eq!(gateway.get("/v1/app/x", &secret).remaining("quota"), 4, "none of them cost anything");
}

#[test]
fn a_body_names_the_end_user_and_reaches_the_origin_byte_for_byte() {
    let (origin, gateway) = start("");
    let key = gateway.create_key(json!({}));
    let mut padded = format!("{{\"padding\":\"{}\"", "0123456789abcdef".repeat(12_800)).into_bytes();
    padded.extend_from_slice(b",\"user\":\"large\"}");
    assert!(padded.len() > 200_000);
    let mid = format!("{{\"user\":\"mid\",\"p\":\"{}\"}}", "z".repeat(70_000));
    let bodies: [(&str, Vec<u8>); 5] = [
        ("small", b" {\"a\": [1, {\"user\": \"inner\"}], \"user\" : \"small\"}\n".to_vec()),
        ("large", padded),
        ("mid", mid.into_bytes()),
        ("\u{6587}", "{\"user\":\"\u{6587}\"}".into()),
        ("escaped", br#"{"us\u0065r":"esc\u0061ped"}"#.to_vec()),
    ];
    for (name, body) in &bodies {
        let response = gateway.call(&Request::post("/v1/body", body.clone()).bearer(&key.secret));
        assert_eq!(response.status, 200, "{name}");
        let seen = origin.last();
        assert!(seen.body == *body, "{name}: {} bytes of {}", seen.body.len(), body.len());
        assert_eq!(seen.header("content-length"), Some(body.len().to_string().as_str()), "{name}");
        assert!(seen.header("x-keygate-end-user-id").is_some(), "{name}");
    }
    assert_eq!(existing(&gateway), ["escaped", "large", "mid", "small", "\u{6587}"]);
}

#[test]
fn a_large_body_that_arrives_in_pieces_reaches_the_origin_byte_for_byte() {
    let (origin, gateway) = start("");
    let secret = gateway.create_key(json!({})).secret;
    let body: Vec<u8> = format!("{{\"p\":\"{}\",\"user\":\"pieces\"}}", "abcdefg ".repeat(40_000)).into();
    let request = Request::post("/v1/body", body.clone()).bearer(&secret);
    let mut client = gateway.connect();
    client.send(&request.head());
    for piece in body.chunks(7_001) {
        client.send(piece);
    }
    assert_eq!(client.response().status, 200);
    assert!(origin.last().body == body);
    assert_eq!(
        client.call(&Request::get("/v1/app/next").bearer(&secret)).status,
        200,
        "the connection goes on"
    );
}

/// Limits are charged when the body has arrived, not as of its beginning.
#[test]
fn a_body_that_was_long_on_its_way_is_not_refused_for_what_was_charged_meanwhile() {
    let (_origin, gateway) = start(&quota(9));
    let secret = gateway.create_key(json!({"rate_limit": 50_000, "rate_burst": 1})).secret;
    let body = br#"{"user":"slow"}"#;
    let request = Request::post("/v1/body", body.to_vec()).bearer(&secret);
    let mut slow = gateway.connect();
    slow.send(&request.clone().header("Expect", "100-continue").head());
    assert_eq!(slow.exactly(25), b"HTTP/1.1 100 Continue\r\n\r\n", "its head has arrived");
    assert_eq!(gateway.call(&request).status, 200);
    slow.send(body);
    assert_eq!(slow.response().status, 200, "the rate has refilled since");
}

#[test]
fn a_chunked_body_is_read_ahead_like_any_other() {
    let (origin, gateway) = start("");
    let secret = gateway.create_key(json!({"quota_limit": 9})).secret;
    let head = Request::new("POST", "/v1/body").bearer(&secret).header("Transfer-Encoding", "chunked").head();
    let mut client = gateway.connect();
    client.send(&head);
    client.send(&chunked(&[b"{\"user\":", b"\"chunky\"", b"}"]));
    assert_eq!(client.response().status, 200);
    assert_eq!(origin.last().body, b"{\"user\":\"chunky\"}");
    let mut client = gateway.connect();
    client.send(&head);
    let filler = vec![b' '; 100_000];
    let parts = [filler.as_slice(); 8];
    client.send(&chunked(&[&[b"{\"user\":\"chunky\"".as_slice()], &parts[..], &[b"}".as_slice()]].concat()));
    assert_eq!(client.response().status, 200);
    assert_eq!(origin.last().body.len(), 800_017);
    let mut client = gateway.connect();
    client.send(&head);
    client.try_send(&chunked(&[filler.as_slice(); 11]));
    assert_eq!(client.response().fault(), (413, 1000, "payload_too_large".into()));
    assert_eq!(origin.count(), 2);
    assert_eq!(gateway.get("/v1/app/x", &secret).remaining("quota"), 6, "the refused one cost nothing");
}

#[test]
fn a_body_above_what_is_read_ahead_is_too_large() {
    let (origin, gateway) = start("[proxy]\nend_user_body_bytes = \"8KiB\"\n");
    let secret = gateway.create_key(json!({})).secret;
    let body = format!("{{\"user\":\"x\",\"p\":\"{}\"}}", "x".repeat(9_000));
    let response = gateway.call(&Request::post("/v1/body", body.clone()).bearer(&secret));
    assert_eq!(response.fault(), (413, 1000, "payload_too_large".into()));
    let mut client = gateway.connect();
    client.send(
        &Request::new("POST", "/v1/body").bearer(&secret).header("Transfer-Encoding", "chunked").head(),
    );
    client.try_send(&chunked(&[body.as_bytes()]));
    assert_eq!(client.response().fault().0, 413);
    assert_eq!(origin.count(), 0);
    assert_eq!(
        gateway.call(&Request::post("/v1/app/x", body).bearer(&secret)).status,
        200,
        "on other routes it may"
    );
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let (origin, gateway) = start("");
    let secret = gateway.create_key(json!({})).secret;
    for target in ["/v1/body", "/v1/app/x"] {
        let body = "{\"user\":\"patient\"}";
        let request = Request::post(target, body).bearer(&secret).header("Expect", "100-continue");
        let mut client = gateway.connect();
        client.send(&request.head());
        assert_eq!(client.response_head().status, 100, "{target}");
        client.send(body.as_bytes());
        assert_eq!(client.response().status, 200, "{target}");
        assert_eq!(origin.last().body, body.as_bytes(), "{target}");
    }
}

#[test]
fn a_body_that_names_nobody_passes_and_one_that_cannot_be_read_does_not() {
    let (origin, gateway) = start("");
    let secret = gateway.create_key(json!({})).secret;
    for body in ["{}", "{\"user\":null}", "{\"other\":\"x\"}"] {
        assert_eq!(gateway.call(&Request::post("/v1/body", body).bearer(&secret)).status, 200, "{body}");
        assert_eq!(origin.last().header("x-keygate-end-user-id"), None);
    }
    assert_eq!(gateway.get("/v1/body", &secret).status, 200, "no body at all");
    let served = origin.count();
    for body in [
        "not json",
        "[]",
        "{\"user\":1}",
        "{\"user\":\"\"}",
        "{\"user\":\"a\",\"user\":\"b\"}",
        "{\"user\":\"a\"",
        "{\"user\":\"a\"} x",
    ] {
        let response = gateway.call(&Request::post("/v1/body", body).bearer(&secret));
        assert_eq!(response.fault(), (400, 1000, "bad_request".into()), "{body}");
        assert_eq!(response.data()["reason"], "end_user_body");
    }
    assert_eq!(origin.count(), served);
    assert!(existing(&gateway).is_empty());
}

#[test]
fn only_a_new_end_user_is_held_against_the_quota_and_its_refusal_costs_nothing() {
    let (origin, gateway) = start(&quota(2));
    let key = gateway.create_key(json!({"quota_limit": 100}));
    let ask = |name: &str| {
        gateway.call(&Request::get("/v1/app/x").bearer(&key.secret).header("X-End-User-Id", name))
    };
    assert_eq!([ask("a").status, ask("b").status, ask("a").status], [200; 3]);
    for _ in 0..5 {
        let refused = ask("c");
        assert_eq!(refused.fault(), (402, 3018, "end_user_quota_exceeded".into()));
        assert_eq!(refused.data(), json!({"limit": "end_user_quota", "max": 2, "set_by": "plan"}));
    }
    assert_eq!(origin.count(), 3);
    let known = ask("b");
    assert_eq!(
        (known.status, known.remaining("quota")),
        (200, 96),
        "a known one passes, refusals were given back"
    );
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200, "and so does a request for nobody");
    assert_eq!(existing(&gateway), ["a", "b"]);
}

#[test]
fn deleting_an_end_user_makes_room_at_once() {
    let (_origin, gateway) = start(&quota(1));
    let key = gateway.create_key(json!({}));
    let ask = |name: &str| {
        gateway.call(&Request::get("/v1/app/x").bearer(&key.secret).header("X-End-User-Id", name)).status
    };
    let mut there = "u0".to_owned();
    assert_eq!(ask(&there), 200);
    for n in 1..10 {
        let next = format!("u{n}");
        assert_eq!(ask(&next), 402);
        gateway.managed("DELETE", &format!("/endusers/{}", id_of(&gateway, &there)), None);
        assert_eq!(ask(&next), 200, "the very next request finds room");
        assert_eq!(ask(&there), 402, "and who was deleted is new");
        there = next;
    }
}

#[test]
fn an_end_user_of_one_workspace_is_none_of_another() {
    let (_origin, gateway) = start(&quota(1));
    let here = gateway.create_key(json!({})).secret;
    let token = gateway.mint("admin", "another");
    let there = gateway.create_key_as(&token, json!({})).secret;
    let ask = |secret: &str, name: &str| {
        gateway.call(&Request::get("/v1/app/x").bearer(secret).header("X-End-User-Id", name)).status
    };
    assert_eq!([ask(&here, "a"), ask(&there, "b"), ask(&here, "b"), ask(&there, "a")], [200, 200, 402, 402]);
}

#[test]
fn however_many_come_first_at_once_the_quota_is_reached_exactly() {
    let (_origin, gateway) = start(&quota(100));
    let secret = gateway.create_key(json!({"rate_limit": 1_000_000})).secret;
    let admitted = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for client in 0..50 {
            let (admitted, secret, gateway) = (&admitted, &secret, &gateway);
            scope.spawn(move || {
                let mut connection: Raw = gateway.connect();
                for n in 0..20 {
                    let name = format!("user-{:04}", client * 20 + n);
                    let request = Request::get("/v1/app/x").bearer(secret).header("X-End-User-Id", &name);
                    match connection.call(&request).status {
                        200 => admitted.lock().unwrap().push(name),
                        402 => {}
                        other => panic!("{other}"),
                    }
                }
            });
        }
    });
    let mut admitted = admitted.into_inner().unwrap();
    admitted.sort_unstable();
    assert_eq!(admitted.len(), 100);
    assert_eq!(existing(&gateway), admitted, "who exists is who was admitted");
}

#[test]
fn a_header_named_in_the_config_replaces_the_usual_one() {
    let (_origin, gateway) = stand("[proxy]\nend_user_header = \"x-customer\"\n");
    let secret = gateway.create_key(json!({})).secret;
    gateway.call(&Request::get("/v1/app/x").bearer(&secret).header("X-End-User-Id", "not this"));
    gateway.call(&Request::get("/v1/app/x").bearer(&secret).header("X-Customer", "this"));
    assert_eq!(existing(&gateway), ["this"]);
}
