//! Which tokens are accepted, and the answers to the others.

use super::*;
use crate::admin::auth::{Identity, NotVerified};
use crate::admin::error::AdminError;
use crate::model::fault::Fault;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};

/// Signed with RS256 by a key that no longer exists; `exp` is one hour after [`NOW`].
const RS256_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6InJzYS0xIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci50ZXN0IiwiYXVkIjoia2V5Z2F0ZS1hZG1pbiIsInN1YiI6InVzZXItMSIsIndvcmtzcGFjZV9pZCI6IndzLWEiLCJyb2xlIjoiYWRtaW4iLCJleHAiOjE3NjcyMjkyMDB9.19O2IUQWKkr7Uzv9dZSRyv307oFRdQ_UApZxdjhpLh5DCmSdHEjx_0PxWup-zHftbjCN6gmSnL6YzukGlyXRjV1f7uSZClSCnsGxMoQzm6wAWPtof5BjXphvD4e3kyIftyHiK7ahWppNOFHdnulCTrKJAxZC1P8MYzKqIexJPYNuEoOY43vtn0EG5J-aPsrS71keebH64BmGWVcXg7Rq3ZI8N9bpYn9mwEXhIiBz_s5fdJSYt7QpJKPsZLPqb2gnndaJod8lyzqWAJX3D46rw2CrYVcqSMA5RU39Kku8tBIaxykfmYqiqC6LrPtz6mHpc9AUPQ1J03H6ZivZhQxfzQ";
const RS256_MODULUS: &str = "7lJYCkCKUeVkw-MCkGLBgRbEybgjVKEkrVaQMq5yeSRtB00hVzzYO09YIyocG5ZpTipqmShmy4KcNfTvXNzrAhuQ_WEofyZ5iGtWUCWeKohZ4czB9XBJuakQR7Zs7hixKgbQQG6X1rmgxu5l4pgAEIk_bIkrvXGs-wdZ3grkWQ83M5gm-uuaaIa5zPDsNqSNvQE8qqqYB_sKl3Fa5_9p4QDnBE0eQY8dXt04sgvNUOZTS0o58l3-GqTQF51cdi2fMOjOdDdpkUuRIN3mSwWWawjtvjd_G7k9qpapHGFPus8PgZfdgfCTATxXvvKZxPIBQyoFkj2kFzXhLOPAVo-3CQ";

/// Valid claims with `changes` applied; null removes one.
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

/// A signer.
enum Signer {
    Hmac(hmac::Key),
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl Signer {
    fn secret(secret: &[u8]) -> Self {
        Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Hmac(key) => hmac::sign(key, text).as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(text).as_ref().to_vec(),
            Self::P256(key) => key.sign(&SystemRandom::new(), text).expect("signed").as_ref().to_vec(),
        }
    }
}

/// A token from raw texts.
fn signed_texts(header: &str, claims: &str, key: &Signer) -> String {
    let signed = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let signature = B64.encode(key.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn signed(header: &Value, claims: &Value, key: &Signer) -> String {
    signed_texts(&header.to_string(), &claims.to_string(), key)
}

fn hs256(changes: Value) -> String {
    signed(&with_kid("HS256", None), &claims(changes), &Signer::secret(SECRET))
}

fn ed25519(seed: u8) -> Signer {
    Signer::Ed25519(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key"))
}

fn p256() -> Signer {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random);
    Signer::P256(key.expect("a key"))
}

fn jwk(kid: &str, key: &Signer) -> Value {
    match key {
        Signer::Hmac(_) => panic!("not a public key"),
        Signer::Ed25519(key) => {
            json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": B64.encode(key.public_key())})
        }
        Signer::P256(key) => {
            let (x, y) = key.public_key().as_ref()[1..].split_at(32);
            json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": B64.encode(x), "y": B64.encode(y)})
        }
    }
}

/// An RSA key with a modulus of this many bits. Nobody has its private part.
fn rsa(bits: usize, exponent: &str) -> Value {
    let mut modulus = vec![0xff; bits.div_ceil(8)];
    modulus[0] >>= modulus.len() * 8 - bits;
    json!({"kty": "RSA", "kid": "r", "n": B64.encode(modulus), "e": exponent})
}

fn with_kid(algorithm: &str, kid: Option<&str>) -> Value {
    let mut header = json!({"typ": "JWT", "alg": algorithm});
    if let Some(kid) = kid {
        header["kid"] = json!(kid);
    }
    header
}

fn asymmetric(keys: &[Value], algorithms: &[Algorithm]) -> Result<Auth, BadAuth> {
    let text = json!({"keys": keys}).to_string();
    Auth::new(AuthConfig { keys: AuthKeys::Jwks(text), algorithms: algorithms.to_vec(), ..auth_config() })
}

/// The holder of a token, by the keys in force alone.
fn identify(auth: &Auth, token: &str, now: Timestamp) -> Result<Identity, AdminError> {
    let claimed = auth.verify(token, now).map_err(|not| match not {
        NotVerified::Refused(error) => error,
        NotVerified::UnknownKey | NotVerified::Foreign => AdminError::of(Fault::TokenInvalid),
    })?;
    auth.identity(claimed)
}

fn verdict(auth: &Auth, token: &str) -> Option<Fault> {
    identify(auth, token, NOW).err().map(|e| e.fault())
}

#[test]
fn shared_secret_decisions() {
    let auth = Auth::new(auth_config()).expect("right");
    let now = NOW.as_secs();
    let bad = Some(Fault::TokenInvalid);
    let none_header = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let good = hs256(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    let wrong_secret = Signer::secret(&[9; 32]);
    let critical = json!({"alg": "HS256", "crit": ["b64"]});
    let key = Signer::secret(SECRET);
    let sha512 = Signer::Hmac(hmac::Key::new(hmac::HMAC_SHA512, SECRET));
    let rows: Vec<(&str, String, Option<Fault>)> = vec![
        ("right", good.clone(), None),
        ("right with nbf", hs256(json!({"nbf": now})), None),
        ("right with an audience list", hs256(json!({"aud": ["other", "keygate-admin"]})), None),
        ("right with a fractional exp", hs256(json!({"exp": 1_767_229_200.5})), None),
        ("a name for the only key", signed(&with_kid("HS256", Some("k")), &claims(json!({})), &key), None),
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
        ("a workspace that is a whole number", hs256(json!({"workspace_id": 5})), None),
        ("a workspace that is another number", hs256(json!({"workspace_id": 5.5})), bad),
        ("a workspace that is a list", hs256(json!({"workspace_id": ["ws-a"]})), bad),
        ("no role", hs256(json!({"role": null})), Some(Fault::Forbidden)),
        ("an unknown role", hs256(json!({"role": "root"})), Some(Fault::Forbidden)),
        ("another secret", signed(&with_kid("HS256", None), &claims(json!({})), &wrong_secret), bad),
        ("HS512 with our secret", signed(&with_kid("HS512", None), &claims(json!({})), &sha512), bad),
        ("EdDSA", signed(&with_kid("EdDSA", None), &claims(json!({})), &ed25519(1)), bad),
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
    let (ed_key, ec_key, stranger) = (ed25519(1), p256(), ed25519(3));
    let keys = [jwk("ed-1", &ed_key), jwk("ec-1", &ec_key)];
    let auth = asymmetric(&keys, &[Algorithm::EdDSA, Algorithm::ES256]).expect("right");
    let bad = Some(Fault::TokenInvalid);
    let public_as_secret = keys[0]["x"].as_str().expect("x").as_bytes();
    let (ed, ec, hs) = ("EdDSA", "ES256", "HS256");
    let rows = [
        ("EdDSA", with_kid(ed, Some("ed-1")), &ed_key, None),
        ("ES256", with_kid(ec, Some("ec-1")), &ec_key, None),
        ("no kid, one key fits", with_kid(ed, None), &ed_key, None),
        ("an unknown kid", with_kid(ed, Some("ed-2")), &ed_key, bad),
        ("the kid of a key for another algorithm", with_kid(ed, Some("ec-1")), &ed_key, bad),
        ("signed by a stranger", with_kid(ed, Some("ed-1")), &stranger, bad),
        ("HS256 with the public key", with_kid(hs, None), &Signer::secret(public_as_secret), bad),
    ];
    for (what, header, key, expected) in rows {
        assert_eq!(verdict(&auth, &signed(&header, &claims(json!({})), key)), expected, "{what}");
    }
    let only_ed = asymmetric(&keys, &[Algorithm::EdDSA]).expect("right");
    let ec_token = signed(&with_kid(ec, Some("ec-1")), &claims(json!({})), &ec_key);
    assert_eq!(verdict(&only_ed, &ec_token), bad, "an algorithm outside the list");
    let two = [jwk("a", &ed_key), jwk("b", &stranger)];
    let auth_of_two = asymmetric(&two, &[Algorithm::EdDSA]).expect("right");
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
    for algorithms in [vec![Algorithm::HS256, Algorithm::RS256], vec![Algorithm::EdDSA]] {
        let mixed = AuthConfig { algorithms, ..auth_config() };
        assert!(matches!(Auth::new(mixed), Err(BadAuth::Algorithm(..))));
    }
    assert!(matches!(
        Auth::new(AuthConfig { algorithms: vec![], ..auth_config() }),
        Err(BadAuth::NoAlgorithm(_))
    ));
    let key = jwk("k", &ed25519(1));
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
fn a_key_set_with_a_key_that_proves_nothing_is_refused_by_name() {
    let (good, ed, ec) = (jwk("good", &ed25519(1)), jwk("o", &ed25519(2)), jwk("e", &p256()));
    let changed = |key: &Value, name: &str, value: &str| {
        let mut key = key.clone();
        key[name] = json!(value);
        key
    };
    let all = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
    let zeros = |n| B64.encode(vec![0; n]);
    let rows = [
        (
            rsa(1_024, "AQAB"),
            "the key \"r\": n: is a modulus of 1024 bits; an RSA key must have 2048 to 8192",
        ),
        (rsa(2_047, "AQAB"), "2047 bits"),
        (rsa(8_200, "AQAB"), "8200 bits"),
        (changed(&rsa(2_048, "AQAB"), "n", &zeros(256)), "a modulus of 0 bits"),
        (rsa(2_048, "AQ"), "e: must be odd"),
        (rsa(2_048, "AQAA"), "e: must be odd"),
        (changed(&rsa(2_048, "AQAB"), "n", "a=="), "n: must be base64url"),
        (changed(&ec, "x", &zeros(32)), "x, y: must be a point of P-256"),
        (changed(&ec, "y", &zeros(31)), "y: has 31 bytes; it must have 32"),
        (changed(&ed, "x", &zeros(32)), "x: is a point of small order"),
        (
            changed(&ed, "x", &B64.encode([&[1][..], &[0; 30], &[0x80]].concat())),
            "x: is a point of small order",
        ),
        (json!({"kid": "r"}), "keys[1].kty: is required"),
        (json!("key"), "keys[1]: must be an object"),
    ];
    for (weak, why) in rows {
        let error = asymmetric(&[good.clone(), weak], &all).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
    for (text, why) in [
        (r#"{"keys": [], "keys": []}"#, "keys: is there twice"),
        (r#"{"keys": [{"kty": "OKP", "x": "", "x": ""}]}"#, "keys[0].x: is there twice"),
        (r#"{"key": []}"#, "keys: must be an array"),
    ] {
        let config =
            AuthConfig { keys: AuthKeys::Jwks(text.into()), algorithms: all.to_vec(), ..auth_config() };
        let error = Auth::new(config).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
    // Keys for other purposes may be anything, and values at the limits are allowed.
    let others = [
        json!({"kty": "oct", "k": "c2hvcnQ"}),
        json!({"kty": "EC", "crv": "P-384"}),
        json!({"kty": "RSA", "use": "enc"}),
    ];
    for beside in others.into_iter().chain([rsa(2_048, "Aw"), rsa(8_192, "AQAB")]) {
        assert!(asymmetric(&[good.clone(), beside.clone()], &all).is_ok(), "{beside}");
    }
}

#[tokio::test]
async fn a_token_that_says_something_twice_is_refused_by_name() {
    let api = Api::start_with(|deps| deps.auth = Arc::new(Auth::new(auth_config()).expect("right"))).await;
    let (header, claims) = (r#"{"alg":"HS256"}"#, claims(json!({})).to_string());
    let more = |name: &str, value: &str| format!("{},\"{name}\":{value}}}", &claims[..claims.len() - 1]);
    let rows = [
        (r#"{"alg":"none","alg":"HS256"}"#, claims.clone(), "header.alg"),
        (r#"{"alg":"HS256","kid":"a","kid":"b"}"#, claims.clone(), "header.kid"),
        (header, more("role", "\"platform\""), "claims.role"),
        (header, more("r\\u006fle", "\"platform\""), "claims.role"),
        (header, more("act", r#"{"sub":"a","sub":"b"}"#), "claims.act.sub"),
    ];
    let key = Signer::secret(SECRET);
    for (header, claims, field) in rows {
        let reply = api.call(&signed_texts(header, &claims, &key), "GET", "/apikeys", Value::Null).await;
        assert_eq!(reply.verdict(), (401, 2002, "token_invalid".into()), "{field}");
        let errors = &reply.json()["data"]["errors"];
        assert_eq!(*errors, json!([{"field": field, "message": "is there twice"}]));
    }
    // Claims signed by somebody else are not reported.
    let forged = signed_texts(header, &more("role", "1"), &Signer::secret(&[9; 32]));
    let reply = api.call(&forged, "GET", "/apikeys", Value::Null).await;
    assert_eq!((reply.verdict(), &reply.json()["data"]), ((401, 2002, "token_invalid".into()), &json!({})));
}

#[test]
fn a_minted_token_says_who_and_until_when() {
    let auth = Auth::new(auth_config()).expect("right");
    let ws = workspace("ws-a");
    let token = auth.mint("cli", Some(&ws), Role::Viewer, Duration::from_mins(1), NOW).expect("a token");
    let who = identify(&auth, &token, NOW).expect("valid");
    assert_eq!((who.subject.as_str(), who.role, who.workspace), ("cli", Role::Viewer, Some(ws)));
    let over = NOW.plus(Duration::from_secs(65));
    assert_eq!(identify(&auth, &token, over).err().map(|e| e.fault()), Some(Fault::TokenExpired));
}

#[tokio::test]
async fn claims_can_go_by_other_names() {
    let names =
        AuthClaims { subject: "uid".into(), workspace: "https://x/ws".into(), role: "kg_role".into() };
    let auth = Auth::new(AuthConfig { claims: names, ..auth_config() }).expect("right");
    let changes = json!({"sub": null, "role": null, "workspace_id": null, "uid": "u", "https://x/ws": "w", "kg_role": "viewer"});
    let who = identify(&auth, &hs256(changes), NOW).expect("valid");
    assert_eq!((who.subject.as_str(), who.role, who.workspace), ("u", Role::Viewer, Some(workspace("w"))));
}

#[tokio::test]
async fn a_missing_or_invalid_token_gets_401_with_a_challenge() {
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
async fn the_workspace_comes_from_the_token_or_for_platform_callers_from_the_header() {
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
