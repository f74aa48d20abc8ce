//! Encrypts credentials for the store: AES-256-GCM with a random nonce, under the newest of several keys.
//!
//! Must not know: where the keys come from. What a credential is for is authenticated with it, so that a row of the store
//! cannot be given to other requests.

use crate::model::credential::SealedCredential;
use crate::model::id::fill_random;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt;
use zeroize::{Zeroize as _, Zeroizing};

/// Length of a key in bytes.
const KEY_LEN: usize = 32;
/// What is encrypted here, and in which format.
const PURPOSE: &[u8] = b"keygate upstream credential 1";

/// All encryption keys, newest first. Never empty.
pub struct EncryptionKeys(Vec<EncryptionKey>);

struct EncryptionKey {
    version: u32,
    key: LessSafeKey,
}

/// Why encryption keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEncryptionKeys {
    /// There is none.
    #[error("no encryption key given")]
    None,
    /// A line is not `version:hexadecimal`.
    #[error("line {0} is not VERSION:HEX, with a version from 1 on and 64 hexadecimal digits (32 bytes)")]
    Syntax(usize),
    /// A version is given twice.
    #[error("encryption key {0} is given twice")]
    Twice(u32),
}

/// Why a credential cannot be decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no key of its version.
    #[error("encryption key {0} is not configured")]
    KeyMissing(u32),
    /// It was encrypted under another key of this version, or for other requests, or was damaged.
    #[error("it does not belong to encryption key {0}, or its row was changed")]
    NotAuthentic(u32),
}

impl EncryptionKeys {
    /// Parses lines (or comma-separated items) of `version:hexadecimal`; empty ones and comments after `#` are ignored.
    pub fn parse(text: &str) -> Result<Self, BadEncryptionKeys> {
        let mut keys: Vec<EncryptionKey> = Vec::new();
        for (n, line) in text.split(['\n', ',']).enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = EncryptionKey::parse(line).ok_or(BadEncryptionKeys::Syntax(n + 1))?;
            if keys.iter().any(|known| known.version == key.version) {
                return Err(BadEncryptionKeys::Twice(key.version));
            }
            keys.push(key);
        }
        keys.sort_by_key(|key| std::cmp::Reverse(key.version));
        if keys.is_empty() { Err(BadEncryptionKeys::None) } else { Ok(Self(keys)) }
    }

    /// The version of the newest key.
    pub fn newest(&self) -> u32 {
        self.0[0].version
    }

    /// `credential` with `secret`, encrypted under the newest key.
    #[expect(clippy::expect_used, reason = "a credential is far below the limit of AES-GCM, 64 GiB")]
    pub fn seal(&self, credential: &mut SealedCredential, secret: &str) {
        let newest = &self.0[0];
        credential.key_version = newest.version;
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce);
        let mut text = Zeroizing::new(secret.as_bytes().to_vec());
        let aad = Aad::from(associated_data(credential));
        let tag = newest
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .expect("a credential is short");
        credential.sealed = [&nonce[..], &text, tag.as_ref()].concat().into();
    }

    /// The secret of `credential`.
    pub fn open(&self, credential: &SealedCredential) -> Result<Zeroizing<String>, OpenError> {
        let version = credential.key_version;
        let key = self.0.iter().find(|key| key.version == version).ok_or(OpenError::KeyMissing(version))?;
        let changed = OpenError::NotAuthentic(version);
        let (nonce, text) = credential.sealed.split_first_chunk::<NONCE_LEN>().ok_or(changed)?;
        let mut text = Zeroizing::new(text.to_vec());
        let aad = Aad::from(associated_data(credential));
        let opened = key.key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut text);
        let secret = opened.map_err(|_| changed)?;
        let secret = std::str::from_utf8(secret).map_err(|_| changed)?;
        Ok(Zeroizing::new(secret.to_owned()))
    }
}

impl EncryptionKey {
    fn parse(line: &str) -> Option<Self> {
        let (version, hex) = line.split_once(':')?;
        let version = version.trim().parse().ok().filter(|version| *version > 0)?;
        let mut bytes = [0; KEY_LEN];
        hex::decode_to_slice(hex.trim(), &mut bytes).ok()?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).ok();
        bytes.zeroize();
        Some(Self { version, key: LessSafeKey::new(key?) })
    }
}

impl fmt::Debug for EncryptionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.version)).finish()
    }
}

/// What a credential is for. Each part has its length in front, so that no two differ in nothing but their seams.
fn associated_data(credential: &SealedCredential) -> Vec<u8> {
    let SealedCredential { id: _, selector, header, scheme, key_version, sealed: _ } = credential;
    let metadata = selector.metadata_text();
    let mut data = PURPOSE.to_vec();
    data.extend(key_version.to_le_bytes());
    for part in
        [&*selector.upstream, selector.workspace_text(), &metadata, header, scheme.as_deref().unwrap_or("")]
    {
        data.extend(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        data.extend(part.as_bytes());
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::model::credential::{CredentialSelector, MetadataEntry};
    use crate::model::id::CredentialId;

    const ONE: &str = "1:0101010101010101010101010101010101010101010101010101010101010101";
    const TWO: &str = "2:0202020202020202020202020202020202020202020202020202020202020202";

    fn keys(text: &str) -> EncryptionKeys {
        EncryptionKeys::parse(text).expect("keys")
    }

    fn sealed(keys: &EncryptionKeys) -> SealedCredential {
        let selector = CredentialSelector {
            upstream: "llm".into(),
            workspace: Some("acme".parse().expect("an id")),
            metadata: MetadataEntry::parse("tier=gold"),
        };
        let mut made = SealedCredential {
            id: CredentialId::new(Timestamp::from_secs(1)),
            selector,
            header: "authorization".into(),
            scheme: Some("Bearer".into()),
            key_version: 0,
            sealed: [].into(),
        };
        keys.seal(&mut made, "sk-backend-hush");
        made
    }

    #[test]
    fn sealed_values_open_with_their_key_only_and_never_look_the_same() {
        let (old, both) = (keys(ONE), keys(&format!("# rotated\n{TWO}\n{ONE}\n")));
        let (a, b) = (sealed(&old), sealed(&old));
        assert_ne!(a.sealed, b.sealed);
        assert!(!a.sealed.windows(4).any(|four| four == b"hush") && !format!("{a:?}").contains("hush"));
        assert_eq!((a.key_version, sealed(&both).key_version, both.newest()), (1, 2, 2));
        for credential in [&a, &b] {
            assert_eq!(both.open(credential).expect("opens").as_str(), "sk-backend-hush");
        }
        assert_eq!(keys(TWO).open(&a), Err(OpenError::KeyMissing(1)));
        let other = keys(&ONE.replace(":01", ":03"));
        assert_eq!(other.open(&a), Err(OpenError::NotAuthentic(1)));
    }

    #[test]
    fn a_row_that_was_given_to_other_requests_or_changed_does_not_open() {
        type Change = fn(&mut SealedCredential);
        let keys = keys(&format!("{ONE},{TWO}"));
        let made = sealed(&keys);
        let changes: [(&str, Change); 8] = [
            ("upstream", |c| c.selector.upstream = "other".into()),
            ("workspace", |c| c.selector.workspace = Some("evil".parse().expect("an id"))),
            ("any workspace", |c| c.selector.workspace = None),
            ("metadata", |c| c.selector.metadata = MetadataEntry::parse("tier=free")),
            ("header", |c| c.header = "x-log-me".into()),
            ("scheme", |c| c.scheme = None),
            ("key version", |c| c.key_version = 1),
            ("text", |c| {
                let mut bytes = c.sealed.to_vec();
                bytes[NONCE_LEN] ^= 1;
                c.sealed = bytes.into();
            }),
        ];
        for (what, change) in changes {
            let mut changed = made.clone();
            change(&mut changed);
            assert!(matches!(keys.open(&changed), Err(OpenError::NotAuthentic(_))), "{what}");
        }
        for length in [0, NONCE_LEN, NONCE_LEN + 15] {
            let cut = SealedCredential { sealed: made.sealed[..length].into(), ..made.clone() };
            assert!(keys.open(&cut).is_err(), "{length}");
        }
    }

    #[test]
    fn mistakes_in_keys_are_named_without_the_key() {
        for (text, error) in [
            ("", BadEncryptionKeys::None),
            ("# none\n", BadEncryptionKeys::None),
            ("1:0101", BadEncryptionKeys::Syntax(1)),
            (
                "\n0:0101010101010101010101010101010101010101010101010101010101010101",
                BadEncryptionKeys::Syntax(2),
            ),
            ("hush", BadEncryptionKeys::Syntax(1)),
        ] {
            assert_eq!(EncryptionKeys::parse(text).expect_err(text), error);
        }
        let twice = EncryptionKeys::parse(&format!("{ONE}\n{ONE}"));
        assert_eq!(twice.expect_err("twice"), BadEncryptionKeys::Twice(1));
    }
}
