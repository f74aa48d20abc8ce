//! Usage at rest, as everybody else sees it: the records, and what is made of them. Plain data.

use super::PageRequest;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, RequestId, WorkspaceId};
use crate::model::key::words;
use crate::model::usage::Quantiles;
use crate::model::usage::UsageRecord;

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
pub struct MaintenanceReport {
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
