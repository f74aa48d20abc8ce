//! Identifiers: which thing is meant. Made from the clock so that they sort by age.
//!
//! Must not know: where the things are kept.

use crate::clock::Timestamp;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, made from the instant `at` and 74 bits of the system's randomness (UUIDv7, RFC 9562).
            pub fn new(at: Timestamp) -> Self {
                Self(uuid_v7(at))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(s: &str) -> Result<Self, uuid::Error> {
                Uuid::try_parse(s).map(Self)
            }
        }
    };
}

uuid_id!(
    /// Which key.
    KeyId
);
uuid_id!(
    /// Which end user, as Keygate numbers them.
    EndUserId
);
uuid_id!(
    /// Which request; also the identity of its usage record.
    RequestId
);
uuid_id!(
    /// Which line of the audit trail.
    AuditId
);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadTextId;

            fn from_str(s: &str) -> Result<Self, BadTextId> {
                if is_text_id(s) { Ok(Self(s.into())) } else { Err(BadTextId { what: $what }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// Which workspace, as the issuer of admin tokens names it.
    WorkspaceId,
    "workspace id"
);
text_id!(
    /// Which plan.
    PlanId,
    "plan id"
);

/// A text that is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {what} is 1 to 128 characters of A-Z a-z 0-9 . _ : @ -")]
pub struct BadTextId {
    what: &'static str,
}

fn is_text_id(s: &str) -> bool {
    (1..=128).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-'))
}

/// UUIDv7 of the instant `at`. The random part is the system generator's.
pub fn uuid_v7(at: Timestamp) -> Uuid {
    let mut random = [0_u8; 10];
    fill_random(&mut random);
    let ms = u64::try_from(at.as_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// Fills `out` from the operating system's generator.
///
/// A machine without one cannot make secrets or ids that are safe to use, so there is nothing to go on with.
#[expect(clippy::expect_used, reason = "no randomness means no safe way to continue")]
pub fn fill_random(out: &mut [u8]) {
    getrandom::fill(out).expect("the operating system's random generator answers");
}
