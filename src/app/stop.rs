//! Stopping, in the order that loses nothing: first readiness, so that load balancers send no more; then no new
//! connections, and the last requests of those there are; then the admin API (until then it tells that this node is
//! stopping), then the last records, then the store.

use super::Reloader;
use crate::counter::Counters;
use crate::store::Store;
use crate::telemetry::Exporter;
use crate::usage::journal::Keeper;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long the other nodes are told that this one is going.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// What has to be stopped.
pub(super) struct Stopping {
    /// Ends the proxy's listeners.
    pub(super) stop: watch::Sender<bool>,
    /// Ends the admin API's listener.
    pub(super) stop_admin: watch::Sender<bool>,
    /// Ends the change feed, which admin calls in flight still wait for.
    pub(super) stop_feed: watch::Sender<bool>,
    /// Tells the writer when to give up.
    pub(super) give_up: watch::Sender<Option<Instant>>,
    /// Readiness.
    pub(super) accepting: Arc<AtomicBool>,
    /// Ends when the last connection is closed.
    pub(super) all_closed: mpsc::Receiver<()>,
    /// Ends with the last admin call.
    pub(super) admin_served: JoinHandle<()>,
    pub(super) drain: Drain,
    pub(super) last_calls_within: Duration,
    pub(super) last_records_within: Duration,
    pub(super) last_traces_within: Duration,
    /// Ends when the feed is stopped, after saying goodbye to the other nodes.
    pub(super) follower: JoinHandle<()>,
    pub(super) writer: JoinHandle<()>,
    /// None: no traces are sent.
    pub(super) exporter: Option<Exporter>,
    pub(super) keeper: Keeper,
    pub(super) counters: Arc<Counters>,
    pub(super) store: Arc<dyn Store>,
    pub(super) proxy: Runtime,
    pub(super) admin: Runtime,
    pub(super) io: Runtime,
}

/// How the proxy is drained.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// For how long nothing changes but readiness.
    pub(super) delay: Duration,
    /// After how long what is still open is cut off.
    pub(super) within: Duration,
}

impl Stopping {
    pub(super) fn run(mut self) {
        let begun = Instant::now();
        self.accepting.store(false, Ordering::Release);
        let Drain { delay, within } = self.drain;
        self.io.block_on(async { tokio::time::sleep(delay).await });
        self.stop.send_replace(true);
        let all_closed =
            self.io.block_on(async { tokio::time::timeout_at(begun + within, self.all_closed.recv()).await });
        if all_closed.is_err() {
            tracing::warn!("requests still in flight are cut off; their records say interrupted");
        }
        self.stop_admin.send_replace(true);
        let last_calls =
            self.io.block_on(async { tokio::time::timeout(self.last_calls_within, self.admin_served).await });
        if last_calls.is_err() {
            tracing::warn!("admin calls still in flight are cut off");
        }
        self.stop_feed.send_replace(true);
        // Dropping what still runs records it. After that the journal gets nothing more.
        self.proxy.shutdown_timeout(Duration::from_secs(1));
        self.admin.shutdown_timeout(Duration::from_secs(1));
        self.io.block_on(async {
            self.give_up.send_replace(Some(Instant::now() + self.last_records_within));
            // The writer gives up by itself; the margin is for one last call that hangs.
            let last_traces = async {
                if let Some(exporter) = self.exporter {
                    exporter.stop(self.last_traces_within).await;
                }
            };
            let last_records = tokio::time::timeout(self.last_records_within * 2, self.writer);
            let ((), written) = tokio::join!(last_traces, last_records);
            if !matches!(written, Ok(Ok(()))) {
                tracing::error!(
                    "the writer of the ledger did not end; what it has not stored stays in the journal"
                );
            }
        });
        self.keeper.stop();
        self.io.block_on(async {
            if tokio::time::timeout(GOODBYE_WITHIN, self.follower).await.is_err() {
                tracing::debug!("the change feed did not end in time");
            }
            self.counters.close().await;
            self.store.close().await;
        });
        self.io.shutdown_timeout(Duration::from_secs(1));
    }
}

/// The signals of the process, caught from the moment this is made: one that comes before it is waited for counts.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Catches them. Whoever says that the gateway is ready does this first: whoever reads that may want to stop it.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Reloads the config at each SIGHUP. Returns when the process is asked to stop. A second request does not wait for requests in flight.
    pub async fn asked_to_stop(self, reloader: Option<&Arc<Reloader>>) {
        let Self { mut term, mut int, mut hup } = self;
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => {
                    // By itself, so that a stop need not wait for it. Left alone, this signal would kill the process.
                    if let Some(reloader) = reloader.map(Arc::clone) {
                        tokio::spawn(async move { reloader.reload_and_tell().await });
                    }
                }
            }
        }
        tracing::info!("stopping: requests in flight may finish");
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            tracing::error!("stopped at once, as asked a second time");
            std::process::exit(130);
        });
    }
}
