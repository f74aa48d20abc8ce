//! Connections to the server. They are opened here and not by the driver, which would accept messages of any length.
//!
//! [`Bounded`] is the stream that the driver reads from, inside TLS if there is TLS. It reads the type and length of each
//! message. A server that sends too much loses the connection before its data takes memory.

use super::{PgOptions, StoreError, connect, tls};
use super::{PostgresUrl, SslMode};
use deadpool_postgres::Connect;
use rustix::net::sockopt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinHandle;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, Error, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Largest message; the longest expected one is a row of a few hundred KiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Largest result: all messages until the server is ready for the next query.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// The type of the message that says so.
const READY_FOR_QUERY: u8 = b'Z';
/// Type and length of a message.
const HEADER: usize = 5;

/// How long a connection may be idle before keep-alive probes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// Bytes to and from the server.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// An address that is unreachable; the driver makes its error of this.
    Unreachable(io::ErrorKind),
}

type Secured = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// A connection that must be driven.
pub(super) type Link = Connection<Bounded<Socket>, Bounded<Secured>>;

/// Opens connections.
#[derive(Clone)]
pub(super) struct Connector {
    hosts: Vec<(String, u16)>,
    config: Config,
    tls: Option<MakeRustlsConnect>,
    connect_within: Duration,
    answer_within: Duration,
}

/// A stream that limits messages.
pub(super) struct Bounded<S> {
    stream: S,
    bounds: Bounds,
}

/// Progress in the stream of messages.
#[derive(Debug, Default)]
struct Bounds {
    /// The answer to the request for TLS is one byte, not a message.
    is_asking_for_tls: bool,
    header: [u8; HEADER],
    header_bytes: usize,
    /// Bytes of the message still to come.
    left: usize,
    /// Bytes of the result so far.
    answer: usize,
}

/// TLS for one connection; none if it is not configured.
struct Handshake(Option<<MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect>);

/// The address of a server.
enum ServerAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

// === impl Connector ===

impl Connector {
    /// For the servers of `url`. A `statement_timeout` of zero: no limit.
    pub(super) fn new(
        url: &PostgresUrl,
        options: &PgOptions,
        statement_timeout: Duration,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            hosts: url.hosts.clone(),
            config: connect::config(url, statement_timeout),
            tls: if url.ssl_mode == SslMode::Disable { None } else { tls::connector(url)? },
            connect_within: options.connect_timeout,
            answer_within: options.statement_timeout,
        })
    }

    /// Connects to the first server that accepts us and, if there are several, accepts writes.
    pub(super) async fn connect(&self) -> Result<(Client, Link), Error> {
        let mut connected = self.fail(io::ErrorKind::NotFound).await;
        for (host, port) in &self.hosts {
            let addresses = match self.addresses(host, *port).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    connected = self.fail(error.kind()).await;
                    continue;
                }
            };
            for address in addresses {
                connected = match self.open(&address).await {
                    Ok(socket) => self.speak(host, socket).await,
                    Err(error) => self.fail(error.kind()).await,
                };
                if connected.is_ok() {
                    return connected;
                }
            }
        }
        connected
    }

    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<ServerAddress>> {
        if host.starts_with('/') {
            return Ok(vec![ServerAddress::Unix(PathBuf::from(host).join(format!(".s.PGSQL.{port}")))]);
        }
        Ok(lookup_host((host, port)).await?.map(ServerAddress::Tcp).collect())
    }

    async fn open(&self, address: &ServerAddress) -> io::Result<Socket> {
        let opening = async {
            match address {
                ServerAddress::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
                ServerAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let unanswered = u32::try_from((self.answer_within * 2).as_millis()).unwrap_or(u32::MAX);
                    sockopt::set_tcp_user_timeout(&stream, unanswered)?;
                    sockopt::set_socket_keepalive(&stream, true)?;
                    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_AFTER)?;
                    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_EVERY)?;
                    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_TRIES)?;
                    Ok(Socket::Tcp(stream))
                }
            }
        };
        let late = |_| Err(io::ErrorKind::TimedOut.into());
        tokio::time::timeout(self.connect_within, opening).await.unwrap_or_else(late)
    }

    async fn speak(&self, host: &str, socket: Socket) -> Result<(Client, Link), Error> {
        let handshake = match &self.tls {
            None => Handshake(None),
            Some(tls) => match MakeTlsConnect::<Socket>::make_tls_connect(&mut tls.clone(), host) {
                Ok(handshake) => Handshake(Some(handshake)),
                Err(_) => return self.fail(io::ErrorKind::InvalidInput).await,
            },
        };
        let bounds = Bounds { is_asking_for_tls: self.tls.is_some(), ..Bounds::default() };
        let (client, mut link) =
            self.config.connect_raw(Bounded { stream: socket, bounds }, handshake).await?;
        if self.hosts.len() == 1 {
            return Ok((client, link));
        }
        let answer = tokio::select! {
            answer = client.simple_query("SHOW transaction_read_only") => answer?,
            ended = &mut link => {
                ended?;
                return self.fail(io::ErrorKind::ConnectionAborted).await;
            }
        };
        let says_on = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
            _ => false,
        };
        if answer.iter().any(says_on) {
            return self.fail(io::ErrorKind::PermissionDenied).await;
        }
        Ok((client, link))
    }

    /// The driver's error for a failed connection.
    async fn fail(&self, why: io::ErrorKind) -> Result<(Client, Link), Error> {
        let nowhere = Bounded { stream: Socket::Unreachable(why), bounds: Bounds::default() };
        self.config.connect_raw(nowhere, Handshake(None)).await
    }
}

impl Connect for Connector {
    fn connect(
        &self,
        _: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + '_>> {
        Box::pin(async {
            let (client, link) = self.connect().await?;
            Ok((client, tokio::spawn(drive(link))))
        })
    }
}

/// Waiting callers get an error when the connection ends; this is for details.
pub(super) async fn drive(link: Link) {
    if let Err(error) = link.await {
        tracing::debug!(error = %StoreError::from(error), "a connection to the database ended");
    }
}

// === impl Handshake ===

impl TlsConnect<Bounded<Socket>> for Handshake {
    type Stream = Bounded<Secured>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, plain: Bounded<Socket>) -> Self::Future {
        Box::pin(async move {
            let handshake = self.0.ok_or(io::ErrorKind::Unsupported)?;
            let stream = handshake.connect(plain.stream).await?;
            Ok(Bounded { stream, bounds: Bounds::default() })
        })
    }
}

// === impl Bounded ===

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, bounds } = self.get_mut();
        let before = into.filled().len();
        ready!(Pin::new(stream).poll_read(context, into))?;
        Poll::Ready(bounds.pass(into.filled().get(before..).unwrap_or_default()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl TlsStream for Bounded<Secured> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

impl Bounds {
    /// Follows the messages; fails at the header of one that is too long.
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.is_asking_for_tls && !bytes.is_empty() {
            self.is_asking_for_tls = false;
            bytes = bytes.get(1..).unwrap_or_default();
        }
        while !bytes.is_empty() {
            let of_message = self.left.min(bytes.len());
            self.left -= of_message;
            bytes = bytes.get(of_message..).unwrap_or_default();
            let of_header = if self.left > 0 { 0 } else { (HEADER - self.header_bytes).min(bytes.len()) };
            let (header, rest) = bytes.split_at(of_header);
            for byte in header {
                self.header[self.header_bytes] = *byte;
                self.header_bytes += 1;
            }
            bytes = rest;
            if self.header_bytes == HEADER {
                self.header_bytes = 0;
                let [kind, length @ ..] = self.header;
                self.begins(kind, usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX))?;
            }
        }
        Ok(())
    }

    /// A message begins; its length includes itself.
    fn begins(&mut self, kind: u8, length: usize) -> io::Result<()> {
        self.answer = if kind == READY_FOR_QUERY { 0 } else { self.answer.saturating_add(length) };
        if length > MESSAGE_BYTES_MAX || self.answer > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.left = length.saturating_sub(4);
        Ok(())
    }
}

// === impl Socket ===

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, into),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, into),
            Self::Unreachable(why) => Poll::Ready(Err((*why).into())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unreachable(why) => Poll::Ready(Err((*why).into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Unreachable(why) => Poll::Ready(Err((*why).into())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unreachable(_) => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload + 4).expect("short").to_be_bytes();
        [vec![kind], length.to_vec(), vec![7; payload]].concat()
    }

    #[test]
    fn frames_that_are_too_long_fail_at_their_header() {
        let header =
            |length: usize| [&b"D"[..], &u32::try_from(length).expect("fits").to_be_bytes()].concat();
        assert!(Bounds::default().pass(&header(MESSAGE_BYTES_MAX)).is_ok());
        assert!(Bounds::default().pass(&header(MESSAGE_BYTES_MAX + 1)).is_err());
        assert!(Bounds::default().pass(&header(usize::try_from(u32::MAX).expect("fits"))).is_err());
    }

    #[test]
    fn an_answer_ends_where_the_server_is_ready_again() {
        let row = message(b'D', 1 << 20);
        let mut bounds = Bounds::default();
        let rows = ANSWER_BYTES_MAX / row.len();
        for _ in 0..3 {
            (0..rows).for_each(|_| bounds.pass(&row).expect("within bounds"));
            bounds.pass(&message(READY_FOR_QUERY, 1)).expect("the end");
        }
        (0..rows).for_each(|_| bounds.pass(&row).expect("within bounds"));
        assert!(bounds.pass(&row).is_err());
    }

    proptest! {
        #[test]
        fn messages_are_framed_however_the_bytes_arrive(
            sizes in prop::collection::vec(0_usize..40, 1..8),
            cuts in prop::collection::vec(1_usize..9, 1..200),
            asks_for_tls in any::<bool>(),
        ) {
            let mut bounds = Bounds { is_asking_for_tls: asks_for_tls, ..Bounds::default() };
            let mut all = if asks_for_tls { vec![b'N'] } else { Vec::new() };
            sizes.iter().for_each(|size| all.extend(message(b'D', *size)));
            let mut left = all.as_slice();
            for cut in cuts.into_iter().cycle() {
                if left.is_empty() {
                    break;
                }
                let (now, then) = left.split_at(cut.min(left.len()));
                prop_assert!(bounds.pass(now).is_ok());
                left = then;
            }
            prop_assert_eq!((bounds.left, bounds.header_bytes), (0, 0));
            prop_assert_eq!(bounds.answer, sizes.iter().map(|size| size + 4).sum::<usize>());
        }
    }
}
