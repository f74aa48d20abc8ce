//! The processes that use a store, as they report themselves. Plain data.

use super::Version;
use std::time::Duration;
use uuid::Uuid;

/// A heartbeat of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// The process; this id is made at its start.
    pub boot: Uuid,
    /// The configured name of the node.
    pub name: Box<str>,
    /// The address of its admin API.
    pub admin: Option<Box<str>>,
    /// The newest version applied there.
    pub reached: Version,
}

/// A process that uses, or used, the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// The process.
    pub boot: Uuid,
    /// The configured name of its node.
    pub name: Box<str>,
    /// The address of its admin API.
    pub admin: Option<Box<str>>,
    /// The newest version applied there.
    pub reached: Version,
    /// How long ago its last heartbeat was, by the store's clock.
    pub seen_ago: Duration,
}

// === impl NodeRow ===

impl NodeRow {
    /// How long after its last heartbeat a process counts as live.
    pub const LIVE_WITHIN: Duration = Duration::from_secs(10);

    /// Whether it counts as live.
    pub fn is_live(&self) -> bool {
        self.seen_ago <= Self::LIVE_WITHIN
    }
}
