//! Usage records of one key, newest first: first their positions, by the index alone, then the rows of the page.

use super::StoreError;
use super::row;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::usage::{UsageRecord, usage_columns};
use crate::store::shared::decode::{read_day, read_place, sound_usage};
use crate::store::shared::logs::{
    AlignedRange, COUNTED_BY, DAYS_AT_ONCE, LOOKED_AT_MAX, LogSearch, SearchRange, UsageDays,
};
use crate::store::{LogCursor, LogPage, LogTotal};
use rusqlite::{ToSql, Transaction, params};
use std::ops::Range;
use std::time::Duration;

/// Records of a key in a time range, after a position, newest first; at most `:looks_at` of them. Reads only the index.
macro_rules! looked_at {
    () => {
        "(SELECT at, id, status_code, endpoint FROM usage
          WHERE api_key_id = ?1 AND at >= ?2 AND at < ?3 AND (at, id) < (?4, ?5)
          ORDER BY at DESC, id DESC LIMIT ?6)"
    };
}

/// The filter. Paths are folded as ASCII in both backends; `?8` contains no wildcards.
macro_rules! fits {
    () => {
        "(?7 IS NULL OR status_code = ?7) AND (?8 IS NULL OR instr(lower(endpoint), ?8) > 0)"
    };
}

pub(super) fn page(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    key: KeyId,
    search: &LogSearch,
) -> Result<LogPage, StoreError> {
    let Some(reach) = reach(tx, key, search)? else {
        let total = search.wants_total.then_some(LogTotal { records: 0, is_exact: true });
        return Ok(search.page(Vec::new(), None, Vec::new(), total));
    };
    let total = match search.wants_total {
        false => None,
        true if search.is_filtered() => Some(count_fitting(tx, key, search, reach)?),
        true => Some(count_all(tx, key, search.range.clone())?),
    };
    let places = find(tx, key, search, reach)?;
    let is_short = places.len() <= usize::try_from(search.limit).unwrap_or(usize::MAX);
    let last_seen = if is_short { last_looked_at(tx, key, search, reach)? } else { None };
    let mut records = Vec::with_capacity(places.len());
    for place in search.shown(&places) {
        records.extend(record(tx, workspace, place)?);
    }
    Ok(search.page(places, last_seen, records, total))
}

/// How far back a search has to look, by the days that have records.
fn reach(tx: &Transaction<'_>, key: KeyId, search: &LogSearch) -> Result<Option<SearchRange>, StoreError> {
    let sql = "SELECT start, requests FROM usage_rollups
               WHERE subject_kind = 1 AND subject_id = ?1 AND width = 86400 AND start > ?2 AND start < ?3
               ORDER BY start DESC LIMIT ?4";
    // A day that begins before the range may overlap it.
    let oldest = search.range.start.minus(Duration::from_hours(24)).as_micros();
    let mut newest = search.range.end.as_micros();
    let mut days = UsageDays::of(search);
    loop {
        let part = row::all(tx, sql, params![key.0.as_bytes(), oldest, newest, DAYS_AT_ONCE], read_day)?;
        let is_last = i64::try_from(part.len()).is_ok_and(|n| n < DAYS_AT_ONCE);
        for (start, requests) in part {
            newest = start.as_micros();
            if !days.push(start, requests) {
                return Ok(days.reach());
            }
        }
        if is_last {
            return Ok(days.reach());
        }
    }
}

/// The positions of the records of a page, and one more if anything follows.
fn find(
    tx: &Transaction<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
) -> Result<Vec<LogCursor>, StoreError> {
    let sql = concat!(
        "SELECT at, id FROM ",
        looked_at!(),
        " WHERE ",
        fits!(),
        " ORDER BY at DESC, id DESC LIMIT ?9 OFFSET ?10"
    );
    let (limit, offset) = (row::int(search.asks_for()), row::int(search.offset));
    asked(tx, key, search, reach, sql, &[&limit, &offset], read_place)
}

/// The number of matching records among those examined.
fn count_fitting(
    tx: &Transaction<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
) -> Result<LogTotal, StoreError> {
    let sql = concat!("SELECT count(*) FILTER (WHERE ", fits!(), "), count(*) FROM ", looked_at!());
    let read = |f: &mut row::RowReader<'_>| Ok((f.int("fits")?, f.int::<u64>("all")?));
    let (records, all) = asked(tx, key, search, reach, sql, &[], read)?.pop().unwrap_or((0, 0));
    Ok(LogTotal { records, is_exact: all < LOOKED_AT_MAX && !reach.is_cut })
}

/// The last position that was examined, if there may be more after it.
fn last_looked_at(
    tx: &Transaction<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
) -> Result<Option<LogCursor>, StoreError> {
    if !reach.is_cut && !search.is_filtered() {
        return Ok(None);
    }
    let sql = concat!(
        "SELECT at, id FROM ",
        looked_at!(),
        " WHERE ",
        fits!(),
        " ORDER BY at DESC, id DESC LIMIT 1 OFFSET ?9"
    );
    let last = row::int(search.looks_at() - 1);
    let anything = LogSearch { status: None, endpoint: None, ..search.clone() };
    let whole = LogSearch { offset: search.looks_at() - search.asks_for(), ..anything };
    let found = asked(tx, key, &whole, reach, sql, &[&last], read_place)?;
    Ok(found.first().copied().or(reach.end()))
}

fn asked<T>(
    tx: &Transaction<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
    sql: &str,
    more: &[&dyn ToSql],
    decode: impl FnMut(&mut row::RowReader<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let (from, to) = (reach.from.as_micros(), search.range.end.as_micros());
    let (after_at, looks_at) = (search.after.at.as_micros(), row::int(search.looks_at()));
    let (id, after_id) = (key.0.as_bytes(), search.after.id.0.as_bytes());
    let mut values: Vec<&dyn ToSql> =
        vec![id, &from, &to, &after_at, after_id, &looks_at, &search.status, &search.endpoint];
    values.extend(more);
    row::all(tx, sql, values.as_slice(), decode)
}

/// The record at a position, if it still exists; none if the row cannot be read.
fn record(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    place: &LogCursor,
) -> Result<Vec<Option<UsageRecord>>, StoreError> {
    let sql = concat!("SELECT ", usage_columns!(), " FROM usage WHERE id = ?1 AND workspace_id = ?2");
    row::all(tx, sql, params![place.id.0.as_bytes(), workspace.as_str()], sound_usage)
}

/// The number of records of a key in `range`: whole windows by their roll-ups, the edges by narrower ones, and single
/// records only for less than a minute, or where narrow roll-ups are no longer kept.
fn count_all(tx: &Transaction<'_>, key: KeyId, range: Range<Timestamp>) -> Result<LogTotal, StoreError> {
    let mut total = LogTotal { records: 0, is_exact: true };
    let mut left = vec![(range, COUNTED_BY.as_slice())];
    while let Some((range, widths)) = left.pop() {
        if range.start >= range.end {
            continue;
        }
        let Some((width, narrower)) = widths.split_first() else {
            let one_by_one = count_rows(tx, key, &range)?;
            total.records += one_by_one.min(LOOKED_AT_MAX);
            total.is_exact &= one_by_one <= LOOKED_AT_MAX;
            continue;
        };
        let Some(AlignedRange { whole, edges }) = AlignedRange::of(&range, *width) else {
            left.push((range, narrower));
            continue;
        };
        let (sum, is_kept) = sum_windows(tx, key, width.seconds(), &whole)?;
        if is_kept {
            total.records += sum;
            left.extend(edges.map(|edge| (edge, narrower)));
        } else {
            left.push((range, &[]));
        }
    }
    Ok(total)
}

/// The sum of the windows of a range, and whether roll-ups of this width reach back that far.
fn sum_windows(
    tx: &Transaction<'_>,
    key: KeyId,
    width: i64,
    range: &Range<Timestamp>,
) -> Result<(u64, bool), StoreError> {
    let sql = "SELECT coalesce(sum(max(requests, 0)), 0),
                   ?2 = 86400 OR coalesce((SELECT min(start) FROM usage_rollups WHERE width = ?2) <= ?3, 1)
               FROM usage_rollups WHERE subject_kind = 1 AND subject_id = ?1 AND width = ?2 AND start >= ?3 AND start < ?4";
    let values = params![key.0.as_bytes(), width, range.start.as_micros(), range.end.as_micros()];
    let found = row::one(tx, sql, values, |f| Ok((f.int("sum")?, f.bool("kept")?)))?;
    Ok(found.unwrap_or((0, true)))
}

fn count_rows(tx: &Transaction<'_>, key: KeyId, range: &Range<Timestamp>) -> Result<u64, StoreError> {
    let sql =
        "SELECT count(*) FROM (SELECT 1 FROM usage WHERE api_key_id = ?1 AND at >= ?2 AND at < ?3 LIMIT ?4)";
    let (from, to) = (range.start.as_micros(), range.end.as_micros());
    row::count(tx, sql, params![key.0.as_bytes(), from, to, row::int(LOOKED_AT_MAX + 1)])
}
