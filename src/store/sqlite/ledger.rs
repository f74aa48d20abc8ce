//! The ledger: every record once, and roll-ups updated from exactly the new ones.

use super::all_records;
use super::error;
use super::logs;
use super::rollups;
use super::row;
use super::usage_totals;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::id::{KeyId, RequestId, WorkspaceId};
use crate::model::key::Per;
use crate::model::usage::fields::FieldWriter;
use crate::model::usage::{UsageRecord, UsageSubject, UsageTotals, usage_columns};
use crate::policy::keys::calendar::Window;
use crate::store::shared::decode::{BATCH_MAX, read_calendar};
use crate::store::shared::groups::tally_groups;
use crate::store::shared::logs::LogSearch;
use crate::store::shared::retention;
use crate::store::shared::rollup::{RollupWindow, WindowWidth, tally};
use crate::store::shared::rules;
use crate::store::{KeyStats, Ledger, LogFilter, LogPage, LogPageRequest, RecordFilter, RecordPage};
use crate::store::{MaintenanceReport, Page, PageRequest, UsageGroup, UsageGroupTotal};
use crate::store::{UsagePoint, UsageRange, UsageTotal, UsageTotalsFilter};
use async_trait::async_trait;
use rusqlite::{CachedStatement, ToSql, Transaction, params};
use std::sync::LazyLock;
use tokio::sync::mpsc;
use uuid::Uuid;

/// What the ledger needs to know of a key whose usage is requested.
struct SqliteKeyFacts {
    quota_limit: Option<u64>,
    kept_from: Timestamp,
    calendar: Calendar,
}

/// Sends what `each` visits in batches.
fn in_batches(
    to: &mpsc::Sender<Vec<UsageTotals>>,
    each: impl FnOnce(&mut dyn FnMut(UsageTotals) -> Result<(), StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let send = |batch| to.blocking_send(batch).map_err(|_| StoreError::Cancelled);
    let mut batch = Vec::new();
    each(&mut |spent| {
        batch.push(spent);
        if batch.len() == BATCH_MAX { send(std::mem::take(&mut batch)) } else { Ok(()) }
    })?;
    if batch.is_empty() { Ok(()) } else { send(batch) }
}

#[async_trait]
impl Ledger for SqliteStore {
    async fn append(&self, records: &[UsageRecord]) -> Result<u64, StoreError> {
        if records.is_empty() {
            return Ok(0);
        }
        let mut records = records.to_vec();
        records.iter_mut().for_each(rules::fit);
        self.write(move |tx| {
            let mut new = Vec::with_capacity(records.len());
            for record in &records {
                if insert(tx, record)? {
                    new.push(record);
                }
            }
            for (window, news) in &tally(new.iter().copied()) {
                rollups::add(tx, window, news)?;
            }
            for (window, news) in &tally_groups(new.iter().copied()) {
                rollups::add_to_group(tx, window, news)?;
            }
            Ok(u64::try_from(new.len()).unwrap_or(u64::MAX))
        })
        .await
    }

    async fn maintain(&self, at: Timestamp) -> Result<MaintenanceReport, StoreError> {
        retention::prune(self, at, at).await
    }

    async fn totals(
        &self,
        at: Timestamp,
        calendar: Calendar,
        to: mpsc::Sender<Vec<UsageTotals>>,
    ) -> Result<(), StoreError> {
        self.read(move |tx| in_batches(&to, |visit| rollups::each_spent(tx, at, calendar, visit))).await
    }

    async fn end_user_totals(
        &self,
        workspace: &WorkspaceId,
        at: Timestamp,
        calendar: Calendar,
        to: mpsc::Sender<Vec<UsageTotals>>,
    ) -> Result<(), StoreError> {
        let id = workspace.clone();
        self.read(move |tx| {
            in_batches(&to, |visit| rollups::each_spent_by_end_users(tx, &id, at, calendar, visit))
        })
        .await
    }

    async fn totals_of(
        &self,
        subject: &UsageSubject,
        at: Timestamp,
        calendar: Calendar,
    ) -> Result<UsageTotals, StoreError> {
        let subject = subject.clone();
        self.read(move |tx| rollups::spent_of(tx, &subject, at, calendar)).await
    }

    async fn stats(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        at: Timestamp,
    ) -> Result<Option<KeyStats>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| {
            let Some(SqliteKeyFacts { quota_limit, calendar, .. }) = owned(tx, &workspace, id)? else {
                return Ok(None);
            };
            let (subject, width) = (UsageSubject::Key(id), WindowWidth::Total);
            let today = Window::of(Per::Day, calendar, at);
            let requests_today = rollups::requests_in(tx, &subject, &today, at)?;
            let life = rollups::one(tx, &RollupWindow { subject, width, start: width.start(at) })?;
            Ok(Some(KeyStats::new(&life.unwrap_or_default(), requests_today, quota_limit)))
        })
        .await
    }

    async fn usage(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        range: &UsageRange,
    ) -> Result<Option<Vec<UsagePoint>>, StoreError> {
        let (workspace, range) = (workspace.clone(), *range);
        self.read(move |tx| {
            if owned(tx, &workspace, id)?.is_none() {
                return Ok(None);
            }
            rollups::series(tx, &UsageSubject::Key(id), &range).map(Some)
        })
        .await
    }

    async fn workspace_series(
        &self,
        workspace: &WorkspaceId,
        range: &UsageRange,
    ) -> Result<Vec<UsagePoint>, StoreError> {
        let (workspace, range) = (workspace.clone(), *range);
        self.read(move |tx| rollups::series(tx, &UsageSubject::Workspace(workspace), &range)).await
    }

    async fn workspace_usage(
        &self,
        workspace: &WorkspaceId,
        filter: &UsageTotalsFilter,
    ) -> Result<UsageTotal, StoreError> {
        let (workspace, filter) = (workspace.clone(), filter.clone());
        self.read(move |tx| usage_totals::all(tx, &workspace, &filter)).await
    }

    async fn workspace_usage_by(
        &self,
        workspace: &WorkspaceId,
        filter: &UsageTotalsFilter,
        by: UsageGroup,
        page: PageRequest,
    ) -> Result<Page<UsageGroupTotal>, StoreError> {
        let (workspace, filter) = (workspace.clone(), filter.clone());
        self.read(move |tx| usage_totals::groups(tx, &workspace, &filter, by, page)).await
    }

    async fn logs(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        filter: &LogFilter,
        page: LogPageRequest,
    ) -> Result<Option<LogPage>, StoreError> {
        let (workspace, filter) = (workspace.clone(), filter.clone());
        self.read(move |tx| {
            let Some(SqliteKeyFacts { kept_from, .. }) = owned(tx, &workspace, id)? else { return Ok(None) };
            logs::page(tx, &workspace, id, &LogSearch::new(&filter, &page, kept_from)).map(Some)
        })
        .await
    }

    async fn all_records(
        &self,
        filter: &RecordFilter,
        first: RequestId,
        looks_at: u32,
    ) -> Result<RecordPage, StoreError> {
        let filter = filter.clone();
        self.read(move |tx| all_records::part(tx, &filter, first, looks_at)).await
    }
}

/// Binds the values of a record by position: finding parameters by name took as long as the rest of the insertion.
struct InsertValues<'s, 'c> {
    statement: &'s mut CachedStatement<'c>,
    /// Number of bound values.
    bound: usize,
}

/// Stores a record; false if it exists already.
fn insert(tx: &Transaction<'_>, record: &UsageRecord) -> Result<bool, StoreError> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        let places = vec!["?"; UsageRecord::FIELDS.len()].join(", ");
        let columns = usage_columns!();
        format!("INSERT INTO usage ({columns}) VALUES ({places}) ON CONFLICT (id) DO NOTHING")
    });
    let mut statement = tx.prepare_cached(&SQL)?;
    record.write(&mut InsertValues { statement: &mut statement, bound: 0 }).map_err(error::of_record)?;
    Ok(statement.raw_execute().map_err(error::of_record)? == 1)
}

/// A key of this workspace, deleted or not.
fn owned(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
) -> Result<Option<SqliteKeyFacts>, StoreError> {
    let sql = "SELECT k.quota_limit, w.usage_kept_from, p.calendar FROM keys k
                   JOIN workspaces w ON w.id = k.workspace_id JOIN plans p ON p.id = w.plan_id
               WHERE k.id = ?1 AND k.workspace_id = ?2";
    row::one(tx, sql, params![id.0.as_bytes(), workspace.as_str()], |f| {
        Ok(SqliteKeyFacts {
            quota_limit: f.maybe_int("quota_limit")?,
            kept_from: f.instant("usage_kept_from")?,
            calendar: read_calendar(f)?,
        })
    })
}

// === impl InsertValues ===

impl InsertValues<'_, '_> {
    fn bind(&mut self, value: impl ToSql) -> rusqlite::Result<()> {
        self.bound += 1;
        self.statement.raw_bind_parameter(self.bound, value)
    }
}

impl FieldWriter for InsertValues<'_, '_> {
    type Error = rusqlite::Error;

    fn uuid(&mut self, _: &'static str, id: Option<Uuid>) -> rusqlite::Result<()> {
        self.bind(id.as_ref().map(Uuid::as_bytes))
    }

    fn text(&mut self, _: &'static str, text: Option<&str>) -> rusqlite::Result<()> {
        self.bind(text)
    }

    fn count(&mut self, _: &'static str, count: Option<u64>) -> rusqlite::Result<()> {
        self.bind(count.map(row::int))
    }

    fn instant(&mut self, _: &'static str, at: Timestamp) -> rusqlite::Result<()> {
        self.bind(at.as_micros())
    }

    fn flag(&mut self, _: &'static str, flag: bool) -> rusqlite::Result<()> {
        self.bind(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store as _;
    use crate::store::sqlite::SqliteOptions;
    use std::fmt::Write as _;

    #[tokio::test]
    async fn a_record_is_always_the_same_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.db");
        let store = SqliteStore::open(&path, &SqliteOptions::default()).unwrap();
        let full = UsageRecord::full_sample();
        let id = RequestId(uuid::Uuid::from_u128(full.id.0.as_u128() + 1));
        let bare = UsageRecord { id, ..UsageRecord::bare_sample() };
        assert_eq!(store.append(&[full, bare]).await.unwrap(), 2);
        store.close().await;
        let file = rusqlite::Connection::open(&path).unwrap();
        let mut rows = file.prepare("SELECT * FROM usage ORDER BY id").unwrap();
        let names: Vec<String> = rows.column_names().into_iter().map(str::to_owned).collect();
        let mut rows = rows.query([]).unwrap();
        let mut text = String::new();
        while let Some(row) = rows.next().unwrap() {
            for (n, name) in names.iter().enumerate() {
                writeln!(text, "{name} = {:?}", row.get_ref(n).unwrap()).unwrap();
            }
        }
        insta::assert_snapshot!(text);
    }
}
