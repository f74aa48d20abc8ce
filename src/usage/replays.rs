//! Whether the ledger has everything that earlier processes of this node left in other slots.

use super::WriterProgress;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The progress of the writers that store these records: one per slot that was found with records.
#[derive(Clone, Debug, Default)]
pub struct PendingReplays(Arc<Mutex<Vec<WriterProgress>>>);

impl PendingReplays {
    /// Adds the progress of another writer.
    pub fn add(&self, flush: WriterProgress) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(flush);
    }

    /// Waits until every left record is stored. False: not `within` that time.
    pub async fn are_done(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for flush in all {
            if !flush.has_replayed(until.saturating_duration_since(Instant::now())).await {
                return false;
            }
        }
        true
    }
}
