//! Limits shared by several nodes: a request takes units that this node holds already, or waits a moment for Redis.
//!
//! Must not know: HTTP, which database has the ledger. When Redis is unreachable or late, each node does what the config
//! says ([`OnFailure`]), and reports to Redis afterwards what was spent meanwhile.
//!
//! *Invariant:* at most one call per workspace is in flight, and at most [`CALLS_MAX`] in all.
//! *Invariant:* the lock of a key is taken before that of its workspace, that before that of an end user, and that of a queue
//! last.

mod bounded;
mod call;
pub(super) mod endpoint;
mod fallback;
pub(super) mod link;
pub mod pool;
pub(super) mod script;
mod settle;
mod subject;
mod transport;

use super::{Charge, ChargeError, Charged, LimitsLeft, Refusal};
use crate::clock::{Clock, Now, Timestamp};
use crate::metrics::Metrics;
use crate::model::amounts::Amounts;
use crate::model::calendar::Calendar;
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::outage::OnFailure;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::limit::MeteredUnits;
use async_trait::async_trait;
use dashmap::DashMap;
use endpoint::{LinkError, RedisEndpoint};
use link::Link;
use pool::WINDOWS;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use subject::{ChargedSubjects, Subject, WorkspaceGroup, can_spend, left, refusal, spend};
pub(super) use subject::{HeldSlot, LeasedHold, LeasedUnit, Slot};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

/// Longest wait of a request for Redis; 20 ms are promised, and a timer may be a little late.
pub const PATIENCE: Duration = Duration::from_millis(15);
/// Most calls in flight: about as many as Redis answers while a request waits.
const CALLS_MAX: usize = 128;
/// Most requests of one workspace that wait for an answer.
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
    keys: DashMap<KeyId, Arc<Subject>>,
    /// End users that are limited and were used lately.
    end_users: DashMap<EndUserId, Arc<Subject>>,
    groups: DashMap<WorkspaceId, Arc<WorkspaceGroup>>,
    calls: Arc<Semaphore>,
    /// Subjects that must be reported to Redis even if no request comes.
    listed: Mutex<VecDeque<Arc<Subject>>>,
    /// Recent lag of the ledger, in ns.
    lag_ns: AtomicU64,
    /// When everything was last reported again, in steady ns.
    reported_again_ns: AtomicU64,
    /// How far Redis' calendar is ahead of this node's, in µs: windows are those of Redis, also while it is unreachable.
    ahead_us: AtomicI64,
    me: Weak<Self>,
}

#[derive(Default)]
struct CallQueue {
    /// Requests for the next calls.
    waiting: VecDeque<Waiter>,
    /// Keys and end users for the next calls, without a waiting request.
    pending: VecDeque<Arc<Subject>>,
    /// When the call in flight was sent, in steady ns.
    asking_since_ns: Option<u64>,
    /// The series of calls that it belongs to; an abandoned series is followed by another.
    turn: u64,
    /// Subjects that Redis does not know and that must be read from the ledger; none stands for the workspace.
    unknown: VecDeque<Option<Arc<Subject>>>,
    is_reading: bool,
    /// Requests that wait for the ledger.
    stalled: Vec<Waiter>,
}

/// A request that waits for an answer.
struct Waiter {
    subjects: ChargedSubjects,
    amounts: Amounts,
    tell: oneshot::Sender<RequestVerdict>,
}

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

/// What a request took that may have stopped waiting; then it is returned.
struct UndeliveredUnit(Option<(LeasedUnit, Option<Box<LeasedHold>>, LimitsLeft)>);

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
            end_users: DashMap::new(),
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
        let subjects = self.subjects(charge);
        let (quick, began_ns) = self.quick(&subjects, charge);
        let answer = match quick {
            LocalAnswer::Verdict(RequestVerdict::Fallback) => None,
            LocalAnswer::Verdict(verdict) => return charged(verdict),
            LocalAnswer::Wait(answer) => {
                tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok)
            }
        };
        let charged = match answer {
            None | Some(RequestVerdict::Fallback) => self.charge_fallback(&subjects, &charge.amounts),
            Some(verdict) => charged(verdict),
        };
        let waited = Duration::from_nanos(self.now_ns().saturating_sub(began_ns));
        self.config.metrics.counter_wait_seconds.observe(waited.as_secs_f64());
        charged
    }

    /// Takes a place in flight for a request that is charged later, as far as this process knows.
    pub(super) fn hold(&self, charge: &Charge<'_>) -> Result<HeldSlot, Box<Refusal>> {
        let key = self.key(charge.key, charge.workspace);
        key.lock().requests.hold(charge.key_limits)?;
        Ok(HeldSlot(key))
    }

    /// Decides from granted units, or queues the request for the next answer of Redis.
    fn quick(&self, subjects: &ChargedSubjects, charge: &Charge<'_>) -> (LocalAnswer, u64) {
        let (now, amounts) = (self.now(), &charge.amounts);
        let verdict = |verdict| (LocalAnswer::Verdict(verdict), now.steady_ns);
        let group = &subjects.key.group;
        let mut states = subjects.lock();
        group.follow(charge.key_limits.calendar);
        for (slot, state) in &mut states {
            state.attempt(charge.limits_of(*slot), amounts);
        }
        let is_up = self.link.is_up_for(group.part, now.steady_ns);
        if can_spend(&mut states, amounts, now.steady_ns) {
            let taken = spend(&mut states, amounts, now);
            let left = left(&states, now.steady_ns);
            let wants = states.iter_mut().fold(false, |wants, (_, state)| state.wants_more() || wants);
            let may_ask = wants && is_up && !states[0].1.is_broken(now.steady_ns);
            drop(states);
            if may_ask {
                for subject in subjects.iter() {
                    self.enqueue(subject, now.steady_ns);
                }
            }
            subjects.list();
            let (unit, hold) = subject::charged(subjects, taken, amounts);
            return verdict(RequestVerdict::Unit(UndeliveredUnit(Some((unit, hold, left)))));
        }
        if let Some(refusal) = refusal(&mut states, amounts, now.steady_ns) {
            return verdict(RequestVerdict::Refused(refusal));
        }
        let is_broken = states.iter().any(|(_, state)| state.is_broken(now.steady_ns));
        drop(states);
        if is_broken || !is_up {
            return verdict(RequestVerdict::Fallback);
        }
        let (tell, answer) = oneshot::channel();
        let waiter = Waiter { subjects: subjects.clone(), amounts: *amounts, tell };
        if self.wait(waiter, now.steady_ns) {
            (LocalAnswer::Wait(answer), now.steady_ns)
        } else {
            verdict(RequestVerdict::Fallback)
        }
    }

    fn can_call_redis(&self, subject: &Subject, now_ns: u64) -> bool {
        !subject.lock().is_broken(now_ns) && self.link.is_up_for(subject.group.part, now_ns)
    }

    pub(super) fn forget(&self, key: KeyId) {
        self.keys.remove(&key);
    }

    /// What requests in flight on this node hold in each window.
    pub(super) fn held(&self, subject: &UsageSubject) -> [MeteredUnits; WINDOWS.len()] {
        let found = match subject {
            UsageSubject::Workspace(id) => {
                return self.groups.get(id).map_or_else(Default::default, |group| group.lock().on_hold());
            }
            UsageSubject::Key(id) => self.keys.get(id).map(|found| Arc::clone(&found)),
            UsageSubject::EndUser(_, id) => self.end_users.get(id).map(|found| Arc::clone(&found)),
        };
        found.map_or_else(Default::default, |subject| subject.lock().on_hold())
    }

    /// Whom a request is charged to.
    fn subjects(&self, charge: &Charge<'_>) -> ChargedSubjects {
        let key = self.key(charge.key, charge.workspace);
        let is_workspace_counted = key.group.is_counted(charge.workspace_limits);
        let end_user = charge.end_user.filter(|(_, limits)| !limits.is_empty());
        let end_user = end_user.map(|(id, _)| self.end_user(id, &key.group));
        ChargedSubjects::new(key, is_workspace_counted, end_user)
    }

    fn key(&self, key: KeyId, workspace: &WorkspaceId) -> Arc<Subject> {
        if let Some(found) = self.keys.get(&key) {
            return Arc::clone(&found);
        }
        let now_ns = self.now_ns();
        let new = || Arc::new(WorkspaceGroup::new(workspace.clone(), now_ns));
        let group = Arc::clone(&self.groups.entry(workspace.clone()).or_insert_with(new));
        let new = || Arc::new(Subject::new(UsageSubject::Key(key), group, self.me.clone(), now_ns));
        Arc::clone(&self.keys.entry(key).or_insert_with(new))
    }

    fn end_user(&self, id: EndUserId, group: &Arc<WorkspaceGroup>) -> Arc<Subject> {
        if let Some(found) = self.end_users.get(&id) {
            return Arc::clone(&found);
        }
        let subject = UsageSubject::EndUser(group.id.clone(), id);
        let new = || Arc::new(Subject::new(subject, Arc::clone(group), self.me.clone(), self.now_ns()));
        Arc::clone(&self.end_users.entry(id).or_insert_with(new))
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
            Some((unit, hold, left)) => Ok(Charged::shared(unit, hold, left, false)),
            None => Err(ChargeError::Unavailable),
        },
        RequestVerdict::Refused(refusal) => Err(ChargeError::Limit { refusal, degraded: false }),
        RequestVerdict::Fallback => Err(ChargeError::Unavailable),
    }
}

// === impl CallQueue, UndeliveredUnit, Leases ===

impl CallQueue {
    fn is_late(&self, now_ns: u64) -> bool {
        self.asking_since_ns.is_some_and(|since| now_ns > since + nanos(PATIENCE))
    }

    fn is_calling(&self, now_ns: u64) -> bool {
        self.asking_since_ns.is_some_and(|since| now_ns < since + nanos(ABANDONED_AFTER))
    }
}

impl Drop for UndeliveredUnit {
    fn drop(&mut self) {
        if let Some((unit, hold, _)) = self.0.take() {
            unit.give_back();
            drop(hold);
        }
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod model;
