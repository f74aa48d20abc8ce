//! The sockets that are listened on: those that a predecessor handed over, and new ones where it had none.

use crate::app::StartError;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;

/// Most connections that wait to be accepted; the kernel's `somaxconn` may allow fewer.
const QUEUE: u32 = 4_096;

/// What is behind a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) enum ListenerKind {
    Http1,
    Tls,
    H2c,
    Admin,
}

/// The sockets of this process.
#[derive(Debug, Default)]
pub(in crate::app) struct ListenerFds {
    inherited: Mutex<Vec<ListenerFd>>,
    /// One more handle of each that is in use, for handing on. None: they are not handed on any more.
    open: Mutex<Option<Vec<ListenerFd>>>,
}

/// A socket and what the config says of it. The address may have port 0 where the socket has a real one.
#[derive(Debug)]
pub(super) struct ListenerFd {
    pub(super) kind: String,
    pub(super) address: SocketAddr,
    pub(super) socket: OwnedFd,
}

impl ListenerKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Tls => "tls",
            Self::H2c => "h2c",
            Self::Admin => "admin",
        }
    }

    /// The section of the config that it is in.
    const fn section(self) -> &'static str {
        match self {
            Self::Http1 | Self::Tls | Self::H2c => "proxy",
            Self::Admin => "admin",
        }
    }
}

impl ListenerFds {
    /// With these to begin with.
    pub(super) fn inheriting(inherited: Vec<ListenerFd>) -> Self {
        Self { inherited: Mutex::new(inherited), open: Mutex::new(Some(Vec::new())) }
    }

    /// The socket for `kind` at `address`, accepted from on `runtime`. Those who connect wait until it is accepted from.
    pub(in crate::app) fn listen(
        &self,
        kind: ListenerKind,
        address: SocketAddr,
        runtime: &Handle,
    ) -> Result<TcpListener, StartError> {
        let _within = runtime.enter();
        let failed = |error| StartError::Listen { what: kind.section(), address, error };
        let listener = match self.take(kind, address) {
            Some(socket) => TcpListener::from_std(socket.into()).map_err(failed)?,
            None => open(address).map_err(failed)?,
        };
        let socket = listener.as_fd().try_clone_to_owned().map_err(failed)?;
        let opened = ListenerFd { kind: kind.as_str().to_owned(), address, socket };
        lock(&self.open).get_or_insert_default().push(opened);
        Ok(listener)
    }

    fn take(&self, kind: ListenerKind, address: SocketAddr) -> Option<OwnedFd> {
        let mut inherited = lock(&self.inherited);
        let at = inherited.iter().position(|o| o.kind == kind.as_str() && o.address == address)?;
        Some(inherited.remove(at).socket)
    }

    /// What was inherited and nobody wanted is closed here.
    pub(in crate::app) fn close_unused(&self) {
        lock(&self.inherited).clear();
    }

    /// One more handle of each, to be handed over.
    pub(super) fn share(&self) -> io::Result<Vec<ListenerFd>> {
        let open = lock(&self.open);
        let copy = |o: &ListenerFd| {
            Ok(ListenerFd { kind: o.kind.clone(), address: o.address, socket: o.socket.try_clone()? })
        };
        open.iter().flatten().map(copy).collect()
    }

    /// From now on a socket is closed when nobody accepts from it any more.
    pub(in crate::app) fn release(&self) {
        lock(&self.open).take();
    }
}

/// A socket that listens. Among the many who connect at once after a restart or a fail-over, those who do not fit into its
/// queue would try again after a second; the 128 that are usual are soon there.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for connections that have ended to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Nothing that runs under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::time::Duration;

    #[tokio::test]
    async fn many_may_wait_to_be_accepted() {
        let listener_fds = ListenerFds::default();
        let listener = listener_fds
            .listen(ListenerKind::Http1, ([127, 0, 0, 1], 0).into(), &Handle::current())
            .expect("a socket");
        let address = listener.local_addr().expect("its address");
        // One whose place is taken tries again after a second.
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(900));
        let waiting: Vec<_> = (0..300).map(|_| connect().expect("a place")).collect();
        assert_eq!(waiting.len(), 300);
    }
}
