//! Budgets of tokens: what a metered request holds, what it is settled to, and what a refusal says.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::support::{Gateway, Key, Origin, Request, eventually_true, route, upstream};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// 82 bytes, which are estimated as 21 tokens.
const QUESTION: &str =
    r#"{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"Hello? 7"}]}"#;
/// What each whole answer uses.
const USED: u64 = 130;
/// What each request holds besides its input.
const HOLD: u64 = 200;

/// A gateway whose backend answers with two events and then its usage.
fn start(more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.script(|_, out| {
        out.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        for event in [
            r#"{"id":"c-1","model":"gpt-4o","choices":[{"delta":{"content":"Hello"}}]}"#,
            r#"{"id":"c-1","model":"gpt-4o","choices":[],"usage":{"prompt_tokens":90,"completion_tokens":40}}"#,
        ] {
            write!(out, "{:x}\r\ndata: {event}\n\n\r\n", event.len() + 8)?;
            out.flush()?;
        }
        out.write_all(b"0\r\n\r\n")
    });
    let config = [
        upstream("app", origin.address),
        route("llm", "/v1/{rest*}", "app", &format!("meter = \"llm\"\nhold = {HOLD}")),
        route("plain", "/plain", "app", ""),
        H2C.to_owned(),
        more.to_owned(),
    ];
    let gateway = Gateway::start(&config.concat());
    (origin, gateway)
}

fn question(key: &Key) -> Request {
    Request::post("/v1/chat/completions", QUESTION).bearer(&key.secret)
}

/// A question whose input is estimated as more than it is, so that it holds enough, also when its output is known.
fn long_question(key: &Key) -> Request {
    Request::post("/v1/chat/completions", long_body()).bearer(&key.secret)
}

fn long_body() -> String {
    QUESTION.replace("Hello? 7", &"Hello? 7".repeat(50))
}

/// `used`, `held` and `percentage` of the limit of that measure in the statistics.
fn usage(gateway: &Gateway, key: &Key, count: &str) -> (u64, u64, f64) {
    let stats = gateway.stats(key);
    let limits = stats["limit_usage"].as_array().unwrap();
    let limit = limits.iter().find(|limit| limit["count"] == count).unwrap();
    let number = |name: &str| limit[name].as_u64().unwrap();
    (number("used"), number("held"), limit["percentage"].as_f64().unwrap())
}

fn held(gateway: &Gateway) -> Vec<String> {
    let metrics = gateway.metrics();
    metrics.lines().filter(|line| line.starts_with("keygate_held_units{")).map(str::to_owned).collect()
}

fn nothing_is_held(gateway: &Gateway) -> bool {
    let all = held(gateway);
    all.len() == 4 && all.iter().all(|line| line.ends_with(" 0"))
}

#[test]
fn a_budget_is_used_up_and_never_passed_by_many_streams_that_hold_enough() {
    const BUDGET: u64 = 20_000;
    let (_origin, gateway) = start("[plans.default]\napi_ops_rate_limit = 1000000\n");
    let limits = json!([{"count": "tokens", "per": "total", "max": BUDGET}]);
    let key = gateway.create_key(json!({"rate_limit": 1_000_000, "limits": limits}));
    let (whole, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..64 {
            let (gateway, key, whole, refused) = (&gateway, &key, &whole, &refused);
            scope.spawn(move || {
                for turn in 0..4 {
                    if (n + turn) % 8 == 0 {
                        // Leaves when the answer has begun, or was refused.
                        let mut client = gateway.connect();
                        client.send(&long_question(key).bytes());
                        _ = client.response_head();
                        continue;
                    }
                    match gateway.call(&long_question(key)).status {
                        200 => whole.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other}"),
                    };
                }
            });
        }
    });
    eventually_true("nothing is held", || nothing_is_held(&gateway));
    // What is left is too little for another hold, or is used up one by one.
    while gateway.call(&long_question(&key)).status == 200 {
        whole.fetch_add(1, Ordering::Relaxed);
    }
    assert!(refused.load(Ordering::Relaxed) > 0, "64 streams hold more than there is");
    let hold = HOLD + u64::try_from(long_body().len()).unwrap().div_ceil(4);
    // Whatever the counters refuse, the ledger will know.
    eventually_true("all is stored", || usage(&gateway, &key, "tokens").0 > BUDGET - hold);
    let (used, held, _) = usage(&gateway, &key, "tokens");
    assert_eq!(held, 0);
    assert!((BUDGET - hold + 1..=BUDGET).contains(&used), "{used} used");
    assert!(nothing_is_held(&gateway), "{:?}", self::held(&gateway));
    let passed = "keygate_limit_overshoot_total{measure=\"tokens\"} 0";
    assert!(gateway.metrics().lines().any(|line| line == passed));
    // A route without a meter uses none of the budget.
    assert_eq!(gateway.get("/plain", &key.secret).status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_the_limit_that_binds_and_survives_a_restart() {
    let (_origin, gateway) = start("");
    let limits = json!([
        {"count": "tokens", "per": "month", "max": 300},
        {"count": "output_tokens", "per": "total", "max": 1_000_000},
    ]);
    let key = gateway.create_key(json!({"limits": limits}));
    let first = gateway.call(&question(&key));
    assert_eq!(first.status, 200);
    assert_eq!(first.header("x-ratelimit-limit-tokens"), Some("300"));
    assert_eq!(first.header("x-ratelimit-remaining-tokens"), Some("79"), "300 less what is held");
    assert!(first.header("x-ratelimit-reset-tokens").is_some_and(|reset| reset.ends_with('s')));
    assert!(first.header("ratelimit").is_some_and(|left| left.contains("\"key-tokens-month\";r=79;t=")));
    gateway.wait_for_logs(&key, 1);
    let check = |status: u16, body: &[u8]| {
        let told: Value = serde_json::from_slice(body).unwrap();
        assert_eq!((status, &told["error"]), (429, &json!("limit_exceeded")), "{told}");
        let data = &told["data"];
        let named =
            ["limit", "count", "of", "per", "max", "remaining", "set_by"].map(|name| data[name].clone());
        assert_eq!(json!(named), json!(["limits", "tokens", "key", "month", 300, 170, "key"]));
        assert!(data["resets_in"].as_u64().is_some_and(|secs| secs > 0), "{data}");
        assert_eq!(data["retry_after"], data["resets_in"]);
        assert_eq!(told["msg"], "The key's 300 tokens of this month are used up");
    };
    let refused = gateway.call(&question(&key));
    check(refused.status, &refused.body);
    assert_eq!(refused.header("x-ratelimit-remaining-tokens"), Some("170"));
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut body) =
        client.begin(request("POST", "/v1/chat/completions", &key.secret), false).await;
    body.send_data(Bytes::from_static(QUESTION.as_bytes()), true).unwrap();
    let answer = read(response).await.unwrap();
    check(answer.status.as_u16(), &answer.body);
    assert_eq!(usage(&gateway, &key, "tokens"), (USED, 0, 43.33));
    assert_eq!(usage(&gateway, &key, "output_tokens"), (40, 0, 0.0));
    let gateway = gateway.restart();
    let again = gateway.call(&question(&key));
    check(again.status, &again.body);
    // A higher limit counts what happened before it.
    gateway.update_key(&key, &json!({"limits": [{"count": "tokens", "per": "total", "max": 351}]}));
    assert_eq!(gateway.call(&question(&key)).header("x-ratelimit-remaining-tokens"), Some("0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_beyond_the_hold_counts_as_overshoot() {
    let (_origin, gateway) = start("");
    let limits = json!([{"count": "output_tokens", "per": "total", "max": 10}]);
    let key = gateway.create_key(json!({"limits": limits}));
    // A hold never exceeds a limit, so that this one can be used at all.
    assert_eq!(gateway.call(&question(&key)).status, 200);
    assert_eq!(gateway.call(&question(&key)).status, 429);
    let passed = "keygate_limit_overshoot_total{measure=\"output_tokens\"} 30";
    assert!(gateway.metrics().lines().any(|line| line == passed));
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut body) =
        client.begin(request("POST", "/v1/chat/completions", &key.secret), false).await;
    body.send_data(Bytes::from_static(QUESTION.as_bytes()), true).unwrap();
    assert_eq!(read(response).await.unwrap().status, 429);
}

#[test]
fn each_end_user_and_each_key_has_a_budget_of_its_own() {
    let plan = "[plans.default]\nlimits = [\n\
                { of = \"end_user\", count = \"tokens\", per = \"day\", max = 220 },\n\
                { of = \"key\", count = \"cost\", per = \"total\", max = 1000000 },\n\
                { count = \"tokens\", per = \"total\", max = 1000 },\n]\n\
                [[prices]]\nmodel = \"gpt-4o\"\ninput = 1\noutput = 2\n";
    let (_origin, gateway) = start(plan);
    let (one, other) = (gateway.create_key(json!({})), gateway.create_key(json!({})));
    let ask = |gateway: &Gateway, key: &Key, user: &str| {
        let response = gateway.call(&question(key).header("X-End-User-Id", user));
        let told: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        (response.status, told["data"]["of"].clone(), told["data"]["count"].clone())
    };
    let of_end_user = (429, json!("end_user"), json!("tokens"));
    assert_eq!(ask(&gateway, &one, "ada").0, 200, "a new end user");
    assert_eq!(ask(&gateway, &other, "ada"), of_end_user, "of whichever key");
    assert_eq!(ask(&gateway, &other, "bob").0, 200);
    assert_eq!(ask(&gateway, &one, "bob"), of_end_user);
    gateway.wait_for_logs(&one, 2);
    gateway.wait_for_logs(&other, 2);
    let cost = 90 * 1_000 + 40 * 2_000;
    assert_eq!(usage(&gateway, &one, "cost"), (cost, 0, 17.0));
    let workspace = gateway.managed("GET", "/workspaces/default", None);
    let quotas = workspace["quotas"].as_array().unwrap();
    let tokens = quotas.iter().find(|quota| quota["count"] == "tokens").unwrap();
    assert_eq!(
        (&tokens["used"], &tokens["held"], &tokens["percentage"]),
        (&json!(260), &json!(0), &json!(26.0))
    );
    assert!(quotas.iter().all(|quota| quota["count"] != "cost"), "that is each key's: {quotas:?}");
    let gateway = gateway.restart();
    assert_eq!(ask(&gateway, &one, "ada"), of_end_user, "the ledger knows it");
    assert_eq!(ask(&gateway, &one, "eve").0, 200);
}

#[test]
fn limits_on_measures_that_cannot_be_counted_are_refused() {
    let (_origin, gateway) = start("");
    let refused = |limit: Value| {
        let body = json!({"name": "k", "scopes": ["app"], "limits": [limit]});
        let response = gateway.admin("POST", "/apikeys", Some(&body));
        let told: Value = serde_json::from_slice(&response.body).unwrap();
        (response.status, told["data"]["errors"][0].clone())
    };
    let (status, error) = refused(json!({"count": "tokens", "per": "second", "max": 1}));
    assert_eq!((status, &error["field"]), (400, &json!("limits[0].per")), "{error}");
    let plan = json!({
        "id": "p", "api_ops_rate_limit": 1, "end_user_quota": 1,
        "limits": [{"of": "end_user", "count": "tokens", "per": "hour", "max": 1}],
    });
    let response = gateway.admin("POST", "/plans", Some(&plan));
    assert_eq!(response.status, 400);
    assert!(
        response.text().contains("must be day, week, month or total for end users"),
        "{}",
        response.text()
    );
}

#[test]
fn a_limit_that_no_route_can_count_is_refused_where_it_is_set() {
    let origin = Origin::start();
    let config = [
        upstream("app", origin.address),
        route("chat", "/chat", "app", "scopes = [\"chat\"]\nmeter = \"llm\""),
        route("jobs", "/jobs", "app", "scopes = [\"jobs\"]\nmeter = \"json:/units\""),
        route("plain", "/plain", "app", ""),
    ];
    let gateway = Gateway::start(&config.concat());
    let limits = |count: &str| json!([{"count": "requests", "per": "day", "max": 9}, {"count": count, "per": "month", "max": 9}]);
    let key = |n: &str, scopes: Value, count: &str| json!({"name": n, "type": "service", "scopes": scopes, "limits": limits(count)});
    let told = |method: &str, path: &str, body: &Value| {
        let response = gateway.admin(method, path, Some(body));
        let told: Value = serde_json::from_slice(&response.body).unwrap();
        (response.status, told["data"]["errors"][0].clone(), told["data"]["id"].clone())
    };
    let wrong = |count: &str| {
        let message = format!(
            "would count nothing: no route that the key's scopes allow has a meter that counts {count}"
        );
        json!({"field": "limits[1].count", "message": message})
    };
    for (n, (scopes, count, is_counted)) in [
        (json!(["chat"]), "cost", true),
        (json!(["app", "chat"]), "input_tokens", true),
        (json!(["app"]), "tokens", false),
        (json!([]), "cost", false),
        (json!(["jobs"]), "tokens", true),
        (json!(["jobs"]), "output_tokens", false),
        (json!(["app"]), "requests", true),
    ]
    .into_iter()
    .enumerate()
    {
        let body = key(&n.to_string(), scopes, count);
        let (status, error, _) = told("POST", "/apikeys", &body);
        let expected = if is_counted { (200, Value::Null) } else { (400, wrong(count)) };
        assert_eq!((status, error), expected, "{body}");
    }
    // A change counts with the scopes that the key has then.
    let (_, _, id) = told("POST", "/apikeys", &key("changed", json!(["app"]), "requests"));
    let uri = format!("/apikeys/{}", id.as_str().unwrap());
    let (status, error, _) = told("PUT", &uri, &json!({"limits": limits("tokens")}));
    assert_eq!((status, error), (400, wrong("tokens")));
    assert_eq!(told("PUT", &uri, &json!({"limits": limits("tokens"), "scopes": ["jobs"]})).0, 200);
    assert_eq!(told("PUT", &uri, &json!({"description": "as it was"})).0, 200);
    // Rows of an import are refused one by one.
    let mut row = key("imported", json!(["app"]), "tokens");
    row["sha256"] = json!("ab".repeat(32));
    let imported = gateway.managed("POST", "/apikeys/import", Some(&json!({"keys": [row]})));
    assert_eq!((&imported["imported"], &imported["rows"][0]["errors"][0]), (&json!(0), &wrong("tokens")));
    // A plan is for any key.
    let plan = json!({"id": "p", "api_ops_rate_limit": 1, "end_user_quota": 1, "limits": limits("cost")});
    assert_eq!(told("POST", "/plans", &plan).0, 201);

    let config = [upstream("app", origin.address), route("jobs", "/jobs", "app", "meter = \"json:/units\"")];
    let gateway = Gateway::start(&config.concat());
    let told = |method: &str, path: &str, body: &Value| {
        let response = gateway.admin(method, path, Some(body));
        (response.status, response.text())
    };
    let why = "would count nothing: no route that takes a key has a meter that counts cost";
    let (status, text) = told("POST", "/plans", &plan);
    assert!(status == 400 && text.contains("limits[1].count") && text.contains(why), "{text}");
    let (status, text) = told("PUT", "/plans/default", &json!({"limits": limits("cost")}));
    assert!(status == 400 && text.contains("limits[1].count") && text.contains(why), "{text}");
    let grant = json!({"limit": "limits", "count": "cost", "per": "month", "amount": 1, "reason": "r", "until": 4_000_000_000_u64});
    let (status, text) = told("POST", "/workspaces/default/grants", &grant);
    assert!(status == 400 && text.contains("\"field\":\"count\"") && text.contains(why), "{text}");
    // And by the same rule without the admin API.
    let mut gateway = gateway;
    gateway.stop();
    let row = |digest: &str| {
        let mut row = key(digest, json!(["app"]), "cost");
        row["sha256"] = json!(digest.repeat(32));
        row
    };
    std::fs::write(gateway.folder().join("keys.jsonl"), row("cd").to_string()).unwrap();
    let output = gateway.command(&["keys", "import", "keys.jsonl"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let why = "limits[1].count: would count nothing: no route that the key's scopes allow has a meter that counts cost";
    assert!(output.stderr.contains(why), "{output:?}");
}

#[test]
fn a_failed_request_holds_nothing_and_counts_nothing() {
    let (origin, gateway) = start("");
    let key = gateway.create_key(json!({"limits": [{"count": "tokens", "per": "total", "max": 400}]}));
    let failures = Arc::new(AtomicU64::new(0));
    origin.script({
        let failures = Arc::clone(&failures);
        move |_, _| {
            failures.fetch_add(1, Ordering::Relaxed);
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    });
    for _ in 0..5 {
        assert_eq!(gateway.call(&question(&key)).status, 502);
        assert!(nothing_is_held(&gateway), "{:?}", held(&gateway));
    }
    assert!(failures.load(Ordering::Relaxed) > 0);
    assert_eq!(usage(&gateway, &key, "tokens").0, 0);
}
