//! What has been spent: one call charges every limit of a request, all of them or none.
//!
//! The rule is [`crate::policy::limit`]'s; here are the places where spending is kept and the locks around them.
//! Must not know: requests, keys beyond their id, the ledger. Kept in this process, it cannot be gone.
//!
//! *Invariant:* a refusal changes no counter. *Invariant:* the lock of a key is taken before the lock of its workspace
//! and never two of one kind, so that charges cannot wait for each other in a circle.

use crate::clock::Now;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::limit::{Limit, Limits, Refused, Remaining, Spending};
use crate::store::{SpentBy, SpentRow};
use dashmap::DashMap;
use smallvec::SmallVec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counters of this process.
#[derive(Debug, Default)]
pub struct Counters {
    keys: DashMap<KeyId, Shared>,
    workspaces: DashMap<WorkspaceId, Shared>,
}

/// Spending that several requests share.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Spending>>);

/// What a request costs, and whom.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'r> {
    /// Which key.
    pub key: KeyId,
    /// The limits counted on it.
    pub key_limits: &'r Limits,
    /// Which workspace.
    pub workspace: &'r WorkspaceId,
    /// The limits counted over all its keys.
    pub workspace_limits: &'r Limits,
}

/// Proof that every limit was charged. Dropping it ends what is in flight; the rest stays charged.
#[derive(Debug)]
#[must_use = "dropping it ends the request's place in flight"]
pub struct Charged {
    parts: SmallVec<[(Shared, Limits); 2]>,
    at: Now,
    left: Left,
}

/// Each limit in force with what is left of it.
pub type Left = SmallVec<[(Limit, Remaining); 6]>;

/// A refusal, with what is left of each limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub refused: Refused,
    /// What is left.
    pub left: Left,
}

/// A request costs one.
const COST: u64 = 1;

impl Counters {
    /// Charges all limits of a request at `now`, or none of them.
    pub fn charge(&self, charge: &Charge<'_>, now: Now) -> Result<Charged, Box<Refusal>> {
        let key = self.key(charge.key);
        // A workspace without limits of its own is not counted, so that its keys do not meet at one lock.
        let workspace = (!charge.workspace_limits.is_empty()).then(|| self.workspace(charge.workspace));
        let mut key_spending = key.lock();
        let mut workspace_spending = workspace.as_ref().map(Shared::lock);
        let checked = check(&key_spending, workspace_spending.as_deref(), charge, now);
        if checked.is_ok() {
            key_spending.take(charge.key_limits, COST, now);
            if let Some(spending) = workspace_spending.as_deref_mut() {
                spending.take(charge.workspace_limits, COST, now);
            }
        }
        let left = left(&key_spending, workspace_spending.as_deref(), charge, now);
        drop(workspace_spending);
        drop(key_spending);
        if let Err(refused) = checked {
            return Err(Box::new(Refusal { refused, left }));
        }
        let mut parts = SmallVec::new();
        parts.push((key, charge.key_limits.clone()));
        parts.extend(workspace.map(|w| (w, charge.workspace_limits.clone())));
        Ok(Charged { parts, at: now, left })
    }

    /// Sets what the ledger knows, before anything is charged.
    pub fn restore(&self, row: &SpentRow, at: crate::clock::Timestamp) {
        let spending = Spending::restored(at, row.minute, row.hour, row.day, row.month, row.total);
        let shared = match &row.subject {
            SpentBy::Key(id) => self.key(*id),
            SpentBy::Workspace(id) => self.workspace(id),
        };
        *shared.lock() = spending;
    }

    /// Forgets a key that is gone for good.
    pub fn forget(&self, key: KeyId) {
        self.keys.remove(&key);
    }

    fn key(&self, id: KeyId) -> Shared {
        if let Some(found) = self.keys.get(&id) {
            return found.clone();
        }
        self.keys.entry(id).or_default().clone()
    }

    fn workspace(&self, id: &WorkspaceId) -> Shared {
        if let Some(found) = self.workspaces.get(id) {
            return found.clone();
        }
        self.workspaces.entry(id.clone()).or_default().clone()
    }
}

fn check(key: &Spending, workspace: Option<&Spending>, charge: &Charge<'_>, now: Now) -> Result<(), Refused> {
    let by_key = key.check(charge.key_limits, COST, now);
    let by_workspace = workspace.map_or(Ok(()), |w| w.check(charge.workspace_limits, COST, now));
    match (by_key, by_workspace) {
        // The client is told the longer wait: after the shorter one it would be refused again.
        (Err(a), Err(b)) => Err(if b.retry > a.retry { b } else { a }),
        (Err(only), Ok(())) | (Ok(()), Err(only)) => Err(only),
        (Ok(()), Ok(())) => Ok(()),
    }
}

fn left(key: &Spending, workspace: Option<&Spending>, charge: &Charge<'_>, now: Now) -> Left {
    let mut left: Left = charge.key_limits.iter().map(|l| (*l, key.remaining(l, now))).collect();
    if let Some(spending) = workspace {
        left.extend(charge.workspace_limits.iter().map(|l| (*l, spending.remaining(l, now))));
    }
    left
}

// === impl Charged ===

impl Charged {
    /// What is left of each limit, just after this charge.
    pub fn left(&self) -> &Left {
        &self.left
    }

    /// Undoes the whole charge: the request never reached a backend.
    pub fn give_back(mut self) {
        for (shared, limits) in self.parts.drain(..) {
            shared.lock().give_back(&limits, COST, self.at);
        }
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        for (shared, _) in self.parts.drain(..) {
            shared.lock().release(COST);
        }
    }
}

impl Shared {
    /// Nothing that runs under this lock can panic half-way, so a poisoned one holds sound values.
    fn lock(&self) -> MutexGuard<'_, Spending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
