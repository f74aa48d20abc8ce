//! Identifiers. They are made from the clock, so they sort by age.
//!
//! Must not know: where things are stored.

use crate::clock::Timestamp;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        uuid_id!($(#[$doc])* $name: uuid_v7);
    };
    ($(#[$doc:meta])* $name:ident: $make:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id (UUIDv7, RFC 9562), made from the instant `at`.
            pub fn new(at: Timestamp) -> Self {
                Self($make(at))
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
    /// Id of a key.
    KeyId
);
uuid_id!(
    /// Id of an end user, assigned by Keygate.
    EndUserId
);
uuid_id!(
    /// Id of a request, and of its usage record.
    RequestId: request_id
);
uuid_id!(
    /// Id of a grant.
    GrantId
);
uuid_id!(
    /// Id of a credential for backends.
    CredentialId
);
uuid_id!(
    /// Id of a line of the audit log.
    AuditId
);

impl KeyId {
    /// No key: what the record of a request on a public route has.
    pub const NONE: Self = Self(Uuid::nil());
}

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
    /// Id of a workspace, as the issuer of admin tokens names it.
    WorkspaceId,
    "workspace id"
);
text_id!(
    /// Id of a plan.
    PlanId,
    "plan id"
);

impl WorkspaceId {
    /// No workspace: what the record of a request without a key has. Its text is empty, so nothing parses as it.
    pub fn none() -> &'static Self {
        static NONE: LazyLock<WorkspaceId> = LazyLock::new(|| WorkspaceId("".into()));
        &NONE
    }

    /// The workspace of a usage record: an id, or empty for none.
    pub fn of_record(text: &str) -> Result<Self, BadTextId> {
        if text.is_empty() { Ok(Self::none().clone()) } else { text.parse() }
    }
}

/// A text that is not a valid id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {what} is 1 to 128 characters of A-Z a-z 0-9 . _ : @ -")]
pub struct BadTextId {
    what: &'static str,
}

fn is_text_id(s: &str) -> bool {
    (1..=128).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-'))
}

/// A UUIDv7 for the instant `at`, unique in this process whatever the clock does, without a system call: 40 bits are a
/// scrambled counter with a random start, and 34 bits are random per process.
fn request_id(at: Timestamp) -> Uuid {
    const COUNT_BITS: u64 = (1 << 40) - 1;
    static PROCESS: OnceLock<[u8; 18]> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| {
        let mut random = [0; 18];
        fill_random(&mut random);
        random
    });
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    // Multiplication by an odd number is a bijection modulo 2^40, so different counts stay different.
    let count = COUNT.fetch_add(1, Ordering::Relaxed).wrapping_add(number(&process[5..10]));
    let scattered = count.wrapping_mul(number(&process[10..18]) | 1) & COUNT_BITS;
    let mut random = [0; 10];
    random[..5].copy_from_slice(&process[..5]);
    random[5..].copy_from_slice(&scattered.to_be_bytes()[3..]);
    let ms = u64::try_from(at.as_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// A UUIDv7 for the instant `at`. The random part is from the system's generator.
pub fn uuid_v7(at: Timestamp) -> Uuid {
    let mut random = [0_u8; 10];
    fill_random(&mut random);
    let ms = u64::try_from(at.as_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// Fills `out` from the operating system's generator.
///
/// Without one, no safe secrets or ids can be made, so this panics.
#[expect(clippy::expect_used, reason = "no randomness means no safe way to continue")]
pub fn fill_random(out: &mut [u8]) {
    getrandom::fill(out).expect("the operating system's random generator answers");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn request_ids_are_unique_also_when_the_clock_stands_or_steps_back() {
        let instants = [5_000, 5_000, 4_000, 5_000, 3_000].map(Timestamp::from_millis);
        let make = move || (0..10_000).map(|n| RequestId::new(instants[n % 5])).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(make)).collect();
        let ids: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 40_000);
        assert!(
            ids.iter().all(|id| id.0.get_version_num() == 7 && id.0.get_variant() == uuid::Variant::RFC4122)
        );
    }
}
