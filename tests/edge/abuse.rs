//! Whoever guesses secrets has to wait; whoever has one does not.

use crate::support::{Request, stand};
use serde_json::json;

#[test]
fn guessing_is_slowed_down_and_valid_keys_behind_the_same_address_are_not() {
    let (origin, gateway) = stand("[proxy]\nmax_invalid_keys = 3\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = gateway.connect();
    let mut told = Vec::new();
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
    assert!(told.iter().filter(|status| **status == 429).count() > 200, "{told:?}");
    assert_eq!(origin.count(), 30);
    let lines = gateway.stderr().matches("too many invalid API keys").count();
    assert!((1..20).contains(&lines), "{lines} lines about it");
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
    // The last is written after its answer.
    let count = |status: &str| gateway.stderr().lines().filter(|line| line.contains(status)).count();
    crate::support::eventually_true("all failures are written", || count("status=503") == 7);
    assert_eq!(count("status=200"), 5);
}
