//! The old process's side of an upgrade: it starts the new process, and stops only when that serves.

use super::UpgradeState;
use super::listener_fds::ListenerFd;
use super::message::{CounterRow, DESCRIPTORS_MAX, Hello, UpgradeMessage, VERSION, read, write};
use crate::app::sd_notify::ServiceNotifier;
use crate::clock::Clock;
use crate::counter::{Counters, Handover};
use crate::store::sqlite::SqliteStore;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

/// The argument that tells the new process its role.
const TAKE_OVER: &str = "--take-over";
/// Longest time for sending counts to the new process, which reads them at once.
const TELL_WITHIN: Duration = Duration::from_secs(5);

/// The program, to be started again.
#[derive(Clone, Debug)]
pub(in crate::app) struct Program {
    /// As it was called: the binary at this path now is started.
    pub(in crate::app) path: OsString,
    pub(in crate::app) arguments: Vec<OsString>,
}

impl Program {
    pub(in crate::app) fn called(called: &[OsString]) -> Option<Self> {
        let (path, arguments) = called.split_first()?;
        let arguments = arguments.iter().filter(|argument| *argument != TAKE_OVER).cloned().collect();
        Some(Self { path: path.clone(), arguments })
    }
}

/// Replaces this process.
pub(in crate::app) struct Upgrader {
    /// None: this gateway was not started by a command that can be repeated.
    pub(in crate::app) program: Option<Program>,
    /// Longest time until the new process serves.
    pub(in crate::app) within: Duration,
    pub(in crate::app) upgrade_state: Arc<UpgradeState>,
    pub(in crate::app) sqlite: Option<Arc<SqliteStore>>,
    pub(in crate::app) counters: Arc<Counters>,
    pub(in crate::app) counts: bool,
    pub(in crate::app) clock: Arc<dyn Clock>,
    pub(in crate::app) notify: ServiceNotifier,
    /// Held during an attempt.
    pub(in crate::app) busy: Mutex<()>,
}

/// The process that has replaced this one.
pub struct Successor {
    to: BufWriter<OwnedWriteHalf>,
    told: Handover,
    /// Whether it still reads counts.
    listens: bool,
    // Exits on its own, after this process.
    _child: Child,
}

/// Why this process was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum NotUpgraded {
    /// It was not started by a command that can be repeated.
    #[error("cannot upgrade: the command this process was started with cannot be run again")]
    NoProgram,
    /// It is process 1 of a container.
    #[error("cannot upgrade: this is process 1 of a container; replace the container instead")]
    Container,
    /// The previous process has not exited yet.
    #[error("cannot upgrade: the previous process is still draining; retry when it has exited")]
    Draining,
    /// Another attempt is running.
    #[error("cannot upgrade: another upgrade is in progress")]
    Busy,
    /// The program cannot be started.
    #[error("{program}: {error}", program = program.display())]
    Start {
        /// The program.
        program: OsString,
        /// The error.
        error: io::Error,
    },
    /// It exited instead of serving.
    #[error("the new process exited before it was serving ({0}); see its output above")]
    Ended(ExitStatus),
    /// It closed its end without exiting.
    #[error("the new process refused to take over and was stopped")]
    Silent,
    /// It did not serve in time.
    #[error("the new process was not serving within {0:?} (proxy.upgrade_timeout) and was stopped")]
    Late(Duration),
    /// It sent an unexpected message.
    #[error("unexpected message from the new process, it was stopped: {0}")]
    Confused(String),
}

impl Upgrader {
    /// Starts the new binary and waits until it serves. Until then, and if it fails, nothing changes here.
    pub(in crate::app) async fn upgrade(&self) -> Result<Successor, NotUpgraded> {
        let Ok(_only_one) = self.busy.try_lock() else { return Err(NotUpgraded::Busy) };
        // Before the new process is started, and so before it reads its config.
        self.upgrade_state.is_upgrading.store(true, Ordering::Release);
        let upgraded = self.attempt().await;
        // Changes in this process after a successful upgrade would be too late.
        self.upgrade_state.is_upgrading.store(upgraded.is_ok(), Ordering::Release);
        upgraded
    }

    async fn attempt(&self) -> Result<Successor, NotUpgraded> {
        if !self.upgrade_state.is_alone.load(Ordering::Acquire) {
            return Err(NotUpgraded::Draining);
        }
        if std::process::id() == 1 {
            return Err(NotUpgraded::Container);
        }
        let Program { path, arguments } = self.program.as_ref().ok_or(NotUpgraded::NoProgram)?;
        let failed = |error| NotUpgraded::Start { program: path.clone(), error };
        let (ours, theirs) = self.greet().map_err(failed)?;
        let mut command = Command::new(path);
        command.args(arguments).arg(TAKE_OVER);
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        // The program may be on a mount that hangs.
        let mut child = tokio::task::block_in_place(|| command.spawn()).map_err(failed)?;
        // Only the child may hold the other end, or its death would go unnoticed.
        drop(command);
        self.upgrade_state.siblings.add();
        tracing::info!(program = %path.display(), pid = child.id(), "upgrade started");

        let served = tokio::time::timeout(self.within, self.lead(ours)).await;
        let why = match served {
            Ok(Ok((to, told))) => {
                self.notify.main_pid(child.id());
                tracing::info!(pid = child.id(), "new process is serving");
                return Ok(Successor { to, told, listens: true, _child: child });
            }
            Ok(Err(why)) => why,
            Err(_) => NotUpgraded::Late(self.within),
        };
        let why = end(&mut child, why).await;
        tokio::spawn(Arc::clone(&self.upgrade_state).on_sibling_gone());
        Err(why)
    }

    /// A pair of sockets, with the first message and the descriptors already sent.
    fn greet(&self) -> io::Result<(UnixStream, StdStream)> {
        let (ours, theirs) = StdStream::pair()?;
        let sockets = self.upgrade_state.listener_fds.share()?;
        let lock = self.sqlite.as_ref().and_then(|store| store.lock());
        let mut descriptors: Vec<_> = sockets.iter().map(|o| o.socket.as_fd()).collect();
        descriptors.extend(lock.as_ref().map(AsFd::as_fd));
        let hello = Hello {
            version: VERSION,
            sockets: sockets
                .iter()
                .map(|ListenerFd { kind, address, .. }| (kind.clone(), *address))
                .collect(),
            store_lock: lock.is_some(),
            counts: self.counts,
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        if !along.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("too many listeners"));
        }
        sendmsg(&ours, &[IoSlice::new(b"K")], &mut along, SendFlags::empty())?;
        let mut line = serde_json::to_vec(&UpgradeMessage::Hello(hello))?;
        line.push(b'\n');
        io::Write::write_all(&mut &ours, &line)?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs))
    }

    /// Guides it from its start until it serves.
    async fn lead(&self, with: UnixStream) -> Result<(BufWriter<OwnedWriteHalf>, Handover), NotUpgraded> {
        // It no longer reads.
        let gone = |_: io::Error| NotUpgraded::Silent;
        let (from, to) = with.into_split();
        let (mut from, mut to) = (BufReader::new(from), BufWriter::new(to));
        expect(&mut from, |m| matches!(m, UpgradeMessage::Loaded { .. })).await?;
        let mut told = Handover::default();
        // Twice: what is charged during the first, long transfer is sent before the other one starts to serve.
        for _ in 0..2 {
            self.tell(&mut told, &mut to).await.map_err(gone)?;
        }
        write(&mut to, &UpgradeMessage::Go).await.map_err(gone)?;
        to.flush().await.map_err(gone)?;
        expect(&mut from, |m| matches!(m, UpgradeMessage::Serving)).await?;
        Ok((to, told))
    }

    async fn tell(&self, told: &mut Handover, to: &mut BufWriter<OwnedWriteHalf>) -> io::Result<()> {
        tell(told, &self.counters, &*self.clock, to).await
    }
}

async fn tell(
    told: &mut Handover,
    counters: &Counters,
    clock: &dyn Clock,
    to: &mut BufWriter<OwnedWriteHalf>,
) -> io::Result<()> {
    for news in told.deltas(counters, clock.now()) {
        write(to, &UpgradeMessage::Counted(CounterRow::from(news))).await?;
    }
    to.flush().await
}

async fn expect(
    from: &mut BufReader<OwnedReadHalf>,
    what: impl FnOnce(&UpgradeMessage) -> bool,
) -> Result<(), NotUpgraded> {
    match read(from).await {
        Ok(Some(message)) if what(&message) => Ok(()),
        Ok(Some(message)) => Err(NotUpgraded::Confused(format!("{message:?}"))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(NotUpgraded::Confused(error.to_string()))
        }
        Ok(None) | Err(_) => Err(NotUpgraded::Silent),
    }
}

/// Ends it, if it has not exited, which is then the reason.
async fn end(child: &mut Child, why: NotUpgraded) -> NotUpgraded {
    if matches!(why, NotUpgraded::Silent) {
        // Usually because it exits.
        if let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), child.wait()).await {
            return NotUpgraded::Ended(status);
        }
    }
    if let Err(error) = child.kill().await {
        tracing::warn!(%error, "cannot stop the new process");
    }
    why
}

impl Successor {
    /// Sends what has been counted here since, unless it no longer reads.
    pub(in crate::app) async fn tell(&mut self, counters: &Counters, clock: &dyn Clock) {
        if !self.listens {
            return;
        }
        let telling = tell(&mut self.told, counters, clock, &mut self.to);
        let told = tokio::time::timeout(TELL_WITHIN, telling).await;
        if let Err(error) = told.map_err(io::Error::from).flatten() {
            self.listens = false;
            tracing::warn!(%error, "cannot send counters to the new process");
        }
    }
}
