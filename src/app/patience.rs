//! Waiting for a store that cannot be written at the moment.
//!
//! The process that is being replaced stores its last records while the new one starts, and SQLite has one writer at a time.

use std::fmt::Display;
use std::time::Duration;
use tokio::time::Instant;

/// Pause between two tries.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Until when a step of the start is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience(Instant);

impl Patience {
    /// For the time `within` from now on.
    pub(super) fn within(within: Duration) -> Self {
        Self(Instant::now() + within)
    }

    /// None, for steps that are completed later.
    pub(super) fn none() -> Self {
        Self::within(Duration::ZERO)
    }

    /// Calls `step` until it succeeds, fails for good, or the time is over.
    pub(super) async fn wait<T, E: Display>(
        self,
        is_transient: impl Fn(&E) -> bool,
        mut step: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut has_told = false;
        loop {
            match step().await {
                Err(error) if is_transient(&error) && Instant::now() < self.0 => {
                    if !has_told {
                        tracing::warn!(%error, "store busy during the start, retrying");
                    }
                    has_told = true;
                    tokio::time::sleep(TRY_EVERY).await;
                }
                done => return done,
            }
        }
    }
}
