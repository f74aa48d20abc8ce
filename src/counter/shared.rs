//! Limits that several nodes share: a request takes a unit that this node already owns, or waits a moment for Redis.
//!
//! Must not know: HTTP, which database keeps the ledger. When Redis is gone, or late, each node does what the config says
//! ([`OnFailure`]) and tells Redis afterwards what was spent meanwhile.
//!
//! *Invariant:* one question per key is on its way at a time, and never more than [`CALLS_MAX`] in all.

mod alone;
mod ask;
mod tend;
mod unsettled;

use super::lease::{Ask, Lease, Take};
use super::link::Link;
use super::local::Local;
use super::place::{LinkError, RedisPlace};
use super::script::{Heard, Subjects};
use super::share::Known;
use super::{Charge, Charged, Declined, Left, Refusal};
use crate::clock::{Clock, Now, Timestamp};
use crate::metrics::Metrics;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::limit::{Limit, LimitName};
use crate::store::{SpentBy, SpentRow};
use async_trait::async_trait;
use dashmap::DashMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;
use unsettled::Unsettled;

/// The longest a request waits for Redis; 20 ms are promised, and a timer may fire a little late.
pub const PATIENCE: Duration = Duration::from_millis(15);
/// Most questions on their way at once: about as many as Redis answers while a request waits.
const CALLS_MAX: usize = 128;
/// Most of those that nobody waits for.
const SETTLING_MAX: usize = 16;
/// Most requests of one key that wait for one answer.
const WAITING_MAX: usize = 8_192;
/// A question without an answer for so long does not keep the next from being asked.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);
/// How long a key that Redis chokes on is left alone.
const BROKEN_FOR: Duration = Duration::from_secs(1);
/// By how much two calendars may differ without anybody minding, in µs.
const CALENDAR_OFF_MAX_US: u64 = 50_000;
/// How far the ledger is behind at least, as far as anybody relies on it: a batch is written each half second at the latest,
/// if it goes well.
const LEDGER_LAG: Duration = Duration::from_secs(2);

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

    /// How long ago a record may have been made here that is not stored yet.
    fn behind(&self) -> Duration;
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
    workspaces: DashMap<WorkspaceId, OfWorkspace>,
    calls: Arc<Semaphore>,
    settling: Arc<Semaphore>,
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

/// What Redis, or the ledger, told of a workspace, and what they could not.
#[derive(Default)]
struct OfWorkspace {
    unsettled: Arc<Unsettled>,
    known: Option<Known>,
    heard: Option<Heard>,
    /// In which outage the ledger was asked last, and whether that was after it had caught up.
    asked: Option<(u64, bool)>,
}

/// A key on this node.
struct Subject {
    key: KeyId,
    workspace: WorkspaceId,
    /// Keys with one number fail together.
    part: u32,
    leases: Weak<Leases>,
    listed: AtomicBool,
    /// That of its workspace.
    unsettled: Arc<Unsettled>,
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
    /// What questions on their way may bring.
    asked: u64,
    known: Option<Known>,
    heard: Option<Heard>,
    /// Whether Redis must hear from this node what it once told it: it may have forgotten.
    untold: bool,
    broken_until_ns: u64,
    outage: Option<Outage>,
}

/// Since a request found Redis gone.
struct Outage {
    /// When Redis was last well, seen from that request, in steady ns.
    since_ns: u64,
    /// When that request came.
    noticed_ns: u64,
    /// Becomes true, or ends, when the ledger has told what others had spent.
    reading: watch::Receiver<bool>,
    /// When the ledger is asked once more, because by then it knows all that was spent before.
    settle_at_ns: u64,
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
enum Purpose {
    Serve,
    /// Nobody waits; with the leave to ask all the same.
    Settle(#[expect(dead_code, reason = "its end is what it is for")] OwnedSemaphorePermit),
}

impl Leases {
    /// Shared counters. Redis that is gone is looked for; Redis that may throw limits away is refused.
    pub async fn start(config: LeasesConfig) -> Result<Arc<Self>, LinkError> {
        let (place, clock) = (config.place.clone(), Arc::clone(&config.clock));
        let link = Arc::new(Link::new(place, &config.node, clock, Arc::clone(&config.metrics)));
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
            settling: Arc::new(Semaphore::new(SETTLING_MAX)),
            listed: Mutex::default(),
            lag_ns: AtomicU64::new(nanos(LEDGER_LAG)),
            told_again_ns: AtomicU64::new(0),
            ahead_us: AtomicI64::new(0),
            me: me.clone(),
        });
        io.spawn(link.keep(Arc::downgrade(&leases)));
        io.spawn(tend::sweep(Arc::downgrade(&leases)));
        Ok(leases)
    }

    /// The next connection to Redis is made so: with other certificates or passwords.
    pub(super) fn set_place(&self, place: RedisPlace) {
        self.link.set_place(place);
    }

    /// Charges all limits of a request, or none of them.
    pub(super) async fn charge(&self, charge: &Charge<'_>) -> Result<Charged, Declined> {
        let deadline = Instant::now() + PATIENCE;
        let subject = self.subject(charge);
        let (quick, began_ns) = self.quick(&subject, charge);
        let answer = match quick {
            Quick::Verdict(Verdict::Alone) => None,
            Quick::Verdict(verdict) => return self.charged(charge, verdict),
            Quick::Wait(answer) => tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok),
        };
        let charged = match answer {
            None | Some(Verdict::Alone) => self.alone(&subject, charge, deadline).await,
            Some(verdict) => self.charged(charge, verdict),
        };
        let waited = Duration::from_nanos(self.now_ns().saturating_sub(began_ns));
        self.config.metrics.counter_wait_seconds.observe(waited.as_secs_f64());
        charged
    }

    /// What Redis, or what is in hand, said.
    fn charged(&self, charge: &Charge<'_>, verdict: Verdict) -> Result<Charged, Declined> {
        match verdict {
            Verdict::Unit(mut unit) => match unit.0.take() {
                Some((unit, left)) => {
                    let taken = self.local.note(charge, self.now());
                    Ok(Charged { taken, unit: Some(unit), left, degraded: false })
                }
                None => Err(Declined::Unavailable),
            },
            Verdict::Refused(refusal) => Err(Declined::Limit { refusal, degraded: false }),
            Verdict::Alone => Err(Declined::Unavailable),
        }
    }

    /// From what is in hand, or a place in the queue for what Redis will say.
    fn quick(&self, subject: &Arc<Subject>, charge: &Charge<'_>) -> (Quick, u64) {
        let mut limits = charge.key_limits.clone();
        limits.extend_from_slice(charge.workspace_limits);
        let now_ns = self.now_ns();
        let mut state = subject.lock();
        let quick = match state.lease.take(&limits, now_ns) {
            Take::Unit(at_us) => {
                if state.lease.is_low() && self.can_ask(subject, &state, now_ns) {
                    self.begin(subject, &mut state, Purpose::Serve, now_ns);
                }
                let unit = Unit { subject: Arc::clone(subject), at_us, ended: false };
                let left = state.lease.left(now_ns);
                drop(state);
                subject.list();
                Quick::Verdict(Verdict::Unit(Undelivered(Some((unit, left)))))
            }
            Take::Refused(refusal) => Quick::Verdict(Verdict::Refused(refusal)),
            Take::Ask if !self.can_ask(subject, &state, now_ns) || state.waiting.len() >= WAITING_MAX => {
                Quick::Verdict(Verdict::Alone)
            }
            Take::Ask => {
                let (tell, answer) = oneshot::channel();
                state.waiting.push_back(tell);
                let begun =
                    state.is_asking(now_ns) || self.begin(subject, &mut state, Purpose::Serve, now_ns);
                if begun { Quick::Wait(answer) } else { Quick::Verdict(Verdict::Alone) }
            }
        };
        (quick, now_ns)
    }

    fn can_ask(&self, subject: &Subject, state: &State, now_ns: u64) -> bool {
        now_ns >= state.broken_until_ns && self.link.is_up_for(subject.part, now_ns)
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
        let unsettled = Arc::clone(&self.workspaces.entry(charge.workspace.clone()).or_default().unsettled);
        let new = || {
            Arc::new(Subject {
                key: charge.key,
                workspace: charge.workspace.clone(),
                part: crc32fast::hash(charge.workspace.as_str().as_bytes()),
                leases: self.me.clone(),
                listed: AtomicBool::new(false),
                unsettled,
                state: Mutex::default(),
            })
        };
        Arc::clone(&self.keys.entry(charge.key).or_insert_with(new))
    }

    fn subjects<'r>(&'r self, subject: &'r Subject, ask: &Ask, server: &'r str) -> Subjects<'r> {
        let of_workspace = |l: &Limit| matches!(l.name, LimitName::Workspace(_));
        let key_limits = ask.limits.iter().take_while(|l| !of_workspace(l)).count();
        Subjects {
            key: subject.key,
            workspace: (&subject.workspace, key_limits < ask.limits.len()),
            key_limits,
            node: &self.config.node,
            nodes: self.nodes(),
            server,
            lag: self.lag(),
            heard: [subject.lock().heard, self.workspaces.get(&subject.workspace).and_then(|w| w.heard)],
        }
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

    /// Sets this node's calendar by an answer of Redis, unless it is right to within what an answer's way may take.
    fn set_calendar(&self, redis_us: i64) {
        let ahead_us = redis_us.saturating_sub(self.config.clock.now().wall.as_micros());
        if ahead_us.abs_diff(self.ahead_us.load(Ordering::Relaxed)) > CALENDAR_OFF_MAX_US {
            self.ahead_us.store(ahead_us, Ordering::Relaxed);
        }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

// === impl State, Subject, Unit, Undelivered ===

impl State {
    /// Whether Redis will have to hear something sooner or later.
    fn owes(&self) -> bool {
        self.untold || self.lease.owes()
    }

    fn is_asking(&self, now_ns: u64) -> bool {
        self.asking_since_ns.is_some_and(|since| now_ns < since + nanos(ABANDONED_AFTER))
    }
}

impl Subject {
    /// Nothing that runs under this lock can panic half-way, so a poisoned one holds sound values.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this key owes has changed.
    fn owes(&self, before: u64, now: u64) {
        self.unsettled.owe(now.saturating_sub(before));
        self.unsettled.settle(before.saturating_sub(now));
    }

    /// Sees to it that Redis hears what it should, though nobody may ask for this key again.
    fn list(&self) {
        if self.listed.load(Ordering::Acquire) || !self.lock().owes() {
            return;
        }
        if self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(leases) = self.leases.upgrade() {
            leases.listed.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.key);
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // Nobody tells Redis any more.
        let owed = self.lock().lease.owed();
        self.unsettled.settle(owed);
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
