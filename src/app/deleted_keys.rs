//! Counters of deleted keys, kept for a while so that a restored key continues with its counts.
//!
//! They are kept for [`KEPT_FOR`], which is longer than a usage record stays in the journal; after that the ledger knows
//! everything. A restored key is counted at least as high as in the ledger.

use super::CoreServices;
use crate::clock::Clock;
use crate::counter::Counters;
use crate::keyring::{BeforeReturn, Keyring};
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::usage::UsageSubject;
use crate::store::{Store, StoreError};
use async_trait::async_trait;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long counters are kept after a deletion.
const KEPT_FOR: Duration = Duration::from_hours(1);
/// Most deleted keys with counters; the oldest are dropped first.
const KEPT_MAX: usize = 100_000;

/// Drops counters of deleted keys after a while, and restores those of restored keys.
pub(super) struct SpendingOfDeletedKeys {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    keyring: Arc<Keyring>,
    counters: Arc<Counters>,
    kept: Mutex<Kept>,
}

/// Keys in the order of their deletion, with its steady time in ns.
#[derive(Debug, Default)]
struct Kept(VecDeque<(KeyId, u64)>);

impl SpendingOfDeletedKeys {
    pub(super) fn new(core: &CoreServices, keyring: &Arc<Keyring>, counters: &Arc<Counters>) -> Self {
        Self {
            store: core.store.clone(),
            clock: Arc::clone(&core.clock),
            keyring: Arc::clone(keyring),
            counters: Arc::clone(counters),
            kept: Mutex::default(),
        }
    }

    /// A key was removed.
    pub(super) fn on_removed(&self, key: KeyId) {
        let now_ns = self.clock.now().steady_ns;
        let due = self.kept.lock().unwrap_or_else(PoisonError::into_inner).add(key, now_ns);
        for key in due.into_iter().filter(|key| !self.keyring.holds(*key)) {
            self.counters.forget(key);
        }
    }
}

#[async_trait]
impl BeforeReturn for SpendingOfDeletedKeys {
    async fn prepare(&self, key: KeyId, workspace: &WorkspaceId) -> Result<(), StoreError> {
        let at = self.clock.now().wall;
        let calendar = self.keyring.calendar_of(&UsageSubject::Workspace(workspace.clone()));
        let spent = self.store.totals_of(&UsageSubject::Key(key), at, calendar).await?;
        self.counters.raise(&spent, calendar, at);
        Ok(())
    }
}

impl Kept {
    /// Adds a key; returns those whose time is over.
    fn add(&mut self, key: KeyId, now_ns: u64) -> Vec<KeyId> {
        let over_ns = now_ns.saturating_sub(u64::try_from(KEPT_FOR.as_nanos()).unwrap_or(u64::MAX));
        self.0.push_back((key, now_ns));
        let mut due = Vec::new();
        while let Some((key, at_ns)) = self.0.front()
            && (*at_ns < over_ns || self.0.len() > KEPT_MAX)
        {
            due.push(*key);
            self.0.pop_front();
        }
        // A key that was restored and deleted again counts from its last deletion.
        if !due.is_empty() {
            let again: HashSet<KeyId> = self.0.iter().map(|(kept, _)| *kept).collect();
            due.retain(|key| !again.contains(key));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn counters_outlive_their_key_for_an_hour_after_its_last_deletion() {
        let hour = u64::try_from(KEPT_FOR.as_nanos()).unwrap();
        let [a, b, c] = [0; 3].map(|_| KeyId::new(Timestamp::from_secs(1)));
        let mut kept = Kept::default();
        assert!(kept.add(a, 0).is_empty() && kept.add(b, 10).is_empty());
        assert!(kept.add(a, hour - 1).is_empty());
        assert_eq!(kept.add(c, hour + 11), [b], "a was deleted again");
        assert_eq!(kept.add(b, 2 * hour), [a]);
    }

    #[test]
    fn no_more_counters_are_kept_than_fit() {
        let mut kept = Kept::default();
        let first = KeyId::new(Timestamp::from_secs(1));
        assert!(kept.add(first, 0).is_empty());
        let mut due = Vec::new();
        for _ in 0..KEPT_MAX {
            due.extend(kept.add(KeyId::new(Timestamp::from_secs(1)), 0));
        }
        assert_eq!(due, [first]);
    }
}
