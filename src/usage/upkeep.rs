//! Keeping the ledger in shape, once an hour for as long as the gateway lives: partitions ahead of need, and what retention
//! says goes.
//!
//! Must not know: which store. When it is gone, the next round does what this one could not.

use crate::clock::Clock;
use crate::store::{Ledger, Upkeep};
use std::sync::Arc;
use std::time::Duration;

/// How often. Several nodes on one store do the same work twice at worst.
const EVERY: Duration = Duration::from_hours(1);

/// Runs for ever.
pub async fn keep_up(ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>) {
    loop {
        match ledger.upkeep(clock.now().wall).await {
            Ok(done) if done != Upkeep::default() => tracing::info!(?done, "the ledger was kept in shape"),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the ledger could not be kept in shape; it is tried again in an hour");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}
