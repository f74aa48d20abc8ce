//! Another binary in the place of the running one, without a moment in which nobody serves.
//!
//! ```text
//! old                                             new (a child of the old one, with the other end as standard input)
//! SIGUSR2: starts it, hands over its sockets ──▶  reads the config, opens the store, loads the keys, takes a free slot
//!                                            ◀──  loaded: nothing can fail any more
//! what it has counted ────────────────────────▶  counts it
//! go ─────────────────────────────────────────▶  accepts, beside the old one
//! stops accepting, and drains                ◀──  serving
//! what it has counted since, ten times a second ▶ counts it
//! ends                                       ──▶  brings to the ledger what the old one may have left in its slot
//! ```
//!
//! Until the new one serves, whatever goes wrong ends it, and the old one goes on. A socket is never closed: the kernel
//! keeps those who connect until one of the two accepts them.

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

/// For how long a process that has gone without a word still counts as running among nodes, and a little more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15);

/// What processes that take each other's place share.
#[derive(Debug)]
pub(super) struct UpgradeState {
    /// The sockets that are handed on.
    pub(super) listener_fds: ListenerFds,
    pub(super) siblings: SiblingProcesses,
    /// Whether the process before this one has gone.
    is_alone: AtomicBool,
    /// Whether a process has been started that may take this one's place, and has not failed to.
    is_upgrading: AtomicBool,
}

impl UpgradeState {
    /// That of a process which takes the place of `predecessor`.
    pub(super) fn after(predecessor: Option<&mut Predecessor>) -> Arc<Self> {
        let is_alone = AtomicBool::new(predecessor.is_none());
        let siblings = SiblingProcesses(AtomicUsize::new(usize::from(predecessor.is_some())));
        let listener_fds = predecessor.map_or_else(ListenerFds::default, Predecessor::listener_fds);
        Arc::new(Self { listener_fds, siblings, is_alone, is_upgrading: AtomicBool::new(false) })
    }

    /// Whether another process is to serve in place of this one, or does already. It has read the config at its start, so
    /// that one which is put in force only here would be lost.
    pub(super) fn is_upgrading(&self) -> bool {
        self.is_upgrading.load(Ordering::Acquire)
    }

    /// One of the other processes has gone; the store will have noticed when this returns.
    async fn on_sibling_gone(self: Arc<Self>) {
        tokio::time::sleep(FORGOTTEN_AFTER).await;
        self.siblings.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How many other processes of this node run, because one takes the other's place.
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
