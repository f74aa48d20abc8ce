//! Usage at rest, as everybody else sees it: the records, and what is made of them. Plain data.

use super::PageRequest;
use super::rollup::{Quantiles, Tally};
use crate::clock::Timestamp;
use crate::policy::fault::Fault;
use crate::policy::id::{EndUserId, KeyId, RequestId, WorkspaceId};
use crate::policy::key::words;
use std::net::IpAddr;
use std::sync::Arc;

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

/// One request in the ledger. A copy of it shares its texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// Identity; a record is in the ledger once.
    pub id: RequestId,
    /// What the client and the logs know the request by.
    pub request_id: Arc<str>,
    /// Whose secret was presented.
    pub api_key_id: KeyId,
    /// The tenant of that key.
    pub workspace_id: WorkspaceId,
    /// When the request had arrived.
    pub at: Timestamp,
    /// HTTP method.
    pub method: Arc<str>,
    /// Canonical path, without the query.
    pub endpoint: Arc<str>,
    /// The route's name; empty when none matched.
    pub route: Arc<str>,
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
    pub user_agent: Arc<str>,
    /// Whom the request was for.
    pub end_user_id: Option<EndUserId>,
    /// The backend server that was asked last.
    pub upstream: Arc<str>,
    /// The node that served it.
    pub node: Arc<str>,
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

/// Which usage records of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordFilter {
    /// Only this workspace's.
    pub workspace: Option<WorkspaceId>,
    /// Only this key's.
    pub key: Option<KeyId>,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not at or after.
    pub to: Option<Timestamp>,
}

/// A part of all usage records. It may be empty although there is a next one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordPage {
    /// The records, by their ids.
    pub items: Vec<UsageRecord>,
    /// The id that the next part begins with; none at the end.
    pub next: Option<RequestId>,
    /// Rows that could not be understood and are left out.
    pub passed_over: u64,
}

/// What a round of upkeep has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Partitions of the ledger that were made.
    pub partitions_made: u64,
    /// Partitions that went, with all in them.
    pub partitions_dropped: u64,
    /// Usage records that went one by one.
    pub records_deleted: u64,
    /// Roll-ups of minutes and hours that went.
    pub rollups_deleted: u64,
}

/// How many records fit a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTotal {
    /// So many, or at least so many.
    pub records: u64,
    /// Whether all were counted.
    pub is_exact: bool,
}

// === impls ===

impl RecordPage {
    /// Of rows of which some may be none.
    pub(super) fn of(rows: Vec<Option<UsageRecord>>, next: Option<RequestId>) -> Self {
        let found = rows.len();
        let items: Vec<UsageRecord> = rows.into_iter().flatten().collect();
        let passed_over = u64::try_from(found - items.len()).unwrap_or(u64::MAX);
        Self { items, next, passed_over }
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

impl SpentRow {
    /// Nothing spent.
    pub const fn nothing(subject: SpentBy) -> Self {
        Self { subject, minute: 0, hour: 0, day: 0, month: 0, total: 0 }
    }
}

#[cfg(test)]
impl UsageRecord {
    /// A request that was served at that moment, about which nothing else matters.
    pub(crate) fn sample(key: KeyId, workspace: WorkspaceId, at: Timestamp) -> Self {
        Self {
            id: RequestId::new(at),
            request_id: "r".into(),
            api_key_id: key,
            workspace_id: workspace,
            at,
            method: "GET".into(),
            endpoint: "/".into(),
            route: "/".into(),
            status_code: 200,
            outcome: Outcome::Served,
            denial: None,
            charged: true,
            degraded: false,
            response_time_us: 1,
            ttfb_us: None,
            bytes_in: 0,
            bytes_out: 0,
            tokens_used: 0,
            ip_address: None,
            user_agent: "".into(),
            end_user_id: None,
            upstream: "".into(),
            node: "n".into(),
        }
    }
}
