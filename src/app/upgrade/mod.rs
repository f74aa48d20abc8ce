//! Replaces the running binary by another one, without a moment in which nobody serves.
//!
//! ```text
//! old                                             new (a child of the old one, with the other end as standard input)
//! SIGUSR2: starts it, hands over its sockets ──▶  reads the config, opens the store, loads the keys, takes a free slot
//!                                            ◀──  loaded: no further step can fail
//! its counts ─────────────────────────────────▶  adds them
//! go ─────────────────────────────────────────▶  accepts, beside the old one
//! stops accepting, and drains                ◀──  serving
//! changes of its counts, ten times a second ───▶  adds them
//! exits                                      ──▶  stores records that the old one may have left in its slot
//! ```
//!
//! Until the new process serves, any failure ends it, and the old one continues. A socket is never closed: the kernel
//! queues connections until one of the two accepts them.

mod listener_fds;
mod message;
mod predecessor;
mod successor;

pub(super) use listener_fds::{ListenerFds, ListenerKind};
pub(super) use predecessor::LeavingPredecessor;
pub use predecessor::Predecessor;
pub use successor::{NotUpgraded, Successor};
pub(super) use successor::{Program, Upgrader};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How long a process that died counts as live among nodes, and a little more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15);

/// State shared by the processes of an upgrade.
#[derive(Debug)]
pub(super) struct UpgradeState {
    /// The sockets to hand over.
    pub(super) listener_fds: ListenerFds,
    pub(super) siblings: SiblingProcesses,
    /// Whether the previous process has exited.
    is_alone: AtomicBool,
    /// Whether a process has been started that may replace this one, and has not failed.
    is_upgrading: AtomicBool,
}

impl UpgradeState {
    /// The state of a process that replaces `predecessor`.
    pub(super) fn after(predecessor: Option<&mut Predecessor>) -> Arc<Self> {
        let is_alone = AtomicBool::new(predecessor.is_none());
        let siblings = SiblingProcesses(AtomicUsize::new(usize::from(predecessor.is_some())));
        let listener_fds = predecessor.map_or_else(ListenerFds::default, Predecessor::listener_fds);
        Arc::new(Self { listener_fds, siblings, is_alone, is_upgrading: AtomicBool::new(false) })
    }

    /// Whether another process is about to replace this one, or has done so. It read the config at its start, so a config
    /// that is applied only here would be lost.
    pub(super) fn is_upgrading(&self) -> bool {
        self.is_upgrading.load(Ordering::Acquire)
    }

    /// One of the other processes has exited; when this returns, the store has noticed.
    async fn on_sibling_gone(self: Arc<Self>) {
        tokio::time::sleep(FORGOTTEN_AFTER).await;
        self.siblings.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Number of other processes of this node, which exist during upgrades.
#[derive(Debug, Default)]
pub(super) struct SiblingProcesses(AtomicUsize);

impl SiblingProcesses {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}
