//! The envelope of every fault in both languages, and of everything that fails before a handler.

use super::super::context::Admin;
use super::super::envelope::ApiResponse;
use super::super::error::AdminError;
use super::super::router::finish;
use super::*;
use crate::model::fault::Fault;
use crate::model::id::PlanId;
use crate::store::{Change, Feed, StoreError, Version};
use axum::response::IntoResponse;
use axum::routing::get;
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// A router with one URL per fault, one that panics, and one that succeeds.
async fn faults() -> (Router, tempfile::TempDir) {
    let (deps, _, _, folder) = dependencies().await;
    let mut router = Router::new()
        .route("/panic", get(async || -> ApiResponse<()> { panic!("the handler broke") }))
        .route("/fine", get(async || ApiResponse::ok(json!({"a": 1}))));
    for fault in Fault::ALL {
        router = router.route(&format!("/{}", fault.name()), get(async || AdminError::of(*fault)));
    }
    (finish(router, Arc::new(Admin::new(deps, String::new()))), folder)
}

async fn ask(router: &Router, uri: &str, language: &str) -> ApiReply {
    let request = Request::builder().uri(uri).header("accept-language", language).body(Body::empty());
    send(router, request.expect("a request")).await
}

#[tokio::test]
async fn every_fault_in_both_languages() {
    let (router, _folder) = faults().await;
    let mut seen = BTreeMap::new();
    for fault in Fault::ALL {
        let uri = format!("/{}", fault.name());
        let (en, zh) = (ask(&router, &uri, "en").await, ask(&router, &uri, "zh-CN,en;q=0.5").await);
        assert_eq!((en.status.as_u16(), zh.status.as_u16()), (fault.status(), fault.status()));
        assert_ne!(en.json()["msg"], zh.json()["msg"]);
        seen.insert(
            format!("{} {}", fault.status(), fault.name()),
            json!({"en": en.json(), "zh": zh.json()}),
        );
    }
    insta::assert_json_snapshot!(seen);
}

#[tokio::test]
async fn a_successful_call_is_enveloped_with_code_0_and_a_request_id() {
    let (router, _folder) = faults().await;
    let reply = ask(&router, "/fine", "zh").await;
    assert_eq!(reply.text, r#"{"code":0,"msg":"OK","data":{"a":1},"error":"","time":1767225600000}"#);
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("cache-control"), "no-store");
    let id: uuid::Uuid = reply.header("x-request-id").parse().expect("a UUID");
    assert_eq!(id.get_version_num(), 7);
    assert_ne!(ask(&router, "/fine", "").await.header("x-request-id"), reply.header("x-request-id"));
}

#[tokio::test]
async fn a_panic_is_an_internal_error_that_says_nothing() {
    let (router, _folder) = faults().await;
    let reply = ask(&router, "/panic", "").await;
    assert_eq!(reply.verdict(), (500, 10_001, "internal_error".into()));
    assert!(!reply.text.contains("broke"), "{}", reply.text);
}

#[tokio::test]
async fn errors_before_a_handler_are_enveloped() {
    let api = Api::start().await;
    let token = api.token("ws-a", Role::Admin);
    let post = |kind: &'static str, body: &str| {
        let mut request = request(&token, "POST", "/apikeys", &Value::Null);
        request.headers_mut().insert("content-type", kind.parse().expect("a header"));
        *request.body_mut() = Body::from(body.to_owned());
        request
    };
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(64 * 1_024));
    let rows = [
        (request("", "GET", "/nowhere", &Value::Null), 404, "not_found", ""),
        (request(&token, "GET", "/apikeys/a/b/c", &Value::Null), 404, "not_found", ""),
        (request(&token, "PATCH", "/apikeys", &Value::Null), 405, "method_not_allowed", ""),
        (request("", "POST", "/healthz", &Value::Null), 405, "method_not_allowed", ""),
        (post("text/plain", "{}"), 415, "unsupported_media_type", ""),
        (post("application/json", &long), 413, "payload_too_large", ""),
        (post("application/json", ""), 400, "validation_failed", "body"),
        (post("application/json", "{\"a\":"), 400, "validation_failed", "body"),
        (post("application/json", "[1]"), 400, "validation_failed", "body"),
        (post("application/json", r#"{"name":"a","name":"b"}"#), 400, "validation_failed", "name"),
        (
            post("application/json", r#"{"limits":[{"max":1,"m\u0061x":2}]}"#),
            400,
            "validation_failed",
            "limits[0].max",
        ),
        (post("application/merge-patch+json; charset=utf-8", "{}"), 400, "validation_failed", "name"),
        (request(&token, "GET", "/apikeys?x=1", &Value::Null), 400, "invalid_parameter", "x"),
        (request(&token, "GET", "/apikeys?page=1&page=2", &Value::Null), 400, "invalid_parameter", "page"),
    ];
    for (request, status, name, field) in rows {
        let what = format!("{} {}", request.method(), request.uri());
        let reply = api.send(request).await;
        let json = reply.json();
        assert_eq!(
            (reply.status.as_u16(), json["error"].as_str()),
            (status, Some(name)),
            "{what}: {}",
            reply.text
        );
        assert_eq!(json["data"]["errors"][0]["field"].as_str().unwrap_or_default(), field, "{what}");
        assert_eq!(reply.header("cache-control"), "no-store", "{what}");
        assert!(!reply.header("x-request-id").is_empty(), "{what}");
    }
    let allowed = api.call(&token, "PATCH", "/apikeys", Value::Null).await;
    let mut methods: Vec<&str> = allowed.header("allow").split(',').collect();
    methods.sort_unstable();
    assert_eq!(methods, ["GET", "HEAD", "POST"]);
}

#[tokio::test]
async fn a_body_is_bounded_also_when_it_does_not_say_how_long_it_is() {
    let api = Api::start_with(|deps| deps.max_body_bytes = 16).await;
    let mut request =
        request(&api.token("ws-a", Role::Admin), "POST", "/apikeys", &json!({"name": "longer than it"}));
    assert!(request.headers().get("content-length").is_none());
    assert_eq!(api.send(request).await.verdict().2, "payload_too_large");
    request = super::request(&api.token("ws-a", Role::Admin), "POST", "/apikeys", &json!({}));
    assert_eq!(api.send(request).await.verdict().2, "validation_failed");
}

#[tokio::test]
async fn head_answers_as_get_without_the_body() {
    let api = Api::start().await;
    let token = api.token("ws-a", Role::Viewer);
    let (get, head) = (
        api.call(&token, "GET", "/apikeys", Value::Null).await,
        api.call(&token, "HEAD", "/apikeys", Value::Null).await,
    );
    assert_eq!((head.status, head.text.as_str()), (get.status, ""));
    assert_eq!(head.header("content-length"), get.text.len().to_string());
}

#[tokio::test]
async fn a_store_that_is_gone_or_slow_is_service_unavailable() {
    let gone = Api::start().await;
    gone.store.close().await;
    let slow = Api::start_with(|deps| deps.write_timeout = Duration::from_millis(20)).await;
    let _held = hold_readers(&slow).await;
    for api in [gone, slow] {
        let token = api.token("ws-a", Role::Admin);
        for (method, uri) in [("GET", "/apikeys"), ("POST", "/apikeys"), ("GET", "/endusers")] {
            let reply = api.call(&token, method, uri, Value::Null).await;
            assert_eq!(reply.verdict(), (503, 10_003, "service_unavailable".into()), "{uri}");
            assert_eq!(reply.header("retry-after"), "1");
            assert_eq!(reply.data(), json!({}));
        }
        assert_eq!(api.call("", "GET", "/healthz", Value::Null).await.status, 200);
    }
}

/// Keeps every reader of the store busy with a feed that nobody reads, as long as the result lives.
async fn hold_readers(api: &Api) -> Vec<mpsc::Receiver<Vec<Change>>> {
    let mut held = Vec::new();
    for _ in 0..SqliteOptions::default().readers {
        let (full, receiver) = mpsc::channel(1);
        full.try_send(Vec::new()).expect("an empty channel");
        let store = Arc::clone(&api.store);
        tokio::spawn(async move { store.changes(Version::default(), full).await });
        held.push(receiver);
    }
    // Lets each of them enter the readers' queue before the next call.
    tokio::task::yield_now().await;
    held
}

#[test]
fn a_store_error_becomes_its_fault_and_reveals_nothing() {
    let plan: PlanId = "basic".parse().expect("a plan id");
    let rows = [
        (StoreError::NotFound("key"), Fault::KeyNotFound),
        (StoreError::DuplicateName, Fault::KeyDuplicateName),
        (StoreError::AlreadyExists("plan"), Fault::Conflict),
        (StoreError::PlanInUse { workspaces: 3 }, Fault::Conflict),
        (StoreError::RateAbovePlan { asked: 9, limit: 5, plan }, Fault::BadRequest),
        (StoreError::Invalid { field: "scopes", why: "no".into() }, Fault::ValidationFailed),
        (StoreError::Unavailable("/var/secret".into()), Fault::ServiceUnavailable),
        (StoreError::Corrupt("/var/secret".into()), Fault::Internal),
        (StoreError::WrongPepper("/var/secret".into()), Fault::Internal),
        (StoreError::Refused("/var/secret".into()), Fault::Internal),
        (StoreError::Cancelled, Fault::Internal),
    ];
    for (error, fault) in rows {
        let response = AdminError::of_store(error, Fault::KeyNotFound).into_response();
        let failure = response.extensions().get::<AdminError>().expect("the error");
        assert_eq!(failure.fault(), fault);
        assert!(!format!("{failure:?}").contains("secret"), "{failure:?}");
    }
}
