//! Statistics of a key.

use super::calls::api_and_token;
use super::*;
use crate::model::fault::Fault;
use crate::model::id::{EndUserId, KeyId, RequestId};
use crate::model::tokens::{MeterReading, ReadingSource, TokenCounts};
use crate::model::usage::{Outcome, UsageRecord};
use crate::store::Ledger;

fn usage(key: &Value, seconds_ago: u64, status_code: u16, denial: Option<Fault>) -> UsageRecord {
    let at = NOW.minus(Duration::from_secs(seconds_ago));
    UsageRecord {
        id: RequestId::new(at),
        request_id: format!("req-{seconds_ago}").into(),
        api_key_id: key["id"].as_str().expect("an id").parse::<KeyId>().expect("a key id"),
        workspace_id: workspace("ws-a"),
        at,
        method: "POST".into(),
        endpoint: "/v1/app/Chat".into(),
        route: "app".into(),
        status_code,
        outcome: if denial.is_some() { Outcome::Denied } else { Outcome::Served },
        denial,
        charged: denial.is_none(),
        degraded: false,
        response_time_us: 2_500,
        ttfb_us: denial.is_none().then_some(1_250),
        bytes_in: 10,
        bytes_out: 20,
        tokens_used: 5,
        ip_address: Some("192.0.2.9".parse().expect("an address")),
        user_agent: "curl".into(),
        end_user_id: None,
        upstream: "127.0.0.1:9001".into(),
        node: "node-1".into(),
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

#[tokio::test]
async fn stats_series_and_logs_show_the_same_records() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let records = [
        usage(&key, 0, 200, None),
        usage(&key, 3_600, 502, None),
        usage(&key, 3_601, 429, Some(Fault::RateLimitExceeded)),
    ];
    assert_eq!(api.store.append(&records).await.expect("a ledger"), 3);
    let base = format!("/apikeys/{}", key["id"].as_str().expect("an id"));
    let get = async |tail: &str| api.call(&token, "GET", &format!("{base}{tail}"), Value::Null).await;

    let stats = get("/stats").await.data();
    for (field, value) in [
        ("total_requests", json!(2)),
        ("requests_today", json!(1)),
        ("quota_used", json!(2)),
        ("quota_limit", Value::Null),
        ("last_used_at", json!(NOW.as_millis())),
        ("denied", json!(1)),
        ("error_rate", json!(0.5)),
        ("avg_response_time", json!(2.5)),
    ] {
        assert_eq!(stats[field], value, "{field}");
    }
    let p99 = stats["p99"].as_f64().expect("a number");
    assert!((2.4..2.6).contains(&p99), "{p99}");

    let series =
        get(&format!("/usage?from={}&to={}&interval=hour", NOW.as_secs() - 7_200, NOW.as_secs() + 1))
            .await
            .data();
    let requests: Vec<_> =
        series["points"].as_array().expect("points").iter().map(|p| p["requests"].as_u64()).collect();
    assert_eq!(requests, [Some(1), Some(1), Some(1)]);
    for (query, field) in [
        ("from=2&to=1", "from"),
        ("interval=week", "interval"),
        ("from=x", "from"),
        ("from=0&interval=minute", "interval"),
    ] {
        let reply = get(&format!("/usage?{query}")).await;
        assert_eq!(
            (reply.verdict().1, reply.data()["errors"][0]["field"].as_str()),
            (1_003, Some(field)),
            "{query}"
        );
    }

    let logs = get("/logs").await.data();
    assert_eq!(
        logs["page"],
        json!({"page": 1, "pagesize": 10, "total": 3, "total_is_estimate": false, "hasnext": false, "next_cursor": null})
    );
    let denied = &logs["items"][2];
    let expected = json!({"id": records[2].id.to_string(), "request_id": "req-3601", "api_key_id": key["id"], "endpoint": "/v1/app/Chat",
        "method": "POST", "route": "app", "status_code": 429, "outcome": "denied", "error": "rate_limit_exceeded",
        "degraded": false, "response_time": 2.5, "ttfb_ms": null, "bytes_in": 10, "bytes_out": 20, "tokens_used": 5, "ip_address": "192.0.2.9",
        "user_agent": "curl", "end_user_id": null, "upstream": "127.0.0.1:9001", "node": "node-1",
        "created_at": NOW.as_millis() - 3_601_000, "model": null, "model_requested": null, "input_tokens": null, "cached_tokens": null,
        "cache_write_tokens": null, "output_tokens": null, "reasoning_tokens": null, "audio_tokens": null, "cost_nano": null,
        "usage_source": null, "provider_request_id": null});
    assert_eq!(*denied, expected);
}

#[tokio::test]
async fn logs_come_as_a_file_of_any_length() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let mut records: Vec<_> = (0..2_345).map(|n| usage(&key, n, 200, None)).collect();
    records[7].user_agent = "a \"b\", c\nd".into();
    api.store.append(&records).await.expect("a ledger");
    let base = format!("/apikeys/{}/logs", key["id"].as_str().expect("an id"));
    let get = async |query: &str| api.call(&token, "GET", &format!("{base}?{query}"), Value::Null).await;

    let csv = get("format=csv").await.text;
    let mut lines = csv::Reader::from_reader(csv.as_bytes());
    let head: Vec<String> = lines.headers().expect("a head").iter().map(str::to_owned).collect();
    let rows: Vec<csv::StringRecord> = lines.records().collect::<Result<_, _>>().expect("whole rows");
    assert_eq!(rows.len(), 2_345);
    assert!(rows.iter().enumerate().all(|(n, row)| row[1] == format!("req-{n}")), "newest first");
    assert_eq!(&rows[7][16], "a \"b\", c\nd");

    let ndjson = get("format=ndjson").await.text;
    let lines: Vec<serde_json::Map<String, Value>> =
        ndjson.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(lines.len(), 2_345);
    let mut fields: Vec<&String> = head.iter().collect();
    fields.sort();
    assert_eq!(lines[0].keys().collect::<Vec<_>>(), fields, "a file has the same fields in every format");
    let first = get("pagesize=1").await.data()["items"][0].clone();
    assert_eq!(Value::Object(lines[0].clone()), first);

    assert_eq!(get("format=csv&status_code=404").await.text.lines().count(), 1, "the head");
    assert_eq!(get("format=ndjson&status_code=404").await.text, "");
    for query in ["format=xml", "format=csv&page=1", "format=csv&pagesize=5"] {
        let reply = get(query).await;
        assert_eq!(reply.data()["errors"][0]["field"], "format", "{query}");
    }
    let stranger = api.token("ws-b", Role::Admin);
    let reply = api.call(&stranger, "GET", &format!("{base}?format=csv"), Value::Null).await;
    assert_eq!((reply.status.as_u16(), reply.verdict().1), (404, 3_007));
}

#[tokio::test]
async fn logs_are_filtered_and_walked() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let records: Vec<_> = (0..25).map(|n| usage(&key, n, if n % 5 == 0 { 500 } else { 200 }, None)).collect();
    api.store.append(&records).await.expect("a ledger");
    let base = format!("/apikeys/{}/logs", key["id"].as_str().expect("an id"));
    let get = async |query: &str| api.call(&token, "GET", &format!("{base}?{query}"), Value::Null).await;
    for (query, total) in [
        ("status_code=500".to_owned(), 5),
        ("status_code=404".to_owned(), 0),
        ("endpoint=app/chat".to_owned(), 25),
        ("endpoint=nope".to_owned(), 0),
        (format!("start_date={}", NOW.as_secs() - 4), 5),
        (format!("end_date={}", NOW.as_millis() - 20_000), 4),
        ("start_date=2026-01-01T00:00:00Z".to_owned(), 1),
    ] {
        assert_eq!(get(&query).await.data()["page"]["total"], total, "{query}");
    }
    let mut walked = Vec::new();
    let mut query = "pagesize=10".to_owned();
    loop {
        let part = get(&query).await.data();
        walked.extend(part["items"].as_array().expect("items").iter().map(|i| i["request_id"].clone()));
        let Some(cursor) = part["page"]["next_cursor"].as_str() else { break };
        assert_eq!(part["page"]["hasnext"], true);
        query = format!("pagesize=10&cursor={cursor}");
    }
    assert_eq!(walked, (0..25).map(|n| json!(format!("req-{n}"))).collect::<Vec<_>>());
    let cursor = get("pagesize=10").await.data()["page"]["next_cursor"].as_str().expect("more").to_owned();
    for (query, field) in [
        ("status_code=99", "status_code"),
        ("page=10002", "page"),
        ("page=1002&pagesize=100", "page"),
        ("status_code=600", "status_code"),
        ("start_date=5&end_date=4", "start_date"),
        ("cursor=nonsense", "cursor"),
        (&format!("cursor={cursor}&page=2"), "cursor"),
        ("start_date=99999999999999999", "start_date"),
    ] {
        let reply = get(query).await;
        assert_eq!(
            (reply.verdict().1, reply.data()["errors"][0]["field"].as_str()),
            (1_003, Some(field)),
            "{query}"
        );
    }
}

#[tokio::test]
async fn totals_come_by_route_model_and_end_user() {
    let (api, token) = api_and_token().await;
    let key = api.key(&token, "n").await;
    let user = EndUserId::new(NOW);
    let mut metered = UsageRecord { end_user_id: Some(user), ..usage(&key, 1, 200, None) };
    metered.set_reading(MeterReading {
        tokens: TokenCounts {
            total: 9,
            input: 6,
            cached: 2,
            cache_write: 1,
            output: 3,
            reasoning: 1,
            audio: 0,
        },
        model_requested: "gpt-4o".into(),
        model_served: "gpt-4o-2024-08-06".into(),
        provider_request_id: "".into(),
        cost_nano: Some(1_500),
        source: ReadingSource::Reported,
    });
    api.store.append(&[metered, usage(&key, 2, 200, None)]).await.expect("a ledger");
    let get = async |query: &str| api.call(&token, "GET", &format!("/usage?{query}"), Value::Null).await;
    for (by, name, requests) in [
        ("route", json!({"route": "app"}), 2),
        ("model", json!({"model": "gpt-4o-2024-08-06"}), 1),
        ("end_user", json!({"end_user_id": user.to_string()}), 1),
    ] {
        let found = get(&format!("group_by={by}")).await.data();
        assert_eq!((&found["group_by"], found["items"].as_array().map(Vec::len)), (&json!(by), Some(1)));
        let group = &found["items"][0];
        for (field, value) in name.as_object().expect("fields") {
            assert_eq!(group[field], *value);
        }
        assert_eq!(group["total_requests"], requests, "{by}");
        let spent = ["input_tokens", "cached_tokens", "output_tokens", "cost_nano"].map(|name| &group[name]);
        assert_eq!(spent, [6, 2, 3, 1_500], "{by}");
        assert!(group.get("key_id").is_none() && group.get("resource_id").is_none());
    }
    for (query, field) in [
        ("group_by=model&resource_id=r", "resource_id"),
        ("group_by=end_user&from=2026-01-01T00:00:00Z&to=2026-02-02T00:00:00Z", "from"),
        ("group_by=mood", "group_by"),
    ] {
        let reply = get(query).await;
        assert_eq!(
            (reply.verdict().1, reply.data()["errors"][0]["field"].as_str()),
            (1_003, Some(field)),
            "{query}"
        );
    }
    let month = get("group_by=end_user&from=2026-01-01T00:00:00Z&to=2026-02-01T00:00:00Z").await;
    assert_eq!(month.verdict().1, 0);
}
