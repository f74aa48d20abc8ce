//! Input: request data, validated field by field and converted for the store.
//!
//! Must not know: who calls, over which protocol, or what is stored already. Parses JSON leniently, so that one answer
//! names every mistake; nothing here needs a backend.

mod credential;
mod fields;
mod import;
mod instant;
pub mod json;
mod key;
mod plan;
mod prices;
mod rules;
#[cfg(test)]
mod tests;

pub use credential::PutCredentialInput;
pub use fields::FieldError;
pub(crate) use fields::{shown, unknown_field};
pub use import::{ImportBody, ImportKeyInput, ImportedKey, read_imported_end_user};
pub use instant::{INSTANT_ALLOWED, parse_instant};
pub use key::{CreateKeyInput, UpdateKeyInput, read_grace_period, read_lookup};
pub use plan::{CreateGrantInput, CreatePlanInput, UpdatePlanInput, UpdateWorkspaceInput};
pub use prices::read_prices;

use crate::model::digest::Digest;
use crate::model::key::{Ceiling, Measure};
use crate::policy::keys::secret::{Peppers, Secret};
use crate::store::{IssuedCredential, SecretId};

/// What `/stats` shows of a key: a page may send it back with a change of the key.
pub(super) const STATISTICS: &[&str] = &[
    "total_requests",
    "requests_today",
    "avg_response_time",
    "p50",
    "p95",
    "p99",
    "error_rate",
    "denied",
    "unreached",
    "tokens_used",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "cost_nano",
    "limit_usage",
];

/// The mistakes of limits that would count nothing. `why`: why one on this measure would, if so.
pub fn uncounted(limits: &[Ceiling], why: impl Fn(Measure) -> Option<String>) -> Vec<FieldError> {
    let mistake = |(n, limit): (usize, &Ceiling)| {
        Some(FieldError { field: format!("limits[{n}].count"), message: why(limit.count)? })
    };
    limits.iter().enumerate().filter_map(mistake).collect()
}

/// What the store keeps of `secret`: its digest under the newest pepper, and the part that may be shown.
pub fn credential(secret: &Secret, prefix: &str, peppers: &Peppers) -> IssuedCredential {
    let pepper = peppers.current();
    IssuedCredential {
        digest: Digest(pepper.digest(secret.expose().as_bytes())),
        pepper_version: pepper.version(),
        secret: SecretId::random(),
        hint: secret.hint(prefix),
    }
}

/// The credential stored for a secret of which only the SHA-256 digest is known.
pub fn credential_of_sha256(digest: &[u8; 32], hint: Option<String>, peppers: &Peppers) -> IssuedCredential {
    let pepper = peppers.current();
    let shown = || format!("sha256:{}…", hex::encode(&digest[..4]));
    IssuedCredential {
        digest: Digest(pepper.digest_of_sha256(digest)),
        pepper_version: pepper.version(),
        secret: SecretId::of_sha256_import(),
        hint: hint.unwrap_or_else(shown).into(),
    }
}
