//! An operator of MemoryBear follows `docs/how-to/from-memorybear.md`: its keys of every form, its end users, its page's calls as
//! its client makes them, its services.

use crate::installation::{Installation, says};
use crate::support::{Gateway, Origin, Raw, Request, Response, eventually_true, write_config};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::path::Path;

/// MemoryBear's `SECRET_KEY`.
const SECRET_KEY: &str = "memorybear's key of more than 32 bytes";
const WORKSPACE: &str = "5b0c0d6e-7b9a-4a51-9a53-2f0c64a3a001";
const APP: &str = "5b0c0d6e-7b9a-4a51-9a53-2f0c64a3a002";

/// The example of the how-to, with `origin` as MemoryBear.
fn config(origin: &Origin) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples/memorybear.toml");
    let text = std::fs::read_to_string(path).expect("the example");
    let listen = text.replace("0.0.0.0:8080", "127.0.0.1:0").replace("127.0.0.1:8081", "127.0.0.1:0");
    listen.replace("api:8000", &origin.address.to_string())
}

/// A token as MemoryBear makes it for a signed-in user: `sub`, times, an id and a type.
fn token(kind: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let expires = 4_000_000_000_u32;
    let claims = json!({"sub": "7d6e", "exp": expires, "iat": 1, "jti": "x", "type": kind});
    let signed = format!("{}.{}", part(json!({"alg": "HS256", "typ": "JWT"})), part(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET_KEY.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// The secret of the `n`-th key, in the form of that time.
fn secret(n: usize) -> String {
    let kind = ["service", "agent", "multi_agent", "workflow"][n % 4];
    format!("sk-{kind}-{n:_>16}-{:0>15}", "Ab9")
}

/// What the how-to's query answers for 200 keys: every type and `cluster`, rates above the plan, expired ones, quotas spent.
fn keys() -> String {
    let row = |n: usize| {
        let kind = ["service", "agent", "cluster", "workflow", "pure_workflow"][n % 5];
        let is_service = kind == "service";
        let scopes = if is_service { json!(&["memory", "rag"][..n % 3]) } else { json!(["app"]) };
        let rate = [50, 100, 1000][n % 3];
        let mut row = json!({"workspace_id": WORKSPACE, "name": format!("key {n}"), "description": "", "type": kind,
            "scopes": scopes, "rate_limit": rate, "daily_request_limit": 10_000,
            "api_key": secret(n), "created_by": "7d6e", "created_at": "2025-12-03T08:15:30.123456",
            "updated_at": "2026-01-03T08:15:30", "quota_used": n, "usage_count": 2 * n});
        if !is_service {
            row["resource_id"] = json!(APP);
        }
        if n % 10 == 7 {
            row["expires_at"] = json!("2026-01-01T00:00:00");
        }
        row.to_string()
    };
    (0..200).map(|n| row(n) + "\n").collect()
}

/// A call of the page, which a proxy has sent on with the user's workspace.
#[track_caller]
fn page(gateway: &Gateway, method: &str, path: &str, body: Option<&Value>) -> Response {
    let mut request = Request::new(method, &format!("/api{path}")).bearer(&token("access"));
    request = request.header("X-Workspace-Id", WORKSPACE).header("X-Language-Type", "zh");
    if let Some(body) = body {
        request = request.header("Content-Type", "application/json").body(body.to_string());
    }
    Raw::connect(gateway.admin).call(&request)
}

/// The same, of a call that must succeed as the page understands it.
#[track_caller]
fn shown(gateway: &Gateway, method: &str, path: &str, body: Option<&Value>) -> Value {
    let response = page(gateway, method, path, body);
    assert_eq!((response.status, &response.json()["code"]), (200, &json!(0)), "{}", response.text());
    response.data()
}

/// An installation with everything imported, as the how-to says.
fn installation() -> Installation {
    let place = Installation::new();
    write_config(&place.path(""), &config(&place.origin));
    place.write("data/admin.jwt.secret", SECRET_KEY);
    place.write("keys.jsonl", keys());
    let told = place.command(&["keys", "import", "keys.jsonl", "--refused", "keys-refused.jsonl"]);
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    says(&told.stderr, &["200 imported, 0 refused", "type cluster became multi_agent", "has expired"]);
    place.write(
        "users.jsonl",
        concat!(
            r#"{"id":"0198a000-0000-7000-8000-000000000001","other_id":"ada","created_at":"2026-01-03T08:15:30"}"#,
            "\n",
            r#"{"id":"0198a000-0000-7000-8000-000000000002","other_id":"ada","created_at":"2026-02-03T08:15:30"}"#,
            "\n",
            r#"{"id":"0198a000-0000-7000-8000-000000000003","other_id":null,"created_at":"2026-02-03T08:15:30"}"#,
            "\n",
        ),
    );
    let users = ["endusers", "import", "--workspace", WORKSPACE, "users.jsonl", "--refused", "left.jsonl"];
    says(&place.fails(1, &users), &["1 imported, 1 there already, 1 refused", "users.jsonl:3: other_id"]);
    place
}

#[test]
fn the_page_lists_makes_changes_and_deletes_keys_as_its_client_asks() {
    let place = installation();
    let gateway = place.start();
    let listed = shown(&gateway, "GET", "/apikeys?type=service&is_active=true&page=1&pagesize=20", None);
    assert_eq!((&listed["page"]["total"], &listed["page"]["hasnext"]), (&json!(40), &json!(true)));
    let app = shown(&gateway, "GET", &format!("/apikeys?resource_id={APP}"), None);
    assert_eq!(app["page"]["total"], json!(160));

    // Both switches off, and an end of day.
    let body = json!({"name": "new", "description": "", "rate_limit": 10, "daily_request_limit": 100, "scopes": [],
        "expires_at": 4_000_000_000_000_i64, "type": "service"});
    let made = shown(&gateway, "POST", "/apikeys", Some(&body));
    let id = made["id"].as_str().expect("an id").to_owned();
    assert!(made["api_key"].as_str().is_some_and(|secret| secret.starts_with("sk-service-")));
    let mut edited = body.clone();
    edited["scopes"] = json!(["memory"]);
    assert_eq!(shown(&gateway, "PUT", &format!("/apikeys/{id}"), Some(&edited))["scopes"], json!(["memory"]));

    // The other dialog sends the whole key as it was listed, with its statistics, and the two limits.
    let mut whole = app["items"][0].clone();
    let one = format!("/apikeys/{}", whole["id"].as_str().expect("an id"));
    let stats = shown(&gateway, "GET", &format!("{one}/stats"), None);
    whole.as_object_mut().expect("an object").extend(stats.as_object().cloned().expect("an object"));
    whole["rate_limit"] = json!(20);
    whole["daily_request_limit"] = json!(500);
    let changed = shown(&gateway, "PUT", &one, Some(&whole));
    assert_eq!((&changed["rate_limit"], &changed["daily_request_limit"]), (&json!(20), &json!(500)));

    let above = page(&gateway, "PUT", &one, Some(&json!({"rate_limit": 51})));
    let told = above.json();
    assert_eq!((above.status, &told["error"], &told["msg"]), (400, &told["msg"], &told["error"]));
    assert!(told["error"].as_str().is_some_and(|text| text.contains("超过套餐")), "{told}");
    shown(&gateway, "DELETE", &format!("/apikeys/{id}"), None);
    let gone = page(&gateway, "GET", &format!("/apikeys/{id}"), None);
    assert_eq!((gone.status, &gone.json()["error"]), (404, &json!("该 API 密钥不存在")));

    let refresh = Request::get("/api/apikeys").bearer(&token("refresh")).header("X-Workspace-Id", WORKSPACE);
    assert_eq!(Raw::connect(gateway.admin).call(&refresh).status, 401, "a refresh token is none");
}

#[test]
fn imported_keys_and_end_users_reach_their_services() {
    let place = installation();
    let gateway = place.start();
    let call = |request: Request| {
        let response = gateway.call(&request);
        (response.status, response)
    };
    let json_call = |path: &str, n: usize, body: &Value| {
        let request = Request::post(path, body.to_string()).header("Content-Type", "application/json");
        call(request.bearer(&secret(n)))
    };
    // The key is bound to the app; whoever talks is named in the body.
    assert_eq!(json_call("/v1/app/chat", 1, &json!({"message": "hi", "user_id": "ada"})).0, 200);
    // Key 5 holds memory, rag; 10 holds memory.
    assert_eq!(json_call("/v1/end_user/create", 5, &json!({"other_id": "bob"})).0, 200);
    let mcp =
        Request::get("/v1/mcp/memory").header("X-End-User-Other-Id", "bob").header("X-API-Key", &secret(5));
    assert_eq!(call(mcp).0, 200);
    let read = Request::get("/v1/memory/analytics/x?end_user_id=0198a000-0000-7000-8000-000000000001");
    assert_eq!(call(read.bearer(&secret(5))).0, 200);
    let last = place.origin.last();
    let kept = last.header("authorization").is_some_and(|value| value.ends_with(&secret(5)));
    assert!(kept, "MemoryBear looks the key up as well");
    for (n, path, status, code) in [
        (0, "/v1/memory/x", 403, 3012),
        (7, "/v1/app/conversations", 401, 3010),
        (200, "/v1/app/conversations", 401, 3009),
    ] {
        let (told, response) = call(Request::get(path).bearer(&secret(n)));
        assert_eq!((told, response.fault().1), (status, code), "{n}");
    }
    // What needs no key, and what does beside it.
    for path in [
        "app",
        "memory",
        "knowledges/knowledgetype",
        "knowledges/permissiontype",
        "knowledges/parsertype",
        "chunks/retrieve_type",
        "files/5b0c0d6e-7b9a-4a51-9a53-2f0c64a3a003",
    ] {
        let path = format!("/v1/{path}");
        assert_eq!(call(Request::get(&path)).0, 200, "{path}");
        assert_eq!(place.origin.last().target, path);
        let (told, _) = call(Request::get(&path).bearer(&secret(200)));
        assert_eq!(
            (told, place.origin.last().header("authorization")),
            (200, None),
            "{path}: whatever is sent along"
        );
        assert_eq!(
            call(Request::post(&path, "")).0,
            if path.contains("/files/") { 401 } else { 405 },
            "{path}"
        );
    }
    for path in
        ["/v1/app/conversations", "/v1/memory/x", "/v1/knowledges/x", "/v1/files/x/content", "/v1/chunks/x"]
    {
        assert_eq!(call(Request::get(path)).1.fault().1, 3007, "{path}");
    }
    let file = "/v1/files/5b0c0d6e-7b9a-4a51-9a53-2f0c64a3a003";
    assert_eq!(call(Request::new("DELETE", file).bearer(&secret(5))).0, 200, "5 holds rag");
    let qps = call(Request::get("/v1/app/conversations").bearer(&secret(2))).1;
    assert_eq!(qps.number("x-ratelimit-limit-qps"), 50, "a rate above the plan runs at the plan's");

    let users = shown(&gateway, "GET", "/endusers", None);
    assert_eq!(users["page"]["total"], json!(2), "ada was there, bob is new: {users}");
    let found = shown(&gateway, "POST", "/apikeys/lookup", Some(&json!({"api_key": secret(1)})));
    let stats = format!("/apikeys/{}/stats", found["id"].as_str().expect("an id"));
    // Twice one before, and one now.
    eventually_true("the past goes on", || {
        shown(&gateway, "GET", &stats, None)["total_requests"] == json!(3)
    });
}
