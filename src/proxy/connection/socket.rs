//! A client's socket, with or without TLS, and detection of its disconnect.

use futures_util::FutureExt;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A socket, with or without TLS.
pub(in crate::proxy) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Another stream owns it now.
    Moved,
}

/// Detects that the client has closed its side while the socket is not read. A reader would notice by reading.
pub(in crate::proxy) struct HangUpWatch(TcpStream);

/// Whether this machine lacks resources for another connection: descriptors, ports or memory.
pub(in crate::proxy) fn is_local_shortage(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|error| lacking.contains(&error))
}

// === impl Socket ===

impl Socket {
    /// The number of the descriptor.
    pub(in crate::proxy) fn id(&self) -> i32 {
        self.tcp().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Moved => None,
        }
    }

    /// The pending error of the socket, if any.
    pub(in crate::proxy) fn error(&self) -> io::Result<Option<io::Error>> {
        self.tcp().map_or(Ok(None), TcpStream::take_error)
    }

    /// Sets whether closing the socket resets the connection instead of ending it normally.
    pub(in crate::proxy) fn resets(&self, resets: bool) -> io::Result<()> {
        let Some(stream) = self.tcp() else { return Ok(()) };
        Ok(set_socket_linger(stream, resets.then_some(Duration::ZERO))?)
    }

    /// Whether HTTP/2 was negotiated.
    pub(in crate::proxy) fn is_http2(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Moved => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, into),
            Self::Moved => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Moved => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Self::Moved => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Moved => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Moved => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Moved => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

// === impl HangUpWatch ===

impl HangUpWatch {
    /// A watch for `socket`. It uses a duplicate descriptor: to get the next event it must clear readiness, which
    /// would be missed when the socket itself is read again.
    pub(in crate::proxy) fn of(socket: &Socket) -> io::Result<Self> {
        let stream = socket.tcp().ok_or(io::ErrorKind::NotConnected)?;
        TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into()).map(Self)
    }

    /// Ready once the client has closed its side.
    pub(in crate::proxy) fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            let news = self.0.ready(Interest::READABLE).now_or_never().transpose()?;
            if news.is_some_and(Ready::is_read_closed) {
                return Poll::Ready(Ok(()));
            }
            let forgotten =
                self.0.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            debug_assert!(forgotten.is_err(), "no bytes read");
        }
    }
}
