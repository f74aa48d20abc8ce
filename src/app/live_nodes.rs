//! The number of nodes that share new windows while Redis is unreachable: live ones, and those that may be live.
//!
//! A higher number is accepted at once, a lower one only after a while: after a crash of the database its table of nodes is
//! empty, and a node that considered itself the only one would admit a whole limit.
//!
//! Must not know: the store, or what is shared.

use crate::store::NodeRow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The accepted number of nodes.
#[derive(Clone, Debug)]
pub(super) struct LiveNodes(Arc<AtomicUsize>);

/// Processes the reports of the store.
#[derive(Debug)]
pub(super) struct LiveNodesTracker {
    live_nodes: LiveNodes,
    held_for: Duration,
    fewer: Option<PendingDecrease>,
}

/// All reports since then have been lower than the accepted number.
#[derive(Clone, Copy, Debug)]
struct PendingDecrease {
    since: Instant,
    most: usize,
}

impl Default for LiveNodes {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }
}

impl LiveNodes {
    /// The number, this node included.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A tracker for reports at intervals of `every`.
    pub(super) fn tracker(&self, every: Duration) -> LiveNodesTracker {
        // By then every live node has reported, also to a table that was just emptied.
        LiveNodesTracker { live_nodes: self.clone(), held_for: NodeRow::LIVE_WITHIN + every, fewer: None }
    }
}

impl LiveNodesTracker {
    /// The store reported `others` at that instant.
    pub(super) fn on_nodes(&mut self, others: usize, at: Instant) {
        let nodes = others + 1;
        let in_force = self.live_nodes.count();
        if nodes >= in_force {
            self.fewer = None;
            self.set(nodes);
            return;
        }
        let fewer = self.fewer.get_or_insert(PendingDecrease { since: at, most: nodes });
        fewer.most = fewer.most.max(nodes);
        let PendingDecrease { since, most } = *fewer;
        if at.duration_since(since) >= self.held_for {
            self.fewer = None;
            self.set(most);
        }
    }

    /// The store did not answer: nodes that were missing before may only have been unable to report.
    pub(super) fn on_no_answer(&mut self) {
        self.fewer = None;
    }

    fn set(&self, nodes: usize) {
        self.live_nodes.0.store(nodes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(5);

    /// The accepted number after each report, one every five seconds; none is a failed one.
    fn in_force(looks: &[Option<usize>]) -> Vec<usize> {
        let live_nodes = LiveNodes::default();
        let (mut seen, mut at) = (live_nodes.tracker(EVERY), Instant::now());
        let after = |look: &Option<usize>| {
            match look {
                Some(others) => seen.on_nodes(*others, at),
                None => seen.on_no_answer(),
            }
            at += EVERY;
            live_nodes.count()
        };
        looks.iter().map(after).collect()
    }

    #[test]
    fn more_counts_at_once_and_fewer_when_it_has_stayed_so() {
        let looks = [Some(2), Some(0), Some(0), Some(0), Some(0), Some(1)];
        assert_eq!(in_force(&looks), [3, 3, 3, 3, 1, 2]);
    }

    #[test]
    fn known_state_holds_while_the_store_is_unreachable() {
        let looks = [Some(2), Some(0), None, None, None, None, Some(0), Some(0), Some(0), Some(2), Some(0)];
        assert_eq!(in_force(&looks), [3; 11]);
    }

    #[test]
    fn it_falls_to_the_most_that_were_seen_meanwhile() {
        let looks = [Some(4), Some(0), Some(2), Some(1), Some(1), Some(1), Some(1), Some(1), Some(1)];
        assert_eq!(in_force(&looks), [5, 5, 5, 5, 3, 3, 3, 3, 2]);
    }
}
