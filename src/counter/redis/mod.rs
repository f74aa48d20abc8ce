//! Limits that several nodes share: a request takes units that this node already owns, or waits a moment for Redis.
//!
//! Must not know: HTTP, which database keeps the ledger. When Redis is gone, or late, each node does what the config says
//! ([`OnFailure`]) and tells Redis afterwards what was spent meanwhile.
//!
//! *Invariant:* one call per workspace is on its way at a time, and never more than [`CALLS_MAX`] in all.
//! *Invariant:* the lock of a key is taken before that of its workspace, and that of a queue last.

mod call;
pub(super) mod endpoint;
mod fallback;
pub(super) mod link;
pub mod pool;
pub(super) mod script;
mod settle;

use super::{Charge, ChargeError, Charged, LimitsLeft, Refusal};
use crate::clock::{Clock, Now, Timestamp};
use crate::metrics::Metrics;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::limit::Limits;
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

/// The longest a request waits for Redis; 20 ms are promised, and a timer may fire a little late.
pub const PATIENCE: Duration = Duration::from_millis(15);
/// Most calls on their way at once: about as many as Redis answers while a request waits.
const CALLS_MAX: usize = 128;
/// Most requests of one key that wait for one answer.
const WAITING_MAX: usize = 8_192;
/// A call without an answer for so long does not keep the next from being sent.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);
/// How long a subject that Redis or the ledger chokes on is left alone.
const BROKEN_FOR: Duration = Duration::from_secs(1);
/// How soon a subject is called for again that Redis counts and does not grant yet.
const HELD_BACK_FOR: Duration = Duration::from_millis(50);
/// By how much two calendars may differ without anybody minding, in µs.
const CALENDAR_OFF_MAX_US: u64 = 50_000;
/// How far the ledger is behind at least, as far as anybody relies on it: a batch is written each half second at the latest,
/// if it goes well.
const LEDGER_LAG: Duration = Duration::from_secs(2);

/// What to do while Redis cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Each node spends what Redis has promised it, and divides by the number of nodes what began since.
    Share,
    /// Refuse requests.
    Deny,
    /// Admit requests; they are counted when Redis is back.
    Allow,
}

/// Where spending is kept for good.
#[async_trait]
pub trait TotalsSource: Send + Sync + 'static {
    /// What `subject` has spent of the windows that contain `at`; none when that cannot be told now.
    async fn totals_of(&self, subject: &UsageSubject, at: Timestamp) -> Option<UsageTotals>;

    /// How long ago a record may have been made here that is not stored yet.
    fn behind(&self) -> Duration;
}

/// What shared counters need.
pub struct LeasesConfig {
    /// Where Redis is.
    pub place: RedisEndpoint,
    /// What to do without it.
    pub on_failure: OnFailure,
    /// Whether limits of which Redis has promised nothing are divided by the number of nodes then; else they refuse.
    pub share_unknown: bool,
    /// This node's name; no other node may have it.
    pub node: String,
    /// How many nodes live, this one included.
    pub nodes: Box<dyn Fn() -> usize + Send + Sync>,
    /// From what an emptied Redis is filled.
    pub ledger: Arc<dyn TotalsSource>,
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
    keys: DashMap<KeyId, Arc<KeyState>>,
    groups: DashMap<WorkspaceId, Arc<WorkspaceGroup>>,
    calls: Arc<Semaphore>,
    /// Keys of which Redis will have to hear though nobody may ask.
    listed: Mutex<VecDeque<KeyId>>,
    /// How far the ledger was behind of late, in ns.
    lag_ns: AtomicU64,
    /// When Redis was last told everything again, in steady ns.
    told_again_ns: AtomicU64,
    /// By how much Redis's calendar is before this node's, in µs: windows are those of Redis, also while it is gone.
    ahead_us: AtomicI64,
    me: Weak<Self>,
}

/// A workspace on this node: its keys are called for together.
struct WorkspaceGroup {
    id: WorkspaceId,
    /// Workspaces with one number fail together.
    part: u32,
    /// Whether limits are counted on the workspace itself.
    is_counted: AtomicBool,
    state: Mutex<LeaseState>,
    queue: Mutex<CallQueue>,
}

#[derive(Default)]
struct CallQueue {
    /// Keys for the next call.
    pending: VecDeque<Arc<KeyState>>,
    /// When the call on its way was sent, in steady ns.
    asking_since_ns: Option<u64>,
    /// Which series of calls that belongs to; another has begun if it was abandoned.
    turn: u64,
    /// What Redis does not know and the ledger is to be asked for; none is the workspace.
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
    /// Whether it is among those of which Redis will have to hear, and among those of the next call.
    is_listed: AtomicBool,
    is_queued: AtomicBool,
    state: Mutex<LeaseState>,
}

/// What is known of a key, or of a workspace.
#[derive(Default)]
struct LeaseState {
    pool: SubjectPool,
    /// Requests of a key.
    waiting: VecDeque<oneshot::Sender<RequestVerdict>>,
    broken_until_ns: u64,
    /// What the ledger told, and when, until Redis is filled with it.
    ledger: Option<(Timestamp, UsageTotals)>,
    is_reading: bool,
    /// When Redis was last well, seen from the first request that was decided without it since.
    alone_since_ns: Option<u64>,
}

/// What one request took. Dropping it ends its slot in flight.
pub(super) struct LeasedUnit {
    subject: Arc<KeyState>,
    of_key: TakenUnits,
    of_workspace: Option<TakenUnits>,
    is_ended: bool,
}

/// A slot in flight of a request that is not charged yet.
pub(super) struct HeldSlot(Arc<KeyState>);

/// What a waiting request is told.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request gets a unit; a box would cost each an allocation"
)]
enum RequestVerdict {
    Unit(UndeliveredUnit),
    Refused(Box<Refusal>),
    /// Redis cannot be asked.
    Alone,
}

/// A unit on its way to a request that may have stopped waiting; then it goes back.
struct UndeliveredUnit(Option<(LeasedUnit, LimitsLeft)>);

/// What can be told at once.
#[expect(clippy::large_enum_variant, reason = "nearly every request is told at once")]
enum LocalAnswer {
    Verdict(RequestVerdict),
    Wait(oneshot::Receiver<RequestVerdict>),
}

impl Leases {
    /// Shared counters. Redis that is gone is looked for; Redis that may throw limits away is refused.
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
            told_again_ns: AtomicU64::new(0),
            ahead_us: AtomicI64::new(0),
            me: me.clone(),
        });
        io.spawn(link.maintain(Arc::downgrade(&leases)));
        io.spawn(settle::sweep(Arc::downgrade(&leases)));
        Ok(leases)
    }

    /// The next connection to Redis is made so: with other certificates or passwords.
    pub(super) fn set_place(&self, place: RedisEndpoint) {
        self.link.set_place(place);
    }

    /// Charges all limits of a request, or none of them.
    pub(super) async fn charge(&self, charge: &Charge<'_>) -> Result<Charged, ChargeError> {
        let deadline = Instant::now() + PATIENCE;
        let subject = self.subject(charge.key, charge.workspace);
        let (quick, began_ns) = self.quick(&subject, charge);
        let answer = match quick {
            LocalAnswer::Verdict(RequestVerdict::Alone) => None,
            LocalAnswer::Verdict(verdict) => return charged(verdict),
            LocalAnswer::Wait(answer) => {
                tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok)
            }
        };
        let charged = match answer {
            None | Some(RequestVerdict::Alone) => self.charge_fallback(&subject, charge),
            Some(verdict) => charged(verdict),
        };
        let waited = Duration::from_nanos(self.now_ns().saturating_sub(began_ns));
        self.config.metrics.counter_wait_seconds.observe(waited.as_secs_f64());
        charged
    }

    /// Takes a slot in flight for a request that is charged later, as far as this process knows.
    pub(super) fn hold(&self, charge: &Charge<'_>) -> Result<HeldSlot, Box<Refusal>> {
        let subject = self.subject(charge.key, charge.workspace);
        subject.lock().pool.hold(charge.key_limits)?;
        Ok(HeldSlot(subject))
    }

    /// From what is in hand, or a place in the queue for what Redis will say.
    fn quick(&self, subject: &Arc<KeyState>, charge: &Charge<'_>) -> (LocalAnswer, u64) {
        let now = self.now();
        let group = &subject.group;
        let mut key = subject.lock();
        let mut workspace = group.counted(charge.workspace_limits);
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
        let is_left_alone = workspace.as_ref().is_some_and(|w| now.steady_ns < w.broken_until_ns);
        drop(workspace);
        if is_left_alone
            || !self.can_call_redis(group, &key, now.steady_ns)
            || key.waiting.len() >= WAITING_MAX
        {
            return (LocalAnswer::Verdict(RequestVerdict::Alone), now.steady_ns);
        }
        let (tell, answer) = oneshot::channel();
        key.waiting.push_back(tell);
        drop(key);
        // Whoever finds that the call on its way is late does not wait for it.
        let is_asked = self.enqueue(subject, now.steady_ns) && !group.queue().is_late(now.steady_ns);
        (
            if is_asked { LocalAnswer::Wait(answer) } else { LocalAnswer::Verdict(RequestVerdict::Alone) },
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

    /// How far the ledger may be behind.
    fn lag(&self) -> Duration {
        Duration::from_nanos(self.lag_ns.load(Ordering::Relaxed))
    }

    fn now_ns(&self) -> u64 {
        self.config.clock.now().steady_ns
    }

    /// Now, on the calendar that Redis goes by.
    fn now(&self) -> Now {
        let now = self.config.clock.now();
        let ahead_us = self.ahead_us.load(Ordering::Relaxed);
        Now { wall: Timestamp::from_micros(now.wall.as_micros().saturating_add(ahead_us)), ..now }
    }

    /// Sets this node's calendar by an answer of Redis, unless it is right to within `off_max_us`.
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

/// What Redis, or what is in hand, said.
fn charged(verdict: RequestVerdict) -> Result<Charged, ChargeError> {
    match verdict {
        RequestVerdict::Unit(mut unit) => match unit.0.take() {
            Some((unit, left)) => Ok(Charged { taken: None, unit: Some(unit), left, degraded: false }),
            None => Err(ChargeError::Unavailable),
        },
        RequestVerdict::Refused(refusal) => Err(ChargeError::Limit { refusal, degraded: false }),
        RequestVerdict::Alone => Err(ChargeError::Unavailable),
    }
}

fn can_spend(key: &mut LeaseState, workspace: Option<&mut LeaseState>, now_ns: u64) -> bool {
    key.pool.can_spend(now_ns) && workspace.is_none_or(|w| w.pool.can_spend(now_ns))
}

/// Takes what [`can_spend`] has just found.
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

/// The refusal that is still believed; of two, that which lasts longer.
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
    /// What the ledger told of the windows of `at`, if that is not too long ago.
    fn ledgered(&self, at: Timestamp) -> Option<[u64; WINDOWS.len()]> {
        let (told_at, row) = self.ledger.as_ref()?;
        if at.since(*told_at) > BROKEN_FOR {
            return None;
        }
        let used = [row.minute, row.hour, row.day, row.month, row.total];
        let mut known = [0; WINDOWS.len()];
        for (n, per) in WINDOWS.into_iter().enumerate() {
            let is_same = crate::policy::keys::calendar::window_start(per, *told_at)
                == crate::policy::keys::calendar::window_start(per, at);
            known[n] = if is_same { used[n] } else { 0 };
        }
        Some(known)
    }
}

impl WorkspaceGroup {
    /// Nothing that runs under this lock can panic half-way, so a poisoned one holds sound values.
    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, CallQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workspace's own state, if it has limits: so that keys of one without do not meet at one lock.
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

    /// Sees to it that Redis hears what it should, though nobody may ask for this key again.
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
    /// The request never reached a backend.
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
