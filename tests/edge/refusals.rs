//! Requests that are refused before Pingora sees them are reported, counted and recorded like those refused later.

use crate::support::{Gateway, Origin, Raw, Request, Response, eventually_true, route, stand, upstream};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const SECRET: &str = "keygate-refusals-0123456789abcdef";

/// The parts of a response that must be equal for two requests refused for the same reason.
fn told(response: &Response) -> (u16, BTreeMap<String, String>, Value) {
    // The rate refills by one request in 20 ms.
    let of_time = ["x-ratelimit-reset", "x-ratelimit-remaining-qps", "retry-after-ms"];
    let differs =
        |name: &str| ["date", "x-request-id", "connection"].contains(&name) || of_time.contains(&name);
    let mut fields: BTreeMap<_, _> = response.headers.iter().cloned().collect();
    let mut body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    assert!(fields.keys().any(|name| name.eq_ignore_ascii_case("date")), "{fields:?}");
    // Some say after how many milliseconds to retry.
    let changes = fields.get("ratelimit").map(|state| state.split(';').next().unwrap_or_default().to_owned());
    fields.retain(|name, _| !differs(&name.to_ascii_lowercase()));
    fields.extend(changes.map(|state| ("ratelimit".to_owned(), state)));
    if let Some(body) = body.as_object_mut() {
        body.remove("time");
    }
    let fields = fields.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    (response.status, fields, body)
}

#[test]
fn a_refusal_is_the_same_whoever_writes_it() {
    let origin = Origin::start();
    let cors = "[routes.cors]\norigins = [\"https://page.example\"]\n";
    let gateway = Gateway::start(
        &(upstream("app", origin.address)
            + &route("app", "/v1/app/{rest*}", "app", "")
            + &route("pages", "/v1/pages/{rest*}", "app", cors)),
    );
    let key = gateway.create_key(json!({"scopes": ["app"], "quota_limit": 1}));
    let narrow = gateway.create_key(json!({"scopes": ["memory"]}));
    let off = gateway.create_key(json!({"scopes": ["app"]}));
    gateway.update_key(&off, &json!({"is_active": false}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    let bearer = |secret: &str| format!("Authorization: Bearer {secret}\r\n");
    let two = bearer(SECRET) + &bearer("another");
    let page = bearer(SECRET) + "Origin: https://page.example\r\n";
    for (status, method, path, fields) in [
        (401, "GET", "/v1/app/x", String::new()),
        (401, "GET", "/v1/app/x?q=1", bearer(SECRET)),
        (401, "HEAD", "/v1/app/x", bearer(SECRET)),
        (401, "GET", "/v1/pages/x", page),
        (401, "GET", "/v1/app/x", bearer(SECRET) + "Accept-Language: zh-CN\r\n"),
        (400, "GET", "/v1/app/x", two),
        (404, "GET", "/v2/x", bearer(&key.secret)),
        (403, "GET", "/v1/app/x", bearer(&narrow.secret)),
        (401, "GET", "/v1/app/x", bearer(&off.secret)),
        (429, "GET", "/v1/app/x", bearer(&key.secret)),
        (400, "GET", "/v1/app/../x", bearer(&key.secret)),
        (413, "POST", "/v1/app/x", bearer(&key.secret) + "Content-Length: 99999999999\r\n"),
    ] {
        let ask = |target: &str, more: &str| {
            let mut connection = gateway.connect();
            connection
                .send(format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}{more}\r\n").as_bytes());
            (told(&connection.response_to(method)), connection)
        };
        let (plain, mut stays) = ask(path, "");
        assert_eq!(plain.0, status, "{method} {path} {fields}");
        // Decided before Pingora and answered there; and decided behind it.
        let (closes, mut closed) = ask(path, "Connection: close\r\n");
        let (behind, _) = ask(&format!("http://h{path}"), "");
        assert_eq!((&plain, &plain), (&closes, &behind), "{method} {path} {fields}");
        assert!(closed.is_closed());
        if status != 413 {
            assert_eq!(stays.call(&Request::get("/v1/app/x")).status, 401, "the connection goes on");
        }
    }
    let stats = || gateway.stats(&key);
    eventually_true("each refusal of the key is recorded", || stats()["denied"] == json!(3 + 3));
    assert_eq!(stats()["quota_used"], json!(1));
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn requests_behind_one_that_is_refused_are_served_in_their_order() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let good = |path: &str| Request::get(path).bearer(&key.secret).bytes();
    let body = |path: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /");
        head.into_bytes()
    };
    let chunked =
        b"POST /v1/app/4 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut connection: Raw = gateway.connect();
    let all = [good("/v1/app/1"), body("/v1/app/2"), good("/v1/app/3"), chunked.to_vec(), good("/v1/app/5")];
    connection.send(&all.concat());
    let statuses: Vec<u16> = (0..5).map(|_| connection.response().status).collect();
    assert_eq!(statuses, [200, 401, 200, 401, 200]);
    // One byte after the other, so that the body has not arrived when its request is refused.
    for byte in [body("/v1/app/6"), good("/v1/app/7")].concat() {
        connection.send(&[byte]);
    }
    assert_eq!([connection.response().status, connection.response().status], [401, 200]);
    let paths: Vec<String> = origin.requests().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(paths, ["/v1/app/1", "/v1/app/3", "/v1/app/5", "/v1/app/7"]);
}
