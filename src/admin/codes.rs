//! Codes that sign in once, for the link that the demo prints.

use crate::clock::Timestamp;
use crate::model::id::fill_random;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a code is valid.
const VALID_FOR: Duration = Duration::from_mins(10);

/// The one code that can be used, and the admin token that it stands for.
#[derive(Default)]
pub struct SignInCodes(Mutex<Option<Code>>);

struct Code {
    text: String,
    token: Zeroizing<String>,
    until: Timestamp,
}

impl SignInCodes {
    /// A code for `token`. It replaces the one before.
    pub fn issue(&self, token: &str, now: Timestamp) -> String {
        let mut random = [0; 24];
        fill_random(&mut random);
        let code = hex::encode(random);
        let token = Zeroizing::new(token.to_owned());
        *self.lock() = Some(Code { text: code.clone(), token, until: now.plus(VALID_FOR) });
        code
    }

    /// The token of a code, which cannot be used again. A wrong one changes nothing.
    pub(super) fn redeem(&self, given: &str, now: Timestamp) -> Option<Zeroizing<String>> {
        use sha2::{Digest as _, Sha256};
        let mut held = self.lock();
        // A comparison of hashes tells nothing about the texts.
        held.take_if(|code| Sha256::digest(&code.text) == Sha256::digest(given))
            .filter(|code| now < code.until)
            .map(|code| code.token)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Code>> {
        // The value is complete whatever happened to the thread that held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SignInCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignInCodes(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_signs_in_once_and_not_for_long() {
        let (codes, now) = (SignInCodes::default(), Timestamp::from_secs(1_767_225_600));
        let code = codes.issue("a.b.c", now);
        assert!(codes.redeem("", now).is_none() && codes.redeem(&code[1..], now).is_none());
        assert_eq!(codes.redeem(&code, now).map(|token| token.to_string()).as_deref(), Some("a.b.c"));
        assert!(codes.redeem(&code, now).is_none());
        let late = codes.issue("a.b.c", now);
        assert!(codes.redeem(&late, now.plus(VALID_FOR)).is_none());
    }
}
