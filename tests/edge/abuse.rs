//! Clients that guess secrets are rate-limited; clients with a valid secret are not.

use crate::support::{Request, stand};
use serde_json::json;
use std::time::Instant;

#[test]
fn guessing_is_slowed_down_and_valid_keys_behind_the_same_address_are_not() {
    let (origin, gateway) = stand("[proxy]\nmax_invalid_keys = 3\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = gateway.connect();
    let mut told = Vec::new();
    let begun = Instant::now();
    for n in 0..300 {
        let response = client.call(&Request::get("/v1/app/x").bearer(&format!("guess-{n}")));
        told.push(response.status);
        if response.status == 429 {
            assert_eq!(response.fault(), (429, 3014, "rate_limit_exceeded".into()));
            assert_eq!(response.data()["limit"], "invalid_keys");
            assert!(response.number("retry-after") >= 1);
        } else {
            assert_eq!(response.fault(), (401, 3009, "api_key_invalid".into()));
        }
        if n % 10 == 0 {
            assert_eq!(client.call(&Request::get("/v1/app/x").bearer(&secret)).status, 200);
        }
    }
    assert_eq!(told[..3], [401, 401, 401]);
    // Three at once and three a second; one log line about it a second.
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    let guessed = told.iter().filter(|status| **status == 401).count();
    assert!(guessed < 300 && guessed <= 3 + 3 * seconds, "{guessed} in {seconds} s");
    assert_eq!(origin.count(), 30);
    let lines = gateway.stderr().matches("too many invalid API keys").count();
    assert!((1..=1 + seconds).contains(&lines), "{lines} lines about it in {seconds} s");
    assert!(!gateway.stderr().contains("guess-"), "what was guessed is nobody's business");
}

#[test]
fn the_access_log_can_be_a_sample() {
    let (origin, gateway) = stand("[log]\naccess = true\naccess_sample = 10\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = gateway.connect();
    for _ in 0..50 {
        assert_eq!(client.call(&Request::get("/v1/app/x").bearer(&secret)).status, 200);
    }
    origin.answer(503, &[], b"");
    for _ in 0..7 {
        assert_eq!(client.call(&Request::get("/v1/app/x").bearer(&secret)).status, 503);
    }
    // The last line is written after its response.
    let count = |status: &str| gateway.stderr().lines().filter(|line| line.contains(status)).count();
    crate::support::eventually_true("all failures are written", || count("status=503") == 7);
    assert_eq!(count("status=200"), 5);
}

#[test]
fn malformed_requests_get_the_same_error_form() {
    let (origin, gateway) = stand("[log]\naccess = true\n");
    for (text, status, said) in [
        ("GET /v1/app/../x?key=hidden HTTP/1.1\r\nHost: h\r\nAccept-Language: zh-CN\r\n\r\n", 400, true),
        (
            "GET /v1/app/two HTTP/1.1\r\nHost: h\r\nHost: h\r\nAccept-Language: en, zh;q=0.5\r\n\r\n",
            400,
            false,
        ),
        (
            "POST /v1/app/three HTTP/1.1\r\nHost: h\r\naccept-language:zh\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            true,
        ),
        // Here the head never ends.
        ("GET /v1/app/four HTTP/1.1\r\nAccept-Language: zh\r\n bad\n", 400, false),
    ] {
        let mut client = gateway.connect();
        client.send(text.as_bytes());
        let response = client.response();
        assert_eq!(response.fault().0, status, "{text:?}");
        let told = response.json()["msg"].as_str().expect("a message").to_owned();
        assert_eq!(told.chars().any(|c| c > '\u{2e80}'), said, "{text:?}: {told}");
        let id = response.header("x-request-id").expect("an id").to_owned();
        let line = crate::support::eventually("it is in the access log", || {
            gateway.stderr().lines().find(|line| line.contains(&id)).map(str::to_owned)
        });
        let (method, rest) = text.split_once(' ').unwrap();
        let path = rest.split([' ', '?']).next().unwrap();
        for part in [format!("method=\"{method}\""), format!("path=\"{path}\""), format!("status={status}")] {
            assert!(line.contains(&part), "{part} in {line}");
        }
        assert!(line.contains("outcome=\"denied\"") && line.contains("address=127.0.0.1"), "{line}");
    }
    assert!(!gateway.stderr().contains("hidden"));
    let counted = |line: &str| crate::limits::metric(&gateway, line);
    assert_eq!(counted("keygate_requests_total{outcome=\"denied\",route=\"\",status=\"4xx\"}"), 3.0);
    assert_eq!(counted("keygate_requests_total{outcome=\"denied\",route=\"\",status=\"5xx\"}"), 1.0);
    assert_eq!(counted("keygate_request_duration_seconds_count{route=\"\"}"), 4.0);
    assert_eq!(counted("keygate_denials_total{error=\"bad_request\"}"), 3.0);
    assert_eq!(origin.count(), 0);
}
