//! Limits that several nodes share: a request takes a unit that this node already owns, or waits a moment for Redis.
//!
//! Must not know: HTTP, which database keeps the ledger. When Redis is gone, or late, each node does what the config says
//! ([`OnFailure`]) and tells Redis afterwards what was spent meanwhile.
//!
//! *Invariant:* one question per key is on its way at a time, and never more than [`CALLS_MAX`] in all.

use super::lease::{Adjustment, Ask, Grant, Lease, Take};
use super::link::{Link, LinkError, RedisPlace, Trouble, is_no_script};
use super::local::Local;
use super::script::{self, Answer, Ledgered, Subjects};
use super::share::{Known, WINDOWS, share};
use super::{Charge, Charged, Declined, Left, Refusal};
use crate::clock::{Clock, Timestamp};
use crate::metrics::Metrics;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::limit::{Limit, LimitName, Limits, RetryAfter, window_start};
use crate::store::{SpentBy, SpentRow};
use async_trait::async_trait;
use dashmap::DashMap;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

/// The longest a request waits for Redis; 20 ms are promised, and a timer may fire a little late.
pub const PATIENCE: Duration = Duration::from_millis(15);
/// Most questions on their way at once.
const CALLS_MAX: usize = 1_024;
/// Most requests of one key that wait for one answer.
const WAITING_MAX: usize = 8_192;
/// A question without an answer for so long does not keep the next from being asked.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);
/// How often what is unspent is looked through.
const SWEEP_EVERY: Duration = Duration::from_millis(50);
/// Most keys settled in one sweep: when Redis comes back, it is not run over.
const SWEPT_MAX: usize = 256;
/// How long a key that Redis chokes on is left alone.
const BROKEN_FOR: Duration = Duration::from_secs(1);
/// How long the last give-back may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// A share of nothing may be more when Redis is back, which is looked for about this often.
const SHARE_RETRY: Duration = Duration::from_secs(1);

/// What to do while Redis cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Each node enforces its share of each limit.
    Share,
    /// Refuse requests.
    Deny,
    /// Admit requests; they are counted when Redis is back.
    Allow,
}

/// Where spending is kept for good.
#[async_trait]
pub trait SpentSource: Send + Sync + 'static {
    /// What `subject` has spent of the windows that contain `at`; none when that cannot be told now.
    async fn spent_of(&self, subject: &SpentBy, at: Timestamp) -> Option<SpentRow>;
}

/// What shared counters need.
pub struct LeasesConfig {
    /// Where Redis is.
    pub place: RedisPlace,
    /// What to do without it.
    pub on_failure: OnFailure,
    /// This node's name; no other node may have it.
    pub node: String,
    /// How many nodes live, this one included.
    pub nodes: Box<dyn Fn() -> usize + Send + Sync>,
    /// From what an emptied Redis is filled.
    pub ledger: Arc<dyn SpentSource>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Where connections live.
    pub io: Handle,
}

/// Counters shared by several nodes.
pub struct Leases {
    config: LeasesConfig,
    link: Arc<Link>,
    local: Arc<Local>,
    keys: DashMap<KeyId, Arc<Subject>>,
    workspaces: DashMap<WorkspaceId, Known>,
    calls: Arc<Semaphore>,
    /// Keys of which Redis will have to hear though nobody may ask.
    listed: Mutex<HashSet<KeyId>>,
    me: Weak<Self>,
}

/// A key on this node.
struct Subject {
    key: KeyId,
    workspace: WorkspaceId,
    leases: Weak<Leases>,
    listed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lease: Lease,
    waiting: VecDeque<oneshot::Sender<Verdict>>,
    /// When the question on its way was begun, in steady ns.
    asking_since_ns: Option<u64>,
    /// Which question that is; an answer to another comes too late.
    turn: u64,
    known: Option<Known>,
    ledger_asked_ns: Option<u64>,
    broken_until_ns: u64,
    /// When Redis was last well, seen from the first request that it failed.
    trouble_since_ns: Option<u64>,
}

/// One request's unit. Dropping it ends its place in flight.
pub(super) struct Unit {
    subject: Arc<Subject>,
    at_us: i64,
    ended: bool,
}

/// What a waiting request is told.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request gets a unit; a box would cost each an allocation"
)]
enum Verdict {
    Unit(Undelivered),
    Refused(Box<Refusal>),
    /// Redis cannot be asked.
    Alone,
}

/// A unit on its way to a request that may have stopped waiting; then it goes back.
struct Undelivered(Option<(Unit, Left)>);

/// What can be told at once.
#[expect(clippy::large_enum_variant, reason = "nearly every request is told at once")]
enum Quick {
    Verdict(Verdict),
    Wait(oneshot::Receiver<Verdict>),
}

/// Why a question is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Serve,
    Settle,
}

impl Leases {
    /// Shared counters. Redis that is gone is looked for; Redis that may throw limits away is refused.
    pub async fn start(config: LeasesConfig) -> Result<Arc<Self>, LinkError> {
        let link = Arc::new(Link::new(config.place.clone(), &config.node, Arc::clone(&config.clock)));
        match link.look().await {
            Ok(()) => {}
            Err(error @ LinkError::Unfit(_)) => return Err(error),
            Err(LinkError::Gone(why)) => tracing::warn!(why, "counters: started without Redis"),
        }
        let io = config.io.clone();
        let leases = Arc::new_cyclic(|me| Self {
            config,
            link: Arc::clone(&link),
            local: Arc::default(),
            keys: DashMap::new(),
            workspaces: DashMap::new(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            listed: Mutex::default(),
            me: me.clone(),
        });
        io.spawn(link.keep(Arc::downgrade(&leases)));
        io.spawn(sweep(Arc::downgrade(&leases)));
        Ok(leases)
    }

    /// Charges all limits of a request, or none of them.
    pub(super) async fn charge(&self, charge: &Charge<'_>) -> Result<Charged, Declined> {
        let deadline = Instant::now() + PATIENCE;
        let subject = self.subject(charge);
        let verdict = match self.quick(&subject, charge) {
            Quick::Verdict(verdict) => verdict,
            Quick::Wait(answer) => match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(_)) | Err(_) => Verdict::Alone,
            },
        };
        match verdict {
            Verdict::Unit(mut unit) => match unit.0.take() {
                Some((unit, left)) => {
                    let taken = self.local.note(charge, self.config.clock.now());
                    Ok(Charged { taken, unit: Some(unit), left, degraded: false })
                }
                None => Err(Declined::Unavailable),
            },
            Verdict::Refused(refusal) => Err(Declined::Limit { refusal, degraded: false }),
            Verdict::Alone => self.alone(&subject, charge, deadline).await,
        }
    }

    /// From what is in hand, or a place in the queue for what Redis will say.
    fn quick(&self, subject: &Arc<Subject>, charge: &Charge<'_>) -> Quick {
        let mut limits = charge.key_limits.clone();
        limits.extend_from_slice(charge.workspace_limits);
        let now_ns = self.now_ns();
        let mut state = subject.lock();
        match state.lease.take(&limits, now_ns) {
            Take::Unit(at_us) => {
                if state.lease.is_low() && self.can_ask(&state, now_ns) {
                    self.begin(subject, &mut state, Purpose::Serve, now_ns);
                }
                let unit = Unit { subject: Arc::clone(subject), at_us, ended: false };
                let left = state.lease.left(now_ns);
                drop(state);
                subject.list();
                Quick::Verdict(Verdict::Unit(Undelivered(Some((unit, left)))))
            }
            Take::Refused(refusal) => Quick::Verdict(Verdict::Refused(refusal)),
            Take::Ask if !self.can_ask(&state, now_ns) || state.waiting.len() >= WAITING_MAX => {
                Quick::Verdict(Verdict::Alone)
            }
            Take::Ask => {
                let (tell, answer) = oneshot::channel();
                state.waiting.push_back(tell);
                let begun =
                    state.is_asking(now_ns) || self.begin(subject, &mut state, Purpose::Serve, now_ns);
                if begun { Quick::Wait(answer) } else { Quick::Verdict(Verdict::Alone) }
            }
        }
    }

    fn can_ask(&self, state: &State, now_ns: u64) -> bool {
        self.link.is_up() && now_ns >= state.broken_until_ns
    }

    /// Sends somebody to ask, unless somebody is on the way or too many are. Answers whether somebody is on the way now.
    fn begin(&self, subject: &Arc<Subject>, state: &mut State, purpose: Purpose, now_ns: u64) -> bool {
        if state.is_asking(now_ns) {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else { return false };
        let Some(me) = self.me.upgrade() else { return false };
        state.turn += 1;
        state.asking_since_ns = Some(now_ns);
        self.config.io.spawn(me.serve(Arc::clone(subject), state.turn, purpose, permit));
        true
    }

    /// Asks until nobody waits.
    async fn serve(
        self: Arc<Self>,
        subject: Arc<Subject>,
        turn: u64,
        purpose: Purpose,
        permit: OwnedSemaphorePermit,
    ) {
        let mut first = true;
        loop {
            let (ask, sent_ns) = {
                let now_ns = self.now_ns();
                let mut state = subject.lock();
                if state.turn != turn {
                    break;
                }
                state.waiting.retain(|w| !w.is_closed());
                let waiting = u64::try_from(state.waiting.len()).unwrap_or(u64::MAX);
                let ask = match (purpose, waiting) {
                    (Purpose::Settle, 0) if first => state.lease.settle(now_ns),
                    (_, 0) if !first => None,
                    _ => Some(state.lease.ask(waiting, now_ns)),
                };
                let Some(ask) = ask else {
                    state.asking_since_ns = None;
                    break;
                };
                state.asking_since_ns = Some(now_ns);
                (ask, now_ns)
            };
            first = false;
            let answer = self.put(&subject, &ask).await;
            let more = self.take_in(&subject, turn, &ask, sent_ns, answer);
            if !more {
                break;
            }
        }
        drop(permit);
        subject.list();
    }

    /// Asks once; fills Redis from the ledger first if it has forgotten the key.
    async fn put(&self, subject: &Subject, ask: &Ask) -> Result<(Grant, Vec<[u64; 5]>), Failed> {
        let subjects = self.subjects(subject, ask);
        match self.call(&subjects, ask, None).await? {
            Answer::Grant(grant, used) => return Ok((grant, used)),
            Answer::Unknown => {}
        }
        let ledger = self.ledgered(subject, &subjects, ask).await.ok_or(Failed::Unheard)?;
        match self.call(&subjects, ask, Some(&ledger)).await? {
            Answer::Grant(grant, used) => Ok((grant, used)),
            Answer::Unknown => Err(Failed::Trouble(Trouble::Link("does not keep what it is given".into()))),
        }
    }

    async fn call(
        &self,
        subjects: &Subjects<'_>,
        ask: &Ask,
        ledger: Option<&Ledgered>,
    ) -> Result<Answer, Failed> {
        self.config.metrics.counter_calls.inc();
        let command = script::command(subjects, ask, ledger, true);
        let value = match self.link.ask(&command, PATIENCE).await {
            Err(trouble) if is_no_script(&trouble) => {
                self.link.ask(&script::command(subjects, ask, ledger, false), PATIENCE).await
            }
            answered => answered,
        };
        let value = value.map_err(Failed::Trouble)?;
        script::read(&value, ask, subjects)
            .ok_or_else(|| Failed::Trouble(Trouble::Link("answers what is no answer".into())))
    }

    /// Takes in an answer and tells those who wait. Answers whether to ask again.
    fn take_in(
        &self,
        subject: &Arc<Subject>,
        turn: u64,
        ask: &Ask,
        sent_ns: u64,
        answer: Result<(Grant, Vec<[u64; 5]>), Failed>,
    ) -> bool {
        let now_ns = self.now_ns();
        let mut told = Vec::new();
        let mut state = subject.lock();
        let on_time = state.turn == turn;
        let more = match answer {
            Ok((grant, used)) if on_time => {
                self.learn(subject, &mut state, &grant, &used);
                state.lease.answer(ask, &grant, sent_ns, now_ns);
                state.trouble_since_ns = None;
                hand_out(subject, &mut state, now_ns, &mut told);
                if state.waiting.is_empty() && ask.ahead == 0 {
                    // Taken for those who waited, with the whole burst: not to be kept for later.
                    state.lease.retire();
                }
                !state.waiting.is_empty()
            }
            Ok((grant, _)) => {
                state.lease.too_late(&grant);
                false
            }
            Err(failed) => {
                self.note_failure(subject, &mut state, ask, failed, now_ns);
                if on_time {
                    told.extend(state.waiting.drain(..).map(|w| (w, Verdict::Alone)));
                }
                false
            }
        };
        if on_time && !more {
            state.asking_since_ns = None;
        }
        drop(state);
        for (waiter, verdict) in told {
            // Whoever stopped waiting gets nothing; a unit goes back as it is dropped.
            drop(waiter.send(verdict));
        }
        more
    }

    fn note_failure(&self, subject: &Subject, state: &mut State, ask: &Ask, failed: Failed, now_ns: u64) {
        match failed {
            Failed::Unheard => {
                state.lease.unheard(ask);
                // The ledger is asked again, but not by every request.
                state.broken_until_ns = now_ns + nanos(BROKEN_FOR);
            }
            Failed::Trouble(Trouble::Key(why)) => {
                tracing::warn!(key = %subject.key, why, "counters: Redis cannot count this key");
                state.lease.unanswered(ask);
                state.broken_until_ns = now_ns + nanos(BROKEN_FOR);
            }
            Failed::Trouble(Trouble::Link(why)) => {
                self.link.lose(&why);
                state.lease.unanswered(ask);
            }
        }
    }

    fn learn(&self, subject: &Subject, state: &mut State, grant: &Grant, used: &[[u64; 5]]) {
        let at = Timestamp::from_micros(grant.now_us);
        if let Some(used) = used.first() {
            let own = self.local.used(&SpentBy::Key(subject.key), at);
            state.known = Some(Known { at, used: *used, own });
        }
        if let Some(used) = used.get(1) {
            let own = self.local.used(&SpentBy::Workspace(subject.workspace.clone()), at);
            self.workspaces.insert(subject.workspace.clone(), Known { at, used: *used, own });
        }
    }

    // === without Redis ===

    /// Decides by this node alone.
    async fn alone(
        &self,
        subject: &Arc<Subject>,
        charge: &Charge<'_>,
        deadline: Instant,
    ) -> Result<Charged, Declined> {
        self.config.metrics.counters_degraded.inc();
        let nodes = u64::try_from((self.config.nodes)()).unwrap_or(u64::MAX).max(1);
        let (taken, left) = match self.config.on_failure {
            OnFailure::Deny => return Err(Declined::Unavailable),
            OnFailure::Allow => {
                let now = self.config.clock.now();
                (self.local.note(charge, now), subject.lock().lease.left(now.steady_ns))
            }
            OnFailure::Share => {
                self.remember(subject, charge, deadline).await;
                let shared = self.share(subject, charge, nodes);
                shared.map_err(|refusal| Declined::Limit { refusal, degraded: true })?
            }
        };
        let now = self.config.clock.now();
        let at_us = subject.lock().lease.owe(now.steady_ns, now.wall);
        subject.list();
        let unit = Unit { subject: Arc::clone(subject), at_us, ended: false };
        Ok(Charged { taken, unit: Some(unit), left, degraded: true })
    }

    /// Charges this node's share of every limit.
    fn share(
        &self,
        subject: &Subject,
        charge: &Charge<'_>,
        nodes: u64,
    ) -> Result<(super::local::Taken, Left), Box<Refusal>> {
        let now = self.config.clock.now();
        let (known, since_ns) = {
            let mut state = subject.lock();
            (state.known, *state.trouble_since_ns.get_or_insert_with(|| self.link.last_well_ns()))
        };
        let workspace_known = self.workspaces.get(charge.workspace).map(|k| *k);
        let own = Charge {
            key_limits: &share(charge.key_limits, nodes, known.as_ref(), now.wall),
            workspace_limits: &share(charge.workspace_limits, nodes, workspace_known.as_ref(), now.wall),
            ..*charge
        };
        // One node alone has spent all that was spent, and knows it.
        let empty_at_ns = (nodes > 1).then_some(since_ns);
        let told = |left: &mut Left| {
            let whole = charge.key_limits.iter().chain(charge.workspace_limits);
            left.iter_mut().zip(whole).for_each(|(shown, limit)| shown.0 = *limit);
        };
        match self.local.charge(&own, now, empty_at_ns) {
            Ok((taken, mut left)) => {
                told(&mut left);
                Ok((taken, left))
            }
            Err(mut refusal) => {
                told(&mut refusal.left);
                let name = refusal.refused.limit.name;
                if let Some((limit, _)) = refusal.left.iter().find(|(l, _)| l.name == name) {
                    refusal.refused.limit = *limit;
                }
                if refusal.refused.retry == RetryAfter::Never && refusal.refused.limit.max() > 0 {
                    refusal.refused.retry = RetryAfter::Wait(SHARE_RETRY);
                }
                Err(refusal)
            }
        }
    }

    /// Reads from the ledger what Redis never told of this key, if there is time.
    async fn remember(&self, subject: &Subject, charge: &Charge<'_>, deadline: Instant) {
        let now = self.config.clock.now();
        {
            let mut state = subject.lock();
            let lately = state.ledger_asked_ns.is_some_and(|at| now.steady_ns < at + nanos(BROKEN_FOR));
            if state.known.is_some() || lately {
                return;
            }
            state.ledger_asked_ns = Some(now.steady_ns);
        }
        let mut limits: Limits = charge.key_limits.clone();
        limits.extend_from_slice(charge.workspace_limits);
        let counted = !charge.workspace_limits.is_empty();
        let rows = self.rows(subject, counted, now.wall);
        let Ok(Some(rows)) = tokio::time::timeout_at(deadline, rows).await else { return };
        let known = |row: &SpentRow| Known {
            at: now.wall,
            used: [row.minute, row.hour, row.day, row.month, row.total],
            own: self.local.used(&row.subject, now.wall),
        };
        if let Some(row) = rows.first() {
            subject.lock().known.get_or_insert(known(row));
        }
        if let Some(row) = rows.get(1) {
            self.workspaces.entry(subject.workspace.clone()).or_insert(known(row));
        }
    }

    /// What the ledger knows, and what this node has seen beyond that.
    async fn ledgered(&self, subject: &Subject, subjects: &Subjects<'_>, ask: &Ask) -> Option<Ledgered> {
        let at = self.config.clock.now().wall;
        let mut rows = self.rows(subject, subjects.workspace.1, at).await?;
        let seen = [subject.lock().known, self.workspaces.get(&subject.workspace).map(|k| *k)];
        for (row, seen) in rows.iter_mut().zip(seen) {
            raise(row, seen.as_ref(), &ask.adjustments, at);
        }
        Some(Ledgered { at, rows })
    }

    async fn rows(&self, subject: &Subject, counted: bool, at: Timestamp) -> Option<Vec<SpentRow>> {
        let mut rows = vec![self.config.ledger.spent_of(&SpentBy::Key(subject.key), at).await?];
        if counted {
            let workspace = SpentBy::Workspace(subject.workspace.clone());
            rows.push(self.config.ledger.spent_of(&workspace, at).await?);
        }
        Some(rows)
    }

    // === housekeeping ===

    /// Gives back all that is unspent.
    pub(super) async fn close(&self) {
        let keys: Vec<Arc<Subject>> = self.keys.iter().map(|k| Arc::clone(k.value())).collect();
        let give_back = async {
            for subject in keys {
                let ask = {
                    let mut state = subject.lock();
                    state.lease.retire();
                    state.lease.settle(self.now_ns())
                };
                let Some(ask) = ask else { continue };
                if !self.link.is_up() || self.put(&subject, &ask).await.is_err() {
                    tracing::warn!(key = %subject.key, "counters: unspent units could not be given back");
                }
            }
        };
        if tokio::time::timeout(CLOSE_WITHIN, give_back).await.is_err() {
            tracing::warn!("counters: not all unspent units could be given back in time");
        }
    }

    pub(super) fn forget(&self, key: KeyId) {
        self.keys.remove(&key);
    }

    pub(super) fn local(&self) -> Arc<Local> {
        Arc::clone(&self.local)
    }

    fn subject(&self, charge: &Charge<'_>) -> Arc<Subject> {
        if let Some(found) = self.keys.get(&charge.key) {
            return Arc::clone(&found);
        }
        let new = || {
            Arc::new(Subject {
                key: charge.key,
                workspace: charge.workspace.clone(),
                leases: self.me.clone(),
                listed: AtomicBool::new(false),
                state: Mutex::default(),
            })
        };
        Arc::clone(&self.keys.entry(charge.key).or_insert_with(new))
    }

    fn subjects<'r>(&'r self, subject: &'r Subject, ask: &Ask) -> Subjects<'r> {
        let of_workspace = |l: &Limit| matches!(l.name, LimitName::Workspace(_));
        let key_limits = ask.limits.iter().take_while(|l| !of_workspace(l)).count();
        Subjects {
            key: subject.key,
            workspace: (&subject.workspace, key_limits < ask.limits.len()),
            key_limits,
            node: &self.config.node,
            nodes: u64::try_from((self.config.nodes)()).unwrap_or(u64::MAX).max(1),
        }
    }

    fn now_ns(&self) -> u64 {
        self.config.clock.now().steady_ns
    }

    /// Settles the keys that nobody asked for lately. Answers how many are left for later.
    fn settle(&self) {
        if !self.link.is_up() {
            return;
        }
        let now_ns = self.now_ns();
        let listed: Vec<KeyId> = {
            let mut all = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            let some = all.iter().copied().take(SWEPT_MAX).collect();
            for key in &some {
                all.remove(key);
            }
            some
        };
        for key in listed {
            let Some(subject) = self.keys.get(&key).map(|s| Arc::clone(&s)) else { continue };
            subject.listed.store(false, Ordering::Release);
            let mut state = subject.lock();
            let asked = self.can_ask(&state, now_ns)
                && !state.is_asking(now_ns)
                && state.lease.is_due(now_ns)
                && self.begin(&subject, &mut state, Purpose::Settle, now_ns);
            drop(state);
            if !asked {
                subject.list();
            }
        }
    }
}

/// Why there is no answer.
enum Failed {
    /// Nothing was done: the ledger could not tell what to fill Redis with.
    Unheard,
    Trouble(Trouble),
}

/// Hands units to those who wait, first come first served, until there are none; then all are refused, if that is known.
fn hand_out(
    subject: &Arc<Subject>,
    state: &mut State,
    now_ns: u64,
    told: &mut Vec<(oneshot::Sender<Verdict>, Verdict)>,
) {
    while let Some(waiter) = state.waiting.pop_front() {
        if waiter.is_closed() {
            continue;
        }
        if let Some(at_us) = state.lease.spend(now_ns) {
            let unit = Unit { subject: Arc::clone(subject), at_us, ended: false };
            let left = state.lease.left(now_ns);
            told.push((waiter, Verdict::Unit(Undelivered(Some((unit, left))))));
        } else if let Some(refusal) = state.lease.refusal(now_ns) {
            told.push((waiter, Verdict::Refused(refusal)));
        } else {
            state.waiting.push_front(waiter);
            return;
        }
    }
}

/// The ledger lags a moment behind: this node may have seen more, and what it spent without Redis may not be in it.
fn raise(row: &mut SpentRow, seen: Option<&Known>, owed: &[Adjustment], at: Timestamp) {
    let used = [&mut row.minute, &mut row.hour, &mut row.day, &mut row.month, &mut row.total];
    for (window, (used, per)) in used.into_iter().zip(WINDOWS).enumerate() {
        let start = window_start(per, at);
        let seen = seen.filter(|s| window_start(per, s.at) == start).map_or(0, |s| s.used[window]);
        let here = |a: &&Adjustment| window_start(per, Timestamp::from_micros(a.at_us)) == start;
        let owed: u64 = owed.iter().filter(here).filter_map(|a| u64::try_from(a.units).ok()).sum();
        *used = (*used).max(seen.saturating_add(owed));
    }
}

async fn sweep(leases: Weak<Leases>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(leases) = leases.upgrade() else { return };
        leases.settle();
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

// === impl State, Subject, Unit, Undelivered ===

impl State {
    fn is_asking(&self, now_ns: u64) -> bool {
        self.asking_since_ns.is_some_and(|since| now_ns < since + nanos(ABANDONED_AFTER))
    }
}

impl Subject {
    /// Nothing that runs under this lock can panic half-way, so a poisoned one holds sound values.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that Redis hears what it should, though nobody may ask for this key again.
    fn list(&self) {
        if self.listed.load(Ordering::Acquire) || !self.lock().lease.owes() {
            return;
        }
        if self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(leases) = self.leases.upgrade() {
            leases.listed.lock().unwrap_or_else(PoisonError::into_inner).insert(self.key);
        }
    }
}

impl Unit {
    /// The request never reached a backend.
    pub(super) fn give_back(mut self) {
        self.ended = true;
        self.subject.lock().lease.give_back(self.at_us);
        self.subject.list();
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if !self.ended {
            self.subject.lock().lease.end();
        }
    }
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        if let Some((unit, _)) = self.0.take() {
            unit.give_back();
        }
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit").field("key", &self.subject.key).finish_non_exhaustive()
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}
