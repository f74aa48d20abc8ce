//! Credentials for backends: kept in the store, shown never.

use super::*;
use crate::store::UpstreamCredentials as _;

const URI: &str = "/upstreams/app/credentials";

#[tokio::test]
async fn a_stored_credential_is_listed_without_its_secret_replaced_and_deleted() {
    let api = Api::start().await;
    let (own, platform) = (api.token("ws-a", Role::Admin), api.token("-", Role::Platform));
    assert_eq!(api.call(&own, "GET", "/apikeys", Value::Null).await.status, 200, "creates the workspace");
    let put = async |body: Value| api.call(&platform, "PUT", URI, body).await;
    let first = put(json!({"secret": "hush-1 hush"})).await;
    let data = first.data();
    let expected = json!({
        "id": data["id"], "upstream": "app", "workspace_id": null, "metadata": null, "header": "authorization",
        "scheme": "Bearer", "key_version": 7, "is_usable": true, "created_by": "user-1",
        "created_at": NOW.as_millis(), "updated_at": NOW.as_millis(),
    });
    assert_eq!((first.status.as_u16(), &data), (200, &expected), "{}", first.text);
    let body = json!({"secret": "hush-2", "workspace_id": "ws-a", "metadata": "tier=gold", "header": "X-API-Key", "scheme": null});
    let second = put(body).await.data();
    let shown = ["workspace_id", "metadata", "header", "scheme"].map(|field| &second[field]);
    assert_eq!(shown, [&json!("ws-a"), &json!("tier=gold"), &json!("x-api-key"), &Value::Null]);

    api.clock.advance(Duration::from_secs(1));
    let again = put(json!({"secret": "hush-3", "scheme": "Token"})).await.data();
    let kept = ["id", "created_at"].map(|field| &again[field] == &data[field]);
    assert_eq!((kept, &again["scheme"]), ([true; 2], &json!("Token")), "{again}");
    assert_ne!(again["updated_at"], data["updated_at"]);
    let listed = api.call(&platform, "GET", URI, Value::Null).await;
    assert_eq!(listed.data()["items"], json!([again, second]));

    // The store has each secret encrypted, under the key of its version only.
    let stored = api.store.credentials(Some("app")).await.expect("a store");
    let keys = encryption_keys();
    let opened: Vec<_> =
        stored.iter().map(|record| keys.open(&record.credential).expect("opens").to_string()).collect();
    assert_eq!(opened, ["hush-3", "hush-2"]);
    let trail = api.call(&platform, "GET", "/audit", Value::Null).await;
    let actions: Vec<_> =
        trail.data()["items"].as_array().expect("lines").iter().map(|line| line["action"].clone()).collect();
    assert_eq!(
        actions[..3],
        ["update", "create", "create"].map(|what| json!(format!("upstream_credential.{what}")))
    );
    assert_eq!(
        trail.data()["items"][1]["changes"],
        json!({
            "workspace_id": "ws-a", "metadata": "tier=gold", "header": "x-api-key", "scheme": null, "key_version": 7,
        })
    );
    let seen = format!("{}{}{}{stored:?}", first.text, listed.text, trail.text);
    assert!(!seen.contains("hush"), "{seen}");

    let uri = format!("{URI}/{}", data["id"].as_str().expect("an id"));
    assert_eq!(
        api.call(&platform, "DELETE", &uri.replace("/app/", "/other/"), Value::Null).await.status,
        404
    );
    let gone = api.call(&platform, "DELETE", &uri, Value::Null).await;
    assert_eq!((gone.status.as_u16(), &gone.data()["id"]), (200, &data["id"]), "{}", gone.text);
    assert_eq!(api.call(&platform, "DELETE", &uri, Value::Null).await.status, 404);
    assert_eq!(api.call(&platform, "GET", URI, Value::Null).await.data()["items"], json!([second]));
    // A deleted workspace takes its credentials along.
    assert_eq!(api.call(&platform, "DELETE", "/workspaces/ws-a", Value::Null).await.status, 200);
    assert_eq!(api.call(&platform, "GET", URI, Value::Null).await.data()["items"], json!([]));
}

#[tokio::test]
async fn mistakes_in_a_credential_are_named_and_nothing_of_it_is_repeated() {
    let api = Api::start().await;
    let platform = api.token("-", Role::Platform);
    let wrong = json!({
        "secret": "hush\nhush", "workspace_id": "a b", "metadata": "gold", "header": "host", "scheme": "a b", "sercet": 1,
    });
    let reply = api.call(&platform, "PUT", URI, wrong).await;
    let data = reply.data();
    let fields: Vec<_> =
        data["errors"].as_array().expect("errors").iter().map(|e| e["field"].as_str()).collect();
    let expected = ["workspace_id", "metadata", "header", "scheme", "secret", "sercet"].map(Some);
    assert_eq!((reply.status.as_u16(), fields.as_slice()), (400, &expected[..]), "{}", reply.text);
    assert!(!reply.text.contains("hush"), "{}", reply.text);
    for (body, field) in [
        (json!({}), "secret"),
        (json!({"secret": " s"}), "secret"),
        (json!({"secret": "s", "header": "x_keygate_key_id"}), "header"),
        (json!({"secret": "s", "workspace_id": "none"}), "workspace_id"),
    ] {
        let reply = api.call(&platform, "PUT", URI, body.clone()).await;
        assert_eq!(reply.data()["errors"][0]["field"], json!(field), "{body}: {}", reply.text);
    }
    for (method, uri) in [("GET", "/upstreams/none/credentials"), ("PUT", "/upstreams/none/credentials")] {
        let body = if method == "PUT" { json!({"secret": "s"}) } else { Value::Null };
        assert_eq!(api.call(&platform, method, uri, body).await.status, 404, "{method}");
    }
}

#[tokio::test]
async fn a_node_without_a_key_stores_no_credential_and_says_what_is_missing() {
    let api = Api::start_with(|deps| deps.backends = Arc::new(OneUpstream(None))).await;
    let platform = api.token("-", Role::Platform);
    let reply = api.call(&platform, "PUT", URI, json!({"secret": "hush"})).await;
    assert_eq!(reply.status, 409, "{}", reply.text);
    assert!(
        reply.text.contains("secrets.encryption_key_file") && !reply.text.contains("hush"),
        "{}",
        reply.text
    );
    assert!(api.store.credentials(None).await.expect("a store").is_empty());
}
