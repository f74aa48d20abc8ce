//! What is encrypted in cookies: sessions, and sign-ins that an identity provider has not answered yet.
//!
//! A session is the admin token of a visitor, or who the identity provider says that they are. Nothing is kept on the server, so a
//! session works on every node that has the same pepper, and there is nothing to bound or to lose at a restart. A token is verified
//! anew by each request, so a session ends with its token, or with the key that signed it; a person's ends with their ID token, and
//! what they may do is decided anew by each request. The cookie does not reveal the token: whoever copies it can use the console
//! while the session lasts, and never the API.
//!
//! Must not know: what a token says.

use crate::admin::oidc::{Flow, Oidc, Person};
use crate::clock::Timestamp;
use crate::model::id::fill_random;
use crate::policy::keys::secret::{Pepper, Peppers};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest session; a token may be valid for a year.
pub(super) const SESSION_MAX: Duration = Duration::from_hours(12);
/// Longest time for a sign-in with an identity provider.
pub(super) const FLOW_MAX: Duration = Duration::from_mins(10);
/// Longest token that fits in a cookie: browsers drop cookies of more than 4096 bytes.
pub(super) const TOKEN_MAX: usize = 2_800;
/// What is encrypted here, and in which format.
const TOKEN: &str = "keygate console token 1";
const PERSON: &str = "keygate console person 1";
const FLOW: &str = "keygate console sign-in 1";
/// Bytes of the instant before the content.
const INSTANT_LEN: usize = 8;

/// A visitor who has signed in.
pub(super) struct Session {
    pub(super) holder: Holder,
    /// What its forms send with every change.
    pub(super) form_token: String,
}

/// Whose session it is.
pub(super) enum Holder {
    /// Whoever has this admin token.
    Token(Zeroizing<String>),
    /// Somebody whom the identity provider has identified.
    Person(Box<Person>),
}

/// A person as encrypted.
#[derive(Serialize, Deserialize)]
struct SealedPerson {
    subject: String,
    name: String,
    groups: Vec<String>,
    until: i64,
    id_token: String,
}

/// A sign-in as encrypted.
#[derive(Serialize, Deserialize)]
struct SealedFlow {
    state: String,
    nonce: String,
    verifier: String,
    next: String,
}

/// The value of the cookie of a session with `token` that begins `now`; none if the token is too long.
pub(super) fn seal_token(peppers: &Peppers, token: &str, now: Timestamp) -> Option<String> {
    seal(peppers, TOKEN, token.as_bytes(), now)
}

/// The same for a person whom `oidc` has identified; none if they are in too many groups.
pub(super) fn seal_person(peppers: &Peppers, oidc: &Oidc, person: &Person, now: Timestamp) -> Option<String> {
    let Person { subject, name, groups, until, id_token } = person.clone();
    let mut sealed = SealedPerson { subject, name, groups, until: until.as_micros(), id_token };
    let text = |sealed: &SealedPerson| serde_json::to_vec(sealed).ok().map(Zeroizing::new);
    let mut whole = text(&sealed)?;
    if whole.len() > TOKEN_MAX {
        // Without it, some providers ask once more before they forget somebody.
        sealed.id_token.clear();
        whole = text(&sealed)?;
    }
    seal(peppers, &purpose(PERSON, oidc), &whole, now)
}

/// The session of a cookie; none if it was not made here, or is over.
pub(super) fn open(peppers: &Peppers, oidc: Option<&Oidc>, cookie: &str, now: Timestamp) -> Option<Session> {
    let (holder, pepper) = if let Some((token, pepper)) = unseal(peppers, TOKEN, cookie, SESSION_MAX, now) {
        (Holder::Token(Zeroizing::new(std::str::from_utf8(&token).ok()?.to_owned())), pepper)
    } else {
        let (text, pepper) = unseal(peppers, &purpose(PERSON, oidc?), cookie, SESSION_MAX, now)?;
        let SealedPerson { subject, name, groups, until, id_token } = serde_json::from_slice(&text).ok()?;
        let until = Timestamp::from_micros(until);
        if until <= now {
            return None;
        }
        (Holder::Person(Box::new(Person { subject, name, groups, until, id_token })), pepper)
    };
    Some(Session { holder, form_token: form_token(pepper, cookie) })
}

/// The value of the cookie of a sign-in that begins `now`.
pub(super) fn seal_flow(peppers: &Peppers, oidc: &Oidc, flow: &Flow, now: Timestamp) -> Option<String> {
    let Flow { state, nonce, verifier, next } = flow.clone();
    let text = serde_json::to_vec(&SealedFlow { state, nonce, verifier, next }).ok()?;
    seal(peppers, &purpose(FLOW, oidc), &text, now)
}

/// The sign-in of a cookie; none if it was not begun here, or too long ago.
pub(super) fn open_flow(peppers: &Peppers, oidc: &Oidc, cookie: &str, now: Timestamp) -> Option<Flow> {
    let (text, _) = unseal(peppers, &purpose(FLOW, oidc), cookie, FLOW_MAX, now)?;
    let SealedFlow { state, nonce, verifier, next } = serde_json::from_slice(&text).ok()?;
    Some(Flow { state, nonce, verifier, next })
}

/// Whether `given` is the token for forms of `session`, in a time that does not depend on where they differ.
pub(super) fn is_form_token(session: &Session, given: &str) -> bool {
    is_same(&session.form_token, given)
}

/// Whether two texts are the same, in a time that does not depend on where they differ.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    // Both are hashed: a comparison of hashes tells nothing about the texts.
    use sha2::{Digest as _, Sha256};
    Sha256::digest(one) == Sha256::digest(other)
}

/// What is encrypted for one provider cannot be used with another.
fn purpose(kind: &str, oidc: &Oidc) -> String {
    format!("{kind} {}", oidc.binding())
}

fn seal(peppers: &Peppers, purpose: &str, content: &[u8], now: Timestamp) -> Option<String> {
    if content.len() > TOKEN_MAX {
        return None;
    }
    let mut nonce = [0; NONCE_LEN];
    fill_random(&mut nonce);
    let mut text = Zeroizing::new(now.as_micros().to_be_bytes().to_vec());
    text.extend_from_slice(content);
    let key = key_of(peppers.current())?;
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce_used, Aad::from(purpose), &mut text).ok()?;
    Some(URL_SAFE_NO_PAD.encode([&nonce[..], &text, tag.as_ref()].concat()))
}

/// The content of a cookie that was encrypted for this purpose less than `longest` ago, and the pepper of its key.
fn unseal<'p>(
    peppers: &'p Peppers,
    purpose: &str,
    cookie: &str,
    longest: Duration,
    now: Timestamp,
) -> Option<(Zeroizing<Vec<u8>>, &'p Pepper)> {
    let sealed = URL_SAFE_NO_PAD.decode(cookie).ok()?;
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
    peppers.iter().find_map(|pepper| {
        let mut text = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key_of(pepper)?.open_in_place(nonce, Aad::from(purpose), &mut text).ok()?;
        let (started, content) = opened.split_first_chunk::<INSTANT_LEN>()?;
        let started = Timestamp::from_micros(i64::from_be_bytes(*started));
        (now.since(started) < longest).then(|| (Zeroizing::new(content.to_vec()), pepper))
    })
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
        let cookie = seal_token(&peppers(&[1]), "a.b.c", NOW).expect("a short token");
        assert!(!cookie.contains("a.b.c"));
        for known in [&[1][..], &[1, 2]] {
            let opened = open(&peppers(known), None, &cookie, NOW.plus(Duration::from_hours(11)));
            let Holder::Token(token) = opened.expect("a session").holder else { panic!("another session") };
            assert_eq!(token.as_str(), "a.b.c");
        }
        assert!(open(&peppers(&[2]), None, &cookie, NOW).is_none());
        assert!(open(&peppers(&[1]), None, &cookie, NOW.plus(SESSION_MAX)).is_none());
        let changed = cookie.replacen(&cookie[20..21], if &cookie[20..21] == "A" { "B" } else { "A" }, 1);
        for no_session in ["", "x", &changed, &cookie[1..]] {
            assert!(open(&peppers(&[1]), None, no_session, NOW).is_none(), "{no_session}");
        }
    }

    #[test]
    fn the_token_for_forms_belongs_to_one_session() {
        let known = peppers(&[1]);
        let sessions = [(); 2].map(|()| {
            let cookie = seal_token(&known, "a.b.c", NOW).expect("a short token");
            open(&known, None, &cookie, NOW).expect("a session")
        });
        let [one, two] = &sessions;
        assert!(is_form_token(one, &one.form_token) && !is_form_token(one, &two.form_token));
        assert!(!is_form_token(one, ""));
    }

    #[test]
    fn a_cookie_is_never_too_large_for_a_browser() {
        let longest = seal_token(&peppers(&[1]), &"x".repeat(TOKEN_MAX), NOW).expect("a token that fits");
        assert!(longest.len() < 4_000, "{}", longest.len());
        assert!(seal_token(&peppers(&[1]), &"x".repeat(TOKEN_MAX + 1), NOW).is_none());
    }
}
