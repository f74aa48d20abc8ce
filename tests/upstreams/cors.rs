//! CORS: preflights without a key and without a charge, and responses that a browser lets the page read.

use crate::support::{Gateway, Origin, Request, Response, route, upstream};
use serde_json::json;

fn stand(cors: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", &format!("[routes.cors]\n{cors}"))
        + &route("plain", "/v1/plain/{rest*}", "app", "");
    (origin, Gateway::start(&config))
}

fn preflight(gateway: &Gateway, path: &str, origin: &str, method: &str, headers: &str) -> Response {
    let request = Request::new("OPTIONS", path)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", method)
        .header("Access-Control-Request-Headers", headers);
    gateway.call(&request)
}

const LISTED: &str = "origins = [\"https://app.example\", \"https://*.app.example\"]\nheaders = [\"Authorization\", \"Content-Type\"]\n\
                      methods = [\"GET\", \"POST\"]\nexpose = [\"X-Mine\"]\ncredentials = true\nmax_age = \"60s\"\n";

#[test]
fn a_preflight_is_answered_before_the_key_and_for_nothing() {
    let (origin, gateway) = stand(LISTED);
    let response =
        preflight(&gateway, "/v1/app/x", "https://a.app.example", "POST", "authorization, content-type");
    assert_eq!((response.status, response.body.len()), (204, 0));
    for (name, value) in [
        ("access-control-allow-origin", "https://a.app.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, POST"),
        ("access-control-allow-headers", "authorization, content-type"),
        ("access-control-max-age", "60"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(response.header(name), Some(value), "{name}");
    }
    for (from, method, headers) in [
        ("https://evil.example", "POST", "authorization"),
        ("null", "POST", "authorization"),
        ("https://app.example", "DELETE", "authorization"),
        ("https://app.example", "POST", "x-other"),
    ] {
        let response = preflight(&gateway, "/v1/app/x", from, method, headers);
        assert_eq!(
            (response.status, response.header("access-control-allow-origin")),
            (204, None),
            "{from} {method}"
        );
    }
    assert_eq!(origin.count(), 0, "no backend sees a preflight");
    let no_preflight = Request::new("OPTIONS", "/v1/app/x").header("Origin", "https://app.example");
    assert_eq!(gateway.call(&no_preflight).status, 401);
    assert_eq!(preflight(&gateway, "/v1/nowhere", "https://app.example", "GET", "").status, 404);
    // The connection stays open.
    let mut connection = gateway.connect();
    let bytes = Request::new("OPTIONS", "/v1/app/x")
        .header("Origin", "https://app.example")
        .header("Access-Control-Request-Method", "GET")
        .bytes();
    for _ in 0..3 {
        connection.send(&bytes);
        assert_eq!(connection.response_to("OPTIONS").status, 204);
    }
}

#[test]
fn preflights_reach_the_backend_where_no_cors_is_configured() {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("plain", "/v1/plain/{rest*}", "app", "rewrite = \"/in/{rest}\"\nmethods = [\"POST\"]")
        + "[proxy]\nmax_preflights = 50\n";
    let gateway = Gateway::start(&config);
    let allowed = ("Access-Control-Allow-Origin", "https://app.example");
    origin.answer(204, Box::leak(Box::new([allowed, ("Access-Control-Max-Age", "60")])), b"");
    let ask = |more: &[(&str, &str)]| {
        let mut request = Request::new("OPTIONS", "/v1/plain/x?q")
            .header("Origin", "https://app.example")
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "authorization");
        for (name, value) in more {
            request = request.header(name, value);
        }
        request
    };
    let spoofed = [
        ("X-Keygate-Scopes", "app"),
        ("Cookie", "a=b"),
        ("X-End-User-Id", "ann"),
        ("X-Forwarded-User", "ann"),
    ];
    let response = gateway.call(&ask(&spoofed));
    assert_eq!((response.status, response.header(allowed.0)), (204, Some(allowed.1)));
    assert_eq!(response.header("access-control-max-age"), Some("60"));
    assert!(response.header("x-request-id").is_some() && response.header("ratelimit").is_none());
    let seen = origin.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("OPTIONS", "/in/x?q"));
    assert_eq!(seen.header("access-control-request-headers"), Some("authorization"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert!(!seen.head.to_lowercase().contains("x-keygate-") && seen.header("cookie").is_none());
    assert_eq!((seen.header("x-end-user-id"), seen.header("x-forwarded-user")), (None, None));
    // Requests that are not a browser's preflight, or that present a key, are decided like any other request.
    origin.forget();
    for request in [
        ask(&[]).body("x"),
        ask(&[("Connection", "Upgrade"), ("Upgrade", "websocket")]),
        ask(&[("Expect", "100-continue")]),
        Request::new("OPTIONS", "/v1/plain/x").header("Access-Control-Request-Method", "POST"),
        Request::new("OPTIONS", "/v1/plain/x").header("Origin", "https://app.example"),
        Request::get("/v1/plain/x").header("Origin", "https://app.example"),
    ] {
        let status = gateway.call(&request).status;
        assert!(status == 401 || status == 405, "{request:?}: {status}");
    }
    let method = preflight(&gateway, "/v1/plain/x", "https://app.example", "DELETE", "");
    assert_eq!(method.status, 405, "no route serves that");
    assert_eq!(gateway.call(&ask(&[]).bearer("nonsense")).status, 405, "nor an OPTIONS with a key");
    assert_eq!(origin.count(), 0);
    // Preflights are not charged, and each address may send so many.
    let key = gateway.create_key(json!({}));
    let mut one = gateway.connect();
    let refused =
        (0..10_000).find_map(|_| Some(one.call(&ask(&[]))).filter(|response| response.status != 204));
    let refused = refused.expect("an end");
    assert_eq!(refused.fault(), (429, 3014, "rate_limit_exceeded".into()));
    assert_eq!(
        (refused.json()["data"]["limit"].as_str(), refused.number("retry-after")),
        (Some("preflights"), 1)
    );
    assert_eq!(gateway.call(&Request::post("/v1/plain/x", "x").bearer(&key.secret)).status, 204);
    assert_eq!(gateway.wait_for_logs(&key, 1).len(), 1, "no record is of a preflight");
    assert!(
        gateway
            .metrics()
            .contains("keygate_requests_total{outcome=\"served\",route=\"plain\",status=\"2xx\"}")
    );
}

#[test]
fn every_answer_of_the_route_can_be_read_by_the_pages_it_is_for() {
    let (origin, gateway) = stand(LISTED);
    origin.answer(200, &[("Access-Control-Allow-Origin", "*"), ("Vary", "Accept")], b"{}");
    let key = gateway.create_key(json!({"quota_limit": 1}));
    let from = |page: &str, secret: &str| {
        gateway.call(&Request::get("/v1/app/x").bearer(secret).header("Origin", page))
    };
    let served = from("https://app.example", &key.secret);
    let refused = from("https://app.example", &key.secret);
    let unknown = from("https://app.example", "sk-service-nonsense");
    assert_eq!([served.status, refused.status, unknown.status], [200, 429, 401]);
    for response in [&served, &refused, &unknown] {
        assert_eq!(
            response.header("access-control-allow-origin"),
            Some("https://app.example"),
            "{response:?}"
        );
        assert_eq!(response.header("access-control-allow-credentials"), Some("true"));
        let exposed = response.header("access-control-expose-headers").unwrap();
        for name in ["X-Request-Id", "Retry-After", "RateLimit", "X-RateLimit-Remaining-QPS", "x-mine"] {
            assert!(exposed.split(", ").any(|n| n == name), "{name} is not in {exposed}");
        }
        let vary: Vec<_> = response.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("vary")).collect();
        assert!(vary.iter().any(|(_, v)| v == "Origin"), "{vary:?}");
    }
    let foreign = from("https://evil.example", "sk-service-nonsense");
    assert_eq!(foreign.header("access-control-allow-origin"), None);
    assert!(foreign.headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("vary") && v == "Origin"));
}

#[test]
fn everybody_may_be_allowed_but_not_with_credentials() {
    let (_origin, gateway) = stand("origins = [\"*\"]");
    let secret = gateway.create_key(json!({})).secret;
    let request = Request::get("/v1/app/x").bearer(&secret).header("Origin", "https://any.example");
    let response = gateway.call(&request);
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    assert_eq!((response.header("access-control-allow-credentials"), response.header("vary")), (None, None));
    let response = preflight(&gateway, "/v1/app/x", "https://any.example", "DELETE", "x-any");
    assert_eq!(response.header("access-control-allow-headers"), Some("x-any"));
}
