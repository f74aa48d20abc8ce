//! Why a store call did not do what was asked.

use crate::model::id::PlanId;

/// Why a store call did not do what was asked. Whatever it says, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such thing, or none in that workspace.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// The resource has a live key of that name.
    #[error("the resource already has a key of that name")]
    DuplicateName,
    /// There is one of that id already.
    #[error("there already is a {0} of that id")]
    AlreadyExists(&'static str),
    /// The plan has workspaces on it.
    #[error("{workspaces} workspaces are on this plan")]
    PlanInUse {
        /// How many.
        workspaces: u64,
    },
    /// A deleted key that is not beyond its time, and cannot be restored all the same.
    #[error("the key cannot be restored: {0}")]
    NotRestorable(NotRestorable),
    /// The rate is above the plan's.
    #[error("rate_limit {asked} is above the {limit} requests/s of plan {plan}")]
    RateAbovePlan {
        /// The rate asked for, in requests per second.
        asked: u32,
        /// The plan's `api_ops_rate_limit`.
        limit: u32,
        /// Which plan.
        plan: PlanId,
    },
    /// The change does not fit the thing it would change.
    #[error("{field}: {why}")]
    Invalid {
        /// The field as the caller knows it.
        field: &'static str,
        /// What is allowed.
        why: String,
    },
    /// The peppers given are not those the digests were made with.
    #[error("{0}")]
    WrongPepper(String),
    /// Another process owns the store, its schema is not ours, or the like: starting is refused.
    #[error("{0}")]
    Refused(String),
    /// A row is not what it must be.
    #[error("invalid value in the store: {0}")]
    Corrupt(String),
    /// Whoever asked has gone.
    #[error("caller disconnected")]
    Cancelled,
    /// The backend cannot be reached, is full, or answered too late. Trying again later may help.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Why a key cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRestorable {
    /// It is there.
    #[error("it is not deleted")]
    NotDeleted,
    /// Another key has its secret, or the plan did not keep it when the key was deleted.
    #[error("its secret is not kept any more")]
    SecretNotKept,
    /// Its secret cannot be checked any more.
    #[error("its secret was made with pepper {0}, which is not configured any more")]
    PepperMissing(u32),
}

impl StoreError {
    /// Whether a value of what was to be stored is the reason, and not the store: without it the call would succeed.
    pub const fn is_content(&self) -> bool {
        matches!(self, Self::Invalid { .. })
    }

    /// Whether the same call may succeed later without anybody changing it.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
