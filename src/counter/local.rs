//! What is spent through this process: the rule over shared state, check all, then take all.
//!
//! Must not know: Redis.
//!
//! *Invariant:* the lock of a key is taken before the lock of its workspace and never two of one kind, so that charges
//! cannot wait for each other in a circle.

use super::handover::Told;
use super::redis::pool::WINDOWS;
use super::{Charge, Left, Refusal};
use crate::clock::{Now, Timestamp};
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::usage::{SpentBy, SpentRow};
use crate::policy::keys::limit::{Limits, Mark, Refused, Spending};
use dashmap::DashMap;
use smallvec::SmallVec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Spending of this process.
#[derive(Debug, Default)]
pub(super) struct Local {
    keys: DashMap<KeyId, Shared>,
    workspaces: DashMap<WorkspaceId, Shared>,
}

/// Spending that several requests share.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Spending>>);

/// What one request has taken. Dropping it ends what is in flight; the rest stays charged.
#[derive(Debug)]
pub(super) struct Taken {
    parts: SmallVec<[(Shared, Limits, Mark); 2]>,
    at: Now,
}

/// A request costs one.
const COST: u64 = 1;

impl Local {
    /// Charges all limits of a request at `now`, or none of them.
    pub(super) fn charge(&self, charge: &Charge<'_>, now: Now) -> Result<(Taken, Left), Box<Refusal>> {
        let (key, workspace) = self.subjects(charge);
        let mut key_spending = key.lock();
        let mut workspace_spending = workspace.as_ref().map(Shared::lock);
        let checked = check(&key_spending, workspace_spending.as_deref(), charge, now);
        let mut marks = [Mark::default(); 2];
        if checked.is_ok() {
            marks = take(&mut key_spending, workspace_spending.as_deref_mut(), charge, now);
        }
        let left = left(&key_spending, workspace_spending.as_deref(), charge, now);
        drop(workspace_spending);
        drop(key_spending);
        match checked {
            Ok(()) => Ok((Taken::new((key, workspace), charge, now, marks), left)),
            Err(refused) => Err(Box::new(Refusal { refused, left })),
        }
    }

    /// Takes a place in flight and charges nothing, if no limit stands against a charge.
    pub(super) fn hold(&self, charge: &Charge<'_>, now: Now) -> Result<Taken, Box<Refusal>> {
        let (key, workspace) = self.subjects(charge);
        let mut key_spending = key.lock();
        let mut workspace_spending = workspace.as_ref().map(Shared::lock);
        let checked = check(&key_spending, workspace_spending.as_deref(), charge, now).map_err(|refused| {
            Box::new(Refusal {
                refused,
                left: left(&key_spending, workspace_spending.as_deref(), charge, now),
            })
        });
        if checked.is_ok() {
            key_spending.hold(COST);
            if let Some(spending) = workspace_spending.as_deref_mut() {
                spending.hold(COST);
            }
        }
        drop(workspace_spending);
        drop(key_spending);
        checked.map(|()| Taken::new((key, workspace), charge, now, [Mark::default(); 2]))
    }

    /// What has been spent here in each of the windows that contain `at`.
    #[cfg(test)]
    pub(super) fn used(&self, subject: &SpentBy, at: Timestamp) -> [u64; 5] {
        let shared = self.subject(subject);
        let spending = shared.lock();
        WINDOWS.map(|per| spending.used(per, at))
    }

    /// What is in flight here, or known to be elsewhere.
    #[cfg(test)]
    pub(super) fn in_flight(&self, subject: &SpentBy) -> u64 {
        self.subject(subject).lock().in_flight()
    }

    /// Sets what the ledger knows, before anything is charged.
    pub(super) fn restore(&self, row: &SpentRow, at: Timestamp) {
        let spending = Spending::restored(at, row.minute, row.hour, row.day, row.month, row.total);
        *self.subject(&row.subject).lock() = spending;
    }

    /// Counts at least what the ledger knows.
    pub(super) fn raise(&self, row: &SpentRow, at: Timestamp) {
        let shared = self.subject(&row.subject);
        let mut spending = shared.lock();
        for (per, known) in WINDOWS.into_iter().zip([row.minute, row.hour, row.day, row.month, row.total]) {
            let missing = known.saturating_sub(spending.used(per, at));
            spending.correct(per, at, i64::try_from(missing).unwrap_or(i64::MAX));
        }
    }

    /// Shows what every subject has spent in the windows that contain `at`.
    pub(super) fn each_spent(&self, at: Timestamp, mut show: impl FnMut(SpentRow)) {
        self.each(|subject, spending| {
            let [minute, hour, day, month, total] = WINDOWS.map(|per| spending.used(per, at));
            show(SpentRow { subject, minute, hour, day, month, total });
        });
    }

    /// Shows what every subject has spent, each as it is in one moment.
    pub(super) fn each(&self, mut show: impl FnMut(SpentBy, &Spending)) {
        for entry in &self.keys {
            show(SpentBy::Key(*entry.key()), &entry.lock());
        }
        for entry in &self.workspaces {
            show(SpentBy::Workspace(entry.key().clone()), &entry.lock());
        }
    }

    /// Counts what another process has counted.
    pub(super) fn take_over(&self, told: &Told, now: Now) {
        let shared = self.subject(&told.subject);
        let mut spending = shared.lock();
        for (per, by) in WINDOWS.into_iter().zip(told.spent) {
            spending.correct(per, told.at, by);
        }
        if let Some(ahead) = told.ahead {
            spending.set_ahead(ahead, now);
        }
        spending.correct_in_flight(told.in_flight);
    }

    /// So many more are in flight elsewhere.
    pub(super) fn correct_in_flight(&self, subject: &SpentBy, by: i64) {
        self.subject(subject).lock().correct_in_flight(by);
    }

    /// Forgets a key that is gone for good.
    pub(super) fn forget(&self, key: KeyId) {
        self.keys.remove(&key);
    }

    fn subjects(&self, charge: &Charge<'_>) -> (Shared, Option<Shared>) {
        // A workspace without limits of its own is not counted, so that its keys do not meet at one lock.
        let workspace = (!charge.workspace_limits.is_empty()).then(|| self.workspace(charge.workspace));
        (self.key(charge.key), workspace)
    }

    fn subject(&self, subject: &SpentBy) -> Shared {
        match subject {
            SpentBy::Key(id) => self.key(*id),
            SpentBy::Workspace(id) => self.workspace(id),
        }
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

fn take(key: &mut Spending, workspace: Option<&mut Spending>, charge: &Charge<'_>, now: Now) -> [Mark; 2] {
    let of_key = key.take(charge.key_limits, COST, now);
    let of_workspace = workspace.map(|w| w.take(charge.workspace_limits, COST, now));
    [of_key, of_workspace.unwrap_or_default()]
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

// === impl Taken, Shared ===

impl Taken {
    fn new(
        (key, workspace): (Shared, Option<Shared>),
        charge: &Charge<'_>,
        at: Now,
        [of_key, of_workspace]: [Mark; 2],
    ) -> Self {
        let mut parts = SmallVec::new();
        parts.push((key, charge.key_limits.clone(), of_key));
        parts.extend(workspace.map(|w| (w, charge.workspace_limits.clone(), of_workspace)));
        Self { parts, at }
    }

    /// Undoes it all: the request never reached a backend.
    pub(super) fn give_back(mut self) {
        for (shared, limits, mark) in self.parts.drain(..) {
            shared.lock().give_back(&limits, COST, self.at, mark);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for (shared, ..) in self.parts.drain(..) {
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
