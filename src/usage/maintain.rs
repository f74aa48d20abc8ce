//! Maintains the ledger once an hour: creates partitions in advance, and applies retention.
//!
//! Must not know: which store. While it is unreachable, the run is repeated until it succeeds.

use crate::clock::Clock;
use crate::store::{Ledger, MaintenanceReport};
use std::sync::Arc;
use std::time::Duration;

/// Interval of runs. Several nodes on one store at worst do the same work twice.
const EVERY: Duration = Duration::from_hours(1);
/// Delay after a failed run.
const AGAIN_AFTER: Duration = Duration::from_mins(1);

/// Runs for ever.
pub async fn maintain_ledger(ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>) {
    loop {
        let pause = match ledger.maintain(clock.now().wall).await {
            Ok(done) => {
                if done != MaintenanceReport::default() {
                    tracing::info!(
                        partitions_made = done.partitions_made,
                        partitions_dropped = done.partitions_dropped,
                        records_deleted = done.records_deleted,
                        rollups_deleted = done.rollups_deleted,
                        "usage maintenance done"
                    );
                }
                EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "the ledger could not be kept in shape; it is tried again in a minute");
                AGAIN_AFTER
            }
        };
        tokio::time::sleep(pause).await;
    }
}
