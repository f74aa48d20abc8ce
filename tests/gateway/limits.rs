//! Limits: all are charged or none, none is exceeded, and a refusal names the limit, its subject and when to retry.

use crate::support::{
    Gateway, Hold, Origin, Request, ReservedPort, Response, eventually, one_route, route, stand, upstream,
};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The result of `act` within one calendar window of that many seconds. Runs it again when the window changed meanwhile,
/// which happens a few times at most.
fn within_one<T>(window_secs: u64, mut act: impl FnMut() -> T) -> T {
    loop {
        let before = now_secs() / window_secs;
        let seen = act();
        if now_secs() / window_secs == before {
            return seen;
        }
    }
}

/// Sends `n` requests, one after the other.
fn calls(gateway: &Gateway, secret: &str, n: usize) -> Vec<Response> {
    let mut client = gateway.connect();
    (0..n).map(|_| client.call(&Request::get("/v1/app/x").bearer(secret))).collect()
}

fn statuses(responses: &[Response]) -> Vec<u16> {
    responses.iter().map(|r| r.status).collect()
}

/// Whether it is a further limit of a plan, which counts all keys together.
fn data_is_of_workspace(detail: &Value) -> bool {
    detail["limit"] == "limits" && detail["set_by"] == "plan"
}

#[track_caller]
fn refused(response: &Response, code: u64, name: &str, detail: &Value) {
    assert_eq!(response.fault(), (429, code, name.into()));
    let mut data = response.data();
    let fields = data.as_object_mut().unwrap();
    let told = fields.remove("retry_after").expect("retry_after, or null");
    assert_eq!(fields.remove("count"), Some(json!("requests")));
    assert_eq!(fields.remove("remaining"), Some(json!(0)));
    let of = if data_is_of_workspace(detail) { "workspace" } else { "key" };
    assert_eq!(fields.remove("of"), Some(json!(of)));
    fields.remove("resets_in").expect("resets_in, or null");
    assert_eq!(data, *detail);
    assert_eq!(told.as_u64().map(|s| s.to_string()).as_deref(), response.header("retry-after"));
}

#[test]
fn a_burst_passes_then_the_rate_holds_and_whoever_waits_as_told_is_admitted() {
    let (_origin, gateway) = stand("");
    let key = gateway.create_key(json!({"rate_limit": 1, "rate_burst": 5}));
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let mut client = gateway.connect();
    let begun = Instant::now();
    let mut admitted = 0;
    let denial = loop {
        let response = client.call(&request);
        if response.status != 200 {
            break response;
        }
        admitted += 1;
        let most = 5 + begun.elapsed().as_secs() + 1;
        assert!(admitted <= most, "{admitted} in {:?}", begun.elapsed());
    };
    assert!(admitted >= 5, "the whole burst passes, not only {admitted}");
    refused(
        &denial,
        3014,
        "rate_limit_exceeded",
        &json!({"limit": "rate_limit", "max": 1, "per": "second", "set_by": "key"}),
    );
    assert_eq!(denial.number("retry-after"), 1);
    assert_eq!(denial.number("x-ratelimit-remaining-qps"), 0);
    let promised = Instant::now() + Duration::from_secs(denial.number("retry-after"));
    // Refused requests are not charged, so repeated requests do not delay the announced time.
    eventually("it is admitted again", || {
        let asked = Instant::now();
        let status = client.call(&request).status;
        assert!(status == 200 || asked < promised, "the promised time came and it was still refused");
        (status == 200).then_some(())
    });
}

#[test]
fn a_rate_is_never_passed_however_long_one_asks() {
    let (_origin, gateway) = stand("");
    let key = gateway.create_key(json!({"rate_limit": 20, "rate_burst": 1}));
    let mut client = gateway.connect();
    let begun = Instant::now();
    let mut admitted = 0_u32;
    while begun.elapsed() < Duration::from_secs(1) {
        admitted += u32::from(client.call(&Request::get("/v1/app/x").bearer(&key.secret)).status == 200);
    }
    let most = begun.elapsed().as_secs_f64() * 20.0 + 1.0;
    assert!(f64::from(admitted) <= most, "{admitted} of at most {most}");
}

#[test]
fn a_plan_that_is_lowered_acts_at_once_and_the_denial_says_so() {
    let (_origin, gateway) = stand("");
    let key = gateway.create_key(json!({"rate_limit": 500, "rate_burst": 800}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).number("x-ratelimit-limit-qps"), 500);
    gateway.managed("PUT", "/plans/default", Some(&json!({"api_ops_rate_limit": 1})));
    let mut client = gateway.connect();
    let first = client.call(&Request::get("/v1/app/x").bearer(&key.secret));
    assert_eq!(first.number("x-ratelimit-limit-qps"), 1, "the very next request runs at the plan's rate");
    let denial = eventually("a refusal", || {
        Some(client.call(&Request::get("/v1/app/x").bearer(&key.secret))).filter(|r| r.status == 429)
    });
    refused(
        &denial,
        3014,
        "rate_limit_exceeded",
        &json!({"limit": "api_ops_rate_limit", "max": 1, "per": "second", "set_by": "plan"}),
    );
    assert!(denial.json()["msg"].as_str().unwrap().contains("plan allows 1 per second"));
}

#[test]
fn a_rate_above_the_plan_is_refused_and_never_capped() {
    let (_origin, gateway) = stand("[plans.default]\napi_ops_rate_limit = 30\n");
    let body = json!({"name": "too fast", "type": "service", "scopes": ["app"], "rate_limit": 31});
    let response = gateway.admin("POST", "/apikeys", Some(&body));
    assert_eq!(response.fault(), (400, 1000, "bad_request".into()));
    assert!(response.json()["msg"].as_str().unwrap().contains("30"), "{}", response.text());
    let key = gateway.create_key(json!({}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).number("x-ratelimit-limit-qps"), 30);
}

#[test]
fn the_day_and_the_quota_end_where_they_say() {
    let (origin, gateway) = stand("");
    let seen = within_one(86_400, || {
        let key = gateway.create_key(json!({"daily_request_limit": 3}));
        calls(&gateway, &key.secret, 5)
    });
    assert_eq!(statuses(&seen), [200, 200, 200, 429, 429]);
    let left: Vec<_> = seen.iter().map(|r| r.number("x-ratelimit-remaining-day")).collect();
    assert_eq!(left, [2, 1, 0, 0, 0]);
    let detail = json!({"limit": "daily_request_limit", "max": 3, "per": "day", "set_by": "key"});
    refused(&seen[3], 3015, "daily_limit_exceeded", &detail);
    let until_midnight = 86_400 - now_secs() % 86_400;
    let wait = seen[3].number("retry-after");
    assert!(
        (1..=86_400).contains(&wait) && wait.abs_diff(until_midnight) < 120,
        "{wait} vs {until_midnight}"
    );

    let key = gateway.create_key(json!({"quota_limit": 2}));
    let seen = calls(&gateway, &key.secret, 4);
    assert_eq!(statuses(&seen), [200, 200, 429, 429]);
    let detail = json!({"limit": "quota_limit", "max": 2, "per": "total", "set_by": "key"});
    refused(&seen[2], 3016, "quota_exceeded", &detail);
    assert_eq!(seen[2].header("retry-after"), None, "waiting does not help");
    assert_eq!(origin.requests().iter().filter(|r| r.header("x-keygate-key-id") == Some(&key.id)).count(), 2);
    gateway.update_key(&key, &json!({"quota_limit": 3}));
    assert_eq!(
        statuses(&calls(&gateway, &key.secret, 2)),
        [200, 429],
        "a raised quota goes on where it stood"
    );
}

/// The zone in which it is between 12:00 and 13:00 now, and how many seconds it is until its midnight.
fn zone_at_noon() -> (String, u64) {
    let now = i64::try_from(now_secs()).unwrap();
    let offset = 12 - now.rem_euclid(86_400) / 3_600;
    // The names of these zones count westwards.
    let zone = if offset < 0 { format!("Etc/GMT+{}", -offset) } else { format!("Etc/GMT-{offset}") };
    let local = (now + offset * 3_600).rem_euclid(86_400);
    (zone, u64::try_from(86_400 - local).unwrap())
}

#[test]
fn the_day_ends_at_midnight_of_the_plans_zone_and_after_a_restart_as_well() {
    let (_origin, mut gateway) = stand("");
    let (zone, until_midnight) = zone_at_noon();
    let calendar = json!({"zone": zone, "month_day": 31, "week_day": "sunday"});
    let plan = gateway.managed("PUT", "/plans/default", Some(&json!({"calendar": calendar})));
    assert_eq!(plan["calendar"], calendar);
    let key = gateway.create_key(json!({"daily_request_limit": 5}));
    assert_eq!(statuses(&calls(&gateway, &key.secret, 3)), [200; 3]);
    assert_eq!(gateway.stop().code(), Some(0));
    let again = gateway.restart();
    let seen = calls(&again, &key.secret, 3);
    assert_eq!(statuses(&seen), [200, 200, 429], "three of five were spent before");
    let wait = seen[2].number("retry-after");
    assert!(wait.abs_diff(until_midnight) < 120, "{wait} vs {until_midnight}");
    // The refused one reached no backend.
    eventually("five requests of this day", || {
        (again.stats(&key)["requests_today"] == json!(5)).then_some(())
    });
}

#[test]
fn further_limits_count_minutes_hours_months_and_all_time() {
    let (_origin, gateway) = stand("");
    for (per, window) in [
        ("minute", 60),
        ("hour", 3_600),
        ("day", 86_400),
        ("week", 86_400),
        ("month", 86_400),
        ("total", 86_400),
    ] {
        let limits = json!([{"count": "requests", "per": per, "max": 2}]);
        let seen = within_one(window, || {
            let key = gateway.create_key(json!({"limits": limits}));
            calls(&gateway, &key.secret, 3)
        });
        assert_eq!(statuses(&seen), [200, 200, 429], "{per}");
        refused(
            &seen[2],
            3017,
            "limit_exceeded",
            &json!({"limit": "limits", "max": 2, "per": per, "set_by": "key"}),
        );
        assert_eq!(seen[1].remaining(&format!("key-requests-{per}")), 0);
        match per {
            "total" => assert_eq!(seen[2].header("retry-after"), None),
            "week" => assert!((1..=7 * 86_400).contains(&seen[2].number("retry-after"))),
            "month" => assert!((1..=31 * 86_400).contains(&seen[2].number("retry-after"))),
            _ => assert!((1..=window).contains(&seen[2].number("retry-after")), "{per}"),
        }
    }
}

#[test]
fn of_several_limits_that_refuse_the_longest_wait_is_told() {
    let (_origin, gateway) = stand("");
    let limits = json!([{"count": "requests", "per": "hour", "max": 1}]);
    let seen = within_one(3_600, || {
        let key = gateway.create_key(json!({"limits": limits, "quota_limit": 1, "daily_request_limit": 1}));
        calls(&gateway, &key.secret, 2)
    });
    assert_eq!(seen[1].fault().2, "quota_exceeded");
}

#[test]
fn a_plans_limits_are_counted_over_all_keys_of_a_workspace_and_of_no_other() {
    let (_origin, gateway) =
        stand("[plans.default]\nlimits = [{ count = \"requests\", per = \"total\", max = 3 }]\n");
    let (one, two) = (gateway.create_key(json!({})), gateway.create_key(json!({})));
    let served = [&one, &two, &one, &two, &one].map(|key| gateway.get("/v1/app/x", &key.secret));
    assert_eq!(statuses(&served), [200, 200, 200, 429, 429]);
    refused(
        &served[3],
        3017,
        "limit_exceeded",
        &json!({"limit": "limits", "max": 3, "per": "total", "set_by": "plan"}),
    );
    assert_eq!(served[2].remaining("workspace-requests-total"), 0);
    let elsewhere = gateway.create_key_as(&gateway.mint("admin", "another"), json!({}));
    let other = gateway.get("/v1/app/x", &elsewhere.secret);
    assert_eq!((other.status, other.remaining("workspace-requests-total")), (200, 2));
}

#[test]
fn no_more_requests_are_in_flight_than_a_key_allows() {
    let (origin, gateway) = stand("");
    let hold = Hold::new();
    origin.answer_after(&hold);
    let key = gateway.create_key(json!({"concurrency_limit": 2}));
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let mut waiting = [gateway.connect(), gateway.connect()];
    for client in &mut waiting {
        client.send(&request.bytes());
    }
    origin.wait_for_heads(2);
    let mut third = gateway.connect();
    let denial = third.call(&request);
    let detail = json!({"limit": "concurrency_limit", "max": 2, "per": null, "set_by": "key"});
    refused(&denial, 3017, "limit_exceeded", &detail);
    assert_eq!(denial.remaining("concurrency"), 0);
    hold.release();
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
    eventually("a place is free again", || (third.call(&request).status == 200).then_some(()));
}

#[test]
fn a_client_that_hangs_up_gives_its_place_in_flight_back() {
    let (origin, gateway) = stand("");
    let hold = Hold::new();
    origin.answer_after(&hold);
    let key = gateway.create_key(json!({"concurrency_limit": 1}));
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let mut client = gateway.connect();
    client.send(&request.bytes());
    origin.wait_for_heads(1);
    assert_eq!(gateway.call(&request).status, 429);
    client.hang_up();
    origin.answer(200, &[], b"{}");
    eventually("the place is free", || (gateway.call(&request).status == 200).then_some(()));
    hold.release();
}

#[test]
fn refusals_cost_nothing() {
    let (_origin, gateway) = stand("");
    let seen = within_one(86_400, || {
        let key =
            gateway.create_key(json!({"quota_limit": 100, "daily_request_limit": 2, "rate_limit": 1000}));
        let refusals = calls(&gateway, &key.secret, 52);
        assert_eq!(refusals.iter().filter(|r| r.status == 429).count(), 50);
        gateway.update_key(&key, &json!({"daily_request_limit": 10}));
        gateway.get("/v1/app/x", &key.secret)
    });
    assert_eq!((seen.status, seen.remaining("quota"), seen.remaining("daily")), (200, 97, 7));
    assert!(seen.remaining("rate") >= 997, "refusals took nothing out of the bucket either");
}

#[test]
fn a_request_that_never_reached_a_backend_is_given_back() {
    let (origin, nobody) = (Origin::start(), ReservedPort::any());
    let config = one_route(origin.address)
        + &upstream("dead", nobody.address)
        + &route("dead", "/v1/dead", "dead", "")
        + "[[upstreams]]\nname = \"nameless\"\nservers = [\"nowhere.invalid:80\"]\n"
        + &route("nameless", "/v1/nameless", "nameless", "");
    let gateway = Gateway::start(&config);
    let key = gateway.create_key(json!({"quota_limit": 2}));
    for _ in 0..5 {
        let response = gateway.get("/v1/dead", &key.secret);
        assert_eq!(response.fault(), (502, 10003, "bad_gateway".into()));
        let response = gateway.get("/v1/nameless", &key.secret);
        assert_eq!(response.fault(), (503, 10003, "service_unavailable".into()));
    }
    let served = gateway.get("/v1/app/x", &key.secret);
    assert_eq!(
        (served.status, served.remaining("quota"), served.number("x-ratelimit-remaining-day")),
        (200, 1, 99_999)
    );
    let rows = gateway.wait_for_logs(&key, 11);
    assert_eq!(rows.iter().filter(|r| r["outcome"] == "upstream_failed").count(), 10);
    assert_eq!(gateway.stats(&key)["quota_used"], 1, "the ledger knows of one charged request");
}

#[test]
fn an_origin_that_stops_is_a_bad_gateway_and_costs_nothing() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({"quota_limit": 3}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).remaining("quota"), 2);
    let _reserved = origin.stop();
    eventually("the connection to it is given up", || {
        (gateway.get("/v1/app/x", &key.secret).status == 502).then_some(())
    });
    for _ in 0..5 {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 502, "never 429");
    }
}

/// Sends `n` requests over `clients` connections at once. Returns how many were admitted.
fn stampede(gateway: &Gateway, secret: &str, clients: usize, each: usize) -> usize {
    let admitted = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                for response in calls(gateway, secret, each) {
                    match response.status {
                        200 => drop(admitted.fetch_add(1, Ordering::Relaxed)),
                        429 => {}
                        other => panic!("{other}"),
                    }
                }
            });
        }
    });
    admitted.into_inner()
}

#[test]
fn however_many_come_at_once_the_limit_is_reached_exactly() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({"quota_limit": 57, "rate_limit": 1000}));
    assert_eq!(stampede(&gateway, &key.secret, 200, 1), 57, "200 clients, a quota of 57");
    assert_eq!(origin.count(), 57);
    let key = gateway.create_key(json!({"quota_limit": 133, "rate_limit": 1000}));
    assert_eq!(
        stampede(&gateway, &key.secret, 16, 20),
        133,
        "320 requests on 16 connections, a quota of 133"
    );
    assert_eq!(origin.count(), 57 + 133);
}
