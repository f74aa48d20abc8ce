//! Holds: requests take units of a measure that is known when they end, and are settled to less, as much or more.
//!
//! *Law:* what was settled and what live nodes hold together never exceed the limit, plus by how much more was used than
//! was held, plus what nodes that died had settled and not reported.
//! *Law:* when all requests have ended and ten seconds have passed, nothing is on hold, Redis has counted what was used, and
//! all the rest is granted.

use super::explore::{LIMIT, State, Step, Trouble, keeps_the_law, limits, size, wander};
use super::redis_side::Guard;
use super::*;

/// One step less than for requests, because each state has more that may follow.
fn size_of_holds() -> (usize, u64) {
    let (depth, ways) = size();
    (depth - 1, ways)
}

/// Ends every request of a run as it was held.
pub(super) fn assert_ends_at_nothing(mut state: State, troubles: &[Trouble], way: &[Step]) {
    state = state.after(Step::IsReached).unwrap_or(state);
    state.redis.lost = None;
    for n in 0..state.parties.len() {
        state = state.after(Step::Abandon(n)).unwrap_or(state);
        while let Some(hold) = state.parties[n].holds.first().map(TakenUnits::units) {
            state = state.after(Step::End(n, hold)).expect("it holds something");
        }
    }
    // The first call of a new epoch is granted nothing, units in hand expire, and records of nodes that died too.
    for us in [60_000, 60_000, 11_000_000] {
        while !state.pass(us) {
            (0..state.parties.len()).for_each(|n| state.report(n));
        }
    }
    let ask = LeaseRequest {
        limits: limits(Calendar::UTC),
        ledger: Some([0; WINDOWS.len()]),
        holds: Some([0; WINDOWS.len()]),
        ..plain_ask(&[], LIMIT, 0)
    };
    // A server that nobody has called since it took over grants nothing to the first.
    let first = LeaseRequest { leaves: true, need: 0, waiting: 0, ..ask.clone() };
    state.redis.call("first", 2, state.now().wall, &first);
    state.pass(1_100_000);
    let ScriptTotals::Grant(grant) = state.redis.call("second", 2, state.now().wall, &ask) else {
        panic!("not granted after {way:?}");
    };
    let day = Per::Day.window_index().expect("a window");
    let (used, granted) = (grant.used[day], grant.units);
    assert_eq!(grant.on_hold[day], granted, "nobody holds anything else after {way:?}");
    assert_eq!(granted, LIMIT.saturating_sub(used), "the rest is granted after {way:?}");
    let lost = state.admitted.saturating_sub(used);
    assert!(lost <= state.untold, "{used} counted of {} after {way:?}", state.admitted);
    // What a node has reported before the server became another one, and was not answered, is counted again.
    let may_be_above = [Trouble::Outage, Trouble::Forgets].iter().any(|trouble| troubles.contains(trouble));
    assert!(used <= state.admitted || may_be_above, "{used} of {} after {way:?}", state.admitted);
}

#[test]
fn two_nodes_hold_no_more_than_the_limit_whatever_is_late_or_lost() {
    keeps_the_law(&State::of(2, None, true), size_of_holds(), &[Trouble::Crashes]);
}

#[test]
fn two_nodes_hold_no_more_than_the_limit_while_redis_is_gone() {
    keeps_the_law(&State::of(2, None, true), size_of_holds(), &[Trouble::Outage, Trouble::Crashes]);
}

#[test]
fn two_nodes_hold_no_more_than_the_limit_when_redis_has_forgotten() {
    keeps_the_law(&State::of(2, None, true), size_of_holds(), &[Trouble::Forgets]);
}

#[test]
fn three_nodes_hold_no_more_than_the_limit() {
    let (depth, ways) = size_of_holds();
    keeps_the_law(&State::of(3, None, true), (depth - 1, ways / 2), &[Trouble::Outage, Trouble::Crashes]);
}

/// Each guard is needed for holds as well: without it, a run is found that passes the limit.
#[test]
fn without_any_guard_holds_pass_a_limit() {
    for (guard, troubles) in [
        (Guard::Holds, &[][..]),
        (Guard::OwnHolds, &[]),
        (Guard::Granted, &[]),
        (Guard::Renewal, &[]),
        (Guard::Promises, &[]),
        (Guard::Kept, &[]),
        (Guard::Debited, &[]),
    ] {
        let way = wander(&State::of(2, Some(guard), true), 20_000, 80, troubles);
        println!("without {guard:?}: {way:?}");
        assert!(way.is_some(), "nothing fails without {guard:?}");
    }
}
