//! The threads that own the connections, and their bounded queues.
//!
//! Must not know: what the calls do. A call that panics is rolled back; its thread goes on.

use super::StoreError;
use super::open::{FileLock, OpenedFile};
use rusqlite::Connection;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use tokio::sync::mpsc;

/// One call; it contains the channel for its result.
pub(super) type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The queue of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Queue {
    Write,
    Read,
}

/// The threads of a store.
#[derive(Debug)]
pub(super) struct Workers {
    /// None once closed. Threads end when no sender is left and the queue is empty.
    senders: Mutex<Option<Senders>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Clone, Debug)]
struct Senders {
    write: mpsc::Sender<Job>,
    read: mpsc::Sender<Job>,
}

/// Readers share one queue.
type SharedQueue = Arc<Mutex<mpsc::Receiver<Job>>>;

// === impl Workers ===

impl Workers {
    /// Starts a thread for each connection. `depth` is the capacity of each queue.
    pub(super) fn start(opened: OpenedFile, depth: usize) -> Result<Self, StoreError> {
        let (write, write_queue) = mpsc::channel(depth);
        let (read, read_queue) = mpsc::channel(depth);
        let write_queue = Arc::new(Mutex::new(write_queue));
        let read_queue = Arc::new(Mutex::new(read_queue));
        let mut threads = Vec::with_capacity(opened.readers.len() + 1);
        threads.push(spawn("sqlite-writer", opened.writer, write_queue, Arc::clone(&opened.lock))?);
        for reader in opened.readers {
            threads.push(spawn("sqlite-reader", reader, Arc::clone(&read_queue), Arc::clone(&opened.lock))?);
        }
        Ok(Self { senders: Mutex::new(Some(Senders { write, read })), threads: Mutex::new(threads) })
    }

    /// Queues a call; waits while the queue is full.
    pub(super) async fn send(&self, queue: Queue, job: Job) -> Result<(), StoreError> {
        let closed = || StoreError::Unavailable("the store has been closed".into());
        let senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let senders = senders.ok_or_else(closed)?;
        let sender = match queue {
            Queue::Write => senders.write,
            Queue::Read => senders.read,
        };
        sender.send(job).await.map_err(|_| closed())
    }

    /// Ends the threads and waits for them.
    pub(super) async fn close(&self) {
        drop(self.senders.lock().unwrap_or_else(PoisonError::into_inner).take());
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let join = move || threads.into_iter().filter_map(|thread| thread.join().err()).count();
        match tokio::task::spawn_blocking(join).await {
            Ok(0) => {}
            Ok(panicked) => tracing::error!(panicked, "store threads panicked"),
            Err(error) => tracing::error!(%error, "cannot join store threads"),
        }
    }
}

/// The lock lives as long as the last thread, so that nobody else opens a file that is still being written.
fn spawn(
    name: &str,
    mut connection: Connection,
    queue: SharedQueue,
    lock: Arc<FileLock>,
) -> Result<JoinHandle<()>, StoreError> {
    let run = move || {
        while let Some(job) = next(&queue) {
            // The connection is valid after a panic: unwinding has rolled the transaction back.
            if catch_unwind(AssertUnwindSafe(|| job(&mut connection))).is_err() {
                tracing::error!("store call panicked, rolled back");
            }
        }
        drop(connection);
        drop(lock);
    };
    Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| StoreError::Unavailable(format!("cannot start thread: {error}")))
}

fn next(queue: &SharedQueue) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
}
