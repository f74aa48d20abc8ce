//! Calls to Redis: batching of keys, handling of answers, notification of waiting requests.
//!
//! Must not know: where requests come from. Without an answer, waiting requests are decided without Redis.

use super::endpoint::CallFailure;
use super::pool::LeaseRequest;
use super::script::{self, ScriptCall, ScriptReply, ScriptTotals};
use super::{
    BROKEN_FOR, CALENDAR_OFF_MAX_US, HELD_BACK_FOR, KeyState, LeaseState, Leases, PATIENCE, RequestVerdict,
    UndeliveredUnit, WorkspaceGroup, can_spend, nanos, refusal, spend,
};
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::usage::UsageSubject;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Most keys in one call.
const KEYS_MAX: usize = 16;
/// Most subjects of one workspace that are read from the ledger at a time.
const READ_MAX: usize = 16;

type Waiter = (oneshot::Sender<RequestVerdict>, RequestVerdict);

impl Leases {
    /// Adds this key to the next call. Returns whether a call is in flight or will be made.
    pub(super) fn enqueue(&self, subject: &Arc<KeyState>, now_ns: u64) -> bool {
        let mut queue = subject.group.queue();
        if !subject.is_queued.swap(true, Ordering::AcqRel) {
            queue.pending.push_back(Arc::clone(subject));
        }
        if queue.is_calling(now_ns) {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else { return false };
        let Some(me) = self.me.upgrade() else { return false };
        queue.turn += 1;
        queue.asking_since_ns = Some(now_ns);
        self.config.metrics.counter_asking.inc();
        self.config.io.spawn(me.serve(Arc::clone(&subject.group), queue.turn, permit));
        true
    }

    /// Makes calls until no key of the workspace needs one.
    async fn serve(self: Arc<Self>, group: Arc<WorkspaceGroup>, turn: u64, permit: OwnedSemaphorePermit) {
        loop {
            let batch: Vec<Arc<KeyState>> = {
                let mut queue = group.queue();
                if queue.turn != turn {
                    break;
                }
                let some = queue.pending.len().min(KEYS_MAX);
                if some == 0 {
                    queue.asking_since_ns = None;
                    break;
                }
                queue.asking_since_ns = Some(self.now_ns());
                queue.pending.drain(..some).collect()
            };
            for subject in &batch {
                subject.is_queued.store(false, Ordering::Release);
            }
            // On an error, waiting requests have been notified.
            drop(self.call(&group, &batch).await);
        }
        drop(permit);
        self.config.metrics.counter_asking.dec();
    }

    /// One call for these keys and their workspace.
    pub(super) async fn call(
        &self,
        group: &Arc<WorkspaceGroup>,
        batch: &[Arc<KeyState>],
    ) -> Result<(), CallFailure> {
        let mut at = self.now().wall;
        let mut is_second = false;
        loop {
            let sent_ns = self.now_ns();
            let calendar = **group.calendar.load();
            let (of_workspace, of_keys) = asks(group, batch, sent_ns, at, calendar);
            let call = ScriptCall {
                node: &self.config.node,
                nodes: self.nodes(),
                server: &self.link.server(),
                lag: self.lag(),
                lost: self.link.lost_for(sent_ns).map(|lost| at.minus(lost)),
                at,
                calendar,
                workspace: &group.id,
                of_workspace: of_workspace.as_ref(),
                of_keys: batch.iter().map(|s| s.key).zip(&of_keys).collect(),
            };
            match self.send(group.part, &call).await {
                Ok(ScriptReply::Totals(now_us, told)) => {
                    self.set_calendar(now_us, CALENDAR_OFF_MAX_US);
                    self.take_in(group, batch, (of_workspace.as_ref(), &of_keys), told, sent_ns);
                    return Ok(());
                }
                Ok(ScriptReply::OtherWindows(now)) if !is_second => {
                    is_second = true;
                    self.set_calendar(now.as_micros(), 0);
                    at = now;
                }
                Ok(ScriptReply::OtherWindows(_)) => {
                    let trouble = CallFailure::Link("its calendar does not stand still".into());
                    fail(group, batch, (of_workspace.as_ref(), &of_keys), &trouble, self.now_ns());
                    return Err(trouble);
                }
                Err(trouble) => {
                    fail(group, batch, (of_workspace.as_ref(), &of_keys), &trouble, self.now_ns());
                    return Err(trouble);
                }
            }
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
        batch: &[Arc<KeyState>],
        (of_workspace, of_keys): (Option<&LeaseRequest>, &[LeaseRequest]),
        told: Vec<ScriptTotals>,
        sent_ns: u64,
    ) {
        let mut told = told.into_iter();
        if let Some((ask, told)) = of_workspace.and_then(|ask| Some((ask, told.next()?))) {
            let mut workspace = group.lock();
            self.learn(group, None, &mut workspace, ask, &told, sent_ns);
        }
        let mut is_left = false;
        for ((subject, ask), told) in batch.iter().zip(of_keys).zip(told) {
            let mut verdicts = Vec::new();
            let mut key = subject.lock();
            self.learn(group, Some(subject), &mut key, ask, &told, sent_ns);
            let mut workspace = of_workspace.is_some().then(|| group.lock());
            hand_out(subject, &mut key, workspace.as_mut(), self.now(), &mut verdicts);
            let is_reading = key.is_reading || workspace.as_ref().is_some_and(|w| w.is_reading);
            drop(workspace);
            if key.waiting.is_empty() {
                key.pool.retire_unless(ask.ahead);
            } else if is_reading {
                group.queue().stalled.push(Arc::clone(subject));
                is_left = true;
            } else if verdicts.is_empty() && ask.waiting > 0 {
                // The call brought nothing, and another one would not, either.
                verdicts.extend(key.waiting.drain(..).map(|w| (w, RequestVerdict::Fallback)));
            } else {
                is_left = true;
                // A call is in flight, or this one would not have been answered.
                self.enqueue(subject, self.now_ns());
            }
            drop(key);
            tell(verdicts);
            subject.list();
        }
        if let Some(ask) = of_workspace
            && !is_left
        {
            group.lock().pool.retire_unless(ask.ahead);
        }
    }

    fn learn(
        &self,
        group: &Arc<WorkspaceGroup>,
        subject: Option<&Arc<KeyState>>,
        state: &mut LeaseState,
        ask: &LeaseRequest,
        told: &ScriptTotals,
        sent_ns: u64,
    ) {
        let now_ns = self.now_ns();
        match told {
            ScriptTotals::Grant(grant) => {
                let returned = ask.returned.0;
                self.config.metrics.counter_units_returned.inc_by(returned);
                self.config.metrics.counter_units_granted.inc_by(grant.units);
                state.pool.answer(ask, grant, sent_ns, now_ns);
                state.ledger = None;
                if grant.is_held_back {
                    state.broken_until_ns = now_ns + nanos(HELD_BACK_FOR);
                } else {
                    state.fallback_since_ns = None;
                }
            }
            ScriptTotals::Unknown => {
                self.on_unknown_subject(&state.pool);
                state.pool.unanswered(ask);
                if !state.is_reading {
                    state.is_reading = true;
                    self.ask_ledger(group, subject.map(Arc::clone));
                }
            }
            ScriptTotals::Old => state.pool.unanswered(ask),
            ScriptTotals::Broken(why) => {
                match subject {
                    Some(subject) => {
                        tracing::warn!(key = %subject.key, why, "counters: Redis script failed for key");
                    }
                    None => {
                        tracing::warn!(workspace = %group.id, why, "counters: Redis script failed for workspace");
                    }
                }
                state.pool.unanswered(ask);
                state.broken_until_ns = now_ns + nanos(BROKEN_FOR);
            }
        }
    }

    /// Reads subjects that Redis does not know from the ledger, and calls again for the requests that wait for them.
    fn ask_ledger(&self, group: &Arc<WorkspaceGroup>, subject: Option<Arc<KeyState>>) {
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
            let (some, mut stalled) = {
                let mut queue = group.queue();
                let count = queue.unknown.len().min(READ_MAX);
                let some: Vec<_> = queue.unknown.drain(..count).collect();
                if some.is_empty() {
                    queue.is_reading = false;
                    return;
                }
                (some, Vec::new())
            };
            let (at, calendar) = (self.now().wall, **group.calendar.load());
            let mut reads = tokio::task::JoinSet::new();
            for subject in some {
                let by = match &subject {
                    Some(subject) => UsageSubject::Key(subject.key),
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
                drop(state);
                stalled.extend(subject);
            }
            stalled.append(&mut group.queue().stalled);
            for subject in stalled {
                self.enqueue(&subject, self.now_ns());
            }
        }
    }
}

fn asks(
    group: &WorkspaceGroup,
    batch: &[Arc<KeyState>],
    now_ns: u64,
    at: Timestamp,
    calendar: Calendar,
) -> (Option<LeaseRequest>, Vec<LeaseRequest>) {
    let mut all = 0;
    let mut of_keys = Vec::with_capacity(batch.len());
    for subject in batch {
        let mut key = subject.lock();
        key.waiting.retain(|w| !w.is_closed());
        let waiting = u64::try_from(key.waiting.len()).unwrap_or(u64::MAX);
        all += waiting;
        let ledger = key.ledgered(at, calendar);
        of_keys.push(LeaseRequest { ledger, ..key.pool.ask(waiting, now_ns, at, calendar) });
    }
    let of_workspace = group.lock_if_counted().map(|mut workspace| {
        let ledger = workspace.ledgered(at, calendar);
        LeaseRequest { ledger, ..workspace.pool.ask(all, now_ns, at, calendar) }
    });
    (of_workspace, of_keys)
}

/// There is no answer: waiting requests are decided without Redis.
fn fail(
    group: &WorkspaceGroup,
    batch: &[Arc<KeyState>],
    (of_workspace, of_keys): (Option<&LeaseRequest>, &[LeaseRequest]),
    trouble: &CallFailure,
    now_ns: u64,
) {
    if let Some(ask) = of_workspace {
        group.lock().pool.unanswered(ask);
    }
    for (subject, ask) in batch.iter().zip(of_keys) {
        let mut key = subject.lock();
        key.pool.unanswered(ask);
        match trouble {
            CallFailure::Key(why) => {
                tracing::warn!(key = %subject.key, why, "counters: Redis script failed for key");
                key.broken_until_ns = now_ns + nanos(BROKEN_FOR);
            }
            CallFailure::Link(why) => {
                tracing::debug!(key = %subject.key, why, "counters: no answer from Redis");
            }
        }
        let verdicts = key.waiting.drain(..).map(|w| (w, RequestVerdict::Fallback)).collect();
        drop(key);
        tell(verdicts);
        subject.list();
    }
}

/// Hands units to waiting requests in order until there are none left; then all are refused, if the refusal is known.
fn hand_out(
    subject: &Arc<KeyState>,
    key: &mut LeaseState,
    workspace: Option<&mut MutexGuard<'_, LeaseState>>,
    now: crate::clock::Now,
    verdicts: &mut Vec<Waiter>,
) {
    let mut workspace = workspace.map(|w| &mut **w);
    while let Some(waiter) = key.waiting.pop_front() {
        if waiter.is_closed() {
            continue;
        }
        if can_spend(key, workspace.as_deref_mut(), now.steady_ns) {
            let told = spend(subject, key, workspace.as_deref_mut(), now);
            verdicts.push((waiter, RequestVerdict::Unit(UndeliveredUnit(Some(told)))));
        } else if let Some(refusal) = refusal(key, workspace.as_deref(), now.steady_ns) {
            verdicts.push((waiter, RequestVerdict::Refused(refusal)));
        } else {
            key.waiting.push_front(waiter);
            return;
        }
    }
}

fn tell(verdicts: Vec<Waiter>) {
    for (waiter, verdict) in verdicts {
        // If the request stopped waiting, its unit is returned when it is dropped.
        drop(waiter.send(verdict));
    }
}
