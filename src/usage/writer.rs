//! One loop that copies records from the queue to the ledger, in batches, each until it is stored.

use crate::metrics::Metrics;
use crate::store::{Ledger, StoreError, UsageRecord};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// First wait after a failure; doubled each time up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// Records in a batch at most.
    pub batch_records: usize,
    /// How long a record waits for its batch to fill.
    pub batch_delay: Duration,
}

/// The writer of the ledger.
pub struct Writer {
    records: mpsc::Receiver<UsageRecord>,
    ledger: Arc<dyn Ledger>,
    metrics: Arc<Metrics>,
    options: WriterOptions,
    /// None while running; the instant after which nothing is tried again, once the gateway stops.
    deadline: watch::Receiver<Option<Instant>>,
}

impl Writer {
    /// A writer that, once `deadline` tells one, gives up at it.
    pub fn new(
        records: mpsc::Receiver<UsageRecord>,
        ledger: Arc<dyn Ledger>,
        metrics: Arc<Metrics>,
        options: WriterOptions,
        deadline: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self { records, ledger, metrics, options, deadline }
    }

    /// Writes until every recorder is gone and the queue is empty, or the deadline has passed.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(self.options.batch_records);
        while self.fill(&mut batch).await {
            if !self.store(&batch).await {
                self.shed_rest(batch.len());
                return;
            }
            batch.clear();
        }
    }

    /// Waits for a first record, then for the batch to fill or its delay to pass. False: there will be no more.
    async fn fill(&mut self, batch: &mut Vec<UsageRecord>) -> bool {
        if self.records.recv_many(batch, self.options.batch_records).await == 0 {
            return false;
        }
        let full = tokio::time::sleep(self.options.batch_delay);
        tokio::pin!(full);
        while batch.len() < self.options.batch_records {
            let room = self.options.batch_records - batch.len();
            tokio::select! {
                biased;
                more = self.records.recv_many(batch, room) => if more == 0 { break },
                () = &mut full => break,
            }
        }
        true
    }

    /// Tries until the batch is stored. False: the deadline came first.
    async fn store(&mut self, batch: &[UsageRecord]) -> bool {
        let mut wait = BACKOFF;
        loop {
            match self.ledger.append(batch).await {
                Ok(_) => {
                    self.metrics.usage_stored.inc_by(count(batch.len()));
                    return true;
                }
                Err(error) => self.report(&error, wait),
            }
            let deadline = *self.deadline.borrow();
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = self.deadline.changed() => {}
            }
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    fn report(&self, error: &StoreError, wait: Duration) {
        self.metrics.usage_store_failures.inc();
        if wait == BACKOFF {
            tracing::warn!(%error, "the ledger does not take usage records; they wait in the queue");
        }
    }

    /// Counts what will not be stored any more. A person has to know: this is usage that nobody will see.
    fn shed_rest(&mut self, in_hand: usize) {
        self.records.close();
        let mut lost = in_hand;
        while self.records.try_recv().is_ok() {
            lost += 1;
        }
        self.metrics.usage_shed.inc_by(count(lost));
        tracing::error!(lost, "usage records could not be stored before the gateway stopped");
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
