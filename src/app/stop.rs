//! Graceful shutdown: first readiness, so that load balancers send no more; then no new connections, and the last requests
//! of existing ones; then the admin API (until then it reports that this node is stopping), then the last records, then the
//! store.

use super::upgrade::{Successor, UpgradeState};
use crate::admin::ServerState;
use crate::clock::Clock;
use crate::counter::Counters;
use crate::store::Store;
use crate::telemetry::Exporter;
use crate::usage::journal::JournalFlusher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long signing off from other nodes may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// How often the new process gets the counts of this one.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What has to be stopped.
pub(super) struct Shutdown {
    /// Stops the proxy's listeners.
    pub(super) stop: watch::Sender<bool>,
    /// Closes the admin API.
    pub(super) admin_state: watch::Sender<ServerState>,
    /// Ends the change feed, which admin calls in flight still wait for.
    pub(super) stop_feed: watch::Sender<bool>,
    /// The deadline of the writer.
    pub(super) give_up: watch::Sender<Option<Instant>>,
    /// Readiness.
    pub(super) accepting: Arc<AtomicBool>,
    /// Ends when the last connection is closed.
    pub(super) all_closed: mpsc::Receiver<()>,
    /// Ends with the last admin call.
    pub(super) admin_served: JoinHandle<()>,
    pub(super) drain: DrainOptions,
    pub(super) last_calls_within: Duration,
    pub(super) last_records_within: Duration,
    pub(super) last_traces_within: Duration,
    /// Ends when the feed is stopped, after signing off.
    pub(super) follower: JoinHandle<()>,
    pub(super) writer: JoinHandle<()>,
    /// Held as long as records of other processes may be written; the receiver ends when nobody does.
    pub(super) rest: (mpsc::Sender<()>, mpsc::Receiver<()>),
    /// None: no traces are exported.
    pub(super) exporter: Option<Exporter>,
    pub(super) keeper: JournalFlusher,
    pub(super) upgrade_state: Arc<UpgradeState>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) counters: Arc<Counters>,
    pub(super) store: Arc<dyn Store>,
    pub(super) proxy: Runtime,
    pub(super) admin: Runtime,
    pub(super) io: Runtime,
}

/// How the proxy drains.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainOptions {
    /// How long nothing changes but readiness.
    pub(super) delay: Duration,
    /// When open requests are cut.
    pub(super) within: Duration,
}

/// Why a gateway stops.
pub enum StopReason {
    /// It was asked to stop.
    Asked,
    /// Another process has replaced it.
    Replaced(Box<Successor>),
}

impl Shutdown {
    pub(super) fn run(mut self, why: StopReason) {
        let until = Instant::now() + self.drain.within;
        let mut successor = match why {
            StopReason::Asked => {
                self.accepting.store(false, Ordering::Release);
                let delay = self.drain.delay;
                self.io.block_on(async { tokio::time::sleep(delay).await });
                None
            }
            StopReason::Replaced(successor) => {
                // Readiness checks reach the new process, which also has the admin API.
                self.admin_state.send_replace(ServerState::Closing);
                Some(successor)
            }
        };
        self.upgrade_state.listener_fds.release();
        self.stop.send_replace(true);
        let (counters, clock) = (Arc::clone(&self.counters), Arc::clone(&self.clock));
        let drained = async {
            let mut pause = TELL_EVERY;
            loop {
                tokio::select! {
                    biased;
                    _ = self.all_closed.recv() => return,
                    () = tokio::time::sleep_until(until) => break,
                    () = tokio::time::sleep(pause), if successor.is_some() => {}
                }
                if let Some(successor) = &mut successor {
                    let begun = Instant::now();
                    successor.tell(&counters, &*clock).await;
                    // Reading a million keys takes a while and must leave time for other work.
                    pause = TELL_EVERY.max(begun.elapsed() * 10);
                }
            }
            tracing::warn!("drain timeout reached, requests in flight aborted and recorded as interrupted");
        };
        self.io.block_on(drained);
        self.admin_state.send_replace(ServerState::Closed);
        let last_calls =
            self.io.block_on(async { tokio::time::timeout(self.last_calls_within, self.admin_served).await });
        if last_calls.is_err() {
            tracing::warn!("drain timeout reached, admin requests in flight aborted");
        }
        self.stop_feed.send_replace(true);
        // Dropping what still runs records it. After that the journal gets no more records.
        self.proxy.shutdown_timeout(Duration::from_secs(1));
        self.admin.shutdown_timeout(Duration::from_secs(1));
        self.io.block_on(async {
            if let Some(successor) = &mut successor {
                successor.tell(&counters, &*clock).await;
            }
            self.give_up.send_replace(Some(Instant::now() + self.last_records_within));
            // The writer has its own deadline; the margin is for one last call that hangs.
            let last_traces = async {
                if let Some(exporter) = self.exporter {
                    exporter.stop(self.last_traces_within).await;
                }
            };
            let all_written = async {
                let written = self.writer.await;
                let (may_begin, mut rest_written) = self.rest;
                drop(may_begin);
                // Nothing is sent; it ends when the writers do.
                rest_written.recv().await;
                written
            };
            let last_records = tokio::time::timeout(self.last_records_within * 2, all_written);
            let ((), written) = tokio::join!(last_traces, last_records);
            if !matches!(written, Ok(Ok(()))) {
                tracing::error!("ledger writer did not stop, unstored records stay in the journal");
            }
        });
        self.keeper.stop();
        self.io.block_on(async {
            if tokio::time::timeout(GOODBYE_WITHIN, self.follower).await.is_err() {
                tracing::debug!("change feed did not stop in time");
            }
            self.counters.close().await;
            self.store.close().await;
        });
        self.io.shutdown_timeout(Duration::from_secs(1));
    }
}
