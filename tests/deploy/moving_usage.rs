//! Moving the ledger by a file: records, statistics and the usage that quotas count.

use crate::installation::{Installation, mode, says};
use crate::support::{Gateway, Key, Request};
use keygate::clock::Timestamp;
use keygate::model::id::{KeyId, RequestId};
use keygate::model::usage::{Outcome, UsageRecord};
use keygate::usage::RejectedRecords;
use serde_json::{Value, json};

fn call(gateway: &Gateway, key: &Key) -> u16 {
    gateway.call(&Request::get("/v1/app/x").bearer(&key.secret)).status
}

fn stats(gateway: &Gateway, key: &Key) -> Value {
    gateway.managed("GET", &format!("/apikeys/{}/stats", key.id), None)
}

/// Three requests that were served, one that was denied and one of a key deleted since: two keys and five records.
fn lived(here: &Installation) -> [Key; 2] {
    let mut gateway = here.start();
    let limited = gateway.create_key(json!({"quota_limit": 5, "scopes": ["app"]}));
    let deleted = gateway.create_key(json!({}));
    for _ in 0..3 {
        assert_eq!(call(&gateway, &limited), 200);
    }
    assert_eq!(gateway.call(&Request::get("/v1/rag/x").bearer(&limited.secret)).status, 403);
    assert_eq!(call(&gateway, &deleted), 200);
    assert_eq!(gateway.admin("DELETE", &format!("/apikeys/{}", deleted.id), None).status, 200);
    assert!(gateway.stop().success());
    [limited, deleted]
}

/// An installation with the same secrets.
fn like(here: &Installation) -> Installation {
    let there = Installation::new();
    for secret in ["data/pepper", "data/admin.jwt.secret", "data/admin.token"] {
        there.write(secret, &here.read(secret));
    }
    there
}

/// The output of an import.
#[track_caller]
fn imports(there: &Installation, code: i32, new: usize, known: usize, refused: usize) -> String {
    let told = there.command(&["usage", "import", "usage.ndjson"]);
    assert_eq!(told.code, Some(code), "{told:?}");
    let expected = format!("imported {new} usage records; there already: {known}; refused: {refused}");
    says(&told.stderr, &[&expected]);
    told.stderr
}

#[test]
fn usage_moves_with_statistics_and_spent_quotas_and_counts_once() {
    let here = Installation::new();
    let [limited, deleted] = lived(&here);
    here.done(&["export", "all.jsonl"]);
    let told = here.command(&["usage", "export", "--output", "usage.ndjson"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), ""), "{told:?}");
    let whole = here.read("usage.ndjson");
    let records = whole.lines().count();
    assert_eq!(records, 5, "{whole}");
    says(&told.stderr, &[&format!("exported {records} usage records")]);
    assert_eq!(mode(&here.path("usage.ndjson")), 0o600);
    says(&here.fails(1, &["usage", "export", "--output", "usage.ndjson"]), &["usage.ndjson", "exists"]);
    assert_eq!(here.done(&["usage", "export"]), whole.trim(), "on standard output the same");
    let of_deleted = here.done(&["usage", "export", "--key", &deleted.id]);
    assert_eq!(of_deleted.lines().count(), 1, "a deleted key's too");
    let mut gateway = here.start();
    let before = stats(&gateway, &limited);
    assert_eq!(before["quota_used"], 3, "{before}");
    assert!(gateway.stop().success());

    let there = like(&here);
    there.write("all.jsonl", &here.read("all.jsonl"));
    there.done(&["import", "all.jsonl"]);
    there.write("usage.ndjson", &whole);
    imports(&there, 0, records, 0, 0);
    imports(&there, 0, 0, records, 0);
    assert_eq!(there.done(&["usage", "export"]), whole.trim(), "nothing was lost or changed on the way");
    let gateway = there.start();
    assert_eq!(stats(&gateway, &limited), before);
    let answers: Vec<_> = (0..3).map(|_| call(&gateway, &limited)).collect();
    assert_eq!(answers, [200, 200, 429], "what was spent there is spent here");
}

#[test]
fn a_bad_line_is_named_and_what_a_plan_does_not_keep_is_passed_over() {
    let here = Installation::new();
    let [limited, _] = lived(&here);
    let whole = here.done(&["usage", "export", "--key", &limited.id]);
    let lines: Vec<&str> = whole.lines().collect();
    let field = |line: &str, name: &str| {
        let value: Value = serde_json::from_str(line).expect("an object");
        value[name].clone()
    };
    let with = |line: &str, name: &str, value: Value| {
        let mut changed: Value = serde_json::from_str(line).expect("an object");
        changed[name] = value;
        changed.to_string()
    };
    let there = like(&here);
    here.done(&["export", "all.jsonl"]);
    there.write("all.jsonl", &here.read("all.jsonl"));
    there.done(&["import", "all.jsonl"]);
    let mut gateway = there.start();
    gateway.managed("PUT", "/plans/default", Some(&json!({"usage_retention_days": 30})));
    assert!(gateway.stop().success());
    let old = with(lines[1], "at_us", json!(1_000_000_000_000_000_i64));
    let odd = with(lines[2], "outcome", json!("liked"));
    there.write("usage.ndjson", &[lines[0], "", "{\"id\":", &old, &odd, lines[3]].join("\n"));
    for (new, known) in [(2, 0), (0, 2)] {
        let told = imports(&there, 1, new, known, 2);
        says(
            &told,
            &["usage.ndjson:3: is not a JSON object", "usage.ndjson:5: outcome: must be one of: served"],
        );
        says(&told, &["their plan does not keep them so long: 1", "2 lines were refused"]);
    }
    assert_eq!(there.done(&["usage", "export"]), [lines[0], lines[3]].join("\n"));

    let csv = here.done(&["usage", "export", "--format", "csv", "--key", &limited.id]);
    assert_eq!(csv.lines().count(), lines.len() + 1, "{csv}");
    says(
        &csv,
        &["id,request_id,api_key_id,workspace_id,at_us,", field(lines[0], "id").as_str().expect("text")],
    );
    there.write("twice.csv", &csv.replacen("charged", "degraded", 1));
    says(
        &there.fails(1, &["usage", "import", "twice.csv"]),
        &["twice.csv:1: the header line has the column \"degraded\" twice"],
    );
    there.write("usage.csv", &csv.replacen("served", "liked", 1));
    says(
        &there.fails(1, &["usage", "import", "usage.csv"]),
        &["usage.csv:", "outcome: must be one of: served", "1 lines were refused"],
    );
    says(&there.fails(1, &["usage", "import", "data"]), &["data: Is a directory"]);
    says(&here.fails(64, &["usage", "export", "--from", "2026-02-02", "--to", "2026-02-01"]), &["--from"]);
    says(&here.fails(64, &["usage", "export", "--from", "yesterday"]), &["RFC 3339"]);
    assert_eq!(here.done(&["usage", "export", "--to", "2020-01-01"]), "");

    // A row that cannot be parsed is left out and reported.
    let id = field(lines[0], "id").as_str().expect("text").replace('-', "");
    let damage = "UPDATE usage SET outcome = 'liked' WHERE lower(hex(id)) = ?1";
    assert_eq!(here.database().execute(damage, [id]).expect("written"), 1);
    let told = here.command(&["usage", "export", "--key", &limited.id]);
    assert_eq!((told.code, told.stdout.trim()), (Some(0), lines[1..].join("\n").as_str()), "{told:?}");
    says(&told.stderr, &["warning", "could not be understood", ": 1"]);
}

#[test]
fn comma_separated_values_have_no_formulas_and_come_back_as_they_were() {
    let here = Installation::new();
    let mut gateway = here.start();
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let agents =
        ["=HYPERLINK(\"http://evil\")", "+1", "-1+1", "@SUM(A1)", "'=1", "plain, \"quoted\"", "'plain'"];
    for agent in agents {
        let request = Request::get("/v1/app/x").bearer(&key.secret).header("User-Agent", agent);
        assert_eq!(gateway.call(&request).status, 200);
    }
    gateway.wait_for_logs(&key, agents.len());
    let file = gateway.admin("GET", &format!("/apikeys/{}/logs?format=csv", key.id), None).text();
    let told: Value = gateway.managed("GET", &format!("/apikeys/{}/logs?pagesize=100", key.id), None);
    let kept: Vec<&str> = told["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|i| i["user_agent"].as_str().expect("text"))
        .collect();
    assert!(agents.iter().all(|agent| kept.contains(agent)), "as JSON they are what they were: {kept:?}");
    assert!(gateway.stop().success());
    let whole = here.done(&["usage", "export"]);
    let exported = here.done(&["usage", "export", "--format", "csv"]);
    for (file, rows) in [(&file, agents.len()), (&exported, agents.len())] {
        let mut reader = csv::Reader::from_reader(file.as_bytes());
        let agent =
            reader.headers().expect("a head").iter().position(|name| name == "user_agent").expect("a column");
        let records: Vec<_> = reader.records().map(|row| row.expect("a row")).collect();
        assert_eq!(records.len(), rows);
        for cell in records.iter().flatten() {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?} in {file}");
        }
        for expected in ["'=HYPERLINK(\"http://evil\")", "'+1", "''=1", "plain, \"quoted\"", "'plain'"] {
            assert!(records.iter().any(|row| row[agent] == *expected), "{expected} in {file}");
        }
    }
    let there = like(&here);
    here.done(&["export", "all.jsonl"]);
    there.write("all.jsonl", &here.read("all.jsonl"));
    there.done(&["import", "all.jsonl"]);
    there.write("usage.csv", &exported);
    let said = there.command(&["usage", "import", "usage.csv"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    says(&said.stderr, &[&format!("imported {} usage records; there already: 0; refused: 0", agents.len())]);
    assert_eq!(there.done(&["usage", "export"]), whole, "nothing was lost or changed on the way");
}

#[test]
fn records_set_aside_can_be_imported_later() {
    let there = Installation::new();
    let at = Timestamp::from_micros(1_751_327_999_999_999);
    let record = UsageRecord {
        id: RequestId::new(at),
        request_id: "r".into(),
        api_key_id: KeyId::new(at),
        workspace_id: "w1".parse().expect("an id"),
        at,
        method: "GET".into(),
        endpoint: "/v1/app/x".into(),
        route: "".into(),
        status_code: 200,
        outcome: Outcome::Served,
        denial: None,
        charged: true,
        degraded: false,
        response_time_us: 7,
        ttfb_us: Some(5),
        bytes_in: 0,
        bytes_out: 0,
        tokens_used: 0,
        ip_address: Some("127.0.0.1".parse().expect("an address")),
        user_agent: "".into(),
        end_user_id: None,
        upstream: "".into(),
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
    };
    RejectedRecords::of(there.path("").as_path())
        .add(&record, "the ledger was told not to")
        .expect("written");
    let told = there.command(&["usage", "import", "set-aside.ndjson"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    says(&told.stderr, &["imported 1 usage records"]);
    says(&there.done(&["usage", "export"]), &[&record.id.to_string(), "1751327999999999"]);
}
