//! What records bring along when they move from one store to another.

use super::Credential;
use crate::clock::Timestamp;

/// What a key brings along from another store. It existed before, so its rate is not checked against its plan; as after a
/// plan was lowered, it runs at the plan's limit.
#[derive(Clone, Debug)]
pub struct ImportedKeyHistory {
    /// See [`super::KeyRecord::created_by`].
    pub created_by: String,
    /// See [`super::KeyRecord::created_at`].
    pub created_at: Timestamp,
    /// See [`super::KeyRecord::updated_at`].
    pub updated_at: Timestamp,
    /// Charged requests so far.
    pub quota_used: u64,
    /// Requests so far that reached a backend.
    pub usage_count: u64,
    /// See [`super::KeyRecord::last_used_at`].
    pub last_used_at: Option<Timestamp>,
    /// The previous credential, while its grace period lasts.
    pub old: Option<Credential>,
}
