//! Which role may make which call, and that no call reaches into another workspace. Driven by the OpenAPI document, so that
//! a new call without an entry here fails.

use super::document::operations;
use super::*;
use crate::model::id::{EndUserId, KeyId, RequestId};
use crate::model::usage::{Outcome, UsageRecord};
use crate::store::{EndUserAdmission, EndUsers, Ledger};

/// The lowest role for every call; none: no token is needed.
fn least_role(method: &str, path: &str) -> Option<Role> {
    let table = [
        ("POST /apikeys", Some(Role::Admin)),
        ("GET /apikeys", Some(Role::Viewer)),
        ("GET /apikeys/{id}", Some(Role::Viewer)),
        ("PUT /apikeys/{id}", Some(Role::Admin)),
        ("PATCH /apikeys/{id}", Some(Role::Admin)),
        ("DELETE /apikeys/{id}", Some(Role::Admin)),
        ("POST /apikeys/{id}/regenerate", Some(Role::Admin)),
        ("POST /apikeys/{id}/restore", Some(Role::Admin)),
        ("GET /apikeys/{id}/propagation", Some(Role::Viewer)),
        ("GET /apikeys/{id}/stats", Some(Role::Viewer)),
        ("GET /apikeys/{id}/usage", Some(Role::Viewer)),
        ("GET /apikeys/{id}/logs", Some(Role::Viewer)),
        ("POST /apikeys/lookup", Some(Role::Viewer)),
        ("POST /apikeys/import", Some(Role::Admin)),
        ("POST /endusers/import", Some(Role::Admin)),
        ("GET /usage", Some(Role::Viewer)),
        ("GET /usage/series", Some(Role::Viewer)),
        ("GET /endusers", Some(Role::Viewer)),
        ("GET /endusers/{id}", Some(Role::Viewer)),
        ("DELETE /endusers/{id}", Some(Role::Admin)),
        ("GET /workspaces", Some(Role::Platform)),
        ("GET /workspaces/{id}", Some(Role::Viewer)),
        ("PUT /workspaces/{id}", Some(Role::Platform)),
        ("DELETE /workspaces/{id}", Some(Role::Platform)),
        ("GET /workspaces/{id}/grants", Some(Role::Platform)),
        ("POST /workspaces/{id}/grants", Some(Role::Platform)),
        ("DELETE /workspaces/{id}/grants/{grant_id}", Some(Role::Platform)),
        ("POST /plans", Some(Role::Platform)),
        ("GET /plans", Some(Role::Platform)),
        ("GET /plans/{id}", Some(Role::Platform)),
        ("PUT /plans/{id}", Some(Role::Platform)),
        ("DELETE /plans/{id}", Some(Role::Platform)),
        ("GET /prices", Some(Role::Platform)),
        ("PUT /prices", Some(Role::Platform)),
        ("GET /upstreams/{name}/credentials", Some(Role::Platform)),
        ("PUT /upstreams/{name}/credentials", Some(Role::Platform)),
        ("DELETE /upstreams/{name}/credentials/{credential_id}", Some(Role::Platform)),
        ("GET /audit", Some(Role::Admin)),
        ("GET /nodes", Some(Role::Platform)),
        ("POST /reload", Some(Role::Platform)),
        ("GET /healthz", None),
        ("GET /readyz", None),
        ("GET /metrics", None),
        ("GET /openapi.json", None),
    ];
    let call = format!("{method} {path}");
    table.iter().find(|(known, _)| *known == call).unwrap_or_else(|| panic!("{call} has no least role")).1
}

/// A body that the call would accept, so that only missing rights can stop it.
fn body_of(method: &str, path: &str) -> Value {
    match (method, path) {
        ("POST", "/apikeys") => json!({"name": "made by b", "type": "service", "scopes": ["app"]}),
        ("PUT" | "PATCH", "/apikeys/{id}") => json!({"name": "changed", "is_active": false}),
        ("POST", "/apikeys/lookup") => json!({"api_key": "legacy-key"}),
        ("POST", "/apikeys/import") => {
            json!({"keys": [{"name": "imported by b", "scopes": [], "api_key": "legacy-b"}]})
        }
        ("POST", "/endusers/import") => json!({"end_users": [{"other_id": "imported by b"}]}),
        ("POST", "/plans") => json!({"id": "made", "api_ops_rate_limit": 1, "end_user_quota": 1}),
        ("PUT", "/prices") => json!({"prices": [{"model": "m", "input": "1", "output": "2"}]}),
        ("PUT", "/upstreams/{name}/credentials") => json!({"secret": "backend-secret"}),
        ("PUT", "/plans/{id}") => json!({"description": "changed"}),
        ("PUT", "/workspaces/{id}") => json!({"name": "changed"}),
        ("POST", "/workspaces/{id}/grants") => {
            json!({"limit": "end_user_quota", "amount": 1, "reason": "r", "until": 4_000_000_000_u64})
        }
        _ => Value::Null,
    }
}

/// Records of the workspace `owner`, each with `owner` in its names.
struct Things {
    key: String,
    secret: String,
    user: String,
}

async fn things_of(api: &Api, owner: &str) -> Things {
    let token = api.token(owner, Role::Admin);
    let key = api.key(&token, &format!("key of {owner}")).await;
    let ws = workspace(owner);
    let admitted = api.store.admit_end_user(&ws, &format!("person of {owner}"), NOW).await;
    let EndUserAdmission::Admitted(user) = admitted.expect("a store") else { panic!("the plan is full") };
    let secret = key["api_key"].as_str().expect("a secret").to_owned();
    let key = key["id"].as_str().expect("an id").to_owned();
    let record = usage_record(owner, key.parse().expect("a key id"), user);
    api.store.append(&[record]).await.expect("a ledger");
    Things { key, secret, user: user.to_string() }
}

fn usage_record(owner: &str, key: KeyId, user: EndUserId) -> UsageRecord {
    UsageRecord {
        id: RequestId::new(NOW),
        request_id: "r".into(),
        api_key_id: key,
        workspace_id: workspace(owner),
        at: NOW,
        method: "GET".into(),
        endpoint: format!("/path/of/{owner}").into(),
        route: "app".into(),
        status_code: 200,
        outcome: Outcome::Served,
        denial: None,
        charged: true,
        degraded: false,
        response_time_us: 1_500,
        ttfb_us: Some(700),
        bytes_in: 1,
        bytes_out: 2,
        tokens_used: 3,
        ip_address: None,
        user_agent: "test".into(),
        end_user_id: Some(user),
        upstream: "u".into(),
        node: "n".into(),
        model: None,
        model_requested: None,
        input_tokens: None,
        cached_tokens: None,
        cache_write_tokens: None,
        output_tokens: None,
        reasoning_tokens: None,
        audio_tokens: None,
        cost_nano: None,
        usage_source: None,
        provider_request_id: None,
    }
}

/// Everything that the workspace `owner` can read of itself.
async fn all_of(api: &Api, owner: &str, things: &Things) -> Vec<String> {
    let token = api.token(owner, Role::Admin);
    let mut all = Vec::new();
    for uri in [
        "/apikeys?is_active=any&pagesize=100".to_owned(),
        format!("/apikeys/{}", things.key),
        format!("/apikeys/{}/stats", things.key),
        format!("/apikeys/{}/logs", things.key),
        format!("/endusers/{}", things.user),
        format!("/workspaces/{owner}"),
        "/usage?group_by=key".to_owned(),
        "/audit?pagesize=100".to_owned(),
    ] {
        let reply = api.call(&token, "GET", &uri, Value::Null).await;
        assert_eq!(reply.status, 200, "{uri}: {}", reply.text);
        all.push(reply.text);
    }
    all
}

#[tokio::test]
async fn every_call_asks_for_its_role() {
    let api = Api::start().await;
    let things = things_of(&api, "ws-a").await;
    for (method, path, _) in operations() {
        let least = least_role(&method, &path);
        let id = match path.split('/').nth(1) {
            Some("apikeys") => things.key.as_str(),
            Some("endusers") => things.user.as_str(),
            Some("workspaces") => "ws-a",
            _ => "default",
        };
        let uri = path.replace("{id}", id);
        let unknown = api.call("", &method, &uri, body_of(&method, &path)).await;
        match least {
            None => assert_eq!(unknown.status, 200, "{method} {path}"),
            Some(_) => assert_eq!(unknown.verdict().2, "unauthorized", "{method} {path}"),
        }
        let Some(least) = least else { continue };
        for role in Role::ALL.iter().filter(|role| **role < least) {
            let reply = api.call(&api.token("ws-a", *role), &method, &uri, body_of(&method, &path)).await;
            assert_eq!(reply.verdict(), (403, 3001, "forbidden".into()), "{method} {path} as {role}");
        }
    }
    // Last, and each separately: those who may, can.
    for (method, path, _) in operations() {
        let Some(least) = least_role(&method, &path) else { continue };
        for role in Role::ALL.iter().filter(|role| **role >= least) {
            let fresh = Api::start().await;
            let things = things_of(&fresh, "ws-a").await;
            let id = match path.split('/').nth(1) {
                Some("apikeys") => things.key.as_str(),
                Some("endusers") => things.user.as_str(),
                Some("workspaces") => "ws-a",
                _ => "default",
            };
            let token = fresh.token("ws-a", *role);
            if path.ends_with("/restore") {
                let gone = fresh.call(&token, "DELETE", &format!("/apikeys/{id}"), Value::Null).await;
                assert_eq!(gone.status, 200, "{}", gone.text);
            }
            let mut body = body_of(&method, &path);
            if path == "/apikeys/lookup" {
                body["api_key"] = json!(things.secret);
            }
            let mut uri = path.replace("{id}", id).replace("{name}", "app");
            if uri.contains("{credential_id}") {
                let credentials = "/upstreams/app/credentials";
                let made = fresh.call(&token, "PUT", credentials, json!({"secret": "s"})).await.data();
                uri = uri.replace("{credential_id}", made["id"].as_str().expect("an id"));
            }
            if uri.contains("{grant_id}") {
                let grants = "/workspaces/{id}/grants";
                let body = body_of("POST", grants);
                let made = fresh.call(&token, "POST", &grants.replace("{id}", id), body).await.data();
                uri = uri.replace("{grant_id}", made["id"].as_str().expect("an id"));
            }
            let reply = fresh.call(&token, &method, &uri, body).await;
            // The plan has a workspace, and the workspace a key.
            let kept = method == "DELETE" && ["/plans/{id}", "/workspaces/{id}"].contains(&path.as_str());
            assert_eq!(reply.status.is_success(), !kept, "{method} {path} as {role}: {}", reply.text);
        }
    }
}

#[tokio::test]
async fn no_call_reaches_into_another_workspace() {
    let api = Api::start().await;
    let (mine, theirs) = (things_of(&api, "ws-a").await, things_of(&api, "ws-b").await);
    let before = all_of(&api, "ws-a", &mine).await;
    for role in [Role::Viewer, Role::Admin] {
        let token = api.token("ws-b", role);
        for (method, path, _) in operations() {
            if least_role(&method, &path).is_none() {
                continue;
            }
            // Every id of A, for every parameter.
            for id in [mine.key.as_str(), mine.user.as_str(), "ws-a"] {
                for named in [None, Some("ws-a")] {
                    let mut request =
                        request(&token, &method, &path.replace("{id}", id), &body_of(&method, &path));
                    if let Some(named) = named {
                        request.headers_mut().insert("x-workspace-id", named.parse().expect("a header"));
                    }
                    let what = format!("{method} {path} {id} as {role}, X-Workspace-Id {named:?}");
                    let reply = api.send(request).await;
                    assert!(!reply.text.contains("ws-a"), "{what}: {}", reply.text);
                    assert!(!reply.text.contains(&mine.key), "{what}: {}", reply.text);
                    let about_one = path.contains("{id}") || named.is_some();
                    assert!(!about_one || !reply.status.is_success(), "{what}: {}", reply.text);
                }
            }
        }
    }
    assert_eq!(
        all_of(&api, "ws-a", &mine).await.iter().map(|t| body(t)).collect::<Vec<_>>(),
        before.iter().map(|t| body(t)).collect::<Vec<_>>()
    );
    assert!(!all_of(&api, "ws-b", &theirs).await.concat().contains("ws-a"));
}

/// The content of an envelope, without its time.
fn body(text: &str) -> Value {
    serde_json::from_str::<Value>(text).expect("JSON")["data"].clone()
}

#[tokio::test]
async fn missing_objects_and_those_of_other_workspaces_look_the_same() {
    let api = Api::start().await;
    let mine = things_of(&api, "ws-a").await;
    let token = api.token("ws-b", Role::Admin);
    let absent = KeyId::new(NOW).to_string();
    for (method, tail) in [
        ("GET", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("POST", "/regenerate"),
        ("POST", "/restore"),
        ("GET", "/stats"),
        ("GET", "/usage"),
        ("GET", "/logs"),
    ] {
        let body = if method == "PUT" { json!({"name": "x"}) } else { Value::Null };
        let mut seen = Vec::new();
        for id in [mine.key.as_str(), &absent, "no-uuid"] {
            let reply = api.call(&token, method, &format!("/apikeys/{id}{tail}"), body.clone()).await;
            seen.push((reply.verdict(), reply.json()["msg"].clone(), reply.data()));
        }
        assert_eq!(seen[0].0, (404, 3007, "api_key_not_found".into()), "{method} {tail}");
        assert!(seen.iter().all(|s| *s == seen[0]), "{method} {tail}: {seen:?}");
    }
    for id in [mine.user.as_str(), &absent, "no-uuid"] {
        for method in ["GET", "DELETE"] {
            let reply = api.call(&token, method, &format!("/endusers/{id}"), Value::Null).await;
            assert_eq!(reply.verdict(), (404, 4001, "end_user_not_found".into()));
        }
    }
}
