//! The order of checks: a request that fails two of them gets the response of the earlier one and is charged by neither.

use crate::support::{
    Gateway, Key, Origin, Request, Response, eventually, eventually_true, one_route, route,
};
use serde_json::json;

const FULL_PLAN: &str = "[plans.default]\napi_ops_rate_limit = 1000\nend_user_quota = 0\n";

fn start() -> (Origin, Gateway) {
    let origin = Origin::start();
    let bound = route("bound", "/v1/bound/{id}", "app", "resource = \"path:id\"");
    let gateway = Gateway::start(&(one_route(origin.address) + &bound + FULL_PLAN));
    (origin, gateway)
}

#[track_caller]
fn answers(response: &Response, status: u16, code: u64) {
    let (s, c, name) = response.fault();
    assert_eq!((s, c), (status, code), "{name}");
}

#[test]
fn a_malformed_request_is_answered_before_its_route_is_looked_for() {
    let (_origin, gateway) = start();
    answers(&gateway.call(&Request::get("/nowhere/../at/all")), 400, 1000);
    answers(&gateway.call(&Request::get("/v1/app/%2e%2e").header("X-API-Key", "nonsense")), 400, 1000);
}

#[test]
fn a_request_without_route_is_answered_before_its_secret_is_looked_at() {
    let (_origin, gateway) = start();
    answers(&gateway.call(&Request::get("/nowhere")), 404, 4000);
    answers(&gateway.get("/nowhere", "nonsense"), 404, 4000);
    let two = Request::get("/nowhere").bearer("one").header("X-API-Key", "two");
    answers(&gateway.call(&two), 404, 4000);
}

/// A key that fails at every step from `from` on.
struct Step {
    what: &'static str,
    key: Key,
    target: &'static str,
    answer: (u16, u64),
}

fn steps(gateway: &Gateway) -> Vec<Step> {
    let elsewhere = json!(["192.0.2.1"]);
    let key = |mut fields: serde_json::Value, off: bool| {
        fields["quota_limit"] = json!(10);
        let key = gateway.create_key(fields);
        if off {
            gateway.update_key(&key, &json!({"is_active": false}));
        }
        key
    };
    vec![
        Step {
            what: "disabled before the scope",
            key: key(json!({"type": "rag", "resource_id": "r1", "allowed_ips": elsewhere}), true),
            target: "/v1/bound/r2",
            answer: (401, 3011),
        },
        Step {
            what: "the scope before the resource",
            key: key(json!({"type": "rag", "resource_id": "r1", "allowed_ips": elsewhere}), false),
            target: "/v1/bound/r2",
            answer: (403, 3012),
        },
        Step {
            what: "the resource before the address",
            key: key(json!({"type": "app", "resource_id": "r1", "allowed_ips": elsewhere}), false),
            target: "/v1/bound/r2",
            answer: (403, 3013),
        },
        Step {
            what: "the address before the limits and the end user",
            key: key(json!({"type": "app", "resource_id": "r1", "allowed_ips": elsewhere}), false),
            target: "/v1/bound/r1",
            answer: (403, 3020),
        },
        Step {
            what: "a new end user after everything else",
            key: key(json!({"type": "app", "resource_id": "r1"}), false),
            target: "/v1/bound/r1",
            answer: (402, 3018),
        },
    ]
}

#[test]
fn of_two_failures_the_earlier_one_answers_and_nothing_is_charged() {
    let (origin, gateway) = start();
    for Step { what, key, target, answer } in steps(&gateway) {
        let request = Request::get(target).bearer(&key.secret).header("X-End-User-Id", "a new one");
        for _ in 0..3 {
            let (status, code, name) = gateway.call(&request).fault();
            assert_eq!((status, code), answer, "{what}: {name}");
        }
        assert_eq!(origin.count(), 0, "{what}");
        let mut mended = json!({"is_active": true, "allowed_ips": null});
        mended["scopes"] = json!(["app", "rag"]);
        gateway.update_key(&key, &mended);
        let passed = gateway.get("/v1/app/x", &key.secret);
        assert_eq!(
            (passed.status, passed.remaining("quota")),
            (200, 9),
            "{what}: nothing was charged before"
        );
        assert_eq!(passed.number("x-ratelimit-remaining-day"), 99_999, "{what}: nor of the day");
        assert_eq!(origin.count(), 1, "{what}");
        origin.forget();
    }
}

#[test]
fn a_limit_that_is_used_up_is_told_after_the_address_and_before_the_end_user() {
    let (_origin, gateway) = start();
    let key = gateway.create_key(json!({"quota_limit": 1}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    let with_new_user = Request::get("/v1/app/x").bearer(&key.secret).header("X-End-User-Id", "a new one");
    answers(&gateway.call(&with_new_user), 429, 3016);
    gateway.update_key(&key, &json!({"allowed_ips": ["192.0.2.0/24"]}));
    answers(&gateway.call(&with_new_user), 403, 3020);
}

#[test]
fn an_expired_key_is_told_so_before_its_scopes_are_looked_at() {
    let (_origin, gateway) = start();
    let key = gateway.create_key(json!({"type": "rag", "resource_id": "r"}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).fault().1, 3012);
    eventually_true("it will expire: the end must lie ahead when the gateway hears of it", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let soon = json!({"expires_at": u64::try_from(now.as_millis()).unwrap() + 500});
        gateway.admin("PUT", &format!("/apikeys/{}", key.id), Some(&soon)).status == 200
    });
    let answer = eventually("it expires", || {
        Some(gateway.get("/v1/app/x", &key.secret).fault()).filter(|(_, code, _)| *code != 3012)
    });
    assert_eq!(answer, (401, 3010, "api_key_expired".into()));
}
