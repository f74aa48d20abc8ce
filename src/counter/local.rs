//! Counters of this process: the rule over shared state; check all limits, then charge all.
//!
//! Must not know: Redis.
//!
//! *Invariant:* the lock of a key is taken before the lock of its workspace, that before the lock of an end user, and never
//! two of one kind, so that charges cannot deadlock.

use super::handover::CounterDelta;
use super::{Charge, LimitsLeft, Refusal};
use crate::clock::{Now, Timestamp};
use crate::model::amounts::Amounts;
use crate::model::calendar::Calendar;
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::key::{Measure, Per};
use crate::model::usage::{UsageSubject, UsageTotals};
#[cfg(test)]
use crate::policy::keys::limit::MeteredCount;
use crate::policy::keys::limit::{CounterState, Limits, Mark, MeteredUnits};
use dashmap::DashMap;
use smallvec::SmallVec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counters of this process.
#[derive(Debug, Default)]
pub(super) struct LocalCounters {
    keys: DashMap<KeyId, SharedState>,
    workspaces: DashMap<WorkspaceId, SharedState>,
    /// End users of workspaces whose plan limits them.
    end_users: DashMap<EndUserId, (WorkspaceId, SharedState)>,
}

/// A counter state shared by several requests.
#[derive(Clone, Debug, Default)]
struct SharedState(Arc<Mutex<CounterState>>);

/// The charge of one request. Dropping it ends the request in flight; the rest stays charged.
#[derive(Debug)]
pub(super) struct LocalCharge {
    parts: SmallVec<[(SharedState, Limits, Mark); SUBJECTS]>,
    at: Now,
}

/// What a metered request holds. Dropping it releases the hold.
#[derive(Debug)]
pub(super) struct LocalHold {
    parts: SmallVec<[(SharedState, Limits); SUBJECTS]>,
    amounts: Amounts,
    at: Timestamp,
}

/// A charge, its hold if it is metered, and what is left.
type Taken = (LocalCharge, Option<Box<LocalHold>>, LimitsLeft);
/// Whom a request is charged to, and by which limits.
type Subjects<'r> = SmallVec<[(SharedState, &'r Limits); SUBJECTS]>;
type Locked<'s> = SmallVec<[(MutexGuard<'s, CounterState>, &'s Limits); SUBJECTS]>;
type Marks = SmallVec<[Mark; SUBJECTS]>;

/// The cost of a request.
const COST: u64 = 1;
/// The usual subjects of one request: its key and its workspace.
const SUBJECTS: usize = 2;

impl LocalCounters {
    /// Charges all limits of a request at `now`, or none.
    pub(super) fn charge(&self, charge: &Charge<'_>, now: Now) -> Result<Taken, Box<Refusal>> {
        let (subjects, amounts) = (self.subjects(charge), &charge.amounts);
        let mut locked = lock_all(&subjects);
        check(&locked, amounts, now)?;
        let marks: Marks =
            locked.iter_mut().map(|(state, limits)| state.take(limits, amounts, now)).collect();
        let left = left(&locked, now);
        drop(locked);
        let hold = amounts.is_metered().then(|| Box::new(LocalHold::new(&subjects, *amounts, now.wall)));
        Ok((LocalCharge::new(subjects, &marks, now), hold, left))
    }

    /// Takes a place in flight and charges nothing, if no limit would refuse a charge.
    pub(super) fn hold(&self, charge: &Charge<'_>, now: Now) -> Result<LocalCharge, Box<Refusal>> {
        let subjects = self.subjects(charge);
        let mut locked = lock_all(&subjects);
        check(&locked, &charge.amounts, now)?;
        locked.iter_mut().for_each(|(state, _)| state.hold(COST));
        drop(locked);
        Ok(LocalCharge::new(subjects, &[Mark::default(); SUBJECTS], now))
    }

    /// What has been spent here in each of the windows that contain `at`.
    #[cfg(test)]
    pub(super) fn used(&self, subject: &UsageSubject, at: Timestamp) -> [u64; Per::WINDOWS.len()] {
        let shared = self.subject(subject);
        let state = shared.lock();
        Per::WINDOWS.map(|per| state.used(per, at))
    }

    /// What meters found out here, and what is held, in each of the windows that contain `at`.
    #[cfg(test)]
    pub(super) fn metered(
        &self,
        subject: &UsageSubject,
        at: Timestamp,
    ) -> [MeteredCount; Per::WINDOWS.len()] {
        let shared = self.subject(subject);
        let state = shared.lock();
        Per::WINDOWS.map(|per| state.metered(per, at))
    }

    /// Requests in flight here, or reported by another process.
    #[cfg(test)]
    pub(super) fn in_flight(&self, subject: &UsageSubject) -> u64 {
        self.subject(subject).lock().in_flight()
    }

    /// Sets the totals of the ledger, before anything is charged.
    pub(super) fn restore(&self, row: &UsageTotals, calendar: Calendar, at: Timestamp) {
        *self.subject(&row.subject).lock() = CounterState::restored(at, calendar, &row.used, &row.metered);
    }

    /// Raises the counts to at least the totals of the ledger.
    pub(super) fn raise(&self, row: &UsageTotals, calendar: Calendar, at: Timestamp) {
        let shared = self.subject(&row.subject);
        let mut state = shared.lock();
        state.follow(calendar, at);
        for (per, known) in Per::WINDOWS.into_iter().zip(row.used) {
            let missing = known.saturating_sub(state.used(per, at));
            state.correct(per, at, i64::try_from(missing).unwrap_or(i64::MAX));
        }
        for (n, known) in
            row.metered.iter().enumerate().filter(|(_, known)| **known != MeteredUnits::default())
        {
            let used = &mut state.metered_mut(n, at).used;
            used.iter_mut().zip(known).for_each(|(used, known)| *used = (*used).max(*known));
        }
    }

    /// Calls `show` with what every subject has spent in the windows that contain `at`.
    pub(super) fn each_spent(&self, at: Timestamp, mut show: impl FnMut(UsageTotals)) {
        self.each(|subject, state| {
            let used = Per::WINDOWS.map(|per| state.used(per, at));
            let metered = Per::WINDOWS.map(|per| state.metered(per, at).used);
            show(UsageTotals { subject, used, metered });
        });
    }

    /// Calls `show` with the state of every subject, each consistent in itself.
    pub(super) fn each(&self, mut show: impl FnMut(UsageSubject, &CounterState)) {
        for entry in &self.keys {
            show(UsageSubject::Key(*entry.key()), &entry.lock());
        }
        for entry in &self.workspaces {
            show(UsageSubject::Workspace(entry.key().clone()), &entry.lock());
        }
        for entry in &self.end_users {
            let (workspace, state) = entry.value();
            show(UsageSubject::EndUser(workspace.clone(), *entry.key()), &state.lock());
        }
    }

    /// Adds what another process has counted.
    pub(super) fn take_over(&self, told: &CounterDelta, now: Now) {
        let shared = self.subject(&told.subject);
        let mut state = shared.lock();
        state.follow(told.calendar, told.at);
        for (per, by) in Per::WINDOWS.into_iter().zip(told.spent) {
            state.correct(per, told.at, by);
        }
        for (n, delta) in told.metered.iter().flat_map(|metered| metered.iter().enumerate()) {
            let count = state.metered_mut(n, told.at);
            correct(&mut count.used, &delta.used);
            correct(&mut count.held, &delta.held);
        }
        if let Some(debt) = told.debt {
            state.set_debt(debt, now);
        }
        state.correct_in_flight(told.in_flight);
    }

    /// Adds requests in flight of another process.
    pub(super) fn correct_in_flight(&self, subject: &UsageSubject, by: i64) {
        self.subject(subject).lock().correct_in_flight(by);
    }

    /// Releases what requests of another process held in the windows that contained `at`.
    pub(super) fn release_held(
        &self,
        subject: &UsageSubject,
        held: &[[i64; Measure::METERED.len()]; Per::WINDOWS.len()],
        at: Timestamp,
    ) {
        let shared = self.subject(subject);
        let mut state = shared.lock();
        for (n, held) in held.iter().enumerate().filter(|(_, held)| held.iter().any(|units| *units != 0)) {
            correct(&mut state.metered_mut(n, at).held, &held.map(i64::saturating_neg));
        }
    }

    /// What requests in flight hold in each of the windows that contain `at`.
    pub(super) fn held(&self, subject: &UsageSubject, at: Timestamp) -> [MeteredUnits; Per::WINDOWS.len()] {
        let shared = match subject {
            UsageSubject::Key(id) => self.keys.get(id).map(|found| found.clone()),
            UsageSubject::Workspace(id) => self.workspaces.get(id).map(|found| found.clone()),
            UsageSubject::EndUser(_, id) => self.end_users.get(id).map(|found| found.1.clone()),
        };
        let Some(shared) = shared else { return Default::default() };
        let state = shared.lock();
        Per::WINDOWS.map(|per| state.metered(per, at).held)
    }

    /// Removes a key that was deleted.
    pub(super) fn forget(&self, key: KeyId) {
        self.keys.remove(&key);
    }

    /// Whom a request is charged to, in the order in which they are locked.
    fn subjects<'r>(&self, charge: &Charge<'r>) -> Subjects<'r> {
        let mut subjects = Subjects::new();
        subjects.push((self.key(charge.key), charge.key_limits));
        // A workspace without limits is not counted, so that its keys do not contend for one lock.
        if !charge.workspace_limits.is_empty() {
            subjects.push((self.workspace(charge.workspace), charge.workspace_limits));
        }
        if let Some((id, limits)) = charge.end_user {
            subjects.push((self.end_user(charge.workspace, id), limits));
        }
        subjects
    }

    fn subject(&self, subject: &UsageSubject) -> SharedState {
        match subject {
            UsageSubject::Key(id) => self.key(*id),
            UsageSubject::Workspace(id) => self.workspace(id),
            UsageSubject::EndUser(workspace, id) => self.end_user(workspace, *id),
        }
    }

    fn key(&self, id: KeyId) -> SharedState {
        if let Some(found) = self.keys.get(&id) {
            return found.clone();
        }
        self.keys.entry(id).or_default().clone()
    }

    fn workspace(&self, id: &WorkspaceId) -> SharedState {
        if let Some(found) = self.workspaces.get(id) {
            return found.clone();
        }
        self.workspaces.entry(id.clone()).or_default().clone()
    }

    fn end_user(&self, workspace: &WorkspaceId, id: EndUserId) -> SharedState {
        if let Some(found) = self.end_users.get(&id) {
            return found.1.clone();
        }
        let new = || (workspace.clone(), SharedState::default());
        self.end_users.entry(id).or_insert_with(new).1.clone()
    }
}

fn correct(counts: &mut MeteredUnits, by: &[i64; Measure::METERED.len()]) {
    counts.iter_mut().zip(by).for_each(|(count, by)| *count = count.saturating_add_signed(*by));
}

fn lock_all<'s>(subjects: &'s Subjects<'_>) -> Locked<'s> {
    subjects.iter().map(|(shared, limits)| (shared.lock(), *limits)).collect()
}

/// The longest wait is told, because after a shorter one the client would be refused again.
fn check(locked: &Locked<'_>, amounts: &Amounts, now: Now) -> Result<(), Box<Refusal>> {
    let refused = locked.iter().filter_map(|(state, limits)| state.check(limits, amounts, now).err());
    let longest = refused.reduce(|a, b| if b.retry > a.retry { b } else { a });
    longest.map_or(Ok(()), |refused| Err(Box::new(Refusal { refused, left: left(locked, now) })))
}

fn left(locked: &Locked<'_>, now: Now) -> LimitsLeft {
    locked.iter().flat_map(|(state, limits)| state.left(limits, now)).collect()
}

// === impl LocalCharge, LocalHold, SharedState ===

impl LocalCharge {
    fn new(subjects: Subjects<'_>, marks: &[Mark], at: Now) -> Self {
        let parts = subjects.into_iter().zip(marks);
        Self { parts: parts.map(|((shared, limits), mark)| (shared, limits.clone(), *mark)).collect(), at }
    }

    /// Gives the whole charge back: the request never reached a backend.
    pub(super) fn give_back(mut self) {
        for (shared, limits, mark) in self.parts.drain(..) {
            shared.lock().give_back(&limits, COST, self.at, mark);
        }
    }
}

impl Drop for LocalCharge {
    fn drop(&mut self) {
        for (shared, ..) in self.parts.drain(..) {
            shared.lock().release(COST);
        }
    }
}

impl LocalHold {
    fn new(subjects: &Subjects<'_>, amounts: Amounts, at: Timestamp) -> Self {
        let parts = subjects.iter().map(|(shared, limits)| (shared.clone(), (*limits).clone()));
        Self { parts: parts.collect(), amounts, at }
    }

    /// What is held.
    pub(super) const fn amounts(&self) -> &Amounts {
        &self.amounts
    }

    /// Replaces the hold by what was used. Returns by how much more each measure now exceeds a limit.
    pub(super) fn settle(mut self, used: &Amounts) -> MeteredUnits {
        self.end(used)
    }

    fn end(&mut self, used: &Amounts) -> MeteredUnits {
        let mut passed = MeteredUnits::default();
        for (shared, limits) in self.parts.drain(..) {
            let of_subject = shared.lock().settle(&limits, &self.amounts, used, self.at);
            passed.iter_mut().zip(of_subject).for_each(|(passed, more)| *passed = (*passed).max(more));
        }
        passed
    }
}

impl Drop for LocalHold {
    fn drop(&mut self) {
        self.end(&Amounts::default());
    }
}

impl SharedState {
    /// Nothing under this lock can panic half-way, so a poisoned lock guards valid values.
    fn lock(&self) -> MutexGuard<'_, CounterState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
