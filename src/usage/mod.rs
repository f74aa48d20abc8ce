//! From a request to its row in the ledger.
//!
//! A [`PendingRecord`] writes the beginning of a request into the [`journal`] and, however it comes about, its end; one
//! [`LedgerWriter`] copies what is whole to the store in batches. Must not know: proxies, which store. When the store is gone
//! records wait in the journal, also over a crash; when the journal is full they are dropped and counted, or requests are refused
//! beforehand, by config.
//!
//! *Invariant:* accepted = stored + in the journal + shed + set aside. *Invariant:* usage flows outward only; no request
//! reads it.

pub mod journal;
mod maintain;
mod record;
mod rejected;
mod replays;
mod slots;
mod totals;
mod writer;

pub use journal::{Journal, JournalFull};
pub use maintain::maintain_ledger;
pub use record::{PendingRecord, RecordStart};
pub use rejected::RejectedRecords;
pub use replays::PendingReplays;
pub use slots::{JournalSlot, JournalSlots, OtherSlots};
pub use totals::JournalTotals;
pub use writer::{LedgerWriter, LedgerWriterOptions, WriterProgress};

use crate::metrics::Metrics;
use std::sync::Arc;

/// Where requests are recorded.
#[derive(Clone, Debug)]
pub struct Recorder {
    journal: Arc<Journal>,
    metrics: Arc<Metrics>,
    when_full: WhenFull,
}

/// What happens when the journal is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Serving goes on; what cannot be kept is counted.
    Shed,
    /// What cannot be recorded is not admitted.
    Refuse,
}

impl Recorder {
    /// A recorder into `journal`.
    pub const fn new(journal: Arc<Journal>, when_full: WhenFull, metrics: Arc<Metrics>) -> Self {
        Self { journal, metrics, when_full }
    }

    /// Fails if the config wants no request admitted now, because it could not be recorded.
    pub fn may_admit(&self) -> Result<(), JournalFull> {
        match self.when_full {
            WhenFull::Refuse if self.journal.is_full() => Err(JournalFull),
            WhenFull::Refuse | WhenFull::Shed => Ok(()),
        }
    }
}
