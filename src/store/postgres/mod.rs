//! The store for several nodes: a PostgreSQL database behind a connection pool.
//!
//! Must not know: anything outside the store. While the server is unreachable or hangs, every call returns
//! [`StoreError::Unavailable`] within its timeout; the next call after it recovers succeeds without a restart. A connection
//! that the server has closed meanwhile is replaced, and the call that met it does not fail.
//!
//! *Invariant:* every administrative write locks the row of `change_seq` before it reads anything; so writes are
//! serialized, and versions become visible in order.
//! *Invariant:* every connection lives and is used on the one runtime given to [`PgStore::open`].

mod all_records;
mod audit;
mod connect;
mod copy;
mod credentials;
mod deleted_keys;
mod end_users;
mod error;
mod feed;
mod key_rows;
mod keys;
mod ledger;
mod link;
mod listen;
mod logs;
mod nodes;
mod partitions;
mod prices;
mod retention;
mod rollups;
mod schema;
mod tenants;
mod tls;
mod tx;
pub(crate) mod url;
mod usage_totals;
mod writes;

pub use schema::{check, migrate};
pub use url::{BadPostgresUrl, PostgresUrl, SslMode};

use super::shared::retention::RetentionClock;
use super::{Store, StoreError, Version};
use async_trait::async_trait;
use deadpool_postgres::{Object, Pool};
use listen::NotifyListener;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, oneshot};
use tx::{ConnectionHealth, RunOutcome, Tx, TxKind, TxWork};

/// A store on a PostgreSQL server.
pub struct PgStore {
    pool: Pool,
    /// For the change feed and heartbeats, so that these do not wait for admin calls, end users and the ledger.
    feed_pool: Pool,
    runtime: Handle,
    listener: NotifyListener,
    days: partitions::KnownPartitions,
    calendar: RetentionClock,
    /// Read-locked while a call runs; true once closed.
    closed: Arc<RwLock<bool>>,
    patience: Duration,
    url: PostgresUrl,
    options: PgOptions,
    /// Whether the schema is up to date.
    is_up: AtomicBool,
}

/// Options of a PostgreSQL store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgOptions {
    /// Connections of the main pool, at least 1. Three for the change feed and one listener come in addition.
    pub connections: usize,
    /// Longest time to open a connection, and longest wait for a free one.
    pub connect_timeout: Duration,
    /// Longest time for a statement, on the server and, half a second later, here.
    pub statement_timeout: Duration,
}

/// How much later than the server this side times out, because the server's own error is more precise.
const GRACE: Duration = Duration::from_millis(500);
/// Connections for the change feed: one reads, one reports, and one replaces a reader that hangs.
const FEED_CONNECTIONS: usize = 3;
/// How often a call is tried that the server aborted because of a conflict.
const ATTEMPTS: usize = 5;

impl Default for PgOptions {
    fn default() -> Self {
        Self {
            connections: 8,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
        }
    }
}

// === impl PgStore ===

impl PgStore {
    /// Opens the store at `url` and migrates its schema. All its work runs on `runtime`. `Refused` if the schema is newer
    /// than this program, or the database is not suitable; `Unavailable` if it does not answer.
    pub async fn open(url: &PostgresUrl, options: &PgOptions, runtime: Handle) -> Result<Self, StoreError> {
        let store = Self::prepare(url, options, runtime)?;
        store.bring_up().await?;
        Ok(store)
    }

    /// The same without connecting: [`Store::bring_up`] does that. `Refused` if the URL cannot be used.
    pub fn prepare(url: &PostgresUrl, options: &PgOptions, runtime: Handle) -> Result<Self, StoreError> {
        let feed = PgOptions { connections: FEED_CONNECTIONS, ..options.clone() };
        let (pool, feed_pool) = (connect::pool(url, options)?, connect::pool(url, &feed)?);
        let listener = NotifyListener::start(url, options, &runtime)?;
        let patience = options.statement_timeout + GRACE;
        Ok(Self {
            pool,
            feed_pool,
            runtime,
            listener,
            days: partitions::KnownPartitions::default(),
            calendar: RetentionClock::default(),
            closed: Arc::default(),
            patience,
            url: url.clone(),
            options: options.clone(),
            is_up: AtomicBool::new(false),
        })
    }

    /// Runs `work` in one transaction, which is committed only if `work` succeeds and the caller still waits.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t Tx<'t>) -> TxWork<'t, T> + Send + 'static,
    {
        self.call(&self.pool, TxKind::Write, work).await.map_err(|broken| broken.error)
    }

    /// Like [`PgStore::write`], with retries after conflicts.
    async fn write_again<T, F>(&self, work: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: for<'t> Fn(&'t Tx<'t>) -> TxWork<'t, T> + Clone + Send + 'static,
    {
        let mut attempt = 1;
        loop {
            match self.call(&self.pool, TxKind::Write, work.clone()).await {
                Err(broken) if broken.is_conflict && attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    /// Runs `work` in a read-only transaction with one snapshot.
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t Tx<'t>) -> TxWork<'t, T> + Send + 'static,
    {
        self.call(&self.pool, TxKind::Read, work).await.map_err(|broken| broken.error)
    }

    /// Like [`PgStore::read`] or [`PgStore::write`], on the connections for the change feed.
    async fn follow<T, F>(&self, kind: TxKind, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t Tx<'t>) -> TxWork<'t, T> + Send + 'static,
    {
        self.call(&self.feed_pool, kind, work).await.map_err(|broken| broken.error)
    }

    /// To be held while a call runs.
    async fn running(&self) -> Result<OwnedRwLockReadGuard<bool>, StoreError> {
        let running = Arc::clone(&self.closed).read_owned().await;
        if *running {
            return Err(StoreError::Unavailable("the store has been closed".into()));
        }
        if !self.is_up.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("the database has not been reached yet".into()));
        }
        Ok(running)
    }

    async fn call<T, F>(&self, pool: &Pool, kind: TxKind, work: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t Tx<'t>) -> TxWork<'t, T> + Send + 'static,
    {
        let running = self.running().await?;
        let (answer, answered) = oneshot::channel();
        let (pool, patience) = (pool.clone(), self.patience);
        self.runtime.spawn(serve(pool, kind, patience, work, answer, running));
        answered.await.unwrap_or_else(|_| Err(broken_off().into()))
    }
}

#[async_trait]
impl Store for PgStore {
    async fn bring_up(&self) -> Result<(), StoreError> {
        if !self.is_up.load(Ordering::Acquire) {
            let (url, options) = (self.url.clone(), self.options.clone());
            let opening = self.runtime.spawn(async move { schema::bring_up_to_date(&url, &options).await });
            opening.await.map_err(|_| broken_off())??;
            self.is_up.store(true, Ordering::Release);
        }
        Ok(())
    }

    async fn close(&self) {
        *self.closed.write().await = true;
        self.listener.stop();
        self.feed_pool.close();
        self.pool.close();
    }
}

impl fmt::Debug for PgStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgStore").field("connections", &self.pool.status()).finish_non_exhaustive()
    }
}

/// Why a call failed.
struct CallError {
    error: StoreError,
    /// Only because of a conflict with other calls.
    is_conflict: bool,
    /// Because of a value that the server rejected.
    is_content: bool,
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        Self { error, is_conflict: false, is_content: false }
    }
}

/// One call, on the runtime of the connections, so that a caller that disconnects leaves nothing half done.
async fn serve<T, F>(
    pool: Pool,
    kind: TxKind,
    patience: Duration,
    mut work: F,
    mut answer: oneshot::Sender<Result<T, CallError>>,
    running: OwnedRwLockReadGuard<bool>,
) where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t Tx<'t>) -> TxWork<'t, T> + Send + 'static,
{
    let mut may_try_again = true;
    let outcome = loop {
        let connection = tokio::select! {
            connection = pool.get() => connection,
            // The caller has gone and was told nothing, so nothing may change, and the call need not queue.
            () = answer.closed() => return,
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => break Err(error::of_pool(&error).into()),
        };
        let (ran, after) = tx::run(&mut connection, kind, patience, work, || answer.is_closed()).await;
        if after != ConnectionHealth::Sound {
            drop(Object::take(connection));
        }
        if after == ConnectionHealth::AllUnsound {
            // Idle connections may hang or be closed as well, and must not time out one after the other.
            pool.retain(|_, _| false);
        }
        match ran {
            RunOutcome::Done(outcome) => break outcome,
            // The server had closed the idle connection. Nothing was done, so the call can be repeated safely.
            RunOutcome::NotBegun(again, _) if may_try_again => (work, may_try_again) = (again, false),
            RunOutcome::NotBegun(_, broken) => break Err(broken),
        }
    };
    if answer.send(outcome).is_err() {
        tracing::debug!("store call finished after its caller was gone");
    }
    drop(running);
}

fn broken_off() -> StoreError {
    StoreError::Unavailable("the call was cancelled".into())
}

/// Draws the next version, and notifies other nodes when the transaction commits. Must come first in a transaction: its
/// holder blocks all other writes.
async fn next_version(tx: &Tx<'_>) -> Result<Version, StoreError> {
    let sql = "WITH next AS (UPDATE change_seq SET value = value + 1 WHERE one = 1 RETURNING value)
               SELECT value, pg_notify('keygate_changes', '') FROM next";
    tx.one(sql, &[], |f| f.int("value")).await?.map(Version).ok_or_else(no_sequence)
}

/// Reads the version of the newest write.
const NEWEST: &str = "SELECT value FROM change_seq WHERE one = 1";

/// The version of the newest write.
async fn current_version(tx: &Tx<'_>) -> Result<Version, StoreError> {
    tx.one(NEWEST, &[], |f| f.int("value")).await?.map(Version).ok_or_else(no_sequence)
}

fn no_sequence() -> StoreError {
    StoreError::Corrupt("change_seq has no row".into())
}
