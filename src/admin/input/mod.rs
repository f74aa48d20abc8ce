//! Input: request data, validated field by field and converted for the store.
//!
//! Must not know: who calls, over which protocol, or what is stored already. Parses JSON leniently, so that one answer
//! names every mistake; nothing here needs a backend.

mod fields;
mod instant;
pub mod json;
mod key;
mod plan;
mod rules;
#[cfg(test)]
mod tests;

pub use fields::FieldError;
pub(crate) use fields::{shown, unknown_field};
pub use instant::{INSTANT_ALLOWED, parse_instant};
pub use key::{CreateKeyInput, UpdateKeyInput, read_grace_period, read_lookup};
pub use plan::{CreatePlanInput, UpdatePlanInput, UpdateWorkspaceInput};

use crate::model::digest::Digest;
use crate::policy::keys::secret::{Peppers, Secret};
use crate::store::{IssuedCredential, SecretId};

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
