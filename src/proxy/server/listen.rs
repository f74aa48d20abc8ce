//! Accepts connections: registers each in the table and starts a task to serve it. The last connection to close ends
//! the drain at shutdown.
//!
//! Pingora's own accept loop has no deadline for a request head and always sleeps for its whole grace period when it
//! stops. This one stops as soon as the last response is sent.

use super::{http1, http2};
use crate::clock::Now;
use crate::model::fault::Fault;
use crate::model::usage::Outcome;
use crate::policy::http::source::{V1_MAX, V2_HEAD, V2_SIGNATURE, read_v1, read_v2, v2_rest};
use crate::proxy::connection::h1_stream::H1ClientStream;
use crate::proxy::connection::socket::{Socket, is_local_shortage};
use crate::proxy::connection::table::{ConnectionGuard, ConnectionTable, NotRegistered};
use crate::proxy::series::class_of;
use crate::proxy::service::Phases;
use crate::proxy::state::Proxy;
use crate::server_tls::{TlsContext, was_a_challenge};
use pingora::apps::HttpServerApp;
use pingora::connectors::TransportConnector;
use pingora::proxy::HttpProxy;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Why a connection is refused: the labels in metrics.
pub const REFUSED: [&str; 4] =
    [NotRegistered::Full.as_str(), NotRegistered::Address.as_str(), "proxy_protocol", "tls"];

/// Pause after a failed accept, for example for lack of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Time without a failure after which a shortage is over: while descriptors are short, some become free again and
/// again.
const OVER_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of pending connections that are still accepted when the gateway stops: more than the kernel's
/// backlog.
const WAITING_MAX: usize = 4_096;

/// Limits for a request head before it is parsed, and for a connection.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// Bytes of all header fields.
    pub header_bytes: usize,
    /// Number of header fields.
    pub fields: usize,
    /// Requests per connection.
    pub requests: u64,
    /// Concurrent streams per HTTP/2 connection.
    pub streams: u32,
}

/// The protocol of a listener.
#[derive(Clone)]
pub enum ListenerProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    Http2,
    /// TLS, with the protocol negotiated inside it.
    Tls(Arc<TlsContext>),
    /// HTTP/1.1, and HTTP/2 with prior knowledge, from proxies and applications that ask for decisions.
    Decide,
}

/// Whose connection it is, by the PROXY protocol.
enum ProxySource {
    /// This client's.
    Client(IpAddr),
    /// The header does not say.
    Unknown,
    /// There is no header.
    None,
}

/// A shortage of resources for new connections, with the time of the last failure. Logged when it begins and when it
/// is over.
#[derive(Default)]
struct AcceptShortage(Option<Instant>);

/// Accepts connections on one listener while the gateway runs.
#[derive(Clone)]
pub struct Acceptor {
    /// The protocol.
    pub protocol: ListenerProtocol,
    /// Whether trusted proxies report the client's address with the PROXY protocol.
    pub proxy_protocol: bool,
    /// Decides about requests.
    pub proxy: Arc<Proxy>,
    /// Pingora's proxy, which uses the same decisions.
    pub phases: Arc<HttpProxy<Phases>>,
    /// Opens TLS connections to backends.
    pub connector: Arc<TransportConnector>,
    /// The table of connections.
    pub connections: Arc<ConnectionTable>,
    /// Limits.
    pub limits: HeadLimits,
    /// Becomes true when the gateway stops.
    pub stop: watch::Receiver<bool>,
    /// Held by every connection: the receiver ends when the last one is closed.
    pub open: mpsc::Sender<()>,
}

impl Acceptor {
    /// Accepts until the gateway stops. Open connections continue to be served.
    pub async fn run(mut self, listener: TcpListener) {
        let mut shortage = AcceptShortage::default();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if shortage.clear_if_over() {
                        tracing::info!("accepting connections again");
                    }
                    self.accept(stream, peer);
                }
                Err(error) => {
                    if shortage.mark() {
                        tracing::warn!(%error, "cannot accept connections, new ones wait in the backlog");
                    }
                    if is_local_shortage(&error) {
                        self.connections.make_room();
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
        // From now on every response says that its connection closes.
        self.phases.http_cleanup().await;
        self.accept_pending(listener);
    }

    /// Accepts the connections pending in the backlog, which closing the listener would reset.
    fn accept_pending(&self, listener: TcpListener) {
        let listener = match listener.into_std() {
            Ok(listener) => listener,
            Err(error) => return tracing::debug!(%error, "cannot accept pending connections at shutdown"),
        };
        for _ in 0..WAITING_MAX {
            match listener
                .accept()
                .and_then(|(stream, peer)| Ok((TcpStream::from_std(nonblocking(stream)?)?, peer)))
            {
                Ok((stream, peer)) => self.accept(stream, peer),
                // The backlog is empty.
                Err(_) => return,
            }
        }
    }

    fn accept(&self, stream: TcpStream, peer: SocketAddr) {
        // The head and body of a response may be two small writes; the second must not wait until the first is
        // acknowledged.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection closed before its first request");
            return;
        }
        let secure = matches!(self.protocol, ListenerProtocol::Tls(_));
        let is_proxy = self.decides() || self.proxy.trusted.contains(peer.ip());
        let registered = match self.connections.register(peer, secure, is_proxy) {
            Ok(registered) => registered,
            Err(refused) => return self.refused(refused.as_str()),
        };
        let acceptor = self.clone();
        tokio::spawn(async move { acceptor.serve(stream, registered).await });
    }

    async fn serve(&self, mut stream: TcpStream, mut registered: ConnectionGuard) {
        let connection = Arc::clone(registered.connection());
        if self.proxy_protocol && !self.decides() && self.proxy.trusted.contains(connection.peer.ip()) {
            let told = tokio::select! {
                biased;
                () = connection.closed() => return,
                told = self.read_proxy_header(&mut stream) => told,
            };
            match told {
                Ok(ProxySource::Unknown) => {}
                Ok(ProxySource::None) => connection.restrict_to_health_checks(),
                Ok(ProxySource::Client(client)) => {
                    if let Err(refused) = registered.set_client(client) {
                        return self.refused(refused.as_str());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, proxy = %connection.peer, "invalid PROXY protocol header");
                    return self.refused("proxy_protocol");
                }
            }
        }
        let socket = match &self.protocol {
            ListenerProtocol::Http1 | ListenerProtocol::Http2 | ListenerProtocol::Decide => {
                Socket::Plain(stream)
            }
            ListenerProtocol::Tls(context) => {
                let agreed = tokio::select! {
                    biased;
                    () = connection.closed() => return,
                    agreed = context.acceptor().accept(stream) => agreed,
                };
                match agreed {
                    Ok(stream) if was_a_challenge(&stream) => return,
                    Ok(stream) => Socket::Tls(Box::new(stream)),
                    Err(error) => {
                        tracing::debug!(%error, "TLS handshake failed");
                        return self.refused("tls");
                    }
                }
            }
        };
        let http2 = matches!(self.protocol, ListenerProtocol::Http2) || socket.is_http2();
        let client_stream = Box::new(H1ClientStream::new(socket, Arc::clone(&connection)));
        if http2 {
            http2::serve(self, client_stream, &connection).await;
        } else {
            http1::serve(self, client_stream, &connection).await;
        }
    }

    /// Reads the header that a trusted proxy must send. A load balancer's health check may come without one.
    async fn read_proxy_header(&self, stream: &mut TcpStream) -> io::Result<ProxySource> {
        if self.proxy.health.is_some() {
            let mut first = [0];
            let read = stream.peek(&mut first).await?;
            // Either version of the header begins with one of these.
            if read == 1 && !matches!(first[0], b'P' | b'\r') {
                return Ok(ProxySource::None);
            }
        }
        Ok(read_proxy_header(stream).await?.map_or(ProxySource::Unknown, ProxySource::Client))
    }

    /// Whether its callers are proxies that ask for decisions.
    pub(in crate::proxy) const fn decides(&self) -> bool {
        matches!(self.protocol, ListenerProtocol::Decide)
    }

    /// Time since `begun`.
    pub(in crate::proxy) fn since(&self, begun: Now) -> Duration {
        Duration::from_nanos(self.proxy.clock.now().steady_ns.saturating_sub(begun.steady_ns))
    }

    /// Counts a refusal of a request that could not be parsed.
    pub(in crate::proxy) fn count_refused(&self, fault: Fault, elapsed: Duration) {
        let labels = ["", class_of(fault.status()), Outcome::Denied.as_str()];
        self.proxy.metrics.requests.with_label_values(&labels).inc();
        self.proxy.metrics.request_seconds.with_label_values(&[""]).observe(elapsed.as_secs_f64());
        self.proxy.metrics.denials.with_label_values(&[fault.name()]).inc();
    }

    fn refused(&self, why: &str) {
        debug_assert!(REFUSED.contains(&why), "{why}");
        self.proxy.metrics.connections_refused.with_label_values(&[why]).inc();
    }
}

// === impl AcceptShortage ===

impl AcceptShortage {
    /// Records a failed accept. Returns whether the shortage begins now.
    fn mark(&mut self) -> bool {
        self.0.replace(Instant::now()).is_none()
    }

    /// Records a successful accept. Returns whether it ends the shortage.
    fn clear_if_over(&mut self) -> bool {
        self.0.take_if(|last| last.elapsed() >= OVER_AFTER).is_some()
    }
}

fn nonblocking(stream: std::net::TcpStream) -> io::Result<std::net::TcpStream> {
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Reads the PROXY protocol header, and no byte after it. None: the proxy speaks for itself.
async fn read_proxy_header(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = [0; V2_HEAD];
    let (first, rest) = head.split_at_mut(V2_SIGNATURE.len());
    stream.read_exact(first).await?;
    if first == V2_SIGNATURE {
        stream.read_exact(rest).await?;
        let mut addresses = vec![0; v2_rest(&head).map_err(|_| bad())?];
        stream.read_exact(&mut addresses).await?;
        return read_v2(&head, &addresses).map_err(|_| bad());
    }
    // A line feed ends the header and the client's bytes follow it, so it is read byte by byte.
    let mut line = first.to_vec();
    while !line.ends_with(b"\n") {
        if line.len() == V1_MAX || !line.starts_with(b"PROXY ") {
            return Err(bad());
        }
        line.push(stream.read_u8().await?);
    }
    read_v1(&line).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_shortage_is_told_when_it_begins_and_when_it_is_over() {
        let mut shortage = AcceptShortage::default();
        assert!(!shortage.clear_if_over(), "there is none");
        assert!(shortage.mark());
        for _ in 0..100 {
            tokio::time::advance(ACCEPT_REST).await;
            // A descriptor became free, the connection that waited longest got it, and the next accept fails.
            assert!(!shortage.clear_if_over() && !shortage.mark());
        }
        tokio::time::advance(OVER_AFTER).await;
        assert!(shortage.clear_if_over() && !shortage.clear_if_over() && shortage.mark());
    }
}
