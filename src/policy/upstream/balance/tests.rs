//! The properties of the three balancing rules.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn candidates(weights: &[u16]) -> Vec<Candidate> {
    let named = |(n, weight): (usize, &u16)| Candidate { weight: *weight, identity: hash(&n.to_le_bytes()) };
    weights.iter().enumerate().map(named).collect()
}

fn weights() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(1..=WEIGHT_MAX, 1..12)
}

#[test]
fn heavy_candidates_take_turns_with_light_ones() {
    let balance = Balancer::new(candidates(&[5, 1, 1]));
    let turns: Vec<_> = (0..14).filter_map(|turn| balance.round_robin(turn, |_| true)).collect();
    assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    let equal = Balancer::new(candidates(&[7, 7]));
    assert_eq!((0..4).filter_map(|turn| equal.round_robin(turn, |_| true)).collect::<Vec<_>>(), [0, 1, 0, 1]);
}

#[test]
fn no_server_is_picked_where_none_is_usable() {
    for balance in [Balancer::default(), Balancer::new(candidates(&[1, 2]))] {
        assert_eq!(balance.round_robin(3, |_| false), None);
        assert_eq!(balance.least_loaded(3, |_| 0, |_| false), None);
        assert_eq!(balance.rendezvous(3, 125, |_| 0, |_| false), None);
    }
}

#[test]
fn the_strategies_read_back() {
    for text in ["round-robin", "least-connections", "hash:key", "hash:end-user", "hash:header:x-session"] {
        let strategy: Balancing = text.parse().expect("a strategy");
        assert_eq!(strategy.to_string(), text);
    }
    for text in ["", "hash", "hash:header:", "hash:header:a b", "random"] {
        assert!(text.parse::<Balancing>().is_err(), "{text}");
    }
}

#[test]
fn a_hash_never_changes() {
    // Other nodes and later versions must compute the same values.
    assert_eq!(hash(b""), 0xc381_7c01_6ba4_ff30);
    assert_eq!(hash(b"10.0.0.1:9000"), 0x3f8c_841e_2f7d_79a8);
    assert_ne!(hash(b"10.0.0.1:9000"), hash(b"10.0.0.2:9000"));
}

#[test]
fn names_spread_by_weight() {
    let weights = [1, 2, 5, 8];
    let balance = Balancer::new(candidates(&weights));
    let mut got = [0_u32; 4];
    for name in 0..40_000_u64 {
        got[balance.rendezvous(mix(name), 0, |_| 0, |_| true).expect("somebody")] += 1;
    }
    for (n, weight) in weights.into_iter().enumerate() {
        let fair = 40_000 * u32::from(weight) / 16;
        // Five standard deviations of a binomial of this size are below 500.
        assert!(got[n].abs_diff(fair) < 500, "{n}: {got:?}");
    }
}

#[test]
fn weights_count_where_little_is_going_on() {
    for weights in [&[2, 1][..], &[3, 2, 1], &[1, 1, 1], &[5, 1]] {
        let balance = Balancer::new(candidates(weights));
        let sum: u16 = weights.iter().sum();
        let mut got = vec![0_u32; weights.len()];
        for n in 0..12_000_u64 {
            got[balance.least_loaded(mix(n), |_| 0, |_| true).expect("somebody")] += 1;
        }
        for (weight, got) in weights.iter().zip(&got) {
            let share = 12_000 * u32::from(*weight) / u32::from(sum);
            assert!(got.abs_diff(share) < 400, "{weights:?}: {got} instead of {share}");
        }
    }
}

#[test]
fn the_less_busy_of_two_evens_out_the_load() {
    let balance = Balancer::new(candidates(&[1, 1, 2]));
    let mut busy = [0_u64; 3];
    for n in 0..4_000_u64 {
        let chosen = balance.least_loaded(mix(n), |c| busy[c], |_| true).expect("somebody");
        busy[chosen] += 1;
    }
    assert!(busy[0].abs_diff(1_000) < 60 && busy[1].abs_diff(1_000) < 60, "{busy:?}");
    // A server that does not respond gets no further requests.
    let slow = |c: usize| if c == 0 { 1_000 } else { 0 };
    let chosen: Vec<_> = (0..100).filter_map(|n| balance.least_loaded(mix(n), slow, |_| true)).collect();
    assert!(
        chosen.iter().filter(|c| **c == 0).count() <= 1,
        "only where both draws were the same: {chosen:?}"
    );
}

proptest! {
    #[test]
    fn a_round_gives_every_candidate_its_share_and_never_two_rounds_at_once(weights in weights(), from in 0_usize..1000) {
        let balance = Balancer::new(candidates(&weights));
        let turns = balance.round.len();
        let mut count = BTreeMap::new();
        for n in 0..turns {
            let chosen = balance.round_robin(from + n, |_| true).expect("somebody");
            *count.entry(chosen).or_insert(0_usize) += 1;
        }
        let sum: usize = weights.iter().map(|w| usize::from(*w)).sum();
        for (n, weight) in weights.iter().enumerate() {
            prop_assert_eq!(count.get(&n).copied().unwrap_or(0) * sum, usize::from(*weight) * turns);
        }
    }

    #[test]
    fn turns_are_spread_over_the_round(weights in weights()) {
        // After any number of turns no candidate is a whole turn or more ahead of its share.
        let balance = Balancer::new(candidates(&weights));
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let mut got = vec![0.0; weights.len()];
        for (n, turn) in balance.round.iter().enumerate() {
            got[usize::from(*turn)] += 1.0;
            #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
            let so_far = (n + 1) as f64;
            for (g, w) in got.iter().zip(&weights) {
                let fair = so_far * f64::from(*w) / sum;
                let ahead: f64 = g - fair;
                #[expect(clippy::cast_precision_loss, reason = "a dozen")]
                let others = weights.len() as f64;
                prop_assert!(ahead.abs() < others, "{g} of {fair}");
            }
        }
    }

    #[test]
    fn every_picked_server_is_usable(weights in weights(), mask: u16, random: u64, percent in 0_u32..300) {
        let balance = Balancer::new(candidates(&weights));
        let usable = |n: usize| mask & (1 << n) != 0;
        let anybody = (0..weights.len()).any(usable);
        let busy = |n: usize| mix(n as u64) % 50;
        for chosen in [
            balance.round_robin(usize::try_from(random >> 1).unwrap_or(0), usable),
            balance.least_loaded(random, busy, usable),
            balance.rendezvous(random, percent, busy, usable),
        ] {
            prop_assert_eq!(chosen.is_some(), anybody);
            prop_assert!(chosen.is_none_or(usable));
        }
    }

    #[test]
    fn only_the_names_of_whoever_leaves_move(weights in weights(), leaves in 0_usize..12, names in prop::collection::vec(any::<u64>(), 200)) {
        let all = candidates(&weights);
        let leaves = leaves % all.len();
        let full = Balancer::new(all.clone());
        let mut rest = all.clone();
        rest.remove(leaves);
        let without = Balancer::new(rest.clone());
        for name in names {
            let before = full.rendezvous(name, 0, |_| 0, |_| true).map(|n| all[n].identity);
            let after = without.rendezvous(name, 0, |_| 0, |_| true).map(|n| rest[n].identity);
            // Skipping a server for a while moves the same names to the same servers as removing it.
            let passed_over = full.rendezvous(name, 0, |_| 0, |n| n != leaves).map(|n| all[n].identity);
            prop_assert_eq!(passed_over, after);
            if before != Some(all[leaves].identity) {
                prop_assert_eq!(before, after, "a name that was not its own has moved");
            }
        }
    }

    #[test]
    fn a_bounded_load_is_never_passed(weights in weights(), names in prop::collection::vec(any::<u64>(), 1..300), percent in 100_u32..200) {
        let balance = Balancer::new(candidates(&weights));
        let mut busy = vec![0_u64; weights.len()];
        for (total, name) in names.into_iter().enumerate() {
            let chosen = balance.rendezvous(name, percent, |n| busy[n], |_| true).expect("somebody");
            busy[chosen] += 1;
            let bound = balance.bound(balance.candidates[chosen], percent, total as u64);
            prop_assert!(busy[chosen] <= bound, "{busy:?} against {bound}");
        }
    }
}
