//! All keys, plans and workspaces in memory: finding a key is one look-up, whatever happens to the store.
//!
//! Must not know: requests, what has been spent. While the store is unreachable, the keyring answers from memory, and
//! [`Keyring::age`] tells how old that is.
//!
//! *Invariant:* a change applies to every request that begins after [`Keyring::reach`] has returned true.

mod broken;
mod credentials;
mod feed;
mod in_force;
mod index;

pub use feed::{BeforeReturn, FeedFollower, FeedOptions, NodeReporter};

use crate::clock::{Now, Timestamp};
use crate::model::calendar::Calendar;
use crate::model::digest::Digest;
use crate::model::grant::Grant;
use crate::model::id::{KeyId, PlanId, WorkspaceId};
use crate::model::key::{Key, KeyDetails, Plan};
use crate::model::scope::Scopes;
use crate::model::usage::UsageSubject;
use crate::policy::keys::limit::{Limits, key_limits};
use crate::policy::prices::ModelPrice;
use crate::store::{Change, Credentials, KeyChange, SecretId, Version, snapshot};
use arc_swap::ArcSwap;
use broken::{BrokenRows, MissingReference, Unapplied};
use credentials::SealedCredentials;
use dashmap::DashMap;
use index::Index;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Most sets of scopes, and most creators, that keys share; further ones are not shared.
const SHARED_MAX: usize = 4_096;
/// How long [`Keyring::reach`] waits.
const REACH_WITHIN: Duration = Duration::from_secs(2);

/// The in-memory replica.
#[derive(Debug)]
pub struct Keyring {
    by_digest: Index<Digest>,
    by_id: Index<KeyId>,
    workspaces: DashMap<WorkspaceId, Arc<Workspace>>,
    plans: Mutex<HashMap<PlanId, Arc<PlanInForce>>>,
    broken: Mutex<BrokenRows>,
    /// Sets of scopes that keys share, so that a million keys with the same scopes store their text once.
    scopes: Mutex<HashSet<Scopes>>,
    /// Creators that keys share, for the same reason.
    creators: Mutex<HashSet<Arc<str>>>,
    /// For the snapshot; requests use those that the follower hands on.
    prices: Mutex<Arc<[ModelPrice]>>,
    upstream_credentials: SealedCredentials,
    version: watch::Sender<Version>,
    nudge: Notify,
    /// Steady time in ns of the last answer of the store; 0: none yet.
    heard_ns: AtomicU64,
    /// Age in ns of the content at that time, if it came from a snapshot.
    stale_ns: AtomicU64,
    /// Whether requests may be decided.
    is_open: AtomicBool,
    /// The number of broken rows, readable without the lock: nearly always zero.
    broken_rows: AtomicUsize,
    /// Whether a key may have to be found by the SHA-256 digest of its secret.
    has_sha256_imports: AtomicBool,
}

/// A key with everything that a decision about it needs.
#[derive(Debug)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// What backends may be told about it.
    pub details: KeyDetails,
    /// Its workspace, whose plan may change.
    pub workspace: Arc<Workspace>,
    credentials: Credentials,
    version: Version,
}

/// A key and the secret that was presented: an admitted request is tied to both.
#[derive(Clone, Debug)]
pub struct Presented {
    /// The key at that time.
    pub entry: Arc<Entry>,
    /// The secret, independent of the pepper it is hashed with.
    pub secret: SecretId,
}

/// A workspace and the plan it is on.
#[derive(Debug)]
pub struct Workspace {
    /// Which workspace.
    pub id: WorkspaceId,
    plan: ArcSwap<PlanInForce>,
}

/// A plan, raised by grants if there are any, with the limits it sets on a workspace.
#[derive(Debug)]
pub struct PlanInForce {
    /// The plan.
    pub plan: Plan,
    /// Limits for all keys of a workspace together.
    pub workspace_limits: Limits,
    /// Limits for each end user.
    pub end_user_limits: Limits,
    /// None: no grants, and all workspaces on the plan share this.
    raise: Option<Raise>,
}

/// What raises the plan of a workspace.
#[derive(Debug)]
struct Raise {
    /// The plan as it is for others.
    base: Arc<PlanInForce>,
    grants: Arc<[Grant]>,
    /// The first instant at which something else is in force.
    until: Option<Timestamp>,
}

/// A key found by a digest.
#[derive(Debug)]
pub struct FoundKey {
    /// The key and its secret.
    pub presented: Presented,
    /// The pepper version of the digest.
    pub pepper_version: u32,
}

/// Writes one row of a snapshot.
pub type PutRow<'r> = &'r dyn Fn(&mut Vec<u8>);

impl Keyring {
    /// An empty replica. Fill it with [`FeedFollower::load`].
    pub fn new() -> Self {
        Self {
            by_digest: Index::new(),
            by_id: Index::new(),
            workspaces: DashMap::default(),
            plans: Mutex::default(),
            broken: Mutex::default(),
            scopes: Mutex::default(),
            creators: Mutex::default(),
            prices: Mutex::default(),
            upstream_credentials: SealedCredentials::default(),
            version: watch::channel(Version::default()).0,
            nudge: Notify::new(),
            heard_ns: AtomicU64::new(0),
            stale_ns: AtomicU64::new(0),
            is_open: AtomicBool::new(true),
            broken_rows: AtomicUsize::new(0),
            has_sha256_imports: AtomicBool::new(false),
        }
    }

    /// A keyring that stays empty, for a process that serves no requests: it counts every version as applied.
    pub fn detached() -> Self {
        Self { version: watch::channel(Version(u64::MAX)).0, ..Self::new() }
    }

    /// The key with this digest at the instant `at`, unless it is deleted.
    pub fn find(&self, digest: &Digest, at: Timestamp) -> Option<FoundKey> {
        if !self.is_open.load(Ordering::Relaxed) {
            return None;
        }
        let entry = self.by_digest.get(digest)?;
        let credential = entry.credentials.iter().find(|c| c.digest == *digest)?;
        if credential.valid_until.is_some_and(|end| end <= at) {
            return None;
        }
        let (secret, pepper_version) = (credential.secret, credential.pepper_version);
        Some(FoundKey { presented: Presented { entry, secret }, pepper_version })
    }

    /// Whether a digest that was not found may still belong to a key: nothing has been read yet, or the row of the key, its
    /// workspace or its plan is broken.
    pub fn cannot_tell(&self, digest: &Digest) -> bool {
        !self.is_open.load(Ordering::Relaxed)
            || (self.broken_rows.load(Ordering::Relaxed) > 0 && self.broken_rows().has_digest(digest))
    }

    /// Makes every digest undecidable until [`Keyring::open`].
    pub fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
    }

    /// Allows requests to be decided.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Whether requests may be decided.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Why some keys have been unusable since startup that other nodes may still serve; none: there are no such keys.
    pub fn lacking_since_start(&self) -> Option<String> {
        self.broken_rows().lacking_since_start()
    }

    /// The current state of a key found earlier; none if it was deleted, or if the secret presented then is no longer valid
    /// at the instant `at`.
    pub fn current(&self, presented: &Presented, at: Timestamp) -> Option<Arc<Entry>> {
        let current = self.by_id.get(&presented.entry.key.id)?;
        let credential = current.credentials.iter().find(|c| c.secret == presented.secret)?;
        credential.valid_until.is_none_or(|end| end > at).then(|| Arc::clone(&current))
    }

    /// Reads changes at once and waits until everything up to `version` is applied on this node. Returns false after two
    /// seconds; the change is stored all the same.
    pub async fn reach(&self, version: Version) -> bool {
        self.nudge.notify_one();
        let mut reached = self.version.subscribe();
        let wait = reached.wait_for(|v| *v >= version);
        matches!(tokio::time::timeout(REACH_WITHIN, wait).await, Ok(Ok(_)))
    }

    /// The newest version applied.
    pub fn version(&self) -> Version {
        *self.version.borrow()
    }

    /// Whether this key or workspace is in memory, or will be once its broken row is repaired.
    pub fn knows(&self, subject: &UsageSubject) -> bool {
        let (is_held, table) = match subject {
            UsageSubject::Key(id) => (self.by_id.get(id).is_some(), "keys"),
            UsageSubject::Workspace(id) => (self.workspaces.contains_key(id), "workspaces"),
            UsageSubject::EndUser(id, _) => {
                let limits = |workspace: &Workspace| !workspace.plan.load().end_user_limits.is_empty();
                return self.workspaces.get(id).is_some_and(|workspace| limits(&workspace));
            }
        };
        is_held || self.broken_rows().holds(table, subject)
    }

    /// The calendar of a key's or a workspace's plan.
    pub fn calendar_of(&self, subject: &UsageSubject) -> Calendar {
        let calendar = |workspace: &Workspace| workspace.plan.load().plan.calendar;
        let found = match subject {
            UsageSubject::Key(id) => self.by_id.get(id).map(|entry| calendar(&entry.workspace)),
            UsageSubject::Workspace(id) | UsageSubject::EndUser(id, _) => {
                self.workspaces.get(id).map(|workspace| calendar(&workspace))
            }
        };
        found.unwrap_or_default()
    }

    /// The calendars of all workspaces with another than the default calendar.
    pub fn calendars(&self) -> HashMap<WorkspaceId, Calendar> {
        let all = self.workspaces.iter().map(|w| (w.id.clone(), w.plan.load().plan.calendar));
        all.filter(|(_, calendar)| *calendar != Calendar::UTC).collect()
    }

    /// The workspaces whose plan limits each end user.
    pub fn limiting_end_users(&self) -> Vec<WorkspaceId> {
        let limits = self.workspaces.iter().filter(|w| !w.plan.load().end_user_limits.is_empty());
        limits.map(|workspace| workspace.id.clone()).collect()
    }

    /// Whether a key may have to be found by the SHA-256 digest of its secret.
    pub fn has_sha256_imports(&self) -> bool {
        self.has_sha256_imports.load(Ordering::Relaxed)
    }

    /// Whether this key is in memory.
    pub fn holds(&self, key: KeyId) -> bool {
        self.by_id.get(&key).is_some()
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of rows of the store that cannot be used at the moment.
    pub fn broken(&self) -> usize {
        self.broken_rows().len()
    }

    /// How long ago the store last answered; none before its first answer.
    pub fn age(&self, now: Now) -> Option<Duration> {
        match self.heard_ns.load(Ordering::Relaxed) {
            0 => None,
            heard => {
                let since = now.steady_ns.saturating_sub(heard);
                Some(Duration::from_nanos(since.saturating_add(self.stale_ns.load(Ordering::Relaxed))))
            }
        }
    }

    /// A receiver for the newest version applied.
    pub fn versions(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    /// Fills the keyring from a snapshot that is `age` old. Call this before the first answer of the store.
    pub fn fill(&self, changes: Vec<Change>, age: Duration, now: Now) {
        for change in changes {
            if let Some(Unapplied { what, id, why, .. }) = self.apply(change) {
                tracing::error!(what, id, why, "a row of the snapshot cannot be served");
            }
        }
        self.stale_ns.store(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.heard_ns.store(now.steady_ns, Ordering::Relaxed);
    }

    /// Keeps plans and workspaces of a snapshot as a fallback for broken rows.
    pub fn remember_tenants(&self, changes: Vec<Change>) {
        for change in changes {
            if matches!(change, Change::Plan(_) | Change::Workspace { .. }) {
                drop(self.put(change));
            }
        }
    }

    /// Calls `each` with a writer for every plan, workspace, credential, the prices and every key, in that order, for a snapshot.
    pub fn snapshot<E>(&self, each: &mut dyn FnMut(PutRow<'_>) -> Result<(), E>) -> Result<(), E> {
        let plans: Vec<_> = self.plans().values().cloned().collect();
        for plan in plans {
            each(&|row| snapshot::put_plan(&plan.plan, row))?;
        }
        let workspaces: Vec<_> = self.workspaces.iter().map(|entry| Arc::clone(entry.value())).collect();
        for workspace in workspaces {
            let plan = workspace.plan.load();
            each(&|row| snapshot::put_workspace(&workspace.id, &plan.plan.id, plan.grants(), row))?;
        }
        let prices = Arc::clone(&self.prices());
        if !prices.is_empty() {
            each(&|row| snapshot::put_prices(&prices, row))?;
        }
        for credential in self.upstream_credentials.list() {
            each(&|row| snapshot::put_credential(&credential, row))?;
        }
        let mut keys = Vec::with_capacity(self.len());
        self.by_id.each(|held| keys.push(Arc::clone(held)));
        keys.iter().try_for_each(|held| {
            each(&|row| snapshot::put_key(&held.key, &held.details, &held.credentials, held.version, row))
        })
    }

    // === applying changes; called by the follower only, one change after the other ===

    /// Applies a change, or notes why it cannot be applied. Returns the latter if it is new.
    fn apply(&self, change: Change) -> Option<Unapplied> {
        let row = self.broken_rows().watched(&change);
        match self.put(change) {
            Ok(()) => {
                if let Some(row) = row {
                    let mut broken = self.broken_rows();
                    broken.on_repaired(&row);
                    self.broken_rows.store(broken.len(), Ordering::Relaxed);
                }
                None
            }
            Err(unapplied) => {
                let mut broken = self.broken_rows();
                let is_news = broken.add(&unapplied);
                self.broken_rows.store(broken.len(), Ordering::Relaxed);
                is_news.then_some(*unapplied)
            }
        }
    }

    fn put(&self, change: Change) -> Result<(), Box<Unapplied>> {
        match change {
            Change::Plan(plan) => {
                let there = MissingReference::Plan(plan.id.clone());
                self.put_plan(plan);
                self.broken_rows().on_present(&there);
            }
            Change::PlanRemoved(id) => {
                self.plans().remove(&id);
            }
            Change::Workspace { id, plan_id, grants } => {
                self.put_workspace(&id, &plan_id, grants)?;
                self.broken_rows().on_present(&MissingReference::Workspace(id));
            }
            // Its keys were removed before.
            Change::WorkspaceRemoved(id) => {
                self.workspaces.remove(&id);
            }
            Change::Key(change) => return self.put_key(change),
            Change::KeyRemoved { id, .. } => self.remove_key(id),
            Change::EndUserRemoved { .. } => {}
            Change::Prices(prices) => *self.prices() = prices,
            Change::Credential(credential) => self.upstream_credentials.put(credential),
            Change::CredentialRemoved(id) => self.upstream_credentials.remove(id),
            Change::Broken { table, id, why, digests } => {
                // A key whose row is broken must not be served as it was before.
                if table == "keys"
                    && let Ok(key) = id.parse()
                {
                    self.remove_key(key);
                }
                return Err(Box::new(Unapplied { what: table, id, why, lacks: None, digests }));
            }
        }
        Ok(())
    }

    fn prices(&self) -> MutexGuard<'_, Arc<[ModelPrice]>> {
        self.prices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_plan(&self, plan: Plan) {
        let id = plan.id.clone();
        let in_force = Arc::new(PlanInForce::new(plan));
        self.plans().insert(id.clone(), Arc::clone(&in_force));
        for workspace in &self.workspaces {
            let before = workspace.plan.load();
            if before.plan.id == id {
                let grants = before.raise.as_ref().map(|raise| Arc::clone(&raise.grants));
                workspace.plan.store(PlanInForce::with(&in_force, grants));
            }
        }
    }

    fn put_workspace(
        &self,
        id: &WorkspaceId,
        plan_id: &PlanId,
        grants: Box<[Grant]>,
    ) -> Result<(), Box<Unapplied>> {
        let Some(plan) = self.plans().get(plan_id).cloned() else {
            let why = format!("it is on the plan {plan_id}, which is not there");
            let lacks = Some(MissingReference::Plan(plan_id.clone()));
            let digests = SmallVec::new();
            return Err(Box::new(Unapplied { what: "workspaces", id: id.to_string(), why, lacks, digests }));
        };
        let plan = PlanInForce::with(&plan, (!grants.is_empty()).then(|| grants.into()));
        if let Some(known) = self.workspaces.get(id) {
            known.plan.store(plan);
            return Ok(());
        }
        let workspace = Workspace { id: id.clone(), plan: ArcSwap::new(plan) };
        self.workspaces.insert(id.clone(), Arc::new(workspace));
        Ok(())
    }

    fn share_scopes(&self, scopes: &mut Scopes) {
        let mut known = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get(scopes) {
            *scopes = same.clone();
        } else if known.len() < SHARED_MAX {
            known.insert(scopes.clone());
        }
    }

    fn share_creator(&self, creator: &mut Arc<str>) {
        let mut known = self.creators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get(creator) {
            *creator = Arc::clone(same);
        } else if known.len() < SHARED_MAX {
            known.insert(Arc::clone(creator));
        }
    }

    fn put_key(&self, change: KeyChange) -> Result<(), Box<Unapplied>> {
        let KeyChange { mut key, mut details, credentials, version, was_restored: _ } = change;
        let id = key.id;
        let before = self.by_id.get(&id);
        if before.as_ref().is_some_and(|b| b.version > version) {
            return Ok(());
        }
        let Some(workspace) = self.workspaces.get(&key.workspace_id).map(|w| Arc::clone(w.value())) else {
            let why = format!("its workspace {} is not there", key.workspace_id);
            self.remove_key(id);
            let lacks = Some(MissingReference::Workspace(key.workspace_id));
            let digests = credentials.iter().map(|c| c.digest).collect();
            return Err(Box::new(Unapplied { what: "keys", id: id.to_string(), why, lacks, digests }));
        };
        // All keys of a workspace share its text.
        key.workspace_id = workspace.id.clone();
        self.share_scopes(&mut key.scopes);
        self.share_creator(&mut details.created_by);
        let entry = Arc::new(Entry { key, details, workspace, credentials, version });
        // What is found by a digest must also be found by its id. First add what is valid now, then remove what no longer
        // is, so that no valid secret is ever unknown in between.
        self.by_id.put(&id, Arc::clone(&entry));
        if entry.credentials.iter().any(|c| c.secret.is_of_sha256_import()) {
            self.has_sha256_imports.store(true, Ordering::Relaxed);
        }
        for credential in &entry.credentials {
            self.by_digest.put(&credential.digest, Arc::clone(&entry));
        }
        for old in before.iter().flat_map(|b| &b.credentials) {
            if !entry.credentials.iter().any(|c| c.digest == old.digest) {
                self.by_digest.take_if(&old.digest, |held| held.key.id == id);
            }
        }
        Ok(())
    }

    fn remove_key(&self, id: KeyId) {
        if let Some(entry) = self.by_id.take_if(&id, |_| true) {
            for credential in &entry.credentials {
                self.by_digest.take_if(&credential.digest, |held| held.key.id == id);
            }
        }
    }

    /// The store has gone back: versions in memory may be used again.
    fn forget_numbers(&self) {
        self.by_id.replace_each(|held| {
            let Entry { key, details, workspace, credentials, .. } = held;
            let (key, workspace, credentials) = (key.clone(), Arc::clone(workspace), credentials.clone());
            Entry { key, details: details.clone(), workspace, credentials, version: Version::default() }
        });
        self.broken_rows().clear();
        self.broken_rows.store(0, Ordering::Relaxed);
    }

    /// Removes every key that is not in `there`, and returns the removed ones.
    fn keep_only(&self, there: &HashSet<KeyId>) -> Vec<KeyId> {
        let mut gone = Vec::new();
        self.by_id.each(|held| gone.extend(Some(held.key.id).filter(|id| !there.contains(id))));
        for id in &gone {
            self.remove_key(*id);
        }
        gone
    }

    fn plans(&self) -> MutexGuard<'_, HashMap<PlanId, Arc<PlanInForce>>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken_rows(&self) -> MutexGuard<'_, BrokenRows> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Presented {
    /// The first instant at which this secret is no longer valid; none for the current one.
    pub fn valid_until(&self) -> Option<Timestamp> {
        self.entry.credentials.iter().find(|c| c.secret == self.secret)?.valid_until
    }

    /// Whether `other` is the same version of the same key, found by the same secret.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.entry, &other.entry) && self.secret == other.secret
    }
}

impl Default for Keyring {
    fn default() -> Self {
        Self::new()
    }
}

impl Entry {
    /// The limits of this key under `plan`.
    pub fn limits(&self, plan: &PlanInForce) -> Limits {
        key_limits(&self.key, &plan.plan)
    }
}

#[cfg(test)]
mod tests;
