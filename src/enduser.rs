//! Known end users, and the one atomic step by which a new one comes to exist.
//!
//! Must not know: keys, limits, HTTP. A known end user costs a look-up in memory; only one never seen before (or long
//! not seen) asks the store. When the store is gone, known ones pass and new ones are refused as unavailable.

use crate::clock::{Clock, Now};
use crate::policy::denial::Denial;
use crate::policy::fault::Fault;
use crate::policy::id::{EndUserId, WorkspaceId};
use crate::store::{EndUserAdmission, EndUsers as Table, StoreError, Version};
use quick_cache::Equivalent;
use quick_cache::sync::Cache;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// How long a refusal is believed without asking the store again, unless something changes meanwhile.
const REFUSAL_HOLDS: Duration = Duration::from_secs(1);
/// Refusals that are remembered.
const REFUSALS: usize = 10_000;

/// The end users that this node knows.
pub struct EndUsers {
    known: Cache<Name, EndUserId>,
    refused: Cache<Name, Refused>,
    store: Arc<dyn Table>,
    clock: Arc<dyn Clock>,
    io: tokio::runtime::Handle,
    /// The longest a request waits for the store.
    patience: Duration,
}

/// (`workspace_id`, `other_id`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name(WorkspaceId, Box<str>);

/// The same, borrowed: looking up allocates nothing.
struct NameRef<'r>(&'r WorkspaceId, &'r str);

#[derive(Clone, Copy, Debug)]
struct Refused {
    quota: u64,
    /// What the feed had reached: whoever makes room also writes a change.
    version: Version,
    at: Now,
}

impl EndUsers {
    /// Remembers at most `entries` end users. Store calls run on `io`, and a request waits `patience` for one.
    pub fn new(
        store: Arc<dyn Table>,
        clock: Arc<dyn Clock>,
        io: tokio::runtime::Handle,
        entries: usize,
        patience: Duration,
    ) -> Self {
        Self { known: Cache::new(entries), refused: Cache::new(REFUSALS), store, clock, io, patience }
    }

    /// The end user of that name, who may be new. `version` is what the keyring has reached.
    pub async fn admit(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        version: Version,
    ) -> Result<EndUserId, Denial> {
        let name = NameRef(workspace, other_id);
        if let Some(id) = self.known.get(&name) {
            return Ok(id);
        }
        let now = self.clock.now();
        if let Some(refused) = self.refused.get(&name)
            && refused.version == version
            && now.steady_ns.saturating_sub(refused.at.steady_ns) < nanos(REFUSAL_HOLDS)
        {
            return Err(Denial::EndUserQuota { quota: refused.quota });
        }
        let owned = Name(workspace.clone(), other_id.into());
        match self.ask(owned.clone(), now).await {
            Ok(EndUserAdmission::Admitted(id)) => {
                self.known.insert(owned, id);
                Ok(id)
            }
            Ok(EndUserAdmission::Full { quota }) => {
                self.refused.insert(owned, Refused { quota, version, at: now });
                Err(Denial::EndUserQuota { quota })
            }
            Err(error) => {
                tracing::warn!(%error, "a new end user cannot be decided on");
                Err(Denial::Plain(Fault::ServiceUnavailable))
            }
        }
    }

    /// Forgets an end user that was deleted.
    pub fn forget(&self, workspace: &WorkspaceId, other_id: &str) {
        self.known.remove(&NameRef(workspace, other_id));
    }

    /// The store is asked on the I/O runtime, so that a client that hangs up half-way leaves nothing half done.
    async fn ask(&self, name: Name, now: Now) -> Result<EndUserAdmission, StoreError> {
        let store = Arc::clone(&self.store);
        let asked = self.io.spawn(async move { store.admit_end_user(&name.0, &name.1, now.wall).await });
        match tokio::time::timeout(self.patience, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(lost)) => Err(StoreError::Unavailable(lost.to_string())),
            Err(_) => Err(StoreError::Unavailable("it did not answer in time".into())),
        }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Hash for NameRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.hash(state);
    }
}

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        *self.0 == name.0 && *self.1 == *name.1
    }
}
