//! Which tokens are let in, and what the others are told.

use super::*;
use crate::policy::fault::Fault;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header};

/// Signed with RS256 by a key that is gone; `exp` is one hour after [`NOW`].
const RS256_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6InJzYS0xIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci50ZXN0IiwiYXVkIjoia2V5Z2F0ZS1hZG1pbiIsInN1YiI6InVzZXItMSIsIndvcmtzcGFjZV9pZCI6IndzLWEiLCJyb2xlIjoiYWRtaW4iLCJleHAiOjE3NjcyMjkyMDB9.19O2IUQWKkr7Uzv9dZSRyv307oFRdQ_UApZxdjhpLh5DCmSdHEjx_0PxWup-zHftbjCN6gmSnL6YzukGlyXRjV1f7uSZClSCnsGxMoQzm6wAWPtof5BjXphvD4e3kyIftyHiK7ahWppNOFHdnulCTrKJAxZC1P8MYzKqIexJPYNuEoOY43vtn0EG5J-aPsrS71keebH64BmGWVcXg7Rq3ZI8N9bpYn9mwEXhIiBz_s5fdJSYt7QpJKPsZLPqb2gnndaJod8lyzqWAJX3D46rw2CrYVcqSMA5RU39Kku8tBIaxykfmYqiqC6LrPtz6mHpc9AUPQ1J03H6ZivZhQxfzQ";
const RS256_MODULUS: &str = "7lJYCkCKUeVkw-MCkGLBgRbEybgjVKEkrVaQMq5yeSRtB00hVzzYO09YIyocG5ZpTipqmShmy4KcNfTvXNzrAhuQ_WEofyZ5iGtWUCWeKohZ4czB9XBJuakQR7Zs7hixKgbQQG6X1rmgxu5l4pgAEIk_bIkrvXGs-wdZ3grkWQ83M5gm-uuaaIa5zPDsNqSNvQE8qqqYB_sKl3Fa5_9p4QDnBE0eQY8dXt04sgvNUOZTS0o58l3-GqTQF51cdi2fMOjOdDdpkUuRIN3mSwWWawjtvjd_G7k9qpapHGFPus8PgZfdgfCTATxXvvKZxPIBQyoFkj2kFzXhLOPAVo-3CQ";

/// Claims that are right, with `changes` laid over them; null takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://issuer.test", "aud": "keygate-admin", "sub": "user-1",
        "workspace_id": "ws-a", "role": "admin", "exp": NOW.as_secs() + 3_600
    });
    let map = claims.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        map.insert(name.clone(), value.clone());
        if value.is_null() {
            map.remove(name);
        }
    }
    claims
}

fn signed(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, claims, key).expect("a token")
}

fn hs256(changes: Value) -> String {
    signed(&Header::new(Algorithm::HS256), &claims(changes), &EncodingKey::from_secret(SECRET))
}

/// An Ed25519 key from a seed, as PKCS #8 (RFC 8410).
fn ed25519(seed: u8) -> EncodingKey {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([seed; 32]);
    EncodingKey::from_ed_der(&der)
}

/// A P-256 key from its scalar, as PKCS #8 (RFC 5915).
fn p256(scalar: u8) -> EncodingKey {
    let mut der = vec![0x30, 0x41, 2, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    der.extend([6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 4, 0x27, 0x30, 0x25, 2, 1, 1, 4, 0x20]);
    der.extend([scalar; 32]);
    EncodingKey::from_ec_der(&der)
}

fn jwk(kid: &str, key: &EncodingKey, algorithm: Algorithm) -> Value {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).expect("a public key");
    jwk.common.key_id = Some(kid.into());
    serde_json::to_value(jwk).expect("JSON")
}

fn with_kid(algorithm: Algorithm, kid: Option<&str>) -> Header {
    Header { kid: kid.map(Into::into), ..Header::new(algorithm) }
}

fn asymmetric(keys: &[Value], algorithms: &[Algorithm]) -> Result<Auth, BadAuth> {
    let text = json!({"keys": keys}).to_string();
    Auth::new(AuthConfig { keys: AuthKeys::Jwks(text), algorithms: algorithms.to_vec(), ..auth_config() })
}

fn verdict(auth: &Auth, token: &str) -> Option<Fault> {
    auth.identify(token, NOW).err().map(|e| e.fault())
}

#[test]
fn shared_secret_decisions() {
    let auth = Auth::new(auth_config()).expect("right");
    let now = NOW.as_secs();
    let bad = Some(Fault::TokenInvalid);
    let none_header = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let good = hs256(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    let wrong_secret = EncodingKey::from_secret(&[9; 32]);
    let critical = Header { crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::HS256) };
    let key = EncodingKey::from_secret(SECRET);
    let rows: Vec<(&str, String, Option<Fault>)> = vec![
        ("right", good.clone(), None),
        ("right with nbf", hs256(json!({"nbf": now})), None),
        ("right with an audience list", hs256(json!({"aud": ["other", "keygate-admin"]})), None),
        ("right with a fractional exp", hs256(json!({"exp": 1_767_229_200.5})), None),
        (
            "a name for the only key",
            signed(&with_kid(Algorithm::HS256, Some("k")), &claims(json!({})), &key),
            None,
        ),
        ("expired within the leeway", hs256(json!({"exp": now - 4})), None),
        ("not yet valid within the leeway", hs256(json!({"nbf": now + 5})), None),
        ("platform without a workspace", hs256(json!({"role": "platform", "workspace_id": null})), None),
        ("expired", hs256(json!({"exp": now - 5})), Some(Fault::TokenExpired)),
        ("long expired", hs256(json!({"exp": 1})), Some(Fault::TokenExpired)),
        ("no exp", hs256(json!({"exp": null})), bad),
        ("exp is text", hs256(json!({"exp": "1767229200"})), bad),
        ("not yet valid", hs256(json!({"nbf": now + 6})), bad),
        ("nbf is text", hs256(json!({"nbf": "now"})), bad),
        ("another issuer", hs256(json!({"iss": "https://evil.test"})), bad),
        ("no issuer", hs256(json!({"iss": null})), bad),
        ("another audience", hs256(json!({"aud": "other"})), bad),
        ("another audience list", hs256(json!({"aud": ["other"]})), bad),
        ("no audience", hs256(json!({"aud": null})), bad),
        ("no subject", hs256(json!({"sub": null})), bad),
        ("an empty subject", hs256(json!({"sub": ""})), bad),
        ("a subject with a line end", hs256(json!({"sub": "a\nb"})), bad),
        ("a long subject", hs256(json!({"sub": "x".repeat(256)})), bad),
        ("no workspace", hs256(json!({"workspace_id": null})), bad),
        ("a workspace that is no id", hs256(json!({"workspace_id": "a b"})), bad),
        ("a workspace that is a number", hs256(json!({"workspace_id": 5})), bad),
        ("no role", hs256(json!({"role": null})), Some(Fault::Forbidden)),
        ("an unknown role", hs256(json!({"role": "root"})), Some(Fault::Forbidden)),
        ("another secret", signed(&Header::new(Algorithm::HS256), &claims(json!({})), &wrong_secret), bad),
        ("HS512 with our secret", signed(&Header::new(Algorithm::HS512), &claims(json!({})), &key), bad),
        ("EdDSA", signed(&Header::new(Algorithm::EdDSA), &claims(json!({})), &ed25519(1)), bad),
        ("a critical extension", signed(&critical, &claims(json!({})), &key), bad),
        ("alg none, unsigned", format!("{none_header}.{}.", parts[1]), bad),
        ("alg none, our signature", format!("{none_header}.{}.{}", parts[1], parts[2]), bad),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), bad),
        ("two parts", format!("{}.{}", parts[0], parts[1]), bad),
        (
            "other claims under the signature",
            format!("{}.{}.{}", parts[0], parts[1].to_lowercase(), parts[2]),
            bad,
        ),
        ("not a token", "hello".into(), bad),
        ("too long", hs256(json!({"pad": "x".repeat(9_000)})), bad),
    ];
    for (what, token, expected) in rows {
        assert_eq!(verdict(&auth, &token), expected, "{what}");
    }
}

#[test]
fn key_set_decisions() {
    let (ed_key, ec_key, stranger) = (ed25519(1), p256(2), ed25519(3));
    let keys = [jwk("ed-1", &ed_key, Algorithm::EdDSA), jwk("ec-1", &ec_key, Algorithm::ES256)];
    let auth = asymmetric(&keys, &[Algorithm::EdDSA, Algorithm::ES256]).expect("right");
    let bad = Some(Fault::TokenInvalid);
    let public_as_secret = keys[0]["x"].as_str().expect("x").as_bytes();
    let (ed, ec, hs) = (Algorithm::EdDSA, Algorithm::ES256, Algorithm::HS256);
    let rows = [
        ("EdDSA", with_kid(ed, Some("ed-1")), &ed_key, None),
        ("ES256", with_kid(ec, Some("ec-1")), &ec_key, None),
        ("no kid, one key fits", with_kid(ed, None), &ed_key, None),
        ("an unknown kid", with_kid(ed, Some("ed-2")), &ed_key, bad),
        ("the kid of a key for another algorithm", with_kid(ed, Some("ec-1")), &ed_key, bad),
        ("signed by a stranger", with_kid(ed, Some("ed-1")), &stranger, bad),
        ("HS256 with the public key", with_kid(hs, None), &EncodingKey::from_secret(public_as_secret), bad),
    ];
    for (what, header, key, expected) in rows {
        assert_eq!(verdict(&auth, &signed(&header, &claims(json!({})), key)), expected, "{what}");
    }
    let only_ed = asymmetric(&keys, &[ed]).expect("right");
    let ec_token = signed(&with_kid(ec, Some("ec-1")), &claims(json!({})), &ec_key);
    assert_eq!(verdict(&only_ed, &ec_token), bad, "an algorithm outside the list");
    let two = [jwk("a", &ed_key, ed), jwk("b", &stranger, ed)];
    let auth_of_two = asymmetric(&two, &[ed]).expect("right");
    assert_eq!(
        verdict(&auth_of_two, &signed(&with_kid(ed, None), &claims(json!({})), &ed_key)),
        bad,
        "which key?"
    );
    assert!(matches!(
        auth.mint("u", None, Role::Platform, Duration::from_secs(1), NOW),
        Err(BadAuth::CannotMint)
    ));
}

#[test]
fn rs256_is_understood() {
    let rsa =
        json!({"kty": "RSA", "kid": "rsa-1", "use": "sig", "alg": "RS256", "n": RS256_MODULUS, "e": "AQAB"});
    let auth = asymmetric(&[rsa], &[Algorithm::RS256]).expect("right");
    assert_eq!(verdict(&auth, RS256_TOKEN), None);
    let mut forged = RS256_TOKEN.to_owned();
    forged.replace_range(forged.len() - 20..forged.len() - 19, "B");
    assert_ne!(forged, RS256_TOKEN);
    assert_eq!(verdict(&auth, &forged), Some(Fault::TokenInvalid));
}

#[test]
fn unsafe_configurations_are_refused() {
    let short = AuthConfig { keys: AuthKeys::Hs256(vec![1; 31].into()), ..auth_config() };
    assert!(matches!(Auth::new(short), Err(BadAuth::ShortSecret(31))));
    for algorithms in [vec![Algorithm::HS256, Algorithm::RS256], vec![Algorithm::HS512]] {
        let mixed = AuthConfig { algorithms, ..auth_config() };
        assert!(matches!(Auth::new(mixed), Err(BadAuth::Algorithm(..))));
    }
    assert!(matches!(
        Auth::new(AuthConfig { algorithms: vec![], ..auth_config() }),
        Err(BadAuth::NoAlgorithm(_))
    ));
    let key = jwk("k", &ed25519(1), Algorithm::EdDSA);
    let one = std::slice::from_ref(&key);
    assert!(matches!(asymmetric(one, &[]), Err(BadAuth::NoAlgorithm(_))));
    assert!(matches!(asymmetric(one, &[Algorithm::HS256]), Err(BadAuth::Algorithm(..))));
    assert!(matches!(asymmetric(one, &[Algorithm::RS256]), Err(BadAuth::NoKey)));
    assert!(matches!(asymmetric(&[], &[Algorithm::EdDSA]), Err(BadAuth::NoKey)));
    assert!(matches!(asymmetric(&[key.clone(), key.clone()], &[Algorithm::EdDSA]), Err(BadAuth::TwoKeys(_))));
    let mut encrypting = key.clone();
    encrypting["use"] = json!("enc");
    assert!(matches!(asymmetric(&[encrypting], &[Algorithm::EdDSA]), Err(BadAuth::NoKey)));
    let broken =
        AuthConfig { keys: AuthKeys::Jwks("{".into()), algorithms: vec![Algorithm::EdDSA], ..auth_config() };
    assert!(matches!(Auth::new(broken), Err(BadAuth::Jwks(_))));
    let marked = format!("\u{feff}{}", json!({"keys": one}));
    let marked =
        AuthConfig { keys: AuthKeys::Jwks(marked), algorithms: vec![Algorithm::EdDSA], ..auth_config() };
    assert!(Auth::new(marked).is_ok(), "a byte order mark in front is not part of it");
    assert!(!format!("{:?}", auth_config()).contains("0123456789"));
}

#[test]
fn a_minted_token_says_who_and_until_when() {
    let auth = Auth::new(auth_config()).expect("right");
    let ws = workspace("ws-a");
    let token = auth.mint("cli", Some(&ws), Role::Viewer, Duration::from_mins(1), NOW).expect("a token");
    let who = auth.identify(&token, NOW).expect("valid");
    assert_eq!((who.subject.as_str(), who.role, who.workspace), ("cli", Role::Viewer, Some(ws)));
    let over = NOW.plus(Duration::from_secs(65));
    assert_eq!(auth.identify(&token, over).err().map(|e| e.fault()), Some(Fault::TokenExpired));
}

#[tokio::test]
async fn claims_can_go_by_other_names() {
    let names =
        ClaimNames { subject: "uid".into(), workspace: "https://x/ws".into(), role: "kg_role".into() };
    let auth = Auth::new(AuthConfig { claims: names, ..auth_config() }).expect("right");
    let changes = json!({"sub": null, "role": null, "workspace_id": null, "uid": "u", "https://x/ws": "w", "kg_role": "viewer"});
    let who = auth.identify(&hs256(changes), NOW).expect("valid");
    assert_eq!((who.subject.as_str(), who.role, who.workspace), ("u", Role::Viewer, Some(workspace("w"))));
}

#[tokio::test]
async fn what_the_caller_hears() {
    let api = Api::start().await;
    let good = api.token("ws-a", Role::Viewer);
    let rows: [(&[(&str, &str)], u16, &str); 7] = [
        (&[], 401, "unauthorized"),
        (&[("authorization", "Basic dTpw")], 401, "unauthorized"),
        (&[("authorization", "Bearer ")], 401, "unauthorized"),
        (&[("authorization", "Bearer nonsense")], 401, "token_invalid"),
        (&[("authorization", &format!("bearer {good}"))], 200, ""),
        (
            &[("authorization", &format!("Bearer {good}")), ("authorization", "Bearer x")],
            401,
            "token_invalid",
        ),
        (&[("x-api-key", &good)], 401, "unauthorized"),
    ];
    for (headers, status, name) in rows {
        let mut request = Request::builder().uri("/apikeys");
        for (header, value) in headers {
            request = request.header(*header, *value);
        }
        let reply = api.send(request.body(Body::empty()).expect("a request")).await;
        assert_eq!(
            (reply.status.as_u16(), reply.json()["error"].as_str()),
            (status, Some(name)),
            "{headers:?}"
        );
        assert_eq!(reply.header("www-authenticate").starts_with("Bearer"), status == 401);
    }
    api.clock.advance(Duration::from_hours(2));
    let reply = api.call(&good, "GET", "/apikeys", Value::Null).await;
    assert_eq!(reply.verdict(), (401, 2003, "token_expired".into()));
}

#[tokio::test]
async fn which_workspace_a_call_is_about() {
    let api = Api::start().await;
    let about = async |token: &str, header: Option<&str>| {
        let mut request = request(token, "GET", "/apikeys", &Value::Null);
        if let Some(header) = header {
            request.headers_mut().insert("x-workspace-id", header.parse().expect("a header"));
        }
        let reply = api.send(request).await;
        (reply.status.as_u16(), reply.json()["error"].as_str().unwrap_or_default().to_owned())
    };
    let (own, roaming) = (api.token("ws-a", Role::Admin), api.token("-", Role::Platform));
    let settled = api.token("ws-b", Role::Platform);
    let said = |status: u16, name: &str| (status, name.to_owned());
    assert_eq!(about(&own, None).await, said(200, ""));
    assert_eq!(about(&own, Some("ws-a")).await, said(200, ""));
    assert_eq!(about(&own, Some("ws-b")).await, said(403, "workspace_no_access"));
    assert_eq!(about(&own, Some("a b")).await, said(400, "invalid_parameter"));
    assert_eq!(about(&roaming, None).await, said(400, "invalid_parameter"));
    assert_eq!(about(&roaming, Some("ws-a")).await, said(200, ""));
    assert_eq!(about(&roaming, Some("nowhere")).await, said(404, "not_found"));
    assert_eq!(about(&settled, None).await, said(200, ""));
    assert_eq!(about(&settled, Some("ws-a")).await, said(200, ""));
    assert!(api.store.workspace(&workspace("nowhere")).await.expect("a store").is_none());
}

#[tokio::test]
async fn an_unknown_workspace_is_made_only_where_that_is_allowed() {
    for allowed in [true, false] {
        let api = Api::start_with(|deps| deps.create_workspaces = allowed).await;
        let token = api.token("fresh", Role::Viewer);
        let reply = api.call(&token, "GET", "/apikeys", Value::Null).await;
        assert_eq!(reply.status, if allowed { 200 } else { 403 }, "{}", reply.text);
        let made = api.store.workspace(&workspace("fresh")).await.expect("a store");
        assert_eq!(made.map(|w| w.plan_id.to_string()), allowed.then(|| "default".to_owned()));
    }
}
