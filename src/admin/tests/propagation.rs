//! Which node has which change, and waiting for all of them.

use super::*;
use crate::store::{Keys as _, NodeReport, Nodes as _, Version};
use uuid::Uuid;

/// A node that reports the version `reached`.
async fn report(api: &Api, boot: u128, reached: Version) {
    let node =
        NodeReport { boot: Uuid::from_u128(boot), name: format!("n{boot}").into(), admin: None, reached };
    api.store.report(&node).await.expect("reported");
}

async fn version_of(api: &Api, id: &str) -> Version {
    let id = id.parse().expect("a key id");
    api.store.key_version(&workspace("w"), id).await.expect("read").expect("a key")
}

#[tokio::test]
async fn a_node_that_lags_is_named_until_it_has_caught_up() {
    let api = Api::start().await;
    let token = api.token("w", Role::Admin);
    let key = api.key(&token, "k").await;
    let uri = format!("/apikeys/{}/propagation", key["id"].as_str().expect("an id"));
    let version = version_of(&api, key["id"].as_str().expect("an id")).await;
    report(&api, 1, version).await;
    report(&api, 2, Version(version.0 - 1)).await;
    let data = api.call(&token, "GET", &uri, Value::Null).await.data();
    assert_eq!((&data["version"], &data["complete"]), (&json!(version.0), &json!(false)));
    let facts = |n: usize| (data["nodes"][n]["node"].clone(), data["nodes"][n]["applied"].clone());
    assert_eq!([facts(0), facts(1)], [(json!("n1"), json!(true)), (json!("n2"), json!(false))]);
    assert_eq!(data["nodes"][0]["live"], json!(true));
    report(&api, 2, version).await;
    assert_eq!(api.call(&token, "GET", &uri, Value::Null).await.data()["complete"], json!(true));
}

#[tokio::test]
async fn a_deleted_key_still_tells_and_a_foreign_one_does_not_exist() {
    let api = Api::start().await;
    let token = api.token("w", Role::Admin);
    let key = api.key(&token, "k").await;
    let uri = format!("/apikeys/{}", key["id"].as_str().expect("an id"));
    assert_eq!(api.call(&token, "DELETE", &uri, Value::Null).await.status, 200);
    let of_it = format!("{uri}/propagation");
    let version = version_of(&api, key["id"].as_str().expect("an id")).await;
    assert_eq!(api.call(&token, "GET", &of_it, Value::Null).await.data()["version"], json!(version.0));
    let other = api.token("other", Role::Admin);
    let reply = api.call(&other, "GET", &of_it, Value::Null).await;
    assert_eq!(reply.verdict(), (404, 3007, "api_key_not_found".into()));
}

#[tokio::test]
async fn a_call_that_waits_for_all_says_who_lags() {
    let api = Api::start_with(|deps| deps.write_timeout = Duration::from_secs(2)).await;
    let token = api.token("w", Role::Admin);
    let key = api.key(&token, "k").await;
    let uri = format!("/apikeys/{}?wait=all", key["id"].as_str().expect("an id"));
    report(&api, 1, Version(u64::MAX >> 1)).await;
    let data = api.call(&token, "PUT", &uri, json!({"description": "a"})).await.data();
    assert_eq!(data["propagation"]["complete"], json!(true), "{data}");
    assert_eq!(data["description"], json!("a"));
    report(&api, 2, Version(1)).await;
    let data = api.call(&token, "DELETE", &uri, Value::Null).await.data();
    let spread = &data["propagation"];
    assert_eq!((&spread["complete"], &spread["lagging"]), (&json!(false), &json!(["n2"])));
    assert_eq!(data["deleted"], json!(true));
}

#[tokio::test]
async fn a_call_that_waits_is_answered_when_the_last_node_has_it() {
    let api = Arc::new(Api::start().await);
    let token = api.token("w", Role::Admin);
    let key = api.key(&token, "k").await;
    report(&api, 1, Version(0)).await;
    let uri = format!("/apikeys/{}?wait=all", key["id"].as_str().expect("an id"));
    let before = api.store.version().await.expect("a number");
    let node = async {
        // Reports the change that the call waits for, once it exists.
        while api.store.version().await.expect("a number") == before {
            tokio::task::yield_now().await;
        }
        report(&api, 1, api.store.version().await.expect("a number")).await;
    };
    let (reply, ()) = tokio::join!(api.call(&token, "DELETE", &uri, Value::Null), node);
    assert_eq!(reply.data()["propagation"]["complete"], json!(true), "{}", reply.text);
}

#[tokio::test]
async fn waiting_for_anybody_else_is_refused() {
    let api = Api::start().await;
    let token = api.token("w", Role::Admin);
    let key = api.key(&token, "k").await;
    let uri = format!("/apikeys/{}?wait=some", key["id"].as_str().expect("an id"));
    assert_eq!(api.call(&token, "DELETE", &uri, Value::Null).await.status, 400);
}
