//! Exports to the collector, over a connection that is opened when there is something to send, and kept open.

use super::Collector;
use crate::http_client::{HttpClient, HttpClientError, HttpConnection};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use std::time::Duration;

/// Most bytes of a response that are read.
const ANSWER_BYTES: usize = 64 * 1024;

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
    http: HttpClient,
    headers: HeaderMap,
    timeout: Duration,
    open: Option<HttpConnection>,
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
        let http = HttpClient::new(collector.url.clone(), collector.ca.as_deref())?;
        let mut headers = collector.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        Ok(Self { http, headers, timeout: collector.timeout, open: None })
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
        let mut request = Request::post(self.http.target()).body(message).map_err(|e| broken(&e))?;
        request.headers_mut().clone_from(&self.headers);
        // Taken out, so that a call that is dropped half-way leaves no connection in an unknown state.
        let mut connection = match self.open.take() {
            Some(open) if !open.is_closed() => open,
            _ => self.http.connect().await.map_err(|error| broken(&error))?,
        };
        let response = connection.send(request, ANSWER_BYTES).await.map_err(|error| broken(&error))?;
        self.open = Some(connection);
        judge(&response)
    }
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

impl From<HttpClientError> for CollectorError {
    fn from(error: HttpClientError) -> Self {
        match error {
            HttpClientError::Ca(why) => Self::Ca(why),
            HttpClientError::Url(why) => Self::Endpoint(why),
        }
    }
}
