//! The processes that run on a store, as they report themselves. Plain data.

use super::Version;
use std::time::Duration;
use uuid::Uuid;

/// A sign of life of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Which process; made at its start.
    pub boot: Uuid,
    /// What the configuration calls it.
    pub name: Box<str>,
    /// Where its admin API listens.
    pub admin: Option<Box<str>>,
    /// The number of the newest change in force there.
    pub reached: Version,
}

/// One process that runs, or ran, on the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Which process.
    pub boot: Uuid,
    /// What its configuration calls it.
    pub name: Box<str>,
    /// Where its admin API listens.
    pub admin: Option<Box<str>>,
    /// The number of the newest change in force there.
    pub reached: Version,
    /// How long ago its last sign of life came, by the store's clock.
    pub seen_ago: Duration,
}

// === impl NodeRow ===

impl NodeRow {
    /// For how long after its last sign of life a process counts as running.
    pub const LIVE_WITHIN: Duration = Duration::from_secs(10);

    /// Whether it counts as running.
    pub fn is_live(&self) -> bool {
        self.seen_ago <= Self::LIVE_WITHIN
    }
}
