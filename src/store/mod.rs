//! The store: keys, plans, workspaces, end users, usage and the audit log, behind one set of traits.
//!
//! Must not know: requests, decisions, HTTP. While its backend is unreachable, every call returns
//! [`StoreError::Unavailable`].
//!
//! *Invariant:* every write draws the next number of one sequence under one lock and stores it on the rows it touches, so
//! that numbers become visible in order, and "all rows above my number" misses nothing.
//! *Invariant:* a query for a workspace names the workspace in the query itself.

mod error;
mod imported;
mod node;
pub mod postgres;
mod record;
pub mod shared;
pub mod snapshot;
pub mod sqlite;
mod usage;

use crate::model::digest::Digest;
use crate::model::usage::{UsageRecord, UsageSubject, UsageTotals};
pub use error::{NotRestorable, StoreError};
pub use imported::ImportedKeyHistory;
pub use node::{NodeReport, NodeRow};
pub use record::*;
pub use usage::*;

use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::credential::SealedCredential;
use crate::model::grant::Grant;
use crate::model::id::{CredentialId, EndUserId, GrantId, KeyId, PlanId, RequestId, WorkspaceId};
use crate::policy::prices::ModelPrice;
use async_trait::async_trait;
use std::fmt;
use tokio::sync::mpsc;
use uuid::Uuid;

/// A version: the number of a change in the store's one sequence. 0 is before everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u64);

/// The result of a write, with its version in the change feed.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// The record as it is now.
    pub value: T,
    /// The version of this write.
    pub version: Version,
}

/// The whole store, as `app` hands it out; all others take only the trait they need.
#[async_trait]
pub trait Store:
    Feed + Nodes + Keys + Tenants + EndUsers + Prices + UpstreamCredentials + Ledger + Audit
{
    /// Connects to the backend and migrates its schema; until this has succeeded, every other call is `Unavailable`. To be
    /// repeated while it is `Unavailable`.
    async fn bring_up(&self) -> Result<(), StoreError>;

    /// Accepts no more calls, finishes those that run or are queued, and disconnects. Later calls are `Unavailable`.
    async fn close(&self);
}

/// The change feed that keyrings follow.
#[async_trait]
pub trait Feed: Send + Sync + 'static {
    /// Sends every row with a version above `after`, in batches, from one consistent snapshot. Plans come before their
    /// workspaces, and workspaces before their keys. Returns the version that the snapshot reaches.
    ///
    /// Tombstones are sent, too. If the receiver is dropped, the call ends with [`StoreError::Cancelled`].
    async fn changes(&self, after: Version, to: mpsc::Sender<Vec<Change>>) -> Result<Version, StoreError>;

    /// The version of the newest write.
    async fn version(&self) -> Result<Version, StoreError>;

    /// Resolves when any node may have written since the last time it resolved. For one waiter. A backend that cannot tell
    /// never resolves, so callers must poll as well.
    async fn changed(&self) {
        std::future::pending::<()>().await;
    }

    /// Stores a check value of every pepper in use, and refuses a set that does not match what was stored. `peppers` are
    /// (version, check value) pairs; a check value identifies a pepper without revealing it.
    async fn agree_on_peppers(&self, peppers: &[(u32, [u8; 32])]) -> Result<(), StoreError>;
}

/// The nodes that use the store, and the versions they have applied.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// A heartbeat, with the version that the node has applied. Nodes that have not reported for a day are removed.
    async fn report(&self, node: &NodeReport) -> Result<(), StoreError>;

    /// A process shuts down; nobody has to wait for it any more.
    async fn leave(&self, boot: Uuid) -> Result<(), StoreError>;

    /// All known nodes, by name.
    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError>;
}

/// Keys.
#[async_trait]
pub trait Keys: Send + Sync + 'static {
    /// Adds a key. Fails with `DuplicateName`, `RateAbovePlan` or `NotFound` (no such workspace).
    async fn create_key(
        &self,
        key: NewKey,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError>;

    /// Adds many keys, each as [`Keys::create_key`] does, independently of the others. Returns a result for each, in order.
    /// Fails as a whole, without adding any, only if the store itself fails.
    async fn create_keys(
        &self,
        keys: Vec<NewKey>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Vec<Result<Version, StoreError>>, StoreError>;

    /// One key that is not deleted.
    async fn key(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;

    /// Keys that are not deleted, or with [`KeyFilter::is_deleted`] those that can be restored, newest first.
    async fn keys(
        &self,
        workspace: &WorkspaceId,
        filter: &KeyFilter,
        page: PageRequest,
    ) -> Result<Page<KeyRecord>, StoreError>;

    /// The version of the newest write to a key, deleted or not. None: there never was such a key in this workspace.
    async fn key_version(&self, workspace: &WorkspaceId, id: KeyId) -> Result<Option<Version>, StoreError>;

    /// Changes a key. `NotFound`, `DuplicateName`, `RateAbovePlan` (only when the patch touches the rate), `Invalid`.
    async fn update_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        patch: KeyPatch,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError>;

    /// Deletes a key: its secret is no longer valid, the name is free, usage stays. A tombstone stays, with the digests as
    /// long as the workspace's plan lets the key be restored.
    async fn delete_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError>;

    /// Undoes a deletion within the plan's `deleted_keys_days`: the key is as it was, its secret is valid again, and spent
    /// limits stay spent. `peppers` are the versions of configured peppers. `NotFound` if there was no such key or its time
    /// is over, `NotRestorable`, `DuplicateName`, `RateAbovePlan`.
    async fn restore_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        peppers: &[u32],
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError>;

    /// Gives a key a new credential. The previous one stays valid until `old_until`; older ones end now.
    async fn regenerate_key(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        new: IssuedCredential,
        old_until: Option<Timestamp>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<KeyRecord>, StoreError>;

    /// Replaces the digest `old` of a key by `new`, made with a newer pepper from the same secret. Returns none if the key
    /// has no such digest any more. Not an administrative write: no audit line.
    async fn rehash_key(
        &self,
        id: KeyId,
        old: Digest,
        new: Digest,
        pepper_version: u32,
    ) -> Result<Option<Version>, StoreError>;
}

/// Plans and workspaces.
#[async_trait]
pub trait Tenants: Send + Sync + 'static {
    /// Adds a plan. Fails with `AlreadyExists`.
    async fn create_plan(
        &self,
        plan: PlanRecord,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PlanRecord>, StoreError>;

    /// One plan.
    async fn plan(&self, id: &PlanId) -> Result<Option<PlanRecord>, StoreError>;

    /// All plans, by id.
    async fn plans(&self, page: PageRequest) -> Result<Page<PlanRecord>, StoreError>;

    /// Changes a plan. `NotFound`.
    async fn update_plan(
        &self,
        id: &PlanId,
        patch: PlanPatch,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PlanRecord>, StoreError>;

    /// Removes a plan that no workspace is on. `NotFound`, `PlanInUse`.
    async fn delete_plan(&self, id: &PlanId, by: &Actor, at: Timestamp) -> Result<Written<()>, StoreError>;

    /// The workspace; created with this plan if it does not exist. `NotFound` if there is no such plan, `WorkspaceDeleted`.
    async fn ensure_workspace(
        &self,
        id: &WorkspaceId,
        plan: &PlanId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<WorkspaceRecord>, StoreError>;

    /// One workspace.
    async fn workspace(&self, id: &WorkspaceId) -> Result<Option<WorkspaceRecord>, StoreError>;

    /// All workspaces, newest first.
    async fn workspaces(&self, page: PageRequest) -> Result<Page<WorkspaceRecord>, StoreError>;

    /// Changes a workspace; creates it if it does not exist or was deleted (a patch without a plan then means `default_plan`).
    async fn put_workspace(
        &self,
        id: &WorkspaceId,
        patch: WorkspacePatch,
        default_plan: &PlanId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<WorkspaceRecord>, StoreError>;

    /// Adds to a limit of a workspace's plan. `NotFound`, `Invalid` if the plan has no such limit, or there are too many grants.
    async fn create_grant(
        &self,
        workspace: &WorkspaceId,
        grant: Grant,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<Grant>, StoreError>;

    /// Removes a grant at once, also one that has ended. `NotFound`.
    async fn delete_grant(
        &self,
        workspace: &WorkspaceId,
        id: GrantId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError>;

    /// Deletes a workspace, its end users and, with `force`, its keys as [`Keys::delete_key`] does. Usage and the audit trail
    /// stay as long as retention keeps them. Returns how many keys were deleted. `NotFound`, `WorkspaceInUse` if it has
    /// keys and `force` is not set.
    async fn delete_workspace(
        &self,
        id: &WorkspaceId,
        force: bool,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<u64>, StoreError>;

    /// The ids of deleted workspaces, in their order.
    async fn deleted_workspaces(&self, page: PageRequest) -> Result<Page<WorkspaceId>, StoreError>;

    /// Whether there was a workspace of this id that is deleted.
    async fn was_workspace(&self, id: &WorkspaceId) -> Result<bool, StoreError>;
}

/// End users.
#[async_trait]
pub trait EndUsers: Send + Sync + 'static {
    /// The end user with this name; created if it is new and the workspace's plan has room. One atomic step, so that at
    /// most `end_user_quota` exist however many calls run concurrently. `NotFound` if there is no such workspace.
    async fn admit_end_user(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        at: Timestamp,
    ) -> Result<EndUserAdmission, StoreError> {
        self.admit_end_user_as(workspace, other_id, EndUserId::new(at), at).await
    }

    /// The same, with the id for a new one.
    async fn admit_end_user_as(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        id: EndUserId,
        at: Timestamp,
    ) -> Result<EndUserAdmission, StoreError>;

    /// Adds end users of a workspace with their ids from another store, whatever the plan's quota. Existing ones, by id or
    /// by name, are not changed. Returns how many were new, which has a line in the audit trail if there are any; `NotFound` if there is no such workspace.
    async fn restore_end_users(
        &self,
        workspace: &WorkspaceId,
        users: Vec<EndUserRecord>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<u64, StoreError>;

    /// End users of a workspace, newest first; with `other_id` exactly that one.
    async fn end_users(
        &self,
        workspace: &WorkspaceId,
        other_id: Option<&str>,
        page: PageRequest,
    ) -> Result<Page<EndUserRecord>, StoreError>;

    /// One end user.
    async fn end_user(
        &self,
        workspace: &WorkspaceId,
        id: EndUserId,
    ) -> Result<Option<EndUserRecord>, StoreError>;

    /// Removes an end user, which frees a place in the quota. `NotFound`.
    async fn delete_end_user(
        &self,
        workspace: &WorkspaceId,
        id: EndUserId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError>;
}

/// Prices of models.
#[async_trait]
pub trait Prices: Send + Sync + 'static {
    /// All prices.
    async fn price_list(&self) -> Result<PriceList, StoreError>;

    /// Replaces all prices, which must be a valid [`PriceTable`](crate::policy::prices::PriceTable).
    async fn put_price_list(
        &self,
        prices: Vec<ModelPrice>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PriceList>, StoreError>;
}

/// Encrypted credentials for backends.
#[async_trait]
pub trait UpstreamCredentials: Send + Sync + 'static {
    /// Those of one upstream, or of all, by upstream, workspace and metadata.
    async fn credentials(&self, upstream: Option<&str>) -> Result<Vec<CredentialRecord>, StoreError>;

    /// Stores a credential; one for the same requests is replaced and keeps its id. `NotFound` if it is for a workspace that
    /// does not exist, `Invalid` if there are too many.
    async fn put_credential(
        &self,
        credential: SealedCredential,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<CredentialRecord>, StoreError>;

    /// Deletes a credential of an upstream. `NotFound`.
    async fn delete_credential(
        &self,
        upstream: &str,
        id: CredentialId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError>;
}

/// Usage.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Stores records and updates the roll-ups from those that were new, in one transaction. A record that exists already
    /// (same id) is skipped, so repeating a call changes nothing. Returns how many were new.
    async fn append(&self, records: &[UsageRecord]) -> Result<u64, StoreError>;

    /// Creates partitions in advance and deletes what need not be kept at the instant `at`, in short steps. Repeating it is
    /// harmless; several nodes may do it at once.
    async fn maintain(&self, at: Timestamp) -> Result<MaintenanceReport, StoreError> {
        let nothing_to_do = |_| MaintenanceReport::default();
        Ok(nothing_to_do(at))
    }

    /// The usage of every key and workspace in the windows of `calendar` that contain `at`, to restore counters.
    async fn totals(
        &self,
        at: Timestamp,
        calendar: Calendar,
        to: mpsc::Sender<Vec<UsageTotals>>,
    ) -> Result<(), StoreError>;

    /// The usage of every end user of a workspace, in windows of a day and longer: no shorter ones are kept.
    async fn end_user_totals(
        &self,
        workspace: &WorkspaceId,
        at: Timestamp,
        calendar: Calendar,
        to: mpsc::Sender<Vec<UsageTotals>>,
    ) -> Result<(), StoreError>;

    /// The same for one subject; zeros if it has spent nothing.
    async fn totals_of(
        &self,
        subject: &UsageSubject,
        at: Timestamp,
        calendar: Calendar,
    ) -> Result<UsageTotals, StoreError>;

    /// Totals of one key, in time that does not depend on the length of the ledger. None: no such key in this workspace; a
    /// deleted key keeps its statistics.
    async fn stats(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        at: Timestamp,
    ) -> Result<Option<KeyStats>, StoreError>;

    /// A time series of one key: one point per interval with any usage, oldest first.
    async fn usage(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        range: &UsageRange,
    ) -> Result<Option<Vec<UsagePoint>>, StoreError>;

    /// The same of all keys of a workspace together, deleted ones included.
    async fn workspace_series(
        &self,
        workspace: &WorkspaceId,
        range: &UsageRange,
    ) -> Result<Vec<UsagePoint>, StoreError>;

    /// Totals of a workspace's keys, deleted ones included, in time that does not depend on the length of the ledger.
    async fn workspace_usage(
        &self,
        workspace: &WorkspaceId,
        filter: &UsageTotalsFilter,
    ) -> Result<UsageTotal, StoreError>;

    /// The same in groups with any usage, those with the most requests first.
    async fn workspace_usage_by(
        &self,
        workspace: &WorkspaceId,
        filter: &UsageTotalsFilter,
        by: UsageGroup,
        page: PageRequest,
    ) -> Result<Page<UsageGroupTotal>, StoreError>;

    /// Usage records of one key, newest first.
    async fn logs(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        filter: &LogFilter,
        page: LogPageRequest,
    ) -> Result<Option<LogPage>, StoreError>;

    /// Usage records of all keys, deleted ones included, ordered by id, from the id `first` on, for export. A call examines
    /// `looks_at` records (at least 1), whether they match or not. Records hidden by retention are left out. Records that
    /// arrive meanwhile are found if their ids are after the position reached.
    async fn all_records(
        &self,
        filter: &RecordFilter,
        first: RequestId,
        looks_at: u32,
    ) -> Result<RecordPage, StoreError>;
}

/// How a sign-in to the console ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignIn {
    /// Somebody is in.
    Done {
        /// What their identity provider calls them, if one was asked.
        name: Option<String>,
    },
    /// Nobody is, for this reason.
    Refused {
        /// A word, such as `token_expired`.
        reason: String,
    },
}

/// The audit log.
#[async_trait]
pub trait Audit: Send + Sync + 'static {
    /// Adds a line of the platform: the node with this name has reloaded its config, with these changes.
    async fn note_reload(
        &self,
        node: &str,
        changes: serde_json::Map<String, serde_json::Value>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<(), StoreError>;

    /// Adds a line: a sign-in to the console of this workspace or of the platform ended so.
    async fn note_sign_in(
        &self,
        workspace: Option<&WorkspaceId>,
        ended: &SignIn,
        by: &Actor,
        at: Timestamp,
    ) -> Result<(), StoreError>;

    /// Lines of one workspace, or of the platform (plans, workspaces, configs) if none is given; newest first.
    async fn audit(
        &self,
        workspace: Option<&WorkspaceId>,
        filter: &AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditRecord>, StoreError>;
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
