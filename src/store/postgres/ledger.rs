//! The ledger: every record once, and roll-ups updated from exactly the new ones.

use super::copy::CopyRows;
use super::partitions::day_of;
use super::tx::Tx;
use super::{CallError, PgStore, StoreError, all_records, logs, rollups, usage_totals};
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::id::{KeyId, RequestId, WorkspaceId};
use crate::model::key::Per;
use crate::model::usage::{UsageRecord, UsageSubject, UsageTotals, usage_columns};
use crate::policy::keys::calendar::Window;
use crate::store::shared::decode::read_calendar;
use crate::store::shared::fields::RowReader;
use crate::store::shared::groups::tally_groups;
use crate::store::shared::logs::LogSearch;
use crate::store::shared::retention;
use crate::store::shared::rollup::{RollupWindow, WindowWidth, tally};
use crate::store::shared::rules;
use crate::store::{KeyStats, Ledger, LogFilter, LogPage, LogPageRequest, RecordFilter, RecordPage};
use crate::store::{MaintenanceReport, Page, PageRequest, UsageGroup, UsageGroupTotal};
use crate::store::{UsagePoint, UsageRange, UsageTotal, UsageTotalsFilter};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Bytes of a typical encoded record.
const ROW_BYTES: usize = 512;

/// What the ledger needs to know of a key whose usage is requested.
struct PgKeyFacts {
    quota_limit: Option<u64>,
    kept_from: Timestamp,
    calendar: Calendar,
}

#[async_trait]
impl Ledger for PgStore {
    async fn append(&self, records: &[UsageRecord]) -> Result<u64, StoreError> {
        if records.is_empty() {
            return Ok(0);
        }
        let mut records = records.to_vec();
        records.iter_mut().for_each(rules::fit);
        // In the same order on every node, so that two nodes with the same records do not deadlock.
        records.sort_by_key(|record| record.id);
        self.make_days(records.iter().map(|record| day_of(record.at))).await;
        let records: Arc<[UsageRecord]> = records.into();
        let appended = self
            .write_again(move |tx| {
                let records = Arc::clone(&records);
                Box::pin(async move { append(tx, &records).await })
            })
            .await;
        appended.map_err(|CallError { error, is_content, .. }| {
            let why = || StoreError::Invalid { field: "usage record", why: error.to_string() };
            if is_content { why() } else { error }
        })
    }

    async fn maintain(&self, at: Timestamp) -> Result<MaintenanceReport, StoreError> {
        let partitions_made = self.make_days_ahead().await?;
        let clock = self.read(|tx| {
            Box::pin(async move {
                let now = "SELECT floor(extract(epoch FROM now()) * 1000000)::bigint";
                tx.one(now, &[], |f| f.instant("now")).await
            })
        });
        let clock = clock.await?.ok_or_else(|| StoreError::Corrupt("no clock".into()))?;
        Ok(MaintenanceReport { partitions_made, ..retention::prune(self, at, clock).await? })
    }

    async fn totals(
        &self,
        at: Timestamp,
        calendar: Calendar,
        to: mpsc::Sender<Vec<UsageTotals>>,
    ) -> Result<(), StoreError> {
        self.read(move |tx| Box::pin(async move { rollups::send_spent(tx, at, calendar, &to).await })).await
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
            Box::pin(async move { rollups::send_spent_by_end_users(tx, &id, at, calendar, &to).await })
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
        self.read(move |tx| Box::pin(async move { rollups::spent_of(tx, &subject, at, calendar).await }))
            .await
    }

    async fn stats(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        at: Timestamp,
    ) -> Result<Option<KeyStats>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| Box::pin(async move { stats(tx, &workspace, id, at).await })).await
    }

    async fn usage(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        range: &UsageRange,
    ) -> Result<Option<Vec<UsagePoint>>, StoreError> {
        let (workspace, range) = (workspace.clone(), *range);
        self.read(move |tx| {
            Box::pin(async move {
                if owned(tx, &workspace, id).await?.is_none() {
                    return Ok(None);
                }
                rollups::series(tx, &UsageSubject::Key(id), &range).await.map(Some)
            })
        })
        .await
    }

    async fn workspace_series(
        &self,
        workspace: &WorkspaceId,
        range: &UsageRange,
    ) -> Result<Vec<UsagePoint>, StoreError> {
        let (workspace, range) = (workspace.clone(), *range);
        self.read(move |tx| {
            Box::pin(async move { rollups::series(tx, &UsageSubject::Workspace(workspace), &range).await })
        })
        .await
    }

    async fn workspace_usage(
        &self,
        workspace: &WorkspaceId,
        filter: &UsageTotalsFilter,
    ) -> Result<UsageTotal, StoreError> {
        if rules::hold_nul([filter.resource_id.as_deref()]) {
            return Ok(UsageTotal::default());
        }
        let (workspace, filter) = (workspace.clone(), filter.clone());
        self.read(move |tx| Box::pin(async move { usage_totals::all(tx, &workspace, &filter).await })).await
    }

    async fn workspace_usage_by(
        &self,
        workspace: &WorkspaceId,
        filter: &UsageTotalsFilter,
        by: UsageGroup,
        page: PageRequest,
    ) -> Result<Page<UsageGroupTotal>, StoreError> {
        if rules::hold_nul([filter.resource_id.as_deref()]) {
            return Ok(Page::complete(Vec::new(), 0));
        }
        let (workspace, filter) = (workspace.clone(), filter.clone());
        self.read(move |tx| {
            Box::pin(async move { usage_totals::groups(tx, &workspace, &filter, by, page).await })
        })
        .await
    }

    async fn logs(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        filter: &LogFilter,
        page: LogPageRequest,
    ) -> Result<Option<LogPage>, StoreError> {
        let (workspace, mut filter) = (workspace.clone(), filter.clone());
        if rules::hold_nul([filter.endpoint.as_deref()]) {
            // It cannot exist, and the server would refuse the value: no record is from the year 10000.
            filter = LogFilter { from: Some(Timestamp::from_micros(i64::MAX)), ..LogFilter::default() };
        }
        self.read(move |tx| {
            Box::pin(async move {
                let Some(PgKeyFacts { kept_from, .. }) = owned(tx, &workspace, id).await? else {
                    return Ok(None);
                };
                let search = LogSearch::new(&filter, &page, kept_from);
                logs::page(tx, &workspace, id, &search).await.map(Some)
            })
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
        self.read(move |tx| Box::pin(async move { all_records::part(tx, &filter, first, looks_at).await }))
            .await
    }
}

// === append ===

async fn append(tx: &Tx<'_>, records: &[UsageRecord]) -> Result<u64, StoreError> {
    let mut inserted = insert(tx, records).await?;
    let count = u64::try_from(inserted.len()).unwrap_or(u64::MAX);
    if inserted.is_empty() {
        return Ok(0);
    }
    // A record that is twice in the batch counts once: the first time removes its id from the set.
    let new: Vec<&UsageRecord> = records.iter().filter(|record| inserted.remove(&record.id.0)).collect();
    rollups::add(tx, &tally(new.iter().copied())).await?;
    rollups::add_to_groups(tx, &tally_groups(new)).await?;
    Ok(count)
}

/// Stores new records, and returns which ones were new. They are copied into a temporary table of the connection by COPY,
/// and inserted from there by one statement: the server parses nothing and plans one insert for all.
async fn insert(tx: &Tx<'_>, records: &[UsageRecord]) -> Result<HashSet<Uuid>, StoreError> {
    let lacks_table = "SELECT to_regclass('pg_temp.usage_new') IS NULL";
    if tx.one(lacks_table, &[], |f| f.bool("lacks")).await? == Some(true) {
        tx.control("CREATE TEMPORARY TABLE usage_new (LIKE usage) ON COMMIT DELETE ROWS").await?;
    }
    let copy = concat!("COPY usage_new (", usage_columns!(), ") FROM STDIN (FORMAT binary)");
    tx.copy(copy, encoded(records)).await?;
    let insert = concat!(
        "INSERT INTO usage (",
        usage_columns!(),
        ") SELECT ",
        usage_columns!(),
        " FROM usage_new ON CONFLICT DO NOTHING RETURNING id"
    );
    let ids = tx.all(insert, &[], |f| f.uuid("id")).await?;
    Ok(ids.into_iter().collect())
}

/// The records encoded for COPY, in the order of [`usage_columns`].
fn encoded(records: &[UsageRecord]) -> Bytes {
    let mut rows = CopyRows::of(UsageRecord::FIELDS.len(), records.len() * ROW_BYTES);
    for record in records {
        rows.begin();
        let Ok(()) = record.write(&mut rows);
    }
    rows.finish()
}

// === statistics ===

async fn stats(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    at: Timestamp,
) -> Result<Option<KeyStats>, StoreError> {
    let Some(PgKeyFacts { quota_limit, calendar, .. }) = owned(tx, workspace, id).await? else {
        return Ok(None);
    };
    let (subject, width) = (UsageSubject::Key(id), WindowWidth::Total);
    let today = Window::of(Per::Day, calendar, at);
    let requests_today = rollups::requests_in(tx, &subject, &today, at).await?;
    let life = rollups::one(tx, &RollupWindow { subject, width, start: width.start(at) }).await?;
    Ok(Some(KeyStats::new(&life.unwrap_or_default(), requests_today, quota_limit)))
}

/// A key of this workspace, deleted or not.
async fn owned(tx: &Tx<'_>, workspace: &WorkspaceId, id: KeyId) -> Result<Option<PgKeyFacts>, StoreError> {
    let sql = "SELECT k.quota_limit, w.usage_kept_from, p.calendar FROM keys k
                   JOIN workspaces w ON w.id = k.workspace_id JOIN plans p ON p.id = w.plan_id
               WHERE k.id = $1 AND k.workspace_id = $2";
    let read = |f: &mut RowReader<'_>| {
        Ok(PgKeyFacts {
            quota_limit: f.maybe_int("quota_limit")?,
            kept_from: f.instant("usage_kept_from")?,
            calendar: read_calendar(f)?,
        })
    };
    tx.one(sql, &[&id.0, &workspace.as_str()], read).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_copied_as_always_with_every_field() {
        let records = [UsageRecord::full_sample(), UsageRecord::bare_sample()];
        insta::assert_snapshot!(format!("{:?}", encoded(&records)));
    }
}
