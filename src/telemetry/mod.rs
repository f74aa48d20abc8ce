//! Traces for a collector: spans of requests, gathered and sent over OTLP (protobuf over HTTP).
//!
//! A request that is recorded fills a [`Recording`]; when it ends, however that comes about, it is put into a queue, and
//! one task on the I/O runtime sends what is there in batches. Must not know: the proxy, keys beyond their ids, the
//! config. A collector that is slow or gone costs requests nothing: what has no place in the queue is counted and dropped.
//!
//! *Invariant:* no span holds a secret, a query or a body. *Invariant:* headers for the collector are in no log, and no
//! error.

mod client;
mod encode;
mod export;
mod span;

pub use client::CollectorError;
pub use export::Exporter;
pub use span::{Recording, SpanEnd, SpanRequest};

use crate::clock::Clock;
use crate::metrics::Metrics;
use client::OtlpClient;
use http::HeaderMap;
use prometheus::IntCounter;
use span::RequestTrace;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Where spans go and how.
pub struct TelemetryOptions {
    /// Where the collector is.
    pub collector: Collector,
    /// What this gateway is called (`service.name`).
    pub service_name: String,
    /// This node (`service.instance.id`).
    pub node: String,
    /// More attributes of the resource.
    pub attributes: Vec<(String, String)>,
    /// Most requests whose spans wait to be sent.
    pub queue_requests: usize,
    /// Most requests in one message.
    pub batch_requests: usize,
    /// How long a request may wait for others to share a message with.
    pub batch_delay: Duration,
}

/// Where a collector is. Has no `Debug`: its headers are secrets.
pub struct Collector {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The same two as `Host` has them.
    pub authority: String,
    /// The path that traces are posted to.
    pub path: String,
    /// Whether it is spoken to inside TLS.
    pub tls: bool,
    /// Certificates (PEM) to trust instead of the machine's.
    pub ca: Option<Vec<u8>>,
    /// Sent along with each message.
    pub headers: HeaderMap,
    /// How long a message may take.
    pub timeout: Duration,
}

/// Where finished requests wait to be sent.
pub struct SpanQueue {
    to: mpsc::Sender<Box<RequestTrace>>,
    full: IntCounter,
    clock: Arc<dyn Clock>,
}

/// Starts sending, on `io`.
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
