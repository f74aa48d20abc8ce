//! Listening sockets: those handed over by a predecessor, and new ones.

use crate::app::StartError;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;

/// Most connections that wait to be accepted; the kernel's `somaxconn` may be lower.
const QUEUE: u32 = 4_096;

/// The kind of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) enum ListenerKind {
    Http1,
    Tls,
    H2c,
    Admin,
    Decide,
}

/// The listening sockets of this process.
#[derive(Debug, Default)]
pub(in crate::app) struct ListenerFds {
    inherited: Mutex<Vec<ListenerFd>>,
    /// A duplicate of each socket in use, for handing over. None: they are no longer handed over.
    open: Mutex<Option<Vec<ListenerFd>>>,
}

/// A socket with its configured address, which may have port 0.
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
            Self::Decide => "decide",
        }
    }

    /// Its section in the config.
    const fn section(self) -> &'static str {
        match self {
            Self::Http1 | Self::Tls | Self::H2c => "proxy",
            Self::Admin => "admin",
            Self::Decide => "decide",
        }
    }
}

impl ListenerFds {
    /// Starts with inherited sockets.
    pub(super) fn inheriting(inherited: Vec<ListenerFd>) -> Self {
        Self { inherited: Mutex::new(inherited), open: Mutex::new(Some(Vec::new())) }
    }

    /// The socket for `kind` at `address`, accepted from on `runtime`. Connections wait in the queue until then.
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

    /// Closes inherited sockets that are not used.
    pub(in crate::app) fn close_unused(&self) {
        lock(&self.inherited).clear();
    }

    /// A duplicate of each, to be handed over.
    pub(super) fn share(&self) -> io::Result<Vec<ListenerFd>> {
        let open = lock(&self.open);
        let copy = |o: &ListenerFd| {
            Ok(ListenerFd { kind: o.kind.clone(), address: o.address, socket: o.socket.try_clone()? })
        };
        open.iter().flatten().map(copy).collect()
    }

    /// From now on a socket is closed when nobody accepts from it.
    pub(in crate::app) fn release(&self) {
        lock(&self.open).take();
    }
}

/// Opens a listening socket. After a restart or a fail-over many clients connect at once; those that do not fit into the
/// queue would retry only after a second, and the usual queue of 128 fills quickly.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for the TIME_WAIT of old connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Nothing under these locks can panic half-way.
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
        // A client whose connection is dropped retries after a second.
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(900));
        let waiting: Vec<_> = (0..300).map(|_| connect().expect("a place")).collect();
        assert_eq!(waiting.len(), 300);
    }
}
