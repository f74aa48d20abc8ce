//! Secrets: generation, hashing, and what may be shown of them.
//!
//! Must not know: which key a secret belongs to, or where digests are stored.
//!
//! *Invariant:* a [`Secret`] has no `Display`, no `Serialize` and a silent `Debug`, and is wiped when dropped. The
//! plaintext is read only through [`Secret::expose`], for the two responses that issue one.

use crate::model::id::fill_random;
use crate::model::key::KeyType;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Longest secret that is accepted, in bytes.
pub const SECRET_MAX: usize = 128;
/// Random characters of a body: 30 × log2(62) = 178 bits.
const RANDOM_LEN: usize = 30;
/// Characters of the CRC-32 after them; 62⁶ > 2³².
const CHECK_LEN: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A plaintext API key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

/// A pepper: HMAC-SHA-256 key material with its version.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Pepper {
    #[zeroize(skip)]
    version: u32,
    keyed: KeyedMac,
    check: [u8; 32],
}

/// All peppers of an installation, newest first. Never empty.
#[derive(Clone, Debug)]
pub struct Peppers(Vec<Pepper>);

/// A MAC whose key is already processed, which saves one compression per request.
#[derive(Clone)]
struct KeyedMac(Hmac<Sha256>);

/// A MAC that recognises data which this installation wrote for itself.
pub struct Seal(Hmac<Sha256>);

/// The shape of a presented secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretShape {
    /// Our format with a correct checksum: worth a look-up.
    Ours,
    /// Another format: it may be an imported key.
    Foreign,
    /// Cannot be a key: too long, empty, not printable ASCII, or our format with a wrong checksum.
    Impossible,
}

/// Why peppers cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPeppers {
    /// There is none.
    #[error("no pepper given")]
    None,
    /// One is too short to be safe.
    #[error("pepper {0} is shorter than 32 bytes")]
    Short(u32),
    /// Two have the same version.
    #[error("pepper {0} is given twice")]
    Twice(u32),
    /// A line is not `version:hex`.
    #[error("line {0} is not `version:hexadecimal`, as in `1:4f2a…`")]
    Syntax(usize),
}

// === impl Secret ===

impl Secret {
    /// A new secret `{prefix}-{kind}-{body}`: 30 random characters and 6 of CRC-32 over everything before.
    pub fn generate(prefix: &str, kind: KeyType) -> Self {
        let mut text = String::with_capacity(SECRET_MAX);
        text.push_str(prefix);
        text.push('-');
        text.push_str(kind.as_str());
        text.push('-');
        let mut random = [0_u8; 64];
        let mut wanted = RANDOM_LEN;
        while wanted > 0 {
            fill_random(&mut random);
            // Bytes of 248 and above are skipped: 248 is the largest multiple of 62, so all characters are equally likely.
            for byte in random.iter().filter(|b| **b < 248).take(wanted) {
                text.push(char::from(BASE62[usize::from(byte % 62)]));
            }
            wanted = prefix.len() + kind.as_str().len() + 2 + RANDOM_LEN - text.len();
        }
        random.zeroize();
        let check = crc_base62(text.as_bytes());
        text.extend(check.iter().map(|b| char::from(*b)));
        Self(text)
    }

    /// A secret made elsewhere, to be imported. None if its shape is not usable.
    pub fn import(text: String, prefix: &str) -> Option<Self> {
        match shape(text.as_bytes(), prefix) {
            SecretShape::Impossible => None,
            SecretShape::Ours | SecretShape::Foreign => Some(Self(text)),
        }
    }

    /// The plaintext.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What may be shown: the characters up to the body plus 4, and the last 4. Of foreign secrets at most a quarter is
    /// shown, half of it on each side.
    pub fn hint(&self, prefix: &str) -> Box<str> {
        let text = self.0.as_str();
        let (head, tail) = if shape(text.as_bytes(), prefix) == SecretShape::Ours {
            (text.len() - RANDOM_LEN - CHECK_LEN + 4, 4)
        } else {
            let side = (text.len() / 8).min(4);
            (side, side)
        };
        format!("{}…{}", &text[..head], &text[text.len() - tail..]).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The SHA-256 digest of a secret, from another system.
pub fn sha256(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Classifies `text` by its characters alone.
pub fn shape(text: &[u8], prefix: &str) -> SecretShape {
    if text.is_empty() || text.len() > SECRET_MAX || !text.iter().all(u8::is_ascii_graphic) {
        return SecretShape::Impossible;
    }
    let ours =
        text.strip_prefix(prefix.as_bytes()).and_then(|rest| rest.strip_prefix(b"-")).and_then(|rest| {
            // A type may contain `_` but no `-`, so the body begins after the first dash.
            let dash = rest.iter().position(|b| *b == b'-')?;
            let kind = std::str::from_utf8(&rest[..dash]).ok()?;
            kind.parse::<KeyType>().ok().map(|_| &rest[dash + 1..])
        });
    let Some(body) = ours else { return SecretShape::Foreign };
    // Other systems' secrets may have our prefix; only the complete form is unique to us.
    if body.len() != RANDOM_LEN + CHECK_LEN || !body.iter().all(u8::is_ascii_alphanumeric) {
        return SecretShape::Foreign;
    }
    let (signed, check) = text.split_at(text.len() - CHECK_LEN);
    if crc_base62(signed) == check { SecretShape::Ours } else { SecretShape::Impossible }
}

fn crc_base62(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let mut crc = crc32fast::hash(bytes);
    let mut out = [b'0'; CHECK_LEN];
    for place in out.iter_mut().rev() {
        *place = BASE62[(crc % 62) as usize];
        crc /= 62;
    }
    out
}

// === impl Peppers ===

impl Peppers {
    /// From (version, key material) pairs in any order.
    pub fn new(pairs: Vec<(u32, Vec<u8>)>) -> Result<Self, BadPeppers> {
        let mut peppers = Vec::with_capacity(pairs.len());
        for (version, mut bytes) in pairs {
            if bytes.len() < 32 {
                return Err(BadPeppers::Short(version));
            }
            if peppers.iter().any(|p: &Pepper| p.version == version) {
                return Err(BadPeppers::Twice(version));
            }
            peppers.push(Pepper::new(version, &bytes));
            bytes.zeroize();
        }
        if peppers.is_empty() {
            return Err(BadPeppers::None);
        }
        peppers.sort_by_key(|p| std::cmp::Reverse(p.version));
        Ok(Self(peppers))
    }

    /// Parses lines (or comma-separated items) of `version:hexadecimal`; empty ones and comments after `#` are ignored.
    pub fn parse(text: &str) -> Result<Self, BadPeppers> {
        let mut pairs = Vec::new();
        for (n, line) in text.split(['\n', ',']).enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let parsed = line.split_once(':').and_then(|(version, hex)| {
                Some((version.trim().parse().ok().filter(|v| *v > 0)?, hex::decode(hex.trim()).ok()?))
            });
            pairs.push(parsed.ok_or(BadPeppers::Syntax(n + 1))?);
        }
        Self::new(pairs)
    }

    /// A line for [`Peppers::parse`] with 32 fresh random bytes.
    pub fn generate_line(version: u32) -> String {
        let mut bytes = [0_u8; 32];
        fill_random(&mut bytes);
        let line = format!("{version}:{}", hex::encode(bytes));
        bytes.zeroize();
        line
    }

    /// The pepper for new digests.
    pub fn current(&self) -> &Pepper {
        &self.0[0]
    }

    /// All peppers, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = &Pepper> {
        self.0.iter()
    }

    /// (version, check value) of each, for the store.
    pub fn checks(&self) -> Vec<(u32, [u8; 32])> {
        self.0.iter().map(|p| (p.version, p.check)).collect()
    }
}

impl Pepper {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    fn new(version: u32, bytes: &[u8]) -> Self {
        let keyed = KeyedMac(Hmac::<Sha256>::new_from_slice(bytes).expect("HMAC takes keys of any length"));
        let check = keyed.digest(b"keygate: which pepper is this?");
        Self { version, keyed, check }
    }

    /// The version.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// A value that identifies the pepper without revealing it.
    pub const fn check(&self) -> &[u8; 32] {
        &self.check
    }

    /// A MAC under a key derived from this pepper. The derivation label contains a space, and no secret does, so this key
    /// is no secret's digest.
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    pub fn seal(&self) -> Seal {
        let key = self.keyed.digest(b"keygate: what this node wrote for itself");
        Seal(Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length"))
    }

    /// A key for the cookies of the console, derived as [`Pepper::seal`]'s is.
    pub fn console_key(&self) -> [u8; 32] {
        self.keyed.digest(b"keygate: sessions of the console")
    }

    /// HMAC-SHA-256 of `secret` under this pepper.
    pub fn digest(&self, secret: &[u8]) -> [u8; 32] {
        self.keyed.digest(secret)
    }

    /// The digest stored for a secret of which only the SHA-256 digest is known. The message begins with NUL, which no
    /// secret does, so it equals no secret's digest.
    pub fn digest_of_sha256(&self, sha256: &[u8; 32]) -> [u8; 32] {
        let mut message = [0; 33];
        message[1..].copy_from_slice(sha256);
        self.keyed.digest(&message)
    }
}

impl Seal {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The MAC of all added bytes.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into_bytes().into()
    }

    /// Whether `tag` is the MAC of all added bytes, in constant time.
    pub fn matches(self, tag: &[u8]) -> bool {
        self.0.verify_slice(tag).is_ok()
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pepper({})", self.version)
    }
}

impl KeyedMac {
    fn digest(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

impl Zeroize for KeyedMac {
    fn zeroize(&mut self) {
        // The hash crates wipe their state when it is dropped; replacing it drops it.
        if let Ok(blank) = Hmac::<Sha256>::new_from_slice(&[]) {
            self.0 = blank;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_secret_is_ours_and_one_changed_character_is_impossible() {
        for kind in KeyType::ALL {
            let secret = Secret::generate("sk", *kind);
            let text = secret.expose();
            assert_eq!(text.len(), "sk-".len() + kind.as_str().len() + 1 + 36);
            assert_eq!(shape(text.as_bytes(), "sk"), SecretShape::Ours, "{text}");
            let body = text.len() - 36;
            for place in body..text.len() {
                let mut bytes = text.as_bytes().to_vec();
                bytes[place] = if bytes[place] == b'a' { b'b' } else { b'a' };
                assert_eq!(shape(&bytes, "sk"), SecretShape::Impossible, "{place}");
            }
        }
    }

    #[test]
    fn texts_are_sorted_into_possible_foreign_and_impossible_secrets() {
        for (text, expected) in [
            ("", SecretShape::Impossible),
            ("sk-app-short", SecretShape::Foreign),
            ("sk-service-0123456789_-abcdefghijklmnopqrs", SecretShape::Foreign),
            ("sk-service-0123456789abcdefghijklmnopqrstuvwxyz", SecretShape::Impossible),
            ("sk-service-0123456789-bcdefghijklmnopqrstuvwxyz", SecretShape::Foreign),
            ("sk-proj-abcdef", SecretShape::Foreign),
            ("legacy_key_1", SecretShape::Foreign),
            ("with space", SecretShape::Impossible),
            ("schlüssel", SecretShape::Impossible),
            ("sk", SecretShape::Foreign),
            ("sk-", SecretShape::Foreign),
        ] {
            assert_eq!(shape(text.as_bytes(), "sk"), expected, "{text}");
        }
        assert_eq!(shape(&[b'a'; SECRET_MAX], "sk"), SecretShape::Foreign);
        assert_eq!(shape(&[b'a'; SECRET_MAX + 1], "sk"), SecretShape::Impossible);
    }

    #[test]
    fn a_hint_shows_the_ends_and_debug_shows_nothing() {
        let secret = Secret::generate("sk", KeyType::Service);
        let hint = secret.hint("sk");
        assert!(hint.starts_with("sk-service-") && hint.chars().count() == "sk-service-".len() + 9, "{hint}");
        assert!(!format!("{secret:?}").contains(&secret.expose()[..8]));
        let foreign = Secret::import("legacy_key_0001".into(), "sk").map(|s| s.hint("sk"));
        assert_eq!(foreign.as_deref(), Some("l…1"));
    }

    #[test]
    fn digests_are_hmac_sha_256() {
        // RFC 4231, test case 6 has a key longer than a block; case 1's key is padded here to the required 32 bytes.
        let key = [0xaa_u8; 131];
        let peppers = Peppers::new(vec![(1, key.to_vec())]);
        let digest =
            peppers.map(|p| p.current().digest(b"Test Using Larger Than Block-Size Key - Hash Key First"));
        let expected = hex::decode("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54").ok();
        assert_eq!(digest.map(|d| d.to_vec()).ok(), expected);
    }

    #[test]
    fn peppers_are_read_newest_first_and_mistakes_are_named() {
        let (one, two) = ("11".repeat(32), "22".repeat(32));
        let read = Peppers::parse(&format!("# old\n1:{one}\n\n2:{two}\n"));
        assert_eq!(read.map(|p| p.iter().map(Pepper::version).collect::<Vec<_>>()), Ok(vec![2, 1]));
        assert_eq!(Peppers::parse("").err(), Some(BadPeppers::None));
        assert_eq!(Peppers::parse("1:00ff").err(), Some(BadPeppers::Short(1)));
        assert_eq!(Peppers::parse(&format!("1:{one},1:{two}")).err(), Some(BadPeppers::Twice(1)));
        assert_eq!(Peppers::parse("nonsense").err(), Some(BadPeppers::Syntax(1)));
        assert!(Peppers::parse(&Peppers::generate_line(7)).is_ok());
    }
}
