//! What Redis and this node have not told each other yet of one workspace, over all its keys: a question about one key knows
//! nothing of what a request of another was admitted with meanwhile, and both are within the workspace's limit.
//!
//! Must not know: which keys, which limits.
//!
//! *Invariant:* who admits alone says so before it looks at what is asked for, and who asks before it looks at what is owed, so
//! that of two at once at least one sees the other.

use std::sync::atomic::{AtomicU64, Ordering};

/// Units of one workspace that only one side knows of.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    owed: AtomicU64,
    asked: AtomicU64,
}

impl Unsettled {
    /// So many more were spent of which Redis has not been heard to know.
    pub(super) fn owe(&self, units: u64) {
        self.owed.fetch_add(units, Ordering::SeqCst);
    }

    /// Of so many it knows, or they were not spent after all.
    pub(super) fn settle(&self, units: u64) {
        self.owed.fetch_sub(units, Ordering::SeqCst);
    }

    /// What Redis may not know of.
    pub(super) fn owed(&self) -> u64 {
        self.owed.load(Ordering::SeqCst)
    }

    /// A question on its way may bring so many.
    pub(super) fn ask(&self, units: u64) {
        self.asked.fetch_add(units, Ordering::SeqCst);
    }

    /// It is answered, or never will be.
    pub(super) fn answered(&self, units: u64) {
        self.asked.fetch_sub(units, Ordering::SeqCst);
    }

    /// What Redis may be debiting at this moment.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}
