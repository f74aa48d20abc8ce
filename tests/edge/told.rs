//! What a backend is told about the key and its end user, over either HTTP; no client can tell it instead.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Origin, Request, eventually, route, upstream, write_config};
use serde_json::json;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

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

/// Replaces the file `name` in `folder`, readable by its owner only.
fn write_secret(folder: &Path, name: &str, text: &str) {
    let new = folder.join("new");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    std::fs::rename(new, folder.join(name)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_gets_the_credential_of_the_keys_workspace_or_metadata() {
    let origin = Origin::start();
    let credentials = "[[upstreams.credentials]]\nworkspace = \"acme\"\nsecret_file = \"acme.secret\"\n\
         [[upstreams.credentials]]\nmetadata = \"tier=gold\"\nheader = \"x-backend-key\"\nscheme = \"\"\n\
         secret_file = \"gold.secret\"\n\
         [[upstreams.credentials]]\nsecret_env = \"KEYGATE_CREDENTIAL_ALL\"\n";
    let config = upstream("app", origin.address)
        + credentials
        + &route("app", "/v1/app", "app", "")
        + "[[routes]]\npath = \"/public\"\nupstream = \"app\"\npublic = true\n"
        + H2C;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_secret(folder.path(), "acme.secret", "secret-of-acme\n");
    write_secret(folder.path(), "gold.secret", "secret-of-gold");
    write_config(folder.path(), &config);
    let environment = [("KEYGATE_CREDENTIAL_ALL", "secret-of-all")];
    let mut gateway = Gateway::run_with(Arc::clone(&folder), &environment).unwrap();
    let acme = gateway.create_key_as(&gateway.mint("admin", "acme"), json!({"rate_limit": 1000}));
    let gold = gateway.create_key(json!({"rate_limit": 1000, "metadata": {"tier": "gold"}}));
    let other = gateway.create_key(json!({"rate_limit": 1000, "metadata": {"tier": "silver"}}));
    let mut client = Client::connect(h2c(&gateway)).await;
    for (target, secret, told) in [
        ("/v1/app", acme.secret.as_str(), [Some("Bearer secret-of-acme"), None]),
        ("/v1/app", &gold.secret, [None, Some("secret-of-gold")]),
        ("/v1/app", &other.secret, [Some("Bearer secret-of-all"), None]),
        ("/public", "", [Some("Bearer secret-of-all"), None]),
    ] {
        let mut first =
            Request::get(target).header("X-API-Key", secret).header("Authorization", "Basic forged");
        first = first.header("X-Backend-Key", "forged");
        let mut second = request("GET", target, "");
        for (name, value) in
            [("x-api-key", secret), ("authorization", "Basic forged"), ("x-backend-key", "forged")]
        {
            second.headers_mut().insert(name, value.parse().unwrap());
        }
        let before = origin.count();
        assert_eq!(gateway.call(&first).status, 200, "{target}");
        assert_eq!(client.call(second).await.unwrap().status, 200, "{target}");
        for seen in origin.requests().split_off(before) {
            assert_eq!(
                ["authorization", "x-backend-key"].map(|name| seen.header(name)),
                told,
                "{}",
                seen.head
            );
            assert_eq!(seen.times("authorization") + seen.times("x-backend-key"), 1, "{}", seen.head);
        }
    }
    write_secret(folder.path(), "acme.secret", "another-secret");
    eventually("the changed file is in force", || {
        assert_eq!(gateway.call(&Request::get("/v1/app").header("X-API-Key", &acme.secret)).status, 200);
        (origin.last().header("authorization") == Some("Bearer another-secret")).then_some(())
    });
    let metrics = gateway.metrics();
    assert!(gateway.stop().success());
    assert!(!gateway.stderr().contains("secret-of") && !metrics.contains("secret-of"));
}

#[test]
fn a_credential_that_cannot_be_read_is_told_with_its_place() {
    let credentials = "[[upstreams.credentials]]\nsecret_file = \"absent\"\n\
         [[upstreams.credentials]]\nsecret_env = \"KEYGATE_CREDENTIAL_ABSENT\"\n";
    let config =
        upstream("app", "127.0.0.1:1".parse().unwrap()) + credentials + &route("app", "/v1/app", "app", "");
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_config(folder.path(), &config);
    let Err(told) = Gateway::run_with(folder, &[]) else { panic!("it must not start") };
    assert!(told.contains("upstreams[0].credentials[0]: absent: "), "{told}");
    let variable = "upstreams[0].credentials[1]: the variable KEYGATE_CREDENTIAL_ABSENT is not set";
    assert!(told.contains(variable), "{told}");
}
