//! Roll-ups: updated from each batch, read for statistics, charts and counters.

use super::StoreError;
use super::row;
use crate::clock::Timestamp;
use crate::model::id::KeyId;
use crate::model::key::Per;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::calendar::{window_end, window_start};
use crate::store::shared::decode::{
    read_point, read_tally, sound_spent, sound_tally, subject_columns, tally_columns,
};
use crate::store::shared::rollup::{RollupTotals, RollupWindow, WindowWidth};
use crate::store::{Interval, UsagePoint, UsageRange};
use rusqlite::{Transaction, named_params, params};

/// The totals of all subjects; a month is the sum of its days, because it has no roll-up.
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
               FROM usage_rollups t WHERE t.width = 0 AND t.charged <> 0"
    };
}

/// Adds `news` to one roll-up: one read, one merge, one write.
pub(super) fn add(
    tx: &Transaction<'_>,
    window: &RollupWindow,
    news: &RollupTotals,
) -> Result<(), StoreError> {
    let Some(mut tally) = sound_tally(one(tx, window).map(Option::unwrap_or_default))? else { return Ok(()) };
    tally.merge(news);
    // Not a REPLACE, which would delete the row first and rewrite it in both indexes.
    let sql = "INSERT INTO usage_rollups (subject_kind, subject_id, width, start, requests, denied, unreached, errors,
                   charged, tokens, bytes_in, bytes_out, last_at, response_count, response_us_sum, sketch)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT (subject_kind, subject_id, width, start) DO UPDATE SET
                   requests = excluded.requests, denied = excluded.denied,
                   unreached = excluded.unreached, errors = excluded.errors,
                   charged = excluded.charged, tokens = excluded.tokens, bytes_in = excluded.bytes_in,
                   bytes_out = excluded.bytes_out, last_at = excluded.last_at,
                   response_count = excluded.response_count, response_us_sum = excluded.response_us_sum,
                   sketch = excluded.sketch";
    let (kind, subject) = subject_columns(&window.subject);
    row::execute(
        tx,
        sql,
        params![
            kind,
            subject,
            window.width.seconds(),
            window.start.as_micros(),
            row::int(tally.requests),
            row::int(tally.denied),
            row::int(tally.unreached),
            row::int(tally.errors),
            row::int(tally.charged),
            row::int(tally.tokens),
            row::int(tally.bytes_in),
            row::int(tally.bytes_out),
            tally.last_at.as_micros(),
            row::int(tally.response_count),
            row::int(tally.response_us_sum),
            tally.sketch.encode(),
        ],
    )?;
    Ok(())
}

/// One roll-up, if it has counted anything.
pub(super) fn one(tx: &Transaction<'_>, window: &RollupWindow) -> Result<Option<RollupTotals>, StoreError> {
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
        Interval::Minute => WindowWidth::Minute,
        Interval::Hour => WindowWidth::Hour,
        Interval::Day => WindowWidth::Day,
    };
    let sql = concat!(
        "SELECT start, ",
        tally_columns!(),
        " FROM usage_rollups WHERE subject_kind = ?1 AND subject_id = ?2 AND width = ?3 AND start >= ?4 AND start < ?5
         ORDER BY start"
    );
    let (from, to) = (width.start(range.from).as_micros(), range.to.as_micros());
    let subject = UsageSubject::Key(id);
    let (kind, bytes) = subject_columns(&subject);
    row::all(tx, sql, params![kind, bytes, width.seconds(), from, to], read_point)
}

/// What every subject has spent in the windows that contain `at`, one at a time.
pub(super) fn each_spent(
    tx: &Transaction<'_>,
    at: Timestamp,
    mut visit: impl FnMut(UsageTotals) -> Result<(), StoreError>,
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
    row::each(tx, sql, values, |f| sound_spent(f)?.map_or(Ok(()), &mut visit))
}

/// What one subject has spent in the windows that contain `at`.
pub(super) fn spent_of(
    tx: &Transaction<'_>,
    subject: &UsageSubject,
    at: Timestamp,
) -> Result<UsageTotals, StoreError> {
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
    let found = row::one(tx, sql, values, sound_spent)?.flatten();
    Ok(found.unwrap_or_else(|| UsageTotals::nothing(subject.clone())))
}
