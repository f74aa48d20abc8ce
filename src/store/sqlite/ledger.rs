//! The ledger: every record once, and the roll-ups fed from exactly those that were new.

use super::rollups;
use super::row;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::policy::fault::Fault;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::store::decode::{self, BATCH_MAX, read_usage, usage_columns};
use crate::store::rollup::{Width, Window, tally};
use crate::store::rules::without_nul;
use crate::store::{KeyStats, Ledger, LogCursor, LogFilter, LogPage, LogPageRequest, SpentBy, SpentRow};
use crate::store::{UsagePoint, UsageRange, UsageRecord};
use async_trait::async_trait;
use rusqlite::{Transaction, named_params, params};
use tokio::sync::mpsc;

/// What the ledger needs of a key whose usage may be seen.
struct Owned {
    quota_limit: Option<u64>,
}

#[async_trait]
impl Ledger for SqliteStore {
    async fn append(&self, records: &[UsageRecord]) -> Result<u64, StoreError> {
        if records.is_empty() {
            return Ok(0);
        }
        let records = records.to_vec();
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

    async fn spent(&self, at: Timestamp, to: mpsc::Sender<Vec<SpentRow>>) -> Result<(), StoreError> {
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

    async fn spent_of(&self, subject: &SpentBy, at: Timestamp) -> Result<SpentRow, StoreError> {
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
            let Some(Owned { quota_limit }) = owned(tx, &workspace, id)? else { return Ok(None) };
            let window = |width: Width| Window { subject: SpentBy::Key(id), width, start: width.start(at) };
            let life = rollups::one(tx, &window(Width::Total))?.unwrap_or_default();
            let today = rollups::one(tx, &window(Width::Day))?.unwrap_or_default();
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
            if owned(tx, &workspace, id)?.is_none() {
                return Ok(None);
            }
            log_page(tx, &workspace, id, &filter, &page).map(Some)
        })
        .await
    }
}

/// Stores a record; false when it was there already.
fn insert(tx: &Transaction<'_>, record: &UsageRecord) -> Result<bool, StoreError> {
    let sql = "INSERT INTO usage (id, request_id, api_key_id, workspace_id, at, method, endpoint, route, status_code,
                   outcome, denial, charged, degraded, response_time_us, ttfb_us, bytes_in, bytes_out, tokens_used, ip_address,
                   user_agent, end_user_id, upstream, node)
               VALUES (:id, :request_id, :key, :workspace, :at, :method, :endpoint, :route, :status, :outcome,
                   :denial, :charged, :degraded, :response_time, :ttfb, :bytes_in, :bytes_out, :tokens, :ip, :user_agent,
                   :end_user, :upstream, :node)
               ON CONFLICT (id) DO NOTHING";
    let inserted = row::execute(
        tx,
        sql,
        named_params! {
            ":id": record.id.0.as_bytes(),
            ":request_id": without_nul(&record.request_id),
            ":key": record.api_key_id.0.as_bytes(),
            ":workspace": record.workspace_id.as_str(),
            ":at": record.at.as_micros(),
            ":method": without_nul(&record.method),
            ":endpoint": without_nul(&record.endpoint),
            ":route": without_nul(&record.route),
            ":status": record.status_code,
            ":outcome": record.outcome.as_str(),
            ":denial": record.denial.map(Fault::name),
            ":charged": record.charged,
            ":degraded": record.degraded,
            ":response_time": row::int(record.response_time_us),
            ":ttfb": record.ttfb_us.map(row::int),
            ":bytes_in": row::int(record.bytes_in),
            ":bytes_out": row::int(record.bytes_out),
            ":tokens": row::int(record.tokens_used),
            ":ip": record.ip_address.map(|ip| ip.to_string()),
            ":user_agent": without_nul(&record.user_agent),
            ":end_user": record.end_user_id.as_ref().map(|id| id.0.as_bytes()),
            ":upstream": without_nul(&record.upstream),
            ":node": without_nul(&record.node),
        },
    )?;
    Ok(inserted == 1)
}

/// A key of that workspace, deleted or not.
fn owned(tx: &Transaction<'_>, workspace: &WorkspaceId, id: KeyId) -> Result<Option<Owned>, StoreError> {
    let sql = "SELECT quota_limit FROM keys WHERE id = ?1 AND workspace_id = ?2";
    row::one(tx, sql, params![id.0.as_bytes(), workspace.as_str()], |f| {
        Ok(Owned { quota_limit: f.maybe_int("quota_limit")? })
    })
}

// === logs ===

/// Which records are shown. Paths are folded as ASCII, in both backends; nothing in `:endpoint` is a wildcard.
macro_rules! shown {
    () => {
        " FROM usage WHERE api_key_id = :key AND workspace_id = :workspace AND at >= :from AND at < :to
            AND (:status IS NULL OR status_code = :status)
            AND (:endpoint IS NULL OR instr(lower(endpoint), :endpoint) > 0)"
    };
}

fn log_page(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    filter: &LogFilter,
    page: &LogPageRequest,
) -> Result<LogPage, StoreError> {
    let (after, limit, offset) = match page {
        LogPageRequest::Number(page) => (None, page.pagesize, page.offset()),
        LogPageRequest::After(cursor, limit) => (Some(*cursor), *limit, 0),
    };
    let total = match page {
        LogPageRequest::Number(_) => Some(count_logs(tx, workspace, id, filter)?),
        LogPageRequest::After(..) => None,
    };
    // One more than asked for tells whether anything follows.
    let found = select_logs(tx, workspace, id, filter, after, u64::from(limit) + 1, offset)?;
    Ok(decode::log_page(found, limit, total))
}

fn count_logs(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    filter: &LogFilter,
) -> Result<u64, StoreError> {
    row::count(
        tx,
        concat!("SELECT count(*)", shown!()),
        named_params! {
            ":key": id.0.as_bytes(),
            ":workspace": workspace.as_str(),
            ":from": filter.from.map_or(i64::MIN, Timestamp::as_micros),
            ":to": filter.to.map_or(i64::MAX, Timestamp::as_micros),
            ":status": filter.status_code,
            ":endpoint": filter.endpoint.as_deref().map(str::to_ascii_lowercase),
        },
    )
}

fn select_logs(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    filter: &LogFilter,
    after: Option<LogCursor>,
    limit: u64,
    offset: u64,
) -> Result<Vec<UsageRecord>, StoreError> {
    let sql = concat!(
        "SELECT ",
        usage_columns!(),
        shown!(),
        " AND (at, id) < (:after_at, :after_id) ORDER BY at DESC, id DESC LIMIT :limit OFFSET :offset"
    );
    // Without a place to begin behind: behind the end of time, where no record is.
    let after_at = after.map_or(i64::MAX, |cursor| cursor.at.as_micros());
    let after_id = after.map_or([0xff; 16], |cursor| *cursor.id.0.as_bytes());
    row::all(
        tx,
        sql,
        named_params! {
            ":key": id.0.as_bytes(),
            ":workspace": workspace.as_str(),
            ":from": filter.from.map_or(i64::MIN, Timestamp::as_micros),
            ":to": filter.to.map_or(i64::MAX, Timestamp::as_micros),
            ":status": filter.status_code,
            ":endpoint": filter.endpoint.as_deref().map(str::to_ascii_lowercase),
            ":after_at": after_at,
            ":after_id": after_id,
            ":limit": row::int(limit),
            ":offset": row::int(offset),
        },
        read_usage,
    )
}
