//! End users that were admitted while nobody could tell whether there is room for them, until somebody can.
//!
//! Bounded by what [`PendingEndUsers::add`] is told. In memory only: a process that is killed forgets them, and they are new
//! when they come again.

use super::EndUserName;
use crate::model::id::{EndUserId, WorkspaceId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct PendingEndUsers {
    held: Mutex<PendingSet>,
    /// How many are held, to be read without the lock: nearly always none.
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

    /// Admits `name` as `id`, or as who it has been since another request of it came first. None: there are `at_most`
    /// already, or `quota` in its workspace.
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

    /// Any of them.
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

    /// Resolves when one was added since the last time it did. For one waiter.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    fn held(&self) -> MutexGuard<'_, PendingSet> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
