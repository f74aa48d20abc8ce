//! The records of the store, except usage. Plain data; `policy` knows what they mean for a decision.

use super::Version;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::credential::SealedCredential;
use crate::model::digest::Digest;
use crate::model::grant::Grant;
use crate::model::id::{AuditId, CredentialId, EndUserId, KeyId, PlanId, WorkspaceId, fill_random};
use crate::model::key::{Ceiling, Key, KeyDetails, KeyType, Plan};
use crate::model::scope::Scopes;
use crate::policy::prices::ModelPrice;
use ipnet::IpNet;
use smallvec::SmallVec;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Identifies a secret of a key, independent of the pepper it is hashed with. It is drawn at random when the secret is
/// issued, so that requests made with it can be told from those made with its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecretId(pub u32);

/// A digest by which a key is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The digest.
    pub digest: Digest,
    /// The version of its pepper.
    pub pepper_version: u32,
    /// The secret.
    pub secret: SecretId,
    /// The first instant at which it is no longer valid; none for the key's current secret.
    pub valid_until: Option<Timestamp>,
}

/// A newly issued credential, with the part of its secret that may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCredential {
    /// The digest.
    pub digest: Digest,
    /// The version of its pepper.
    pub pepper_version: u32,
    /// The secret.
    pub secret: SecretId,
    /// First and last characters, e.g. `sk-service-Ab3d…9fQz`.
    pub hint: Box<str>,
}

/// The credentials of a key: one secret, and for a while after a change the previous one. Most keys have one, and memory
/// holds a million of them.
pub type Credentials = SmallVec<[Credential; 1]>;

/// A new key.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The part that decisions need.
    pub key: Key,
    /// The name; unique among the live keys of its resource.
    pub name: String,
    /// A description.
    pub description: String,
    /// See [`KeyRecord::external_id`].
    pub external_id: Option<String>,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Its credential.
    pub credential: IssuedCredential,
    /// Its history in another store; none for a new key.
    pub past: Option<super::ImportedKeyHistory>,
    /// Which request makes it, if that may be repeated.
    pub once: Option<IdempotencyClaim>,
}

/// A request that may be sent again and must make one key only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyClaim {
    /// A digest of the caller and of the name that the caller gave the request.
    pub id: [u8; 32],
    /// A digest of the request.
    pub fingerprint: [u8; 32],
}

impl IdempotencyClaim {
    /// How long a repetition is recognised.
    pub const VALID: Duration = Duration::from_hours(24);
}

/// A stored key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// The part that decisions need.
    pub key: Key,
    /// The name.
    pub name: String,
    /// A description.
    pub description: String,
    /// Its id in another system; unique among the live keys of the workspace.
    pub external_id: Option<String>,
    /// The caller's own data.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// First and last characters of its secret.
    pub hint: Box<str>,
    /// Charged requests in its life, according to the ledger.
    pub quota_used: u64,
    /// Requests that reached a backend, according to the ledger.
    pub usage_count: u64,
    /// When its secret was last presented, according to the ledger.
    pub last_used_at: Option<Timestamp>,
    /// Who created it.
    pub created_by: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When it was deleted; only in lists of deleted keys that can be restored.
    pub deleted_at: Option<Timestamp>,
}

/// Changes to a key; an absent field stays, an inner `None` clears it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyPatch {
    /// See [`KeyRecord::name`].
    pub name: Option<String>,
    /// See [`KeyRecord::description`].
    pub description: Option<String>,
    /// See [`KeyRecord::external_id`].
    pub external_id: Option<Option<String>>,
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

/// A filter for keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFilter {
    /// Only this type.
    pub kind: Option<KeyType>,
    /// Only enabled or only disabled ones.
    pub is_active: Option<bool>,
    /// Only those of this resource.
    pub resource_id: Option<String>,
    /// Only the one with this id in another system.
    pub external_id: Option<String>,
    /// Only those whose name, description or hint contains this, ignoring case.
    pub search: Option<String>,
    /// Deleted keys that can be restored, instead of existing ones.
    pub is_deleted: bool,
    /// Only those after this position. They are not counted then: the total is that of the page.
    pub after: Option<KeyCursor>,
}

/// A position in a list of keys, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyCursor {
    /// The last key's creation.
    pub created_at: Timestamp,
    /// The last key's id.
    pub id: KeyId,
}

impl KeyCursor {
    /// The position before every key.
    pub const START: Self = Self { created_at: Timestamp::MAX, id: KeyId(Uuid::max()) };
}

/// A page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The number of the page, from 1.
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
    /// Rows of this page that could not be read and are left out.
    pub passed_over: u64,
}

/// A stored plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRecord {
    /// The part that decisions need.
    pub plan: Plan,
    /// A description.
    pub description: String,
    /// How many whole UTC days before today usage records are kept; none: for ever.
    pub usage_retention_days: Option<u32>,
    /// For how many days after its deletion a key can be restored; 0: not at all.
    pub deleted_keys_days: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Changes to a plan; an absent field stays.
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
    /// See [`Plan::calendar`].
    pub calendar: Option<Calendar>,
}

/// A stored workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceRecord {
    /// The id.
    pub id: WorkspaceId,
    /// The name; empty until it is set.
    pub name: String,
    /// Its plan.
    pub plan_id: PlanId,
    /// Number of its end users.
    pub end_users: u64,
    /// What is added to its plan's limits, oldest first; also grants that have ended.
    pub grants: Box<[Grant]>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Changes to a workspace; an absent field stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkspacePatch {
    /// See [`WorkspaceRecord::name`].
    pub name: Option<String>,
    /// See [`WorkspaceRecord::plan_id`].
    pub plan_id: Option<PlanId>,
}

/// A stored end user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndUserRecord {
    /// The id assigned by Keygate.
    pub id: EndUserId,
    /// Its workspace.
    pub workspace_id: WorkspaceId,
    /// The customer's id for it.
    pub other_id: String,
    /// When it was created.
    pub created_at: Timestamp,
}

/// The result of admitting an end user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndUserAdmission {
    /// It exists.
    Admitted(EndUserId),
    /// It is new and the quota is reached.
    Full {
        /// The plan's `end_user_quota`.
        quota: u64,
    },
}

/// One change of the feed.
#[derive(Clone, Debug)]
pub enum Change {
    /// The current state of a plan.
    Plan(Plan),
    /// A removed plan.
    PlanRemoved(PlanId),
    /// The current state of a workspace.
    Workspace {
        /// The workspace.
        id: WorkspaceId,
        /// Its plan.
        plan_id: PlanId,
        /// What is added to the plan's limits.
        grants: Box<[Grant]>,
    },
    /// A deleted workspace.
    WorkspaceRemoved(WorkspaceId),
    /// The current state of a key.
    Key(KeyChange),
    /// A deleted key.
    KeyRemoved {
        /// The key.
        id: KeyId,
        /// The version of the write.
        version: Version,
    },
    /// A removed end user.
    EndUserRemoved {
        /// Its workspace.
        workspace_id: WorkspaceId,
        /// The customer's id for it.
        other_id: Box<str>,
    },
    /// All prices.
    Prices(Arc<[ModelPrice]>),
    /// The current state of a credential for backends.
    Credential(SealedCredential),
    /// A deleted credential for backends.
    CredentialRemoved(CredentialId),
    /// A row that cannot be read. The record it stands for must not be used.
    Broken {
        /// The table.
        table: &'static str,
        /// Its id as stored.
        id: String,
        /// The error.
        why: String,
        /// For a key: its digests, as far as they can be read.
        digests: SmallVec<[Digest; 2]>,
    },
}

/// A key in the feed.
#[derive(Clone, Debug)]
pub struct KeyChange {
    /// The part that decisions need.
    pub key: Key,
    /// What backends may be told about it.
    pub details: KeyDetails,
    /// All its digests, the current one first.
    pub credentials: Credentials,
    /// The version of the write.
    pub version: Version,
    /// Whether it was deleted and restored, so that nodes may have dropped its counts.
    pub was_restored: bool,
}

// === audit ===

/// The author of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The subject of the token, or `cli`, or `keygate` itself.
    pub subject: String,
    /// The role of the token, or `local`.
    pub role: &'static str,
    /// The address.
    pub address: Option<IpAddr>,
    /// The id of the admin request.
    pub request_id: Option<Box<str>>,
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditRecord {
    /// The id.
    pub id: AuditId,
    /// The time.
    pub at: Timestamp,
    /// The workspace; none for plans.
    pub workspace_id: Option<WorkspaceId>,
    /// The author.
    pub subject: String,
    /// The author's role.
    pub role: String,
    /// The author's address.
    pub address: Option<IpAddr>,
    /// The id of the admin request.
    pub request_id: Option<String>,
    /// The action, e.g. `key.update`.
    pub action: String,
    /// The changed record.
    pub target: String,
    /// The old and the new value of each field. Never a secret or a digest.
    pub changes: serde_json::Value,
}

/// A filter for lines of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only this action.
    pub action: Option<String>,
    /// Only this record.
    pub target: Option<String>,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not at or after.
    pub to: Option<Timestamp>,
}

/// Marks secrets of which only the SHA-256 digest was known.
const OF_SHA256: u32 = 1 << 31;

// === impls ===

impl SecretId {
    /// A random id, different from those of other secrets of the key.
    pub fn random() -> Self {
        let mut bytes = [0; 4];
        fill_random(&mut bytes);
        Self(u32::from_ne_bytes(bytes) & !OF_SHA256)
    }

    /// The same for a secret of which only the SHA-256 digest is known. The mark stays after the secret itself has been
    /// seen.
    pub fn of_sha256_import() -> Self {
        Self(Self::random().0 | OF_SHA256)
    }

    /// Whether the key may have to be found by the SHA-256 digest of its secret.
    pub const fn is_of_sha256_import(self) -> bool {
        self.0 & OF_SHA256 != 0
    }
}

/// The prices of models in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceList {
    /// The prices.
    pub prices: Arc<[ModelPrice]>,
    /// When they were set; none: not yet.
    pub updated_at: Option<Timestamp>,
}

/// A credential for backends in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRecord {
    /// The credential.
    pub credential: SealedCredential,
    /// Who stored it last.
    pub created_by: String,
    /// When it was first stored.
    pub created_at: Timestamp,
    /// When it was last stored.
    pub updated_at: Timestamp,
}

impl Change {
    /// Whether a record was removed.
    pub const fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::PlanRemoved(_)
                | Self::WorkspaceRemoved(_)
                | Self::KeyRemoved { .. }
                | Self::EndUserRemoved { .. }
                | Self::CredentialRemoved(_)
        )
    }
}

impl<T> Page<T> {
    /// A page without unreadable rows.
    pub fn complete(items: Vec<T>, total: u64) -> Self {
        Self { items, total, passed_over: 0 }
    }

    /// A page without its unreadable rows, which are none.
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
    /// Keygate itself, e.g. when it creates the records of a new store.
    pub fn keygate() -> Self {
        Self { subject: "keygate".into(), role: "local", address: None, request_id: None }
    }

    /// A user at the command line of this machine.
    pub fn cli() -> Self {
        Self { subject: "cli".into(), role: "local", address: None, request_id: None }
    }
}
