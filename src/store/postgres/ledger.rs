//! The ledger: every record once, and the roll-ups fed from exactly those that were new.

use super::tx::Tx;
use super::{PgStore, StoreError, rollups};
use crate::clock::Timestamp;
use crate::policy::fault::Fault;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::store::decode::{self, read_usage, usage_columns};
use crate::store::fields::int;
use crate::store::rollup::{Width, Window, tally};
use crate::store::rules::{self, without_nul};
use crate::store::{KeyStats, Ledger, LogCursor, LogFilter, LogPage, LogPageRequest, SpentBy, SpentRow};
use crate::store::{UsagePoint, UsageRange, UsageRecord};
use async_trait::async_trait;
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// What the ledger needs of a key whose usage may be seen.
struct Owned {
    quota_limit: Option<u64>,
}

#[async_trait]
impl Ledger for PgStore {
    async fn append(&self, records: &[UsageRecord]) -> Result<u64, StoreError> {
        if records.is_empty() {
            return Ok(0);
        }
        // In one order on every node, so that two that bring the same records wait in one direction only.
        let mut records = records.to_vec();
        records.sort_by_key(|record| record.id);
        let records: Arc<[UsageRecord]> = records.into();
        self.write_again(move |tx| {
            let records = Arc::clone(&records);
            Box::pin(async move { append(tx, &records).await })
        })
        .await
    }

    async fn spent(&self, at: Timestamp, to: mpsc::Sender<Vec<SpentRow>>) -> Result<(), StoreError> {
        self.read(move |tx| Box::pin(async move { rollups::send_spent(tx, at, &to).await })).await
    }

    async fn spent_of(&self, subject: &SpentBy, at: Timestamp) -> Result<SpentRow, StoreError> {
        let subject = subject.clone();
        self.read(move |tx| Box::pin(async move { rollups::spent_of(tx, &subject, at).await })).await
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
                rollups::series(tx, id, &range).await.map(Some)
            })
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
            Box::pin(async move {
                if owned(tx, &workspace, id).await?.is_none() {
                    return Ok(None);
                }
                log_page(tx, &workspace, id, &filter, &page).await.map(Some)
            })
        })
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
    // A record that is twice in the batch counts once: the first time it takes its id out of the set.
    let new = records.iter().filter(|record| inserted.remove(&record.id.0));
    let news = tally(new);
    rollups::add(tx, &news).await?;
    Ok(count)
}

/// Stores what is not there yet, and answers which records that were.
async fn insert(tx: &Tx<'_>, records: &[UsageRecord]) -> Result<HashSet<Uuid>, StoreError> {
    let sql = concat!(
        "INSERT INTO usage (",
        usage_columns!(),
        ") SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::text[],
               $8::text[], $9::bigint[], $10::text[], $11::text[], $12::boolean[], $13::boolean[], $14::bigint[],
               $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::text[], $20::text[], $21::uuid[],
               $22::text[], $23::text[])
           ON CONFLICT (id) DO NOTHING RETURNING id"
    );
    // In the order of `usage_columns`.
    let values: &[&(dyn ToSql + Sync)] = &[
        &column(records, |r| r.id.0),
        &texts(records, |r| &r.request_id),
        &column(records, |r| r.api_key_id.0),
        &column(records, |r| r.workspace_id.as_str()),
        &column(records, |r| r.at.as_micros()),
        &texts(records, |r| &r.method),
        &texts(records, |r| &r.endpoint),
        &texts(records, |r| &r.route),
        &column(records, |r| i64::from(r.status_code)),
        &column(records, |r| r.outcome.as_str()),
        &column(records, |r| r.denial.map(Fault::name)),
        &column(records, |r| r.charged),
        &column(records, |r| r.degraded),
        &column(records, |r| int(r.response_time_us)),
        &column(records, |r| r.ttfb_us.map(int)),
        &column(records, |r| int(r.bytes_in)),
        &column(records, |r| int(r.bytes_out)),
        &column(records, |r| int(r.tokens_used)),
        &column(records, |r| r.ip_address.map(|ip| ip.to_string())),
        &texts(records, |r| &r.user_agent),
        &column(records, |r| r.end_user_id.map(|id| id.0)),
        &texts(records, |r| &r.upstream),
        &texts(records, |r| &r.node),
    ];
    let ids = tx.all(sql, values, |f| f.uuid("id")).await?;
    Ok(ids.into_iter().collect())
}

fn column<'r, T>(records: &'r [UsageRecord], of: impl Fn(&'r UsageRecord) -> T) -> Vec<T> {
    records.iter().map(of).collect()
}

fn texts<'r>(records: &'r [UsageRecord], of: impl Fn(&'r UsageRecord) -> &'r str) -> Vec<Cow<'r, str>> {
    records.iter().map(|record| without_nul(of(record))).collect()
}

// === statistics ===

async fn stats(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    at: Timestamp,
) -> Result<Option<KeyStats>, StoreError> {
    let Some(Owned { quota_limit }) = owned(tx, workspace, id).await? else { return Ok(None) };
    let window = |width: Width| Window { subject: SpentBy::Key(id), width, start: width.start(at) };
    let life = rollups::one(tx, &window(Width::Total)).await?.unwrap_or_default();
    let today = rollups::one(tx, &window(Width::Day)).await?.unwrap_or_default();
    Ok(Some(KeyStats::new(&life, &today, quota_limit)))
}

/// A key of that workspace, deleted or not.
async fn owned(tx: &Tx<'_>, workspace: &WorkspaceId, id: KeyId) -> Result<Option<Owned>, StoreError> {
    let sql = "SELECT quota_limit FROM keys WHERE id = $1 AND workspace_id = $2";
    tx.one(sql, &[&id.0, &workspace.as_str()], |f| Ok(Owned { quota_limit: f.maybe_int("quota_limit")? }))
        .await
}

// === logs ===

/// Which records are shown. Paths are folded as ASCII, in both backends; nothing in `$6` is a wildcard.
macro_rules! shown {
    () => {
        " FROM usage WHERE api_key_id = $1 AND workspace_id = $2 AND at >= $3 AND at < $4
            AND ($5::bigint IS NULL OR status_code = $5)
            AND ($6::text IS NULL OR strpos(lower(endpoint COLLATE \"C\"), $6) > 0)"
    };
}

async fn log_page(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    filter: &LogFilter,
    page: &LogPageRequest,
) -> Result<LogPage, StoreError> {
    let (after, limit, offset) = match page {
        LogPageRequest::Number(page) => (None, page.pagesize, page.offset()),
        LogPageRequest::After(cursor, limit) => (Some(*cursor), *limit, 0),
    };
    let wants_total = matches!(page, LogPageRequest::Number(_));
    if rules::hold_nul([filter.endpoint.as_deref()]) {
        return Ok(decode::log_page(Vec::new(), limit, wants_total.then_some(0)));
    }
    let total = if wants_total { Some(count_logs(tx, workspace, id, filter).await?) } else { None };
    // One more than asked for tells whether anything follows.
    let found = select_logs(tx, workspace, id, filter, after, u64::from(limit) + 1, offset).await?;
    Ok(decode::log_page(found, limit, total))
}

async fn count_logs(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
    filter: &LogFilter,
) -> Result<u64, StoreError> {
    let bounds = Bounds::of(filter);
    let values: &[&(dyn ToSql + Sync)] =
        &[&id.0, &workspace.as_str(), &bounds.from, &bounds.to, &bounds.status, &bounds.endpoint];
    tx.count(concat!("SELECT count(*)", shown!()), values).await
}

async fn select_logs(
    tx: &Tx<'_>,
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
        " AND (at, id) < ($7, $8) ORDER BY at DESC, id DESC LIMIT $9 OFFSET $10"
    );
    let bounds = Bounds::of(filter);
    // Without a place to begin behind: behind the end of time, where no record is.
    let after_at = after.map_or(i64::MAX, |cursor| cursor.at.as_micros());
    let after_id = after.map_or(Uuid::max(), |cursor| cursor.id.0);
    let values: &[&(dyn ToSql + Sync)] = &[
        &id.0,
        &workspace.as_str(),
        &bounds.from,
        &bounds.to,
        &bounds.status,
        &bounds.endpoint,
        &after_at,
        &after_id,
        &int(limit),
        &int(offset),
    ];
    tx.all(sql, values, read_usage).await
}

/// A filter as the query takes it.
struct Bounds {
    from: i64,
    to: i64,
    status: Option<i64>,
    endpoint: Option<String>,
}

impl Bounds {
    fn of(filter: &LogFilter) -> Self {
        Self {
            from: filter.from.map_or(i64::MIN, Timestamp::as_micros),
            to: filter.to.map_or(i64::MAX, Timestamp::as_micros),
            status: filter.status_code.map(i64::from),
            endpoint: filter.endpoint.as_deref().map(str::to_ascii_lowercase),
        }
    }
}
