//! What a backend is told about the key and its end user, over either HTTP; no client can tell it instead.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Origin, Request, route, upstream};
use serde_json::json;

const FIELDS: [&str; 5] = [
    "x-keygate-key-created-by",
    "x-keygate-end-user-other-id",
    "x-keygate-metadata-tier",
    "x-keygate-metadata-max-tokens",
    "x-keygate-metadata-beta",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_is_told_who_made_the_key_its_end_user_and_the_named_metadata() {
    let origin = Origin::start();
    let named = "forward_metadata = [\"tier\", \"max_tokens\", \"beta\", \"list\", \"absent\"]\n";
    let config = upstream("app", origin.address)
        + &route("told", "/told", "app", named)
        + &route("plain", "/plain", "app", "")
        + H2C;
    let gateway = Gateway::start(&config);
    let metadata =
        json!({"tier": "gold 1% é", "max_tokens": 5, "beta": true, "list": [1], "other": "kept here"});
    let key = gateway.create_key(json!({"rate_limit": 1000, "metadata": metadata}));
    let created_by = gateway.managed("GET", &format!("/apikeys/{}", key.id), None)["created_by"].clone();
    let created_by = created_by.as_str().unwrap();
    let mut client = Client::connect(h2c(&gateway)).await;
    let tier = "gold%201%25%20%C3%A9";
    let rows = [
        ("/told", Some("Ann"), [Some(created_by), Some("Ann"), Some(tier), Some("5"), Some("true")]),
        ("/plain", None, [Some(created_by), None, None, None, None]),
    ];
    let mut ask = async |target: &str, end_user: Option<&str>| {
        let mut first = Request::get(target).bearer(&key.secret);
        let mut second = request("GET", target, &key.secret);
        for name in FIELDS.iter().flat_map(|name| [(*name).to_owned(), name.replace('-', "_")]) {
            first = first.header(&name, "forged");
            second
                .headers_mut()
                .append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), "forged".parse().unwrap());
        }
        if let Some(end_user) = end_user {
            first = first.header("X-End-User-Id", end_user);
            second.headers_mut().insert("x-end-user-id", end_user.parse().unwrap());
        }
        let before = origin.count();
        assert_eq!(gateway.call(&first).status, 200);
        assert_eq!(client.call(second).await.unwrap().status, 200);
        origin.requests().split_off(before)
    };
    for (target, end_user, told) in rows {
        let seen = ask(target, end_user).await;
        assert_eq!(seen.len(), 2);
        for seen in seen {
            assert_eq!(FIELDS.map(|name| seen.header(name)), told, "{target}: {}", seen.head);
            assert!(!seen.head.contains("forged") && !seen.head.contains("kept here"), "{}", seen.head);
            assert!(
                seen.header("x-keygate-metadata-list").is_none()
                    && seen.header("x-keygate-metadata-absent").is_none()
            );
        }
    }
    gateway.update_key(&key, &json!({"metadata": {"tier": "silver"}}));
    for seen in ask("/told", None).await {
        assert_eq!(
            FIELDS.map(|name| seen.header(name)),
            [Some(created_by), None, Some("silver"), None, None]
        );
    }
}
