//! Pages and tokens of another system: what they expect of the API.

use super::*;
use crate::policy::http::cors::{Cors, OriginRule, Origins};
use axum::http::{HeaderValue, Method};

/// A token of another issuer, signed with the shared secret.
fn token(claims: Value) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET);
    let mut all = json!({"sub": "user-1", "exp": NOW.as_secs() + 60});
    all.as_object_mut().expect("an object").extend(claims.as_object().cloned().expect("an object"));
    jwt::sign(&key, all.as_object().expect("an object"))
}

/// Tokens with a subject, a time and a type, and nothing else.
fn plain_tokens() -> AuthConfig {
    AuthConfig {
        issuer: None,
        audience: None,
        require: vec![("type".into(), "access".into())],
        default_role: Some(Role::Admin),
        workspace_header_subjects: vec!["user-1".into()],
        ..auth_config()
    }
}

async fn api_for(config: AuthConfig) -> Api {
    Api::start_with(|deps| deps.auth = Arc::new(Auth::new(config).expect("a right configuration"))).await
}

async fn listed_in(api: &Api, token: &str, workspace: Option<&str>) -> ApiReply {
    let mut request = request(token, "GET", "/apikeys", &Value::Null);
    if let Some(workspace) = workspace {
        request.headers_mut().insert("x-workspace-id", workspace.parse().expect("a header"));
    }
    api.send(request).await
}

#[tokio::test]
async fn tokens_that_say_little_are_taken_as_configured() {
    let api = api_for(plain_tokens()).await;
    let access = token(json!({"type": "access"}));
    assert_eq!(listed_in(&api, &access, Some("ws-a")).await.status, 200, "the workspace is made");
    assert_eq!(listed_in(&api, &access, None).await.verdict().1, 1003, "somebody has to name it");
    for wrong in [json!({}), json!({"type": "refresh"}), json!({"type": ["access"]})] {
        let refused = listed_in(&api, &token(wrong.clone()), Some("ws-a")).await;
        assert_eq!(refused.verdict().2, "token_invalid", "{wrong}");
    }
    // Others may not name one, and whoever has one is bound to it.
    let other = token(json!({"type": "access", "sub": "user-2"}));
    assert_eq!(listed_in(&api, &other, Some("ws-a")).await.verdict().2, "token_invalid");
    let bound = token(json!({"type": "access", "workspace_id": "ws-b"}));
    assert_eq!(listed_in(&api, &bound, Some("ws-a")).await.verdict().2, "workspace_no_access");
    // What is required of others is in tokens made here.
    let minted = api.token("ws-b", Role::Admin);
    assert_eq!(listed_in(&api, &minted, None).await.status, 200);
}

#[tokio::test]
async fn roles_are_found_where_the_issuer_puts_them_and_mean_what_is_configured() {
    let claims = AuthClaims { role: "realm_access.roles".into(), ..AuthClaims::default() };
    let roles = vec![("owner".into(), Role::Platform), ("member".into(), Role::Viewer)];
    let api = api_for(AuthConfig { claims, roles, ..auth_config() }).await;
    let roles_of = |value: Value| {
        let rest = json!({"iss": "https://issuer.test", "aud": ["keygate-admin"], "workspace_id": "ws-a"});
        let mut claims = rest.as_object().cloned().expect("an object");
        claims.insert("realm_access".into(), json!({"roles": value}));
        token(claims.into())
    };
    let create = json!({"name": "n", "scopes": []});
    for (roles, read, write, platform) in [
        (json!(["guest", "member"]), 200, 403, 403),
        (json!(["member", "owner"]), 200, 200, 200),
        (json!("member"), 200, 403, 403),
        (json!(["admin"]), 403, 403, 403),
        (json!([]), 403, 403, 403),
        (json!(7), 403, 403, 403),
    ] {
        let token = roles_of(roles.clone());
        let told = [
            api.call(&token, "GET", "/apikeys", Value::Null).await.status.as_u16(),
            api.call(&token, "POST", "/apikeys", create.clone()).await.status.as_u16(),
            api.call(&token, "GET", "/plans", Value::Null).await.status.as_u16(),
        ];
        assert_eq!(told, [read, write, platform], "{roles}");
    }
}

#[tokio::test]
async fn failures_are_sentences_for_pages_that_show_them() {
    let api = Api::start_with(|deps| deps.error_text = ErrorText::Message).await;
    let token = api.token("ws-a", Role::Admin);
    let above = json!({"name": "n", "scopes": [], "rate_limit": 101});
    let told = api.call(&token, "POST", "/apikeys?lang=zh", above.clone()).await.json();
    assert_eq!(told["error"], told["msg"]);
    assert_eq!(told["error"], "rate_limit 101 超过套餐 default 的上限：每秒 100 次请求");
    assert_eq!((&told["detail"], &told["code"]), (&Value::Null, &json!(1000)));
    let wrong = json!({"name": "", "scopes": [], "rate_limit": "x"});
    let told = api.call(&token, "POST", "/apikeys", wrong).await.json();
    let detail = told["detail"].as_array().expect("a list");
    let places: Vec<_> = detail.iter().map(|mistake| mistake["loc"].clone()).collect();
    assert_eq!(places, [json!(["body", "name"]), json!(["body", "rate_limit"])]);
    assert!(detail.iter().all(|mistake| mistake["msg"].is_string()), "{told}");
    let fine = api.call(&token, "GET", "/apikeys", Value::Null).await.json();
    assert_eq!((&fine["error"], fine.get("detail")), (&json!(""), None));
}

#[tokio::test]
async fn the_language_is_the_pages_own() {
    let api = Api::start().await;
    let token = api.token("ws-a", Role::Admin);
    for (query, page, browser, expected) in [
        ("", "", "", "en"),
        ("", "", "zh", "zh"),
        ("", "en", "zh", "en"),
        ("", "zh", "en", "zh"),
        ("?lang=en", "zh", "zh", "en"),
        ("?lang=zh-CN", "en", "en", "zh"),
        ("?lang=", "zh", "en", "zh"),
        ("?lang=nonsense", "zh", "zh", "en"),
    ] {
        let mut request = request(&token, "GET", &format!("/apikeys{query}"), &Value::Null);
        for (name, value) in [("x-language-type", page), ("accept-language", browser)] {
            if !value.is_empty() {
                request.headers_mut().insert(name, value.parse().expect("a header"));
            }
        }
        let reply = api.send(request).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-language")), (200, expected), "{query}");
    }
}

#[tokio::test]
async fn a_base_path_leads_to_the_same_api() {
    let api = Api::start_with(|deps| deps.base_path = "/manager/api".into()).await;
    let token = api.token("ws-a", Role::Admin);
    let created = json!({"name": "n", "scopes": []});
    let made = api.call(&token, "POST", "/manager/api/apikeys", created).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let id = made.data()["id"].as_str().expect("an id").to_owned();
    for uri in [format!("/manager/api/apikeys/{id}?lang=en"), format!("/apikeys/{id}"), "/healthz".into()] {
        assert_eq!(api.call(&token, "GET", &uri, Value::Null).await.status, 200, "{uri}");
    }
    for uri in ["/manager/apikeys", "/manager/apix/apikeys", "/manager/api/nothing"] {
        assert_eq!(api.call(&token, "GET", uri, Value::Null).await.verdict().2, "not_found", "{uri}");
    }
    let document = api.call("", "GET", "/manager/api/openapi.json", Value::Null).await.json();
    assert_eq!(document["servers"], json!([{"url": "/manager/api"}]));
}

#[tokio::test]
async fn pages_of_listed_origins_may_use_the_api() {
    let rule = OriginRule::parse("https://console.example").expect("an origin");
    let cors = Cors {
        origins: Origins::Listed([rule].into()),
        methods: [Method::GET, Method::PUT].into(),
        headers: Box::default(),
        expose: HeaderValue::from_static("X-Request-Id"),
        credentials: true,
        max_age: Duration::from_secs(60),
    };
    let api = Api::start_with(|deps| deps.cors = Some(cors)).await;
    let token = api.token("ws-a", Role::Admin);
    for (origin, allowed) in [("https://console.example", true), ("https://evil.example", false)] {
        let mut preflight = request("", "OPTIONS", "/apikeys/x", &Value::Null);
        let asked = [("origin", origin), ("access-control-request-method", "PUT")];
        for (name, value) in asked.into_iter().chain([("access-control-request-headers", "authorization")]) {
            preflight.headers_mut().insert(name, value.parse().expect("a header"));
        }
        let reply = api.send(preflight).await;
        let shown = |reply: &ApiReply| reply.header("access-control-allow-origin") == origin;
        assert_eq!((reply.status.as_u16(), shown(&reply)), (204, allowed), "{origin}");
        let mut call = request(&token, "GET", "/apikeys", &Value::Null);
        call.headers_mut().insert("origin", origin.parse().expect("a header"));
        let reply = api.send(call).await;
        assert_eq!((reply.status.as_u16(), shown(&reply)), (200, allowed), "{origin}");
    }
    let bare = api.call("", "OPTIONS", "/apikeys", Value::Null).await;
    assert_eq!(bare.verdict().2, "method_not_allowed", "that is no preflight");
}
