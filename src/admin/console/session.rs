//! Sessions: the admin token of a visitor, encrypted in their cookie.
//!
//! Nothing is kept on the server, so a session works on every node that has the same pepper, and there is nothing to bound or to lose
//! at a restart. The token is verified anew by each request, so a session ends with its token, or with the key that signed it. The
//! cookie does not reveal the token: whoever copies it can use the console while the session lasts, and never the API.
//!
//! Must not know: what a token says.

use crate::clock::Timestamp;
use crate::model::id::fill_random;
use crate::policy::keys::secret::{Pepper, Peppers};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest session; a token may be valid for a year.
pub(super) const SESSION_MAX: Duration = Duration::from_hours(12);
/// Longest token that fits in a cookie: browsers drop cookies of more than 4096 bytes.
pub(super) const TOKEN_MAX: usize = 2_800;
/// What is encrypted here, and in which format.
const PURPOSE: &[u8] = b"keygate console session 1";
/// Bytes of the instant before the token.
const INSTANT_LEN: usize = 8;

/// A visitor who has signed in.
pub(super) struct Session {
    /// The admin token.
    pub(super) token: Zeroizing<String>,
    /// What its forms send with every change.
    pub(super) form_token: String,
}

/// The value of the cookie of a session with `token` that begins `now`; none if the token is too long.
pub(super) fn seal(peppers: &Peppers, token: &str, now: Timestamp) -> Option<String> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let mut nonce = [0; NONCE_LEN];
    fill_random(&mut nonce);
    let mut text = Zeroizing::new(now.as_micros().to_be_bytes().to_vec());
    text.extend_from_slice(token.as_bytes());
    let key = key_of(peppers.current())?;
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce_used, Aad::from(PURPOSE), &mut text).ok()?;
    Some(URL_SAFE_NO_PAD.encode([&nonce[..], &text, tag.as_ref()].concat()))
}

/// The session of a cookie; none if it was not made here, or is over.
pub(super) fn open(peppers: &Peppers, cookie: &str, now: Timestamp) -> Option<Session> {
    let sealed = URL_SAFE_NO_PAD.decode(cookie).ok()?;
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
    peppers.iter().find_map(|pepper| {
        let mut text = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key_of(pepper)?.open_in_place(nonce, Aad::from(PURPOSE), &mut text).ok()?;
        let (started, token) = opened.split_first_chunk::<INSTANT_LEN>()?;
        let started = Timestamp::from_micros(i64::from_be_bytes(*started));
        if now.since(started) >= SESSION_MAX {
            return None;
        }
        let token = Zeroizing::new(std::str::from_utf8(token).ok()?.to_owned());
        Some(Session { token, form_token: form_token(pepper, cookie) })
    })
}

/// Whether `given` is the token for forms of `session`, in a time that does not depend on where they differ.
pub(super) fn is_form_token(session: &Session, given: &str) -> bool {
    // Both are hashed: a comparison of hashes tells nothing about the texts.
    use sha2::{Digest as _, Sha256};
    Sha256::digest(given) == Sha256::digest(&session.form_token)
}

fn form_token(pepper: &Pepper, cookie: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &pepper.console_key());
    URL_SAFE_NO_PAD.encode(hmac::sign(&key, cookie.as_bytes()))
}

fn key_of(pepper: &Pepper) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &pepper.console_key()).ok().map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);

    fn peppers(versions: &[u32]) -> Peppers {
        let pairs = versions.iter().map(|n| (*n, vec![u8::try_from(*n).expect("a small number"); 32]));
        Peppers::new(pairs.collect()).expect("peppers")
    }

    #[test]
    fn a_session_is_opened_by_every_node_with_its_pepper_until_it_is_over() {
        let cookie = seal(&peppers(&[1]), "a.b.c", NOW).expect("a short token");
        assert!(!cookie.contains("a.b.c"));
        for known in [&[1][..], &[1, 2]] {
            let opened = open(&peppers(known), &cookie, NOW.plus(Duration::from_hours(11)));
            assert_eq!(opened.expect("a session").token.as_str(), "a.b.c");
        }
        assert!(open(&peppers(&[2]), &cookie, NOW).is_none());
        assert!(open(&peppers(&[1]), &cookie, NOW.plus(SESSION_MAX)).is_none());
        let changed = cookie.replacen(&cookie[20..21], if &cookie[20..21] == "A" { "B" } else { "A" }, 1);
        for no_session in ["", "x", &changed, &cookie[1..]] {
            assert!(open(&peppers(&[1]), no_session, NOW).is_none(), "{no_session}");
        }
    }

    #[test]
    fn the_token_for_forms_belongs_to_one_session() {
        let known = peppers(&[1]);
        let sessions = [(); 2].map(|()| {
            let cookie = seal(&known, "a.b.c", NOW).expect("a short token");
            open(&known, &cookie, NOW).expect("a session")
        });
        let [one, two] = &sessions;
        assert!(is_form_token(one, &one.form_token) && !is_form_token(one, &two.form_token));
        assert!(!is_form_token(one, ""));
    }

    #[test]
    fn a_cookie_is_never_too_large_for_a_browser() {
        let longest = seal(&peppers(&[1]), &"x".repeat(TOKEN_MAX), NOW).expect("a token that fits");
        assert!(longest.len() < 4_000, "{}", longest.len());
        assert!(seal(&peppers(&[1]), &"x".repeat(TOKEN_MAX + 1), NOW).is_none());
    }
}
