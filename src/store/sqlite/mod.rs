//! The embedded store: one SQLite file, one process (two during an upgrade), one thread that writes and a few that read.
//!
//! Must not know: anything outside the store. While the file cannot be read or written, every call returns
//! [`StoreError::Unavailable`]. While the queue of a thread is full, callers wait. A commit is on disk before its caller is
//! told (`synchronous=FULL`).
//!
//! *Invariant:* only the writer's thread writes, each call in one transaction that excludes other processes; so versions
//! become visible in order.

mod all_records;
mod audit;
mod credentials;
mod deleted_keys;
mod end_users;
mod error;
mod feed;
mod key_rows;
mod keys;
mod ledger;
mod logs;
mod nodes;
mod open;
mod prices;
mod retention;
mod rollups;
mod row;
mod tenants;
mod usage_totals;
mod workers;
mod writes;

pub use open::{check, migrate};

use super::shared::retention::RetentionClock;
use super::{Store, StoreError, Version};
use async_trait::async_trait;
use open::FileLock;
use rusqlite::{Transaction, TransactionBehavior};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use workers::{Job, Queue, Workers};

/// The embedded store. Dropping it lets queued calls finish in the background; [`Store::close`] waits for that.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    options: SqliteOptions,
    /// The lock from the process that this one replaces, until the file is open.
    handed_on: Mutex<Option<File>>,
    /// Set once the file is open.
    running: OnceLock<Running>,
    calendar: RetentionClock,
}

/// The threads, and the lock that they hold.
#[derive(Debug)]
struct Running {
    workers: Workers,
    lock: Weak<FileLock>,
}

/// Options of the embedded store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// Longest wait of a write for another process, such as a backup, that locks the file.
    pub busy_timeout: Duration,
    /// Threads that read. A change feed or an export occupies one of them while it runs; at least 1.
    pub readers: usize,
    /// Calls that may queue for the writer, and again for the readers; at least 1. Further callers wait.
    pub queue: usize,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { busy_timeout: Duration::from_secs(5), readers: 4, queue: 1_024 }
    }
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens the store at `path`, creates it if it does not exist (folder 0700, file 0600), and migrates its schema.
    /// `Refused` if another process owns it, if it is newer than this program, or if it is not a store.
    ///
    /// Blocks; call it before anything is served.
    pub fn open(path: &Path, options: &SqliteOptions) -> Result<Self, StoreError> {
        Self::open_after(path, options, None)
    }

    /// The same for a process that replaces one that still has the store open and passed on its `lock`. Until that one has
    /// exited, both write, one transaction at a time.
    pub fn open_after(path: &Path, options: &SqliteOptions, lock: Option<File>) -> Result<Self, StoreError> {
        let store = Self::prepare(path, options, lock);
        store.open_now()?;
        Ok(store)
    }

    /// The same without opening the file: [`Store::bring_up`] does that.
    pub fn prepare(path: &Path, options: &SqliteOptions, lock: Option<File>) -> Self {
        let (path, options, handed_on) = (path.to_owned(), options.clone(), Mutex::new(lock));
        Self { path, options, handed_on, running: OnceLock::new(), calendar: RetentionClock::default() }
    }

    fn open_now(&self) -> Result<(), StoreError> {
        let mut handed_on = self.handed_on.lock().unwrap_or_else(PoisonError::into_inner);
        if self.running.get().is_some() {
            return Ok(());
        }
        // Kept for another try.
        let lock = handed_on.as_ref().map(File::try_clone).transpose();
        let lock = lock.map_err(|error| StoreError::Unavailable(format!("lock file: {error}")))?;
        let opened = open::open(&self.path, &self.options, lock)?;
        drop(handed_on.take());
        let lock = Arc::downgrade(&opened.lock);
        let workers = Workers::start(opened, self.options.queue.max(1))?;
        self.running.get_or_init(|| Running { workers, lock });
        Ok(())
    }

    /// The lock that tells other processes that the store is in use, to be passed on; none once it is closed.
    pub fn lock(&self) -> Option<File> {
        self.running.get()?.lock.upgrade()?.share().ok()
    }

    /// Runs `work` on the writer's thread in one transaction, which is committed only if `work` succeeds. When this
    /// returns, the changes are on disk and survive a power cut.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.call(Queue::Write, TransactionBehavior::Immediate, work).await
    }

    /// Runs `work` on a reader's thread, with one snapshot.
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.call(Queue::Read, TransactionBehavior::Deferred, work).await
    }

    async fn call<T, F>(&self, queue: Queue, how: TransactionBehavior, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The caller has gone and was told nothing, so nothing may change.
            if answer.is_closed() {
                return;
            }
            let outcome = (|| {
                let transaction = connection.transaction_with_behavior(how)?;
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })();
            if answer.send(outcome).is_err() {
                tracing::debug!("store call finished after its caller was gone");
            }
        });
        let not_yet = || StoreError::Unavailable("the database file is not open yet".into());
        self.running.get().ok_or_else(not_yet)?.workers.send(queue, job).await?;
        answered.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the call was cancelled".into())))
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn bring_up(&self) -> Result<(), StoreError> {
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| self.open_now()),
            _ => self.open_now(),
        }
    }

    async fn close(&self) {
        if let Some(running) = self.running.get() {
            running.workers.close().await;
        }
    }
}

/// Draws the next version.
fn next_version(tx: &Transaction<'_>) -> Result<Version, StoreError> {
    let sql = "UPDATE change_seq SET value = value + 1 WHERE one = 1 RETURNING value";
    row::one(tx, sql, [], |f| f.int("value"))?
        .map(Version)
        .ok_or_else(|| StoreError::Corrupt("change_seq has no row".into()))
}

/// The version of the newest write.
fn current_version(tx: &Transaction<'_>) -> Result<Version, StoreError> {
    row::one(tx, "SELECT value FROM change_seq WHERE one = 1", [], |f| f.int("value"))?
        .map(Version)
        .ok_or_else(|| StoreError::Corrupt("change_seq has no row".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_panics_is_rolled_back_and_the_next_one_runs() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("k.db"), &SqliteOptions::default()).unwrap();
        let broken: Result<(), StoreError> = store
            .write(|tx| {
                next_version(tx)?;
                panic!("a mistake in a call")
            })
            .await;
        assert!(broken.unwrap_err().is_transient());
        assert_eq!(store.read(current_version).await.unwrap(), Version(0));
        assert_eq!(store.write(next_version).await.unwrap(), Version(1));
        store.close().await;
    }

    #[tokio::test]
    async fn a_caller_that_went_away_before_its_turn_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("k.db"), &SqliteOptions::default()).unwrap();
        let (hold, held) = std::sync::mpsc::sync_channel::<()>(0);
        let blocking = store.write(move |_| held.recv().map_err(|_| StoreError::Cancelled));
        let mut blocking = Box::pin(blocking);
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        // Queued behind the one that blocks the writer, then abandoned.
        assert!(blocking.as_mut().poll(&mut context).is_pending());
        {
            let mut given_up = Box::pin(store.write(next_version));
            assert!(given_up.as_mut().poll(&mut context).is_pending());
        }
        hold.send(()).unwrap();
        blocking.await.unwrap();
        assert_eq!(store.write(next_version).await.unwrap(), Version(1));
        store.close().await;
    }
}
