//! One transaction: statements prepared once per connection, each with a timeout, and rows as [`RowColumns`].
//!
//! Must not know: which tables there are. After a timeout the statement is `Unavailable`, and the connection must not be
//! used again.

use super::{CallError, StoreError, error};
use crate::store::shared::fields::{RowColumns, RowReader};
use bytes::Bytes;
use deadpool_postgres::{Object, Transaction};
use futures_util::SinkExt as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CopyInSink, IsolationLevel, Portal, Row};
use uuid::Uuid;

/// Bytes handed to the connection at once.
const COPY_BYTES: usize = 256 * 1_024;

/// The work of a call within its transaction.
pub(super) type TxWork<'t, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 't>>;

/// The values of a statement.
pub(super) type SqlValues<'v> = &'v [&'v (dyn ToSql + Sync)];

/// The kind of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxKind {
    /// Writes; sees what others have committed before each statement.
    Write,
    /// Reads; sees one snapshot.
    Read,
}

/// One transaction.
pub(super) struct Tx<'t> {
    transaction: Transaction<'t>,
    patience: Duration,
    signs: &'t TxFlags,
}

/// What happened in a transaction besides its result.
#[derive(Default)]
struct TxFlags {
    /// The server did not answer in time.
    hung: AtomicBool,
    /// The next message of the server may be the answer to an earlier statement.
    out_of_step: AtomicBool,
    /// The server aborted it because of another one.
    conflict: AtomicBool,
    /// The server rejected a value.
    content: AtomicBool,
    /// It succeeded without anything to commit.
    undone: AtomicBool,
}

/// The rows of one query, fetched in parts.
pub(super) struct RowStream<'a, 't> {
    tx: &'a Tx<'t>,
    portal: Portal,
    size: i32,
    is_over: bool,
}

/// The outcome of a call on one connection.
pub(super) enum RunOutcome<T, F> {
    /// It was run.
    Done(Result<T, CallError>),
    /// It was not even begun, because the connection was closed before. The work is returned.
    NotBegun(F, CallError),
}

/// Whether a connection can be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionHealth {
    /// Yes.
    Sound,
    /// No: a late answer to an abandoned statement may still come.
    Unsound,
    /// No, and idle ones may be no better.
    AllUnsound,
}

/// Runs `work` in a transaction of `connection`. Commits if `work` succeeds, unless `is_given_up` by then.
pub(super) async fn run<T, F>(
    connection: &mut Object,
    kind: TxKind,
    patience: Duration,
    work: F,
    is_given_up: impl Fn() -> bool,
) -> (RunOutcome<T, F>, ConnectionHealth)
where
    F: for<'t> FnOnce(&'t Tx<'t>) -> TxWork<'t, T>,
{
    let signs = TxFlags::default();
    let begin = connection.build_transaction();
    let begin = match kind {
        TxKind::Write => begin.isolation_level(IsolationLevel::ReadCommitted),
        TxKind::Read => begin.isolation_level(IsolationLevel::RepeatableRead).read_only(true),
    };
    let transaction = match signs.within(patience, begin.start()).await {
        Ok(transaction) => transaction,
        Err(error) if signs.hung.load(Ordering::Relaxed) => {
            return (RunOutcome::Done(Err(error.into())), ConnectionHealth::AllUnsound);
        }
        Err(error) => return (RunOutcome::NotBegun(work, error.into()), ConnectionHealth::AllUnsound),
    };
    let outcome = transact(transaction, patience, work, is_given_up, &signs).await;
    let is_conflict = signs.conflict.load(Ordering::Relaxed);
    let is_content = signs.content.load(Ordering::Relaxed);
    let after = match (signs.hung.load(Ordering::Relaxed), signs.out_of_step.load(Ordering::Relaxed)) {
        (true, _) => ConnectionHealth::AllUnsound,
        (false, true) => ConnectionHealth::Unsound,
        (false, false) => ConnectionHealth::Sound,
    };
    (RunOutcome::Done(outcome.map_err(|error| CallError { error, is_conflict, is_content })), after)
}

async fn transact<T, F>(
    transaction: Transaction<'_>,
    patience: Duration,
    work: F,
    is_given_up: impl Fn() -> bool,
    signs: &TxFlags,
) -> Result<T, StoreError>
where
    F: for<'t> FnOnce(&'t Tx<'t>) -> TxWork<'t, T>,
{
    let tx = Tx { transaction, patience, signs };
    let value = work(&tx).await?;
    let Tx { transaction, .. } = tx;
    if is_given_up() {
        signs.within(patience, transaction.rollback()).await?;
        return Err(StoreError::Cancelled);
    }
    if signs.undone.load(Ordering::Relaxed) {
        signs.within(patience, transaction.rollback()).await?;
    } else {
        signs.within(patience, transaction.commit()).await?;
    }
    Ok(value)
}

// === impl Tx ===

impl<'t> Tx<'t> {
    /// The first row, if there is one.
    pub(super) async fn one<T>(
        &self,
        sql: &str,
        values: SqlValues<'_>,
        decode: impl FnOnce(&mut RowReader<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let rows = self.rows(sql, values).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        decode(&mut RowReader::of(row)).map(Some)
    }

    /// Every row.
    pub(super) async fn all<T>(
        &self,
        sql: &str,
        values: SqlValues<'_>,
        mut decode: impl FnMut(&mut RowReader<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.rows(sql, values).await?;
        let mut items = Vec::with_capacity(rows.len());
        for row in &rows {
            items.push(decode(&mut RowReader::of(row))?);
        }
        Ok(items)
    }

    /// All rows of a statement that is planned for these values each time.
    pub(super) async fn all_planned<T>(
        &self,
        sql: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
        mut decode: impl FnMut(&mut RowReader<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let queried = self.transaction.query_typed(sql, values);
        let rows = self.signs.within(self.patience, queried).await?;
        let mut items = Vec::with_capacity(rows.len());
        for row in &rows {
            items.push(decode(&mut RowReader::of(row))?);
        }
        Ok(items)
    }

    /// All rows, `size` at a time, each part with its own timeout.
    pub(super) async fn parts(
        &self,
        sql: &str,
        values: SqlValues<'_>,
        size: usize,
    ) -> Result<RowStream<'_, 't>, StoreError> {
        let bound = async {
            let statement = self.transaction.prepare_cached(sql).await?;
            self.transaction.bind(&statement, values).await
        };
        let portal = self.signs.within(self.patience, bound).await?;
        Ok(RowStream { tx: self, portal, size: i32::try_from(size).unwrap_or(i32::MAX), is_over: false })
    }

    /// The result of a `SELECT count(*)`.
    pub(super) async fn count(&self, sql: &str, values: SqlValues<'_>) -> Result<u64, StoreError> {
        Ok(self.one(sql, values, |f| f.int("count")).await?.unwrap_or(0))
    }

    /// Runs a statement and returns how many rows it affected.
    pub(super) async fn execute(&self, sql: &str, values: SqlValues<'_>) -> Result<u64, StoreError> {
        let executed = async {
            let statement = self.transaction.prepare_cached(sql).await?;
            self.transaction.execute(&statement, values).await
        };
        self.signs.within(self.patience, executed).await
    }

    /// Runs a statement, however many rows it affects.
    pub(super) async fn change(&self, sql: &str, values: SqlValues<'_>) -> Result<(), StoreError> {
        self.execute(sql, values).await.map(|_| ())
    }

    /// Runs statements that control the transaction itself.
    pub(super) async fn control(&self, sql: &str) -> Result<(), StoreError> {
        self.signs.within(self.patience, self.transaction.batch_execute(sql)).await
    }

    /// Runs a `COPY … FROM STDIN` with these bytes and returns the number of rows.
    pub(super) async fn copy(&self, sql: &str, rows: Bytes) -> Result<u64, StoreError> {
        let copied = async {
            let statement = self.transaction.prepare_cached(sql).await?;
            let mut sink = std::pin::pin!(self.transaction.copy_in(&statement).await?);
            let mut left = rows;
            while !left.is_empty() {
                let part: Bytes = left.split_to(left.len().min(COPY_BYTES));
                sink.send(part).await?;
            }
            CopyInSink::finish(sink.as_mut()).await
        };
        let copied = self.signs.within(self.patience, copied).await;
        if copied.is_err() {
            // The client ends a COPY that the server has refused already, and the server answers this once more.
            self.signs.out_of_step.store(true, Ordering::Relaxed);
        }
        copied
    }

    /// Rolls this transaction back although it succeeds.
    pub(super) fn undo(&self) {
        self.signs.undone.store(true, Ordering::Relaxed);
    }

    async fn rows(&self, sql: &str, values: SqlValues<'_>) -> Result<Vec<Row>, StoreError> {
        let queried = async {
            let statement = self.transaction.prepare_cached(sql).await?;
            self.transaction.query(&statement, values).await
        };
        self.signs.within(self.patience, queried).await
    }
}

// === impl RowStream ===

impl RowStream<'_, '_> {
    /// The next rows; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Row>>, StoreError> {
        if self.is_over {
            return Ok(None);
        }
        let fetched = self.tx.transaction.query_portal(&self.portal, self.size);
        let rows = self.tx.signs.within(self.tx.patience, fetched).await?;
        self.is_over = i32::try_from(rows.len()).is_ok_and(|n| n < self.size);
        Ok(if rows.is_empty() { None } else { Some(rows) })
    }
}

// === impl TxFlags ===

impl TxFlags {
    async fn within<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if error::is_conflict(&error) {
                    self.conflict.store(true, Ordering::Relaxed);
                }
                if error::is_content(&error) {
                    self.content.store(true, Ordering::Relaxed);
                }
                if error.as_db_error().is_none() {
                    self.out_of_step.store(true, Ordering::Relaxed);
                }
                Err(error.into())
            }
            Err(_) => {
                self.hung.store(true, Ordering::Relaxed);
                Err(StoreError::Unavailable("the database did not answer in time".into()))
            }
        }
    }
}

// === impl RowColumns ===

impl RowColumns for Row {
    fn text(&self, at: usize) -> Result<Option<&str>, &'static str> {
        self.try_get(at).map_err(|_| "is not text")
    }

    fn int(&self, at: usize) -> Result<Option<i64>, &'static str> {
        self.try_get(at).map_err(|_| "is not a number")
    }

    fn flag(&self, at: usize) -> Result<Option<bool>, &'static str> {
        self.try_get(at).map_err(|_| "is neither true nor false")
    }

    fn bytes(&self, at: usize) -> Result<Option<&[u8]>, &'static str> {
        self.try_get(at).map_err(|_| "is not binary")
    }

    fn uuid(&self, at: usize) -> Result<Option<Uuid>, &'static str> {
        self.try_get(at).map_err(|_| "is not a UUID")
    }

    fn id_for_people(&self) -> String {
        if let Ok(Some(id)) = self.uuid(0) {
            return id.to_string();
        }
        match self.text(0) {
            Ok(Some(id)) => id.to_owned(),
            _ => "?".to_owned(),
        }
    }
}
