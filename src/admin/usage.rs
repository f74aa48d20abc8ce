//! What a key's requests came to: totals, time series, and the usage records themselves.

use super::apikeys::key_id;
use super::caller::Reader;
use super::context::Shared;
use super::envelope::{Answer, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Params, Query, Segment};
use super::page::{PAGESIZE_DEFAULT, PAGESIZE_MAX, in_order, millis};
use crate::clock::Timestamp;
use crate::policy::fault::Fault;
use crate::policy::key::Per;
use crate::policy::limit::{window_end, window_start};
use crate::store::rollup::Quantiles;
use crate::store::{
    Interval, KeyStats, LogFilter, LogPage, LogPageRequest, PageRequest, UsagePoint, UsageRange, UsageRecord,
};
use axum::extract::State;
use serde::Serialize;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

mod cursor;

/// Most points of one time series.
const POINTS_MAX: u64 = 10_000;
/// What a time series covers when nobody says.
const SPAN_DEFAULT: Duration = Duration::from_hours(24);

// === requests ===

/// Which time series.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `UsageQuery` reads")]
pub(super) struct UsageParams {
    /// First instant: epoch seconds, epoch milliseconds or RFC 3339. Default: 24 hours before `to`.
    from: Option<String>,
    /// First instant after it. Default: now.
    to: Option<String>,
    /// `minute`, `hour` (default) or `day`: the width of a point.
    #[param(default = "hour")]
    interval: Option<String>,
}

/// [`UsageParams`] as read.
pub(super) struct UsageQuery {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    interval: Interval,
}

impl FromParams for UsageQuery {
    fn from_params(params: &mut Params) -> Self {
        let (from, to) = (params.instant("from"), params.instant("to"));
        in_order(params, ("from", "to"), from, to);
        let interval = params.word("interval").unwrap_or(Interval::Hour);
        Self { from, to, interval }
    }
}

/// Which usage records.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `LogQuery` reads")]
pub(super) struct LogParams {
    /// Not before: epoch seconds, epoch milliseconds or RFC 3339.
    start_date: Option<String>,
    /// Not at or after.
    end_date: Option<String>,
    /// Only this status.
    #[param(minimum = 100, maximum = 599)]
    status_code: Option<u16>,
    /// Only paths that contain this, case ignored.
    endpoint: Option<String>,
    /// Number of the page, from 1. Not together with `cursor`.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 100, default = 10)]
    pagesize: Option<u32>,
    /// The `page.next_cursor` of the answer before.
    cursor: Option<String>,
}

/// [`LogParams`] as read.
pub(super) struct LogQuery {
    filter: LogFilter,
    page: LogPageRequest,
}

impl FromParams for LogQuery {
    fn from_params(params: &mut Params) -> Self {
        let (from, to) = (params.instant("start_date"), params.instant("end_date"));
        in_order(params, ("start_date", "end_date"), from, to);
        let status_code = params.whole("status_code", 100, 599).and_then(|code| u16::try_from(code).ok());
        let endpoint = params.text("endpoint").filter(|text| !text.is_empty());
        let number = params.whole("page", 1, u32::MAX);
        let pagesize = params.whole("pagesize", 1, PAGESIZE_MAX).unwrap_or(PAGESIZE_DEFAULT);
        let after = params.read("cursor", |text| {
            cursor::decode(text).ok_or_else(|| "must be the page.next_cursor of an answer".into())
        });
        if after.is_some() && number.is_some() {
            params.refuse("cursor", "cannot be given together with page");
        }
        let page = match after {
            Some(place) => LogPageRequest::After(place, pagesize),
            None => LogPageRequest::Number(PageRequest { page: number.unwrap_or(1), pagesize }),
        };
        Self { filter: LogFilter { from, to, status_code, endpoint }, page }
    }
}

// === answers ===

/// Totals of a key.
#[derive(Serialize, ToSchema)]
pub(super) struct StatsView {
    /// Requests that presented its secret, denied ones too.
    total_requests: u64,
    /// The same for the current UTC day.
    requests_today: u64,
    /// Charged requests.
    quota_used: u64,
    quota_limit: Option<u64>,
    /// Epoch milliseconds; null: not yet.
    last_used_at: Option<i64>,
    #[serde(flatten)]
    latency: LatencyView,
    /// Failed requests among those that were not denied, from 0 to 1.
    error_rate: f64,
    /// Denied requests.
    denied: u64,
    tokens_used: u64,
}

/// Response times of requests that were not denied, in milliseconds; 0 when there were none.
#[derive(Serialize, ToSchema)]
pub(super) struct LatencyView {
    avg_response_time: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

/// A time series without gaps.
#[derive(Serialize, ToSchema)]
pub(super) struct SeriesView {
    /// `minute`, `hour` or `day`.
    interval: &'static str,
    /// Where the first point begins, in epoch milliseconds.
    from: i64,
    /// First instant after the series, in epoch milliseconds.
    to: i64,
    points: Vec<PointView>,
}

/// One point of a time series.
#[derive(Serialize, ToSchema)]
pub(super) struct PointView {
    /// Where it begins, in epoch milliseconds.
    start: i64,
    /// Requests, denied ones too.
    requests: u64,
    denied: u64,
    /// Requests that failed behind the gateway.
    errors: u64,
    #[serde(flatten)]
    latency: LatencyView,
    tokens_used: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// A part of the usage records, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct LogsView {
    page: LogPageView,
    items: Vec<LogView>,
}

/// Which part of the usage records this is.
#[derive(Serialize, ToSchema)]
pub(super) struct LogPageView {
    /// Number of the page; null when it was asked for by cursor.
    page: Option<u32>,
    pagesize: u32,
    /// Records on all pages; null when it was asked for by cursor.
    total: Option<u64>,
    hasnext: bool,
    /// The `cursor` of the next part; null at the end.
    next_cursor: Option<String>,
}

/// A usage record.
#[derive(Serialize, ToSchema)]
pub(super) struct LogView {
    id: String,
    request_id: String,
    api_key_id: String,
    endpoint: String,
    method: String,
    route: String,
    status_code: u16,
    /// `served`, `denied`, `upstream_failed`, `aborted` or `interrupted`.
    outcome: &'static str,
    /// Why it was denied, e.g. `rate_limit_exceeded`; else empty.
    error: &'static str,
    /// Milliseconds.
    response_time: f64,
    /// Milliseconds.
    ttfb_ms: Option<f64>,
    bytes_in: u64,
    bytes_out: u64,
    tokens_used: u64,
    ip_address: Option<String>,
    user_agent: String,
    end_user_id: Option<String>,
    upstream: String,
    node: String,
    /// When the request had arrived, in epoch milliseconds.
    created_at: i64,
}

// === handlers ===

/// Totals of a key
///
/// Role `viewer`. Takes the same time however long the ledger; a deleted key keeps its statistics.
#[utoipa::path(get, path = "/apikeys/{id}/stats", tag = "Usage", params(("id", description = "Which key")), responses(
    (status = 200, description = "Totals", body = Envelope<StatsView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn key_stats(
    State(admin): State<Shared>,
    Reader { workspace }: Reader,
    id: Segment,
    Query(()): Query<()>,
) -> Result<Answer<StatsView>, AdminError> {
    let id = key_id(&id)?;
    let found = admin.ask(Fault::KeyNotFound, admin.deps.store.stats(&workspace, id, admin.now())).await?;
    let stats = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    Ok(Answer::ok(StatsView::new(stats)))
}

/// Time series of a key
///
/// Role `viewer`. Points begin on the UTC calendar; those without requests are there as zeros.
#[utoipa::path(get, path = "/apikeys/{id}/usage", tag = "Usage", params(("id", description = "Which key"), UsageParams),
responses(
    (status = 200, description = "The series, oldest first", body = Envelope<SeriesView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn key_usage(
    State(admin): State<Shared>,
    Reader { workspace }: Reader,
    id: Segment,
    Query(query): Query<UsageQuery>,
) -> Result<Answer<SeriesView>, AdminError> {
    let id = key_id(&id)?;
    let range = range_of(&query, admin.now())?;
    let found = admin.ask(Fault::KeyNotFound, admin.deps.store.usage(&workspace, id, &range)).await?;
    let points = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    Ok(Answer::ok(SeriesView::new(&range, points)))
}

/// Usage records of a key
///
/// Role `viewer`. Newest first, by page or by cursor; only a cursor misses nothing and repeats nothing while records
/// arrive.
#[utoipa::path(get, path = "/apikeys/{id}/logs", tag = "Usage", params(("id", description = "Which key"), LogParams),
responses(
    (status = 200, description = "Usage records", body = Envelope<LogsView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn key_logs(
    State(admin): State<Shared>,
    Reader { workspace }: Reader,
    id: Segment,
    Query(LogQuery { filter, page }): Query<LogQuery>,
) -> Result<Answer<LogsView>, AdminError> {
    let id = key_id(&id)?;
    let call = admin.deps.store.logs(&workspace, id, &filter, page.clone());
    let found = admin.ask(Fault::KeyNotFound, call).await?;
    let part = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    Ok(Answer::ok(LogsView::new(&page, part)))
}

// === helpers ===

/// The range a query means at the instant `now`, its start moved back to where a point begins.
fn range_of(query: &UsageQuery, now: Timestamp) -> Result<UsageRange, AdminError> {
    let to = query.to.unwrap_or_else(|| query.from.map_or(now, |from| from.max(now)));
    let asked = query.from.unwrap_or_else(|| to.minus(SPAN_DEFAULT).max(Timestamp::default()));
    let width = match query.interval {
        Interval::Minute => 60,
        Interval::Hour => 3_600,
        Interval::Day => 86_400,
    };
    let from = window_start(per_of(query.interval), asked);
    if to.since(from).as_secs().div_ceil(width) > POINTS_MAX {
        let message =
            format!("makes more than {POINTS_MAX} points; use a coarser interval or a shorter range");
        return Err(AdminError::parameter("interval", message));
    }
    Ok(UsageRange { from, to, interval: query.interval })
}

const fn per_of(interval: Interval) -> Per {
    match interval {
        Interval::Minute => Per::Minute,
        Interval::Hour => Per::Hour,
        Interval::Day => Per::Day,
    }
}

/// Microseconds as milliseconds with three decimals.
#[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
fn as_millis(us: u64) -> f64 {
    us as f64 / 1_000.0
}

// === views ===

impl StatsView {
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts below 2⁵³")]
    fn new(stats: KeyStats) -> Self {
        let KeyStats {
            total_requests,
            requests_today,
            quota_used,
            quota_limit,
            denied,
            errors,
            last_used_at,
            tokens_used,
            response_time,
        } = stats;
        let admitted = total_requests.saturating_sub(denied);
        let error_rate = if admitted == 0 { 0.0 } else { errors as f64 / admitted as f64 };
        Self {
            total_requests,
            requests_today,
            quota_used,
            quota_limit,
            last_used_at: last_used_at.map(millis),
            latency: LatencyView::new(response_time),
            error_rate,
            denied,
            tokens_used,
        }
    }
}

impl LatencyView {
    fn new(times: Quantiles) -> Self {
        let Quantiles { count: _, mean_us, p50_us, p95_us, p99_us } = times;
        Self {
            avg_response_time: as_millis(mean_us),
            p50: as_millis(p50_us),
            p95: as_millis(p95_us),
            p99: as_millis(p99_us),
        }
    }
}

impl SeriesView {
    /// The points of `range`, with zeros where `points` has none.
    fn new(range: &UsageRange, points: Vec<UsagePoint>) -> Self {
        let per = per_of(range.interval);
        let mut found = points.into_iter().peekable();
        let mut whole = Vec::new();
        let mut start = range.from;
        while start < range.to {
            let point = found.next_if(|p| p.start <= start);
            whole.push(point.map_or_else(|| PointView::nothing(start), PointView::new));
            match window_end(per, start) {
                Some(end) if end > start => start = end,
                _ => break,
            }
        }
        Self {
            interval: range.interval.as_str(),
            from: millis(range.from),
            to: millis(range.to),
            points: whole,
        }
    }
}

impl PointView {
    fn new(point: UsagePoint) -> Self {
        let UsagePoint { start, requests, denied, errors, tokens_used, bytes_in, bytes_out, response_time } =
            point;
        Self {
            start: millis(start),
            requests,
            denied,
            errors,
            latency: LatencyView::new(response_time),
            tokens_used,
            bytes_in,
            bytes_out,
        }
    }

    fn nothing(start: Timestamp) -> Self {
        Self::new(UsagePoint {
            start,
            requests: 0,
            denied: 0,
            errors: 0,
            tokens_used: 0,
            bytes_in: 0,
            bytes_out: 0,
            response_time: Quantiles::default(),
        })
    }
}

impl LogsView {
    fn new(asked: &LogPageRequest, part: LogPage) -> Self {
        let LogPage { items, total, next } = part;
        let (page, pagesize) = match asked {
            LogPageRequest::Number(number) => (Some(number.page), number.pagesize),
            LogPageRequest::After(_, pagesize) => (None, *pagesize),
        };
        let next_cursor = next.map(cursor::encode);
        let page = LogPageView { page, pagesize, total, hasnext: next_cursor.is_some(), next_cursor };
        Self { page, items: items.into_iter().map(LogView::new).collect() }
    }
}

impl LogView {
    fn new(record: UsageRecord) -> Self {
        let UsageRecord {
            id,
            request_id,
            api_key_id,
            workspace_id: _,
            at,
            method,
            endpoint,
            route,
            status_code,
            outcome,
            denial,
            charged: _,
            response_time_us,
            ttfb_us,
            bytes_in,
            bytes_out,
            tokens_used,
            ip_address,
            user_agent,
            end_user_id,
            upstream,
            node,
        } = record;
        Self {
            id: id.to_string(),
            request_id: request_id.into(),
            api_key_id: api_key_id.to_string(),
            endpoint: endpoint.into(),
            method: method.into(),
            route: route.into(),
            status_code,
            outcome: outcome.as_str(),
            error: denial.map_or("", Fault::name),
            response_time: as_millis(response_time_us),
            ttfb_ms: ttfb_us.map(as_millis),
            bytes_in,
            bytes_out,
            tokens_used,
            ip_address: ip_address.map(|ip| ip.to_string()),
            user_agent: user_agent.into(),
            end_user_id: end_user_id.map(|id| id.to_string()),
            upstream: upstream.into(),
            node: node.into(),
            created_at: millis(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_zeros_and_points_begin_on_the_calendar() {
        let hour = |n: i64| Timestamp::from_secs(1_767_225_600 + n * 3_600);
        let query = UsageQuery {
            from: Some(hour(0).plus(Duration::from_secs(90))),
            to: Some(hour(3)),
            interval: Interval::Hour,
        };
        let range = range_of(&query, hour(9)).expect("a small range");
        assert_eq!(range.from, hour(0));
        let busy = UsagePoint {
            start: hour(1),
            requests: 7,
            denied: 1,
            errors: 2,
            tokens_used: 3,
            bytes_in: 4,
            bytes_out: 5,
            response_time: Quantiles { count: 6, mean_us: 1_234, p50_us: 1, p95_us: 2_000, p99_us: 3_500 },
        };
        let series = SeriesView::new(&range, vec![busy]);
        let starts: Vec<_> = series.points.iter().map(|p| (p.start, p.requests)).collect();
        assert_eq!(starts, [(millis(hour(0)), 0), (millis(hour(1)), 7), (millis(hour(2)), 0)]);
        let shown = serde_json::to_value(&series.points[1]).expect("JSON");
        assert_eq!(
            shown,
            serde_json::json!({"start": millis(hour(1)), "requests": 7, "denied": 1, "errors": 2,
                "avg_response_time": 1.234, "p50": 0.001, "p95": 2.0, "p99": 3.5,
                "tokens_used": 3, "bytes_in": 4, "bytes_out": 5})
        );
    }

    #[test]
    fn a_series_has_at_most_ten_thousand_points() {
        let from = Timestamp::from_secs(1_767_225_600);
        for (minutes, fits) in [(10_000, true), (10_001, false)] {
            let to = from.plus(Duration::from_secs(minutes * 60));
            let query = UsageQuery { from: Some(from), to: Some(to), interval: Interval::Minute };
            assert_eq!(range_of(&query, to).is_ok(), fits, "{minutes}");
        }
    }

    #[test]
    fn the_default_range_is_the_last_day() {
        let now = Timestamp::from_secs(1_767_225_600);
        let query = UsageQuery { from: None, to: None, interval: Interval::Hour };
        let range = range_of(&query, now).expect("a small range");
        assert_eq!((range.from, range.to), (now.minus(SPAN_DEFAULT), now));
    }

    #[test]
    fn the_error_rate_leaves_denials_out() {
        let stats = |total_requests, denied, errors| KeyStats {
            total_requests,
            requests_today: 0,
            quota_used: 0,
            quota_limit: None,
            denied,
            errors,
            last_used_at: None,
            tokens_used: 0,
            response_time: Quantiles::default(),
        };
        for (total, denied, errors, expected) in [(10, 2, 2, 0.25), (0, 0, 0, 0.0), (5, 5, 0, 0.0)] {
            let rate = StatsView::new(stats(total, denied, errors)).error_rate;
            assert!((rate - expected).abs() < 1e-12, "{rate}");
        }
    }
}
