//! Another binary in the place of the running one, without a moment in which nobody serves.
//!
//! ```text
//! old                                             new (a child of the old one, with the other end as standard input)
//! SIGUSR2: starts it, hands over its sockets ──▶  reads the config, opens the store, loads the keys, takes a free seat
//!                                            ◀──  loaded: nothing can fail any more
//! what it has counted ────────────────────────▶  counts it
//! go ─────────────────────────────────────────▶  accepts, beside the old one
//! stops accepting, and drains                ◀──  serving
//! what it has counted since, ten times a second ▶ counts it
//! ends                                       ──▶  brings to the ledger what the old one may have left in its seat
//! ```
//!
//! Until the new one serves, whatever goes wrong ends it, and the old one goes on. A socket is never closed: the kernel
//! keeps those who connect until one of the two accepts them.

mod doors;
mod message;
mod predecessor;
mod successor;

pub(super) use doors::{Door, Doors};
pub(super) use predecessor::Leaving;
pub use predecessor::Predecessor;
pub use successor::{NotUpgraded, Successor};
pub(super) use successor::{Program, Upgrader};

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether another process of this node is alive because one takes the other's place.
#[derive(Debug, Default)]
pub(super) struct Kin(AtomicBool);

impl Kin {
    pub(super) const fn new(is_there: bool) -> Self {
        Self(AtomicBool::new(is_there))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, is_there: bool) {
        self.0.store(is_there, Ordering::Release);
    }
}
