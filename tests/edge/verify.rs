//! Applications that ask by themselves: `POST /verify`, and `POST /settle` for what it held.

use crate::decide::decide_at;
use crate::support::{Gateway, Key, Origin, Raw, Request, Response, eventually, eventually_true, one_route};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const DECIDE: &str = "[decide]\nlisten = [\"127.0.0.1:0\"]\n";

fn started(more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let gateway = Gateway::start(&(one_route(origin.address) + DECIDE + more));
    (origin, gateway)
}

fn post(gateway: &Gateway, path: &str, body: &Value) -> Response {
    let request = Request::post(path, body.to_string()).header("Content-Type", "application/json");
    Raw::connect(decide_at(gateway)).call(&request)
}

fn verify(gateway: &Gateway, body: &Value) -> Response {
    post(gateway, "/verify", body)
}

/// A key with a budget of 1000 tokens.
fn key_with_budget(gateway: &Gateway) -> Key {
    gateway.create_key(json!({"limits": [{"count": "tokens", "per": "total", "max": 1_000}]}))
}

/// Asks for a hold of so many tokens.
fn hold(gateway: &Gateway, key: &Key, input: u64, output: u64) -> Response {
    let hold = json!({"model": "m", "input_tokens": input, "max_output_tokens": output});
    verify(gateway, &json!({"key": key.secret, "hold": hold}))
}

/// What is left of the budget in an answer to a call.
fn left(response: &Response) -> u64 {
    let limits = response.data()["limits"].as_array().expect("limits").clone();
    let of_tokens = limits.iter().find(|limit| limit["count"] == "tokens").expect("the budget");
    of_tokens["remaining"].as_u64().expect("a number")
}

/// A call that holds nothing shows what is left.
fn left_now(gateway: &Gateway, key: &Key) -> u64 {
    left(&verify(gateway, &json!({"key": key.secret})))
}

fn held_units(gateway: &Gateway) -> bool {
    !gateway.metrics().contains("keygate_held_units{measure=\"tokens\"} 0")
}

/// The records of the key's holds, oldest first, once there are `n` records.
fn rows(gateway: &Gateway, key: &Key, n: usize) -> Vec<Value> {
    let mut rows = gateway.wait_for_logs(key, n);
    rows.reverse();
    rows.retain(|row| row["usage_source"] != Value::Null);
    rows
}

#[test]
fn a_verdict_tells_whose_key_it_is_and_what_is_left_and_is_charged_and_recorded() {
    let (origin, gateway) = started("");
    let key = gateway.create_key(json!({"quota_limit": 2}));
    let asked = json!({"key": key.secret, "scopes": ["app"], "any_resource": true, "end_user": "u", "address": "192.0.2.9"});
    let told = verify(&gateway, &asked);
    let data = told.data();
    assert_eq!((told.status, &data["allowed"]), (200, &json!(true)), "{told:?}");
    assert_eq!(data["key"]["id"], json!(key.id));
    assert_eq!(data["key"]["workspace_id"], "default");
    assert_eq!(data["end_user"]["other_id"], "u");
    assert_eq!((&data["hold"], &data["degraded"]), (&Value::Null, &json!(false)));
    assert_eq!((told.remaining("quota"), data["request_id"].as_str()), (1, told.header("x-request-id")));
    assert!(!told.text().contains(&key.secret));
    assert_eq!(verify(&gateway, &asked).status, 200);
    let refused = verify(&gateway, &asked);
    let forwarded = gateway.get("/v1/app/x", &key.secret);
    assert_eq!((refused.fault(), refused.data()), (forwarded.fault(), forwarded.data()));
    assert_eq!(refused.fault().2, "quota_exceeded");
    let rows = gateway.wait_for_logs(&key, 4);
    let outcomes: Vec<_> = rows.iter().rev().map(|row| row["outcome"].as_str().unwrap_or_default()).collect();
    assert_eq!(outcomes, ["decided", "decided", "denied", "denied"]);
    let first = &rows[3];
    assert_eq!((&first["route"], &first["endpoint"]), (&json!("verify"), &json!("/verify")));
    assert_eq!(first["ip_address"], "192.0.2.9");
    assert_eq!(first["end_user_id"], data["end_user"]["id"]);
    assert!(origin.requests().is_empty());
}

/// The names of an object that the document describes, and those that it says are always there.
fn names_of(schema: &Value) -> (Vec<&str>, Vec<&str>) {
    let names = schema["properties"].as_object().expect("properties").keys().map(String::as_str).collect();
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    (names, required.iter().filter_map(Value::as_str).collect())
}

/// Fails unless the document describes exactly what is in `value`.
fn describes(schema: &Value, value: &Value, place: &str) {
    if let Value::Array(items) = value {
        items.iter().for_each(|item| describes(&schema["items"], item, place));
    }
    // What has no properties is described by words only.
    let Some(fields) = value.as_object().filter(|_| schema.get("properties").is_some()) else { return };
    let (mut names, mut required) = names_of(schema);
    let mut found: Vec<_> = fields.keys().map(String::as_str).collect();
    for list in [&mut names, &mut required, &mut found] {
        list.sort_unstable();
    }
    assert_eq!(names, found, "{place}");
    assert_eq!(required, names, "{place}: all are always there");
    for (name, value) in fields {
        describes(&schema["properties"][name], value, &format!("{place}.{name}"));
    }
}

#[test]
fn the_document_of_the_listener_describes_what_is_asked_and_answered() {
    let (_origin, gateway) = started("");
    let document = Raw::connect(decide_at(&gateway)).call(&Request::get("/openapi.json"));
    assert_eq!((document.status, document.header("content-type")), (200, Some("application/json")));
    let head = Raw::connect(decide_at(&gateway)).call(&Request::new("HEAD", "/openapi.json"));
    assert_eq!((head.status, head.header("content-length")), (200, document.header("content-length")));
    assert_eq!(Raw::connect(decide_at(&gateway)).call(&Request::post("/openapi.json", "{}")).status, 405);
    let document = document.json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let schemas = &document["components"]["schemas"];

    let key = key_with_budget(&gateway);
    let held = hold(&gateway, &key, 10, 10);
    describes(&schemas["Verdict"], &held.json(), "verdict");
    let of_user = verify(&gateway, &json!({"key": key.secret, "end_user": "u"}));
    describes(&schemas["Verdict"], &of_user.json(), "verdict");
    let id = held.data()["hold"]["id"].clone();
    describes(&schemas["Settled"], &post(&gateway, "/settle", &json!({"hold": id})).json(), "settled");
    describes(&schemas["Refusal"], &verify(&gateway, &json!({"key": "nonsense"})).json(), "refusal");

    // Every field of the document is known, and no other is.
    let known = |path: &str, body: &Value| {
        !post(&gateway, path, body).data()["errors"].to_string().contains("unknown field")
    };
    for (path, name, base) in
        [("/verify", "Verify", json!({"key": "nonsense"})), ("/settle", "Settle", json!({"hold": id}))]
    {
        let (names, required) = names_of(&schemas[name]);
        for field in names.iter().filter(|field| !required.contains(field)) {
            let mut body = base.clone();
            body[*field] = Value::Null;
            assert!(known(path, &body), "{name}.{field}");
        }
        let mut body = base.clone();
        body["nonsense"] = Value::Null;
        assert!(!known(path, &body), "{name}: others are refused");
    }
    let (names, _) = names_of(&schemas["HoldRequest"]);
    for field in names {
        assert!(known("/verify", &json!({"key": "nonsense", "hold": {field: null}})), "hold.{field}");
    }
}

#[test]
fn a_key_that_may_not_do_it_is_refused_as_on_a_route() {
    let (_origin, gateway) = started("");
    let bound = gateway.create_key(json!({"type": "rag", "resource_id": "r"})).secret;
    let of_user = gateway.create_key(json!({"end_user": "u"})).secret;
    let elsewhere = gateway.create_key(json!({"allowed_ips": ["198.51.100.0/24"]})).secret;
    for (asked, status, error) in [
        (json!({"key": "nonsense"}), 401, "api_key_invalid"),
        (json!({"key": bound, "scopes": ["app"], "resource": "r"}), 403, "api_key_invalid_scope"),
        (json!({"key": bound, "scopes": ["rag"]}), 403, "api_key_invalid_resource"),
        (json!({"key": bound, "scopes": ["rag"], "resource": "s"}), 403, "api_key_invalid_resource"),
        (json!({"key": bound, "scopes": ["rag"], "resource": "r"}), 200, ""),
        (json!({"key": of_user, "end_user": "other"}), 403, "end_user_not_allowed"),
        (json!({"key": of_user}), 200, ""),
        (json!({"key": elsewhere}), 403, "address_not_allowed"),
        (json!({"key": elsewhere, "address": "198.51.100.7"}), 200, ""),
    ] {
        let told = verify(&gateway, &asked);
        assert_eq!((told.status, told.json()["error"].as_str()), (status, Some(error)), "{asked}");
    }
}

#[test]
fn a_call_that_is_not_valid_names_the_field() {
    let (_origin, gateway) = started("");
    let many = 1_000_000_000_001_u64;
    for (path, body, field) in [
        ("/verify", json!([]), "body"),
        ("/verify", json!({}), "body"),
        ("/verify", json!({"key": "k", "cost": 1}), "body"),
        ("/verify", json!({"key": ""}), "key"),
        ("/verify", json!({"key": "k", "scopes": ["a", "b c"]}), "scopes[1]"),
        ("/verify", json!({"key": "k", "end_user": ""}), "end_user"),
        ("/verify", json!({"key": "k", "resource": "r", "any_resource": true}), "any_resource"),
        ("/verify", json!({"key": "k", "hold": {"max_output_tokens": many}}), "hold.max_output_tokens"),
        ("/settle", json!({"hold": "x"}), "body"),
        ("/settle", json!({"hold": uuid::Uuid::nil(), "cached_tokens": 1}), "cached_tokens"),
        ("/settle", json!({"hold": uuid::Uuid::nil(), "reasoning_tokens": 1}), "reasoning_tokens"),
    ] {
        let refused = post(&gateway, path, &body);
        assert_eq!(refused.fault(), (400, 1001, "validation_failed".into()), "{path} {body}");
        assert_eq!(refused.data()["errors"][0]["field"], field, "{path} {body}");
    }
    let mut connection = Raw::connect(decide_at(&gateway));
    let got = connection.call(&Request::get("/verify"));
    assert_eq!((got.status, got.header("allow")), (405, Some("POST")));
    let long = Request::post("/verify", vec![b' '; 65 * 1_024]);
    assert_eq!(Raw::connect(decide_at(&gateway)).call(&long).status, 413);
}

#[test]
fn a_token_opens_the_calls_of_applications_and_another_file_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (_origin, gateway) = started(&format!("token_file = \"{}\"\n", shown(&file)));
    let key = gateway.create_key(json!({"quota_limit": 10}));
    let with = |token: &str| {
        let request = Request::post("/verify", json!({"key": key.secret}).to_string());
        let request = if token.is_empty() { request } else { request.header("Authorization", token) };
        Raw::connect(decide_at(&gateway)).call(&request)
    };
    for token in ["", "first", "Bearer second", "Basic first", "Bearer"] {
        assert_eq!(with(token).fault(), (401, 2004, "decide_token_invalid".into()), "{token:?}");
    }
    let told = with("Bearer first");
    assert_eq!((told.status, told.remaining("quota")), (200, 9), "a call without the token is not charged");
    std::fs::write(&file, "second\n").unwrap();
    eventually_true("the other token counts", || with("Bearer second").status == 200);
    assert_eq!(with("Bearer first").status, 401);
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_hold_is_replaced_by_what_was_used_exactly_once() {
    let prices = "[[prices]]\nmodel = \"m\"\ninput = 1\noutput = 2\n";
    let (_origin, gateway) = started(prices);
    let key = key_with_budget(&gateway);
    let held = hold(&gateway, &key, 100, 400);
    assert_eq!((held.status, left(&held)), (200, 500), "{held:?}");
    assert_eq!(held.data()["hold"]["expires_in"], 600);
    assert!(held_units(&gateway));
    let refused = hold(&gateway, &key, 100, 500);
    assert_eq!((refused.fault().2.as_str(), &refused.data()["count"]), ("limit_exceeded", &json!("tokens")));
    let used = json!({"hold": held.data()["hold"]["id"], "input_tokens": 90, "output_tokens": 10});
    for repeated in [false, true, true] {
        let settled = post(&gateway, "/settle", &used);
        assert_eq!((settled.status, &settled.data()["repeated"]), (200, &json!(repeated)), "{settled:?}");
        assert_eq!(left_now(&gateway, &key), 900);
    }
    assert!(!held_units(&gateway));
    let rows = rows(&gateway, &key, 5);
    let [row] = rows.as_slice() else { panic!("{rows:#?}") };
    for (field, value) in [
        ("outcome", json!("decided")),
        ("usage_source", json!("reported")),
        ("input_tokens", json!(90)),
        ("output_tokens", json!(10)),
        ("tokens_used", json!(100)),
        ("model_requested", json!("m")),
        ("cost_nano", json!(110_000)),
    ] {
        assert_eq!(row[field], value, "{field}: {row}");
    }
}

#[test]
fn a_hold_that_is_not_settled_counts_as_used() {
    let (_origin, gateway) = started("hold_timeout = \"1s\"\n");
    let key = key_with_budget(&gateway);
    let held = hold(&gateway, &key, 100, 200);
    let rows = eventually("the record of the hold", || {
        Some(gateway.logs(&key)).filter(|rows| rows.iter().any(|row| row["usage_source"] == "held"))
    });
    assert_eq!((&rows[0]["tokens_used"], &rows[0]["outcome"]), (&json!(300), &json!("decided")));
    let late = post(&gateway, "/settle", &json!({"hold": held.data()["hold"]["id"], "output_tokens": 1}));
    assert_eq!(late.fault(), (404, 4002, "hold_not_found".into()));
    assert_eq!(late.data()["node"], held.data()["node"]);
    assert_eq!(left_now(&gateway, &key), 700);
}

#[test]
fn a_process_that_stops_counts_its_holds_and_one_that_is_killed_does_not() {
    let (_origin, mut gateway) = started("");
    let key = key_with_budget(&gateway);
    assert_eq!(hold(&gateway, &key, 100, 200).status, 200);
    assert!(gateway.stop().success());
    let mut gateway = gateway.restart();
    assert_eq!(left_now(&gateway, &key), 700);
    let held = hold(&gateway, &key, 100, 200);
    assert_eq!(left(&held), 400);
    gateway.kill9();
    let gateway = gateway.restart();
    assert_eq!(left_now(&gateway, &key), 700);
    let rows = gateway.wait_for_logs(&key, 4);
    let outcomes: Vec<_> = rows.iter().map(|row| row["outcome"].as_str().unwrap_or_default()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == "interrupted").count(), 1, "{outcomes:?}");
    let late = post(&gateway, "/settle", &json!({"hold": held.data()["hold"]["id"], "output_tokens": 1}));
    assert_eq!(late.status, 404);
}

#[test]
fn there_are_no_more_holds_than_configured_and_the_next_is_not_charged() {
    let (_origin, gateway) = started("max_holds = 1\n");
    let key = gateway.create_key(json!({"quota_limit": 10}));
    let first = hold(&gateway, &key, 1, 1);
    assert_eq!((first.status, hold(&gateway, &key, 1, 1).status), (200, 503));
    assert_eq!(verify(&gateway, &json!({"key": key.secret})).remaining("quota"), 8);
    let used = json!({"hold": first.data()["hold"]["id"]});
    assert_eq!(post(&gateway, "/settle", &used).status, 200);
    assert_eq!(hold(&gateway, &key, 1, 1).status, 200);
}
