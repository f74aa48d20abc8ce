//! Signed tokens in compact form (RFC 7515) and their keys (RFC 7517, RFC 7518), with *ring*.
//!
//! Must not know: the meaning of claims, or which keys may be used for a token. Signatures are verified before claims are
//! parsed; a repeated member in header or claims is refused.

use super::input::json::{self, BadJson};
use crate::model::key::words;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::agreement::{self, ECDH_P256, EphemeralPrivateKey};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde_json::{Map, Value};

words!(
    /// A signature algorithm (RFC 7518, RFC 8037).
    Algorithm {
        /// HMAC with SHA-256.
        HS256 = "HS256",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        RS256 = "RS256",
        /// ECDSA on P-256 with SHA-256.
        ES256 = "ES256",
        /// Ed25519.
        EdDSA = "EdDSA",
    }
);

/// A key that verifies signatures with one algorithm.
pub(super) enum VerifyingKey {
    Hmac(hmac::Key),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Ecdsa(UnparsedPublicKey<Vec<u8>>),
    Ed25519(UnparsedPublicKey<Vec<u8>>),
}

/// A token whose signature has not been verified.
pub(super) struct Token<'t> {
    /// Its algorithm; none if it is not a supported one.
    pub(super) algorithm: Option<Algorithm>,
    /// The name of its key.
    pub(super) kid: Option<String>,
    signed: &'t str,
    claims: &'t str,
    signature: Vec<u8>,
}

/// Why a token is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadToken {
    /// It is malformed, or its signature is wrong.
    Invalid,
    /// A member occurs twice, e.g. `claims.role`.
    Twice(String),
}

/// A key of a JWKS.
pub(super) struct Jwk<'j> {
    fields: &'j Map<String, Value>,
    /// Its name in tokens.
    pub(super) kid: Option<&'j str>,
    /// Its algorithm; none if it is not for signatures, or of a kind that is not supported.
    pub(super) algorithm: Option<Algorithm>,
}

/// Sizes of RSA moduli that are secure and fast enough, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// Points of Ed25519 whose order divides 8, without their sign: with such a key, a signature can be valid for any text.
const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

// === tokens ===

/// A token with these claims, signed with HS256.
pub(super) fn sign(key: &hmac::Key, claims: &Map<String, Value>) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"HS256"}"#);
    let claims = URL_SAFE_NO_PAD.encode(Value::Object(claims.clone()).to_string());
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

impl<'t> Token<'t> {
    /// Parses the header.
    pub(super) fn read(text: &'t str) -> Result<Self, BadToken> {
        let (signed, signature) = text.rsplit_once('.').ok_or(BadToken::Invalid)?;
        let (header, claims) = signed.split_once('.').ok_or(BadToken::Invalid)?;
        let header = object("header", header)?;
        // RFC 7515, 4.1.11: a token with an unknown critical extension must be refused.
        if header.contains_key("crit") {
            return Err(BadToken::Invalid);
        }
        let algorithm = header.get("alg").and_then(Value::as_str).ok_or(BadToken::Invalid)?;
        let kid = match header.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str().ok_or(BadToken::Invalid)?.to_owned()),
        };
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| BadToken::Invalid)?;
        Ok(Self { algorithm: algorithm.parse().ok(), kid, signed, claims, signature })
    }

    /// The claims, if the signature by `key` is valid.
    pub(super) fn claims(&self, key: &VerifyingKey) -> Result<Map<String, Value>, BadToken> {
        if self.algorithm != Some(key.algorithm()) || !key.verifies(self.signed.as_bytes(), &self.signature) {
            return Err(BadToken::Invalid);
        }
        object("claims", self.claims)
    }
}

/// A part of a token: an object in base64url without a further dot.
fn object(part: &str, text: &str) -> Result<Map<String, Value>, BadToken> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadToken::Invalid)?;
    json::object(&bytes).map_err(|bad| match bad {
        BadJson::Twice(path) => BadToken::Twice(format!("{part}.{path}")),
        BadJson::Syntax { .. } | BadJson::NoObject => BadToken::Invalid,
    })
}

// === keys ===

impl VerifyingKey {
    /// Its algorithm.
    pub(super) const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hmac(_) => Algorithm::HS256,
            Self::Rsa(_) => Algorithm::RS256,
            Self::Ecdsa(_) => Algorithm::ES256,
            Self::Ed25519(_) => Algorithm::EdDSA,
        }
    }

    fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Hmac(key) => hmac::verify(key, text, signature),
            Self::Rsa(key) => key.verify(&RSA_PKCS1_2048_8192_SHA256, text, signature),
            Self::Ecdsa(key) | Self::Ed25519(key) => key.verify(text, signature),
        }
        .is_ok()
    }
}

/// The keys of a JWKS, including those for other purposes.
pub(super) fn key_set(set: &Map<String, Value>) -> Result<Vec<Jwk<'_>>, String> {
    let keys = set.get("keys").and_then(Value::as_array).ok_or("keys: must be an array")?;
    let mut all = Vec::with_capacity(keys.len());
    for (n, key) in keys.iter().enumerate() {
        let fields = key.as_object().ok_or_else(|| format!("keys[{n}]: must be an object"))?;
        all.push(Jwk::read(fields).map_err(|why| format!("keys[{n}].{why}"))?);
    }
    Ok(all)
}

impl<'j> Jwk<'j> {
    fn read(fields: &'j Map<String, Value>) -> Result<Self, String> {
        let word = |name: &str| match fields.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| format!("{name}: must be text")),
        };
        let family = word("kty")?.ok_or("kty: is required")?;
        let (kid, curve, named) = (word("kid")?, word("crv")?, word("alg")?);
        let is_for_signatures = word("use")?.is_none_or(|purpose| purpose == "sig");
        let verifies = match fields.get("key_ops") {
            None => true,
            Some(Value::Array(all)) => all.iter().any(|op| op == "verify"),
            Some(_) => return Err("key_ops: must be an array".into()),
        };
        let natural = match (family, curve) {
            ("RSA", _) => Some(Algorithm::RS256),
            ("EC", Some("P-256")) => Some(Algorithm::ES256),
            ("OKP", Some("Ed25519")) => Some(Algorithm::EdDSA),
            _ => None,
        };
        let fits = |algorithm: &Algorithm| named.is_none_or(|named| named == algorithm.as_str());
        let algorithm = natural.filter(|natural| is_for_signatures && verifies && fits(natural));
        Ok(Self { fields, kid, algorithm })
    }

    /// The key itself, or why it must not be trusted.
    pub(super) fn key(&self) -> Result<VerifyingKey, String> {
        match self.algorithm {
            Some(Algorithm::RS256) => self.rsa(),
            Some(Algorithm::ES256) => self.p256(),
            Some(Algorithm::EdDSA) => self.ed25519(),
            Some(Algorithm::HS256) | None => Err("kty: is of no use here".into()),
        }
    }

    fn rsa(&self) -> Result<VerifyingKey, String> {
        // Some write a leading sign byte, which RFC 7518 (6.3.1.1) does not allow.
        let [n, e] = [self.bytes("n")?, self.bytes("e")?].map(|number| {
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            number[zeros..].to_vec()
        });
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            let (min, max) = (RSA_BITS.start(), RSA_BITS.end());
            return Err(format!("n: is a modulus of {bits} bits; an RSA key must have {min} to {max}"));
        }
        let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
        if !is_odd(&n) {
            return Err("n: must be odd".into());
        }
        // ring does not accept longer ones.
        if !is_odd(&e) || e == [1] || e.len() > 4 {
            return Err("e: must be odd, from 3 to 4294967295".into());
        }
        Ok(VerifyingKey::Rsa(RsaPublicKeyComponents { n, e }))
    }

    fn p256(&self) -> Result<VerifyingKey, String> {
        let mut point = vec![4];
        for name in ["x", "y"] {
            point.extend(self.coordinate(name)?);
        }
        let is_on_curve = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
            .and_then(|own| {
                let other = agreement::UnparsedPublicKey::new(&ECDH_P256, &point);
                agreement::agree_ephemeral(own, &other, |_| ())
            })
            .is_ok();
        if !is_on_curve {
            return Err("x, y: must be a point of P-256".into());
        }
        Ok(VerifyingKey::Ecdsa(UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)))
    }

    fn ed25519(&self) -> Result<VerifyingKey, String> {
        let point = self.coordinate("x")?;
        let mut unsigned = point;
        unsigned[31] &= 0x7f;
        if SMALL_ORDER.contains(&&*hex::encode(unsigned)) {
            return Err("x: is a point of small order, under which anybody can sign".into());
        }
        Ok(VerifyingKey::Ed25519(UnparsedPublicKey::new(&ED25519, point.to_vec())))
    }

    fn coordinate(&self, name: &str) -> Result<[u8; 32], String> {
        let wrong = |bytes: Vec<u8>| format!("{name}: has {} bytes; it must have 32", bytes.len());
        self.bytes(name)?.try_into().map_err(wrong)
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, String> {
        let text = self.fields.get(name).and_then(Value::as_str);
        let bytes = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        bytes.ok_or_else(|| format!("{name}: must be base64url without padding"))
    }
}
