//! Stopping, in the order that loses nothing: first no new connections, then the last requests, then their records,
//! then the store.

use crate::counter::Counters;
use crate::store::sqlite::SqliteStore;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What has to be stopped.
pub(super) struct Stopping {
    pub(super) stop: watch::Sender<bool>,
    /// Tells the writer when to give up.
    pub(super) give_up: watch::Sender<Option<Instant>>,
    /// Readiness.
    pub(super) accepting: Arc<AtomicBool>,
    /// Ends when the last connection is closed.
    pub(super) all_closed: mpsc::Receiver<()>,
    pub(super) drain_timeout: Duration,
    pub(super) last_records_within: Duration,
    pub(super) writer: JoinHandle<()>,
    pub(super) counters: Arc<Counters>,
    pub(super) store: Arc<SqliteStore>,
    pub(super) proxy: Runtime,
    pub(super) admin: Runtime,
    pub(super) io: Runtime,
}

impl Stopping {
    pub(super) fn run(mut self) {
        self.accepting.store(false, Ordering::Release);
        self.stop.send_replace(true);
        let drained = self
            .io
            .block_on(async { tokio::time::timeout(self.drain_timeout, self.all_closed.recv()).await });
        if drained.is_err() {
            tracing::warn!("requests still in flight are cut off; their records say interrupted");
        }
        // Dropping what still runs records it, and drops the last recorder, which ends the writer's queue.
        self.proxy.shutdown_timeout(Duration::from_secs(1));
        self.admin.shutdown_timeout(Duration::from_secs(1));
        self.io.block_on(async {
            self.give_up.send_replace(Some(Instant::now() + self.last_records_within));
            // The writer gives up by itself; the margin is for one last call that hangs.
            let written = tokio::time::timeout(self.last_records_within * 2, self.writer).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::error!("the writer of the ledger did not end");
            }
        });
        self.io.block_on(self.counters.close());
        self.io.block_on(self.store.close());
        self.io.shutdown_timeout(Duration::from_secs(1));
    }
}

/// Returns when the process is asked to stop. A second request does not wait for requests in flight.
pub async fn wait_for_signal() -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            // Left alone, this signal would kill the process and cut off its requests.
            _ = hup.recv() => tracing::warn!("SIGHUP: the config is read at the start only; restart to change it"),
        }
    }
    tracing::info!("stopping: no new connections; requests in flight may finish");
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::error!("stopped at once, as asked a second time");
        std::process::exit(130);
    });
    Ok(())
}
