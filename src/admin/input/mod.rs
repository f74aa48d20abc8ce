//! Input: what clients send, checked field by field and turned into what the store takes.
//!
//! Must not know: who asks, over which protocol, or what is stored already. Reads JSON leniently, so that one answer
//! names every mistake at once; nothing here can fail for want of a backend.

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
pub use key::{CreateKeyInput, UpdateKeyInput, read_grace_period};
pub use plan::{CreatePlanInput, UpdatePlanInput, UpdateWorkspaceInput};

use crate::model::digest::Digest;
use crate::policy::keys::secret::{Peppers, Secret};
use crate::store::{IssuedCredential, SecretId};

/// What the store keeps of `secret`: its digest under the newest pepper and what people may see of it.
pub fn credential(secret: &Secret, prefix: &str, peppers: &Peppers) -> IssuedCredential {
    let pepper = peppers.current();
    IssuedCredential {
        digest: Digest(pepper.digest(secret.expose().as_bytes())),
        pepper_version: pepper.version(),
        secret: SecretId::random(),
        hint: secret.hint(prefix),
    }
}
