//! The task that exports: in batches by number and time, with the retries that OTLP allows.
#![expect(
    clippy::vec_box,
    reason = "a recording is boxed once; from the queue to a batch only its pointer moves"
)]

use super::client::{ExportError, OtlpClient, Retry};
use super::span::RequestTrace;
use super::{TelemetryOptions, encode};
use crate::metrics::Metrics;
use bytes::Bytes;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus::IntCounter;
use prost::Message as _;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Most attempts per batch.
const ATTEMPTS: u32 = 5;
/// Delay between the first two; each further one is twice as long.
const WAIT_FIRST: Duration = Duration::from_millis(500);
/// Longest delay that a collector may ask for.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A running export task.
pub struct Exporter {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

/// The state of the task.
struct ExportTask {
    options: TelemetryOptions,
    resource: Resource,
    client: OtlpClient,
    from: mpsc::Receiver<Box<RequestTrace>>,
    stop: watch::Receiver<bool>,
    sent: IntCounter,
    rejected: IntCounter,
    failed: IntCounter,
    /// Whether the last export failed. Only changes of this are logged.
    is_failing: bool,
}

// === impl Exporter ===

impl Exporter {
    pub(super) fn start(
        options: TelemetryOptions,
        client: OtlpClient,
        from: mpsc::Receiver<Box<RequestTrace>>,
        metrics: &Metrics,
        io: &Handle,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let counter = |result| metrics.telemetry_spans.with_label_values(&[result]);
        let sending = ExportTask {
            resource: encode::resource(&options),
            options,
            client,
            from,
            stop: stopped,
            sent: counter("sent"),
            rejected: counter("rejected"),
            failed: counter("failed"),
            is_failing: false,
        };
        Self { task: io.spawn(sending.run()), stop }
    }

    /// Sends the queue once and ends; what takes longer than `within` is lost.
    pub async fn stop(self, within: Duration) {
        self.stop.send_replace(true);
        let Self { mut task, .. } = self;
        if timeout(within, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("OTLP export timed out at shutdown, last spans dropped");
        }
    }
}

// === impl ExportTask ===

impl ExportTask {
    async fn run(mut self) {
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            self.send(&mut batch).await;
        }
        // The rest of the queue is sent as long as that succeeds.
        let mut is_taken = true;
        loop {
            while batch.len() < self.options.batch_requests {
                let Ok(trace) = self.from.try_recv() else { break };
                batch.push(trace);
            }
            if batch.is_empty() {
                return;
            }
            if is_taken {
                is_taken = self.send(&mut batch).await;
            } else {
                self.failed.inc_by(batch.drain(..).map(|trace| trace.spans()).sum());
            }
        }
    }

    /// Fills `batch` until it is full or its first request has waited long enough. False: it is time to end.
    async fn gather(&mut self, batch: &mut Vec<Box<RequestTrace>>) -> bool {
        let mut due = None;
        loop {
            let room = self.options.batch_requests.saturating_sub(batch.len());
            if room == 0 {
                return true;
            }
            let waited = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return false,
                came = self.from.recv_many(batch, room) => match came {
                    0 => return false,
                    _ => due = due.or_else(|| Some(Instant::now() + self.options.batch_delay)),
                },
                () = waited => return true,
            }
        }
    }

    /// Sends `batch`, with retries, or drops it; it is empty afterwards. Returns whether it was accepted.
    async fn send(&mut self, batch: &mut Vec<Box<RequestTrace>>) -> bool {
        let spans = batch.iter().map(|trace| trace.spans()).sum();
        let message = Bytes::from(encode::message(&self.resource, batch).encode_to_vec());
        batch.clear();
        let mut wait = WAIT_FIRST;
        for attempt in 1..=ATTEMPTS {
            let ExportError { reason, again } = match self.client.send(message.clone()).await {
                Ok(rejected) => {
                    self.taken(spans, rejected);
                    return true;
                }
                Err(not_taken) => not_taken,
            };
            if !std::mem::replace(&mut self.is_failing, true) {
                tracing::warn!(reason, "OTLP export failed, spans dropped");
            }
            let asked = match again {
                Retry::Later if attempt < ATTEMPTS => wait,
                Retry::After(asked) if attempt < ATTEMPTS => asked.min(WAIT_MAX),
                _ => break,
            };
            tokio::select! {
                // No retries at the end.
                _ = self.stop.wait_for(|stop| *stop) => break,
                () = sleep(asked) => wait *= 2,
            }
        }
        self.failed.inc_by(spans);
        false
    }

    fn taken(&mut self, spans: u64, rejected: u64) {
        let rejected = rejected.min(spans);
        self.sent.inc_by(spans - rejected);
        self.rejected.inc_by(rejected);
        if std::mem::replace(&mut self.is_failing, false) {
            tracing::info!("OTLP export works again");
        }
    }
}
