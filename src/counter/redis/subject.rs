//! The subjects of a workspace on this node (the workspace itself, its keys and end users), and what a request takes of them.
//!
//! Must not know: Redis.
//!
//! *Invariant:* the lock of a key is taken before that of its workspace, and that before that of an end user.

use super::pool::{LeaseRequest, SubjectPool, TakenUnits, WINDOWS, Wanted};
use super::{BROKEN_FOR, CallQueue, Leases, script};
use crate::clock::{Now, Timestamp};
use crate::counter::{LimitsLeft, Refusal};
use crate::model::amounts::Amounts;
use crate::model::calendar::Calendar;
use crate::model::id::WorkspaceId;
use crate::model::key::Measure;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::{Limits, MeteredUnits};
use arc_swap::ArcSwap;
use smallvec::SmallVec;
use std::fmt;
use std::iter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A workspace on this node: its subjects share calls.
pub(super) struct WorkspaceGroup {
    pub(super) id: WorkspaceId,
    /// Workspaces with the same part fail together.
    pub(super) part: u32,
    /// Whether limits are counted on the workspace itself.
    is_counted: AtomicBool,
    /// The calendar of its windows, by the plan of the last request.
    pub(super) calendar: ArcSwap<Calendar>,
    state: Mutex<LeaseState>,
    queue: Mutex<CallQueue>,
}

/// A key or an end user on this node.
pub(super) struct Subject {
    pub(super) id: UsageSubject,
    pub(super) group: Arc<WorkspaceGroup>,
    leases: Weak<Leases>,
    /// Whether it is listed for a report, and whether it is in the queue of the next call.
    pub(super) is_listed: AtomicBool,
    pub(super) is_queued: AtomicBool,
    state: Mutex<LeaseState>,
}

/// The state of a subject.
pub(super) struct LeaseState {
    /// The limits of the last request.
    limits: Limits,
    pub(super) requests: SubjectPool,
    /// The other measures that are limited, or were.
    held: Vec<(Measure, SubjectPool)>,
    /// Where the pools begin to number their windows.
    first: u64,
    pub(super) broken_until_ns: u64,
    /// Totals from the ledger, with their time and calendar, until Redis is filled with them.
    pub(super) ledger: Option<(Timestamp, Calendar, UsageTotals)>,
    pub(super) is_reading: bool,
    /// When Redis last worked before the first request that was decided without it since.
    pub(super) fallback_since_ns: Option<u64>,
}

/// Whom a request is charged to.
#[derive(Clone)]
pub(super) struct ChargedSubjects {
    pub(super) key: Arc<Subject>,
    is_workspace_counted: bool,
    pub(super) end_user: Option<Arc<Subject>>,
}

/// One of [`ChargedSubjects`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::counter) enum Slot {
    Key,
    Workspace,
    EndUser,
}

/// The locked states of [`ChargedSubjects`], in the order of [`Slot`].
pub(super) type LockedStates<'s> = SmallVec<[(Slot, MutexGuard<'s, LeaseState>); 3]>;

/// What a request took of each pool.
pub(super) type TakenList = SmallVec<[(Slot, Measure, TakenUnits); 2]>;

/// What waiting requests want of one subject.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WantedAmounts([Wanted; Measure::ALL.len()]);

/// The charge of one request. Dropping it ends the request in flight.
pub(in crate::counter) struct LeasedUnit {
    subjects: ChargedSubjects,
    taken: TakenList,
    is_ended: bool,
}

/// What a metered request holds. Dropping it releases the hold.
pub(in crate::counter) struct LeasedHold {
    subjects: ChargedSubjects,
    taken: TakenList,
    amounts: Amounts,
}

/// A place in flight for a request that is not charged yet.
pub(in crate::counter) struct HeldSlot(pub(super) Arc<Subject>);

/// The part of a call that concerns one pool.
pub(super) struct PoolRequest {
    /// The index of the subject in the batch; none: the workspace.
    pub(super) of: Option<usize>,
    pub(super) measure: Measure,
    pub(super) hash: String,
    pub(super) ask: LeaseRequest,
}

// === impl LeaseState ===

impl LeaseState {
    pub(super) fn new(now_ns: u64) -> Self {
        let first = now_ns / 1_000;
        Self {
            limits: Limits::new(),
            requests: SubjectPool::default().numbered_from(first),
            held: Vec::new(),
            first,
            broken_until_ns: 0,
            ledger: None,
            is_reading: false,
            fallback_since_ns: None,
        }
    }

    /// Notes one more request and the limits in force.
    pub(super) fn attempt(&mut self, limits: &Limits, amounts: &Amounts) {
        if self.limits != *limits {
            self.set_limits(limits);
        }
        self.charged(amounts).for_each(|(_, pool, units)| pool.attempt(units));
    }

    #[cold]
    fn set_limits(&mut self, limits: &Limits) {
        self.limits.clone_from(limits);
        self.requests.set_limits(&of_measure(limits, Measure::Requests));
        for measure in Measure::METERED {
            let limits = of_measure(limits, measure);
            match self.held.iter_mut().find(|(of, _)| *of == measure) {
                Some((_, pool)) => pool.set_limits(&limits),
                None if limits.is_empty() => {}
                None => {
                    let mut pool = SubjectPool::held().numbered_from(self.first);
                    pool.set_limits(&limits);
                    self.held.push((measure, pool));
                }
            }
        }
    }

    pub(super) fn pools(&mut self) -> impl Iterator<Item = (Measure, &mut SubjectPool)> {
        let held = self.held.iter_mut().map(|(measure, pool)| (*measure, pool));
        iter::once((Measure::Requests, &mut self.requests)).chain(held)
    }

    pub(super) fn pool(&mut self, measure: Measure) -> Option<&mut SubjectPool> {
        self.pools().find(|(of, _)| *of == measure).map(|(_, pool)| pool)
    }

    /// The limited pools that `amounts` are charged to, with the units of each. A metered request may use more than nothing
    /// of a measure of which it holds nothing.
    pub(super) fn charged(
        &mut self,
        amounts: &Amounts,
    ) -> impl Iterator<Item = (Measure, &mut SubjectPool, u64)> {
        let is_metered = amounts.is_metered();
        let charged = self.pools().map(|(measure, pool)| (measure, pool, amounts.get(measure)));
        charged.filter(move |(measure, pool, units)| {
            let may_use = *units > 0 || (is_metered && *measure != Measure::Requests);
            may_use && !pool.is_unlimited()
        })
    }

    fn can_spend(&mut self, amounts: &Amounts, now_ns: u64) -> bool {
        self.charged(amounts).all(|(_, pool, units)| pool.can_spend(units, now_ns))
    }

    /// What is left of each limit.
    pub(super) fn left(&self, now_ns: u64) -> LimitsLeft {
        let mut left = self.requests.left(now_ns);
        left.extend(self.held.iter().flat_map(|(_, pool)| pool.left(now_ns)));
        left
    }

    /// What requests hold on this node in each window.
    pub(super) fn on_hold(&self) -> [MeteredUnits; WINDOWS.len()] {
        let mut held = [MeteredUnits::default(); WINDOWS.len()];
        for (measure, pool) in &self.held {
            let Some(n) = measure.metered_index() else { continue };
            held.iter_mut().zip(pool.on_hold()).for_each(|(held, units)| held[n] = units);
        }
        held
    }

    /// Whether it is time to call for more units, before a request has to wait.
    pub(super) fn wants_more(&mut self) -> bool {
        self.requests.wants_more()
    }

    pub(super) fn needs_call(&mut self, now_ns: u64) -> bool {
        self.pools().any(|(_, pool)| pool.needs_call(now_ns))
    }

    /// Whether a report to Redis will be due sooner or later.
    pub(super) fn owes(&self) -> bool {
        self.requests.owes() || self.held.iter().any(|(_, pool)| pool.owes())
    }

    pub(super) fn was_heard_since(&self, since_ns: u64) -> bool {
        iter::once(&self.requests)
            .chain(self.held.iter().map(|(_, pool)| pool))
            .any(|p| p.was_heard_since(since_ns))
    }

    /// Whether it is not called for at the moment.
    pub(super) const fn is_broken(&self, now_ns: u64) -> bool {
        now_ns < self.broken_until_ns
    }

    /// The part of a call that concerns this subject.
    pub(super) fn asks(
        &mut self,
        (of, hash): (Option<usize>, impl Fn(Measure) -> String),
        wanted: &WantedAmounts,
        (now_ns, at, calendar): (u64, Timestamp, Calendar),
        asks: &mut Vec<PoolRequest>,
    ) {
        let totals = self.ledgered(at, calendar);
        for (measure, pool) in self.pools() {
            let wanted = wanted.0[measure as usize];
            if pool.wants_call(wanted, now_ns) {
                let ledger = totals.as_ref().map(|totals| units_of(totals, measure));
                let ask = LeaseRequest { ledger, ..pool.ask(wanted, now_ns, at, calendar) };
                asks.push(PoolRequest { of, measure, hash: hash(measure), ask });
            }
        }
    }

    /// The totals from the ledger for the windows of `calendar` that contain `at`, if they are recent.
    fn ledgered(&self, at: Timestamp, calendar: Calendar) -> Option<UsageTotals> {
        let (told_at, told_of, row) = self.ledger.as_ref()?;
        if at.since(*told_at) > BROKEN_FOR || *told_of != calendar {
            return None;
        }
        let mut known = row.clone();
        for (n, window) in Window::all(calendar, *told_at).iter().enumerate() {
            if !window.contains(at) {
                known.used[n] = 0;
                known.metered[n] = MeteredUnits::default();
            }
        }
        Some(known)
    }
}

fn of_measure(limits: &Limits, measure: Measure) -> Limits {
    let of_it = limits.iter().copied().filter(|limit| limit.count == measure);
    of_it.collect::<Limits>().in_calendar(limits.calendar)
}

fn units_of(totals: &UsageTotals, measure: Measure) -> [u64; WINDOWS.len()] {
    match measure.metered_index() {
        None => totals.used,
        Some(n) => totals.metered.map(|units| units[n]),
    }
}

// === charging several subjects ===

/// Whether all may be charged from granted units.
pub(super) fn can_spend(states: &mut LockedStates<'_>, amounts: &Amounts, now_ns: u64) -> bool {
    states.iter_mut().all(|(_, state)| state.can_spend(amounts, now_ns))
}

/// Charges all after [`can_spend`] has returned true.
pub(super) fn spend(states: &mut LockedStates<'_>, amounts: &Amounts, now: Now) -> TakenList {
    let mut taken = TakenList::new();
    for (slot, state) in states {
        taken.extend(
            state.charged(amounts).map(|(measure, pool, units)| (*slot, measure, pool.spend(units, now))),
        );
    }
    taken
}

/// What is left of each limit of all.
pub(super) fn left(states: &LockedStates<'_>, now_ns: u64) -> LimitsLeft {
    let mut states = states.iter().map(|(_, state)| state.left(now_ns));
    let mut left = states.next().unwrap_or_default();
    states.for_each(|more| left.extend(more));
    left
}

/// The cached refusal; of several, the one that lasts longest.
pub(super) fn refusal(states: &mut LockedStates<'_>, amounts: &Amounts, now_ns: u64) -> Option<Box<Refusal>> {
    let refusals = states.iter_mut().flat_map(|(_, state)| {
        let of_pools = state.charged(amounts).filter_map(|(_, pool, units)| pool.refusal(units, now_ns));
        of_pools.collect::<SmallVec<[_; 2]>>()
    });
    let mut told = refusals.reduce(|a, b| if b.refused.retry > a.refused.retry { b } else { a })?;
    told.left = left(states, now_ns);
    Some(told)
}

impl WantedAmounts {
    pub(super) fn add(&mut self, amounts: &Amounts) {
        for measure in Measure::ALL.iter().copied() {
            let (units, wanted) = (amounts.get(measure), &mut self.0[measure as usize]);
            if units > 0 {
                wanted.least = if wanted.units == 0 { units } else { wanted.least.min(units) };
                wanted.units = wanted.units.saturating_add(units);
            }
        }
    }
}

// === impl WorkspaceGroup, Subject, ChargedSubjects ===

impl WorkspaceGroup {
    pub(super) fn new(id: WorkspaceId, now_ns: u64) -> Self {
        let part = crc32fast::hash(id.as_str().as_bytes());
        let state = Mutex::new(LeaseState::new(now_ns));
        let (is_counted, calendar, queue) = (AtomicBool::new(false), ArcSwap::default(), Mutex::default());
        Self { id, part, is_counted, calendar, state, queue }
    }

    /// Nothing under this lock can panic half-way, so a poisoned lock guards valid values.
    pub(super) fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This lock is taken last.
    pub(super) fn queue(&self) -> MutexGuard<'_, CallQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the workspace itself has limits: keys of a workspace without limits must not contend for one lock.
    pub(super) fn is_counted(&self, limits: &Limits) -> bool {
        let is_counted = !limits.is_empty();
        if self.is_counted.load(Ordering::Relaxed) != is_counted {
            self.is_counted.store(is_counted, Ordering::Relaxed);
        }
        is_counted
    }

    pub(super) fn lock_if_counted(&self) -> Option<MutexGuard<'_, LeaseState>> {
        self.is_counted.load(Ordering::Relaxed).then(|| self.lock())
    }

    /// Sets the calendar of its windows.
    pub(super) fn follow(&self, calendar: Calendar) {
        if **self.calendar.load() != calendar {
            self.calendar.store(Arc::new(calendar));
        }
    }

    pub(super) fn hash(&self, measure: Measure) -> String {
        script::hash_of(&UsageSubject::Workspace(self.id.clone()), &self.id, measure)
    }
}

impl Subject {
    pub(super) fn new(
        id: UsageSubject,
        group: Arc<WorkspaceGroup>,
        leases: Weak<Leases>,
        now_ns: u64,
    ) -> Self {
        let state = Mutex::new(LeaseState::new(now_ns));
        Self {
            id,
            group,
            leases,
            is_listed: AtomicBool::new(false),
            is_queued: AtomicBool::new(false),
            state,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the subject for a report to Redis, even if no further request comes.
    pub(super) fn list(self: &Arc<Self>) {
        if self.is_listed.load(Ordering::Acquire)
            || !self.owes()
            || self.is_listed.swap(true, Ordering::AcqRel)
        {
            return;
        }
        if let Some(leases) = self.leases.upgrade() {
            leases.listed.lock().unwrap_or_else(PoisonError::into_inner).push_back(Arc::clone(self));
        }
    }

    pub(super) fn owes(&self) -> bool {
        self.lock().owes() || self.group.lock_if_counted().is_some_and(|w| w.owes())
    }

    pub(super) fn hash(&self, measure: Measure) -> String {
        script::hash_of(&self.id, &self.group.id, measure)
    }
}

impl ChargedSubjects {
    pub(super) const fn new(
        key: Arc<Subject>,
        is_workspace_counted: bool,
        end_user: Option<Arc<Subject>>,
    ) -> Self {
        Self { key, is_workspace_counted, end_user }
    }

    pub(super) fn lock(&self) -> LockedStates<'_> {
        let mut states = LockedStates::new();
        states.push((Slot::Key, self.key.lock()));
        if self.is_workspace_counted {
            states.push((Slot::Workspace, self.key.group.lock()));
        }
        if let Some(end_user) = &self.end_user {
            states.push((Slot::EndUser, end_user.lock()));
        }
        states
    }

    /// The keys and end users among them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Subject>> {
        iter::once(&self.key).chain(&self.end_user)
    }

    pub(super) fn contains(&self, subject: Option<&Arc<Subject>>) -> bool {
        match subject {
            None => self.is_workspace_counted,
            Some(subject) => self.iter().any(|of| Arc::ptr_eq(of, subject)),
        }
    }

    /// Applies `to` to each pool that something was taken of.
    fn each(&self, taken: &TakenList, mut to: impl FnMut(Measure, &mut SubjectPool, &TakenUnits)) {
        for (slot, measure, units) in taken {
            let mut state = match (slot, &self.end_user) {
                (Slot::Key, _) => self.key.lock(),
                (Slot::EndUser, Some(end_user)) => end_user.lock(),
                (Slot::Workspace | Slot::EndUser, _) => self.key.group.lock(),
            };
            if let Some(pool) = state.pool(*measure) {
                to(*measure, pool, units);
            }
        }
    }

    pub(super) fn list(&self) {
        self.iter().for_each(Subject::list);
    }
}

// === impl LeasedUnit, LeasedHold, HeldSlot ===

/// The charge of a request and what it holds, of what it took.
pub(super) fn charged(
    subjects: &ChargedSubjects,
    taken: TakenList,
    amounts: &Amounts,
) -> (LeasedUnit, Option<Box<LeasedHold>>) {
    let unit = |taken| LeasedUnit { subjects: subjects.clone(), taken, is_ended: false };
    if !amounts.is_metered() {
        return (unit(taken), None);
    }
    let (requests, held) = taken.into_iter().partition(|(_, measure, _)| *measure == Measure::Requests);
    (
        unit(requests),
        Some(Box::new(LeasedHold { subjects: subjects.clone(), taken: held, amounts: *amounts })),
    )
}

impl LeasedUnit {
    /// Returns the unit: the request never reached a backend.
    pub(in crate::counter) fn give_back(mut self) {
        self.is_ended = true;
        self.subjects.each(&self.taken, |_, pool, taken| pool.give_back(taken));
        self.subjects.list();
    }
}

impl Drop for LeasedUnit {
    fn drop(&mut self) {
        if !self.is_ended {
            self.subjects.each(&self.taken, |_, pool, _| pool.end());
        }
    }
}

impl LeasedHold {
    /// What is held.
    pub(in crate::counter) const fn amounts(&self) -> &Amounts {
        &self.amounts
    }

    /// Replaces the hold by what was used. Returns by how much more each measure now exceeds a limit, as far as this node
    /// knows.
    pub(in crate::counter) fn settle(&mut self, used: &Amounts) -> MeteredUnits {
        let mut passed = MeteredUnits::default();
        let Some(at) = self.subjects.key.leases.upgrade().map(|leases| leases.now().wall) else {
            return passed;
        };
        let taken = std::mem::take(&mut self.taken);
        self.subjects.each(&taken, |measure, pool, hold| {
            let more = pool.settle(hold, used.get(measure), at);
            if let Some(n) = measure.metered_index() {
                passed[n] = passed[n].max(more);
            }
        });
        self.subjects.list();
        passed
    }
}

impl Drop for LeasedHold {
    fn drop(&mut self) {
        if !self.taken.is_empty() {
            self.subjects.each(&self.taken, |_, pool, hold| pool.give_back(hold));
            self.subjects.list();
        }
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        self.0.lock().requests.unhold();
    }
}

impl fmt::Debug for LeasedUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedUnit").field("key", &self.subjects.key.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for LeasedHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedHold").field("amounts", &self.amounts).finish_non_exhaustive()
    }
}

impl fmt::Debug for HeldSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldSlot").field(&self.0.id).finish()
    }
}
