//! The rows of the store as everybody else sees them. Plain data; what they mean for a decision is `policy`'s.

use super::Version;
use super::rollup::{Quantiles, Tally};
use crate::clock::Timestamp;
use crate::policy::fault::Fault;
use crate::policy::id::{AuditId, EndUserId, KeyId, PlanId, RequestId, WorkspaceId};
use crate::policy::key::{Ceiling, Key, KeyType, Plan, Scopes, words};
use ipnet::IpNet;
use smallvec::SmallVec;
use std::fmt;
use std::net::IpAddr;

/// HMAC-SHA-256 of a secret under a pepper.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// A digest a key can be found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What the secret hashes to.
    pub digest: Digest,
    /// Under which pepper.
    pub pepper_version: u32,
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
    /// First and last characters, e.g. `sk-service-Ab3d…9fQz`.
    pub hint: Box<str>,
}

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
    pub past: Option<super::KeyPast>,
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
    /// See [`crate::policy::key::Ceilings::rate_limit`].
    pub rate_limit: Option<u32>,
    /// See [`crate::policy::key::Ceilings::rate_burst`].
    pub rate_burst: Option<Option<u32>>,
    /// See [`crate::policy::key::Ceilings::daily_request_limit`].
    pub daily_request_limit: Option<u64>,
    /// See [`crate::policy::key::Ceilings::quota_limit`].
    pub quota_limit: Option<Option<u64>>,
    /// See [`crate::policy::key::Ceilings::concurrency_limit`].
    pub concurrency_limit: Option<Option<u32>>,
    /// See [`crate::policy::key::Ceilings::limits`].
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
    /// See [`Plan::api_ops_rate_limit`].
    pub api_ops_rate_limit: Option<u32>,
    /// See [`Plan::end_user_quota`].
    pub end_user_quota: Option<u64>,
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
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all changes are keys; a box would cost each of them a detour"
)]
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
    },
}

/// A key as the feed carries it.
#[derive(Clone, Debug)]
pub struct KeyChange {
    /// What decisions need.
    pub key: Key,
    /// Every digest that opens it: the current one first.
    pub credentials: SmallVec<[Credential; 2]>,
    /// In which write it became so.
    pub version: Version,
}

// === usage ===

words!(
    /// How a request ended.
    Outcome {
        /// The backend's answer was passed on, whatever its status.
        Served = "served",
        /// Keygate refused it; the record's `denial` says why.
        Denied = "denied",
        /// No complete answer came from the backend.
        UpstreamFailed = "upstream_failed",
        /// The client went away first.
        Aborted = "aborted",
        /// The gateway was stopped while it was in flight.
        Interrupted = "interrupted",
    }
);

/// One request in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// Identity; a record is in the ledger once.
    pub id: RequestId,
    /// What the client and the logs know the request by.
    pub request_id: Box<str>,
    /// Whose secret was presented.
    pub api_key_id: KeyId,
    /// The tenant of that key.
    pub workspace_id: WorkspaceId,
    /// When the request had arrived.
    pub at: Timestamp,
    /// HTTP method.
    pub method: Box<str>,
    /// Canonical path, without the query.
    pub endpoint: Box<str>,
    /// The route's name; empty when none matched.
    pub route: Box<str>,
    /// Status sent to the client, or that would have been.
    pub status_code: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was denied.
    pub denial: Option<Fault>,
    /// Whether it counts against the key's limits.
    pub charged: bool,
    /// Whether its limits were decided without the shared counters.
    pub degraded: bool,
    /// From arrival to the last byte of the answer, in µs.
    pub response_time_us: u64,
    /// From arrival to the first byte of the answer, in µs.
    pub ttfb_us: Option<u64>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// Tokens, where the backend told.
    pub tokens_used: u64,
    /// The client's address.
    pub ip_address: Option<IpAddr>,
    /// The client's name for itself, cut to 256 bytes.
    pub user_agent: Box<str>,
    /// Whom the request was for.
    pub end_user_id: Option<EndUserId>,
    /// The backend server that was asked last.
    pub upstream: Box<str>,
    /// The node that served it.
    pub node: Box<str>,
}

/// What one subject has spent of the windows that contain the asked instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpentRow {
    /// Whose spending.
    pub subject: SpentBy,
    /// Charged requests in this calendar minute.
    pub minute: u64,
    /// Charged requests in this calendar hour.
    pub hour: u64,
    /// Charged requests on this calendar day.
    pub day: u64,
    /// Charged requests in this calendar month.
    pub month: u64,
    /// Charged requests ever.
    pub total: u64,
}

/// Whose spending.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpentBy {
    /// One key's.
    Key(KeyId),
    /// All keys of a workspace together.
    Workspace(WorkspaceId),
}

/// Totals of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyStats {
    /// Requests that presented its secret, denied ones too.
    pub total_requests: u64,
    /// The same for the current UTC day.
    pub requests_today: u64,
    /// Charged requests.
    pub quota_used: u64,
    /// The key's `quota_limit`.
    pub quota_limit: Option<u64>,
    /// Denied requests.
    pub denied: u64,
    /// Requests that failed behind the gateway: status 500 or above, or no complete answer.
    pub errors: u64,
    /// When its secret was last presented.
    pub last_used_at: Option<Timestamp>,
    /// Tokens.
    pub tokens_used: u64,
    /// Response times of requests that were not denied.
    pub response_time: Quantiles,
}

words!(
    /// The width of a point of a time series.
    Interval {
        /// One minute.
        Minute = "minute",
        /// One hour.
        Hour = "hour",
        /// One UTC day.
        Day = "day",
    }
);

/// Which time series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageRange {
    /// First instant.
    pub from: Timestamp,
    /// First instant after it.
    pub to: Timestamp,
    /// Width of a point.
    pub interval: Interval,
}

/// One point of a time series.
#[derive(Clone, Debug, PartialEq)]
pub struct UsagePoint {
    /// Where it begins.
    pub start: Timestamp,
    /// Requests, denied ones too.
    pub requests: u64,
    /// Denied requests.
    pub denied: u64,
    /// Requests that failed behind the gateway.
    pub errors: u64,
    /// Tokens.
    pub tokens_used: u64,
    /// Body bytes from clients.
    pub bytes_in: u64,
    /// Body bytes to clients.
    pub bytes_out: u64,
    /// Response times of requests that were not denied.
    pub response_time: Quantiles,
}

/// Which usage records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not at or after.
    pub to: Option<Timestamp>,
    /// Only this status.
    pub status_code: Option<u16>,
    /// Only paths that contain this, case ignored.
    pub endpoint: Option<String>,
}

/// Which part of the usage records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPageRequest {
    /// A numbered page.
    Number(PageRequest),
    /// What comes after a place, at most so many.
    After(LogCursor, u32),
}

/// A place in the usage records, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// The last record's instant.
    pub at: Timestamp,
    /// The last record's identity.
    pub id: RequestId,
}

/// A part of the usage records.
#[derive(Clone, Debug, PartialEq)]
pub struct LogPage {
    /// The records, newest first.
    pub items: Vec<UsageRecord>,
    /// Records that fit the filter; none when the part was asked for by cursor.
    pub total: Option<LogTotal>,
    /// Where the next part begins; none at the end. A search that has looked at as many records as one call may ends
    /// here too, with fewer items than were asked for or none at all.
    pub next: Option<LogCursor>,
    /// Rows that could not be understood and are left out.
    pub passed_over: u64,
}

/// How many records fit a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTotal {
    /// So many, or at least so many.
    pub records: u64,
    /// Whether all were counted.
    pub is_exact: bool,
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

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

impl Change {
    /// Whether something is gone for good.
    pub const fn is_removal(&self) -> bool {
        matches!(self, Self::PlanRemoved(_) | Self::KeyRemoved { .. } | Self::EndUserRemoved { .. })
    }
}

impl KeyStats {
    /// Statistics from the roll-ups of a key's whole life and of the current day.
    pub(super) fn new(life: &Tally, today: &Tally, quota_limit: Option<u64>) -> Self {
        Self {
            total_requests: life.requests,
            requests_today: today.requests,
            quota_used: life.charged,
            quota_limit,
            denied: life.denied,
            errors: life.errors,
            last_used_at: (life.requests > 0).then_some(life.last_at),
            tokens_used: life.tokens,
            response_time: life.quantiles(),
        }
    }
}

impl<T> Page<T> {
    /// A page of rows that were all understood.
    pub fn whole(items: Vec<T>, total: u64) -> Self {
        Self { items, total, passed_over: 0 }
    }

    /// A page without the rows that could not be understood, which are none.
    pub(super) fn sound(rows: Vec<Option<T>>, total: u64) -> Self {
        let found = rows.len();
        let items: Vec<T> = rows.into_iter().flatten().collect();
        let passed_over = u64::try_from(found - items.len()).unwrap_or(u64::MAX);
        Self { items, total, passed_over }
    }
}

impl SpentRow {
    /// Nothing spent.
    pub const fn nothing(subject: SpentBy) -> Self {
        Self { subject, minute: 0, hour: 0, day: 0, month: 0, total: 0 }
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
