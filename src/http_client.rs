//! HTTP/1.1 to the services that Keygate itself calls: the collector of traces, the identity provider.
//!
//! Must not know: what is sent or answered. Redirects are not followed, and answers are read up to a limit.
//!
//! *Invariant:* header fields, which may be secrets, are in no log and no error.

use crate::model::server::HttpUrl;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

const AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Why a service cannot be called at all.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The CA certificates are invalid.
    #[error("the CA is not a valid PEM certificate: {0}")]
    Ca(String),
    /// TLS, or the server name, is invalid.
    #[error("the URL cannot be used: {0}")]
    Url(String),
}

/// Which servers are trusted over TLS.
#[derive(Clone)]
pub struct HttpTrust(TlsConnector);

/// A client of one service.
pub struct HttpClient {
    url: HttpUrl,
    host: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// An open connection to the service.
pub struct HttpConnection {
    send: SendRequest<Full<Bytes>>,
    host: HeaderValue,
}

// === impl HttpTrust ===

impl HttpTrust {
    /// The certificates `ca` (PEM), or the system's roots.
    pub fn new(ca: Option<&[u8]>) -> Result<Self, HttpClientError> {
        connector(ca).map(Self)
    }
}

// === impl HttpClient ===

impl HttpClient {
    /// A client of the service at `url`, which trusts the certificates `ca` (PEM), or the system's roots.
    pub fn new(url: HttpUrl, ca: Option<&[u8]>) -> Result<Self, HttpClientError> {
        let trust = if url.tls { Some(HttpTrust::new(ca)?) } else { None };
        Self::of(url, trust)
    }

    /// A client of the service at `url`, one of several with the same trust.
    pub fn trusting(url: HttpUrl, trust: &HttpTrust) -> Result<Self, HttpClientError> {
        let trust = url.tls.then(|| trust.clone());
        Self::of(url, trust)
    }

    fn of(url: HttpUrl, trust: Option<HttpTrust>) -> Result<Self, HttpClientError> {
        let bad = |error: &dyn fmt::Display| HttpClientError::Url(error.to_string());
        let host = HeaderValue::from_str(&url.authority()).map_err(|error| bad(&error))?;
        let tls = match trust {
            Some(HttpTrust(connector)) => {
                let name = ServerName::try_from(url.server.host.clone()).map_err(|error| bad(&error))?;
                Some((connector, name))
            }
            None => None,
        };
        Ok(Self { url, host, tls })
    }

    /// Path and query of the URL.
    pub fn target(&self) -> &str {
        &self.url.target
    }

    /// Opens a connection.
    pub async fn connect(&self) -> io::Result<HttpConnection> {
        let server = &self.url.server;
        let stream = TcpStream::connect((&*server.host, server.port)).await?;
        stream.set_nodelay(true)?;
        let send = match &self.tls {
            None => begin(stream).await?,
            Some((tls, name)) => begin(tls.connect(name.clone(), stream).await?).await?,
        };
        Ok(HttpConnection { send, host: self.host.clone() })
    }

    /// Opens a connection to a server on this machine, at a Unix socket.
    pub async fn connect_local(path: &Path) -> io::Result<HttpConnection> {
        let stream = UnixStream::connect(path).await?;
        Ok(HttpConnection { send: begin(stream).await?, host: HeaderValue::from_static("localhost") })
    }

    /// Sends one request on a connection of its own, and reads an answer of up to `most` bytes.
    pub async fn call(&self, request: Request<Bytes>, most: usize) -> io::Result<Response<Bytes>> {
        self.connect().await?.send(request, most).await
    }
}

impl fmt::Display for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpClient({})", self.url)
    }
}

// === impl HttpConnection ===

impl HttpConnection {
    /// Whether it was closed since the last answer.
    pub fn is_closed(&self) -> bool {
        self.send.is_closed()
    }

    /// Sends one request, and reads an answer of up to `most` bytes. Not to be used again after an error.
    pub async fn send(&mut self, request: Request<Bytes>, most: usize) -> io::Result<Response<Bytes>> {
        let mut request = request.map(Full::new);
        request.headers_mut().insert(HOST, self.host.clone());
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        self.send.ready().await.map_err(io::Error::other)?;
        let response = self.send.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, most).collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

async fn begin<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the other half.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a service closed");
        }
    });
    Ok(send)
}

fn connector(ca: Option<&[u8]>) -> Result<TlsConnector, HttpClientError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| HttpClientError::Ca(error.to_string()))?;
                roots.add(certificate).map_err(|error| HttpClientError::Ca(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(HttpClientError::Ca("no PEM certificate found".to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpClientError::Url(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
