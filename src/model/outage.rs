//! Configured behaviour while a dependency is unavailable.

use super::key::words;

words!(
    /// What to do while shared counters are unreachable.
    OnFailure {
        /// Each node uses its promise from Redis, and its share of windows that began later.
        Share = "share",
        /// Refuse requests.
        Deny = "deny",
        /// Admit requests; they are counted when Redis is back.
        Allow = "allow",
    }
);

words!(
    /// What to do with a new end user while the store is unreachable.
    WhenStoreUnavailable {
        /// Refuse it with 503, because the quota cannot be checked.
        Refuse = "refuse",
        /// Admit it, and store it when the store is back. Limited in number, and per workspace by its plan's `end_user_quota`;
        /// others are refused.
        Admit = "admit",
    }
);

words!(
    /// What to do when the journal is full.
    WhenFull {
        /// Serve, and count the dropped records.
        Shed = "shed",
        /// Refuse requests that cannot be recorded.
        Refuse = "refuse",
    }
);
