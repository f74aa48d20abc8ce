//! From the end of a request to its row in the ledger.
//!
//! A [`Recorder`] takes finished records through a bounded queue; one [`writer`] copies them to the store in batches.
//! Must not know: proxies, which store. When the store is gone records wait in the queue; when the queue is full they
//! are shed and counted, or requests are refused beforehand, by config.
//!
//! *Invariant:* accepted = stored + in the queue + shed. *Invariant:* usage flows outward only; no request reads it.

mod record;
mod upkeep;
mod writer;

pub use record::{Pending, Start};
pub use upkeep::keep_up;
pub use writer::{Writer, WriterOptions};

use crate::metrics::Metrics;
use crate::store::UsageRecord;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Where finished requests go.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<UsageRecord>,
    metrics: Arc<Metrics>,
    when_full: WhenFull,
}

/// What happens when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Serving goes on; what cannot be kept is counted.
    Shed,
    /// What cannot be recorded is not admitted.
    Refuse,
}

/// A kept place in the queue.
#[derive(Debug, Default)]
pub struct Place(Option<mpsc::OwnedPermit<UsageRecord>>);

/// The queue is full and the config wants requests refused then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

impl Recorder {
    /// A recorder, and the end of the queue that the writer reads.
    pub fn new(
        queue_records: usize,
        when_full: WhenFull,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::Receiver<UsageRecord>) {
        let (queue, records) = mpsc::channel(queue_records);
        (Self { queue, metrics, when_full }, records)
    }

    /// Keeps a place for the record of a request about to be admitted, if the config asks for that.
    pub fn keep_place(&self) -> Result<Place, QueueFull> {
        match self.when_full {
            WhenFull::Shed => Ok(Place(None)),
            WhenFull::Refuse => {
                self.queue.clone().try_reserve_owned().map(|p| Place(Some(p))).map_err(|_| QueueFull)
            }
        }
    }

    /// Takes a finished record.
    pub fn record(&self, record: UsageRecord, place: Place) {
        self.metrics.usage_accepted.inc();
        if let Some(permit) = place.0 {
            permit.send(record);
        } else if self.queue.try_send(record).is_err() {
            self.metrics.usage_shed.inc();
        }
    }
}
