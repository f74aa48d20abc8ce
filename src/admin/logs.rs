//! The usage records of a key, by page or by cursor.

#[expect(unreachable_pub, reason = "the macro of words makes public what is used in here only")]
mod stream;

use super::caller::WorkspaceReader;
use super::context::AdminState;
use super::cursor;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, PathSegment, Query, QueryParams};
use super::page::{PAGESIZE_DEFAULT, PAGESIZE_MAX, fractional_millis, in_order, millis};
use crate::model::fault::Fault;
use crate::model::id::RequestId;
use crate::model::tokens::ReadingSource;
use crate::model::usage::UsageRecord;
use crate::policy::text::csv_cell::neutral;
use crate::store::{LogCursor, LogFilter, LogPage, LogPageRequest, PageRequest};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;
use stream::Format;
use utoipa::{IntoParams, ToSchema};

/// Most records before a numbered page. Each of them has to be skipped; a cursor skips none.
const DEPTH_MAX: u64 = 100_000;

// === requests ===

/// The filter of usage records.
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
    /// Only paths that contain this, ignoring case.
    endpoint: Option<String>,
    /// Number of the page, from 1, within the first 100 000 records. Not together with `cursor`.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 100, default = 10)]
    pagesize: Option<u32>,
    /// The `page.next_cursor` of the previous response.
    cursor: Option<String>,
    /// `json` (default), or a file of all matching records: `csv` or `ndjson`. Not together with `page` and `pagesize`.
    #[param(default = "json")]
    format: Option<String>,
}

/// [`LogParams`], parsed.
pub(super) struct LogQuery {
    filter: LogFilter,
    page: LogPageRequest,
    format: Format,
}

impl FromParams for LogQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        let (from, to) = (params.instant("start_date"), params.instant("end_date"));
        in_order(params, ("start_date", "end_date"), from, to);
        let status_code = params.whole("status_code", 100, 599).and_then(|code| u16::try_from(code).ok());
        let endpoint = params.text("endpoint").filter(|text| !text.is_empty());
        let number = params.whole("page", 1, u32::MAX);
        let given = params.whole("pagesize", 1, PAGESIZE_MAX);
        let pagesize = given.unwrap_or(PAGESIZE_DEFAULT);
        let format = params.word("format").unwrap_or(Format::Json);
        if format != Format::Json && (number.is_some() || given.is_some()) {
            params.refuse("format", "is a file of everything, which has no page and no pagesize");
        }
        let after = params.read("cursor", |text| {
            let place = cursor::decode(text).map(|(at, id)| LogCursor { at, id: RequestId(id) });
            place.ok_or_else(|| "must be the page.next_cursor of an answer".to_owned())
        });
        if after.is_some() && number.is_some() {
            params.refuse("cursor", "cannot be given together with page");
        }
        if number.is_some_and(|page| PageRequest { page, pagesize }.offset() > DEPTH_MAX) {
            params.refuse("page", format!("must be within the first {DEPTH_MAX} records; go on with cursor"));
        }
        let page = match after {
            Some(place) => LogPageRequest::After(place, pagesize),
            None => LogPageRequest::Number(PageRequest { page: number.unwrap_or(1), pagesize }),
        };
        Self { filter: LogFilter { from, to, status_code, endpoint }, page, format }
    }
}

// === answers ===

/// A part of the usage records, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct LogsView {
    page: LogPageView,
    items: Vec<LogView>,
}

/// The position of this part.
#[derive(Serialize, ToSchema)]
pub(super) struct LogPageView {
    /// Number of the page; null with a cursor.
    page: Option<u32>,
    pagesize: u32,
    /// Records on all pages; null with a cursor.
    total: Option<u64>,
    /// There are at least `total`: records with a status or a path are counted among the newest 50 000 only.
    total_is_estimate: bool,
    hasnext: bool,
    /// The `cursor` of the next part; null at the end.
    next_cursor: Option<String>,
}

/// A usage record.
#[derive(Default, Serialize, ToSchema)]
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
    /// Why it was denied, e.g. `rate_limit_exceeded`; otherwise empty.
    error: &'static str,
    /// Whether its limits were decided without the shared counters.
    degraded: bool,
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
    /// When the request arrived, in epoch milliseconds.
    created_at: i64,
    /// The model that answered; null if the route has no meter or the answer named none.
    model: Option<String>,
    /// The model that the request named.
    model_requested: Option<String>,
    /// Input tokens, cached ones included; null if the route has no meter, as the other kinds of tokens.
    input_tokens: Option<u64>,
    /// Input tokens read from a cache.
    cached_tokens: Option<u64>,
    /// Input tokens written to a cache.
    cache_write_tokens: Option<u64>,
    /// Output tokens, reasoning included.
    output_tokens: Option<u64>,
    /// Output tokens that were reasoning.
    reasoning_tokens: Option<u64>,
    /// Tokens of audio, of input and output.
    audio_tokens: Option<u64>,
    /// The cost in billionths of the currency unit; null: unknown.
    cost_nano: Option<u64>,
    /// Where the tokens come from: `reported`, `estimated`, `held` or `missing`; null: the route has no meter, or the answer used nothing.
    usage_source: Option<&'static str>,
    /// The provider's id of the request.
    provider_request_id: Option<String>,
}

// === handlers ===

/// Usage records of a key
///
/// Role `viewer`. Newest first, by page or by cursor; only a cursor repeats nothing and keeps its position while records
/// arrive. One call examines at most 50 000 records to find those with a status or a path. Then it returns what it has
/// found, which may be nothing, and `next_cursor` continues from there.
#[utoipa::path(get, path = "/apikeys/{id}/logs", tag = "Usage", params(("id" = String, Path, description = "Which key"), LogParams),
responses(
    (status = 200, description = "Usage records", content(
        (Envelope<LogsView> = "application/json"), (String = "text/csv"), (String = "application/x-ndjson"),
    )),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn key_logs(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    id: PathSegment,
    Query(LogQuery { filter, page, format }): Query<LogQuery>,
) -> Result<Response, AdminError> {
    let id = id.key_id()?;
    if format != Format::Json {
        let after = match page {
            LogPageRequest::After(place, _) => Some(place),
            LogPageRequest::Number(_) => None,
        };
        return stream::file(admin, workspace, id, filter, format, after).await;
    }
    let call = admin.deps.store.logs(&workspace, id, &filter, page.clone());
    let found = admin.ask(Fault::KeyNotFound, call).await?;
    let part = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    admin.deps.metrics.store_rows_passed_over.inc_by(part.passed_over);
    Ok(ApiResponse::ok(LogsView::new(&page, part)).into_response())
}

// === views ===

impl LogsView {
    fn new(asked: &LogPageRequest, part: LogPage) -> Self {
        let LogPage { items, total, next, passed_over: _ } = part;
        let (page, pagesize) = match asked {
            LogPageRequest::Number(number) => (Some(number.page), number.pagesize),
            LogPageRequest::After(_, pagesize) => (None, *pagesize),
        };
        let next_cursor = next.map(|place| cursor::encode(place.at, place.id.0));
        let total_is_estimate = total.is_some_and(|total| !total.is_exact);
        let total = total.map(|total| total.records);
        let page = LogPageView {
            page,
            pagesize,
            total,
            total_is_estimate,
            hasnext: next_cursor.is_some(),
            next_cursor,
        };
        Self { page, items: items.into_iter().map(LogView::new).collect() }
    }
}

impl LogView {
    /// The same for a CSV file: no client text is a formula there.
    fn cells(mut record: UsageRecord) -> Self {
        for (_, text) in record.texts_mut() {
            if let Cow::Owned(cell) = neutral(text) {
                *text = cell.into();
            }
        }
        Self::new(record)
    }

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
            degraded,
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
            model,
            model_requested,
            input_tokens,
            cached_tokens,
            cache_write_tokens,
            output_tokens,
            reasoning_tokens,
            audio_tokens,
            cost_nano,
            usage_source,
            provider_request_id,
        } = record;
        let text = |text: Option<Arc<str>>| text.map(|text| text.to_string());
        Self {
            id: id.to_string(),
            request_id: request_id.to_string(),
            api_key_id: api_key_id.to_string(),
            endpoint: endpoint.to_string(),
            method: method.to_string(),
            route: route.to_string(),
            status_code,
            outcome: outcome.as_str(),
            error: denial.map_or("", Fault::name),
            degraded,
            response_time: fractional_millis(response_time_us),
            ttfb_ms: ttfb_us.map(fractional_millis),
            bytes_in,
            bytes_out,
            tokens_used,
            ip_address: ip_address.map(|ip| ip.to_string()),
            user_agent: user_agent.to_string(),
            end_user_id: end_user_id.map(|id| id.to_string()),
            upstream: upstream.to_string(),
            node: node.to_string(),
            created_at: millis(at),
            model: text(model),
            model_requested: text(model_requested),
            input_tokens,
            cached_tokens,
            cache_write_tokens,
            output_tokens,
            reasoning_tokens,
            audio_tokens,
            cost_nano,
            usage_source: usage_source.map(ReadingSource::as_str),
            provider_request_id: text(provider_request_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_always_written_the_same_and_no_cell_is_a_formula() {
        let json = serde_json::to_string(&LogView::new(UsageRecord::full_sample())).expect("JSON");
        let mut rows = csv::Writer::from_writer(Vec::new());
        rows.serialize(LogView::cells(UsageRecord::full_sample())).expect("a row");
        let text = String::from_utf8(rows.into_inner().expect("written")).expect("text");
        insta::assert_snapshot!(format!("{json}\n{text:?}"));
    }
}
