//! Models without a price on a route that refuses them, over both HTTP versions: before anything is charged or forwarded.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::support::{Gateway, Key, Origin, Request, route, upstream};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzEncoder;
use serde_json::{Value, json};
use std::io::Read as _;

const PRICE: &str = "[[prices]]\nmodel = \"m-*\"\ninput = 1.0\noutput = 2.0\n";

fn start() -> (Origin, Gateway, Key) {
    let origin = Origin::start();
    let config = [
        upstream("app", origin.address),
        route("refuses", "/{rest*}", "app", "meter = \"llm\"\nunpriced = \"refuse\""),
        PRICE.to_owned(),
        H2C.to_owned() + "end_user_body_bytes = \"4KiB\"\n",
    ];
    let gateway = Gateway::start(&config.concat());
    let key = gateway.create_key(json!({"quota_limit": 1000}));
    (origin, gateway, key)
}

/// Status, `error` and `data.model` over HTTP/1.1 and over HTTP/2.
async fn ask(
    gateway: &Gateway,
    key: &Key,
    target: &str,
    coding: &str,
    body: &[u8],
) -> [(u16, Value, Value); 2] {
    let told = |status, body: &[u8]| {
        let envelope: Value = serde_json::from_slice(body).unwrap_or_default();
        (status, envelope["error"].clone(), envelope["data"]["model"].clone())
    };
    let first = Request::post(target, body).bearer(&key.secret).header("Content-Encoding", coding);
    let first = gateway.call(&first);
    let mut client = Client::connect(h2c(gateway)).await;
    let mut second = request("POST", target, &key.secret);
    second.headers_mut().insert("content-encoding", coding.parse().unwrap());
    let (response, mut to) = client.begin(second, false).await;
    to.send_data(Bytes::copy_from_slice(body), true).unwrap();
    let second = read(response).await.unwrap();
    [told(first.status, &first.body), told(second.status.as_u16(), &second.body)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_price_is_refused_and_not_charged() {
    let (origin, gateway, key) = start();
    let mut gzip = Vec::new();
    GzEncoder::new(&br#"{"model":"m-1"}"#[..], Compression::fast()).read_to_end(&mut gzip).unwrap();
    let long = format!("{{\"model\":\"m-1\",\"x\":\"{}\"}}", "a".repeat(5_000));
    for (target, coding, body, refused) in [
        ("/v1/messages", "identity", br#"{"model":"m-1"}"#.as_slice(), None),
        ("/v1/messages", "gzip", &gzip, None),
        ("/model/m-2/converse", "identity", b"{}", None),
        ("/model/m-2/converse", "identity", long.as_bytes(), None),
        ("/v1/messages", "identity", br#"{"x":{"model":"m-1"},"model":"other"}"#, Some(json!("other"))),
        // Of two, the one that backends take.
        ("/v1/messages", "identity", br#"{"model":"m-1","model":"other"}"#, Some(json!("other"))),
        ("/v1/messages", "identity", b"{}", Some(Value::Null)),
        ("/v1/messages", "identity", b"no JSON", Some(Value::Null)),
        ("/v1/messages", "identity", long.as_bytes(), Some(Value::Null)),
        ("/v1/messages", "br", br#"{"model":"m-1"}"#, Some(Value::Null)),
    ] {
        origin.forget();
        for told in ask(&gateway, &key, target, coding, body).await {
            match &refused {
                None => assert_eq!(told.0, 200, "{target} {coding}: {told:?}"),
                Some(model) => {
                    assert_eq!(told, (403, json!("model_unpriced"), model.clone()), "{target} {coding}")
                }
            }
        }
        assert_eq!(origin.count(), if refused.is_none() { 2 } else { 0 });
        assert!(origin.requests().iter().all(|request| request.body == body), "unchanged");
    }
    // Eight were admitted, and this one.
    let left = gateway.call(&Request::get("/v1/models").bearer(&key.secret)).remaining("quota");
    assert_eq!(left, 1000 - 9);
    let unreadable = gateway.metrics();
    let unreadable = unreadable.lines().find(|line| line.contains("reason=\"request\"")).unwrap();
    assert!(!unreadable.ends_with(" 0"), "{unreadable}");
}
