//! The new process's side of an upgrade.

use super::UpgradeState;
use super::listener_fds::{ListenerFd, ListenerFds};
use super::message::{DESCRIPTORS_MAX, Hello, UpgradeMessage, VERSION, read, write};
use crate::app::StartError;
use crate::clock::Clock;
use crate::counter::{Counters, RemoteInFlight};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use uuid::Uuid;

/// Longest wait for the first message; it was sent before this process began.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Longest first line, in bytes.
const HELLO_MAX: u64 = 64 << 10;

/// The process that this one replaces, before the agreement.
#[derive(Debug)]
pub struct Predecessor {
    stream: StdStream,
    sockets: Vec<ListenerFd>,
    lock: Option<File>,
    counts: bool,
}

/// The same, while both run.
pub(in crate::app) struct LeavingPredecessor {
    from: AsyncBufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    /// Its requests in flight.
    elsewhere: RemoteInFlight,
}

impl Predecessor {
    /// Receives what is handed over on standard input.
    pub fn connect() -> io::Result<Self> {
        let stream = StdStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_read_timeout(Some(HELLO_WITHIN))?;
        let mut descriptors = descriptors(&stream)?;
        let mut line = Vec::new();
        BufReader::new((&stream).take(HELLO_MAX)).read_until(b'\n', &mut line)?;
        let UpgradeMessage::Hello(hello) = serde_json::from_slice(&line)? else {
            return Err(io::Error::other("missing list of listeners"));
        };
        let Hello { version, sockets, store_lock, counts } = hello;
        if version != VERSION || descriptors.len() != sockets.len() + usize::from(store_lock) {
            return Err(io::Error::other("incompatible version"));
        }
        let lock = if store_lock { descriptors.pop().map(File::from) } else { None };
        let sockets = sockets.into_iter().zip(descriptors);
        let sockets = sockets.map(|((kind, address), socket)| ListenerFd { kind, address, socket }).collect();
        stream.set_nonblocking(true)?;
        Ok(Self { stream, sockets, lock, counts })
    }

    /// Its sockets.
    pub(in crate::app) fn listener_fds(&mut self) -> ListenerFds {
        ListenerFds::inheriting(std::mem::take(&mut self.sockets))
    }

    /// The lock of its embedded store.
    pub(in crate::app) const fn lock(&mut self) -> Option<File> {
        self.lock.take()
    }

    /// Whether it sends its counts.
    pub(in crate::app) const fn counts(&self) -> bool {
        self.counts
    }

    /// Reports that no further step can fail here, and adds its counts. When this returns, this process must accept
    /// connections.
    pub(in crate::app) async fn take_over(
        self,
        boot: Uuid,
        counters: &Counters,
        clock: &dyn Clock,
    ) -> Result<LeavingPredecessor, StartError> {
        let failed = |error: io::Error| StartError::Predecessor(error.to_string());
        let (from, mut to) = UnixStream::from_std(self.stream).map_err(failed)?.into_split();
        let (mut from, mut elsewhere) = (AsyncBufReader::new(from), RemoteInFlight::default());
        write(&mut to, &UpgradeMessage::Loaded { boot }).await.map_err(failed)?;
        loop {
            match read(&mut from).await.map_err(failed)? {
                Some(UpgradeMessage::Counted(row)) => count(row.read(), counters, &mut elsewhere, clock),
                Some(UpgradeMessage::Go) => return Ok(LeavingPredecessor { from, to, elsewhere }),
                Some(other) => return Err(StartError::Predecessor(format!("it says {other:?}"))),
                None => return Err(StartError::Predecessor("connection closed".to_owned())),
            }
        }
    }
}

impl LeavingPredecessor {
    /// Reports that this process accepts, so that the old one stops.
    pub(in crate::app) async fn serving(&mut self) -> io::Result<()> {
        write(&mut self.to, &UpgradeMessage::Serving).await?;
        self.to.flush().await
    }

    /// Adds its further counts, until it has exited.
    pub(in crate::app) async fn follow(
        mut self,
        counters: Arc<Counters>,
        clock: Arc<dyn Clock>,
        upgrade_state: Arc<UpgradeState>,
    ) {
        loop {
            match read(&mut self.from).await {
                Ok(Some(UpgradeMessage::Counted(row))) => {
                    count(row.read(), &counters, &mut self.elsewhere, &*clock);
                }
                Ok(Some(_)) => tracing::debug!("unexpected message from the old process"),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot read from the old process");
                    break;
                }
            }
        }
        counters.on_sibling_gone(self.elsewhere);
        upgrade_state.is_alone.store(true, Ordering::Release);
        tracing::info!("old process has exited");
        upgrade_state.on_sibling_gone().await;
    }
}

fn count(
    told: Option<crate::counter::CounterDelta>,
    counters: &Counters,
    elsewhere: &mut RemoteInFlight,
    clock: &dyn Clock,
) {
    if let Some(told) = told {
        counters.take_over(&told, elsewhere, clock.now());
    }
}

/// The descriptors that come with the first byte.
fn descriptors(stream: &StdStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut along, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut found = Vec::new();
    for message in along.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    Ok(found)
}
