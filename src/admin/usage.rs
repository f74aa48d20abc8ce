//! Statistics of a key: totals and time series.

use super::apikeys::plan_of;
use super::caller::WorkspaceReader;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, PathSegment, Query, QueryParams};
use super::limit_usage::LimitUsageView;
use super::page::{fractional_millis, in_order, millis};
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::fault::Fault;
use crate::model::key::Per;
use crate::model::tokens::TokenCounts;
use crate::model::usage::Quantiles;
use crate::model::usage::UsageSubject;
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::key_limits;
use crate::store::{Interval, KeyStats, UsagePoint, UsageRange};
use axum::extract::State;
use serde::Serialize;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// Most points of one time series.
const POINTS_MAX: u64 = 10_000;
/// The default length of a time series.
const SPAN_DEFAULT: Duration = Duration::from_hours(24);

// === requests ===

/// Parameters of a time series.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `UsageQuery` reads")]
pub(super) struct UsageParams {
    /// First instant: epoch seconds, epoch milliseconds or RFC 3339. Default: 24 hours before `to`.
    from: Option<String>,
    /// First instant after the series. Default: now.
    to: Option<String>,
    /// `minute`, `hour` (default) or `day`: the width of a point.
    #[param(default = "hour")]
    interval: Option<String>,
}

/// [`UsageParams`], parsed.
pub(super) struct UsageQuery {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    interval: Interval,
}

impl FromParams for UsageQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        let (from, to) = (params.instant("from"), params.instant("to"));
        in_order(params, ("from", "to"), from, to);
        let interval = params.word("interval").unwrap_or(Interval::Hour);
        Self { from, to, interval }
    }
}

// === answers ===

/// Totals of a key.
#[derive(Serialize, ToSchema)]
pub(super) struct StatsView {
    /// Requests that reached a backend.
    total_requests: u64,
    /// The same for the current day of the plan's calendar.
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
    /// Denied requests; they are not in the total.
    denied: u64,
    /// Requests that were not denied and reached no backend; they are not in the total.
    unreached: u64,
    #[serde(flatten)]
    spent: SpentView,
    /// The usage of each limit of a window; empty for a deleted key.
    limit_usage: Vec<LimitUsageView>,
}

/// Tokens and cost of requests; of routes without a meter they are 0.
#[derive(Serialize, ToSchema)]
pub(super) struct SpentView {
    /// All tokens.
    tokens_used: u64,
    /// Input, cached tokens included.
    input_tokens: u64,
    /// Input that was read from a cache.
    cached_tokens: u64,
    /// Input that was written to a cache.
    cache_write_tokens: u64,
    /// Output, reasoning included.
    output_tokens: u64,
    /// Output that was reasoning.
    reasoning_tokens: u64,
    /// Audio, of input and output.
    audio_tokens: u64,
    /// Cost in billionths of the currency unit, of the requests whose cost is known.
    cost_nano: u64,
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
    /// Start of the first point, in epoch milliseconds.
    from: i64,
    /// First instant after the series, in epoch milliseconds.
    to: i64,
    points: Vec<PointView>,
}

/// One point of a time series.
#[derive(Serialize, ToSchema)]
pub(super) struct PointView {
    /// Its start, in epoch milliseconds.
    start: i64,
    /// Requests, denied ones included.
    requests: u64,
    denied: u64,
    /// Requests that failed at the backend.
    errors: u64,
    #[serde(flatten)]
    latency: LatencyView,
    #[serde(flatten)]
    spent: SpentView,
    bytes_in: u64,
    bytes_out: u64,
}

// === handlers ===

/// Totals of a key
///
/// Role `viewer`. The time does not depend on the length of the ledger; a deleted key keeps its statistics.
#[utoipa::path(get, path = "/apikeys/{id}/stats", tag = "Usage", params(("id" = String, Path, description = "Which key")), responses(
    (status = 200, description = "Totals", body = Envelope<StatsView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn key_stats(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<StatsView>, AdminError> {
    let id = id.key_id()?;
    let at = admin.now();
    let found = admin.ask(Fault::KeyNotFound, admin.deps.store.stats(&workspace, id, at)).await?;
    let stats = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    let key = admin.ask(Fault::KeyNotFound, admin.deps.store.key(&workspace, id)).await?;
    let Some(key) = key else { return Ok(ApiResponse::ok(StatsView::new(&stats, Vec::new()))) };
    let plan = plan_of(&admin, &workspace).await?;
    let usage = admin.used_and_held(&UsageSubject::Key(id), &plan, at).await?;
    let limits = LimitUsageView::all(&key_limits(&key.key, &plan), &usage);
    Ok(ApiResponse::ok(StatsView::new(&stats, limits)))
}

/// Time series of a key
///
/// Role `viewer`. Points begin at UTC calendar boundaries; those without requests are zeros.
#[utoipa::path(get, path = "/apikeys/{id}/usage", tag = "Usage", params(("id" = String, Path, description = "Which key"), UsageParams),
responses(
    (status = 200, description = "The series, oldest first", body = Envelope<SeriesView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn key_usage(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    id: PathSegment,
    Query(query): Query<UsageQuery>,
) -> Result<ApiResponse<SeriesView>, AdminError> {
    let id = id.key_id()?;
    let range = range_of(&query, admin.now())?;
    let found = admin.ask(Fault::KeyNotFound, admin.deps.store.usage(&workspace, id, &range)).await?;
    let points = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    Ok(ApiResponse::ok(SeriesView::new(&range, points)))
}

/// Time series of a workspace
///
/// Role `viewer`. All keys together, deleted ones included. Points begin at UTC calendar boundaries; those without requests are
/// zeros.
#[utoipa::path(get, path = "/usage/series", tag = "Usage", params(UsageParams), responses(
    (status = 200, description = "The series, oldest first", body = Envelope<SeriesView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn workspace_series(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    Query(query): Query<UsageQuery>,
) -> Result<ApiResponse<SeriesView>, AdminError> {
    let range = range_of(&query, admin.now())?;
    let points = admin.ask(Fault::NotFound, admin.deps.store.workspace_series(&workspace, &range)).await?;
    Ok(ApiResponse::ok(SeriesView::new(&range, points)))
}

// === helpers ===

/// The range of a query at the instant `now`, its start moved back to the start of a point.
fn range_of(query: &UsageQuery, now: Timestamp) -> Result<UsageRange, AdminError> {
    let to = query.to.unwrap_or_else(|| query.from.map_or(now, |from| from.max(now)));
    let asked = query.from.unwrap_or_else(|| to.minus(SPAN_DEFAULT).max(Timestamp::default()));
    let width = match query.interval {
        Interval::Minute => 60,
        Interval::Hour => 3_600,
        Interval::Day => 86_400,
    };
    let from = Window::of(per_of(query.interval), Calendar::UTC, asked).start;
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

// === views ===

impl StatsView {
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts below 2⁵³")]
    fn new(stats: &KeyStats, limit_usage: Vec<LimitUsageView>) -> Self {
        let KeyStats {
            total_requests,
            requests_today,
            quota_used,
            quota_limit,
            denied,
            unreached,
            errors,
            last_used_at,
            tokens,
            cost_nano,
            response_time,
        } = *stats;
        let admitted = total_requests + unreached;
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
            unreached,
            spent: SpentView::new(tokens, cost_nano),
            limit_usage,
        }
    }
}

impl SpentView {
    pub(super) fn new(tokens: TokenCounts, cost_nano: u64) -> Self {
        let TokenCounts { total, input, cached, cache_write, output, reasoning, audio } = tokens;
        Self {
            tokens_used: total,
            input_tokens: input,
            cached_tokens: cached,
            cache_write_tokens: cache_write,
            output_tokens: output,
            reasoning_tokens: reasoning,
            audio_tokens: audio,
            cost_nano,
        }
    }
}

impl LatencyView {
    fn new(times: Quantiles) -> Self {
        let Quantiles { count: _, mean_us, p50_us, p95_us, p99_us } = times;
        Self {
            avg_response_time: fractional_millis(mean_us),
            p50: fractional_millis(p50_us),
            p95: fractional_millis(p95_us),
            p99: fractional_millis(p99_us),
        }
    }
}

impl SeriesView {
    /// The points of `range`, with zeros for those missing in `points`.
    fn new(range: &UsageRange, points: Vec<UsagePoint>) -> Self {
        let per = per_of(range.interval);
        let mut found = points.into_iter().peekable();
        let mut whole = Vec::new();
        let mut start = range.from;
        while start < range.to {
            let point = found.next_if(|p| p.start <= start);
            whole.push(point.map_or_else(|| PointView::nothing(start), |p| PointView::new(&p)));
            start = Window::of(per, Calendar::UTC, start).end;
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
    fn new(point: &UsagePoint) -> Self {
        let UsagePoint {
            start,
            requests,
            denied,
            errors,
            tokens,
            cost_nano,
            bytes_in,
            bytes_out,
            response_time,
        } = *point;
        Self {
            start: millis(start),
            requests,
            denied,
            errors,
            latency: LatencyView::new(response_time),
            spent: SpentView::new(tokens, cost_nano),
            bytes_in,
            bytes_out,
        }
    }

    fn nothing(start: Timestamp) -> Self {
        Self::new(&UsagePoint {
            start,
            requests: 0,
            denied: 0,
            errors: 0,
            tokens: TokenCounts::default(),
            cost_nano: 0,
            bytes_in: 0,
            bytes_out: 0,
            response_time: Quantiles::default(),
        })
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
            tokens: TokenCounts {
                total: 3,
                input: 6,
                cached: 7,
                cache_write: 8,
                output: 9,
                reasoning: 10,
                audio: 11,
            },
            cost_nano: 12,
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
                "tokens_used": 3, "input_tokens": 6, "cached_tokens": 7, "cache_write_tokens": 8, "output_tokens": 9,
                "reasoning_tokens": 10, "audio_tokens": 11, "cost_nano": 12, "bytes_in": 4, "bytes_out": 5})
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
        let stats = |total_requests, unreached, errors| KeyStats {
            total_requests,
            requests_today: 0,
            quota_used: 0,
            quota_limit: None,
            denied: 7,
            unreached,
            errors,
            last_used_at: None,
            tokens: TokenCounts::default(),
            cost_nano: 0,
            response_time: Quantiles::default(),
        };
        for (total, unreached, errors, expected) in [(6, 2, 2, 0.25), (0, 0, 0, 0.0), (0, 5, 5, 1.0)] {
            let rate = StatsView::new(&stats(total, unreached, errors), Vec::new()).error_rate;
            assert!((rate - expected).abs() < 1e-12, "{rate}");
        }
    }
}
