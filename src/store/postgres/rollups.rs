//! Roll-ups: updated from each batch, read for statistics, charts and counters.

use super::StoreError;
use super::tx::Tx;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::id::WorkspaceId;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use crate::store::shared::decode::{self, BATCH_MAX, read_point, read_tally, tally_columns};
use crate::store::shared::fields::RowReader;
use crate::store::shared::groups::GroupWindow;
use crate::store::shared::rollup::{RollupTotals, RollupWindow, WindowWidth};
use crate::store::shared::spent::{
    Bounds, SpentQuery, sound_spent, sound_spent_by_end_user, subject_columns,
};
use crate::store::shared::sums::{self, SUMS, UsageSums, sums_columns};
use crate::store::{Interval, UsagePoint, UsageRange};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use tokio::sync::mpsc;
use tokio_postgres::types::ToSql;

/// Adds `news` to the roll-ups: missing ones are created, then all are locked, read, merged and written.
///
/// Every node locks them in the order of [`RollupWindow`], so that two nodes cannot deadlock. (Merging a `jsonb` in the
/// database would need the sketch's arithmetic there a second time.)
pub(super) async fn add(tx: &Tx<'_>, news: &BTreeMap<RollupWindow, RollupTotals>) -> Result<(), StoreError> {
    let mut columns = RollupColumns::default();
    for window in news.keys() {
        columns.push_window(window);
    }
    make_missing(tx, &columns).await?;
    let kept = lock_and_read(tx, &columns).await?;
    let mut merged = RollupColumns::default();
    for ((window, new), kept) in news.iter().zip(kept) {
        let Some(mut tally) = kept else { continue };
        tally.merge(new);
        merged.push_window(window);
        merged.push_tally(&tally);
    }
    write(tx, &merged).await
}

/// Rows column by column, as PostgreSQL accepts many at once.
#[derive(Default)]
struct RollupColumns<'w> {
    kinds: Vec<i64>,
    subjects: Vec<&'w [u8]>,
    widths: Vec<i64>,
    starts: Vec<i64>,
    figures: [Vec<i64>; SUMS],
    sketches: Vec<Vec<u8>>,
}

async fn make_missing(tx: &Tx<'_>, columns: &RollupColumns<'_>) -> Result<(), StoreError> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        let (figures, zeros) = (sums_columns!(), vec!["0"; SUMS].join(", "));
        format!(
            "INSERT INTO usage_rollups (subject_kind, subject_id, width, start, {figures}, sketch)
             SELECT k, s, w, t, {zeros}, ''
             FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[]) AS u (k, s, w, t)
             ON CONFLICT DO NOTHING"
        )
    });
    tx.execute(&SQL, &[&columns.kinds, &columns.subjects, &columns.widths, &columns.starts]).await?;
    Ok(())
}

/// The stored totals of each window, in the order of `columns`. None for a row that cannot be read: it is left for a person
/// to look at, and the others go on. Row by row through the index, whatever the planner prefers, so that they are locked in
/// the given order.
async fn lock_and_read(
    tx: &Tx<'_>,
    columns: &RollupColumns<'_>,
) -> Result<Vec<Option<RollupTotals>>, StoreError> {
    let sql = concat!(
        "SELECT u.place, ",
        tally_columns!(),
        " FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS u (k, s, w, t, place),
          LATERAL (SELECT * FROM usage_rollups r
              WHERE r.subject_kind = u.k AND r.subject_id = u.s AND r.width = u.w AND r.start = u.t FOR UPDATE) AS r"
    );
    let values: &[&(dyn ToSql + Sync)] =
        &[&columns.kinds, &columns.subjects, &columns.widths, &columns.starts];
    let rows = tx
        .all(sql, values, |f| {
            let place: usize = f.int("place")?;
            Ok((place, decode::sound_tally(read_tally(f))?))
        })
        .await?;
    let mut kept: Vec<Option<RollupTotals>> = (0..columns.kinds.len()).map(|_| None).collect();
    for (place, tally) in rows {
        if let Some(slot) = place.checked_sub(1).and_then(|at| kept.get_mut(at)) {
            *slot = tally;
        }
    }
    Ok(kept)
}

/// Writes existing, locked rows. As an insert, because that finds each row by the index without planning.
async fn write(tx: &Tx<'_>, columns: &RollupColumns<'_>) -> Result<(), StoreError> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        let (figures, replaced, arrays) = (sums_columns!(), sums::replaced(), arrays(5));
        let sketches = SUMS + 5;
        format!(
            "INSERT INTO usage_rollups AS r (subject_kind, subject_id, width, start, {figures}, sketch)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], {arrays}, ${sketches}::bytea[])
             ON CONFLICT (subject_kind, subject_id, width, start) DO UPDATE SET {replaced}, sketch = excluded.sketch"
        )
    });
    let mut values: Vec<&(dyn ToSql + Sync)> =
        vec![&columns.kinds, &columns.subjects, &columns.widths, &columns.starts];
    values.extend(columns.figures.iter().map(|figures| figures as &(dyn ToSql + Sync)));
    values.push(&columns.sketches);
    tx.execute(&SQL, &values).await?;
    Ok(())
}

/// Adds `news` to the groups: one statement, which creates and locks them in the order of [`GroupWindow`].
pub(super) async fn add_to_groups(
    tx: &Tx<'_>,
    news: &BTreeMap<GroupWindow, UsageSums>,
) -> Result<(), StoreError> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        let (figures, added, arrays) = (sums_columns!(), sums::added("least", "greatest"), arrays(6));
        format!(
            "INSERT INTO usage_groups AS g (workspace_id, kind, width, start, name, {figures})
             SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[], {arrays})
             ON CONFLICT (workspace_id, kind, width, start, name) DO UPDATE SET {added}"
        )
    });
    if news.is_empty() {
        return Ok(());
    }
    let workspaces: Vec<&str> = news.keys().map(|window| window.workspace.as_str()).collect();
    let kinds: Vec<i64> = news.keys().map(|window| window.kind.number()).collect();
    let widths: Vec<i64> = news.keys().map(|window| window.width.seconds()).collect();
    let starts: Vec<i64> = news.keys().map(|window| window.start.as_micros()).collect();
    let names: Vec<&[u8]> = news.keys().map(|window| window.name.as_slice()).collect();
    let mut figures: [Vec<i64>; SUMS] = Default::default();
    for sums in news.values() {
        push_figures(&mut figures, sums);
    }
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&workspaces, &kinds, &widths, &starts, &names];
    values.extend(figures.iter().map(|figures| figures as &(dyn ToSql + Sync)));
    tx.execute(&SQL, &values).await?;
    Ok(())
}

/// The arrays of figures as parameters, the first with this number.
fn arrays(first: usize) -> String {
    (first..first + SUMS).map(|n| format!("${n}::bigint[]")).collect::<Vec<_>>().join(", ")
}

fn push_figures(columns: &mut [Vec<i64>; SUMS], sums: &UsageSums) {
    for (column, figure) in columns.iter_mut().zip(sums.figures()) {
        column.push(figure);
    }
}

/// One roll-up, if it has counted anything.
pub(super) async fn one(tx: &Tx<'_>, window: &RollupWindow) -> Result<Option<RollupTotals>, StoreError> {
    let sql = concat!(
        "SELECT ",
        tally_columns!(),
        " FROM usage_rollups WHERE subject_kind = $1 AND subject_id = $2 AND width = $3 AND start = $4"
    );
    let (kind, subject) = subject_columns(&window.subject);
    tx.one(sql, &[&kind, &subject, &window.width.seconds(), &window.start.as_micros()], read_tally).await
}

/// A time series of a key or workspace: windows that begin in `[floor(from), to)`, oldest first.
pub(super) async fn series(
    tx: &Tx<'_>,
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
        " FROM usage_rollups WHERE subject_kind = $1 AND subject_id = $2 AND width = $3 AND start >= $4 AND start < $5
         ORDER BY start"
    );
    let (from, to) = (width.start(range.from).as_micros(), range.to.as_micros());
    let (kind, bytes) = subject_columns(subject);
    tx.all(sql, &[&kind, &bytes, &width.seconds(), &from, &to], read_point).await
}

/// PostgreSQL's sums are `numeric`.
const BOUNDS: Bounds = ("least(", ", 9223372036854775807)::bigint");

/// Sends the usage of every subject in the windows of `calendar` that contain `at`.
pub(super) async fn send_spent(
    tx: &Tx<'_>,
    at: Timestamp,
    calendar: Calendar,
    to: &mpsc::Sender<Vec<UsageTotals>>,
) -> Result<(), StoreError> {
    let SpentQuery { sql, values } = SpentQuery::of_all(BOUNDS, calendar, at);
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|n| n as _).collect();
    let mut parts = tx.parts(&sql, &values, BATCH_MAX).await?;
    while let Some(rows) = parts.next().await? {
        let mut batch = Vec::with_capacity(rows.len());
        for row in &rows {
            batch.extend(sound_spent(&mut RowReader::of(row))?);
        }
        to.send(batch).await.map_err(|_| StoreError::Cancelled)?;
    }
    Ok(())
}

/// The same of every end user of a workspace.
pub(super) async fn send_spent_by_end_users(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    at: Timestamp,
    calendar: Calendar,
    to: &mpsc::Sender<Vec<UsageTotals>>,
) -> Result<(), StoreError> {
    let SpentQuery { sql, values } = SpentQuery::of_end_users(BOUNDS, calendar, at);
    let id = workspace.as_str();
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|n| n as _).chain([&id as _]).collect();
    let mut parts = tx.parts(&sql, &values, BATCH_MAX).await?;
    while let Some(rows) = parts.next().await? {
        let mut batch = Vec::with_capacity(rows.len());
        for row in &rows {
            batch.extend(sound_spent_by_end_user(workspace, &mut RowReader::of(row))?);
        }
        to.send(batch).await.map_err(|_| StoreError::Cancelled)?;
    }
    Ok(())
}

/// The usage of one subject in the windows of `calendar` that contain `at`.
pub(super) async fn spent_of(
    tx: &Tx<'_>,
    subject: &UsageSubject,
    at: Timestamp,
    calendar: Calendar,
) -> Result<UsageTotals, StoreError> {
    if let UsageSubject::EndUser(workspace, id) = subject {
        let SpentQuery { sql, values } = SpentQuery::of_end_users(BOUNDS, calendar, at).of_one_end_user();
        let (text, name) = (workspace.as_str(), &id.0.as_bytes()[..]);
        let of_one: [&(dyn ToSql + Sync); 2] = [&text, &name];
        let values: Vec<_> = values.iter().map(|n| n as _).chain(of_one).collect();
        let found = tx.one(&sql, &values, |f| sound_spent_by_end_user(workspace, f)).await?.flatten();
        return Ok(found.unwrap_or_else(|| UsageTotals::nothing(subject.clone())));
    }
    let SpentQuery { sql, values } = SpentQuery::of_all(BOUNDS, calendar, at).of_one();
    let (kind, id) = subject_columns(subject);
    let found = tx.one(&sql, &of_subject(&values, &kind, &id), sound_spent).await?.flatten();
    Ok(found.unwrap_or_else(|| UsageTotals::nothing(subject.clone())))
}

/// The number of requests of a subject in a window that contains `at`.
pub(super) async fn requests_in(
    tx: &Tx<'_>,
    subject: &UsageSubject,
    window: &Window,
    at: Timestamp,
) -> Result<u64, StoreError> {
    let SpentQuery { sql, values } = SpentQuery::requests(BOUNDS, window, at).of_one();
    let (kind, id) = subject_columns(subject);
    let found = tx.one(&sql, &of_subject(&values, &kind, &id), |f| f.int("requests")).await?;
    Ok(found.unwrap_or(0))
}

/// The numeric parameters of a query, then the subject.
fn of_subject<'v>(values: &'v [i64], kind: &'v i64, id: &'v &[u8]) -> Vec<&'v (dyn ToSql + Sync)> {
    values.iter().chain([kind]).map(|n| n as _).chain([id as _]).collect()
}

// === impl RollupColumns ===

impl<'w> RollupColumns<'w> {
    fn push_window(&mut self, window: &'w RollupWindow) {
        let (kind, subject) = subject_columns(&window.subject);
        self.kinds.push(kind);
        self.subjects.push(subject);
        self.widths.push(window.width.seconds());
        self.starts.push(window.start.as_micros());
    }

    fn push_tally(&mut self, tally: &RollupTotals) {
        push_figures(&mut self.figures, &tally.sums);
        self.sketches.push(tally.sketch.encode());
    }
}
