//! Routing: the most specific pattern decides alone, on the canonical path, and that path is forwarded.

use crate::support::{Gateway, Origin, Request, Response, route, stand, upstream};
use serde_json::json;

/// Three origins that name themselves, and overlapping routes.
fn three() -> (Vec<Origin>, Gateway, String) {
    let origins: Vec<_> = (0..3).map(|_| Origin::start()).collect();
    let mut config = String::new();
    for (origin, (name, body)) in
        origins.iter().zip([("wide", "wide"), ("narrow", "narrow"), ("exact", "exact")])
    {
        origin.answer(200, &[], body.as_bytes());
        config += &upstream(name, origin.address);
    }
    config += &route("wide", "/v1/{rest*}", "wide", "");
    config += &route("narrow", "/v1/app/{id}", "narrow", "");
    config += &route("exact", "/v1/app/status", "exact", "");
    config += &route("write", "/v1/write/{id}", "narrow", "methods = [\"POST\", \"PUT\"]");
    config += &route("read", "/v1/read/{id}", "narrow", "methods = [\"GET\"]");
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    (origins, gateway, secret)
}

#[test]
fn the_most_specific_route_decides_alone() {
    let (_origins, gateway, secret) = three();
    for (target, served_by) in [
        ("/v1/app/status", "exact"),
        ("/v1/app/%73tatus", "exact"),
        ("/v1/app/status2", "narrow"),
        ("/v1/app/a1", "narrow"),
        ("/v1/app/a1/chat", "wide"),
        ("/v1/app/", "wide"),
        ("/v1/other", "wide"),
        ("/v1/", "wide"),
    ] {
        let response = gateway.get(target, &secret);
        assert_eq!((response.status, response.text().as_str()), (200, served_by), "{target}");
    }
    for target in ["/", "/v2/app", "/V1/app/status", "/v1app"] {
        assert_eq!(gateway.get(target, &secret).fault(), (404, 4000, "route_not_found".into()), "{target}");
    }
}

#[test]
fn a_method_that_the_most_specific_route_does_not_serve_falls_through_to_no_other() {
    let (origins, gateway, secret) = three();
    for (method, target, status) in [
        ("POST", "/v1/write/x", 200),
        ("PUT", "/v1/write/x", 200),
        ("GET", "/v1/write/x", 405),
        ("DELETE", "/v1/write/x", 405),
        ("OPTIONS", "/v1/write/x", 405),
        ("GET", "/v1/read/x", 200),
        ("HEAD", "/v1/write/x", 405),
        ("HEAD", "/v1/read/x", 200),
        ("POST", "/v1/read/x", 405),
        ("PATCH", "/v1/other", 200),
        ("DELETE", "/v1/other", 200),
    ] {
        let request = Request::new(method, target).bearer(&secret);
        assert_eq!(gateway.call(&request).status, status, "{method} {target}");
        // A strict route without the method hides the lax one: no origin gets the request.
        let mut seen = origins.iter().flat_map(Origin::requests);
        assert_eq!(seen.next().map(|r| r.method).as_deref(), (status == 200).then_some(method), "{target}");
        origins.iter().for_each(Origin::forget);
    }
}

#[test]
fn the_canonical_path_is_what_is_matched_and_what_is_forwarded() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    for (sent, forwarded) in [
        ("/v1/app/x", "/v1/app/x"),
        ("/v1/%61pp/x", "/v1/app/x"),
        ("/%761/app/%78", "/v1/app/x"),
        ("/v1/app/%7euser", "/v1/app/~user"),
        ("/v1/app/a%3ab", "/v1/app/a%3Ab"),
        ("/v1/app/%e6%96%87", "/v1/app/%E6%96%87"),
        ("/v1/app/a%20b", "/v1/app/a%20b"),
        ("/v1/app/100%25", "/v1/app/100%25"),
        ("/v1/app/x;v=1", "/v1/app/x;v=1"),
        ("/v1/app/models/m:generate", "/v1/app/models/m:generate"),
        ("/v1/app/x/", "/v1/app/x/"),
        ("/v1/app/%61?a=%61", "/v1/app/a?a=%61"),
    ] {
        assert_eq!(gateway.get(sent, &secret).status, 200, "{sent}");
        assert_eq!(origin.last().target, forwarded, "{sent}");
    }
}

#[test]
fn an_ambiguous_path_is_refused_before_the_origin_sees_anything() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let spellings: &[&[u8]] = &[
        b"/v1/app/../admin",
        b"/v1/app/..",
        b"/v1/app/./x",
        b"/v1/app/.",
        b"/..",
        b"/v1/app/%2e%2e/admin",
        b"/v1/app/%2E%2E/admin",
        b"/v1/app/.%2e/admin",
        b"/v1/app/%2e./admin",
        b"/v1/app/%2e",
        b"/v1/app/..;/admin",
        b"/v1/app/..;x=1/admin",
        b"/v1/app/%2e%2e;x/admin",
        b"/v1/app/.;/admin",
        b"/v1/app//x",
        b"//v1/app/x",
        b"/v1//app/x",
        b"/v1/app/x//",
        b"/v1/app/..%2fadmin",
        b"/v1/app/..%2Fadmin",
        b"/v1/app/a%2fb",
        b"/v1/app%2fx",
        b"/v1/app/a%5cb",
        b"/v1/app/..%5cadmin",
        b"/v1/app/..\\admin",
        b"/v1/app/a\\b",
        b"/v1/app/%00",
        b"/v1/app/x%00.html",
        b"/v1/app/%0d%0aX-Keygate-Key-Id:1",
        b"/v1/app/%0a",
        b"/v1/app/%1f",
        b"/v1/app/%7f",
        b"/v1/app/%252e%252e/admin",
        b"/v1/app/%252fadmin",
        b"/v1/app/%25252e",
        b"/v1/app/%25%32%65",
        b"/v1/app/%",
        b"/v1/app/%4",
        b"/v1/app/%zz",
        b"/v1/app/%u002e",
    ];
    for spelling in spellings {
        let shown = String::from_utf8_lossy(spelling);
        let response = send_target(&gateway, spelling, &secret);
        assert_eq!(response.status, 400, "{shown}: {response:?} {:?}", origin.requests());
        assert_eq!(response.fault(), (400, 1000, "bad_request".into()), "{shown}");
        assert_eq!(origin.count(), 0, "{shown}");
    }
}

#[test]
fn a_target_that_is_no_path_at_all_reaches_no_origin() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let targets: &[&[u8]] =
        &[b"v1/app/x", b"\\v1\\app\\x", b"/v1/app/\xff", b"*", b"?", b"?/v1/app/x", b"gateway.test:80"];
    for target in targets {
        let shown = String::from_utf8_lossy(target);
        let response = send_target(&gateway, target, &secret);
        assert!(response.status == 400, "{shown}: {response:?}");
        assert_eq!(origin.count(), 0, "{shown}");
    }
}

/// A request with exactly these bytes as its target.
fn send_target(gateway: &Gateway, target: &[u8], secret: &str) -> Response {
    let rest = format!(" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {secret}\r\n\r\n");
    let mut client = gateway.connect();
    client.send(&[b"GET ", target, rest.as_bytes()].concat());
    client.response()
}

#[test]
fn a_fragment_is_no_part_of_a_request() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    for target in
        ["/v1/app/x#fragment", "/v1/app/x?q=1#fragment", "/v1/app/x?q=1#/../admin", "/v1/app/x?q=1#?r=2"]
    {
        assert_eq!(gateway.get(target, &secret).fault(), (400, 1000, "bad_request".into()), "{target}");
    }
    assert_eq!(origin.count(), 0);
}

#[test]
fn the_query_goes_on_untouched() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    for query in ["?", "?a=b", "?a=%zz&b=/../?x", "?q=%00%2e%2E", "?&&=&", "?a=//&b=;c", "?key=sk-app-x"] {
        assert_eq!(gateway.get(&format!("/v1/app/x{query}"), &secret).status, 200, "{query}");
        assert_eq!(origin.last().target, format!("/v1/app/x{query}"));
    }
}

#[test]
fn an_absolute_target_is_forwarded_as_a_path() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let response = gateway.get("http://gateway.test/v1/%61pp/x?q=1", &secret);
    assert_eq!(response.status, 200);
    assert_eq!(origin.last().target, "/v1/app/x?q=1");
    assert_eq!(origin.last().header("host"), Some("gateway.test"));
    assert_eq!(gateway.get("http://gateway.test/v1/app/plain", &secret).status, 200);
    assert_eq!(origin.last().target, "/v1/app/plain", "also where nothing else has to be respelled");
    let other_host = gateway.get("http://elsewhere.test/v1/app/x", &secret);
    assert_eq!(other_host.status, 400, "the target and Host name different hosts");
    let dotted = gateway.get("http://gateway.test/v1/app/../x", &secret);
    assert_eq!(dotted.fault(), (400, 1000, "bad_request".into()));
    let nowhere = gateway.get("v1/app/x", &secret);
    assert_eq!(nowhere.status, 400, "a target without its slash");
    assert_eq!(origin.count(), 2);
}
