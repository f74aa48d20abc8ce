//! The connection to the collector: HTTP/1.1, opened when there is something to send, and kept open.

use super::Collector;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Most bytes of a response that are read.
const ANSWER_BYTES: usize = 64 * 1024;
const AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Why the configured collector cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The CA certificates are invalid.
    #[error("ca_file: not a valid PEM certificate: {0}")]
    Ca(String),
    /// TLS, or the server name, is invalid.
    #[error("endpoint: {0}")]
    Endpoint(String),
}

/// A client of one collector.
pub(super) struct OtlpClient {
    host: String,
    port: u16,
    path: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    headers: HeaderMap,
    timeout: Duration,
    open: Option<SendRequest<Full<Bytes>>>,
}

/// Why an export failed.
pub(super) struct ExportError {
    /// For the log.
    pub(super) reason: String,
    /// Whether it may be retried.
    pub(super) again: Retry,
}

/// Whether an export may be retried.
pub(super) enum Retry {
    /// No: it would be rejected again.
    Never,
    /// Yes, at any time.
    Later,
    /// Yes, after this delay.
    After(Duration),
}

impl OtlpClient {
    pub(super) fn new(collector: &Collector) -> Result<Self, CollectorError> {
        let bad = |error: &dyn std::fmt::Display| CollectorError::Endpoint(error.to_string());
        let mut headers = collector.headers.clone();
        headers.insert(HOST, HeaderValue::from_str(&collector.authority).map_err(|error| bad(&error))?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let tls = if collector.tls {
            let name = ServerName::try_from(collector.host.clone()).map_err(|error| bad(&error))?;
            Some((connector(collector.ca.as_deref())?, name))
        } else {
            None
        };
        Ok(Self {
            host: collector.host.clone(),
            port: collector.port,
            path: collector.path.clone(),
            tls,
            headers,
            timeout: collector.timeout,
            open: None,
        })
    }

    /// Sends one batch. Returns how many of its spans the collector rejected.
    pub(super) async fn send(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.post(message)).await {
            Ok(answered) => answered,
            Err(_) => {
                Err(ExportError { reason: format!("no answer within {timeout:?}"), again: Retry::Later })
            }
        }
    }

    async fn post(&mut self, message: Bytes) -> Result<u64, ExportError> {
        let broken =
            |error: &dyn std::fmt::Display| ExportError { reason: error.to_string(), again: Retry::Later };
        let mut request = Request::post(&*self.path).body(Full::new(message)).map_err(|e| broken(&e))?;
        request.headers_mut().clone_from(&self.headers);
        // Taken out, so that a call that is dropped half-way leaves no connection in an unknown state.
        let mut connection = match self.open.take() {
            Some(open) if !open.is_closed() => open,
            _ => self.connect().await.map_err(|error| broken(&error))?,
        };
        connection.ready().await.map_err(|error| broken(&error))?;
        let response = connection.send_request(request).await.map_err(|error| broken(&error))?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, ANSWER_BYTES).collect().await.map_err(|error| broken(&error))?.to_bytes();
        self.open = Some(connection);
        judge(&Response::from_parts(head, body))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, std::io::Error> {
        let stream = TcpStream::connect((&*self.host, self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => begin(stream).await,
            Some((tls, name)) => begin(tls.connect(name.clone(), stream).await?).await,
        }
    }
}

async fn begin<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, std::io::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // Ends with the other half.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to OTLP collector closed");
        }
    });
    Ok(send)
}

/// Classifies the response, according to "Failures" in OTLP.
fn judge(response: &Response<Bytes>) -> Result<u64, ExportError> {
    let status = response.status();
    if status.is_success() {
        // Collectors differ in their responses; an unknown one is ignored.
        let partial = ExportTraceServiceResponse::decode(response.body().clone()).ok();
        let rejected = partial.and_then(|p| p.partial_success).map_or(0, |partial| partial.rejected_spans);
        return Ok(u64::try_from(rejected).unwrap_or(0));
    }
    let passes = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    let asked = || response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
    let again = if passes.contains(&status) {
        asked().map_or(Retry::Later, |seconds| Retry::After(Duration::from_secs(seconds)))
    } else {
        Retry::Never
    };
    Err(ExportError { reason: format!("the collector answered {}", status.as_u16()), again })
}

fn connector(ca: Option<&[u8]>) -> Result<TlsConnector, CollectorError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| CollectorError::Ca(error.to_string()))?;
                roots.add(certificate).map_err(|error| CollectorError::Ca(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(CollectorError::Ca("no PEM certificate found".to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| CollectorError::Endpoint(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
