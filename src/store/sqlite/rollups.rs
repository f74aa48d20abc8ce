//! The roll-ups: fed with what a batch comes to, read for statistics, charts and counters.

use super::StoreError;
use super::row::{self, Fields};
use crate::clock::Timestamp;
use crate::policy::id::KeyId;
use crate::policy::key::Per;
use crate::policy::limit::{window_end, window_start};
use crate::store::rollup::{Sketch, Tally, Width, Window};
use crate::store::{Interval, SpentBy, SpentRow, UsagePoint, UsageRange};
use rusqlite::{Transaction, named_params, params};
use uuid::Uuid;

const KEY: i64 = 1;
const WORKSPACE: i64 = 2;

/// The columns that [`read_tally`] reads.
macro_rules! tally_columns {
    () => {
        "requests, denied, errors, charged, tokens, bytes_in, bytes_out, last_at, response_count, response_us_sum,
         sketch"
    };
}

/// Everybody's spending; a month is the sum of its days, because no roll-up is kept for it.
macro_rules! spent_rows {
    () => {
        "SELECT t.subject_kind, t.subject_id, t.charged,
                   coalesce((SELECT r.charged FROM usage_rollups r WHERE r.subject_kind = t.subject_kind
                       AND r.subject_id = t.subject_id AND r.width = 60 AND r.start = :minute), 0),
                   coalesce((SELECT r.charged FROM usage_rollups r WHERE r.subject_kind = t.subject_kind
                       AND r.subject_id = t.subject_id AND r.width = 3600 AND r.start = :hour), 0),
                   coalesce((SELECT r.charged FROM usage_rollups r WHERE r.subject_kind = t.subject_kind
                       AND r.subject_id = t.subject_id AND r.width = 86400 AND r.start = :day), 0),
                   coalesce((SELECT sum(r.charged) FROM usage_rollups r WHERE r.subject_kind = t.subject_kind
                       AND r.subject_id = t.subject_id AND r.width = 86400
                       AND r.start >= :month AND r.start < :next_month), 0)
               FROM usage_rollups t WHERE t.width = 0 AND t.charged > 0"
    };
}

/// Adds `news` to one roll-up: one read, one merge, one write.
pub(super) fn add(tx: &Transaction<'_>, window: &Window, news: &Tally) -> Result<(), StoreError> {
    let mut tally = one(tx, window)?.unwrap_or_default();
    tally.merge(news);
    let sql = "INSERT OR REPLACE INTO usage_rollups (subject_kind, subject_id, width, start, requests, denied, errors,
                   charged, tokens, bytes_in, bytes_out, last_at, response_count, response_us_sum, sketch)
               VALUES (:kind, :subject, :width, :start, :requests, :denied, :errors, :charged, :tokens, :bytes_in,
                   :bytes_out, :last_at, :response_count, :response_us_sum, :sketch)";
    let (kind, subject) = subject_columns(&window.subject);
    row::execute(
        tx,
        sql,
        named_params! {
            ":kind": kind,
            ":subject": subject,
            ":width": window.width.seconds(),
            ":start": window.start.as_micros(),
            ":requests": row::int(tally.requests),
            ":denied": row::int(tally.denied),
            ":errors": row::int(tally.errors),
            ":charged": row::int(tally.charged),
            ":tokens": row::int(tally.tokens),
            ":bytes_in": row::int(tally.bytes_in),
            ":bytes_out": row::int(tally.bytes_out),
            ":last_at": tally.last_at.as_micros(),
            ":response_count": row::int(tally.response_count),
            ":response_us_sum": row::int(tally.response_us_sum),
            ":sketch": tally.sketch.encode(),
        },
    )?;
    Ok(())
}

/// One roll-up, if it has counted anything.
pub(super) fn one(tx: &Transaction<'_>, window: &Window) -> Result<Option<Tally>, StoreError> {
    let sql = concat!(
        "SELECT ",
        tally_columns!(),
        " FROM usage_rollups WHERE subject_kind = ?1 AND subject_id = ?2 AND width = ?3 AND start = ?4"
    );
    let (kind, subject) = subject_columns(&window.subject);
    let values = params![kind, subject, window.width.seconds(), window.start.as_micros()];
    row::one(tx, sql, values, read_tally)
}

/// A time series of one key: windows that begin in `[floor(from), to)`, oldest first.
pub(super) fn series(
    tx: &Transaction<'_>,
    id: KeyId,
    range: &UsageRange,
) -> Result<Vec<UsagePoint>, StoreError> {
    let width = match range.interval {
        Interval::Minute => Width::Minute,
        Interval::Hour => Width::Hour,
        Interval::Day => Width::Day,
    };
    let sql = concat!(
        "SELECT start, ",
        tally_columns!(),
        " FROM usage_rollups WHERE subject_kind = ?1 AND subject_id = ?2 AND width = ?3 AND start >= ?4 AND start < ?5
         ORDER BY start"
    );
    let (from, to) = (width.start(range.from).as_micros(), range.to.as_micros());
    row::all(tx, sql, params![KEY, id.0.as_bytes(), width.seconds(), from, to], |f| {
        let start = f.instant("start")?;
        let tally = read_tally(f)?;
        Ok(UsagePoint {
            start,
            requests: tally.requests,
            denied: tally.denied,
            errors: tally.errors,
            tokens_used: tally.tokens,
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
            response_time: tally.quantiles(),
        })
    })
}

/// What every subject has spent of the windows that contain `at`, one at a time.
pub(super) fn each_spent(
    tx: &Transaction<'_>,
    at: Timestamp,
    mut visit: impl FnMut(SpentRow) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let sql = spent_rows!();
    let next_month = window_end(Per::Month, at).map_or(i64::MAX, Timestamp::as_micros);
    let values = named_params! {
        ":minute": window_start(Per::Minute, at).as_micros(),
        ":hour": window_start(Per::Hour, at).as_micros(),
        ":day": window_start(Per::Day, at).as_micros(),
        ":month": window_start(Per::Month, at).as_micros(),
        ":next_month": next_month,
    };
    row::each(tx, sql, values, |f| visit(read_spent(f)?))
}

/// What one subject has spent of the windows that contain `at`.
pub(super) fn spent_of(
    tx: &Transaction<'_>,
    subject: &SpentBy,
    at: Timestamp,
) -> Result<SpentRow, StoreError> {
    let sql = concat!(spent_rows!(), " AND t.subject_kind = :kind AND t.subject_id = :subject");
    let (kind, id) = subject_columns(subject);
    let next_month = window_end(Per::Month, at).map_or(i64::MAX, Timestamp::as_micros);
    let values = named_params! {
        ":minute": window_start(Per::Minute, at).as_micros(),
        ":hour": window_start(Per::Hour, at).as_micros(),
        ":day": window_start(Per::Day, at).as_micros(),
        ":month": window_start(Per::Month, at).as_micros(),
        ":next_month": next_month,
        ":kind": kind,
        ":subject": id,
    };
    let none = SpentRow { subject: subject.clone(), minute: 0, hour: 0, day: 0, month: 0, total: 0 };
    Ok(row::one(tx, sql, values, read_spent)?.unwrap_or(none))
}

fn read_spent(f: &mut Fields<'_>) -> Result<SpentRow, StoreError> {
    Ok(SpentRow {
        subject: read_subject(f)?,
        total: f.int("charged")?,
        minute: f.int("minute")?,
        hour: f.int("hour")?,
        day: f.int("day")?,
        month: f.int("month")?,
    })
}

fn subject_columns(subject: &SpentBy) -> (i64, &[u8]) {
    match subject {
        SpentBy::Key(id) => (KEY, id.0.as_bytes()),
        SpentBy::Workspace(id) => (WORKSPACE, id.as_str().as_bytes()),
    }
}

fn read_subject(f: &mut Fields<'_>) -> Result<SpentBy, StoreError> {
    let corrupt = || StoreError::Corrupt("subject_id of a roll-up is no id".into());
    let kind: i64 = f.int("subject_kind")?;
    let bytes = f.blob("subject_id")?;
    match kind {
        KEY => Uuid::from_slice(bytes).map(|id| SpentBy::Key(KeyId(id))).map_err(|_| corrupt()),
        WORKSPACE => {
            let text = std::str::from_utf8(bytes).map_err(|_| corrupt())?;
            text.parse().map(SpentBy::Workspace).map_err(|_| corrupt())
        }
        _ => Err(StoreError::Corrupt("subject_kind of a roll-up is neither 1 nor 2".into())),
    }
}

fn read_tally(f: &mut Fields<'_>) -> Result<Tally, StoreError> {
    Ok(Tally {
        requests: f.int("requests")?,
        denied: f.int("denied")?,
        errors: f.int("errors")?,
        charged: f.int("charged")?,
        tokens: f.int("tokens")?,
        bytes_in: f.int("bytes_in")?,
        bytes_out: f.int("bytes_out")?,
        last_at: f.instant("last_at")?,
        response_count: f.int("response_count")?,
        response_us_sum: f.int("response_us_sum")?,
        sketch: Sketch::decode(f.blob("sketch")?)
            .map_err(|error| StoreError::Corrupt(format!("sketch: {error}")))?,
    })
}
