//! Admin tokens of an identity provider: keys by URL, and tokens that the provider is asked about.

use crate::support::{Gateway, Hold, Origin, Raw, Request, Response, eventually_true, write_config};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as B64};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

const AN_HOUR: u64 = 3_600;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn signing_key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

/// The key set of these keys.
fn key_set(seeds: &[u8]) -> String {
    let key = |seed: &u8| {
        let x = B64.encode(signing_key(*seed).public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": seed.to_string(), "x": x, "use": "sig"})
    };
    json!({"keys": seeds.iter().map(key).collect::<Vec<_>>()}).to_string()
}

/// A token of the provider's, signed by that key.
fn token_of(seed: u8) -> String {
    let claims = json!({"iss": "https://id", "aud": "keygate", "sub": "ada", "workspace_id": "acme", "role": "admin",
        "exp": now() + AN_HOUR});
    let header = json!({"alg": "EdDSA", "kid": seed.to_string()});
    let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
    format!("{signed}.{}", B64.encode(signing_key(seed).sign(signed.as_bytes())))
}

fn reply(out: &mut dyn Write, status: u16, body: &str) -> io::Result<()> {
    write!(out, "HTTP/1.1 {status} S\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Serves that key set.
fn serve_keys(origin: &Origin, seeds: &[u8]) {
    let set = key_set(seeds);
    origin.script(move |_, out| reply(out, 200, &set));
}

fn keys_at(origin: &Origin, more: &str) -> String {
    format!(
        "[admin.jwt]\njwks_url = \"http://{}/jwks?v=1\"\nalgorithms = [\"EdDSA\"]\nissuer = \"https://id\"\naudience = \"keygate\"\n{more}\n",
        origin.address
    )
}

fn ask(gateway: &Gateway, token: &str) -> Response {
    gateway.admin_as(token, "GET", "/apikeys", None)
}

fn status(gateway: &Gateway, token: &str) -> u16 {
    ask(gateway, token).status
}

fn metric(gateway: &Gateway, line: &str) -> u64 {
    let metrics = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    let found = metrics.lines().find_map(|l| l.strip_prefix(line));
    found.unwrap_or_else(|| panic!("{line} is not in {metrics}")).trim().parse().unwrap()
}

// === keys by URL ===

#[test]
fn a_token_by_a_new_key_has_the_key_set_read_again() {
    let origin = Origin::start();
    serve_keys(&origin, &[1]);
    let gateway = Gateway::start(&keys_at(&origin, "jwks_refresh = \"1h\"\njwks_retry = \"100ms\""));
    // The first call waits for the first read, as long as that takes.
    eventually_true("the key set is read", || status(&gateway, &token_of(1)) == 200);
    assert_eq!(origin.last().target, "/jwks?v=1");
    assert_eq!(status(&gateway, &token_of(2)), 401);
    serve_keys(&origin, &[2]);
    // Long before the next regular read.
    eventually_true("the new key is used", || status(&gateway, &token_of(2)) == 200);
    assert_eq!(status(&gateway, &token_of(1)), 401);
    // What cannot be used changes nothing.
    origin.script(|_, out| reply(out, 200, "{\"keys\": []}"));
    let failed = metric(&gateway, "keygate_admin_jwks_reads_total{result=\"failed\"}");
    eventually_true("an unusable key set is read", || {
        assert_eq!(status(&gateway, &token_of(3)), 401);
        metric(&gateway, "keygate_admin_jwks_reads_total{result=\"failed\"}") > failed
    });
    assert_eq!(status(&gateway, &token_of(2)), 200);
}

#[test]
fn tokens_by_unknown_keys_do_not_have_the_key_set_read_more_often_than_configured() {
    let origin = Origin::start();
    serve_keys(&origin, &[1]);
    let gateway = Gateway::start(&keys_at(&origin, "jwks_refresh = \"24h\"\njwks_retry = \"1h\""));
    eventually_true("the key set is read", || status(&gateway, &token_of(1)) == 200);
    for seed in 2..30 {
        assert_eq!(status(&gateway, &token_of(seed)), 401);
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn without_keys_or_with_keys_too_old_calls_are_refused_for_now() {
    let origin = Origin::start();
    let config = keys_at(&origin, "jwks_refresh = \"1s\"\njwks_retry = \"100ms\"\njwks_max_stale = \"1s\"");
    let reserved = origin.stop();
    let gateway = Gateway::start(&config);
    let refused = ask(&gateway, &token_of(1));
    assert_eq!((refused.status, &refused.json()["error"]), (503, &json!("service_unavailable")));
    assert_eq!(status(&gateway, "no.token"), 401);
    let address = reserved.address;
    drop(reserved);
    let origin = Origin::start_at(address);
    serve_keys(&origin, &[1]);
    eventually_true("the key set is read", || status(&gateway, &token_of(1)) == 200);
    origin.answer(500, &[], b"");
    eventually_true("the keys are too old", || status(&gateway, &token_of(1)) == 503);
    serve_keys(&origin, &[1]);
    eventually_true("the key set is read again", || status(&gateway, &token_of(1)) == 200);
    let log = gateway.stderr();
    assert!(log.contains("cannot read admin.jwt.jwks_url") && log.contains("is read again"), "{log}");
}

// === the identity service ===

/// What the service knows of a token, by the token.
type Known = Arc<Mutex<Vec<(&'static str, Value)>>>;

/// Makes `origin` an RFC 7662 endpoint for the client `key gate` with this secret.
fn introspect(origin: &Origin, secret: &str, known: &Known) {
    let known = Arc::clone(known);
    let basic = format!("Basic {}", STANDARD.encode(format!("key%20gate:{secret}")));
    origin.script(move |received, out| {
        if received.method != "POST" || received.header("authorization") != Some(&*basic) {
            return reply(out, 401, "{\"error\": \"invalid_client\"}");
        }
        let body = String::from_utf8(received.body.clone()).unwrap();
        let answer = known.lock().unwrap().iter().find_map(|(token, answer)| {
            (body == format!("token={token}&token_type_hint=access_token")).then(|| answer.to_string())
        });
        reply(out, 200, answer.as_deref().unwrap_or("{\"active\": false}"))
    });
}

fn introspecting(origin: &Origin, more: &str) -> String {
    format!("[admin.introspection]\nurl = \"http://{}/introspect\"\n{more}\n", origin.address)
}

const CLIENT: &str =
    "client_id = \"key gate\"\nclient_secret_file = \"client-secret\"\nrequire = [\"aud=keygate\"]\n";

/// A gateway with the secret of its client in a file.
fn client_gateway(config: &str, secret: &str) -> Gateway {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_config(folder.path(), config);
    write_secret(folder.path(), secret);
    Gateway::run(folder).unwrap()
}

fn write_secret(folder: &std::path::Path, secret: &str) {
    let path = folder.join("client-secret");
    fs::write(&path, secret).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn active(changes: &Value) -> Value {
    let mut answer = json!({"active": true, "sub": "ada", "aud": ["keygate", "other"], "workspace_id": "acme", "role": "admin",
        "exp": now() + AN_HOUR});
    answer.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    answer
}

#[test]
fn a_token_is_what_the_introspection_endpoint_says_it_is() {
    let origin = Origin::start();
    let known = Known::default();
    known.lock().unwrap().extend([
        ("opaque-good", active(&json!({}))),
        ("opaque-other", active(&json!({"aud": "other"}))),
        ("opaque-ended", active(&json!({"exp": now() - AN_HOUR}))),
        ("opaque-nobody", active(&json!({"sub": null}))),
        ("opaque-text", active(&json!({"active": "true"}))),
    ]);
    introspect(&origin, "s3cret", &known);
    let gateway =
        client_gateway(&introspecting(&origin, &(CLIENT.to_owned() + "cache = \"5m\"\n")), "s3cret\n");
    let verdict = |token: &str| {
        let response = ask(&gateway, token);
        (response.status, response.json()["error"].as_str().unwrap_or_default().to_owned())
    };
    let invalid = (401, "token_invalid".to_owned());
    assert_eq!(verdict("opaque-good").0, 200);
    assert_eq!(verdict("opaque-unknown"), invalid);
    assert_eq!(verdict("opaque-other"), invalid);
    assert_eq!(verdict("opaque-nobody"), invalid);
    assert_eq!(verdict("opaque-text"), invalid);
    assert_eq!(verdict("opaque-ended"), (401, "token_expired".to_owned()));
    // Each answer is used again, refusals too.
    let asked = origin.count();
    for token in ["opaque-good", "opaque-unknown", "opaque-ended"] {
        verdict(token);
    }
    assert_eq!(origin.count(), asked);
    assert_eq!(metric(&gateway, "keygate_admin_introspections_total{result=\"valid\"}"), 1);
    // Tokens of our own are not asked about, and work as before.
    assert_eq!(status(&gateway, &gateway.token()), 200);
    assert_eq!(origin.count(), asked);
    let made = gateway.admin_as("opaque-good", "POST", "/apikeys", Some(&json!({"name": "k", "scopes": []})));
    assert_eq!((made.status, &made.data()["created_by"]), (200, &json!("ada")), "{}", made.text());
    assert!(!gateway.stderr().contains("opaque-"), "{}", gateway.stderr());
}

#[test]
fn an_introspection_endpoint_that_fails_is_never_a_token_that_is_invalid() {
    let origin = Origin::start();
    let known = Known::default();
    known.lock().unwrap().push(("opaque", active(&json!({}))));
    introspect(&origin, "sesame-1", &known);
    let config = introspecting(&origin, &(CLIENT.to_owned() + "cache = \"0s\"\ntimeout = \"30s\"\n"));
    let gateway = client_gateway(&config, "sesame-1");
    let failed = |why: &str| {
        let response = ask(&gateway, "opaque");
        let told = (response.status, response.json()["error"].clone());
        assert_eq!(told, (503, json!("service_unavailable")), "{why}");
    };
    assert_eq!(status(&gateway, "opaque"), 200);
    for (code, body) in [(500, "{}"), (404, "{}"), (302, "{}"), (401, "{}"), (200, "no JSON"), (200, "[]")] {
        origin.script(move |_, out| reply(out, code, body));
        failed(&format!("{code} {body}"));
    }
    origin.script(|_, _| Err(io::ErrorKind::ConnectionReset.into()));
    failed("no answer");
    let long = format!("{{\"active\": true, \"x\": \"{}\"}}", "x".repeat(100_000));
    origin.script(move |_, out| reply(out, 200, &long));
    failed("a long answer");
    // Another secret, first there, then here.
    introspect(&origin, "sesame-2", &known);
    failed("another secret");
    write_secret(gateway.folder(), "sesame-2");
    eventually_true("the new secret is used", || status(&gateway, "opaque") == 200);
    assert!(metric(&gateway, "keygate_admin_introspections_total{result=\"failed\"}") >= 9);
    let log = gateway.stderr();
    assert!(log.contains("admin.introspection failed") && log.contains("answers again"), "{log}");
    assert!(!log.contains("opaque") && !log.contains("sesame"), "{log}");
}

#[test]
fn calls_to_the_identity_service_are_bounded_in_time_and_number() {
    let origin = Origin::start();
    let hold = Hold::default();
    origin.answer_after(&hold);
    let gateway = Gateway::start(&introspecting(&origin, "timeout = \"500ms\"\nmax_concurrent = 1\n"));
    std::thread::scope(|calls| {
        let first = calls.spawn(|| status(&gateway, "one"));
        origin.wait_for_heads(1);
        let second = calls.spawn(|| status(&gateway, "two"));
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (503, 503));
    });
    hold.release();
}

#[test]
fn any_endpoint_with_json_can_say_who_the_holder_of_a_token_is() {
    let origin = Origin::start();
    origin.script(|received, out| match (&*received.method, received.header("authorization")) {
        ("GET", Some("Bearer opaque")) => reply(
            out,
            200,
            r#"{"code": 0, "data": {"id": 7, "tenant": {"id": 42}, "groups": ["staff", "owner"]}}"#,
        ),
        ("GET", Some(bearer)) if bearer.starts_with("Bearer ey") => {
            reply(out, 200, r#"{"data": {"id": 8, "tenant": {"id": "own"}, "groups": "owner"}}"#)
        }
        _ => reply(out, 401, "{}"),
    });
    let claims = "[admin.introspection.claims]\nsubject = \"data.id\"\nworkspace = \"data.tenant.id\"\nrole = \"data.groups\"\n";
    let roles = "[admin.jwt]\nroles = [\"owner=admin\", \"viewer=viewer\", \"platform=platform\"]\n";
    let gateway = Gateway::start(&(introspecting(&origin, claims) + roles));
    let made = gateway.admin_as("opaque", "POST", "/apikeys", Some(&json!({"name": "k", "scopes": []})));
    assert_eq!(made.status, 200, "{}", made.text());
    assert_eq!((&made.data()["created_by"], &made.data()["workspace_id"]), (&json!("7"), &json!("42")));
    assert_eq!(status(&gateway, "unknown"), 401);
    // A token that our key has signed, and that names no workspace: the endpoint says which. The rest is the token's.
    let signed = signed_here(&gateway, &json!({"sub": "ada", "role": "viewer"}));
    let other = gateway.admin_as(&signed, "GET", "/workspaces/own", None);
    assert_eq!((other.status, &other.data()["id"]), (200, &json!("own")), "{}", other.text());
    let refused = gateway.admin_as(&signed, "POST", "/apikeys", Some(&json!({"name": "k", "scopes": []})));
    assert_eq!(refused.status, 403);
    // One that names its workspace is not asked about.
    let asked = origin.count();
    let signed = signed_here(&gateway, &json!({"sub": "ada", "role": "viewer", "workspace_id": "42"}));
    assert_eq!(status(&gateway, &signed), 200);
    assert_eq!(origin.count(), asked);
}

/// A token signed with the gateway's own secret.
fn signed_here(gateway: &Gateway, claims: &Value) -> String {
    let secret = fs::read_to_string(gateway.folder().join("data/admin.jwt.secret")).unwrap();
    let mut all = json!({"iss": "keygate", "aud": "keygate-admin", "exp": now() + AN_HOUR});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let signed = format!("{}.{}", B64.encode(r#"{"alg":"HS256"}"#), B64.encode(all.to_string()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.trim().as_bytes());
    format!("{signed}.{}", B64.encode(ring::hmac::sign(&key, signed.as_bytes())))
}
