//! A secret is accepted only from the places named in the config, an unknown one gets no details, and no secret is found
//! anywhere afterwards.

use crate::support::{Gateway, Origin, Request, Response, eventually, route, stand, upstream};
use serde_json::json;
use std::fs;
use std::path::Path;

const MORE_HEADERS: &str =
    "[proxy]\nsecret_headers = [\"authorization\", \"x-api-key\", \"api-key\", \"x-goog-api-key\"]\n";

/// `{prefix}{30 constant characters}{checksum}`: well formed, issued by nobody.
fn sound(prefix: &str) -> String {
    const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let signed = format!("{prefix}{}", "b".repeat(30));
    let mut rest = crc32fast::hash(signed.as_bytes());
    let mut check = [0; 6];
    for place in check.iter_mut().rev() {
        *place = BASE62[usize::try_from(rest % 62).unwrap()];
        rest /= 62;
    }
    signed + std::str::from_utf8(&check).unwrap()
}

/// The same secret with one character of its body changed, so that the checksum no longer fits.
fn mistyped(secret: &str) -> String {
    let at = secret.len() - 10;
    let other = if &secret[at..=at] == "x" { "y" } else { "x" };
    format!("{}{other}{}", &secret[..at], &secret[at + 1..])
}

#[test]
fn a_secret_opens_from_every_configured_header_and_from_no_other_place() {
    let (origin, gateway) = stand(MORE_HEADERS);
    let key = gateway.create_key(json!({}));
    let secret = key.secret.as_str();
    let bearer = format!("Bearer {secret}");
    let lower = format!("bearer {secret}");
    let rows: &[(&[(&str, &str)], u16)] = &[
        (&[("Authorization", &bearer)], 200),
        (&[("authorization", &lower)], 200),
        (&[("X-API-Key", secret)], 200),
        (&[("x-api-key", secret)], 200),
        (&[("api-key", secret)], 200),
        (&[("X-Goog-Api-Key", secret)], 200),
        (&[("Authorization", &bearer), ("X-API-Key", secret)], 200),
        (&[("X-API-Key", secret), ("X-API-Key", secret)], 200),
        (&[("Authorization", secret)], 401),
        (&[("X-Other-Key", secret)], 401),
        (&[("Cookie", secret)], 401),
        (&[], 401),
    ];
    for (headers, status) in rows {
        let mut request = Request::get("/v1/app/x");
        for (name, value) in *headers {
            request = request.header(name, value);
        }
        let response = gateway.call(&request);
        assert_eq!(response.status, *status, "{headers:?}");
        if *status == 401 {
            assert_eq!(response.fault(), (401, 3007, "api_key_missing".into()), "{headers:?}");
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        }
    }
    let opened = origin.count();
    for name in ["api_key", "api-key", "key", "access_token", "token", "x-api-key"] {
        let response = gateway.call(&Request::get(&format!("/v1/app/x?{name}={secret}")));
        assert_eq!(response.fault(), (401, 3007, "api_key_missing".into()), "?{name}=");
    }
    assert_eq!(origin.count(), opened, "the query string opens nothing");
}

#[test]
fn a_header_that_is_not_configured_does_not_carry_a_secret() {
    let (_origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let response = gateway.call(&Request::get("/v1/app/x").header("api-key", &key.secret));
    assert_eq!(response.fault(), (401, 3007, "api_key_missing".into()));
}

#[test]
fn two_different_credentials_are_a_bad_request() {
    let (origin, gateway) = stand(MORE_HEADERS);
    let (one, two) = (gateway.create_key(json!({})).secret, gateway.create_key(json!({})).secret);
    let both = [
        Request::get("/v1/app/x").bearer(&one).header("X-API-Key", &two),
        Request::get("/v1/app/x").header("X-API-Key", &one).header("X-API-Key", &two),
        Request::get("/v1/app/x").bearer(&one).bearer(&two),
        Request::get("/v1/app/x").header("api-key", &one).header("x-goog-api-key", "nonsense"),
    ];
    for request in both {
        let response = gateway.call(&request);
        assert_eq!(response.fault(), (400, 1000, "bad_request".into()));
        assert_eq!(response.data()["reason"], "two_credentials");
    }
    assert_eq!(origin.count(), 0);
}

#[test]
fn unknown_malformed_and_deleted_secrets_get_one_indistinguishable_answer() {
    let (origin, gateway) = stand("");
    let deleted = gateway.create_key(json!({}));
    gateway.managed("DELETE", &format!("/apikeys/{}", deleted.id), None);
    let live = gateway.create_key(json!({}));
    let regenerated = gateway.create_key(json!({}));
    gateway.managed("POST", &format!("/apikeys/{}/regenerate", regenerated.id), Some(&json!({})));
    let long = "k".repeat(129);
    let presented = [
        ("unknown, well formed", sound("sk-service-")),
        ("wrong checksum", mistyped(&live.secret)),
        ("cut short", live.secret[..live.secret.len() - 1].to_owned()),
        ("one too many", format!("{}0", live.secret)),
        ("longer than 128 bytes", long),
        ("of foreign shape", "legacy_key_0001".to_owned()),
        ("one character", "x".to_owned()),
        ("deleted", deleted.secret),
        ("regenerated", regenerated.secret),
        ("in other case", live.secret.to_uppercase()),
    ];
    let told = |response: Response| {
        assert_eq!(response.fault(), (401, 3009, "api_key_invalid".into()));
        let mut headers = response.headers.clone();
        headers.retain(|(name, _)| {
            !name.eq_ignore_ascii_case("x-request-id") && !name.eq_ignore_ascii_case("date")
        });
        let text = response.text();
        let (before, _) = text.split_once("\"time\":").expect("the instant, the last field");
        (headers, before.to_owned(), text.len())
    };
    let first = told(gateway.get("/v1/app/x", &presented[0].1));
    for (what, secret) in &presented {
        assert_eq!(told(gateway.get("/v1/app/x", secret)), first, "{what}");
        let other_place = Request::get("/v1/app/x").header("X-API-Key", secret);
        assert_eq!(told(gateway.call(&other_place)), first, "{what}, in X-API-Key");
    }
    assert_eq!(origin.count(), 0);
    assert_eq!(gateway.get("/v1/app/x", &live.secret).status, 200, "what it was made from still opens");
}

#[test]
fn only_the_holder_of_a_secret_learns_that_it_is_disabled_or_expired() {
    let (_origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    gateway.update_key(&key, &json!({"is_active": false}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).fault(), (401, 3011, "api_key_inactive".into()));
    let expires_at = now_ms() + 1_000;
    let key =
        gateway.create_key(json!({"expires_at": expires_at, "rate_limit": 1000, "rate_burst": 100_000}));
    let expired = eventually("the key expires", || {
        Some(gateway.get("/v1/app/x", &key.secret)).filter(|r| r.status != 200)
    });
    assert_eq!(expired.fault(), (401, 3010, "api_key_expired".into()));
    assert!(now_ms() >= expires_at, "not before its time");
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[test]
fn the_credential_is_taken_off_before_forwarding_unless_the_route_keeps_it() {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", "")
        + &route("kept", "/v1/kept/{rest*}", "app", "keep_credential = true")
        + MORE_HEADERS;
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({})).secret;
    let everywhere = |target: &str| {
        let request = Request::get(target).bearer(&secret).header("X-API-Key", &secret);
        request.header("api-key", &secret).header("X-Goog-Api-Key", &secret)
    };
    assert_eq!(gateway.call(&everywhere("/v1/app/x")).status, 200);
    let head = origin.last().head;
    assert!(!head.contains(&secret), "{head}");
    for name in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
        assert_eq!(origin.last().times(name), 0, "{name}");
    }
    assert_eq!(gateway.call(&everywhere("/v1/kept/x")).status, 200);
    let kept = origin.last();
    assert_eq!(kept.header("authorization"), Some(format!("Bearer {secret}").as_str()));
    assert_eq!(kept.header("x-api-key"), Some(secret.as_str()));
}

#[test]
fn another_authorization_passes_through_beside_x_api_key() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let request = Request::get("/v1/app/x").header("X-API-Key", &secret);
    let response = gateway.call(&request.header("Authorization", "Basic dXNlcjpwYXNz"));
    assert_eq!(response.status, 200);
    assert_eq!(origin.last().header("authorization"), Some("Basic dXNlcjpwYXNz"));
    assert_eq!(origin.last().header("x-api-key"), None);
}

#[test]
fn a_secret_is_in_no_log_metric_record_or_file() {
    let config = format!("{MORE_HEADERS}[log]\nlevel = \"trace\"\naccess = true\n");
    let (_origin, mut gateway) = stand(&config);
    let key = gateway.create_key(json!({"rate_limit": 1, "name": "the one that leaks"}));
    let secret = key.secret.clone();
    let mistake = mistyped(&secret);
    for request in [
        Request::get("/v1/app/x").bearer(&secret),
        Request::get("/v1/app/x").bearer(&secret),
        Request::get("/v1/app/x").header("X-API-Key", &secret),
        Request::get("/v1/app/x").header("X-API-Key", &secret).header("api-key", &mistake),
        Request::get("/v1/app/x").bearer(&mistake),
        Request::get("/nowhere").bearer(&secret),
        Request::get(&format!("/v1/app/x?api_key={secret}")).bearer(&secret),
        Request::get(&format!("/v1/app/x?api_key={secret}")),
        Request::get(&format!("/v1/app//x?api_key={secret}")).bearer(&secret),
    ] {
        gateway.call(&request);
    }
    let made = gateway.admin("POST", &format!("/apikeys/{}/regenerate", key.id), Some(&json!({})));
    let second = made.data()["api_key"].as_str().expect("the new secret").to_owned();
    eventually("the new secret opens, once a second has passed since the last request", || {
        (gateway.get("/v1/app/x", &second).status == 200).then_some(())
    });
    eventually("the records are in the ledger", || (gateway.logs(&key).len() >= 6).then_some(()));
    let mut shown = String::new();
    for path in ["/metrics", "/audit", "/apikeys", &format!("/apikeys/{}/logs", key.id), "/openapi.json"] {
        shown.push_str(&gateway.admin("GET", path, None).text());
    }
    assert!(shown.contains("the one that leaks") && shown.contains("keygate_requests_total"));
    assert!(gateway.stop().success());
    let log = gateway.stderr();
    assert!(
        log.contains("keygate::access") && log.contains("/v1/app/x"),
        "the log says something of the requests"
    );
    let folder = files_under(gateway.folder());
    assert!(contains(&folder, b"the one that leaks"), "the database is among the files");
    for text in [&secret, &second, &mistake] {
        // The hint shows both ends on purpose; the middle must stay secret.
        let body = &text[text.len() - 32..text.len() - 6];
        assert!(!shown.contains(body), "in an answer");
        assert!(!log.contains(body), "in the log");
        assert!(!contains(&folder, body.as_bytes()), "in a file");
    }
}

/// All bytes of all files, one after the other.
fn files_under(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files_under(&path));
        } else {
            all.extend(fs::read(&path).unwrap());
        }
        all.push(0);
    }
    all
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|part| part == needle)
}
