//! End users over either HTTP: several sources in order, and keys that are bound to one.

use crate::http2::{Client, H2C, h2c};
use crate::support::{Gateway, Origin, Request, route, upstream};
use bytes::Bytes;
use serde_json::{Value, json};

fn start(origin: &Origin) -> Gateway {
    let sources = |list: &str| format!("end_user = {list}\n");
    let config = upstream("app", origin.address)
        + &route("query", "/query", "app", &sources("\"query:user\""))
        + &route("several", "/several", "app", &sources("[\"header\", \"query:user\", \"body:user\"]"))
        + &route("body", "/body", "app", &sources("[\"body:user\", \"query:user\"]"))
        + &route("none", "/none", "app", &sources("\"none\""))
        + H2C;
    Gateway::start(&config)
}

/// What a request says about its end user.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    target: &'static str,
    header: Option<&'static str>,
    body: Option<&'static str>,
}

/// The status, `error` and `data.reason` over HTTP/1.1 and over HTTP/2.
async fn ask(gateway: &Gateway, client: &mut Client, secret: &str, said: Said) -> [(u16, Value, Value); 2] {
    let Said { target, header, body } = said;
    let mut first = Request::new(if body.is_some() { "POST" } else { "GET" }, target).bearer(secret);
    let mut second = crate::http2::request(first.method(), target, secret);
    if let Some(name) = header {
        first = first.header("X-End-User-Id", name);
        second.headers_mut().insert("x-end-user-id", name.parse().unwrap());
    }
    if let Some(body) = body {
        first = first.body(body);
    }
    let read = |status, bytes: &[u8]| {
        let said: Value = serde_json::from_slice(bytes).unwrap();
        (status, said["error"].clone(), said["data"]["reason"].clone())
    };
    let response = gateway.call(&first);
    let (answer, mut sending) = client.begin(second, body.is_none()).await;
    if let Some(body) = body {
        sending.send_data(Bytes::from(body), true).unwrap();
    }
    let answer = crate::http2::read(answer).await.unwrap();
    [read(response.status, &response.body), read(answer.status.as_u16(), &answer.body)]
}

/// The end users by the customer's ids.
fn existing(gateway: &Gateway) -> Vec<(String, String)> {
    let data = gateway.managed("GET", "/endusers?pagesize=100", None);
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    data["items"].as_array().unwrap().iter().map(|i| (text(i, "other_id"), text(i, "id"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_source_that_names_an_end_user_counts() {
    let origin = Origin::start();
    let gateway = start(&origin);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let said = |target, header, body| Said { target, header, body };
    for (said, expected) in [
        (said("/query?user=q%201&x=2", None, None), Some("q 1")),
        (said("/query?users=q", Some("h"), None), None),
        (said("/several?user=q", Some("h"), Some("{\"user\":\"b\"}")), Some("h")),
        (said("/several?user=q", None, Some("{\"user\":\"b\"}")), Some("q")),
        (said("/several", None, Some("{\"user\":\"b\"}")), Some("b")),
        (said("/several", None, Some("{}")), None),
        (said("/several", None, None), None),
        (said("/body?user=q", None, Some("{\"user\":\"b\"}")), Some("b")),
        (said("/body?user=q", None, Some("{}")), Some("q")),
        (said("/body?user=q", None, None), Some("q")),
    ] {
        let before = origin.count();
        for (status, ..) in ask(&gateway, &mut client, &secret, said).await {
            assert_eq!(status, 200, "{said:?}");
        }
        let known = existing(&gateway);
        let id = expected.map(|name| known.iter().find(|(other, _)| other == name).unwrap().1.as_str());
        for seen in &origin.requests()[before..] {
            assert_eq!(seen.header("x-keygate-end-user-id"), id, "{said:?}");
        }
    }
    assert_eq!(existing(&gateway).len(), 4);
    for target in ["/query?user=", "/query?user=a&user=b", "/query?user=%FF", "/query?user=a&us%65r=a"] {
        for refused in ask(&gateway, &mut client, &secret, said(target, None, None)).await {
            assert_eq!(refused, (400, json!("bad_request"), json!("end_user_query")), "{target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_bound_to_an_end_user_is_that_one_and_no_other() {
    let origin = Origin::start();
    let gateway = start(&origin);
    let key = gateway.create_key(json!({"rate_limit": 1000, "end_user": "ann", "quota_limit": 100}));
    let shown = gateway.managed("GET", &format!("/apikeys/{}", key.id), None);
    assert_eq!(shown["end_user"], "ann");
    let mut client = Client::connect(h2c(&gateway)).await;
    let said = |target, header, body| Said { target, header, body };
    for said in [
        said("/several", Some("bob"), None),
        said("/several?user=bob", None, None),
        said("/several", None, Some("{\"user\":\"bob\"}")),
    ] {
        for refused in ask(&gateway, &mut client, &key.secret, said).await {
            assert_eq!(refused, (403, json!("end_user_not_allowed"), Value::Null), "{said:?}");
        }
    }
    assert_eq!((origin.count(), existing(&gateway).len()), (0, 0), "it reached nobody and counts as nobody");
    for said in [
        said("/none", None, None),
        said("/query", None, None),
        said("/several", Some("ann"), None),
        said("/several", None, Some("{\"user\":\"ann\"}")),
        said("/several", None, Some("{}")),
    ] {
        for (status, ..) in ask(&gateway, &mut client, &key.secret, said).await {
            assert_eq!(status, 200, "{said:?}");
        }
    }
    let known = existing(&gateway);
    let [(name, id)] = &known[..] else { panic!("there is one: {known:?}") };
    assert_eq!(name, "ann");
    assert!(origin.requests().iter().all(|seen| seen.header("x-keygate-end-user-id") == Some(id)));
    let left = gateway.get("/none", &key.secret).remaining("quota");
    assert_eq!(left, 100 - 10 - 1, "what was refused cost nothing");
    let change = gateway.admin("PATCH", &format!("/apikeys/{}", key.id), Some(&json!({"end_user": "bob"})));
    assert_eq!(change.fault().2, "validation_failed");
    let same = gateway.admin("PUT", &format!("/apikeys/{}", key.id), Some(&shown));
    assert_eq!(
        (same.status, &same.data()["end_user"]),
        (200, &json!("ann")),
        "an unchanged one may be sent back"
    );
}
