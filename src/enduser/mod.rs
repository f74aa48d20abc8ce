//! Known end users, and the atomic creation of new ones.
//!
//! Must not know: keys, limits, HTTP. A known end user costs a look-up in memory; only a new one (or one not seen for long)
//! needs the store. While the store is unreachable, known ones pass, and new ones are refused or admitted and stored later,
//! by config. Once it is known to be unreachable, nobody waits for it.

mod pending;

use crate::clock::{Clock, Now};
use crate::metrics::Metrics;
use crate::model::fault::Fault;
use crate::model::id::{EndUserId, WorkspaceId};
use crate::model::outage::WhenStoreUnavailable;
use crate::policy::keys::denial::Denial;
use crate::store::{EndUserAdmission, EndUsers as Table, StoreError, Version};
use pending::PendingEndUsers;
use quick_cache::Equivalent;
use quick_cache::sync::Cache;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How long a refusal is cached, unless something changes meanwhile.
const REFUSAL_HOLDS: Duration = Duration::from_secs(1);
/// Most cached refusals.
const REFUSALS: usize = 10_000;
/// Most concurrent calls to the store; further ones queue.
const ASKS_AT_ONCE: usize = 32;
/// How often an unreachable store is tried again.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// The end users known to this node.
pub struct EndUserCache {
    known: Cache<EndUserName, EndUserId>,
    /// How often an end user was removed: answers of the store from before that are not cached.
    forgotten: AtomicU64,
    refused: Cache<EndUserName, CachedRefusal>,
    pending: PendingEndUsers,
    asks: Arc<Semaphore>,
    /// 0 while the store answers; otherwise the steady time in ns at which one request may try it again.
    try_at_ns: AtomicU64,
    parts: EndUserParts,
}

/// Dependencies.
pub struct EndUserParts {
    /// The store.
    pub store: Arc<dyn Table>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The runtime for calls to the store.
    pub io: tokio::runtime::Handle,
    /// The options.
    pub options: EndUserOptions,
}

/// Options for admitting end users.
#[derive(Clone, Copy, Debug)]
pub struct EndUserOptions {
    /// Most end users in the cache.
    pub entries: usize,
    /// Longest wait of a request for the store.
    pub patience: Duration,
    /// What to do with new ones while the store is unreachable.
    pub when_unavailable: WhenStoreUnavailable,
    /// The maximum of end users that are admitted and not stored yet.
    pub pending_entries: usize,
}

/// (`workspace_id`, `other_id`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EndUserName(WorkspaceId, Box<str>);

/// The same, borrowed, so that a look-up allocates nothing.
struct EndUserNameRef<'r>(&'r WorkspaceId, &'r str);

#[derive(Clone, Copy, Debug)]
struct CachedRefusal {
    quota: u64,
    /// The version that the feed had reached: freeing a place in the quota also writes a change.
    version: Version,
    at: Now,
}

impl EndUserCache {
    /// An empty cache.
    pub fn new(parts: EndUserParts) -> Self {
        Self {
            known: Cache::new(parts.options.entries),
            forgotten: AtomicU64::new(0),
            refused: Cache::new(REFUSALS),
            pending: PendingEndUsers::default(),
            asks: Arc::new(Semaphore::new(ASKS_AT_ONCE)),
            try_at_ns: AtomicU64::new(0),
            parts,
        }
    }

    /// The end user with this name, who may be new. `version` is what the keyring has reached, `quota` the plan's limit.
    pub async fn admit(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        version: Version,
        quota: u64,
    ) -> Result<EndUserId, Denial> {
        let name = EndUserNameRef(workspace, other_id);
        if let Some(id) = self.known.get(&name) {
            return Ok(id);
        }
        let owned = EndUserName(workspace.clone(), other_id.into());
        if let Some(id) = self.pending.get(&owned) {
            return Ok(id);
        }
        let now = self.parts.clock.now();
        // The id does not depend on how the end user is created, so usage recorded meanwhile is consistent.
        let id = EndUserId::new(now.wall);
        let refused = self.refused.get(&name).filter(|refused| refused.version == version);
        if let Some(refused) = refused
            && now.steady_ns.saturating_sub(refused.at.steady_ns) < nanos(REFUSAL_HOLDS)
        {
            return Err(Denial::EndUserQuota { quota: refused.quota });
        }
        if !self.may_ask(now) {
            return self.without_store(owned, id, refused, quota);
        }
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        match self.ask(owned.clone(), id, now).await {
            Ok(EndUserAdmission::Admitted(id)) => {
                self.remember(&owned, id, forgotten);
                Ok(id)
            }
            Ok(EndUserAdmission::Full { quota }) => {
                self.refused.insert(owned, CachedRefusal { quota, version, at: now });
                Err(Denial::EndUserQuota { quota })
            }
            Err(NotDecided::Gone) => self.without_store(owned, id, refused, quota),
            Err(NotDecided::Busy) => Err(Denial::Plain(Fault::ServiceUnavailable)),
        }
    }

    /// The end user with this name, if nobody has to be asked.
    pub fn known(&self, workspace: &WorkspaceId, other_id: &str) -> Option<EndUserId> {
        let known = self.known.get(&EndUserNameRef(workspace, other_id));
        known.or_else(|| self.pending.get(&EndUserName(workspace.clone(), other_id.into())))
    }

    /// Removes a deleted end user.
    pub fn forget(&self, workspace: &WorkspaceId, other_id: &str) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.known.remove(&EndUserNameRef(workspace, other_id));
    }

    /// Removes all: the store has gone back to an earlier state.
    pub fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.known.clear();
        self.refused.clear();
    }

    /// Caches an answer of the store, unless an end user has been deleted since the call: the answer may be older than the
    /// deletion.
    fn remember(&self, name: &EndUserName, id: EndUserId, forgotten: u64) {
        let is_new = || self.forgotten.load(Ordering::SeqCst) == forgotten;
        if is_new() {
            self.known.insert(name.clone(), id);
            if !is_new() {
                self.known.remove(name);
            }
        }
    }

    /// Stores pending end users while `stop` is false, and once more at the end.
    pub async fn settle(&self, mut stop: watch::Receiver<bool>) {
        loop {
            let stopping = *stop.borrow();
            let settled = self.settle_all().await;
            if stopping {
                break;
            }
            tokio::select! {
                () = self.pending.added(), if settled => {}
                () = tokio::time::sleep(TRY_EVERY), if !settled => {}
                _ = stop.changed() => {}
            }
        }
        let lost = self.pending.len();
        if lost > 0 {
            tracing::error!(
                lost,
                "end users admitted without the store were lost, they are counted again at their next request"
            );
        }
    }

    /// Returns false if the store is still unreachable.
    async fn settle_all(&self) -> bool {
        while let Some((name, id)) = self.pending.first() {
            let at = self.parts.clock.now().wall;
            let forgotten = self.forgotten.load(Ordering::SeqCst);
            match self.parts.store.admit_end_user_as(&name.0, &name.1, id, at).await {
                Ok(EndUserAdmission::Admitted(stored)) => self.remember(&name, stored, forgotten),
                Ok(EndUserAdmission::Full { .. }) => self.parts.metrics.end_users_over_quota.inc(),
                Err(error) if error.is_transient() => return false,
                Err(error) => {
                    tracing::error!(%error, %id, "cannot store end user admitted while the store was unavailable");
                }
            }
            // It answers; users over the quota are refused at their next request.
            self.try_at_ns.store(0, Ordering::Relaxed);
            self.pending.remove(&name);
            self.parts.metrics.end_users_unsettled.set(number(self.pending.len()));
        }
        true
    }

    /// Whether to call the store: it answers, or it is this request's turn to try again.
    fn may_ask(&self, now: Now) -> bool {
        let at = self.try_at_ns.load(Ordering::Relaxed);
        if at == 0 {
            return true;
        }
        let next = now.steady_ns + nanos(TRY_EVERY);
        now.steady_ns >= at
            && self.try_at_ns.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Decides without the store, which could not check the quota.
    fn without_store(
        &self,
        name: EndUserName,
        id: EndUserId,
        refused: Option<CachedRefusal>,
        quota: u64,
    ) -> Result<EndUserId, Denial> {
        let EndUserOptions { when_unavailable, pending_entries, .. } = self.parts.options;
        if when_unavailable == WhenStoreUnavailable::Refuse {
            return Err(Denial::Plain(Fault::ServiceUnavailable));
        }
        // The quota was reached, and nothing has changed since.
        if let Some(CachedRefusal { quota, .. }) = refused {
            return Err(Denial::EndUserQuota { quota });
        }
        match self.pending.add(name, id, quota, pending_entries) {
            Some(id) => {
                self.parts.metrics.end_users_unseen.inc();
                self.parts.metrics.end_users_unsettled.set(number(self.pending.len()));
                Ok(id)
            }
            None => Err(Denial::Plain(Fault::ServiceUnavailable)),
        }
    }

    /// The store is called on the I/O runtime, so that a client that disconnects leaves nothing half done.
    async fn ask(&self, name: EndUserName, id: EndUserId, now: Now) -> Result<EndUserAdmission, NotDecided> {
        let EndUserParts { store, io, options, .. } = &self.parts;
        let patience = tokio::time::Instant::now() + options.patience;
        let turn = tokio::time::timeout_at(patience, Arc::clone(&self.asks).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(NotDecided::Busy) };
        let store = Arc::clone(store);
        let asked = io.spawn(async move {
            let answer = store.admit_end_user_as(&name.0, &name.1, id, now.wall).await;
            drop(turn);
            answer
        });
        let answer = match tokio::time::timeout_at(patience, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(lost)) => Err(StoreError::Unavailable(lost.to_string())),
            Err(_) => Err(StoreError::Unavailable("it did not answer in time".into())),
        };
        let is_gone = matches!(&answer, Err(error) if error.is_transient());
        let try_at_ns = if is_gone { self.parts.clock.now().steady_ns + nanos(TRY_EVERY) } else { 0 };
        self.try_at_ns.store(try_at_ns, Ordering::Relaxed);
        answer.map_err(|error| {
            tracing::warn!(%error, "cannot check end user quota: store unavailable");
            if is_gone { NotDecided::Gone } else { NotDecided::Busy }
        })
    }
}

/// Why the store has not decided.
enum NotDecided {
    /// It is unreachable.
    Gone,
    /// It is overloaded, or failed for another reason.
    Busy,
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Hash for EndUserNameRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.hash(state);
    }
}

impl Equivalent<EndUserName> for EndUserNameRef<'_> {
    fn equivalent(&self, name: &EndUserName) -> bool {
        *self.0 == name.0 && *self.1 == *name.1
    }
}

#[cfg(test)]
mod tests;
