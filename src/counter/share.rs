//! What a node may admit by itself while Redis cannot be asked: its share of each limit.
//!
//! Pure. Must not know: why Redis is gone, or how the number of nodes is known.
//!
//! *Invariant:* the shares of all nodes together are no more than what was left of the limit, if each knew the same. What
//! a node cannot know, others' spending since it last heard, it takes off: heard a moment ago, it was the pace they had; not
//! heard for longer, it is all that the rate of the key allows, until the ledger has caught up. The bound is what others
//! spend faster than they did in the moment before Redis goes, and what the ledger never tells because it is gone as well.

use super::lease::LIFE;
use crate::clock::Timestamp;
use crate::policy::key::Per;
use crate::policy::limit::{Limit, Limits, Rule, window_start};

/// The calendar windows, in the order in which spending is told.
pub const WINDOWS: [Per; 5] = [Per::Minute, Per::Hour, Per::Day, Per::Month, Per::Total];
/// The last of them.
const TOTAL: usize = 4;
const SECOND_NS: u64 = 1_000_000_000;
/// For how long a word from Redis says at what pace others go.
const FRESH_NS: u64 = 500_000_000;
/// [`LIFE`] in ns.
const LIFE_NS: u64 = LIFE.as_secs() * SECOND_NS + LIFE.subsec_nanos() as u64;

/// What was known of one subject's spending when Redis, or the ledger, was last heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// When, on the calendar.
    pub at: Timestamp,
    /// Until when that is all of it, in steady ns.
    pub at_ns: u64,
    /// Units spent in each of [`WINDOWS`] by all nodes.
    pub used: [u64; 5],
    /// Units spent in each by this node.
    pub own: [u64; 5],
    /// How many units per second others spent lately.
    pub others_per_s: u64,
}

/// The limits that one of `nodes` enforces by itself, counting its own spending, since it noticed at `noticed_ns` that Redis
/// is gone.
pub fn share(limits: &[Limit], nodes: u64, known: Option<&Known>, noticed_ns: u64, at: Timestamp) -> Limits {
    let rate = limits.iter().find_map(|limit| match limit.rule {
        Rule::Bucket { rate, burst } => Some((rate, burst)),
        _ => None,
    });
    let unseen = known.map_or(0, |k| k.unseen(nodes, rate, noticed_ns));
    let rule = |limit: &Limit| share_of(limit.rule, nodes.max(1), known, unseen, at);
    limits.iter().map(|limit| Limit { rule: rule(limit), ..*limit }).collect()
}

/// Windows of which so many units may be spent at this moment without anybody knowing.
pub fn less(mut limits: Limits, units: u64) -> Limits {
    for limit in &mut limits {
        if let Rule::Window { max, .. } = &mut limit.rule {
            *max = max.saturating_sub(units);
        }
    }
    limits
}

fn share_of(rule: Rule, nodes: u64, known: Option<&Known>, unseen: u64, at: Timestamp) -> Rule {
    match rule {
        Rule::Bucket { rate, burst } => Rule::Bucket { rate: rate / nodes, burst: burst / nodes },
        Rule::InFlight { max } => Rule::InFlight { max: max / nodes },
        Rule::Window { per, max } => {
            let even = max / nodes;
            let ceiling = known.and_then(|k| k.ceiling(per, max, nodes, unseen, at));
            Rule::Window { per, max: ceiling.map_or(even, |c| c.min(even)) }
        }
    }
}

// === impl Known ===

impl Known {
    /// What Redis told, with what was known `before` to see the others' pace by.
    pub fn new(at: Timestamp, at_ns: u64, used: [u64; 5], own: [u64; 5], before: Option<&Self>) -> Self {
        let others = |used: &[u64; 5], own: &[u64; 5]| used[TOTAL].saturating_sub(own[TOTAL]);
        // What the ledger told while Redis was gone is of no instant, and says nothing of a pace.
        let others_per_s = before.filter(|before| before.at_ns < at_ns).map_or(0, |before| {
            let passed_ns = at_ns.saturating_sub(before.at_ns);
            let spent = others(&used, &own).saturating_sub(others(&before.used, &before.own));
            // Leases come in lumps, one in each life of a unit or so.
            let pace = per_second(spent, passed_ns.max(LIFE_NS));
            let faded = before
                .others_per_s
                .saturating_sub(before.others_per_s.saturating_mul(passed_ns.min(SECOND_NS)) / SECOND_NS);
            pace.max(faded)
        });
        Self { at, at_ns, used, own, others_per_s }
    }

    /// With what the ledger tells: all that was spent until `until_ns`, and this node's own part of it if nothing was `known`.
    /// Own spending without Redis may be in it and be counted twice; never is any forgotten.
    pub fn raised(
        known: Option<&Self>,
        ledger: [u64; 5],
        own: [u64; 5],
        until_ns: u64,
        at: Timestamp,
    ) -> Self {
        let mut raised = Self {
            at,
            at_ns: until_ns.max(known.map_or(0, |k| k.at_ns)),
            used: ledger,
            own,
            others_per_s: known.map_or(0, |k| k.others_per_s),
        };
        for (window, per) in WINDOWS.into_iter().enumerate() {
            if let Some(known) = known.filter(|k| window_start(per, k.at) == window_start(per, at)) {
                raised.used[window] = ledger[window].max(known.used[window]);
                raised.own[window] = known.own[window];
            }
        }
        raised
    }

    /// Up to where this node's own spending may go; none when the window known of is over.
    fn ceiling(&self, per: Per, max: u64, nodes: u64, unseen: u64, at: Timestamp) -> Option<u64> {
        let window = WINDOWS.iter().position(|w| *w == per)?;
        if window_start(per, self.at) != window_start(per, at) {
            return None;
        }
        let left = max.saturating_sub(self.used[window]).saturating_sub(unseen);
        Some(self.own[window].saturating_add(left / nodes))
    }

    /// What others may have spent between the last word and the end of Redis, of a key that may spend `rate` and burst.
    fn unseen(&self, nodes: u64, rate: Option<(u64, u64)>, noticed_ns: u64) -> u64 {
        if nodes <= 1 || self.at_ns >= noticed_ns {
            return 0;
        }
        let for_ns = noticed_ns - self.at_ns;
        let paced = if self.others_per_s == 0 {
            0
        } else {
            in_time(self.others_per_s, for_ns.saturating_add(2 * LIFE_NS)).saturating_add(1)
        };
        match rate {
            // Where nobody else ever spent anything, nobody is taken to have begun just now.
            Some((rate, burst)) if for_ns > FRESH_NS && self.used[TOTAL] > self.own[TOTAL] => {
                paced.max(in_time(rate, for_ns).saturating_add(burst))
            }
            _ => paced,
        }
    }
}

fn in_time(per_s: u64, ns: u64) -> u64 {
    u64::try_from(u128::from(per_s) * u128::from(ns) / u128::from(SECOND_NS)).unwrap_or(u64::MAX)
}

fn per_second(units: u64, ns: u64) -> u64 {
    u64::try_from(u128::from(units) * u128::from(SECOND_NS) / u128::from(ns.max(1))).unwrap_or(u64::MAX)
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
                let known = Known::new(at, 0, [used; 5], [*own; 5], None);
                let Rule::Window { max, .. } = share(&window(max), nodes, Some(&known), 0, at)[0].rule else { unreachable!() };
                max.max(*own)
            }).sum();
            prop_assert!(after <= max, "{after} of {max}");
        }
    }

    /// Others go on at the pace they had until Redis is gone, or as fast as the rate allows where nothing was heard.
    #[test]
    fn what_others_may_have_spent_unseen_is_nobodys() {
        let at = Timestamp::from_secs(1_764_000_000);
        let rate = Limit { rule: Rule::Bucket { rate: 10, burst: 20 }, ..window(0)[0] };
        let max_of = |known: &Known, noticed_ns| {
            let limits = [rate, window(1_000)[0]];
            let Rule::Window { max, .. } = share(&limits, 2, Some(known), noticed_ns, at)[1].rule else {
                unreachable!()
            };
            max
        };
        let before = Known::new(at, 0, [500; 5], [0; 5], None);
        // Forty in a tenth of a second: 400 per second, and a tenth of a second of leases may be under way.
        let paced = Known::new(at, SECOND_NS / 10, [540; 5], [0; 5], Some(&before));
        assert_eq!(paced.others_per_s, 400);
        assert_eq!(max_of(&paced, SECOND_NS / 10), 230);
        assert_eq!(max_of(&paced, SECOND_NS / 5), (460 - 81) / 2);
        // Heard a minute ago: 600 and the burst may be gone. Settled by the ledger: nothing is.
        assert_eq!(max_of(&before, 60 * SECOND_NS), 0);
        assert_eq!(max_of(&before, 10 * SECOND_NS), (500 - 120) / 2);
        let back = Known::new(
            at,
            61 * SECOND_NS,
            [700; 5],
            [0; 5],
            Some(&Known::raised(Some(&before), [600; 5], [0; 5], u64::MAX, at)),
        );
        assert_eq!(back.others_per_s, 0, "an outage is no pace");
        let settled = Known::raised(Some(&before), [600; 5], [0; 5], u64::MAX, at);
        assert_eq!(max_of(&settled, 60 * SECOND_NS), 200);
    }

    #[test]
    fn a_limit_smaller_than_the_number_of_nodes_is_nobodys() {
        let shares = share(&window(2), 3, None, 0, Timestamp::from_secs(0));
        assert_eq!(shares[0].rule, Rule::of(Per::Day, 0));
    }

    #[test]
    fn what_was_known_of_yesterday_says_nothing_of_today() {
        let known = Known::new(Timestamp::from_secs(0), 0, [100; 5], [0; 5], None);
        let today = Timestamp::from_secs(86_400);
        assert_eq!(share(&window(100), 2, Some(&known), 0, today)[0].rule, Rule::of(Per::Day, 50));
        assert_eq!(
            share(&window(100), 2, Some(&known), 0, Timestamp::from_secs(1))[0].rule,
            Rule::of(Per::Day, 0)
        );
    }
}
