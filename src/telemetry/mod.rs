//! Export of traces: spans of requests over OTLP (protobuf over HTTP).
//!
//! A sampled request fills a [`Recording`]. When it ends, however that happens, the recording goes into a queue, which one
//! task on the I/O runtime exports in batches. A slow or unreachable collector costs requests nothing: spans without room
//! in the queue are dropped and counted.
//!
//! Must not know: the proxy, keys beyond their ids, the config.
//!
//! *Invariant:* no span contains a secret, a query or a body.
//! *Invariant:* headers for the collector are in no log and no error.

mod client;
mod encode;
mod export;
mod span;

pub use client::CollectorError;
pub use export::Exporter;
pub use span::{Recording, SpanEnd, SpanRequest};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::model::server::HttpUrl;
use client::OtlpClient;
use http::HeaderMap;
use prometheus::IntCounter;
use span::RequestTrace;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Options of the export.
pub struct TelemetryOptions {
    /// The collector.
    pub collector: Collector,
    /// `service.name`.
    pub service_name: String,
    /// `service.instance.id`: this node.
    pub node: String,
    /// Further resource attributes.
    pub attributes: Vec<(String, String)>,
    /// Most requests with spans in the queue.
    pub queue_requests: usize,
    /// Most requests in one export.
    pub batch_requests: usize,
    /// Longest time of a request in the queue before an export.
    pub batch_delay: Duration,
}

/// The address of a collector. Has no `Debug`, because its headers are secrets.
pub struct Collector {
    /// Where exports are posted to.
    pub url: HttpUrl,
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// Header fields for each export.
    pub headers: HeaderMap,
    /// Longest time for an export.
    pub timeout: Duration,
}

/// The queue of finished requests.
pub struct SpanQueue {
    to: mpsc::Sender<Box<RequestTrace>>,
    full: IntCounter,
    clock: Arc<dyn Clock>,
}

/// Starts the export on `io`.
pub fn start(
    options: TelemetryOptions,
    clock: Arc<dyn Clock>,
    metrics: &Metrics,
    io: &Handle,
) -> Result<(Arc<SpanQueue>, Exporter), CollectorError> {
    let client = OtlpClient::new(&options.collector)?;
    let (to, from) = mpsc::channel(options.queue_requests);
    let exporter = Exporter::start(options, client, from, metrics, io);
    let full = metrics.telemetry_spans.with_label_values(&["queue_full"]);
    Ok((Arc::new(SpanQueue { to, full, clock }), exporter))
}

impl SpanQueue {
    /// Never waits.
    fn put(&self, trace: Box<RequestTrace>) {
        let spans = trace.spans();
        if self.to.try_send(trace).is_err() {
            self.full.inc_by(spans);
        }
    }
}
