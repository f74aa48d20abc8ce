//! The access log: one line says who asked for what, what became of it, and why.

use crate::support::{Gateway, Origin, Request, eventually, one_route};
use serde_json::{Value, json};

/// The line of the request with this id.
fn line(gateway: &Gateway, request_id: &str) -> Value {
    eventually("the line of the access log", || {
        let log = gateway.stderr();
        let of_request = |line: &&str| line.contains("keygate::access") && line.contains(request_id);
        serde_json::from_str(log.lines().find(of_request)?).ok()
    })
}

fn started() -> (Origin, Gateway) {
    let origin = Origin::start();
    let gateway = Gateway::start(&(one_route(origin.address) + "[log]\naccess = true\nformat = \"json\"\n"));
    (origin, gateway)
}

#[test]
fn a_line_says_who_asked_for_what_and_what_became_of_it() {
    let (origin, gateway) = started();
    let key = gateway.create_key(json!({}));
    let request =
        Request::post("/v1/app/x?secret=1", "12345").bearer(&key.secret).header("User-Agent", "tést/1 \"q\"");
    let answer = gateway.call(&request);
    let line = line(&gateway, answer.header("x-request-id").expect("an id"));
    for (field, value) in [
        ("method", json!("POST")),
        ("path", json!("/v1/app/x")),
        ("status", json!(200)),
        ("outcome", json!("served")),
        ("error", json!("")),
        ("key", json!(key.id)),
        ("workspace", json!("default")),
        ("server", json!(origin.address.to_string())),
        ("bytes_in", json!(5)),
        ("bytes_out", json!(answer.body.len())),
        ("user_agent", json!("tést/1 \"q\"")),
        ("protocol", json!("HTTP/1.1")),
        ("tls", json!(false)),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
}

#[test]
fn a_refused_request_says_why() {
    let (_origin, gateway) = started();
    let key = gateway.create_key(json!({"quota_limit": 1}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    for (secret, error, who) in
        [(key.secret.as_str(), "quota_exceeded", key.id.as_str()), ("nonsense", "api_key_invalid", "")]
    {
        let answer = gateway.get("/v1/app/x", secret);
        let line = line(&gateway, answer.header("x-request-id").expect("an id"));
        assert_eq!(line["outcome"], "denied", "{line}");
        assert_eq!((&line["error"], &line["key"]), (&json!(error), &json!(who)), "{line}");
        assert_eq!(line["server"], "", "{line}");
    }
    let mut client = gateway.connect();
    client.send(b"GET /v1/app/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    let answer = client.response();
    let line = line(&gateway, answer.header("x-request-id").expect("an id"));
    assert_eq!((&line["error"], &line["status"]), (&json!("bad_request"), &json!(400)), "{line}");
}
