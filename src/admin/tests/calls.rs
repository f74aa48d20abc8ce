//! The effects of calls, from creating a key to reading its usage.

use super::*;
use crate::model::digest::Digest;
use crate::policy::keys::secret::{SecretShape, shape};
use crate::store::EndUsers;

pub(super) async fn api_and_token() -> (Api, String) {
    let api = Api::start().await;
    let token = api.token("ws-a", Role::Admin);
    (api, token)
}

#[tokio::test]
async fn a_created_key_shows_its_secret_once() {
    let (api, token) = api_and_token().await;
    let body = json!({"name": "n", "type": "rag", "resource_id": "kb-1", "rate_limit": 7, "allowed_ips": ["192.0.2.7", "10.0.0.0/8"],
        "limits": [{"count": "requests", "per": "hour", "max": 9}], "expires_at": NOW.as_secs() + 60, "metadata": {"a": [1]}});
    let reply = api.call(&token, "POST", "/apikeys", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let mut made = reply.data();
    let secret = made["api_key"].as_str().expect("a secret").to_owned();
    assert_eq!(shape(secret.as_bytes(), "sk"), SecretShape::Ours);
    made.as_object_mut().expect("an object").remove("api_key");
    let expected = json!({
        "id": made["id"], "name": "n", "description": "", "hint": made["hint"], "type": "rag", "scopes": ["rag"],
        "resource_id": "kb-1", "workspace_id": "ws-a", "rate_limit": 7, "rate_burst": null,
        "daily_request_limit": 100_000, "quota_limit": null, "quota_used": 0, "concurrency_limit": null,
        "limits": [{"count": "requests", "per": "hour", "max": 9}], "end_user": null, "external_id": null, "allowed_ips": ["192.0.2.7", "10.0.0.0/8"],
        "metadata": {"a": [1]}, "is_active": true, "is_expired": false, "expires_at": NOW.as_millis() + 60_000,
        "last_used_at": null, "usage_count": 0, "created_by": "user-1", "created_at": NOW.as_millis(),
        "updated_at": NOW.as_millis()
    });
    assert_eq!(made, expected);

    let uri = format!("/apikeys/{}", made["id"].as_str().expect("an id"));
    let read = api.call(&token, "GET", &uri, Value::Null).await;
    assert_eq!(read.data(), expected);
    for uri in [uri.as_str(), "/apikeys", "/audit"] {
        assert!(!api.call(&token, "GET", uri, Value::Null).await.text.contains(&secret), "{uri}");
    }
    api.clock.advance(Duration::from_mins(1));
    assert_eq!(api.call(&token, "GET", &uri, Value::Null).await.data()["is_expired"], true);
}

#[tokio::test]
async fn names_are_unique_on_a_resource_until_the_key_is_deleted() {
    let (api, token) = api_and_token().await;
    let first = api.key(&token, "n").await;
    let again = json!({"name": "n", "type": "app", "resource_id": "app-1"});
    let refused = api.call(&token, "POST", "/apikeys", again.clone()).await;
    assert_eq!(refused.verdict(), (409, 3008, "api_key_duplicate_name".into()));
    let uri = format!("/apikeys/{}", first["id"].as_str().expect("an id"));
    let gone = api.call(&token, "DELETE", &uri, Value::Null).await;
    assert_eq!(gone.data(), json!({"id": first["id"], "deleted": true}));
    assert_eq!(api.call(&token, "POST", "/apikeys", again).await.status, 200);
    for method in ["GET", "DELETE"] {
        assert_eq!(api.call(&token, method, &uri, Value::Null).await.verdict().2, "api_key_not_found");
    }
    assert_eq!(
        api.call(&token, "GET", &format!("{uri}/stats"), Value::Null).await.status,
        200,
        "statistics stay"
    );
}

#[tokio::test]
async fn a_rate_above_the_plan_is_an_error_that_names_it() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let uri = format!("/apikeys/{}", key["id"].as_str().expect("an id"));
    let create = json!({"name": "m", "type": "service", "scopes": ["app"], "rate_limit": 101});
    for (method, uri, body) in [("POST", "/apikeys", create), ("PUT", &*uri, json!({"rate_limit": 101}))] {
        let mut request = request(&token, method, uri, &body);
        let reply = api.send(request).await;
        assert_eq!(reply.verdict(), (400, 1_000, "bad_request".into()));
        let message = "rate_limit 101 is above the 100 requests per second of plan default";
        assert_eq!(reply.json()["msg"], message);
        assert_eq!(reply.data()["plan_limit"], 100);
        request = super::request(&token, method, uri, &body);
        request.headers_mut().insert("accept-language", "zh".parse().expect("a header"));
        let chinese = api.send(request).await.json()["msg"].as_str().expect("text").to_owned();
        assert!(chinese.contains("套餐 default") && chinese.contains("100"), "{chinese}");
    }
}

#[tokio::test]
async fn a_change_touches_what_it_names() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let uri = format!("/apikeys/{}", key["id"].as_str().expect("an id"));
    api.clock.advance(Duration::from_secs(1));
    let changes = json!({"name": "m", "quota_limit": 5, "is_active": false, "scopes": ["app", "memory"]});
    let changed = api.call(&token, "PUT", &uri, changes).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let mut expected = key.clone();
    expected.as_object_mut().expect("an object").remove("api_key");
    for (field, value) in [
        ("name", json!("m")),
        ("quota_limit", json!(5)),
        ("is_active", json!(false)),
        ("scopes", json!(["app", "memory"])),
        ("updated_at", json!(NOW.as_millis() + 1_000)),
    ] {
        expected[field] = value;
    }
    assert_eq!(changed.data(), expected);
    let cleared = api.call(&token, "PUT", &uri, json!({"quota_limit": null})).await.data();
    assert_eq!(cleared["quota_limit"], Value::Null);
    let same = api.call(&token, "PUT", &uri, json!({})).await.data();
    assert_eq!(same, cleared);
    let refused = api.call(&token, "PUT", &uri, json!({"scopes": ["rag"]})).await;
    assert_eq!(refused.verdict(), (400, 1_001, "validation_failed".into()));
    assert_eq!(refused.data()["errors"][0]["field"], "scopes");
}

#[tokio::test]
async fn a_key_as_shown_is_a_valid_update() {
    let (api, token) = api_and_token().await;
    let body = json!({"name": "n", "type": "app", "resource_id": "app-1", "expires_at": NOW.as_secs() + 60});
    let id = api.call(&token, "POST", "/apikeys", body).await.data()["id"].clone();
    let uri = format!("/apikeys/{}", id.as_str().expect("an id"));
    // It has expired by then, and may stay so.
    api.clock.advance(Duration::from_mins(2));
    let shown = api.call(&token, "GET", &uri, Value::Null).await.data();
    for method in ["PUT", "PATCH"] {
        let mut edited = shown.clone();
        (edited["description"], edited["usage_count"]) = (json!(method), json!(17));
        let answer = api.call(&token, method, &uri, edited).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let mut expected = shown.clone();
        (expected["description"], expected["updated_at"]) = (json!(method), json!(NOW.as_millis() + 120_000));
        assert_eq!(answer.data(), expected);
    }
    for (field, value) in [
        ("id", json!("01890000-0000-7000-8000-000000000000")),
        ("type", json!("rag")),
        ("resource_id", json!("app-2")),
        ("workspace_id", json!("ws-b")),
        ("hint", json!("sk-…")),
        ("created_by", json!("somebody")),
        ("created_at", json!(1)),
    ] {
        let mut edited = shown.clone();
        edited[field] = value;
        let refused = api.call(&token, "PUT", &uri, edited).await;
        assert_eq!(refused.verdict(), (400, 1_001, "validation_failed".into()), "{field}");
        let errors = json!([{"field": field, "message": "cannot be changed"}]);
        assert_eq!(refused.data()["errors"], errors);
    }
}

#[tokio::test]
async fn regenerating_keeps_the_key_and_changes_the_secret() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let uri = format!("/apikeys/{}/regenerate", key["id"].as_str().expect("an id"));
    let mut secrets = vec![key["api_key"].clone()];
    for body in [Value::Null, json!({}), json!({"grace_period_seconds": 60})] {
        let reply = api.call(&token, "POST", &uri, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let renewed = reply.data();
        assert_eq!((&renewed["id"], &renewed["name"]), (&key["id"], &key["name"]));
        assert!(!secrets.contains(&renewed["api_key"]));
        secrets.push(renewed["api_key"].clone());
    }
    let refused = api.call(&token, "POST", &uri, json!({"grace_period_seconds": 2_592_001})).await;
    assert_eq!(refused.data()["errors"][0]["field"], "grace_period_seconds");
}

#[tokio::test]
async fn a_write_is_in_force_on_this_node_when_it_is_answered() {
    let (api, token) = api_and_token().await;
    let peppers = Peppers::new(vec![(1, vec![7; 32])]).expect("a pepper");
    let opens = |key: &Value| {
        let secret = key["api_key"].as_str().expect("a secret");
        let found = api.keyring.find(&Digest(peppers.current().digest(secret.as_bytes())), NOW);
        found.map(|found| found.presented.entry.key.is_active)
    };
    let first = api.key(&token, "n").await;
    assert_eq!(opens(&first), Some(true));
    let uri = format!("/apikeys/{}", first["id"].as_str().expect("an id"));
    api.call(&token, "PUT", &uri, json!({"is_active": false})).await;
    assert_eq!(opens(&first), Some(false));
    api.call(&token, "PUT", &uri, json!({"is_active": true})).await;
    let body = json!({"grace_period_seconds": 60});
    let second = api.call(&token, "POST", &format!("{uri}/regenerate"), body).await.data();
    assert_eq!((opens(&first), opens(&second)), (Some(true), Some(true)), "the grace period runs");
    let third = api.call(&token, "POST", &format!("{uri}/regenerate"), Value::Null).await.data();
    assert_eq!((opens(&first), opens(&second), opens(&third)), (None, None, Some(true)));
    api.call(&token, "DELETE", &uri, Value::Null).await;
    assert_eq!(opens(&third), None);
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let (api, token) = api_and_token().await;
    for n in 0..12 {
        api.clock.advance(Duration::from_millis(1));
        api.key(&token, &format!("key {n}")).await;
    }
    let service = api
        .call(&token, "POST", "/apikeys", json!({"name": "svc", "type": "service", "scopes": ["app"]}))
        .await
        .data();
    let off = format!("/apikeys/{}", service["id"].as_str().expect("an id"));
    api.call(&token, "PUT", &off, json!({"is_active": false})).await;
    let rows = [
        ("", 12, 10, true),
        ("?page=2", 12, 2, false),
        ("?page=9", 12, 0, false),
        ("?pagesize=12", 12, 12, false),
        ("?pagesize=11", 12, 11, true),
        ("?is_active=false", 1, 1, false),
        ("?is_active=any&pagesize=100", 13, 13, false),
        ("?type=service&is_active=any", 1, 1, false),
        ("?type=service", 0, 0, false),
        ("?resource_id=app-1", 12, 10, true),
        ("?resource_id=app-2", 0, 0, false),
        ("?search=KEY%201", 3, 3, false),
        ("?search=%25", 0, 0, false),
        ("?search=", 12, 10, true),
    ];
    for (query, total, items, hasnext) in rows {
        let data = api.call(&token, "GET", &format!("/apikeys{query}"), Value::Null).await.data();
        let seen = (
            data["page"]["total"].as_u64(),
            data["items"].as_array().map(Vec::len),
            data["page"]["hasnext"].as_bool(),
        );
        assert_eq!(seen, (Some(total), Some(items), Some(hasnext)), "{query}");
    }
    let newest = api.call(&token, "GET", "/apikeys", Value::Null).await.data();
    assert_eq!(newest["items"][0]["name"], "key 11");
    let next = newest["page"]["next_cursor"].clone();
    assert_eq!(
        newest["page"],
        json!({"page": 1, "pagesize": 10, "total": 12, "hasnext": true, "next_cursor": next})
    );
    let rest = format!("/apikeys?cursor={}", next.as_str().expect("a cursor"));
    let rest = api.call(&token, "GET", &rest, Value::Null).await.data();
    assert_eq!(
        rest["page"],
        json!({"page": null, "pagesize": 10, "total": null, "hasnext": false, "next_cursor": null})
    );
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(2));
    for (query, disabled) in [
        ("", Some(1)),
        ("?type=service", Some(1)),
        ("?resource_id=app-1", Some(0)),
        ("?is_active=true", None),
        ("?is_active=any", None),
        ("?is_deleted=true", None),
    ] {
        let data = api.call(&token, "GET", &format!("/apikeys{query}"), Value::Null).await.data();
        assert_eq!(data.get("disabled").and_then(Value::as_u64), disabled, "{query}");
    }
    for (query, field) in [
        ("page=0", "page"),
        ("page=x", "page"),
        ("pagesize=101", "pagesize"),
        ("pagesize=0", "pagesize"),
        ("type=robot", "type"),
        ("is_active=yes", "is_active"),
        ("Type=app", "Type"),
    ] {
        let reply = api.call(&token, "GET", &format!("/apikeys?{query}"), Value::Null).await;
        assert_eq!(reply.verdict(), (400, 1_003, "invalid_parameter".into()), "{query}");
        assert_eq!(reply.data()["errors"][0]["field"], field);
        assert!(reply.json()["msg"].as_str().expect("text").contains(field));
    }
}

#[tokio::test]
async fn end_users_are_looked_up_and_forgotten() {
    let (api, token) = api_and_token().await;
    api.key(&token, "n").await;
    for name in ["ann", "bob"] {
        api.store.admit_end_user(&workspace("ws-a"), name, NOW).await.expect("admitted");
    }
    let found = api.call(&token, "GET", "/endusers?other_id=ann", Value::Null).await.data();
    assert_eq!(found["page"]["total"], 1);
    let ann = found["items"][0].clone();
    assert_eq!((ann["other_id"].as_str(), ann["workspace_id"].as_str()), (Some("ann"), Some("ws-a")));
    let uri = format!("/endusers/{}", ann["id"].as_str().expect("an id"));
    assert_eq!(api.call(&token, "GET", &uri, Value::Null).await.data(), ann);
    assert_eq!(api.call(&token, "DELETE", &uri, Value::Null).await.data()["deleted"], true);
    assert_eq!(
        api.call(&token, "GET", &uri, Value::Null).await.verdict(),
        (404, 4_001, "end_user_not_found".into())
    );
    assert_eq!(api.call(&token, "GET", "/workspaces/ws-a", Value::Null).await.data()["end_users"], 1);
}

#[tokio::test]
async fn plans_are_created_changed_and_deleted_once_no_workspace_uses_them() {
    let api = Api::start().await;
    let token = api.token("-", Role::Platform);
    let call = async |method: &str, uri: &str, body: Value| api.call(&token, method, uri, body).await;
    let gold = json!({"id": "gold", "api_ops_rate_limit": 9, "end_user_quota": 0, "limits": [{"of": "key", "count": "tokens", "per": "day", "max": 3}]});
    let made = call("POST", "/plans", gold.clone()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.data()["limits"], gold["limits"]);
    assert_eq!(made.data()["usage_retention_days"], Value::Null, "for ever");
    assert_eq!(call("POST", "/plans", gold).await.verdict(), (409, 1_000, "conflict".into()));
    assert_eq!(
        call("PUT", "/plans/gold", json!({"api_ops_rate_limit": 8})).await.data()["api_ops_rate_limit"],
        8
    );
    assert_eq!(call("GET", "/plans", Value::Null).await.data()["page"]["total"], 2);

    let put = call("PUT", "/workspaces/ws-z", json!({"plan_id": "gold", "name": "Zed"})).await.data();
    assert_eq!(
        (put["plan_id"].as_str(), put["name"].as_str(), put["end_users"].as_u64()),
        (Some("gold"), Some("Zed"), Some(0))
    );
    let defaulted = call("PUT", "/workspaces/ws-y", json!({})).await.data();
    assert_eq!(defaulted["plan_id"], "default");
    let missing = call("PUT", "/workspaces/ws-z", json!({"plan_id": "none"})).await;
    assert_eq!(
        (missing.verdict().1, missing.data()["errors"][0]["field"].as_str()),
        (1_001, Some("plan_id"))
    );
    assert_eq!(call("PUT", "/workspaces/a%20b", json!({})).await.verdict().1, 1_003);
    assert_eq!(call("GET", "/workspaces", Value::Null).await.data()["page"]["total"], 2);
    assert_eq!(
        call("GET", "/workspaces/nowhere", Value::Null).await.verdict(),
        (404, 4_000, "not_found".into())
    );

    let used = call("DELETE", "/plans/gold", Value::Null).await;
    assert_eq!(used.verdict().2, "conflict");
    assert!(used.json()["msg"].as_str().expect("text").starts_with("1 workspaces are on this plan"));
    assert_eq!(call("DELETE", "/plans/default", Value::Null).await.verdict().2, "conflict");
    call("PUT", "/workspaces/ws-z", json!({"plan_id": "default"})).await;
    assert_eq!(call("DELETE", "/plans/gold", Value::Null).await.status, 200);
    assert_eq!(call("GET", "/plans/gold", Value::Null).await.verdict().2, "not_found");
}

#[tokio::test]
async fn grants_are_part_of_what_a_workspace_may_use_until_they_end() {
    let (api, own) = api_and_token().await;
    let platform = api.token("-", Role::Platform);
    api.key(&own, "k").await;
    let monthly = json!({"limits": [{"count": "requests", "per": "month", "max": 100}]});
    assert_eq!(api.call(&platform, "PUT", "/plans/default", monthly).await.status, 200);
    let uri = "/workspaces/ws-a/grants";
    let soon = NOW.as_millis() + 60_000;
    let grant = async |body: Value| api.call(&platform, "POST", uri, body).await;
    let mut made = Vec::new();
    for (limit, amount, until) in [
        (json!({"limit": "end_user_quota"}), 10, soon),
        (json!({"limit": "end_user_quota"}), 20, soon + 1),
        (json!({"limit": "limits", "count": "requests", "per": "month"}), 50, soon),
        (json!({"limit": "api_ops_rate_limit"}), 5, soon),
    ] {
        let mut body = json!({"amount": amount, "reason": "a launch", "until": until});
        body.as_object_mut().expect("an object").extend(limit.as_object().expect("an object").clone());
        let reply = grant(body).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        assert_eq!(
            (&reply.data()["is_active"], &reply.data()["created_by"]),
            (&json!(true), &json!("user-1"))
        );
        made.push(reply.data()["id"].as_str().expect("an id").to_owned());
    }
    // Limit and granted part of end users and of the month, and the rate with its granted part.
    let seen = async || {
        let data = api.call(&own, "GET", "/workspaces/ws-a", Value::Null).await.data();
        let of = |n: usize| {
            let quota = &data["quotas"][n];
            [&quota["limit"], &quota["granted"]].map(|v| v.as_u64().expect("a number"))
        };
        let rate = ["api_ops_rate_limit", "api_ops_rate_limit_granted"]
            .map(|name| data[name].as_u64().expect("a number"));
        [of(0), of(1), rate]
    };
    assert_eq!(seen().await, [[40, 30], [150, 50], [105, 5]]);
    let faster = json!({"name": "fast", "scopes": [], "rate_limit": 105});
    assert_eq!(api.call(&own, "POST", "/apikeys", faster).await.status, 200);
    let taken = api.call(&platform, "DELETE", &format!("{uri}/{}", made[0]), Value::Null).await;
    assert_eq!((taken.status.as_u16(), &taken.data()["id"]), (200, &json!(made[0])), "{}", taken.text);
    assert_eq!(seen().await, [[30, 20], [150, 50], [105, 5]]);
    api.clock.advance(Duration::from_mins(1));
    assert_eq!(seen().await, [[30, 20], [100, 0], [100, 0]]);
    api.clock.advance(Duration::from_millis(1));
    assert_eq!(seen().await, [[10, 0], [100, 0], [100, 0]]);
    let listed = api.call(&platform, "GET", uri, Value::Null).await.data();
    let active: Vec<_> =
        listed["items"].as_array().expect("a list").iter().map(|g| &g["is_active"]).collect();
    assert_eq!(active, [&json!(false); 3]);

    let wrong = grant(json!({"limit": "limits", "amount": 0, "until": 1, "reason": " ", "x": 1})).await;
    let data = wrong.data();
    let fields: Vec<_> =
        data["errors"].as_array().expect("errors").iter().map(|e| e["field"].as_str()).collect();
    assert_eq!(fields, ["count", "per", "amount", "reason", "until", "x"].map(Some), "{}", wrong.text);
    let far = 4_000_000_000_u64;
    for body in [
        json!({"limit": "limits", "count": "requests", "per": "day", "amount": 1, "reason": "r", "until": far}),
        json!({"limit": "end_user_quota", "per": "day", "amount": 1, "reason": "r", "until": far}),
        json!({"limit": "other", "amount": 1, "reason": "r", "until": far}),
    ] {
        let reply = grant(body.clone()).await;
        assert_eq!(reply.verdict(), (400, 1001, "validation_failed".into()), "{body}: {}", reply.text);
    }
    for (method, uri) in [("GET", "/workspaces/none/grants"), ("DELETE", "/workspaces/ws-a/grants/none")] {
        assert_eq!(api.call(&platform, method, uri, Value::Null).await.status, 404, "{uri}");
    }
}

#[tokio::test]
async fn a_deleted_workspace_is_closed_to_its_tokens_and_open_to_the_platform() {
    let (api, own) = api_and_token().await;
    let platform = api.token("-", Role::Platform);
    let key = api.key(&own, "k").await;
    let uri = "/workspaces/ws-a";
    let refused = api.call(&platform, "DELETE", uri, Value::Null).await;
    assert_eq!(refused.verdict(), (409, 1000, "conflict".into()), "{}", refused.text);
    assert_eq!(refused.data()["keys"], json!(1));
    let wrong = api.call(&platform, "DELETE", &format!("{uri}?force=yes"), Value::Null).await;
    assert_eq!(wrong.status, 400, "{}", wrong.text);
    let done = api.call(&platform, "DELETE", &format!("{uri}?force=true"), Value::Null).await;
    assert_eq!((done.status.as_u16(), done.data()), (200, json!({"keys": 1})), "{}", done.text);
    assert!(api.keyring.is_empty());

    let closed = api.call(&own, "GET", "/apikeys", Value::Null).await;
    assert_eq!(closed.verdict().2, "workspace_no_access", "{}", closed.text);
    assert!(closed.text.contains("was deleted"), "{}", closed.text);
    assert_eq!(api.call(&platform, "GET", uri, Value::Null).await.status, 404);
    assert_eq!(api.call(&platform, "DELETE", uri, Value::Null).await.status, 404);
    let about = async |method: &str, uri: &str, body: Value| {
        let mut request = request(&platform, method, uri, &body);
        request.headers_mut().insert("x-workspace-id", "ws-a".parse().expect("a header"));
        api.send(request).await
    };
    let trail = about("GET", "/audit?action=workspace.delete", Value::Null).await;
    assert_eq!(trail.data()["items"][0]["changes"]["keys"], json!(1), "{}", trail.text);
    let id = key["id"].as_str().expect("an id");
    assert_eq!(about("GET", &format!("/apikeys/{id}/stats"), Value::Null).await.status, 200);
    let made = about("POST", "/apikeys", json!({"name": "n", "scopes": []})).await;
    assert_eq!(made.status, 404, "{}", made.text);

    assert_eq!(api.call(&platform, "PUT", uri, json!({"name": "again"})).await.status, 200);
    assert_eq!(api.call(&own, "GET", "/apikeys", Value::Null).await.status, 200);
    let restored = api.call(&own, "POST", &format!("/apikeys/{id}/restore"), Value::Null).await;
    assert_eq!(restored.status, 200, "{}", restored.text);
}

#[tokio::test]
async fn prices_are_replaced_as_a_whole_and_every_mistake_is_named() {
    let api = Api::start().await;
    let token = api.token("-", Role::Platform);
    let call = async |method: &str, body: Value| api.call(&token, method, "/prices", body).await;
    assert_eq!(call("GET", Value::Null).await.data(), json!({"prices": [], "updated_at": null}));
    let list = json!({"prices": [
        {"model": "gpt-4o*", "input": 2.5, "cached": "1.25", "output": 10},
        {"model": "m", "input": "3", "output": 15, "tiers": [{"above": 200_000, "input": 6}]},
    ]});
    let put = call("PUT", list).await;
    assert_eq!(put.status, 200, "{}", put.text);
    let shown = json!([
        {"model": "gpt-4o*", "input": "2.5", "cached": "1.25", "cache_write": "2.5", "output": "10", "reasoning": "10",
         "tiers": []},
        {"model": "m", "input": "3", "cached": "3", "cache_write": "3", "output": "15", "reasoning": "15",
         "tiers": [{"above": 200_000, "input": "6", "cached": "3", "cache_write": "3", "output": "15", "reasoning": "15"}]},
    ]);
    assert_eq!((&put.data()["prices"], &put.data()["updated_at"]), (&shown, &json!(NOW.as_millis())));
    assert_eq!(call("GET", Value::Null).await.data(), put.data());
    // What is shown may be sent back.
    assert_eq!(call("PUT", json!({"prices": shown})).await.data()["prices"], shown);

    let wrong = json!({"prices": [{"model": "a b", "input": -1, "output": "x"}, {"model": "m"}], "more": 1});
    let refused = call("PUT", wrong).await;
    assert_eq!(refused.verdict(), (400, 1_001, "validation_failed".into()));
    let errors = refused.data()["errors"].clone();
    let fields: Vec<_> = errors.as_array().expect("errors").iter().map(|e| e["field"].as_str()).collect();
    let expected = [
        "prices[0].model",
        "prices[0].input",
        "prices[0].output",
        "prices[1].input",
        "prices[1].output",
        "more",
    ];
    assert_eq!(fields, expected.map(Some), "{errors}");
    assert_eq!(call("GET", Value::Null).await.data()["prices"], shown, "nothing of it was taken");
    let lines =
        api.call(&token, "GET", "/audit?platform=true&action=prices.update", Value::Null).await.data();
    assert_eq!(lines["page"]["total"], 2);
}

#[tokio::test]
async fn every_write_leaves_an_audit_line_with_its_author() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let uri = format!("/apikeys/{}", key["id"].as_str().expect("an id"));
    let changed = api.call(&token, "PUT", &uri, json!({"rate_limit": 3})).await;
    let lines = api
        .call(&token, "GET", &format!("/audit?target={}", key["id"].as_str().expect("an id")), Value::Null)
        .await;
    let newest = &lines.data()["items"][0];
    assert_eq!(newest["action"], "key.update");
    assert_eq!(
        (&newest["subject"], &newest["role"], &newest["workspace_id"]),
        (&json!("user-1"), &json!("admin"), &json!("ws-a"))
    );
    assert_eq!(newest["request_id"], changed.header("x-request-id"));
    assert!(newest["changes"].to_string().contains("rate_limit"));

    let platform = api.token("-", Role::Platform);
    api.call(&platform, "PUT", "/plans/default", json!({"description": "d"})).await;
    let lines = api.call(&platform, "GET", "/audit?action=plan.update", Value::Null).await.data();
    assert_eq!(
        (lines["page"]["total"].as_u64(), lines["items"][0]["workspace_id"].clone()),
        (Some(1), Value::Null)
    );
}

#[tokio::test]
async fn health_needs_no_token_and_metrics_need_the_configured_one() {
    let checks = vec![ReadinessCheck { name: "store", ok: false, detail: "stale".into() }];
    let api = Api::start_with(|deps| {
        deps.readiness = Arc::new(move || Readiness { ready: false, checks: checks.clone() });
        deps.metrics_token = Some(MetricsToken::new("scrape").into());
    })
    .await;
    assert_eq!(api.call("", "GET", "/healthz", Value::Null).await.data(), json!({"alive": true}));
    let brief = api.call("", "GET", "/readyz", Value::Null).await;
    assert_eq!((brief.status.as_u16(), brief.data()), (503, json!({"ready": false})));
    let long = api.call("", "GET", "/readyz?verbose", Value::Null).await.data();
    assert_eq!(long, json!({"ready": false, "checks": [{"name": "store", "ok": false, "detail": "stale"}]}));

    assert_eq!(api.call("", "GET", "/metrics", Value::Null).await.verdict().2, "unauthorized");
    assert_eq!(api.call("guess", "GET", "/metrics", Value::Null).await.verdict().2, "token_invalid");
    let metrics = api.call("scrape", "GET", "/metrics", Value::Null).await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    let ready = Api::start().await.call("", "GET", "/readyz", Value::Null).await;
    assert_eq!((ready.status.as_u16(), ready.data()), (200, json!({"ready": true})));
}

#[tokio::test]
async fn the_audit_log_is_that_of_the_tokens_workspace_unless_the_platforms_is_asked_for() {
    let (api, _) = api_and_token().await;
    let own = api.token("ws-a", Role::Platform);
    let everywhere = api.token("-", Role::Platform);
    let admin = api.token("ws-a", Role::Admin);
    api.key(&own, "n").await;
    api.call(&own, "PUT", "/plans/default", json!({"description": "d"})).await;
    let actions = async |token: &str, uri: &str| {
        let answer = api.call(token, "GET", uri, Value::Null).await;
        let items = answer.data()["items"].as_array().cloned().unwrap_or_default();
        (
            answer.status.as_u16(),
            items.iter().map(|line| line["action"].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>(),
        )
    };
    let (status, of_workspace) = actions(&own, "/audit").await;
    assert!(status == 200 && of_workspace.contains(&"key.create".to_owned()), "{of_workspace:?}");
    assert!(!of_workspace.contains(&"plan.update".to_owned()), "{of_workspace:?}");
    assert_eq!(actions(&admin, "/audit").await.1, of_workspace);
    let (_, of_platform) = actions(&own, "/audit?platform=true").await;
    assert!(
        of_platform.contains(&"plan.update".to_owned()) && !of_platform.contains(&"key.create".to_owned())
    );
    assert_eq!(actions(&everywhere, "/audit").await.1, of_platform, "a token without workspace");
    assert_eq!(actions(&admin, "/audit?platform=true").await.0, 403);
}

#[tokio::test]
async fn a_workspace_that_does_not_exist_is_told_with_the_call_that_creates_it() {
    let (api, _) = api_and_token().await;
    let platform = api.token("-", Role::Platform);
    let mut asked = request(&platform, "GET", "/apikeys", &Value::Null);
    asked.headers_mut().insert("x-workspace-id", "nowhere".parse().expect("a header"));
    let answer = api.send(asked).await;
    assert_eq!(answer.verdict().0, 404);
    assert!(
        answer.text.contains("There is no workspace nowhere; PUT /workspaces/nowhere creates it"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn the_address_of_the_listener_leads_to_the_documentation() {
    let (api, _) = api_and_token().await;
    let answer = api.call("", "GET", "/", Value::Null).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (307, "/docs/"));
}
