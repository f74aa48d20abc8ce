//! Stopping, in the order that loses nothing: first readiness, so that load balancers send no more; then no new
//! connections, and the last requests of those there are; then the admin API (until then it tells that this node is
//! stopping), then the last records, then the store.

use super::upgrade::{Succession, Successor};
use super::{NotUpgraded, Running};
use crate::admin::ServerState;
use crate::clock::Clock;
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
/// How often the process that has taken this one's place hears what is still counted here.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What has to be stopped.
pub(super) struct Stopping {
    /// Ends the proxy's listeners.
    pub(super) stop: watch::Sender<bool>,
    /// Closes the admin API.
    pub(super) admin_state: watch::Sender<ServerState>,
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
    /// Held as long as what other processes have left may be written; the other end ends when nobody does.
    pub(super) rest: (mpsc::Sender<()>, mpsc::Receiver<()>),
    /// None: no traces are sent.
    pub(super) exporter: Option<Exporter>,
    pub(super) keeper: Keeper,
    pub(super) succession: Arc<Succession>,
    pub(super) clock: Arc<dyn Clock>,
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

/// Why a gateway stops.
pub enum Stop {
    /// It was asked to.
    Asked,
    /// Another process serves in its place.
    Replaced(Box<Successor>),
}

impl Stopping {
    pub(super) fn run(mut self, why: Stop) {
        let until = Instant::now() + self.drain.within;
        let mut successor = match why {
            Stop::Asked => {
                self.accepting.store(false, Ordering::Release);
                let delay = self.drain.delay;
                self.io.block_on(async { tokio::time::sleep(delay).await });
                None
            }
            Stop::Replaced(successor) => {
                // Whoever asks for readiness asks the new process; it has the admin API as well.
                self.admin_state.send_replace(ServerState::Closing);
                Some(successor)
            }
        };
        self.succession.doors.let_go();
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
                    // Looking at a million keys takes a while, and is not all that there is to do.
                    pause = TELL_EVERY.max(begun.elapsed() * 10);
                }
            }
            tracing::warn!("requests still in flight are cut off; their records say interrupted");
        };
        self.io.block_on(drained);
        self.admin_state.send_replace(ServerState::Closed);
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
            if let Some(successor) = &mut successor {
                successor.tell(&counters, &*clock).await;
            }
            self.give_up.send_replace(Some(Instant::now() + self.last_records_within));
            // The writer gives up by itself; the margin is for one last call that hangs.
            let last_traces = async {
                if let Some(exporter) = self.exporter {
                    exporter.stop(self.last_traces_within).await;
                }
            };
            let all_written = async {
                let written = self.writer.await;
                let (may_begin, mut rest_written) = self.rest;
                drop(may_begin);
                // Nothing is sent; it ends with those who write.
                rest_written.recv().await;
                written
            };
            let last_records = tokio::time::timeout(self.last_records_within * 2, all_written);
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
    usr2: Signal,
}

impl Signals {
    /// Catches them. Whoever says that the gateway is ready does this first: whoever reads that may want to stop it.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Reloads the config at each SIGHUP, and begins an upgrade at SIGUSR2. Returns when the process is asked to stop, or
    /// another one serves in its place. A second request to stop does not wait for requests in flight.
    pub async fn asked_to_stop(self, running: Option<&Running>) -> Stop {
        let Self { mut term, mut int, mut hup, mut usr2 } = self;
        let (replaced, mut replacement) = mpsc::channel(1);
        let why = loop {
            tokio::select! {
                biased;
                _ = term.recv() => break Stop::Asked,
                _ = int.recv() => break Stop::Asked,
                Some(successor) = replacement.recv() => break Stop::Replaced(successor),
                // Both by themselves, so that a stop need not wait for them. Left alone, these signals would kill the process.
                _ = hup.recv() => {
                    if let Some(running) = running {
                        let reloader = Arc::clone(&running.reloader);
                        tokio::spawn(async move { reloader.reload_and_tell().await });
                    }
                }
                _ = usr2.recv() => {
                    if let Some(running) = running {
                        let (upgrader, replaced) = (Arc::clone(&running.upgrader), replaced.clone());
                        tokio::spawn(async move { report(upgrader.upgrade().await, &replaced).await });
                    }
                }
            }
        };
        let mut is_first = matches!(why, Stop::Replaced(_));
        if is_first {
            tracing::info!("another process serves: requests in flight may finish");
        } else {
            tracing::info!("stopping: requests in flight may finish");
        }
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                if !std::mem::take(&mut is_first) {
                    tracing::error!("stopped at once, as asked a second time");
                    std::process::exit(130);
                }
                // Meant for the service, of which this process is the part that is leaving.
                tracing::info!("requests in flight may finish, as before; ask again to stop at once");
            }
        });
        why
    }
}

async fn report(upgraded: Result<Successor, NotUpgraded>, replaced: &mpsc::Sender<Box<Successor>>) {
    match upgraded {
        Ok(successor) => {
            if replaced.send(Box::new(successor)).await.is_err() {
                tracing::info!("another process serves, and this one stops anyway");
            }
        }
        Err(why) => tracing::error!(%why, "this process goes on: it was not replaced"),
    }
}
