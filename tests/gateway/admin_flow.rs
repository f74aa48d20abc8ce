//! The admin API: the next request sees each change.

use crate::installation::Installation;
use crate::support::{Gateway, Key, Origin, Raw, Request, Response, eventually, eventually_true, one_route};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A kept connection to the proxy, and a request on it.
struct Line<'k> {
    raw: Raw,
    secret: &'k str,
}

impl<'k> Line<'k> {
    /// Opens it; its first request must be admitted.
    #[track_caller]
    fn open(gateway: &Gateway, secret: &'k str) -> Self {
        let mut line = Self { raw: gateway.connect(), secret };
        assert_eq!(line.ask().status, 200);
        line
    }

    /// A request on the connection, which must stay open for the next.
    #[track_caller]
    fn ask(&mut self) -> Response {
        self.raw.call(&Request::get("/v1/app/x").bearer(self.secret))
    }

    /// Status and code of a request.
    #[track_caller]
    fn told(&mut self) -> (u16, u64) {
        let response = self.ask();
        if response.status == 200 { (200, 0) } else { (response.status, response.fault().1) }
    }
}

#[track_caller]
fn delete(gateway: &Gateway, key: &Key) {
    gateway.managed("DELETE", &format!("/apikeys/{}", key.id), None);
}

/// Gives the key a new secret.
#[track_caller]
fn regenerate(gateway: &Gateway, key: &Key, body: &Value) -> String {
    let made = gateway.managed("POST", &format!("/apikeys/{}/regenerate", key.id), Some(body));
    assert_eq!(made["id"], json!(key.id));
    made["api_key"].as_str().expect("a secret").to_owned()
}

// === the walk-through ===

#[test]
fn a_key_from_its_creation_to_its_end() {
    let place = Installation::new();
    let gateway = place.start();
    let made = json!({"name": "checkout", "type": "service", "scopes": ["app"], "quota_limit": 2});
    let answer = gateway.admin("POST", "/apikeys", Some(&made));
    assert_eq!(answer.status, 200, "{answer:?}");
    let data = answer.data();
    let text = |field: &str| data[field].as_str().expect("text").to_owned();
    let key = Key { id: text("id"), secret: text("api_key") };
    assert!(!gateway.admin("GET", &format!("/apikeys/{}", key.id), None).text().contains(&key.secret));

    let mut line = Line::open(&gateway, &key.secret);
    assert_eq!(line.told(), (200, 0));
    let denied = line.ask();
    assert_eq!(denied.fault(), (429, 3016, "quota_exceeded".into()));
    assert_eq!(denied.data()["limit"], json!("quota_limit"), "{denied:?}");

    let rows = gateway.wait_for_logs(&key, 3);
    let seen: Vec<_> = rows.iter().map(|r| (r["status_code"].as_u64(), r["error"].as_str())).collect();
    assert_eq!(seen, [(Some(429), Some("quota_exceeded")), (Some(200), Some("")), (Some(200), Some(""))]);
    let stats = gateway.stats(&key);
    let figures = ["total_requests", "requests_today", "quota_used", "quota_limit", "denied"];
    let figures = figures.map(|name| stats[name].as_u64().expect("a number"));
    // Today is 0 when midnight has just passed.
    assert!(figures == [2, 2, 2, 2, 1] || figures == [2, 0, 2, 2, 1], "{stats}");
    assert!(stats["p99"].as_f64() > Some(0.0) && stats["last_used_at"].is_i64(), "{stats}");
    let usage = gateway.managed("GET", &format!("/apikeys/{}/usage?interval=hour", key.id), None);
    let points = usage["points"].as_array().expect("points");
    let sum = |field: &str| points.iter().filter_map(|p| p[field].as_u64()).sum::<u64>();
    assert_eq!((sum("requests"), sum("denied")), (3, 1), "{usage}");

    gateway.update_key(&key, &json!({"quota_limit": 100}));
    assert_eq!(line.told(), (200, 0), "more quota counts at once");
    gateway.update_key(&key, &json!({"is_active": false}));
    assert_eq!(line.told(), (401, 3011));
    gateway.update_key(&key, &json!({"is_active": true}));
    assert_eq!(line.told(), (200, 0));

    let second = regenerate(&gateway, &key, &json!({}));
    assert_eq!(line.told(), (401, 3009), "without grace the old secret is dead at once");
    let mut line = Line::open(&gateway, &second);
    let third = regenerate(&gateway, &key, &json!({"grace_period_seconds": 3600}));
    assert_eq!(line.told(), (200, 0), "with grace both secrets work");
    let mut newest = Line::open(&gateway, &third);
    assert_eq!(gateway.managed("GET", &format!("/apikeys/{}", key.id), None)["id"], json!(key.id));

    delete(&gateway, &key);
    assert_eq!((line.told(), newest.told()), ((401, 3009), (401, 3009)), "and neither is left");
    assert_eq!(gateway.admin("GET", &format!("/apikeys/{}", key.id), None).fault().1, 3007);
    // Two and a denial, one with more quota, denied while disabled, one again, the third secret's one and two of the
    // second: a secret that is not live belongs to nobody.
    assert_eq!(gateway.wait_for_logs(&key, 9).len(), 9, "the logs stay");
    assert_eq!(gateway.stats(&key)["quota_used"], json!(7), "and so do the statistics");
    let again = gateway.admin("POST", "/apikeys", Some(&made));
    assert_eq!(again.status, 200, "the name is free: {}", again.text());
    let twice = gateway.admin("POST", "/apikeys", Some(&made));
    assert_eq!(twice.fault(), (409, 3008, "api_key_duplicate_name".into()));
}

// === at once ===

#[test]
fn every_switch_of_a_key_is_seen_by_the_very_next_request() {
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let mut line = Line::open(&gateway, &key.secret);
    for round in 0..50 {
        gateway.update_key(&key, &json!({"is_active": false}));
        assert_eq!(line.told(), (401, 3011), "round {round}");
        gateway.update_key(&key, &json!({"is_active": true}));
        assert_eq!(line.told(), (200, 0), "round {round}");
    }
}

#[test]
fn every_new_secret_is_known_and_every_deleted_one_unknown_to_the_very_next_request() {
    let place = Installation::new();
    let gateway = place.start();
    let mut raw = gateway.connect();
    let mut told = |secret: &str| raw.call(&Request::get("/v1/app/x").bearer(secret)).status;
    for round in 0..20 {
        let key = gateway.create_key(json!({}));
        assert_eq!(told(&key.secret), 200, "round {round}");
        let renewed = regenerate(&gateway, &key, &json!({}));
        assert_eq!((told(&key.secret), told(&renewed)), (401, 200), "round {round}");
        delete(&gateway, &key);
        assert_eq!(told(&renewed), 401, "round {round}");
    }
}

#[test]
fn totals_of_the_workspace_and_its_quotas_are_told() {
    let origin = Origin::start();
    let config = format!(
        "{}[[upstreams]]\nname = 'nobody'\nservers = ['127.0.0.1:9']\n[[routes]]\npath = '/gone'\nupstream = 'nobody'\n",
        one_route(origin.address)
    );
    let gateway = Gateway::start(&config);
    let plan = json!({"id": "p", "api_ops_rate_limit": 900, "end_user_quota": 4, "limits": [
        {"count": "requests", "per": "second", "max": 900}, {"count": "requests", "per": "month", "max": 8}]});
    gateway.managed("POST", "/plans", Some(&plan));
    gateway.managed("PUT", "/workspaces/default", Some(&json!({"plan_id": "p"})));
    let key = gateway.create_key(json!({"quota_limit": 2}));
    let told =
        ["/v1/app/x", "/gone", "/v1/app/x", "/v1/app/x"].map(|path| gateway.get(path, &key.secret).status);
    assert_eq!(told, [200, 502, 200, 429]);
    eventually_true("all is counted", || gateway.recorded(&key) == 4);
    let stats = gateway.stats(&key);
    let figures = ["total_requests", "denied", "unreached", "quota_used"].map(|name| stats[name].as_u64());
    assert_eq!(figures, [Some(2), Some(1), Some(1), Some(2)], "{stats}");

    let usage = gateway.managed("GET", "/usage?group_by=key&from=0", None);
    let totals = &usage["totals"];
    assert_eq!(
        (&totals["total_requests"], &totals["denied"], &totals["unreached"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert_eq!(
        (&usage["items"][0]["key_id"], &usage["page"]["total"]),
        (&json!(key.id), &json!(1)),
        "{usage}"
    );
    let usage = gateway.managed("GET", "/usage?group_by=resource", None);
    assert_eq!(
        (&usage["items"][0]["resource_id"], &usage["from"]),
        (&json!("default"), &Value::Null),
        "{usage}"
    );
    assert_eq!(gateway.managed("GET", "/usage", None)["items"], json!([]));
    let refused = gateway.admin("GET", "/usage?group_by=hour&to=1&from=2", None);
    assert_eq!(refused.fault(), (400, 1003, "invalid_parameter".into()));
    assert_eq!(refused.data()["errors"].as_array().map(Vec::len), Some(2), "{}", refused.text());

    let viewer = gateway.mint("viewer", "default");
    let workspace = gateway.admin_as(&viewer, "GET", "/workspaces/default", None).data();
    assert_eq!(workspace["api_ops_rate_limit"], json!(900), "{workspace}");
    let expected = json!([
        {"name": "end_user_quota", "used": 0, "held": 0, "limit": 4, "granted": 0, "percentage": 0.0},
        {"name": "limits", "count": "requests", "per": "month", "used": 2, "held": 0, "limit": 8, "granted": 0, "percentage": 25.0},
    ]);
    assert_eq!(workspace["quotas"], expected);
}

#[test]
fn the_key_of_a_secret_is_found_by_those_who_may_see_it() {
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({}));
    let lookup = |token: &str, secret: &str| {
        gateway.admin_as(token, "POST", "/apikeys/lookup", Some(&json!({"api_key": secret})))
    };
    let (viewer, other) = (gateway.mint("viewer", "default"), gateway.mint("admin", "other"));
    let found = lookup(&viewer, &key.secret);
    assert_eq!(found.status, 200, "{}", found.text());
    let shown = found.data();
    assert_eq!((&shown["id"], &shown["secret_valid_until"]), (&json!(key.id), &Value::Null));
    assert!(!found.text().contains(&key.secret));
    let renewed = regenerate(&gateway, &key, &json!({"grace_period_seconds": 3600}));
    assert!(lookup(&viewer, &key.secret).data()["secret_valid_until"].is_i64(), "the one before the current");
    gateway.update_key(&key, &json!({"is_active": false}));
    assert_eq!(lookup(&viewer, &renewed).data()["id"], json!(key.id), "a disabled key is found");
    let missing = (404, 3007, "api_key_not_found".into());
    assert_eq!(lookup(&other, &renewed).fault(), missing, "of another workspace");
    assert_eq!(lookup(&viewer, "sk-service-nobody").fault(), missing);
    assert_eq!(lookup(&viewer, "white space").fault(), (400, 1001, "validation_failed".into()));
    delete(&gateway, &key);
    assert_eq!(lookup(&viewer, &renewed).fault(), missing, "deleted");
    assert!(!gateway.stderr().contains(&renewed));
}

// === restore ===

#[test]
fn a_deleted_key_is_restored_with_its_secret_and_what_it_has_spent() {
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({"name": "accident", "quota_limit": 3}));
    let one = format!("/apikeys/{}", key.id);
    let restore = |status: u16| {
        let answer = gateway.admin("POST", &format!("{one}/restore?wait=all"), None);
        assert_eq!(answer.status, status, "{}", answer.text());
        answer
    };
    let mut line = Line::open(&gateway, &key.secret);
    assert_eq!(line.told(), (200, 0));
    assert_eq!(restore(409).fault(), (409, 1000, "conflict".into()), "it is not deleted");

    delete(&gateway, &key);
    assert_eq!(line.told(), (401, 3009));
    let listed = gateway.managed("GET", "/apikeys?is_deleted=true", None);
    assert_eq!((&listed["items"][0]["id"], &listed["page"]["total"]), (&json!(key.id), &json!(1)));
    assert!(listed["items"][0]["deleted_at"].is_i64(), "{listed}");
    let other = gateway.mint("admin", "other");
    let foreign = gateway.admin_as(&other, "POST", &format!("{one}/restore"), None);
    assert_eq!(foreign.fault(), (404, 3007, "api_key_not_found".into()));

    let namesake = gateway.create_key(json!({"name": "accident"}));
    assert_eq!(restore(409).fault(), (409, 3008, "api_key_duplicate_name".into()));
    delete(&gateway, &namesake);
    let restored = restore(200).data();
    assert_eq!((&restored["id"], &restored["propagation"]["complete"]), (&json!(key.id), &json!(true)));
    assert_eq!(line.told(), (200, 0), "the very next request sees it");
    assert_eq!(line.told(), (429, 3016), "what was spent before counts");
    gateway.wait_for_logs(&key, 4);
    assert_eq!(gateway.stats(&key)["quota_used"], json!(3));
    let audit = format!("/audit?target={}&action=key.restore", key.id);
    let told = gateway.admin_as(&gateway.mint("admin", "default"), "GET", &audit, None).data();
    assert_eq!(told["page"]["total"], json!(1), "{told}");
}

#[test]
fn a_restored_key_goes_on_where_it_was_after_a_restart_in_between() {
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({"quota_limit": 2}));
    let gone = gateway.create_key(json!({}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    gateway.wait_for_logs(&key, 1);
    delete(&gateway, &key);
    delete(&gateway, &gone);
    gateway.managed("PUT", "/plans/default", Some(&json!({"deleted_keys_days": 0})));
    let late = gateway.admin("POST", &format!("/apikeys/{}/restore", gone.id), None);
    assert_eq!(late.fault(), (404, 3007, "api_key_not_found".into()), "its time is over");
    gateway.managed("PUT", "/plans/default", Some(&json!({"deleted_keys_days": 1})));
    drop(gateway);

    let listed = place.done(&["keys", "list", "--deleted"]);
    assert!(listed.contains(&format!("{}  deleted  service", key.id)), "{listed}");
    let gateway = place.start();
    gateway.managed("POST", &format!("/apikeys/{}/restore", key.id), None);
    let told = [0; 2].map(|_| gateway.get("/v1/app/x", &key.secret).status);
    assert_eq!(told, [200, 429], "one of two was spent before the restart");
    drop(gateway);

    place.done(&["keys", "restore", &gone.id]);
    assert_eq!(place.start().get("/v1/app/x", &gone.secret).status, 200);
}

// === plans ===

/// Makes the plan and puts the workspace of the first token on it.
fn on_plan(gateway: &Gateway, id: &str, rate: u32) {
    let plan = json!({"id": id, "api_ops_rate_limit": rate, "end_user_quota": 10});
    gateway.managed("POST", "/plans", Some(&plan));
    gateway.managed("PUT", "/workspaces/default", Some(&json!({"plan_id": id})));
}

/// Sends requests until a limit refuses one; at most as many as the lowered rate allows on a slow machine.
#[track_caller]
fn denied(line: &mut Line<'_>) -> Response {
    (0..1_000).map(|_| line.ask()).find(|r| r.status != 200).expect("a denial")
}

#[test]
fn a_rate_above_the_plan_is_an_error_that_names_the_plans_limit() {
    let place = Installation::new();
    let gateway = place.start();
    on_plan(&gateway, "small", 7);
    let key = gateway.create_key(json!({}));
    assert_eq!(gateway.managed("GET", &format!("/apikeys/{}", key.id), None)["rate_limit"], json!(7));
    let above = json!({"name": "n", "type": "service", "scopes": ["app"], "rate_limit": 8});
    let update = format!("/apikeys/{}", key.id);
    for (method, path) in [("POST", "/apikeys"), ("PUT", update.as_str())] {
        let body = if method == "POST" { above.clone() } else { json!({"rate_limit": 8}) };
        let refused = gateway.admin(method, path, Some(&body));
        assert_eq!(refused.fault(), (400, 1000, "bad_request".into()));
        assert!(refused.json()["msg"].as_str().is_some_and(|m| m.contains('7')), "{}", refused.text());
        assert_eq!((&refused.data()["plan_limit"], &refused.data()["plan_id"]), (&json!(7), &json!("small")));
    }
    assert_eq!(
        gateway.managed("GET", &update, None)["rate_limit"],
        json!(7),
        "nothing was capped or changed"
    );
}

#[test]
fn a_lowered_plan_binds_the_very_next_request_and_the_denial_says_so() {
    let place = Installation::new();
    let gateway = place.start();
    on_plan(&gateway, "shrinking", 900);
    let key = gateway.create_key(json!({"rate_limit": 900, "rate_burst": 900}));
    let mut line = Line::open(&gateway, &key.secret);
    gateway.managed("PUT", "/plans/shrinking", Some(&json!({"api_ops_rate_limit": 1})));
    assert_eq!(line.ask().number("x-ratelimit-limit-qps"), 1);
    let refused = denied(&mut line);
    assert_eq!(refused.fault(), (429, 3014, "rate_limit_exceeded".into()));
    let data = refused.data();
    assert_eq!((&data["limit"], &data["set_by"]), (&json!("api_ops_rate_limit"), &json!("plan")), "{data}");
    assert!(refused.json()["msg"].as_str().is_some_and(|m| m.contains("plan")), "{}", refused.text());
    let kept = gateway.managed("GET", &format!("/apikeys/{}", key.id), None);
    assert_eq!(kept["rate_limit"], json!(900), "the key itself is as it was");
    gateway.managed("PUT", "/plans/shrinking", Some(&json!({"api_ops_rate_limit": 900})));
    assert_eq!(line.ask().number("x-ratelimit-limit-qps"), 900, "and is free again with the plan");
}

#[test]
fn a_workspace_moved_to_another_plan_is_bound_by_it_at_once() {
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({"rate_limit": 900}));
    let mut line = Line::open(&gateway, &key.secret);
    on_plan(&gateway, "tiny", 2);
    assert_eq!(line.ask().number("x-ratelimit-limit-qps"), 2);
    assert_eq!(denied(&mut line).data()["set_by"], json!("plan"));
    gateway.managed("PUT", "/workspaces/default", Some(&json!({"plan_id": "default"})));
    assert_eq!(line.ask().number("x-ratelimit-limit-qps"), 900);
    let in_use = json!({"plan_id": "tiny"});
    gateway.managed("PUT", "/workspaces/default", Some(&in_use));
    assert_eq!(gateway.admin("DELETE", "/plans/tiny", None).fault(), (409, 1000, "conflict".into()));
    let unknown = gateway.admin("PUT", "/workspaces/default", Some(&json!({"plan_id": "none"})));
    assert_eq!(unknown.fault(), (400, 1001, "validation_failed".into()));
}

// === logs ===

#[test]
fn logs_are_filtered_and_a_cursor_walks_every_row_once_while_new_ones_arrive() {
    const ROWS: usize = 60;
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({"scopes": ["app"], "rate_limit": 1000}));
    let mut raw = gateway.connect();
    let mut ask = |target: &str| raw.call(&Request::get(target).bearer(&key.secret)).status;
    for n in 0..ROWS {
        let (target, expected) =
            [("/v1/app/Alpha", 200), ("/v1/app/beta%25", 200), ("/v1/rag/denied", 403)][n % 3];
        assert_eq!(ask(target), expected);
    }
    let logs = |query: &str| gateway.managed("GET", &format!("/apikeys/{}/logs?{query}", key.id), None);
    let total = |query: &str| logs(query)["page"]["total"].as_u64().expect("a total");
    eventually_true("all rows are in the ledger", || total("") == ROWS as u64);
    let newest = logs("pagesize=1")["items"][0]["created_at"].as_i64().expect("an instant");
    for (query, expected) in [
        ("status_code=403", 20),
        ("status_code=500", 0),
        ("endpoint=ALPHA", 20),
        ("endpoint=%25", 20),
        ("endpoint=/app/", 40),
        ("endpoint=/app/&status_code=403", 0),
        (&format!("start_date={}", newest + 1), 0),
        (&format!("end_date={}", newest + 1), 60),
        ("start_date=2020-01-01T00:00:00Z&end_date=2020-01-02T00:00:00Z", 0),
    ] {
        assert_eq!(total(query), expected, "{query}");
    }
    for query in ["status_code=99", "status_code=600", "start_date=2&end_date=1", "cursor=x", "pagesize=101"]
    {
        let refused = gateway.admin("GET", &format!("/apikeys/{}/logs?{query}", key.id), None);
        assert_eq!(refused.fault(), (400, 1003, "invalid_parameter".into()), "{query}");
    }

    let mut walked = Vec::new();
    let mut part = logs("pagesize=7");
    loop {
        walked.extend(part["items"].as_array().expect("rows").clone());
        let Some(cursor) = part["page"]["next_cursor"].as_str() else { break };
        // Rows that arrive between two pages shift page numbers, but not cursors.
        let before = total("");
        assert_eq!(ask("/v1/app/new"), 200);
        eventually_true("the new row is in the ledger", || total("") > before);
        part = logs(&format!("pagesize=7&cursor={cursor}"));
    }
    let ids: BTreeSet<_> = walked.iter().map(|row| row["id"].as_str().expect("an id")).collect();
    assert_eq!((walked.len(), ids.len()), (ROWS, ROWS), "each row once");
    assert!(walked.iter().all(|row| row["endpoint"] != json!("/v1/app/new")));
    assert!(walked.is_sorted_by_key(|row| -row["created_at"].as_i64().expect("an instant")), "newest first");
}

// === who may what ===

#[test]
fn a_role_too_low_and_another_workspace_are_refused() {
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({}));
    let one = format!("/apikeys/{}", key.id);
    let (viewer, other) = (gateway.mint("viewer", "default"), gateway.mint("admin", "other"));
    let off = json!({"is_active": false});
    assert_eq!(gateway.admin_as(&viewer, "GET", &one, None).status, 200);
    for (method, body) in [("PUT", Some(&off)), ("DELETE", None)] {
        let low = gateway.admin_as(&viewer, method, &one, body);
        assert_eq!(low.fault(), (403, 3001, "forbidden".into()), "{method}");
        let foreign = gateway.admin_as(&other, method, &one, body);
        assert_eq!(foreign.fault(), (404, 3007, "api_key_not_found".into()), "{method}");
    }
    for path in ["", "/stats", "/usage", "/logs"] {
        let foreign = gateway.admin_as(&other, "GET", &format!("{one}{path}"), None);
        assert_eq!(foreign.fault(), (404, 3007, "api_key_not_found".into()), "{path}");
    }
    let named = Request::get("/apikeys").bearer(&other).header("X-Workspace-Id", "default");
    assert_eq!(Raw::connect(gateway.admin).call(&named).fault(), (403, 3003, "workspace_no_access".into()));
    let bare = Raw::connect(gateway.admin).call(&Request::get("/apikeys"));
    assert_eq!(bare.fault(), (401, 2001, "unauthorized".into()));
    assert_eq!(gateway.admin_as("a.b.c", "GET", "/apikeys", None).fault().1, 2002);
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200, "and nothing has changed");
}

#[test]
fn an_expired_token_is_told_apart_from_a_bad_one() {
    let place = Installation::with("[admin.jwt]\nleeway = '0s'");
    let gateway = place.start();
    let short = place.done(&["token", "--workspace", "default", "--ttl", "1s"]);
    let refused = eventually("a token of one second expires", || {
        Some(gateway.admin_as(&short, "GET", "/apikeys", None)).filter(|answer| answer.status != 200)
    });
    assert_eq!(refused.fault(), (401, 2003, "token_expired".into()));
}

#[test]
fn messages_are_in_chinese_where_preferred() {
    let place = Installation::new();
    let gateway = place.start();
    let call = |address, request: Request| {
        let response = Raw::connect(address).call(&request.header("Accept-Language", "zh-CN,en;q=0.5"));
        response.json()["msg"].as_str().expect("text").to_owned()
    };
    let token = gateway.token();
    let missing = "/apikeys/019378a0-0000-7000-8000-000000000000";
    assert_eq!(call(gateway.admin, Request::get(missing).bearer(&token)), "该 API 密钥不存在");
    let above =
        Request::post("/apikeys", r#"{"name":"n","type":"service","scopes":["app"],"rate_limit":1001}"#);
    let above = above.header("Content-Type", "application/json").bearer(&token);
    assert_eq!(call(gateway.admin, above), "rate_limit 1001 超过套餐 default 的上限：每秒 1000 次请求");
    assert_eq!(call(gateway.proxy, Request::get("/v1/app/x").bearer("nobody")), "API 密钥无效");
}

// === pages, readiness, metrics ===

#[test]
fn the_documentation_and_the_readiness_are_there_without_a_token() {
    let place = Installation::new();
    let gateway = place.start();
    let get = |path: &str| Raw::connect(gateway.admin).call(&Request::get(path));
    let docs = get("/docs/");
    assert_eq!((docs.status, docs.text().contains("swagger-ui")), (200, true), "{docs:?}");
    let elsewhere = ["src=\"http", "href=\"http", "src=\"//"];
    assert!(elsewhere.iter().all(|e| !docs.text().contains(e)), "nothing is loaded from elsewhere");
    assert_eq!(get("/openapi.json").json()["info"]["title"], json!("Keygate admin API"));
    assert_eq!(get("/healthz").data(), json!({"alive": true}));
    assert_eq!(get("/readyz").data(), json!({"ready": true}));
    let verbose = get("/readyz?verbose").data();
    let checks = verbose["checks"].as_array().expect("checks");
    let names: Vec<_> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(names, ["accepting", "change_feed", "keyring", "usage_journal", "usage"], "{verbose}");
    assert!(checks.iter().all(|check| check["ok"] == json!(true)), "{verbose}");
    assert_eq!(get("/nothing").fault(), (404, 4000, "not_found".into()));
}

/// Every series of `/metrics` with its value.
#[track_caller]
fn metrics(gateway: &Gateway) -> BTreeMap<String, f64> {
    let text = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        (name.to_owned(), value.parse().expect("a number"))
    });
    series.collect()
}

/// The values of one label over all series that count something.
fn values<'m>(metrics: &'m BTreeMap<String, f64>, label: &str) -> BTreeSet<&'m str> {
    let begin = format!("{label}=\"");
    let counted = metrics.iter().filter(|(_, value)| **value > 0.0).map(|(name, _)| name);
    let after = counted.filter_map(|name| name.split(&begin).nth(1));
    after.filter_map(|rest| rest.split('"').next()).collect()
}

/// The series, labels and label values that alerts and dashboards query.
fn asked_for() -> Vec<(String, Vec<String>)> {
    let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let mut all = Vec::new();
    for file in ["prometheus/alerts.yml", "grafana/dashboards/keygate.json"] {
        let text = std::fs::read_to_string(conf.join(file)).expect(file).replace("\\\"", "\"");
        for (at, _) in text.match_indices("keygate_") {
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').expect("an end");
            let (name, behind) = rest.split_at(end);
            let labels =
                behind.strip_prefix('{').and_then(|labels| labels.split_once('}')).map_or("", |(l, _)| l);
            // Template variables of the dashboard and labels that Prometheus adds are not exported by a gateway.
            let fixed = labels.split(',').map(str::trim).filter(|label| {
                label
                    .split_once('=')
                    .is_some_and(|(name, value)| !value.starts_with('~') && !name.ends_with('!'))
            });
            all.push((name.to_owned(), fixed.map(str::to_owned).collect()));
        }
    }
    assert!(all.len() > 30, "{all:?}");
    all
}

#[test]
fn every_series_is_there_before_its_first_event_and_none_comes_with_one() {
    let place = Installation::new();
    let gateway = place.start();
    let fresh = metrics(&gateway);
    for (name, labels) in asked_for() {
        // Only a gateway with TLS listeners, or with metered routes, exports these.
        let is_there = name.starts_with("keygate_certificate_")
            || ["keygate_tokens_total", "keygate_cost_nano_total"].contains(&&*name)
            || fresh.keys().any(|series| {
                let is_it =
                    series.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
                is_it && labels.iter().all(|label| series.contains(label.as_str()))
            });
        assert!(is_there, "{name} {labels:?} is not in {fresh:#?}");
    }
    let key = gateway.create_key(json!({"scopes": ["app"], "rate_limit": 1000, "quota_limit": 4}));
    place.origin.answer(500, &[], b"");
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 500);
    place.origin.answer(302, &[], b"");
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 302);
    place.origin.script(|_, _| Err(std::io::ErrorKind::ConnectionAborted.into()));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 502);
    place.origin.script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")?;
        Err(std::io::ErrorKind::ConnectionAborted.into())
    });
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    assert_eq!(client.response_head().status, 200);
    assert!(client.ends());
    for (target, secret, status) in [
        ("/v1/app/x", key.secret.as_str(), 429),
        ("/v1/rag/x", &key.secret, 403),
        ("/v1/app/x", "nonsense", 401),
        ("/nowhere", &key.secret, 404),
        ("/v1/app/..", &key.secret, 400),
    ] {
        assert_eq!(gateway.get(target, secret).status, status, "{target}");
    }
    let mut client = gateway.connect();
    client.send(b"nonsense\r\n\r\n");
    assert_eq!(client.response().status, 400);
    let now = eventually("all of it is counted", || {
        let now = metrics(&gateway);
        let counted: f64 =
            now.iter().filter(|(name, _)| name.starts_with("keygate_requests_total{")).map(|(_, n)| n).sum();
        (counted > 9.5).then_some(now)
    });
    let new: Vec<_> = now.keys().filter(|name| !fresh.contains_key(*name)).collect();
    assert_eq!(new, Vec::<&String>::new());
    let outcomes = values(&now, "outcome");
    assert!(
        ["denied", "served", "upstream_failed"].iter().all(|outcome| outcomes.contains(outcome)),
        "{outcomes:?}"
    );
}

#[test]
fn metrics_count_every_record_and_no_client_chooses_a_label() {
    let place = Installation::new();
    let gateway = place.start();
    let key = gateway.create_key(json!({"scopes": ["app"], "rate_limit": 1000}));
    let garbage = |round: u32| {
        for n in 0..40 {
            let name = format!("Garbage{round}x{n}");
            let requests = [
                Request::get(&format!("/{name}")).bearer(&key.secret),
                Request::new(&name.to_uppercase(), "/v1/app/x").bearer(&key.secret),
                Request::get(&format!("/v1/app/{name}?{name}={name}")).bearer(&name),
                Request::get(&format!("/v1/rag/{name}")).bearer(&key.secret),
                Request::get(&format!("/v1/app/{name}"))
                    .bearer(&key.secret)
                    .header("User-Agent", &name)
                    .header("X-Request-Id", &name)
                    .header("X-End-User-Id", &name),
            ];
            for request in requests {
                gateway.call(&request);
            }
        }
        let of = |metrics: &BTreeMap<String, f64>, what: &str| metrics[&format!("keygate_usage_{what}")];
        let settled = eventually("all records are in the ledger", || {
            let now = metrics(&gateway);
            let [accepted, stored, in_journal, shed, set_aside] =
                ["accepted_total", "stored_total", "in_journal", "shed_total", "set_aside_total"]
                    .map(|what| of(&now, what));
            assert!((accepted - stored - in_journal - shed - set_aside).abs() < 0.5, "{now:?}");
            // The requests with the known secret that have a route: three of the five.
            let expected = f64::from(round * 120);
            assert!(accepted < expected + 0.5, "{now:?}");
            ((stored - expected).abs() < 0.5).then_some(now)
        });
        assert_eq!(gateway.recorded(&key), u64::from(round * 120));
        settled
    };
    let first = garbage(1);
    let second = garbage(2);
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>(), "no new series");
    assert!(second.keys().all(|name| !name.to_lowercase().contains("garbage") && !name.contains(&key.id)));
    assert_eq!(values(&second, "route"), BTreeSet::from(["", "app", "rag"]));
    assert_eq!(values(&second, "status"), BTreeSet::from(["2xx", "4xx"]));
    assert_eq!(values(&second, "outcome"), BTreeSet::from(["denied", "served"]));
    let errors = BTreeSet::from(["api_key_invalid", "api_key_invalid_scope", "route_not_found"]);
    assert_eq!(values(&second, "error"), errors);
}
