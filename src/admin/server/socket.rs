//! The Unix socket of the admin API: its file, its rights, and who may replace it.
//!
//! Must not know: what is served. A file that nobody accepts on is left by a process that was killed, and replaced. One that
//! another process accepts on is replaced only by the process that takes over from it. Anything that is no socket stays.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// Most connections that wait to be accepted.
const QUEUE: i32 = 128;

/// The listening socket.
#[derive(Debug)]
pub struct AdminSocketListener {
    path: PathBuf,
    mode: u32,
    listener: UnixListener,
    /// Device and number of its file, by which it is told from another process's.
    file: (u64, u64),
}

impl AdminSocketListener {
    /// Opens the socket under another name beside `path`, where nobody finds it before [`Self::publish`]. `takes_over`: a
    /// process that accepts at `path` is the one that this process replaces. Must be called within a runtime.
    pub fn open(path: &Path, mode: u32, takes_over: bool) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, "is there, and is not a socket"));
            }
            Ok(_) if !takes_over && std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(io::Error::new(
                    ErrorKind::AddrInUse,
                    "another process accepts connections there",
                ));
            }
            _ => {}
        }
        let (listener, file) = listen_beside(path, mode)?;
        Ok(Self { path: path.to_owned(), mode, listener, file })
    }

    /// From now on `path` leads here. Whoever connects meanwhile gets the old socket or this one.
    pub fn publish(&self) -> io::Result<()> {
        fs::rename(beside(&self.path), &self.path)
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Restores the file if it was deleted, or if the process that was to take over has ended. One that another process
    /// accepts on is left to it.
    pub(super) async fn repair(&mut self) {
        if file_at(&self.path) == Some(self.file) || UnixStream::connect(&self.path).await.is_ok() {
            return;
        }
        let restored = Self::open(&self.path, self.mode, false).and_then(|new| new.publish().map(|()| new));
        match restored {
            Ok(new) => {
                *self = new;
                tracing::warn!(path = %self.path.display(), "admin socket was gone, restored");
            }
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "admin socket is gone, cannot restore it");
            }
        }
    }
}

impl Drop for AdminSocketListener {
    fn drop(&mut self) {
        for path in [&self.path, &beside(&self.path)] {
            if file_at(path) == Some(self.file)
                && let Err(error) = fs::remove_file(path)
            {
                tracing::debug!(path = %path.display(), %error, "cannot remove the admin socket");
            }
        }
    }
}

/// A listening socket at [`beside`] the path. Nobody can connect before it listens, and by then it has its rights.
fn listen_beside(path: &Path, mode: u32) -> io::Result<(UnixListener, (u64, u64))> {
    let place = beside(path);
    match fs::remove_file(&place) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(&place)?)?;
    fs::set_permissions(&place, Permissions::from_mode(mode))?;
    let file = file_at(&place).ok_or(ErrorKind::NotFound)?;
    listen(&socket, QUEUE)?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

/// Where a socket is prepared.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn open(path: &Path, takes_over: bool) -> io::Result<AdminSocketListener> {
        let socket = AdminSocketListener::open(path, 0o600, takes_over)?;
        socket.publish().map(|()| socket)
    }

    async fn is_reached(socket: &AdminSocketListener) -> bool {
        let connected = UnixStream::connect(&socket.path).await;
        connected.is_ok() && socket.accept().now_or_never().is_some_and(|accepted| accepted.is_ok())
    }

    #[tokio::test]
    async fn a_file_left_by_a_killed_process_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists(), "nobody accepts on it, and the file is there");
        let first = open(&path, false).expect("in its place");
        assert!(is_reached(&first).await);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(open(&path, false).expect_err("it is live").kind(), ErrorKind::AddrInUse);
        assert!(is_reached(&first).await, "it is as it was");
        drop(first);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left");
    }

    #[tokio::test]
    async fn anything_but_a_socket_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        fs::write(&path, "precious").expect("written");
        assert_eq!(open(&path, true).expect_err("no socket").kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("it is there"), b"precious");
    }

    #[tokio::test]
    async fn a_process_that_takes_over_keeps_the_file_when_the_other_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        let mut old = open(&path, false).expect("a socket");
        let new = open(&path, true).expect("it takes over");
        old.repair().await;
        assert!(new.accept().now_or_never().is_some(), "the old one has asked who is there");
        drop(old);
        assert!(is_reached(&new).await);
    }

    #[tokio::test]
    async fn the_file_comes_back_when_it_was_deleted_or_its_new_owner_died() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        let mut socket = open(&path, false).expect("a socket");
        fs::remove_file(&path).expect("deleted");
        socket.repair().await;
        assert!(is_reached(&socket).await);
        // A process that is killed leaves its file.
        fs::remove_file(&path).expect("deleted");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        socket.repair().await;
        assert!(is_reached(&socket).await);
    }
}
