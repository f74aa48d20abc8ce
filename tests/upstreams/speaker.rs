//! A backend that speaks HTTP/2, or either HTTP version over TLS, and records how it was addressed.

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// The backend. Dropping it ends it.
pub(crate) struct Speaker {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

/// One request as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// `h1` or `h2`.
    pub(crate) version: &'static str,
    pub(crate) method: String,
    pub(crate) path: String,
    /// `Host` or `:authority`.
    pub(crate) authority: String,
    pub(crate) body: Vec<u8>,
    /// The server name in the TLS handshake.
    pub(crate) sni: Option<String>,
    /// Whether the client presented a certificate.
    pub(crate) certified: bool,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Vec<Heard>>,
    connections: AtomicUsize,
}

/// A CA.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Certified {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// TLS settings of a server.
pub(crate) struct Inside<'a> {
    pub(crate) shown: &'a Certified,
    pub(crate) alpn: &'a [&'a str],
    /// The CA of the certificates that clients must present.
    pub(crate) clients_of: Option<&'a Authority>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate for those names and addresses.
    pub(crate) fn certify(&self, names: &[&str]) -> Certified {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        Certified { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Speaker {
    /// HTTP/2 in clear text with prior knowledge, or over TLS the version chosen by ALPN.
    pub(crate) fn start(tls: Option<&Inside<'_>>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let acceptor = tls.map(|inside| TlsAcceptor::from(Arc::new(server_config(inside))));
        let serving = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::AcqRel);
                tokio::spawn(serve(stream, acceptor.clone(), Arc::clone(&serving)));
            }
        });
        Self { address, shared, _runtime: runtime }
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.shared.heard.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }
}

/// Takes TLS off connections and passes them on to `to`, for as long as the test runs. No ALPN.
pub(crate) fn relay(shown: &Certified, to: SocketAddr) -> SocketAddr {
    let config = server_config(&Inside { shown, alpn: &[], clients_of: None });
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let relaying = async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A connection that breaks is the gateway's or the origin's doing, and is seen there.
                let (Ok(mut outer), Ok(mut inner)) =
                    (acceptor.accept(stream).await, TcpStream::connect(to).await)
                else {
                    return;
                };
                tokio::io::copy_bidirectional(&mut outer, &mut inner).await.ok();
            });
        }
    };
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(relaying)
    });
    address
}

fn server_config(inside: &Inside<'_>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match inside.clients_of {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain =
        CertificateDer::pem_slice_iter(inside.shown.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(inside.shown.key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = inside.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

/// A broken connection is caused by the gateway, and is noticed there.
async fn serve(stream: TcpStream, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let plain = Heard {
        version: "h2",
        method: String::new(),
        path: String::new(),
        authority: String::new(),
        body: Vec::new(),
        sni: None,
        certified: false,
    };
    let Some(acceptor) = acceptor else { return serve_h2(stream, plain, shared).await };
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let connection = stream.get_ref().1;
    let (sni, certified) =
        (connection.server_name().map(str::to_owned), connection.peer_certificates().is_some());
    let inside = Heard { sni, certified, ..plain };
    if connection.alpn_protocol() == Some(b"h2") {
        serve_h2(stream, inside, shared).await;
    } else {
        serve_h1(stream, Heard { version: "h1", ..inside }, shared).await;
    }
}

async fn serve_h2(io: impl AsyncRead + AsyncWrite + Unpin, how: Heard, shared: Arc<Shared>) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (how, shared) = (how.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut bytes = Vec::new();
            while let Some(Ok(part)) = body.data().await {
                body.flow_control().release_capacity(part.len()).unwrap();
                bytes.extend_from_slice(&part);
            }
            let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
            let (method, path) = (head.method.to_string(), head.uri.path().to_owned());
            shared.heard.lock().unwrap().push(Heard { method, path, authority, body: bytes, ..how });
            let mut sent = respond.send_response(http::Response::new(()), false).unwrap();
            sent.send_data(Bytes::from_static(b"spoken"), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            sent.send_trailers(trailers).unwrap();
        });
    }
}

/// Requests without a body.
async fn serve_h1(mut io: impl AsyncRead + AsyncWrite + Unpin, how: Heard, shared: Arc<Shared>) {
    let mut head = Vec::new();
    while let Ok(byte) = io.read_u8().await {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
        let mut first = text.split(' ');
        let mut next = || first.next().unwrap().to_owned();
        let (method, path) = (next(), next());
        let host = text.lines().find_map(|l| l.to_lowercase().strip_prefix("host: ").map(str::to_owned));
        let authority = host.unwrap_or_default();
        shared.heard.lock().unwrap().push(Heard { method, path, authority, ..how.clone() });
        if io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nspoken").await.is_err() {
            return;
        }
    }
}
