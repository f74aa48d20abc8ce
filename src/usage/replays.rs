//! Whether the ledger has what processes of this node that are gone have left in slots of their own.

use super::WriterProgress;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What tells when those are done who bring that to the ledger. There are as many as slots were found with something in them.
#[derive(Clone, Debug, Default)]
pub struct PendingReplays(Arc<Mutex<Vec<WriterProgress>>>);

impl PendingReplays {
    /// Adds what another writer tells.
    pub fn add(&self, flush: WriterProgress) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(flush);
    }

    /// Waits until every record that was left is stored. False: not `within` that time.
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
