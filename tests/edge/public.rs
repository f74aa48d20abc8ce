//! Public routes: no key is looked up, the address is limited, the secret stays here, and every request is recorded.

use crate::http2::{Client, H2C, h2c};
use crate::support::{Gateway, Origin, Request, eventually, route, upstream};
use serde_json::{Value, json};

/// A route that needs no key.
pub(crate) fn public(name: &str, path: &str, more: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\npath = \"{path}\"\nupstream = \"app\"\npublic = true\n{more}\n")
}

/// The rows of the ledger of a stopped gateway.
fn exported(gateway: &Gateway) -> Vec<Value> {
    let command = gateway.command(&["usage", "export"]);
    assert_eq!(command.code, Some(0), "{}", command.stderr);
    command.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_route_needs_no_key_forwards_no_secret_and_is_recorded() {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", "")
        + &public("files", "/files/{rest*}", "rewrite = \"/static/{rest}\"\n")
        + &public("own", "/own", "keep_credential = true\n")
        + H2C
        + "max_public_requests = 0\n[log]\naccess = true\n";
    let mut gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({})).secret;
    let bearer = format!("Bearer {secret}");
    let mut client = Client::connect(h2c(&gateway)).await;
    for (sent, target, passed) in [
        (None, "/files/a?q", None),
        (Some(bearer.as_str()), "/files/a?q", None),
        (Some("Bearer sk-service-unknown"), "/files/a?q", None),
        (Some("Basic of-the-backend"), "/files/a?q", Some("Basic of-the-backend")),
        (Some(bearer.as_str()), "/own", Some(bearer.as_str())),
    ] {
        let mut first = Request::get(target).header("Cookie", "a=b").header("X_Keygate_Key_Id", "forged");
        let mut second = http::Request::get(format!("http://gateway.test{target}")).body(()).unwrap();
        second.headers_mut().insert("cookie", "a=b".parse().unwrap());
        second.headers_mut().insert("x-keygate-key-id", "forged".parse().unwrap());
        if let Some(sent) = sent {
            first = first.header("Authorization", sent);
            second.headers_mut().insert("authorization", sent.parse().unwrap());
        }
        let check = || {
            let seen = origin.last();
            assert_eq!(seen.target, if target == "/own" { "/own" } else { "/static/a?q" });
            assert_eq!(seen.header("authorization"), passed, "{}", seen.head);
            assert_eq!(seen.header("cookie"), Some("a=b"));
            assert!(!seen.head.contains("forged") && !seen.head.to_lowercase().contains("keygate-key"));
            assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
        };
        let response = gateway.call(&first);
        assert_eq!((response.status, response.header("ratelimit")), (200, None), "{response:?}");
        check();
        let answer = client.call(second).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.headers.get("ratelimit")), (200, None));
        check();
    }
    let missing = gateway.call(&Request::get("/v1/app/x"));
    assert_eq!(missing.fault(), (401, 3007, "api_key_missing".into()), "other routes still need one");
    gateway.settled_accounts_of(10);
    let counted = "keygate_requests_total{outcome=\"served\",route=\"files\",status=\"2xx\"} 8";
    eventually("they are counted", || gateway.metrics().contains(counted).then_some(()));
    assert!(gateway.stop().success());
    assert!(gateway.stderr().contains("/files/a"), "the access log has it");
    let rows = exported(&gateway);
    assert_eq!(rows.len(), 10);
    for row in &rows {
        assert_eq!(row["api_key_id"], "00000000-0000-0000-0000-000000000000");
        assert_eq!((&row["workspace_id"], &row["charged"]), (&json!(""), &json!(false)));
        assert_eq!((&row["outcome"], &row["status_code"]), (&json!("served"), &json!(200)));
    }
    assert_eq!(rows.iter().filter(|row| row["route"] == "files").count(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_with_too_many_requests_waits_and_other_routes_do_not_notice() {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", "")
        + &public("health", "/health", "max_body_bytes = \"10B\"\n")
        + H2C
        + "max_public_requests = 1\n";
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let large = gateway.call(&Request::post("/health", "more than ten bytes"));
    assert_eq!(large.fault(), (413, 1000, "payload_too_large".into()));
    let refused =
        (0..100).map(|_| gateway.call(&Request::get("/health"))).find(|answer| answer.status != 200);
    let refused = refused.expect("more than one a second");
    assert_eq!(refused.fault(), (429, 3014, "rate_limit_exceeded".into()));
    assert_eq!(refused.data(), json!({"limit": "public_requests", "set_by": "gateway", "retry_after": 1}));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let mut statuses = Vec::new();
    for _ in 0..100 {
        let request = http::Request::get("http://gateway.test/health").body(()).unwrap();
        statuses.push(client.call(request).await.unwrap().status.as_u16());
        if statuses.last() == Some(&429) {
            break;
        }
    }
    assert_eq!(statuses.last(), Some(&429), "{statuses:?}");
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
}
