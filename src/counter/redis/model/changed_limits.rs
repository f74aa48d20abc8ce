//! Changed limits and refunds: the counters in memory and in Redis agree at every step.

use super::*;
use crate::model::amounts::Amounts;
use crate::policy::keys::limit::{CounterState, Mark, RetryAfter};

/// One step: the limit in force, µs before it, how many are charged, how many of these are refunded at once.
type Step = (u64, u64, u32, u64, u64);

fn memory(state: &mut CounterState, limits: &Limits, need: u64, now: Now) -> Vec<Mark> {
    let charge = |_| {
        state
            .check(limits, &Amounts::REQUEST, now)
            .is_ok()
            .then(|| state.take(limits, &Amounts::REQUEST, now))
    };
    (0..need).map_while(charge).collect()
}

/// Rates whose step is a whole number of Redis' ticks and of nanoseconds, so that both results are exactly equal.
fn any_step() -> impl Strategy<Value = Step> {
    let rate = proptest::sample::select(&[1_u64, 2, 5, 10, 100, 1_000][..]);
    (rate, 1..300_u64, 0..3_000_u32, 0..400_u64, 0..3_u64)
        .prop_map(|(rate, burst, ms, need, back)| (rate, burst, ms * 1_000, need, back))
}

#[test]
fn memory_and_redis_agree_while_limits_change() {
    always(&prop::collection::vec(any_step(), 1..40), |server, steps| {
        let mut world = World::new(server);
        let mut state = CounterState::default();
        let (mut seq, mut total) = (0, 0);
        for (rate, burst, us, need, back) in steps {
            world.now_us += i64::from(us);
            let limits: Limits = [limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate, burst })]
                .into_iter()
                .collect();
            let now = world.now();
            let marks = memory(&mut state, &limits, need, now);
            let here = marks.len() as u64;
            let mut ask = |need: u64, total: u64, returned: u64| {
                seq += 1;
                let windows =
                    [WindowReport { since: 1, spent: total, told: total, ..WindowReport::default() };
                        WINDOWS.len()];
                let returned = (returned, world.now_us);
                world.ask("a", 1, &LeaseRequest { seq, windows, returned, ..plain_ask(&limits, need, 0) })
            };
            let there = ask(need, total, 0);
            prop_assert_eq!(here, there.units, "{} of {} at {} per second", need, burst, rate);
            if need > 0 && there.units == 0 {
                let Err(refused) = state.check(&limits, &Amounts::REQUEST, now) else { unreachable!() };
                let (_, retry) = there.refused.expect("a reason");
                let (RetryAfter::Wait(a), RetryAfter::Wait(b)) = (refused.retry, retry) else {
                    unreachable!()
                };
                prop_assert!(a.abs_diff(b) <= Duration::from_micros(1), "{a:?} and {b:?}");
                prop_assert!(a <= Duration::from_nanos(1_000_000_000 / rate));
            }
            total += here;
            let back = back.min(here);
            for mark in marks.into_iter().take(usize::try_from(back).expect("few")) {
                state.give_back(&limits, 1, now, mark);
            }
            if back > 0 {
                total -= back;
                ask(0, total, back);
            }
        }
        Ok(())
    });
}
