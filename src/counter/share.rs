//! What a node may admit by itself while Redis cannot be asked: its share of each limit.
//!
//! Pure. Must not know: why Redis is gone, or how the number of nodes is known.
//!
//! *Invariant:* the shares of all nodes together are no more than what was left of the limit, if each knew the same. What
//! a node could not know (others' last units, a lease's life old at most, and what the ledger has not told yet) is the bound.

use crate::clock::Timestamp;
use crate::policy::key::Per;
use crate::policy::limit::{Limit, Limits, Rule, window_start};

/// The calendar windows, in the order in which spending is told.
pub const WINDOWS: [Per; 5] = [Per::Minute, Per::Hour, Per::Day, Per::Month, Per::Total];

/// What was known of one subject's spending when Redis, or the ledger, was last heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// When, on the calendar.
    pub at: Timestamp,
    /// Units spent in each of [`WINDOWS`] by all nodes.
    pub used: [u64; 5],
    /// Units spent in each by this node.
    pub own: [u64; 5],
}

/// The limits that one of `nodes` enforces by itself, counting its own spending.
pub fn share(limits: &[Limit], nodes: u64, known: Option<&Known>, at: Timestamp) -> Limits {
    limits
        .iter()
        .map(|limit| Limit { rule: share_of(limit.rule, nodes.max(1), known, at), ..*limit })
        .collect()
}

fn share_of(rule: Rule, nodes: u64, known: Option<&Known>, at: Timestamp) -> Rule {
    match rule {
        Rule::Bucket { rate, burst } => Rule::Bucket { rate: rate / nodes, burst: burst / nodes },
        Rule::InFlight { max } => Rule::InFlight { max: max / nodes },
        Rule::Window { per, max } => {
            let even = max / nodes;
            let max = known.and_then(|k| k.ceiling(per, max, nodes, at)).map_or(even, |c| c.min(even));
            Rule::Window { per, max }
        }
    }
}

// === impl Known ===

impl Known {
    /// Up to where this node's own spending may go; none when the window known of is over.
    fn ceiling(&self, per: Per, max: u64, nodes: u64, at: Timestamp) -> Option<u64> {
        let window = WINDOWS.iter().position(|w| *w == per)?;
        if window_start(per, self.at) != window_start(per, at) {
            return None;
        }
        let left = max.saturating_sub(self.used[window]);
        Some(self.own[window].saturating_add(left / nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key::Count;
    use crate::policy::limit::LimitName;
    use proptest::prelude::*;

    fn window(max: u64) -> [Limit; 1] {
        [Limit { name: LimitName::Daily, count: Count::Requests, rule: Rule::of(Per::Day, max) }]
    }

    proptest! {
        /// However unevenly the nodes had spent, together they never pass the limit from what they all know.
        #[test]
        fn shares_of_all_nodes_stay_within_the_limit(max in 0..2_000_u64, spent in prop::collection::vec(0..500_u64, 1..6)) {
            let at = Timestamp::from_secs(1_764_000_000);
            let used: u64 = spent.iter().sum();
            prop_assume!(used <= max);
            let nodes = spent.len() as u64;
            let after: u64 = spent.iter().map(|own| {
                let known = Known { at, used: [used; 5], own: [*own; 5] };
                let Rule::Window { max, .. } = share(&window(max), nodes, Some(&known), at)[0].rule else { unreachable!() };
                max.max(*own)
            }).sum();
            prop_assert!(after <= max, "{after} of {max}");
        }
    }

    #[test]
    fn a_limit_smaller_than_the_number_of_nodes_is_nobodys() {
        let shares = share(&window(2), 3, None, Timestamp::from_secs(0));
        assert_eq!(shares[0].rule, Rule::of(Per::Day, 0));
    }

    #[test]
    fn what_was_known_of_yesterday_says_nothing_of_today() {
        let known = Known { at: Timestamp::from_secs(0), used: [100; 5], own: [0; 5] };
        let today = Timestamp::from_secs(86_400);
        assert_eq!(share(&window(100), 2, Some(&known), today)[0].rule, Rule::of(Per::Day, 50));
        assert_eq!(
            share(&window(100), 2, Some(&known), Timestamp::from_secs(1))[0].rule,
            Rule::of(Per::Day, 0)
        );
    }
}
