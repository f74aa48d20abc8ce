//! End users that were admitted while the quota could not be checked, until they are stored.
//!
//! Bounded by the arguments of [`PendingEndUsers::add`]. In memory only: a process that is killed loses them, and they
//! count as new when they return.

use super::EndUserName;
use crate::model::id::{EndUserId, WorkspaceId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct PendingEndUsers {
    held: Mutex<PendingSet>,
    /// Their number, readable without the lock: nearly always zero.
    count: AtomicUsize,
    added: Notify,
}

#[derive(Debug, Default)]
struct PendingSet {
    ids: HashMap<EndUserName, EndUserId>,
    of_workspace: HashMap<WorkspaceId, u64>,
}

// === impl PendingEndUsers ===

impl PendingEndUsers {
    pub(super) fn get(&self, name: &EndUserName) -> Option<EndUserId> {
        if self.len() == 0 {
            return None;
        }
        self.held().ids.get(name).copied()
    }

    /// Admits `name` as `id`, or with the id from an earlier request. None: there are `at_most` already, or `quota` in its
    /// workspace.
    pub(super) fn add(
        &self,
        name: EndUserName,
        id: EndUserId,
        quota: u64,
        at_most: usize,
    ) -> Option<EndUserId> {
        let mut held = self.held();
        if let Some(id) = held.ids.get(&name) {
            return Some(*id);
        }
        let in_workspace = held.of_workspace.get(&name.0).copied().unwrap_or_default();
        if held.ids.len() >= at_most || in_workspace >= quota {
            return None;
        }
        held.of_workspace.insert(name.0.clone(), in_workspace + 1);
        held.ids.insert(name, id);
        self.count.store(held.ids.len(), Ordering::Release);
        self.added.notify_one();
        Some(id)
    }

    /// Any one of them.
    pub(super) fn first(&self) -> Option<(EndUserName, EndUserId)> {
        self.held().ids.iter().next().map(|(name, id)| (name.clone(), *id))
    }

    pub(super) fn remove(&self, name: &EndUserName) {
        let mut held = self.held();
        if held.ids.remove(name).is_none() {
            return;
        }
        self.count.store(held.ids.len(), Ordering::Release);
        match held.of_workspace.get_mut(&name.0) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(held.of_workspace.remove(&name.0)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Resolves when one was added since the last call. For one waiter.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    fn held(&self) -> MutexGuard<'_, PendingSet> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
