//! Errors in the form that clients show: of OpenAI, Anthropic, RFC 9457 and gRPC, and whether a client should retry.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Origin, Request, route, stand, upstream};
use serde_json::{Value, json};

/// A gateway with a route for each form, and the secret of a key whose quota is used up.
fn spent(form: &str) -> (Origin, Gateway, String) {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("plain", "/v1/plain/{rest*}", "app", "methods = [\"GET\", \"POST\"]")
        + &route("form", "/v1/app/{rest*}", "app", &format!("errors = \"{form}\""))
        + H2C;
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({"quota_limit": 1})).secret;
    assert_eq!(gateway.get("/v1/plain/x", &secret).status, 200);
    (origin, gateway, secret)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_writes_errors_in_its_form_over_both_protocols() {
    for (form, media_type, name) in [
        ("envelope", "application/json", "/error"),
        ("openai", "application/json", "/error/details/error"),
        ("anthropic", "application/json", "/error/details/error"),
        ("problem", "application/problem+json", "/error"),
    ] {
        let (origin, gateway, secret) = spent(form);
        origin.forget();
        let one = gateway.get("/v1/app/x", &secret);
        let mut client = Client::connect(h2c(&gateway)).await;
        let two = client.call(request("GET", "/v1/app/x", &secret)).await.unwrap();
        let two_type = two.headers["content-type"].to_str().unwrap().to_owned();
        let told: Value = serde_json::from_slice(&two.body).unwrap();
        for (status, kind, body) in [
            (one.status, one.header("content-type").unwrap(), one.json()),
            (two.status.as_u16(), two_type.as_str(), told),
        ] {
            assert_eq!((status, kind), (429, media_type), "{form}");
            assert_eq!(body.pointer(name), Some(&json!("quota_exceeded")), "{form}: {body}");
        }
        let unknown = gateway.get("/v1/app/x", "nonsense");
        assert_eq!(unknown.status, 401, "{form}");
        assert_eq!(unknown.json().pointer(name), Some(&json!("api_key_invalid")), "{form}");
        assert_eq!(origin.count(), 0);
        // Other routes keep theirs.
        assert_eq!(gateway.get("/v1/plain/x", &secret).fault(), (429, 3016, "quota_exceeded".into()));
    }
}

#[test]
fn the_form_of_the_proxy_applies_where_no_route_has_its_own() {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", "")
        + &route("plain", "/v1/plain/{rest*}", "app", "errors = \"envelope\"")
        + "[proxy]\nerrors = \"openai\"\n";
    let gateway = Gateway::start(&config);
    let nowhere = gateway.call(&Request::get("/nowhere"));
    assert_eq!((nowhere.status, &nowhere.json()["error"]["code"]), (404, &json!("route_not_found")));
    assert_eq!(gateway.get("/v1/app/x", "nonsense").json()["error"]["code"], "invalid_api_key");
    assert_eq!(gateway.get("/v1/plain/x", "nonsense").fault(), (401, 3009, "api_key_invalid".into()));
}

#[test]
fn a_client_is_told_whether_and_when_to_retry() {
    let (_origin, gateway) = stand("");
    let retry = |fields: Value, admitted: usize| {
        let secret = gateway.create_key(fields).secret;
        for _ in 0..admitted {
            assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
        }
        let refused = gateway.get("/v1/app/x", &secret);
        assert_eq!(refused.status, 429);
        let field = |name| refused.header(name).map(str::to_owned);
        (field("retry-after"), field("retry-after-ms"), field("x-should-retry"))
    };
    let (secs, ms, should) = retry(json!({"rate_limit": 1, "rate_burst": 1}), 1);
    let ms: u64 = ms.expect("milliseconds").parse().expect("a number");
    assert!(
        secs.as_deref() == Some("1") && (1..=1_000).contains(&ms) && should.is_none(),
        "{secs:?} {ms} {should:?}"
    );
    let total = json!({"rate_limit": 100, "quota_limit": 1});
    assert_eq!(retry(total, 1), (None, None, Some("false".to_owned())), "waiting never helps");
    let month = json!({"rate_limit": 100, "limits": [{"count": "requests", "per": "month", "max": 1}]});
    let (secs, _, should) = retry(month, 1);
    // In the last minute of a month, waiting does help.
    let is_far = secs.expect("a wait").parse::<u64>().expect("a number") > 60;
    assert_eq!(should.is_some(), is_far);
    let unknown = gateway.get("/v1/app/x", "nonsense");
    assert_eq!((unknown.status, unknown.header("x-should-retry")), (401, Some("false")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_callers_get_a_status_of_grpc_in_trailers_only() {
    let (_origin, gateway, secret) = spent("openai");
    let mut client = Client::connect(h2c(&gateway)).await;
    let call = |target: &str, secret: &str, media_type: &str| {
        let mut call = request("POST", target, secret);
        call.headers_mut().insert("content-type", media_type.parse().unwrap());
        call
    };
    for (target, key, status, message) in [
        ("/v1/app/pkg.Service/Do", secret.as_str(), "8", "The key's 1 requests are used up"),
        ("/v1/app/pkg.Service/Do", "nonsense", "16", "The API key is not valid"),
        ("/pkg.Service/Do", "nonsense", "12", "No route matches this request"),
    ] {
        for media_type in ["application/grpc", "application/grpc+proto", "application/grpc;v=1"] {
            let answer = client.call(call(target, key, media_type)).await.unwrap();
            let field = |name: &str| answer.headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{target}");
            assert_eq!(field("content-type"), Some("application/grpc"));
            assert_eq!((field("grpc-status"), field("grpc-message")), (Some(status), Some(message)));
            assert!(field("content-length").is_none() && field("x-request-id").is_some());
        }
    }
    let (response, _) = client.begin(call("/pkg.Service/Do", "nonsense", "application/grpc"), true).await;
    assert!(response.await.unwrap().into_body().is_end_stream(), "the head ends the stream");
    // What only looks like it gets the form of its route.
    let web = client.call(call("/v1/app/x", &secret, "application/grpc-web")).await.unwrap();
    assert_eq!(web.status.as_u16(), 429);
    // Records, metrics and the log tell the failure by its HTTP status.
    let metrics = gateway.metrics();
    assert!(
        metrics
            .lines()
            .any(|l| l.starts_with("keygate_requests_total") && l.contains("4xx") && l.contains("form")),
        "{metrics}"
    );
    let is_success =
        |l: &&str| l.starts_with("keygate_requests_total") && l.contains("2xx") && l.contains("denied");
    assert_eq!(metrics.lines().filter(is_success).filter(|l| !l.ends_with(" 0")).count(), 0);
}

#[test]
fn a_known_path_with_another_method_gets_405_with_the_methods_allowed() {
    let (origin, gateway, secret) = spent("problem");
    origin.forget();
    for (method, secret) in [("PUT", secret.as_str()), ("DELETE", "nonsense"), ("BREW", "nonsense")] {
        let answer = gateway.call(&Request::new(method, "/v1/plain/x").bearer(secret));
        assert_eq!(answer.fault(), (405, 1000, "method_not_allowed".into()), "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD, POST"));
        assert_eq!(answer.data(), json!({"allow": "GET, HEAD, POST"}));
    }
    assert_eq!(origin.count(), 0);
}
