//! From a request to its row in the ledger.
//!
//! A [`PendingRecord`] writes the start of a request into the [`journal`] and, however the request ends, its end. One
//! [`LedgerWriter`] copies complete records to the store in batches. While the store is unreachable, records wait in the
//! journal, also across a crash. When the journal is full, they are dropped and counted, or requests are refused, by
//! config.
//!
//! Must not know: proxies, which store.
//!
//! *Invariant:* accepted = stored + in the journal + shed + set aside.
//! *Invariant:* usage flows outward only; no request reads it.

pub mod journal;
mod maintain;
mod prices;
mod record;
mod rejected;
mod replays;
mod slots;
mod totals;
mod writer;

pub use crate::model::outage::WhenFull;
pub use journal::{Journal, JournalFull};
pub use maintain::maintain_ledger;
pub use prices::PricesInForce;
pub use record::{PendingRecord, RecordStart};
pub use rejected::RejectedRecords;
pub use replays::PendingReplays;
pub use slots::{JournalSlot, JournalSlots, OtherSlots};
pub use totals::JournalTotals;
pub use writer::{LedgerWriter, LedgerWriterOptions, WriterProgress};

use crate::metrics::Metrics;
use crate::policy::prices::PriceTable;
use arc_swap::Guard;
use std::sync::Arc;

/// Records requests.
#[derive(Clone, Debug)]
pub struct Recorder {
    journal: Arc<Journal>,
    metrics: Arc<Metrics>,
    when_full: WhenFull,
    prices: Arc<PricesInForce>,
}

impl Recorder {
    /// A recorder into `journal`, without prices.
    pub fn new(journal: Arc<Journal>, when_full: WhenFull, metrics: Arc<Metrics>) -> Self {
        Self { journal, metrics, when_full, prices: Arc::default() }
    }

    /// Also computes what metered requests cost.
    #[must_use]
    pub fn pricing(self, prices: Arc<PricesInForce>) -> Self {
        Self { prices, ..self }
    }

    /// The prices in force now.
    pub fn prices(&self) -> Guard<Arc<PriceTable>> {
        self.prices.table()
    }

    /// Fails if requests must be refused now, because they could not be recorded.
    pub fn may_admit(&self) -> Result<(), JournalFull> {
        match self.when_full {
            WhenFull::Refuse if self.journal.is_full() => Err(JournalFull),
            WhenFull::Refuse | WhenFull::Shed => Ok(()),
        }
    }
}
