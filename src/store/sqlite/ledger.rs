//! The ledger: every record once, and the roll-ups fed from exactly those that were new.

use super::all_records;
use super::error;
use super::logs;
use super::rollups;
use super::row;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::{KeyId, RequestId, WorkspaceId};
use crate::model::usage::{UsageRecord, UsageSubject, UsageTotals};
use crate::store::shared::decode::BATCH_MAX;
use crate::store::shared::logs::LogSearch;
use crate::store::shared::retention;
use crate::store::shared::rollup::{RollupWindow, WindowWidth, tally};
use crate::store::shared::rules;
use crate::store::{KeyStats, Ledger, LogFilter, LogPage, LogPageRequest, RecordFilter, RecordPage};
use crate::store::{MaintenanceReport, UsagePoint, UsageRange};
use async_trait::async_trait;
use rusqlite::{Transaction, params};
use tokio::sync::mpsc;

/// What the ledger needs of a key whose usage may be seen.
struct SqliteKeyFacts {
    quota_limit: Option<u64>,
    kept_from: Timestamp,
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
            Ok(u64::try_from(new.len()).unwrap_or(u64::MAX))
        })
        .await
    }

    async fn maintain(&self, at: Timestamp) -> Result<MaintenanceReport, StoreError> {
        retention::prune(self, at, at).await
    }

    async fn totals(&self, at: Timestamp, to: mpsc::Sender<Vec<UsageTotals>>) -> Result<(), StoreError> {
        self.read(move |tx| {
            let send = |batch| to.blocking_send(batch).map_err(|_| StoreError::Cancelled);
            let mut batch = Vec::new();
            rollups::each_spent(tx, at, |spent| {
                batch.push(spent);
                if batch.len() == BATCH_MAX { send(std::mem::take(&mut batch)) } else { Ok(()) }
            })?;
            if batch.is_empty() { Ok(()) } else { send(batch) }
        })
        .await
    }

    async fn totals_of(&self, subject: &UsageSubject, at: Timestamp) -> Result<UsageTotals, StoreError> {
        let subject = subject.clone();
        self.read(move |tx| rollups::spent_of(tx, &subject, at)).await
    }

    async fn stats(
        &self,
        workspace: &WorkspaceId,
        id: KeyId,
        at: Timestamp,
    ) -> Result<Option<KeyStats>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| {
            let Some(SqliteKeyFacts { quota_limit, .. }) = owned(tx, &workspace, id)? else {
                return Ok(None);
            };
            let window = |width: WindowWidth| RollupWindow {
                subject: UsageSubject::Key(id),
                width,
                start: width.start(at),
            };
            let life = rollups::one(tx, &window(WindowWidth::Total))?.unwrap_or_default();
            let today = rollups::one(tx, &window(WindowWidth::Day))?.unwrap_or_default();
            Ok(Some(KeyStats::new(&life, &today, quota_limit)))
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
            rollups::series(tx, id, &range).map(Some)
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

/// Stores a record; false when it was there already.
fn insert(tx: &Transaction<'_>, record: &UsageRecord) -> Result<bool, StoreError> {
    let sql = "INSERT INTO usage (id, request_id, api_key_id, workspace_id, at, method, endpoint, route, status_code,
                   outcome, denial, charged, degraded, response_time_us, ttfb_us, bytes_in, bytes_out, tokens_used, ip_address,
                   user_agent, end_user_id, upstream, node)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT (id) DO NOTHING";
    // By place: finding parameters by name took as long as the rest of the insertion.
    let values = params![
        record.id.0.as_bytes(),
        record.request_id,
        record.api_key_id.0.as_bytes(),
        record.workspace_id.as_str(),
        record.at.as_micros(),
        record.method,
        record.endpoint,
        record.route,
        record.status_code,
        record.outcome.as_str(),
        record.denial.map(Fault::name),
        record.charged,
        record.degraded,
        row::int(record.response_time_us),
        record.ttfb_us.map(row::int),
        row::int(record.bytes_in),
        row::int(record.bytes_out),
        row::int(record.tokens_used),
        record.ip_address.map(|ip| ip.to_string()),
        record.user_agent,
        record.end_user_id.as_ref().map(|id| id.0.as_bytes()),
        record.upstream,
        record.node,
    ];
    let inserted = tx.prepare_cached(sql)?.execute(values).map_err(error::of_record)?;
    Ok(inserted == 1)
}

/// A key of that workspace, deleted or not.
fn owned(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
) -> Result<Option<SqliteKeyFacts>, StoreError> {
    let sql = "SELECT k.quota_limit, w.usage_kept_from FROM keys k JOIN workspaces w ON w.id = k.workspace_id
               WHERE k.id = ?1 AND k.workspace_id = ?2";
    row::one(tx, sql, params![id.0.as_bytes(), workspace.as_str()], |f| {
        Ok(SqliteKeyFacts {
            quota_limit: f.maybe_int("quota_limit")?,
            kept_from: f.instant("usage_kept_from")?,
        })
    })
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
        let bare = UsageRecord {
            id,
            denial: None,
            ttfb_us: None,
            ip_address: None,
            end_user_id: None,
            ..full.clone()
        };
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
