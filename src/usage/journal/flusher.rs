//! The thread for the journal's file system work: it syncs what was written, prepares segments, and removes finished ones.

use super::{FinishedSegment, Journal, lock};
use crate::durable;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Number of prepared segments.
const SPARES: usize = 2;
/// Passes between two attempts to create a segment after a failure.
const RETRY_PASSES: u32 = 10;
/// Most damaged segments that are kept.
const DAMAGED_MAX: usize = 16;
/// Their subfolder in the folder for set-aside files.
const DAMAGED: &str = "damaged";

/// The running thread. Dropping it stops it, after a last pass.
#[derive(Debug)]
pub struct JournalFlusher {
    stop: Arc<StopSignal>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct StopSignal {
    asked: Mutex<bool>,
    woken: Condvar,
}

/// The state of the thread.
#[derive(Debug, Default)]
struct FlusherState {
    sync_fails: bool,
    /// The size of the journal as last reported.
    bytes: i64,
    passes_to_retry: u32,
}

impl JournalFlusher {
    /// Starts the thread for `journal`.
    pub fn start(journal: Arc<Journal>) -> io::Result<Self> {
        let stop = Arc::new(StopSignal::default());
        let told = Arc::clone(&stop);
        if !journal.is_closing.load(Ordering::Relaxed) {
            journal.reserve.fill();
        }
        let thread = std::thread::Builder::new().name("keygate-journal".into()).spawn(move || {
            let mut memory = FlusherState::default();
            while !told.wait(&journal) {
                journal.pass(&mut memory);
            }
            journal.close();
            journal.pass(&mut memory);
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Syncs everything, removes finished segments, and ends the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        *self.stop.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.woken.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("journal thread panicked");
        }
    }
}

impl Drop for JournalFlusher {
    fn drop(&mut self) {
        self.end();
    }
}

impl StopSignal {
    /// Waits for the next pass. True: the thread must end.
    fn wait(&self, journal: &Journal) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.woken.wait_timeout_while(asked, journal.options.sync_interval, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Journal {
    fn pass(&self, memory: &mut FlusherState) {
        // Finished segments are removed only after their replacements are on disk.
        let done = std::mem::take(&mut *lock(&self.done));
        self.sync(memory);
        self.remove(done);
        if !self.is_closing.load(Ordering::Relaxed) {
            self.reserve.fill();
            self.prepare(memory);
        }
        // Added, because a process may report other slots beside its own.
        let bytes = i64::try_from(self.bytes()).unwrap_or(i64::MAX);
        self.metrics.usage_journal_bytes.add(bytes - std::mem::replace(&mut memory.bytes, bytes));
    }

    fn sync(&self, memory: &mut FlusherState) {
        let mut failed = None;
        for segment in self.live() {
            let was_sealed = segment.is_sealed();
            match segment.sync(|mapping, range| self.disk.sync(mapping, range)) {
                Ok(()) if was_sealed => segment.rest(),
                Ok(()) => {}
                Err(error) => failed = Some(error),
            }
        }
        let Some(error) = failed else {
            if std::mem::take(&mut memory.sync_fails) {
                tracing::info!("usage journal synced to disk again");
            }
            return;
        };
        self.metrics.usage_sync_failures.inc();
        if !std::mem::replace(&mut memory.sync_fails, true) {
            tracing::error!(%error, "cannot sync usage journal to disk, a crash of this machine would lose records");
        }
    }

    fn prepare(&self, memory: &mut FlusherState) {
        if memory.passes_to_retry > 0 {
            memory.passes_to_retry -= 1;
            return;
        }
        while lock(&self.spares).len() < SPARES {
            match self.make_segment() {
                Ok(segment) => {
                    lock(&self.spares).push_back(segment);
                    self.mark_not_full();
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot allocate journal segment");
                    memory.passes_to_retry = RETRY_PASSES;
                    return;
                }
            }
        }
    }

    fn remove(&self, done: Vec<FinishedSegment>) {
        for FinishedSegment { segment, is_damaged } in done {
            let removed = if is_damaged {
                self.reserve.open(|| self.set_aside(segment.path()))
            } else {
                fs::remove_file(segment.path())
            };
            if let Err(error) = removed {
                // It is read again at the next start, and its records are in the ledger already.
                tracing::warn!(%error, path = %segment.path().display(), "cannot remove journal segment");
            }
            self.segments.fetch_sub(1, Ordering::Relaxed);
            if let Some(segment) = Arc::into_inner(segment) {
                self.reserve.keep(segment.into_file());
            }
        }
    }

    fn set_aside(&self, path: &Path) -> io::Result<()> {
        let folder = self.options.aside.join(DAMAGED);
        durable::create_folder(&folder)?;
        let mut kept: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
        kept.sort_unstable();
        for old in kept.iter().rev().skip(DAMAGED_MAX - 1) {
            match fs::remove_file(old) {
                // Another process of this node also limits this folder.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        fs::rename(path, folder.join(path.file_name().unwrap_or_default()))
    }

    /// Closes every segment that is being written, and removes unused ones. A thread that still writes starts a new one.
    pub(super) fn close_writers(&self) {
        for writer in &self.writers {
            writer.lock().close();
        }
        let spares: Vec<_> = lock(&self.spares).drain(..).collect();
        let empty = self.live().into_iter().filter(|s| s.is_sealed() && s.is_unused());
        for segment in spares.into_iter().chain(empty) {
            self.finish_segment(segment, false);
        }
    }
}
