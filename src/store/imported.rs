//! What things that move from one store to another bring along.

use super::Credential;
use crate::clock::Timestamp;

/// What a key that moves from one store to another brings along. It was made before, so it is not held to its plan now: as
/// after a plan was lowered, it runs at the plan's limit.
#[derive(Clone, Debug)]
pub struct ImportedKeyHistory {
    /// See [`super::KeyRecord::created_by`].
    pub created_by: String,
    /// See [`super::KeyRecord::created_at`].
    pub created_at: Timestamp,
    /// See [`super::KeyRecord::updated_at`].
    pub updated_at: Timestamp,
    /// The credential before the current one, while its grace period lasts.
    pub old: Option<Credential>,
}
