//! Usage as the store returns it: records and statistics. Plain data.

use super::PageRequest;
use crate::clock::Timestamp;
use crate::model::id::{EndUserId, KeyId, RequestId, WorkspaceId};
use crate::model::key::words;
use crate::model::tokens::TokenCounts;
use crate::model::usage::Quantiles;
use crate::model::usage::UsageRecord;

/// Totals of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyStats {
    /// Requests that reached a backend.
    pub total_requests: u64,
    /// The same for the current day of the plan's calendar.
    pub requests_today: u64,
    /// Charged requests.
    pub quota_used: u64,
    /// The key's `quota_limit`.
    pub quota_limit: Option<u64>,
    /// Denied requests; they are not in the total.
    pub denied: u64,
    /// Requests that were not denied and reached no backend; they are not in the total.
    pub unreached: u64,
    /// Requests that failed at the backend: status 500 or above, or no complete response.
    pub errors: u64,
    /// When its secret was last presented.
    pub last_used_at: Option<Timestamp>,
    /// Tokens.
    pub tokens: TokenCounts,
    /// Cost, in billionths of the currency unit.
    pub cost_nano: u64,
    /// Response times of requests that were not denied.
    pub response_time: Quantiles,
}

words!(
    /// Grouping of totals.
    UsageGroup {
        /// Each key.
        Key = "key",
        /// Each resource.
        Resource = "resource",
        /// Each end user.
        EndUser = "end_user",
        /// Each route.
        Route = "route",
        /// Each model.
        Model = "model",
    }
);

/// A filter for totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageTotalsFilter {
    /// From the first instant until before the second, both extended to whole UTC days; none: all time.
    pub days: Option<(Timestamp, Timestamp)>,
    /// Only of keys of this resource; groups of end users, routes and models ignore it.
    pub resource_id: Option<String>,
}

/// Totals of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageTotal {
    /// Requests that reached a backend.
    pub reached: u64,
    /// Denied requests.
    pub denied: u64,
    /// Requests that were not denied and reached no backend.
    pub unreached: u64,
    /// Requests that failed behind the gateway.
    pub errors: u64,
    /// Charged requests.
    pub charged: u64,
    /// Tokens.
    pub tokens: TokenCounts,
    /// Cost, in billionths of the currency unit.
    pub cost_nano: u64,
    /// Body bytes from clients.
    pub bytes_in: u64,
    /// Body bytes to clients.
    pub bytes_out: u64,
    /// When the latest request arrived.
    pub last_at: Option<Timestamp>,
    /// Mean response time in µs; none without responses.
    pub mean_us: Option<u64>,
}

/// Totals of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageGroupTotal {
    /// What it is of.
    pub of: UsageGroupName,
    /// The totals.
    pub total: UsageTotal,
}

/// What a group of totals is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageGroupName {
    /// A key.
    Key {
        /// Its id.
        id: KeyId,
        /// Its name.
        name: String,
        /// Its resource.
        resource_id: String,
    },
    /// A resource.
    Resource(String),
    /// An end user.
    EndUser {
        /// Its id.
        id: EndUserId,
        /// The customer's name for it; none if it was removed.
        other_id: Option<String>,
    },
    /// A route, by name.
    Route(String),
    /// A model: the one that answered, or else the one that was asked for.
    Model(String),
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

/// A query for a time series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageRange {
    /// First instant.
    pub from: Timestamp,
    /// First instant after the range.
    pub to: Timestamp,
    /// Width of a point.
    pub interval: Interval,
}

/// One point of a time series.
#[derive(Clone, Debug, PartialEq)]
pub struct UsagePoint {
    /// Its start.
    pub start: Timestamp,
    /// Requests, denied ones included.
    pub requests: u64,
    /// Denied requests.
    pub denied: u64,
    /// Requests that failed at the backend.
    pub errors: u64,
    /// Tokens.
    pub tokens: TokenCounts,
    /// Cost, in billionths of the currency unit.
    pub cost_nano: u64,
    /// Body bytes from clients.
    pub bytes_in: u64,
    /// Body bytes to clients.
    pub bytes_out: u64,
    /// Response times of requests that were not denied.
    pub response_time: Quantiles,
}

/// A filter for usage records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not at or after.
    pub to: Option<Timestamp>,
    /// Only this status.
    pub status_code: Option<u16>,
    /// Only paths that contain this, ignoring case.
    pub endpoint: Option<String>,
}

/// A part of the usage records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPageRequest {
    /// A numbered page.
    Number(PageRequest),
    /// At most so many records after a position.
    After(LogCursor, u32),
}

/// A position in the usage records, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// The last record's instant.
    pub at: Timestamp,
    /// The last record's id.
    pub id: RequestId,
}

/// A part of the usage records.
#[derive(Clone, Debug, PartialEq)]
pub struct LogPage {
    /// The records, newest first.
    pub items: Vec<UsageRecord>,
    /// Number of matching records; none if the part was requested by cursor.
    pub total: Option<LogTotal>,
    /// Where the next part begins; none at the end. A search that has examined the most records of one call ends here, too,
    /// with fewer items than requested, or none.
    pub next: Option<LogCursor>,
    /// Rows that could not be read and are left out.
    pub passed_over: u64,
}

/// A filter for an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordFilter {
    /// Only of this workspace.
    pub workspace: Option<WorkspaceId>,
    /// Only of this key.
    pub key: Option<KeyId>,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not at or after.
    pub to: Option<Timestamp>,
}

/// A part of an export. It may be empty although there is a next one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordPage {
    /// The records, ordered by id.
    pub items: Vec<UsageRecord>,
    /// The id that the next part begins with; none at the end.
    pub next: Option<RequestId>,
    /// Rows that could not be read and are left out.
    pub passed_over: u64,
}

/// The result of a maintenance run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Partitions created.
    pub partitions_made: u64,
    /// Partitions dropped, with all their rows.
    pub partitions_dropped: u64,
    /// Usage records deleted individually.
    pub records_deleted: u64,
    /// Roll-ups of minutes and hours that were deleted.
    pub rollups_deleted: u64,
}

/// How many records match a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTotal {
    /// The number, or a lower bound.
    pub records: u64,
    /// Whether the number is exact.
    pub is_exact: bool,
}

// === impls ===

impl RecordPage {
    /// From rows of which some could not be read.
    pub(super) fn of(rows: Vec<Option<UsageRecord>>, next: Option<RequestId>) -> Self {
        let found = rows.len();
        let items: Vec<UsageRecord> = rows.into_iter().flatten().collect();
        let passed_over = u64::try_from(found - items.len()).unwrap_or(u64::MAX);
        Self { items, next, passed_over }
    }
}
