//! Usage records of one key, newest first: first their positions, by the index alone, then the rows of the page.
//!
//! Statements are planned for their values: with a known time range, only one or two partitions are planned for.

use super::StoreError;
use super::tx::Tx;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::usage::{UsageRecord, usage_columns};
use crate::store::shared::decode::{read_day, read_place, sound_usage};
use crate::store::shared::fields::int;
use crate::store::shared::logs::{
    AlignedRange, COUNTED_BY, DAYS_AT_ONCE, LOOKED_AT_MAX, LogSearch, SearchRange, UsageDays,
};
use crate::store::{LogCursor, LogPage, LogTotal};
use std::ops::Range;
use tokio_postgres::types::{ToSql, Type};

/// Records of a key in a time range, after a position, newest first; at most `$6` of them. Reads only the index.
macro_rules! looked_at {
    () => {
        "(SELECT at, id, status_code, endpoint FROM usage
          WHERE api_key_id = $1 AND at >= $2 AND at < $3 AND (at, id) < ($4, $5)
          ORDER BY at DESC, id DESC LIMIT $6) AS looked_at"
    };
}

/// The filter. Paths are folded as ASCII in both backends; `$8` contains no wildcards.
macro_rules! fits {
    () => {
        " WHERE ($7::bigint IS NULL OR status_code = $7)
            AND ($8::text IS NULL OR strpos(lower(endpoint COLLATE \"C\"), $8) > 0)"
    };
}

/// A value with its SQL type.
type Typed<'v> = (&'v (dyn ToSql + Sync), Type);

pub(super) async fn page(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    key: KeyId,
    search: &LogSearch,
) -> Result<LogPage, StoreError> {
    let Some(reach) = reach(tx, key, search).await? else {
        let total = search.wants_total.then_some(LogTotal { records: 0, is_exact: true });
        return Ok(search.page(Vec::new(), None, Vec::new(), total));
    };
    let total = match search.wants_total {
        false => None,
        true if search.is_filtered() => Some(count_fitting(tx, key, search, reach).await?),
        true => Some(count_all(tx, key, search.range.clone()).await?),
    };
    let places = find(tx, key, search, reach).await?;
    let is_short = places.len() <= usize::try_from(search.limit).unwrap_or(usize::MAX);
    let last_seen = if is_short { last_looked_at(tx, key, search, reach).await? } else { None };
    let records = rows(tx, workspace, search.shown(&places)).await?;
    Ok(search.page(places, last_seen, records, total))
}

/// How far back a search has to look, by the days that have records.
async fn reach(tx: &Tx<'_>, key: KeyId, search: &LogSearch) -> Result<Option<SearchRange>, StoreError> {
    let sql = "SELECT start, requests FROM usage_rollups
               WHERE subject_kind = 1 AND subject_id = $1 AND width = 86400 AND start > $2 AND start < $3
               ORDER BY start DESC LIMIT $4";
    // A day that begins before the range may overlap it.
    let oldest = search.range.start.as_micros() - super::partitions::DAY_US;
    let mut newest = search.range.end.as_micros();
    let mut days = UsageDays::of(search);
    loop {
        let part =
            tx.all(sql, &[&key.0.as_bytes().as_slice(), &oldest, &newest, &DAYS_AT_ONCE], read_day).await?;
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
async fn find(
    tx: &Tx<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
) -> Result<Vec<LogCursor>, StoreError> {
    let sql = concat!(
        "SELECT at, id FROM ",
        looked_at!(),
        fits!(),
        " ORDER BY at DESC, id DESC LIMIT $9 OFFSET $10"
    );
    let (limit, offset) = (int(search.asks_for()), int(search.offset));
    let paging: [Typed<'_>; 2] = [(&limit, Type::INT8), (&offset, Type::INT8)];
    asked(tx, key, search, reach, sql, &paging, read_place).await
}

/// The number of matching records among those examined.
async fn count_fitting(
    tx: &Tx<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
) -> Result<LogTotal, StoreError> {
    let sql = concat!(
        "SELECT count(*) FILTER (WHERE fits), count(*) FROM (SELECT ($7::bigint IS NULL OR status_code = $7)
             AND ($8::text IS NULL OR strpos(lower(endpoint COLLATE \"C\"), $8) > 0) AS fits FROM ",
        looked_at!(),
        ") AS counted"
    );
    let counts = asked(tx, key, search, reach, sql, &[], |f| Ok((f.int("fits")?, f.int::<u64>("all")?)));
    let (records, all) = counts.await?.pop().unwrap_or((0, 0));
    Ok(LogTotal { records, is_exact: all < LOOKED_AT_MAX && !reach.is_cut })
}

/// The last position that was examined, if there may be more after it.
async fn last_looked_at(
    tx: &Tx<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
) -> Result<Option<LogCursor>, StoreError> {
    if !reach.is_cut && !search.is_filtered() {
        return Ok(None);
    }
    let sql =
        concat!("SELECT at, id FROM ", looked_at!(), fits!(), " ORDER BY at DESC, id DESC LIMIT 1 OFFSET $9");
    let last = int(search.looks_at() - 1);
    let anything = LogSearch { status: None, endpoint: None, ..search.clone() };
    let whole = LogSearch { offset: search.looks_at() - search.asks_for(), ..anything };
    let found = asked(tx, key, &whole, reach, sql, &[(&last, Type::INT8)], read_place).await?;
    Ok(found.first().copied().or(reach.end()))
}

async fn asked<T>(
    tx: &Tx<'_>,
    key: KeyId,
    search: &LogSearch,
    reach: SearchRange,
    sql: &str,
    more: &[Typed<'_>],
    decode: impl FnMut(&mut crate::store::shared::fields::RowReader<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let (from, to) = (reach.from.as_micros(), search.range.end.as_micros());
    let (after_at, looks_at) = (search.after.at.as_micros(), int(search.looks_at()));
    let mut values: Vec<Typed<'_>> = vec![
        (&key.0, Type::UUID),
        (&from, Type::INT8),
        (&to, Type::INT8),
        (&after_at, Type::INT8),
        (&search.after.id.0, Type::UUID),
        (&looks_at, Type::INT8),
        (&search.status, Type::INT8),
        (&search.endpoint, Type::TEXT),
    ];
    values.extend(more.iter().cloned());
    tx.all_planned(sql, &values, decode).await
}

/// The records at `places`, in that order; none for a row that cannot be read.
async fn rows(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    places: &[LogCursor],
) -> Result<Vec<Option<UsageRecord>>, StoreError> {
    let (Some(newest), Some(oldest)) = (places.first(), places.last()) else { return Ok(Vec::new()) };
    let sql = concat!(
        "SELECT r.* FROM unnest($1::uuid[], $2::bigint[]) WITH ORDINALITY AS p (id, at, place),
         LATERAL (SELECT ",
        usage_columns!(),
        " FROM usage u WHERE u.id = p.id AND u.at = p.at AND u.at >= $3 AND u.at <= $4 AND u.workspace_id = $5 LIMIT 1) r
         ORDER BY p.place"
    );
    let ids: Vec<_> = places.iter().map(|place| place.id.0).collect();
    let instants: Vec<_> = places.iter().map(|place| place.at.as_micros()).collect();
    let values: &[Typed<'_>] = &[
        (&ids, Type::UUID_ARRAY),
        (&instants, Type::INT8_ARRAY),
        (&oldest.at.as_micros(), Type::INT8),
        (&newest.at.as_micros(), Type::INT8),
        (&workspace.as_str(), Type::TEXT),
    ];
    tx.all_planned(sql, values, sound_usage).await
}

/// The number of records of a key in `range`: whole windows by their roll-ups, the edges by narrower ones, and single
/// records only for less than a minute, or where narrow roll-ups are no longer kept.
async fn count_all(tx: &Tx<'_>, key: KeyId, range: Range<Timestamp>) -> Result<LogTotal, StoreError> {
    let mut total = LogTotal { records: 0, is_exact: true };
    let mut left = vec![(range, COUNTED_BY.as_slice())];
    while let Some((range, widths)) = left.pop() {
        if range.start >= range.end {
            continue;
        }
        let Some((width, narrower)) = widths.split_first() else {
            let one_by_one = count_rows(tx, key, &range).await?;
            total.records += one_by_one.min(LOOKED_AT_MAX);
            total.is_exact &= one_by_one <= LOOKED_AT_MAX;
            continue;
        };
        let Some(AlignedRange { whole, edges }) = AlignedRange::of(&range, *width) else {
            left.push((range, narrower));
            continue;
        };
        let (sum, is_kept) = sum_windows(tx, key, width.seconds(), &whole).await?;
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
async fn sum_windows(
    tx: &Tx<'_>,
    key: KeyId,
    width: i64,
    range: &Range<Timestamp>,
) -> Result<(u64, bool), StoreError> {
    let sql = "SELECT least(coalesce(sum(greatest(requests, 0)), 0), 9223372036854775807)::bigint,
                   $2::bigint = 86400 OR coalesce((SELECT min(start) FROM usage_rollups WHERE width = $2) <= $3, true)
               FROM usage_rollups WHERE subject_kind = 1 AND subject_id = $1 AND width = $2 AND start >= $3 AND start < $4";
    let (from, to) = (range.start.as_micros(), range.end.as_micros());
    let found = tx
        .one(sql, &[&key.0.as_bytes().as_slice(), &width, &from, &to], |f| {
            Ok((f.int("sum")?, f.bool("kept")?))
        })
        .await?;
    Ok(found.unwrap_or((0, true)))
}

async fn count_rows(tx: &Tx<'_>, key: KeyId, range: &Range<Timestamp>) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM usage WHERE api_key_id = $1 AND at >= $2 AND at < $3 LIMIT $4) AS c";
    let (from, to, most) = (range.start.as_micros(), range.end.as_micros(), int(LOOKED_AT_MAX + 1));
    let values: &[Typed<'_>] =
        &[(&key.0, Type::UUID), (&from, Type::INT8), (&to, Type::INT8), (&most, Type::INT8)];
    Ok(tx.all_planned(sql, values, |f| f.int("count")).await?.pop().unwrap_or(0))
}
