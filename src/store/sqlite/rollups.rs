//! Roll-ups: updated from each batch, read for statistics, charts and counters.

use super::StoreError;
use super::row;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::id::WorkspaceId;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use crate::store::shared::decode::{read_point, read_tally, sound_tally, tally_columns};
use crate::store::shared::groups::GroupWindow;
use crate::store::shared::rollup::{RollupTotals, RollupWindow, WindowWidth};
use crate::store::shared::spent::{
    Bounds, SpentQuery, sound_spent, sound_spent_by_end_user, subject_columns,
};
use crate::store::shared::sums::{self, SUMS, UsageSums, sums_columns};
use crate::store::{Interval, UsagePoint, UsageRange};
use rusqlite::types::Value;
use rusqlite::{Transaction, params, params_from_iter};
use std::sync::LazyLock;

/// SQLite's sums of integers are integers.
const BOUNDS: Bounds = ("", "");

/// Adds `news` to one roll-up: one read, one merge, one write.
pub(super) fn add(
    tx: &Transaction<'_>,
    window: &RollupWindow,
    news: &RollupTotals,
) -> Result<(), StoreError> {
    let Some(mut tally) = sound_tally(one(tx, window).map(Option::unwrap_or_default))? else { return Ok(()) };
    tally.merge(news);
    let (kind, subject) = subject_columns(&window.subject);
    let key = [
        kind.into(),
        subject.to_vec().into(),
        window.width.seconds().into(),
        window.start.as_micros().into(),
    ];
    let figures = tally.sums.figures().map(Value::Integer);
    let values = key.into_iter().chain(figures).chain([tally.sketch.encode().into()]);
    row::change(tx, &UPSERT, params_from_iter(values))
}

/// Replaces a roll-up. Not a REPLACE, which would delete the row first and rewrite it in both indexes.
static UPSERT: LazyLock<String> = LazyLock::new(|| {
    let (columns, places, replaced) = (sums_columns!(), vec!["?"; SUMS + 5].join(", "), sums::replaced());
    format!(
        "INSERT INTO usage_rollups (subject_kind, subject_id, width, start, {columns}, sketch) VALUES ({places})
         ON CONFLICT (subject_kind, subject_id, width, start) DO UPDATE SET {replaced}, sketch = excluded.sketch"
    )
});

/// Adds `news` to a group: one write.
pub(super) fn add_to_group(
    tx: &Transaction<'_>,
    window: &GroupWindow,
    news: &UsageSums,
) -> Result<(), StoreError> {
    static ADD: LazyLock<String> = LazyLock::new(|| {
        let (columns, places) = (sums_columns!(), vec!["?"; SUMS + 5].join(", "));
        let added = sums::added("min", "max");
        format!(
            "INSERT INTO usage_groups AS g (workspace_id, kind, width, start, name, {columns}) VALUES ({places})
             ON CONFLICT (workspace_id, kind, width, start, name) DO UPDATE SET {added}"
        )
    });
    let GroupWindow { workspace, kind, width, start, name } = window;
    let key = [
        workspace.as_str().to_owned().into(),
        kind.number().into(),
        width.seconds().into(),
        start.as_micros().into(),
        name.clone().into(),
    ];
    let values = key.into_iter().chain(news.figures().map(Value::Integer));
    row::change(tx, &ADD, params_from_iter(values))
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

/// A time series of a key or workspace: windows that begin in `[floor(from), to)`, oldest first.
pub(super) fn series(
    tx: &Transaction<'_>,
    subject: &UsageSubject,
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
    let (kind, bytes) = subject_columns(subject);
    row::all(tx, sql, params![kind, bytes, width.seconds(), from, to], read_point)
}

/// The usage of every subject in the windows of `calendar` that contain `at`, one at a time.
pub(super) fn each_spent(
    tx: &Transaction<'_>,
    at: Timestamp,
    calendar: Calendar,
    mut visit: impl FnMut(UsageTotals) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let SpentQuery { sql, values } = SpentQuery::of_all(BOUNDS, calendar, at);
    row::each(tx, &sql, params_from_iter(values), |f| sound_spent(f)?.map_or(Ok(()), &mut visit))
}

/// The same of every end user of a workspace.
pub(super) fn each_spent_by_end_users(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    at: Timestamp,
    calendar: Calendar,
    mut visit: impl FnMut(UsageTotals) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let SpentQuery { sql, values } = SpentQuery::of_end_users(BOUNDS, calendar, at);
    let values = values.into_iter().map(Value::Integer).chain([Value::Text(workspace.as_str().to_owned())]);
    row::each(tx, &sql, params_from_iter(values), |f| {
        sound_spent_by_end_user(workspace, f)?.map_or(Ok(()), &mut visit)
    })
}

/// The usage of one subject in the windows of `calendar` that contain `at`.
pub(super) fn spent_of(
    tx: &Transaction<'_>,
    subject: &UsageSubject,
    at: Timestamp,
    calendar: Calendar,
) -> Result<UsageTotals, StoreError> {
    if let UsageSubject::EndUser(workspace, id) = subject {
        let SpentQuery { sql, values } = SpentQuery::of_end_users(BOUNDS, calendar, at).of_one_end_user();
        let of_one = [Value::Text(workspace.as_str().to_owned()), Value::Blob(id.0.as_bytes().to_vec())];
        let values = params_from_iter(values.into_iter().map(Value::Integer).chain(of_one));
        let found = row::one(tx, &sql, values, |f| sound_spent_by_end_user(workspace, f))?.flatten();
        return Ok(found.unwrap_or_else(|| UsageTotals::nothing(subject.clone())));
    }
    let query = SpentQuery::of_all(BOUNDS, calendar, at).of_one();
    let found = row::one(tx, &query.sql, of_subject(&query, subject), sound_spent)?.flatten();
    Ok(found.unwrap_or_else(|| UsageTotals::nothing(subject.clone())))
}

/// The number of requests of a subject in a window that contains `at`.
pub(super) fn requests_in(
    tx: &Transaction<'_>,
    subject: &UsageSubject,
    window: &Window,
    at: Timestamp,
) -> Result<u64, StoreError> {
    let query = SpentQuery::requests(BOUNDS, window, at).of_one();
    let found = row::one(tx, &query.sql, of_subject(&query, subject), |f| f.int("requests"))?;
    Ok(found.unwrap_or(0))
}

/// The numeric parameters of a query, then the subject.
fn of_subject(query: &SpentQuery, subject: &UsageSubject) -> impl rusqlite::Params + use<> {
    let (kind, id) = subject_columns(subject);
    let numbers = query.values.iter().copied().chain([kind]).map(Value::Integer);
    params_from_iter(numbers.chain([Value::Blob(id.to_vec())]).collect::<Vec<_>>())
}
