//! Health checks of load balancers, which a listener answers by itself.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Origin, Request, eventually_true, one_route, stand};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_needs_no_key_and_leaves_no_trace() {
    let origin = Origin::start();
    let config = one_route(origin.address) + H2C + "health_path = \"/lb/healthz\"\n[log]\naccess = true\n";
    let mut gateway = Gateway::start(&config);
    let before = gateway.metrics().lines().filter(|l| l.starts_with("keygate_requests_total")).count();
    for method in ["GET", "HEAD"] {
        let answer = gateway.call(&Request::new(method, "/lb/healthz"));
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{method}");
    }
    let mut client = Client::connect(h2c(&gateway)).await;
    assert_eq!(client.call(request("GET", "/lb/healthz", "nonsense")).await.unwrap().status, 200);
    let other = gateway.call(&Request::post("/lb/healthz", ""));
    assert_eq!((other.status, other.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(gateway.call(&Request::get("/lb/healthz/x")).status, 404);
    let after: Vec<String> = gateway
        .metrics()
        .lines()
        .filter(|l| l.starts_with("keygate_requests_total"))
        .map(Into::into)
        .collect();
    assert!(after.iter().all(|line| !line.contains("2xx") || line.ends_with(" 0")), "{before} {after:?}");
    assert_eq!(origin.count(), 0);
    assert!(gateway.stop().success());
    let log = gateway.stderr();
    assert_eq!(
        log.lines().filter(|l| l.contains("keygate::access")).count(),
        2,
        "the two that were refused: {log}"
    );
}

#[test]
fn a_health_check_fails_while_the_gateway_drains() {
    let (_origin, gateway) =
        stand("[proxy]\nhealth_path = \"/healthz\"\ndrain_delay = \"1m\"\ndrain_timeout = \"2m\"\n");
    let mut client = gateway.connect();
    assert_eq!(client.call(&Request::get("/healthz")).status, 200);
    gateway.signal("TERM");
    eventually_true("load balancers are told", || client.call(&Request::get("/healthz")).status == 503);
}

#[test]
fn behind_a_proxy_a_health_check_may_come_without_proxy_header_and_nothing_else() {
    let (origin, gateway) = stand(
        "[proxy]\nhealth_path = \"/healthz\"\nproxy_protocol = true\ntrusted_proxies = [\"127.0.0.1\"]\n",
    );
    let secret = gateway.create_key(json!({})).secret;
    let mut bare = gateway.connect();
    assert_eq!(bare.call(&Request::get("/healthz")).status, 200);
    let refused = bare.call(&Request::get("/v1/app/x").bearer(&secret));
    assert_eq!(
        (refused.fault(), &refused.data()["reason"]),
        ((400, 1000, "bad_request".into()), &json!("proxy_header"))
    );
    let mut told = gateway.connect();
    told.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n");
    assert_eq!(told.call(&Request::get("/healthz")).status, 200);
    assert_eq!(told.call(&Request::get("/v1/app/x").bearer(&secret)).status, 200);
    assert_eq!((origin.count(), origin.last().header("x-forwarded-for")), (1, Some("192.0.2.7")));
}
