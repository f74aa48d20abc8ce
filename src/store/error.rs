//! Errors of store calls.

use crate::model::id::{KeyId, PlanId};

/// Why a store call failed. Whatever the reason, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none, or none in this workspace.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// The resource has a live key with this name.
    #[error("the resource already has a key of that name")]
    DuplicateName,
    /// The workspace has a live key with this id of another system.
    #[error("the workspace already has a key of that external_id")]
    DuplicateExternalId,
    /// The same request has made this key already.
    #[error("the same request has made key {0} already")]
    Repeated(KeyId),
    /// Another request has the same `Idempotency-Key`.
    #[error("another request had the same Idempotency-Key")]
    IdempotencyKeyReused,
    /// One with this id exists already.
    #[error("there already is a {0} of that id")]
    AlreadyExists(&'static str),
    /// Workspaces use the plan.
    #[error("{workspaces} workspaces are on this plan")]
    PlanInUse {
        /// How many.
        workspaces: u64,
    },
    /// The workspace has keys.
    #[error("the workspace has {keys} keys")]
    WorkspaceInUse {
        /// How many.
        keys: u64,
    },
    /// The workspace was deleted, and is not created again unless somebody says so.
    #[error("the workspace was deleted")]
    WorkspaceDeleted,
    /// A deleted key that cannot be restored although its time is not over.
    #[error("the key cannot be restored: {0}")]
    NotRestorable(NotRestorable),
    /// The rate exceeds the plan's limit.
    #[error("rate_limit {asked} is above the {limit} requests/s of plan {plan}")]
    RateAbovePlan {
        /// The requested rate, in requests per second.
        asked: u32,
        /// The plan's `api_ops_rate_limit`.
        limit: u32,
        /// The plan.
        plan: PlanId,
    },
    /// The change is not possible for this record.
    #[error("{field}: {why}")]
    Invalid {
        /// The field as the caller knows it.
        field: &'static str,
        /// What is allowed.
        why: String,
    },
    /// The given peppers are not those that the digests were made with.
    #[error("{0}")]
    WrongPepper(String),
    /// Another process owns the store, its schema is newer, or similar: the start is refused.
    #[error("{0}")]
    Refused(String),
    /// A row contains an invalid value.
    #[error("invalid value in the store: {0}")]
    Corrupt(String),
    /// The caller has disconnected.
    #[error("caller disconnected")]
    Cancelled,
    /// The backend is unreachable, full, or too slow. A retry may help.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Why a key cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRestorable {
    /// It is not deleted.
    #[error("it is not deleted")]
    NotDeleted,
    /// Another key has its secret, or the plan did not keep it after the deletion.
    #[error("its secret is not kept any more")]
    SecretNotKept,
    /// The pepper of its secret is not configured.
    #[error("its secret was made with pepper {0}, which is not configured any more")]
    PepperMissing(u32),
}

impl StoreError {
    /// Whether a value to be stored is the reason, and not the store: without it the call would succeed.
    pub const fn is_content(&self) -> bool {
        matches!(self, Self::Invalid { .. })
    }

    /// Whether the same call may succeed later without any change.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
