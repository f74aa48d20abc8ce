//! Limits shared by several nodes: a request takes units that this node holds already, or waits a moment for Redis.
//!
//! Must not know: HTTP, which database has the ledger. When Redis is unreachable or late, each node does what the config
//! says ([`OnFailure`]), and reports to Redis afterwards what was spent meanwhile.
//!
//! *Invariant:* at most one call per workspace is in flight, and at most [`CALLS_MAX`] in all.
//! *Invariant:* the lock of a key is taken before that of its workspace, and that of a queue last.

mod bounded;
mod call;
pub(super) mod endpoint;
mod fallback;
pub(super) mod link;
pub mod pool;
pub(super) mod script;
mod settle;
mod transport;

use super::{Charge, ChargeError, Charged, LimitsLeft, Refusal};
use crate::clock::{Clock, Now, Timestamp};
use crate::metrics::Metrics;
use crate::model::calendar::Calendar;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::outage::OnFailure;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::Limits;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use dashmap::DashMap;
use endpoint::{LinkError, RedisEndpoint};
use link::Link;
use pool::{SubjectPool, TakenUnits, WINDOWS};
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

/// Longest wait of a request for Redis; 20 ms are promised, and a timer may be a little late.
pub const PATIENCE: Duration = Duration::from_millis(15);
/// Most calls in flight: about as many as Redis answers while a request waits.
const CALLS_MAX: usize = 128;
/// Most requests of one key that wait for an answer.
const WAITING_MAX: usize = 8_192;
/// A call without an answer for this long no longer blocks the next one.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);
/// How long a subject is not called for after an error of Redis or the ledger.
const BROKEN_FOR: Duration = Duration::from_secs(1);
/// How soon a subject is called for again that Redis counts but does not grant yet.
const HELD_BACK_FOR: Duration = Duration::from_millis(50);
/// Tolerated difference between two calendars, in µs.
const CALENDAR_OFF_MAX_US: u64 = 50_000;
/// The assumed minimum lag of the ledger: a healthy node writes a batch every half second at the latest.
const LEDGER_LAG: Duration = Duration::from_secs(2);

/// The ledger, as the source of totals.
#[async_trait]
pub trait TotalsSource: Send + Sync + 'static {
    /// The usage of `subject` in the windows of `calendar` that contain `at`; none if it is unknown at the moment.
    async fn totals_of(
        &self,
        subject: &UsageSubject,
        at: Timestamp,
        calendar: Calendar,
    ) -> Option<UsageTotals>;

    /// How old a record of this node may be that is not stored yet.
    fn behind(&self) -> Duration;
}

/// Configuration and dependencies of shared counters.
pub struct LeasesConfig {
    /// The address of Redis.
    pub place: RedisEndpoint,
    /// What to do without Redis.
    pub on_failure: OnFailure,
    /// Whether limits without a promise are divided by the number of nodes then; otherwise they refuse.
    pub share_unknown: bool,
    /// This node's name; it must be unique.
    pub node: String,
    /// The number of live nodes, this one included.
    pub nodes: Box<dyn Fn() -> usize + Send + Sync>,
    /// The source that an empty Redis is filled from.
    pub ledger: Arc<dyn TotalsSource>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The runtime for connections.
    pub io: Handle,
}

/// Counters shared by several nodes.
pub struct Leases {
    config: LeasesConfig,
    link: Arc<Link>,
    keys: DashMap<KeyId, Arc<KeyState>>,
    groups: DashMap<WorkspaceId, Arc<WorkspaceGroup>>,
    calls: Arc<Semaphore>,
    /// Keys that must be reported to Redis even if no request comes.
    listed: Mutex<VecDeque<KeyId>>,
    /// Recent lag of the ledger, in ns.
    lag_ns: AtomicU64,
    /// When everything was last reported again, in steady ns.
    reported_again_ns: AtomicU64,
    /// How far Redis' calendar is ahead of this node's, in µs: windows are those of Redis, also while it is unreachable.
    ahead_us: AtomicI64,
    me: Weak<Self>,
}

/// A workspace on this node: its keys share calls.
struct WorkspaceGroup {
    id: WorkspaceId,
    /// Workspaces with the same part fail together.
    part: u32,
    /// Whether limits are counted on the workspace itself.
    is_counted: AtomicBool,
    /// The calendar of its windows, by the plan of the last request.
    calendar: ArcSwap<Calendar>,
    state: Mutex<LeaseState>,
    queue: Mutex<CallQueue>,
}

#[derive(Default)]
struct CallQueue {
    /// Keys for the next call.
    pending: VecDeque<Arc<KeyState>>,
    /// When the call in flight was sent, in steady ns.
    asking_since_ns: Option<u64>,
    /// The series of calls that it belongs to; an abandoned series is followed by another.
    turn: u64,
    /// Subjects that Redis does not know and that must be read from the ledger; none stands for the workspace.
    unknown: VecDeque<Option<Arc<KeyState>>>,
    is_reading: bool,
    /// Keys with requests that wait for the ledger.
    stalled: Vec<Arc<KeyState>>,
}

/// A key on this node.
struct KeyState {
    key: KeyId,
    group: Arc<WorkspaceGroup>,
    leases: Weak<Leases>,
    /// Whether it is in `listed`, and whether it is in the queue of the next call.
    is_listed: AtomicBool,
    is_queued: AtomicBool,
    state: Mutex<LeaseState>,
}

/// The state of a key, or of a workspace.
#[derive(Default)]
struct LeaseState {
    pool: SubjectPool,
    /// Waiting requests of a key.
    waiting: VecDeque<oneshot::Sender<RequestVerdict>>,
    broken_until_ns: u64,
    /// Totals from the ledger, with their time and calendar, until Redis is filled with them.
    ledger: Option<(Timestamp, Calendar, UsageTotals)>,
    is_reading: bool,
    /// When Redis last worked before the first request that was decided without it since.
    fallback_since_ns: Option<u64>,
}

/// The charge of one request. Dropping it ends the request in flight.
pub(super) struct LeasedUnit {
    subject: Arc<KeyState>,
    of_key: TakenUnits,
    of_workspace: Option<TakenUnits>,
    is_ended: bool,
}

/// A place in flight for a request that is not charged yet.
pub(super) struct HeldSlot(Arc<KeyState>);

/// The result for a waiting request.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request gets a unit; a box would cost each an allocation"
)]
enum RequestVerdict {
    Unit(UndeliveredUnit),
    Refused(Box<Refusal>),
    /// Redis cannot be called.
    Fallback,
}

/// A unit for a request that may have stopped waiting; then it is returned.
struct UndeliveredUnit(Option<(LeasedUnit, LimitsLeft)>);

/// A result without waiting, or a wait.
#[expect(clippy::large_enum_variant, reason = "nearly every request is told at once")]
enum LocalAnswer {
    Verdict(RequestVerdict),
    Wait(oneshot::Receiver<RequestVerdict>),
}

impl Leases {
    /// Starts shared counters. An unreachable Redis is looked for in the background; one that may evict limits is refused.
    pub async fn start(config: LeasesConfig) -> Result<Arc<Self>, LinkError> {
        let (place, clock) = (config.place.clone(), Arc::clone(&config.clock));
        let link = Arc::new(Link::new(place, &config.node, clock, Arc::clone(&config.metrics)));
        match link.probe_once().await {
            Ok(()) => {}
            Err(error @ LinkError::Unfit(_)) => return Err(error),
            Err(LinkError::Gone(why)) => {
                tracing::warn!(why, "counters: Redis unavailable at startup, limits are enforced per node");
            }
        }
        let io = config.io.clone();
        let leases = Arc::new_cyclic(|me| Self {
            config,
            link: Arc::clone(&link),
            keys: DashMap::new(),
            groups: DashMap::new(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            listed: Mutex::default(),
            lag_ns: AtomicU64::new(nanos(LEDGER_LAG)),
            reported_again_ns: AtomicU64::new(0),
            ahead_us: AtomicI64::new(0),
            me: me.clone(),
        });
        io.spawn(link.maintain(Arc::downgrade(&leases)));
        io.spawn(settle::sweep(Arc::downgrade(&leases)));
        Ok(leases)
    }

    /// Sets the endpoint for the next connection to Redis, e.g. with new certificates or passwords.
    pub(super) fn set_place(&self, place: RedisEndpoint) {
        self.link.set_place(place);
    }

    /// Charges all limits of a request, or none.
    pub(super) async fn charge(&self, charge: &Charge<'_>) -> Result<Charged, ChargeError> {
        let deadline = Instant::now() + PATIENCE;
        let subject = self.subject(charge.key, charge.workspace);
        let (quick, began_ns) = self.quick(&subject, charge);
        let answer = match quick {
            LocalAnswer::Verdict(RequestVerdict::Fallback) => None,
            LocalAnswer::Verdict(verdict) => return charged(verdict),
            LocalAnswer::Wait(answer) => {
                tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok)
            }
        };
        let charged = match answer {
            None | Some(RequestVerdict::Fallback) => self.charge_fallback(&subject, charge),
            Some(verdict) => charged(verdict),
        };
        let waited = Duration::from_nanos(self.now_ns().saturating_sub(began_ns));
        self.config.metrics.counter_wait_seconds.observe(waited.as_secs_f64());
        charged
    }

    /// Takes a place in flight for a request that is charged later, as far as this process knows.
    pub(super) fn hold(&self, charge: &Charge<'_>) -> Result<HeldSlot, Box<Refusal>> {
        let subject = self.subject(charge.key, charge.workspace);
        subject.lock().pool.hold(charge.key_limits)?;
        Ok(HeldSlot(subject))
    }

    /// Decides from granted units, or queues the request for the next answer of Redis.
    fn quick(&self, subject: &Arc<KeyState>, charge: &Charge<'_>) -> (LocalAnswer, u64) {
        let now = self.now();
        let group = &subject.group;
        let mut key = subject.lock();
        let mut workspace = group.counted(charge.workspace_limits);
        if **group.calendar.load() != charge.key_limits.calendar {
            group.calendar.store(Arc::new(charge.key_limits.calendar));
        }
        key.pool.attempt(charge.key_limits);
        if let Some(workspace) = workspace.as_deref_mut() {
            workspace.pool.attempt(charge.workspace_limits);
        }
        if can_spend(&mut key, workspace.as_deref_mut(), now.steady_ns) {
            let told = spend(subject, &mut key, workspace.as_deref_mut(), now);
            let key_wants = key.pool.wants_more();
            let wants = workspace.as_deref_mut().is_some_and(|w| w.pool.wants_more()) || key_wants;
            let may_ask = wants && self.can_call_redis(group, &key, now.steady_ns);
            drop(workspace);
            drop(key);
            if may_ask {
                self.enqueue(subject, now.steady_ns);
            }
            subject.list();
            return (LocalAnswer::Verdict(RequestVerdict::Unit(UndeliveredUnit(Some(told)))), now.steady_ns);
        }
        if let Some(refusal) = refusal(&key, workspace.as_deref(), now.steady_ns) {
            return (LocalAnswer::Verdict(RequestVerdict::Refused(refusal)), now.steady_ns);
        }
        let is_workspace_broken = workspace.as_ref().is_some_and(|w| now.steady_ns < w.broken_until_ns);
        drop(workspace);
        if is_workspace_broken
            || !self.can_call_redis(group, &key, now.steady_ns)
            || key.waiting.len() >= WAITING_MAX
        {
            return (LocalAnswer::Verdict(RequestVerdict::Fallback), now.steady_ns);
        }
        let (tell, answer) = oneshot::channel();
        key.waiting.push_back(tell);
        drop(key);
        // If the call in flight is late already, do not wait for it.
        let is_asked = self.enqueue(subject, now.steady_ns) && !group.queue().is_late(now.steady_ns);
        (
            if is_asked { LocalAnswer::Wait(answer) } else { LocalAnswer::Verdict(RequestVerdict::Fallback) },
            now.steady_ns,
        )
    }

    fn can_call_redis(&self, group: &WorkspaceGroup, key: &LeaseState, now_ns: u64) -> bool {
        now_ns >= key.broken_until_ns && self.link.is_up_for(group.part, now_ns)
    }

    pub(super) fn forget(&self, key: KeyId) {
        self.keys.remove(&key);
    }

    fn subject(&self, key: KeyId, workspace: &WorkspaceId) -> Arc<KeyState> {
        if let Some(found) = self.keys.get(&key) {
            return Arc::clone(&found);
        }
        let new = || {
            Arc::new(WorkspaceGroup {
                id: workspace.clone(),
                part: crc32fast::hash(workspace.as_str().as_bytes()),
                is_counted: AtomicBool::new(false),
                calendar: ArcSwap::default(),
                state: Mutex::default(),
                queue: Mutex::default(),
            })
        };
        let group = Arc::clone(&self.groups.entry(workspace.clone()).or_insert_with(new));
        let new = || {
            Arc::new(KeyState {
                key,
                group,
                leases: self.me.clone(),
                is_listed: AtomicBool::new(false),
                is_queued: AtomicBool::new(false),
                state: Mutex::default(),
            })
        };
        Arc::clone(&self.keys.entry(key).or_insert_with(new))
    }

    fn nodes(&self) -> u64 {
        u64::try_from((self.config.nodes)()).unwrap_or(u64::MAX).max(1)
    }

    /// How far the ledger may lag.
    fn lag(&self) -> Duration {
        Duration::from_nanos(self.lag_ns.load(Ordering::Relaxed))
    }

    fn now_ns(&self) -> u64 {
        self.config.clock.now().steady_ns
    }

    /// The current time on Redis' calendar.
    fn now(&self) -> Now {
        let now = self.config.clock.now();
        let ahead_us = self.ahead_us.load(Ordering::Relaxed);
        Now { wall: Timestamp::from_micros(now.wall.as_micros().saturating_add(ahead_us)), ..now }
    }

    /// Sets this node's calendar from an answer of Redis, unless it is correct to within `off_max_us`.
    fn set_calendar(&self, redis_us: i64, off_max_us: u64) {
        let ahead_us = redis_us.saturating_sub(self.config.clock.now().wall.as_micros());
        if ahead_us.abs_diff(self.ahead_us.load(Ordering::Relaxed)) > off_max_us {
            self.ahead_us.store(ahead_us, Ordering::Relaxed);
        }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// The result of a verdict.
fn charged(verdict: RequestVerdict) -> Result<Charged, ChargeError> {
    match verdict {
        RequestVerdict::Unit(mut unit) => match unit.0.take() {
            Some((unit, left)) => {
                Ok(Charged { taken: None, unit: Some(unit), hold: None, left, degraded: false })
            }
            None => Err(ChargeError::Unavailable),
        },
        RequestVerdict::Refused(refusal) => Err(ChargeError::Limit { refusal, degraded: false }),
        RequestVerdict::Fallback => Err(ChargeError::Unavailable),
    }
}

fn can_spend(key: &mut LeaseState, workspace: Option<&mut LeaseState>, now_ns: u64) -> bool {
    key.pool.can_spend(now_ns) && workspace.is_none_or(|w| w.pool.can_spend(now_ns))
}

/// Takes a unit after [`can_spend`] has returned true.
fn spend(
    subject: &Arc<KeyState>,
    key: &mut LeaseState,
    mut workspace: Option<&mut LeaseState>,
    now: Now,
) -> (LeasedUnit, LimitsLeft) {
    let of_key = key.pool.spend(now);
    let of_workspace = workspace.as_deref_mut().map(|w| w.pool.spend(now));
    let mut left = key.pool.left(now.steady_ns);
    left.extend(workspace.iter().flat_map(|w| w.pool.left(now.steady_ns)));
    (LeasedUnit { subject: Arc::clone(subject), of_key, of_workspace, is_ended: false }, left)
}

/// The cached refusal; of two, the one that lasts longer.
fn refusal(key: &LeaseState, workspace: Option<&LeaseState>, now_ns: u64) -> Option<Box<Refusal>> {
    let (a, b) = (key.pool.refusal(now_ns), workspace.and_then(|w| w.pool.refusal(now_ns)));
    let mut told = match (a, b) {
        (Some(a), Some(b)) => {
            if b.refused.retry > a.refused.retry {
                b
            } else {
                a
            }
        }
        (a, b) => a.or(b)?,
    };
    told.left = key.pool.left(now_ns);
    told.left.extend(workspace.iter().flat_map(|w| w.pool.left(now_ns)));
    Some(told)
}

// === impl State, Group, Subject ===

impl LeaseState {
    /// The totals from the ledger for the windows of `calendar` that contain `at`, if they are recent.
    fn ledgered(&self, at: Timestamp, calendar: Calendar) -> Option<[u64; WINDOWS.len()]> {
        let (told_at, told_of, row) = self.ledger.as_ref()?;
        if at.since(*told_at) > BROKEN_FOR || *told_of != calendar {
            return None;
        }
        let mut known = row.used;
        for (window, used) in Window::all(calendar, *told_at).iter().zip(&mut known) {
            *used = if window.contains(at) { *used } else { 0 };
        }
        Some(known)
    }
}

impl WorkspaceGroup {
    /// Nothing under this lock can panic half-way, so a poisoned lock guards valid values.
    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, CallQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workspace's own state, if it has limits: keys of a workspace without limits must not contend for one lock.
    fn counted(&self, limits: &Limits) -> Option<MutexGuard<'_, LeaseState>> {
        let is_counted = !limits.is_empty();
        if self.is_counted.load(Ordering::Relaxed) != is_counted {
            self.is_counted.store(is_counted, Ordering::Relaxed);
        }
        is_counted.then(|| self.lock())
    }

    fn lock_if_counted(&self) -> Option<MutexGuard<'_, LeaseState>> {
        self.is_counted.load(Ordering::Relaxed).then(|| self.lock())
    }
}

impl CallQueue {
    fn is_late(&self, now_ns: u64) -> bool {
        self.asking_since_ns.is_some_and(|since| now_ns > since + nanos(PATIENCE))
    }

    fn is_calling(&self, now_ns: u64) -> bool {
        self.asking_since_ns.is_some_and(|since| now_ns < since + nanos(ABANDONED_AFTER))
    }
}

impl KeyState {
    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the key for a report to Redis, even if no further request comes.
    fn list(&self) {
        if self.is_listed.load(Ordering::Acquire)
            || !self.owes()
            || self.is_listed.swap(true, Ordering::AcqRel)
        {
            return;
        }
        if let Some(leases) = self.leases.upgrade() {
            leases.listed.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.key);
        }
    }

    fn owes(&self) -> bool {
        self.lock().pool.owes() || self.group.lock_if_counted().is_some_and(|w| w.pool.owes())
    }
}

// === impl Unit, HeldPlace, Undelivered ===

impl LeasedUnit {
    /// Returns the unit: the request never reached a backend.
    pub(super) fn give_back(mut self) {
        self.is_ended = true;
        self.subject.lock().pool.give_back(&self.of_key);
        if let Some(spent) = &self.of_workspace {
            self.subject.group.lock().pool.give_back(spent);
        }
        self.subject.list();
    }
}

impl Drop for LeasedUnit {
    fn drop(&mut self) {
        if !self.is_ended {
            self.subject.lock().pool.end();
            if self.of_workspace.is_some() {
                self.subject.group.lock().pool.end();
            }
        }
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        self.0.lock().pool.unhold();
    }
}

impl Drop for UndeliveredUnit {
    fn drop(&mut self) {
        if let Some((unit, _)) = self.0.take() {
            unit.give_back();
        }
    }
}

impl fmt::Debug for LeasedUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedUnit").field("key", &self.subject.key).finish_non_exhaustive()
    }
}

impl fmt::Debug for HeldSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldPlace").field(&self.0.key).finish()
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod model;
