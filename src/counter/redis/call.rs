//! Calls to Redis: batching of requests, handling of answers, notification of waiting requests.
//!
//! Must not know: where requests come from. Without an answer, waiting requests are decided without Redis.

use super::endpoint::CallFailure;
use super::pool::LeaseRequest;
use super::script::{self, ScriptCall, ScriptReply, ScriptTotals};
use super::subject::{
    self, ChargedSubjects, LeaseState, PoolRequest, Subject, WantedAmounts, WorkspaceGroup,
};
use super::{
    BROKEN_FOR, CALENDAR_OFF_MAX_US, CallQueue, HELD_BACK_FOR, Leases, PATIENCE, RequestVerdict,
    UndeliveredUnit, WAITING_MAX, Waiter, can_spend, left, nanos, refusal, spend,
};
use crate::clock::{Now, Timestamp};
use crate::model::amounts::Amounts;
use crate::model::calendar::Calendar;
use crate::model::key::Measure;
use crate::model::usage::UsageSubject;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::OwnedSemaphorePermit;

/// Most keys and end users in one call.
const SUBJECTS_MAX: usize = 16;
/// How many of these are called for before waiting requests, so that reports are not put off by a flood.
const REPORTS: usize = 4;
/// Most subjects of one workspace that are read from the ledger at a time.
const READ_MAX: usize = 16;

/// What one call is for.
#[derive(Default)]
pub(super) struct Batch {
    waiters: Vec<Waiter>,
    /// Keys and end users, with what the waiting requests want of them.
    subjects: Vec<(Arc<Subject>, WantedAmounts)>,
    /// What they want of the workspace.
    workspace: WantedAmounts,
}

/// What becomes of a waiting request.
#[expect(clippy::large_enum_variant, reason = "nearly all are told; a box would cost each an allocation")]
enum Next {
    Tell(RequestVerdict),
    /// It waits for the ledger.
    Stall,
    /// It waits for another call.
    Wait,
}

impl Leases {
    /// Adds a subject to the next call. Returns whether a call is in flight or will be made.
    pub(super) fn enqueue(&self, subject: &Arc<Subject>, now_ns: u64) -> bool {
        let mut queue = subject.group.queue();
        if !subject.is_queued.swap(true, Ordering::AcqRel) {
            queue.pending.push_back(Arc::clone(subject));
        }
        self.start_calls(&subject.group, &mut queue, now_ns)
    }

    /// Adds a request to the next call. Returns whether its answer may arrive in time.
    pub(super) fn wait(&self, waiter: Waiter, now_ns: u64) -> bool {
        let group = Arc::clone(&waiter.subjects.key.group);
        let mut queue = group.queue();
        if queue.waiting.len() >= WAITING_MAX {
            queue.waiting.retain(|waiter| !waiter.tell.is_closed());
        }
        if queue.waiting.len() >= WAITING_MAX {
            return false;
        }
        queue.waiting.push_back(waiter);
        // If the call in flight is late already, do not wait for it.
        self.start_calls(&group, &mut queue, now_ns) && !queue.is_late(now_ns)
    }

    fn start_calls(&self, group: &Arc<WorkspaceGroup>, queue: &mut CallQueue, now_ns: u64) -> bool {
        if queue.is_calling(now_ns) {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else { return false };
        let Some(me) = self.me.upgrade() else { return false };
        queue.turn += 1;
        queue.asking_since_ns = Some(now_ns);
        self.config.metrics.counter_asking.inc();
        self.config.io.spawn(me.serve(Arc::clone(group), queue.turn, permit));
        true
    }

    /// Makes calls until no subject of the workspace needs one.
    async fn serve(self: Arc<Self>, group: Arc<WorkspaceGroup>, turn: u64, permit: OwnedSemaphorePermit) {
        loop {
            let batch = {
                let mut queue = group.queue();
                if queue.turn != turn {
                    break;
                }
                let Some(batch) = queue.next_batch() else {
                    queue.asking_since_ns = None;
                    break;
                };
                queue.asking_since_ns = Some(self.now_ns());
                batch
            };
            // On an error, waiting requests have been notified.
            drop(self.call(&group, batch).await);
        }
        drop(permit);
        self.config.metrics.counter_asking.dec();
    }

    /// One call for these subjects and their workspace.
    pub(super) async fn call(&self, group: &Arc<WorkspaceGroup>, batch: Batch) -> Result<(), CallFailure> {
        let mut at = self.now().wall;
        let mut is_second = false;
        loop {
            let sent_ns = self.now_ns();
            let calendar = **group.calendar.load();
            let asks = batch.asks(group, sent_ns, at, calendar);
            if asks.is_empty() {
                drop(self.hand_out(group, batch));
                return Ok(());
            }
            let call = ScriptCall {
                node: &self.config.node,
                nodes: self.nodes(),
                server: &self.link.server(),
                lag: self.lag(),
                lost: self.link.lost_for(sent_ns).map(|lost| at.minus(lost)),
                at,
                calendar,
                asks: asks.iter().map(|ask| (ask.hash.clone(), &ask.ask)).collect(),
            };
            let trouble = match self.send(group.part, &call).await {
                Ok(ScriptReply::Totals(now_us, told)) => {
                    self.set_calendar(now_us, CALENDAR_OFF_MAX_US);
                    self.take_in(group, batch, &asks, &told, sent_ns);
                    return Ok(());
                }
                Ok(ScriptReply::OtherWindows(now)) if !is_second => {
                    is_second = true;
                    self.set_calendar(now.as_micros(), 0);
                    at = now;
                    continue;
                }
                Ok(ScriptReply::OtherWindows(_)) => {
                    CallFailure::Link("its calendar does not stand still".into())
                }
                Err(trouble) => trouble,
            };
            fail(group, batch, &asks, &trouble, self.now_ns());
            return Err(trouble);
        }
    }

    async fn send(&self, part: u32, call: &ScriptCall<'_>) -> Result<ScriptReply, CallFailure> {
        self.config.metrics.counter_calls.inc();
        let value = match self.link.call(part, &script::command(call, true), PATIENCE).await {
            Err(trouble) if trouble.is_no_script() => {
                self.link.call(part, &script::command(call, false), PATIENCE).await
            }
            answered => answered,
        };
        script::read(&value?, call).ok_or_else(|| {
            let why = "unexpected response";
            self.link.on_failure(part, why);
            CallFailure::Link(why.into())
        })
    }

    /// Applies an answer and notifies waiting requests.
    fn take_in(
        &self,
        group: &Arc<WorkspaceGroup>,
        batch: Batch,
        asks: &[PoolRequest],
        told: &[ScriptTotals],
        sent_ns: u64,
    ) {
        // All of one subject stand together.
        let mut rest = asks.iter().zip(told).peekable();
        while let Some((first, _)) = rest.peek().copied() {
            let subject = batch.subject(first.of);
            let mut state = subject.map_or_else(|| group.lock(), |subject| subject.lock());
            let mut is_known = true;
            while let Some((ask, told)) = rest.next_if(|(ask, _)| ask.of == first.of) {
                is_known &= *told != ScriptTotals::Unknown;
                self.learn(group, subject, &mut state, ask, told, sent_ns);
            }
            if is_known {
                state.ledger = None;
            }
        }
        let subjects = batch.subjects.iter().map(|(subject, _)| Arc::clone(subject)).collect::<Vec<_>>();
        let left = self.hand_out(group, batch);
        for ask in asks {
            let subject = ask.of.map(|n| &subjects[n]);
            // Those who wait for another call take what is in hand with what that brings.
            if !left.iter().any(|of| of.contains(subject)) {
                let mut state = subject.map_or_else(|| group.lock(), |subject| subject.lock());
                if let Some(pool) = state.pool(ask.measure) {
                    pool.retire_unless(ask.ask.ahead);
                }
            }
        }
        subjects.iter().for_each(Subject::list);
    }

    /// Hands units to waiting requests in order. Who gets none is refused, or waits for the ledger, or for another call if
    /// this one brought anything. Returns the subjects of those who wait.
    fn hand_out(&self, group: &Arc<WorkspaceGroup>, batch: Batch) -> Vec<ChargedSubjects> {
        let (mut told, mut waiting, mut stalled) = (Vec::new(), Vec::new(), Vec::new());
        for waiter in batch.waiters.into_iter().filter(|waiter| !waiter.tell.is_closed()) {
            match next(&waiter, self.now()) {
                Next::Tell(verdict) => told.push((waiter, verdict)),
                Next::Wait => waiting.push(waiter),
                Next::Stall => stalled.push(waiter),
            }
        }
        if told.is_empty() {
            told.extend(waiting.drain(..).map(|waiter| (waiter, RequestVerdict::Fallback)));
        }
        let left = waiting.iter().chain(&stalled).map(|waiter| waiter.subjects.clone()).collect();
        let mut queue = group.queue();
        let stalled_in = if queue.is_reading { &mut queue.stalled } else { &mut waiting };
        stalled_in.append(&mut stalled);
        if !waiting.is_empty() {
            waiting.into_iter().rev().for_each(|waiter| queue.waiting.push_front(waiter));
            self.start_calls(group, &mut queue, self.now_ns());
        }
        drop(queue);
        tell(told);
        left
    }

    fn learn(
        &self,
        group: &Arc<WorkspaceGroup>,
        subject: Option<&Arc<Subject>>,
        state: &mut LeaseState,
        PoolRequest { measure, ask, .. }: &PoolRequest,
        told: &ScriptTotals,
        sent_ns: u64,
    ) {
        let now_ns = self.now_ns();
        match told {
            ScriptTotals::Grant(grant) => {
                let returned = ask.returned.0;
                self.config.metrics.counter_units_returned.inc_by(returned);
                self.config.metrics.counter_units_granted.inc_by(grant.units);
                if let Some(pool) = state.pool(*measure) {
                    pool.answer(ask, grant, sent_ns, now_ns);
                }
                if grant.is_held_back {
                    state.broken_until_ns = now_ns + nanos(HELD_BACK_FOR);
                } else {
                    state.fallback_since_ns = None;
                }
            }
            ScriptTotals::Unknown => {
                if let Some(pool) = state.pool(*measure) {
                    self.on_unknown_subject(pool);
                    pool.unanswered(ask);
                }
                if !state.is_reading {
                    state.is_reading = true;
                    self.ask_ledger(group, subject.map(Arc::clone));
                }
            }
            ScriptTotals::Old => unanswered(state, *measure, ask),
            ScriptTotals::Broken(why) => {
                let workspace = &group.id;
                match subject.map(|subject| &subject.id) {
                    Some(UsageSubject::Key(key)) => {
                        tracing::warn!(%key, why, "counters: Redis script failed for key");
                    }
                    Some(UsageSubject::EndUser(_, id)) => {
                        tracing::warn!(%workspace, end_user = %id, why, "counters: Redis script failed for end user");
                    }
                    _ => tracing::warn!(%workspace, why, "counters: Redis script failed for workspace"),
                }
                unanswered(state, *measure, ask);
                state.broken_until_ns = now_ns + nanos(BROKEN_FOR);
            }
        }
    }

    /// Reads subjects that Redis does not know from the ledger, and calls again for the requests that wait for them.
    fn ask_ledger(&self, group: &Arc<WorkspaceGroup>, subject: Option<Arc<Subject>>) {
        let mut queue = group.queue();
        queue.unknown.push_back(subject);
        if queue.is_reading {
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        queue.is_reading = true;
        self.config.io.spawn(me.read_ledger(Arc::clone(group)));
    }

    async fn read_ledger(self: Arc<Self>, group: Arc<WorkspaceGroup>) {
        loop {
            let some = {
                let mut queue = group.queue();
                let count = queue.unknown.len().min(READ_MAX);
                let some: Vec<_> = queue.unknown.drain(..count).collect();
                if some.is_empty() {
                    queue.is_reading = false;
                    self.resume_stalled(&group, &mut queue);
                    return;
                }
                some
            };
            let (at, calendar) = (self.now().wall, **group.calendar.load());
            let mut reads = tokio::task::JoinSet::new();
            for subject in some {
                let by = match &subject {
                    Some(subject) => subject.id.clone(),
                    None => UsageSubject::Workspace(group.id.clone()),
                };
                let ledger = Arc::clone(&self.config.ledger);
                reads.spawn(async move { (subject, ledger.totals_of(&by, at, calendar).await) });
            }
            while let Some(read) = reads.join_next().await {
                let Ok((subject, row)) = read else { continue };
                let mut state = match &subject {
                    Some(subject) => subject.lock(),
                    None => group.lock(),
                };
                state.is_reading = false;
                match row {
                    Some(row) => state.ledger = Some((at, calendar, row)),
                    None => state.broken_until_ns = self.now_ns() + nanos(BROKEN_FOR),
                }
            }
            self.resume_stalled(&group, &mut group.queue());
        }
    }

    fn resume_stalled(&self, group: &Arc<WorkspaceGroup>, queue: &mut CallQueue) {
        let stalled = std::mem::take(&mut queue.stalled);
        if !stalled.is_empty() {
            queue.waiting.extend(stalled);
            self.start_calls(group, queue, self.now_ns());
        }
    }
}

impl Batch {
    /// Reports of these subjects.
    pub(super) fn of(subjects: &[Arc<Subject>]) -> Self {
        let subjects = subjects.iter().map(|subject| (Arc::clone(subject), WantedAmounts::default()));
        Self { subjects: subjects.collect(), ..Self::default() }
    }

    fn subject(&self, index: Option<usize>) -> Option<&Arc<Subject>> {
        index.map(|n| &self.subjects[n].0)
    }

    fn has(&self, subject: &Arc<Subject>) -> bool {
        self.subjects.iter().any(|(of, _)| Arc::ptr_eq(of, subject))
    }

    fn add(&mut self, subject: &Arc<Subject>, amounts: &Amounts) {
        let found = self.subjects.iter().position(|(of, _)| Arc::ptr_eq(of, subject));
        let n = found.unwrap_or_else(|| {
            self.subjects.push((Arc::clone(subject), WantedAmounts::default()));
            self.subjects.len() - 1
        });
        self.subjects[n].1.add(amounts);
    }

    /// Adds a request, unless that would be too many subjects.
    fn add_waiter(&mut self, waiter: Waiter) -> Option<Waiter> {
        let new = waiter.subjects.iter().filter(|subject| !self.has(subject)).count();
        if self.subjects.len() + new > SUBJECTS_MAX {
            return Some(waiter);
        }
        waiter.subjects.iter().for_each(|subject| self.add(subject, &waiter.amounts));
        if waiter.subjects.contains(None) {
            self.workspace.add(&waiter.amounts);
        }
        self.waiters.push(waiter);
        None
    }

    fn asks(
        &self,
        group: &WorkspaceGroup,
        now_ns: u64,
        at: Timestamp,
        calendar: Calendar,
    ) -> Vec<PoolRequest> {
        let (mut asks, when) = (Vec::with_capacity(self.subjects.len() + 1), (now_ns, at, calendar));
        if let Some(mut workspace) = group.lock_if_counted() {
            workspace.asks((None, |measure| group.hash(measure)), &self.workspace, when, &mut asks);
        }
        for (n, (subject, wanted)) in self.subjects.iter().enumerate() {
            subject.lock().asks((Some(n), |measure| subject.hash(measure)), wanted, when, &mut asks);
        }
        asks
    }
}

impl CallQueue {
    /// What the next call is for, if anything.
    fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        self.add_pending(&mut batch, REPORTS);
        let mut others = std::mem::take(&mut self.waiting);
        for waiter in others.drain(..).filter(|waiter| !waiter.tell.is_closed()) {
            self.waiting.extend(batch.add_waiter(waiter));
        }
        self.add_pending(&mut batch, SUBJECTS_MAX);
        (!batch.subjects.is_empty()).then_some(batch)
    }

    fn add_pending(&mut self, batch: &mut Batch, most: usize) {
        while batch.subjects.len() < most
            && let Some(subject) = self.pending.pop_front()
        {
            subject.is_queued.store(false, Ordering::Release);
            batch.add(&subject, &Amounts::default());
        }
    }
}

/// There is no answer: waiting requests are decided without Redis.
fn fail(group: &WorkspaceGroup, batch: Batch, asks: &[PoolRequest], trouble: &CallFailure, now_ns: u64) {
    for ask in asks {
        match batch.subject(ask.of) {
            None => unanswered(&mut group.lock(), ask.measure, &ask.ask),
            Some(subject) => unanswered(&mut subject.lock(), ask.measure, &ask.ask),
        }
    }
    match trouble {
        CallFailure::Key(why) => {
            tracing::warn!(workspace = %group.id, why, "counters: Redis script failed");
            for (subject, _) in &batch.subjects {
                subject.lock().broken_until_ns = now_ns + nanos(BROKEN_FOR);
            }
        }
        CallFailure::Link(why) => {
            tracing::debug!(workspace = %group.id, why, "counters: no answer from Redis");
        }
    }
    batch.subjects.iter().for_each(|(subject, _)| subject.list());
    tell(batch.waiters.into_iter().map(|waiter| (waiter, RequestVerdict::Fallback)).collect());
}

fn unanswered(state: &mut LeaseState, measure: Measure, ask: &LeaseRequest) {
    if let Some(pool) = state.pool(measure) {
        pool.unanswered(ask);
    }
}

/// Decides about a waiting request after an answer.
fn next(waiter: &Waiter, now: Now) -> Next {
    let mut states = waiter.subjects.lock();
    if can_spend(&mut states, &waiter.amounts, now.steady_ns) {
        let taken = spend(&mut states, &waiter.amounts, now);
        let left = left(&states, now.steady_ns);
        let (unit, hold) = subject::charged(&waiter.subjects, taken, &waiter.amounts);
        return Next::Tell(RequestVerdict::Unit(UndeliveredUnit(Some((unit, hold, left)))));
    }
    if let Some(refusal) = refusal(&mut states, &waiter.amounts, now.steady_ns) {
        return Next::Tell(RequestVerdict::Refused(refusal));
    }
    if states.iter().any(|(_, state)| state.is_broken(now.steady_ns)) {
        return Next::Tell(RequestVerdict::Fallback);
    }
    if states.iter().any(|(_, state)| state.is_reading) { Next::Stall } else { Next::Wait }
}

fn tell(verdicts: Vec<(Waiter, RequestVerdict)>) {
    for (waiter, verdict) in verdicts {
        // If the request stopped waiting, what it took is returned when it is dropped.
        drop(waiter.tell.send(verdict));
    }
}
