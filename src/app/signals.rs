//! Handles the signals of the process. They are caught first of all: otherwise they would kill the process silently, and
//! process 1 of a container would not receive them at all. Early signals wait.

use super::{NotUpgraded, Running, StartError, StopReason, Successor};
use std::io;
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Most pending stop requests. The first is acted on, the second ends the process.
const STOPS_MAX: usize = 2;
/// Exit code after an immediate stop.
const EXIT_AT_ONCE: i32 = 130;

/// The signals of the process, from the moment this is created.
pub struct Signals {
    /// SIGTERM and SIGINT.
    stop: mpsc::Receiver<()>,
    /// SIGHUP.
    reload: mpsc::Receiver<()>,
    /// SIGUSR2.
    upgrade: mpsc::Receiver<()>,
}

/// The steps of a start: each is awaited unless the process is asked to stop first.
pub(super) struct Steps<'s> {
    io: &'s Runtime,
    signals: Option<&'s mut Signals>,
}

impl Signals {
    /// Installs the handlers.
    pub fn catch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let within = runtime.enter();
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut hup = signal(SignalKind::hangup())?;
        let mut usr2 = signal(SignalKind::user_defined2())?;
        drop(within);
        let (to_stop, stop) = mpsc::channel(STOPS_MAX);
        let (to_reload, reload) = mpsc::channel(1);
        let (to_upgrade, upgrade) = mpsc::channel(1);
        let hear = async move {
            loop {
                let to = tokio::select! {
                    biased;
                    _ = term.recv() => &to_stop,
                    _ = int.recv() => &to_stop,
                    _ = hup.recv() => &to_reload,
                    _ = usr2.recv() => &to_upgrade,
                };
                // A pending one already stands for this one.
                to.try_send(()).ok();
            }
        };
        std::thread::Builder::new().name("keygate-signals".into()).spawn(move || runtime.block_on(hear))?;
        Ok(Self { stop, reload, upgrade })
    }

    /// Reloads the config at each SIGHUP, and begins an upgrade at SIGUSR2. Returns when the process is asked to stop, or
    /// when another one has replaced it. A second stop request does not wait for requests in flight.
    pub async fn asked_to_stop(self, running: Option<&Running>) -> StopReason {
        let Self { mut stop, mut reload, mut upgrade } = self;
        let (replaced, mut replacement) = mpsc::channel(1);
        let why = loop {
            tokio::select! {
                biased;
                _ = stop.recv() => break StopReason::Asked,
                Some(successor) = replacement.recv() => break StopReason::Replaced(successor),
                // Both in the background, so that a stop need not wait for them.
                Some(()) = reload.recv() => {
                    if let Some(running) = running {
                        let reloader = Arc::clone(&running.reloader);
                        tokio::spawn(async move { reloader.reload_and_log().await });
                    }
                }
                Some(()) = upgrade.recv() => {
                    if let Some(running) = running {
                        let (upgrader, replaced) = (Arc::clone(&running.upgrader), replaced.clone());
                        tokio::spawn(async move { report(upgrader.upgrade().await, &replaced).await });
                    }
                }
            }
        };
        let mut is_first = matches!(why, StopReason::Replaced(_));
        if is_first {
            tracing::info!("replaced by another process, draining: waiting for requests in flight");
        } else if let Some(running) = running {
            tracing::info!(
                "stopping: waiting up to {} s for {} requests; send the signal again (Ctrl-C) to stop now",
                running.stopping.drain.within.as_secs(),
                running.reloader.requests_in_flight()
            );
        } else {
            tracing::info!("stopping: waiting for requests in flight");
        }
        tokio::spawn(async move {
            while let Some(()) = stop.recv().await {
                if !std::mem::take(&mut is_first) {
                    tracing::error!("second signal received, stopped immediately");
                    std::process::exit(EXIT_AT_ONCE);
                }
                // Meant for the service; this process is the part that is leaving.
                tracing::info!("already draining; send the signal again to stop immediately");
            }
        });
        why
    }
}

impl<'s> Steps<'s> {
    /// Steps on `io`; without signals nothing interrupts them.
    pub(super) const fn on(io: &'s Runtime, signals: Option<&'s mut Signals>) -> Self {
        Self { io, signals }
    }

    /// Waits for a step. A process that is asked to stop meanwhile does not start.
    pub(super) fn wait<T, E>(&mut self, step: impl Future<Output = Result<T, E>>) -> Result<T, StartError>
    where
        StartError: From<E>,
    {
        let Some(signals) = &mut self.signals else { return Ok(self.io.block_on(step)?) };
        self.io.block_on(async {
            tokio::select! {
                biased;
                Some(()) = signals.stop.recv() => Err(StartError::Stopped),
                done = step => Ok(done?),
            }
        })
    }
}

async fn report(upgraded: Result<Successor, NotUpgraded>, replaced: &mpsc::Sender<Box<Successor>>) {
    match upgraded {
        Ok(successor) => {
            if replaced.send(Box::new(successor)).await.is_err() {
                tracing::info!("signal received while draining after an upgrade, stopping");
            }
        }
        Err(why) => tracing::error!(%why, "upgrade failed, the old process continues"),
    }
}
