//! The rows of the store as everybody else sees them, usage apart. Plain data; what they mean for a decision is `policy`'s.

use super::Version;
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::model::id::{AuditId, EndUserId, KeyId, PlanId, WorkspaceId, fill_random};
use crate::model::key::{Ceiling, Key, KeyType, Plan};
use crate::model::scope::Scopes;
use ipnet::IpNet;
use smallvec::SmallVec;
use std::net::IpAddr;

/// Which secret of a key, whatever it is hashed with: drawn at random when the secret is issued, so that a request that was
/// let in by it can be told from those of the secret that replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecretId(pub u32);

/// A digest a key can be found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What the secret hashes to.
    pub digest: Digest,
    /// Under which pepper.
    pub pepper_version: u32,
    /// Of which secret.
    pub secret: SecretId,
    /// The first instant at which it no longer opens anything; none while it is the key's current one.
    pub valid_until: Option<Timestamp>,
}

/// A freshly issued credential with what people may see of its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCredential {
    /// What the secret hashes to.
    pub digest: Digest,
    /// Under which pepper.
    pub pepper_version: u32,
    /// Which secret of the key it is.
    pub secret: SecretId,
    /// First and last characters, e.g. `sk-service-Ab3d…9fQz`.
    pub hint: Box<str>,
}

/// What opens a key: one secret, and for a while after a change the one before. Most have one, and a million keys are held.
pub type Credentials = SmallVec<[Credential; 1]>;

/// A key as it is created.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What decisions need.
    pub key: Key,
    /// What people call it; unique among the live keys of its resource.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// How it is found.
    pub credential: IssuedCredential,
    /// What it brings along from the store it was in before; none for a key that is new.
    pub past: Option<super::ImportedKeyHistory>,
}

/// A key at rest.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// What decisions need.
    pub key: Key,
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// First and last characters of its secret.
    pub hint: Box<str>,
    /// Charged requests in its life, as far as the ledger knows.
    pub quota_used: u64,
    /// Requests that were not denied, as far as the ledger knows.
    pub usage_count: u64,
    /// When its secret was last presented, as far as the ledger knows.
    pub last_used_at: Option<Timestamp>,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When it was deleted, of one that can still be restored; only lists of deleted keys have such.
    pub deleted_at: Option<Timestamp>,
}

/// What to change on a key; an absent field stays, an inner `None` clears.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyPatch {
    /// See [`KeyRecord::name`].
    pub name: Option<String>,
    /// See [`KeyRecord::description`].
    pub description: Option<String>,
    /// See [`Key::scopes`].
    pub scopes: Option<Scopes>,
    /// See [`crate::model::key::Ceilings::rate_limit`].
    pub rate_limit: Option<u32>,
    /// See [`crate::model::key::Ceilings::rate_burst`].
    pub rate_burst: Option<Option<u32>>,
    /// See [`crate::model::key::Ceilings::daily_request_limit`].
    pub daily_request_limit: Option<Option<u64>>,
    /// See [`crate::model::key::Ceilings::quota_limit`].
    pub quota_limit: Option<Option<u64>>,
    /// See [`crate::model::key::Ceilings::concurrency_limit`].
    pub concurrency_limit: Option<Option<u32>>,
    /// See [`crate::model::key::Ceilings::limits`].
    pub limits: Option<Box<[Ceiling]>>,
    /// See [`Key::is_active`].
    pub is_active: Option<bool>,
    /// See [`Key::expires_at`].
    pub expires_at: Option<Option<Timestamp>>,
    /// See [`Key::allowed_ips`].
    pub allowed_ips: Option<Box<[IpNet]>>,
    /// See [`KeyRecord::metadata`].
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Which keys to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFilter {
    /// Only this type.
    pub kind: Option<KeyType>,
    /// Only those switched on or off.
    pub is_active: Option<bool>,
    /// Only those of this resource.
    pub resource_id: Option<String>,
    /// Only those whose name, description or hint contains this, case ignored.
    pub search: Option<String>,
    /// Those that were deleted and can be restored, instead of those that are there.
    pub is_deleted: bool,
}

/// Which page; both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The number of the page.
    pub page: u32,
    /// Items on a page.
    pub pagesize: u32,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The items on it.
    pub items: Vec<T>,
    /// Items on all pages.
    pub total: u64,
    /// Rows of this page that could not be understood and are left out.
    pub passed_over: u64,
}

/// A plan at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRecord {
    /// What decisions need.
    pub plan: Plan,
    /// What it is for.
    pub description: String,
    /// How many whole UTC days before today usage records are kept for; none: for ever.
    pub usage_retention_days: Option<u32>,
    /// For how many days after its deletion a key can be restored; 0: not at all.
    pub deleted_keys_days: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What to change on a plan; an absent field stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanPatch {
    /// See [`PlanRecord::description`].
    pub description: Option<String>,
    /// See [`PlanRecord::usage_retention_days`].
    pub usage_retention_days: Option<Option<u32>>,
    /// See [`PlanRecord::deleted_keys_days`].
    pub deleted_keys_days: Option<u32>,
    /// See [`Plan::api_ops_rate_limit`].
    pub api_ops_rate_limit: Option<u32>,
    /// See [`Plan::end_user_quota`].
    pub end_user_quota: Option<u64>,
    /// See [`Plan::default_daily_request_limit`].
    pub default_daily_request_limit: Option<Option<u64>>,
    /// See [`Plan::limits`].
    pub limits: Option<Box<[Ceiling]>>,
}

/// A workspace at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceRecord {
    /// Which workspace.
    pub id: WorkspaceId,
    /// What people call it; empty until somebody names it.
    pub name: String,
    /// The plan it is on.
    pub plan_id: PlanId,
    /// End users that exist in it.
    pub end_users: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What to change on a workspace; an absent field stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkspacePatch {
    /// See [`WorkspaceRecord::name`].
    pub name: Option<String>,
    /// See [`WorkspaceRecord::plan_id`].
    pub plan_id: Option<PlanId>,
}

/// An end user at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndUserRecord {
    /// Keygate's number for it.
    pub id: EndUserId,
    /// Whose end user.
    pub workspace_id: WorkspaceId,
    /// The customer's name for it.
    pub other_id: String,
    /// When it first came.
    pub created_at: Timestamp,
}

/// What became of an end user's request to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndUserAdmission {
    /// It exists.
    Admitted(EndUserId),
    /// It is new and the plan is full.
    Full {
        /// The plan's `end_user_quota`.
        quota: u64,
    },
}

/// One change of the feed.
#[derive(Clone, Debug)]
pub enum Change {
    /// A plan as it is now.
    Plan(Plan),
    /// A plan that is gone.
    PlanRemoved(PlanId),
    /// A workspace as it is now.
    Workspace {
        /// Which workspace.
        id: WorkspaceId,
        /// The plan it is on.
        plan_id: PlanId,
    },
    /// A key as it is now.
    Key(KeyChange),
    /// A key that is gone for good.
    KeyRemoved {
        /// Which key.
        id: KeyId,
        /// In which write.
        version: Version,
    },
    /// An end user that was forgotten.
    EndUserRemoved {
        /// Whose end user.
        workspace_id: WorkspaceId,
        /// The customer's name for it.
        other_id: Box<str>,
    },
    /// A row that cannot be understood. What it stood for must not be served.
    Broken {
        /// Which table.
        table: &'static str,
        /// Its id as stored.
        id: String,
        /// What is wrong with it.
        why: String,
        /// Of a key: the digests that open it, as far as they can be read.
        digests: SmallVec<[Digest; 2]>,
    },
}

/// A key as the feed carries it.
#[derive(Clone, Debug)]
pub struct KeyChange {
    /// What decisions need.
    pub key: Key,
    /// Every digest that opens it: the current one first.
    pub credentials: Credentials,
    /// In which write it became so.
    pub version: Version,
    /// Whether it was deleted once and came back, so that nodes may have forgotten what it has spent.
    pub was_restored: bool,
}

// === audit ===

/// Who does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The token's subject, or `cli`, or `keygate` itself.
    pub subject: String,
    /// The token's role, or `local`.
    pub role: &'static str,
    /// From where.
    pub address: Option<IpAddr>,
    /// In which admin request.
    pub request_id: Option<Box<str>>,
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditRecord {
    /// Which line.
    pub id: AuditId,
    /// When.
    pub at: Timestamp,
    /// In which workspace; none for plans.
    pub workspace_id: Option<WorkspaceId>,
    /// Who.
    pub subject: String,
    /// With which role.
    pub role: String,
    /// From where.
    pub address: Option<IpAddr>,
    /// In which admin request.
    pub request_id: Option<String>,
    /// What, e.g. `key.update`.
    pub action: String,
    /// To which thing.
    pub target: String,
    /// Field by field what it was and what it became. Never a secret or a digest.
    pub changes: serde_json::Value,
}

/// Which lines of the audit trail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only this action.
    pub action: Option<String>,
    /// Only this thing.
    pub target: Option<String>,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not at or after.
    pub to: Option<Timestamp>,
}

// === impls ===

impl SecretId {
    /// One that no other secret of the key has.
    pub fn random() -> Self {
        let mut bytes = [0; 4];
        fill_random(&mut bytes);
        Self(u32::from_ne_bytes(bytes))
    }
}

impl Change {
    /// Whether something is gone for good.
    pub const fn is_removal(&self) -> bool {
        matches!(self, Self::PlanRemoved(_) | Self::KeyRemoved { .. } | Self::EndUserRemoved { .. })
    }
}

impl<T> Page<T> {
    /// A page of rows that were all understood.
    pub fn complete(items: Vec<T>, total: u64) -> Self {
        Self { items, total, passed_over: 0 }
    }

    /// A page without the rows that could not be understood, which are none.
    pub(super) fn of_readable(rows: Vec<Option<T>>, total: u64) -> Self {
        let found = rows.len();
        let items: Vec<T> = rows.into_iter().flatten().collect();
        let passed_over = u64::try_from(found - items.len()).unwrap_or(u64::MAX);
        Self { items, total, passed_over }
    }
}

impl PageRequest {
    /// Items before this page.
    pub fn offset(self) -> u64 {
        u64::from(self.page.saturating_sub(1)) * u64::from(self.pagesize)
    }
}

impl Actor {
    /// Keygate itself, e.g. when it creates what a fresh store needs.
    pub fn keygate() -> Self {
        Self { subject: "keygate".into(), role: "local", address: None, request_id: None }
    }

    /// Somebody at the command line of this machine.
    pub fn cli() -> Self {
        Self { subject: "cli".into(), role: "local", address: None, request_id: None }
    }
}
