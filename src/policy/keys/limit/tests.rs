//! The rule of each limit, by examples and properties.

use super::*;
use crate::clock::{Clock, ManualClock};
use proptest::prelude::*;

const DAY: u64 = 86_400;
const SECOND: Duration = Duration::from_secs(1);

fn limit(name: LimitName, rule: LimitRule) -> Limit {
    Limit { name, count: Measure::Requests, rule }
}

fn bucket(rate: u64, burst: u64) -> Limit {
    limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate, burst })
}

fn window(per: Per, max: u64) -> Limit {
    limit(LimitName::Key(0), LimitRule::of(per, max))
}

fn utc(limits: &[Limit]) -> Limits {
    limits.iter().copied().collect()
}

fn charge(state: &mut CounterState, limits: &[Limit], now: Now) -> Result<Mark, LimitReached> {
    charge_in(state, &utc(limits), now)
}

fn charge_in(state: &mut CounterState, limits: &Limits, now: Now) -> Result<Mark, LimitReached> {
    state.check(limits, &Amounts::REQUEST, now)?;
    Ok(state.take(limits, &Amounts::REQUEST, now))
}

fn any_limit() -> impl Strategy<Value = Limit> {
    let per =
        proptest::sample::select(&[Per::Minute, Per::Hour, Per::Day, Per::Week, Per::Month, Per::Total][..]);
    prop_oneof![
        (1..2_000_u64, 1..50_u64).prop_map(|(rate, burst)| bucket(rate, burst)),
        (per, 1..40_u64).prop_map(|(per, max)| window(per, max)),
    ]
}

/// A key has at most one rate.
fn any_limits() -> impl Strategy<Value = Vec<Limit>> {
    prop::collection::vec(any_limit(), 1..4).prop_map(|mut limits| {
        let mut rates = 0;
        limits.retain(|l| {
            rates += u8::from(matches!(l.rule, LimitRule::Bucket { .. }));
            rates <= 1 || !matches!(l.rule, LimitRule::Bucket { .. })
        });
        limits
    })
}

/// Near the end of a month, with odd microseconds.
fn any_start() -> impl Strategy<Value = Timestamp> {
    (0..40 * DAY, 0..1_000_000_u64).prop_map(|(s, us)| {
        Timestamp::from_secs(1_764_000_000).plus(Duration::from_micros(s * 1_000_000 + us))
    })
}

#[test]
fn a_calendar_that_jumps_ahead_and_back_forgets_nothing() {
    let limits = [window(Per::Day, 3)];
    let mut state = CounterState::default();
    let today = Timestamp::from_secs(1_764_000_000);
    let clock = ManualClock::at(today);
    for _ in 0..3 {
        assert!(charge(&mut state, &limits, clock.now()).is_ok());
    }
    clock.set_wall(today.plus(Duration::from_secs(365 * DAY)));
    assert!(charge(&mut state, &limits, clock.now()).is_ok(), "another day has its own three");
    clock.set_wall(today);
    assert!(charge(&mut state, &limits, clock.now()).is_err(), "today's three are still spent");
}

/// A late correction of a past window does not affect the current window.
#[test]
fn windows_of_the_past_do_not_displace_the_newest() {
    let limits = [window(Per::Minute, 5)];
    let mut state = CounterState::default();
    let now = ManualClock::at(Timestamp::from_secs(1_764_000_000)).now();
    let earlier = |minutes: i64| Now { wall: Timestamp::from_secs(now.wall.as_secs() - 60 * minutes), ..now };
    for _ in 0..5 {
        assert!(charge(&mut state, &limits, now).is_ok());
    }
    for minutes in [2, 1, 2, 1] {
        state.take(&utc(&limits), &Amounts::REQUEST, earlier(minutes));
        assert_eq!(state.used(Per::Minute, earlier(minutes).wall), 1);
        assert!(charge(&mut state, &limits, now).is_err(), "this minute's five are still spent");
    }
}

#[test]
fn the_bucket_does_not_follow_the_calendar() {
    let limits = [bucket(1, 1)];
    let mut state = CounterState::default();
    let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
    assert!(charge(&mut state, &limits, clock.now()).is_ok());
    clock.set_wall(Timestamp::from_secs(1_900_000_000));
    assert!(charge(&mut state, &limits, clock.now()).is_err());
    clock.advance(SECOND);
    assert!(charge(&mut state, &limits, clock.now()).is_ok());
}

fn admitted(state: &mut CounterState, limits: &[Limit], now: Now) -> usize {
    (0..1_000).take_while(|_| charge(state, limits, now).is_ok()).count()
}

#[test]
fn a_changed_rate_or_burst_acts_at_once() {
    let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
    let mut state = CounterState::default();
    assert_eq!(admitted(&mut state, &[bucket(1, 300)], clock.now()), 300);
    let raised = [bucket(100, 300)];
    let refused = state.check(&utc(&raised), &Amounts::REQUEST, clock.now()).expect_err("all 300 are spent");
    assert_eq!(refused.retry, RetryAfter::Wait(Duration::from_millis(10)));
    clock.advance(SECOND);
    assert_eq!(admitted(&mut state, &raised, clock.now()), 100);
    let lowered = state
        .check(&utc(&[bucket(1, 2)]), &Amounts::REQUEST, clock.now())
        .expect_err("nothing is left of two either");
    assert_eq!(lowered.retry, RetryAfter::Wait(SECOND));
    clock.advance(SECOND);
    assert_eq!(admitted(&mut state, &[bucket(1, 2)], clock.now()), 1);
}

#[test]
fn half_of_a_burst_is_half_of_it_at_any_rate() {
    let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
    let mut state = CounterState::default();
    for _ in 0..150 {
        charge(&mut state, &[bucket(1, 300)], clock.now()).expect("the burst");
    }
    for rate in [1_000, 1, 7] {
        assert_eq!(state.remaining(&bucket(rate, 300), Calendar::UTC, clock.now()).units, 150, "{rate}");
    }
    assert_eq!(admitted(&mut state, &[bucket(1_000, 300)], clock.now()), 150);
}

#[test]
fn refilled_units_are_not_returned_again() {
    let limits = [bucket(1, 7)];
    let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
    let mut state = CounterState::default();
    let early: Vec<(Now, Mark)> =
        (0..3).map(|_| (clock.now(), charge(&mut state, &limits, clock.now()).expect("the burst"))).collect();
    clock.advance(10 * SECOND);
    charge(&mut state, &limits, clock.now()).expect("it is full again");
    for (at, mark) in early {
        state.give_back(&utc(&limits), 1, at, mark);
    }
    assert_eq!(admitted(&mut state, &limits, clock.now()), 6, "seven with the one before");
}

/// Ten units are charged, three refill, and all ten are refunded.
#[test]
fn of_what_is_given_back_only_the_rest_is_refunded() {
    let limits = [bucket(1, 10)];
    let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
    let mut state = CounterState::default();
    let charged: Vec<(Now, Mark)> = (0..10)
        .map(|_| (clock.now(), charge(&mut state, &limits, clock.now()).expect("the burst")))
        .collect();
    clock.advance(3 * SECOND);
    for _ in 0..3 {
        charge(&mut state, &limits, clock.now()).expect("three have refilled");
    }
    for (at, mark) in charged {
        state.give_back(&utc(&limits), 1, at, mark);
    }
    assert_eq!(admitted(&mut state, &limits, clock.now()), 7);
}

#[test]
fn a_lowered_plan_rules_the_rate_and_the_burst() {
    let ceilings = crate::model::key::Ceilings {
        rate_limit: 100,
        rate_burst: Some(500),
        daily_request_limit: Some(9),
        quota_limit: None,
        concurrency_limit: None,
        limits: Box::default(),
    };
    let key = Key {
        id: crate::model::id::KeyId::new(Timestamp::default()),
        workspace_id: "w".parse().expect("an id"),
        kind: crate::model::key::KeyType::App,
        scopes: crate::model::scope::Scopes::default(),
        resource_id: "r".into(),
        ceilings,
        allowed_ips: Box::default(),
        is_active: true,
        expires_at: None,
        end_user: None,
    };
    let plan = |rate| Plan {
        id: "p".parse().expect("an id"),
        api_ops_rate_limit: rate,
        end_user_quota: 0,
        default_daily_request_limit: None,
        limits: Box::default(),
        calendar: Calendar::UTC,
    };
    let rate = |limits: &Limits| (limits[0].name, limits[0].rule);
    let by_key = (LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 100, burst: 500 });
    let by_plan = (LimitName::Rate { plan: true }, LimitRule::Bucket { rate: 10, burst: 10 });
    assert_eq!(rate(&key_limits(&key, &plan(100))), by_key);
    assert_eq!(rate(&key_limits(&key, &plan(10))), by_plan);
}

/// Threads read the clock before they take the lock, and may have to wait in between.
#[test]
fn a_request_that_had_to_wait_is_not_refused_because_a_later_one_came_first() {
    let (mut state, limits) = (CounterState::default(), [bucket(1_000, 2)]);
    let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
    let early = clock.now();
    clock.advance(Duration::from_secs(3));
    assert!(charge(&mut state, &limits, clock.now()).is_ok());
    assert!(charge(&mut state, &limits, early).is_ok());
    // Both are spent, whatever the order.
    for now in [early, clock.now()] {
        let refused = charge(&mut state, &limits, now).expect_err("both are spent");
        assert_eq!(refused.retry, RetryAfter::Wait(Duration::from_millis(1)));
    }
}

#[test]
fn counts_do_not_depend_on_the_configured_limits() {
    let mut state = CounterState::default();
    let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
    for _ in 0..5 {
        state.take(&utc(&[bucket(100, 100)]), &Amounts::REQUEST, clock.now());
    }
    // A limit that is set later counts what was spent before, and two limits on one window charge it once.
    let refused = state
        .check(&utc(&[window(Per::Day, 5)]), &Amounts::REQUEST, clock.now())
        .expect_err("five are spent");
    assert!(matches!(refused.retry, RetryAfter::Wait(_)));
    let both = [window(Per::Day, 6), limit(LimitName::Daily, LimitRule::of(Per::Day, 7))];
    assert!(charge(&mut state, &both, clock.now()).is_ok());
    assert_eq!(state.used(Per::Day, clock.now().wall), 6);
}

proptest! {
    /// Refused until exactly the announced time, then admitted.
    #[test]
    fn refused_for_the_announced_time_then_admitted(limits in any_limits(), start in any_start(),
                                        steps in prop::collection::vec(0..300_000_u64, 1..200)) {
        let clock = ManualClock::at(start);
        let mut state = CounterState::default();
        for step in steps {
            clock.advance(Duration::from_micros(step));
            let now = clock.now();
            let before = state.clone();
            let Err(refused) = charge(&mut state, &limits, now) else { continue };
            prop_assert_eq!(&before, &state, "a refusal changes nothing");
            let RetryAfter::Wait(wait) = refused.retry else { break };
            let just_before = wait.checked_sub(Duration::from_nanos(1)).expect("a wait is never zero");
            let at = |d: Duration| Now {
                // The calendar has microseconds, so waits are whole microseconds.
                wall: now.wall.plus(d),
                steady_ns: now.steady_ns + u64::try_from(d.as_nanos()).expect("fits"),
            };
            prop_assert!(state.check(&utc(&limits), &Amounts::REQUEST, at(just_before)).is_err(), "{:?} too early", refused);
            prop_assert!(state.check(&utc(&limits), &Amounts::REQUEST, at(wait)).is_ok(), "{:?} told too little", refused);
        }
    }

    /// In any interval a bucket admits at most its burst and what refilled.
    #[test]
    fn a_bucket_never_admits_more(rate in 1..3_000_u64, burst in 1..100_u64,
                                  steps in prop::collection::vec(0..20_000_u64, 1..400)) {
        let clock = ManualClock::at(Timestamp::from_secs(0));
        let mut state = CounterState::default();
        let limits = [bucket(rate, burst)];
        let start = clock.now().steady_ns;
        let mut admitted = 0_u64;
        for step in steps {
            clock.advance(Duration::from_micros(step));
            admitted += u64::from(charge(&mut state, &limits, clock.now()).is_ok());
            let refilled = u128::from(clock.now().steady_ns - start) * u128::from(rate) / 1_000_000_000;
            prop_assert!(u128::from(admitted) <= u128::from(burst) + refilled);
        }
    }

    /// No window ever holds more than its limit, wherever the calendar goes.
    #[test]
    fn a_window_never_admits_more(per in proptest::sample::select(&[Per::Minute, Per::Hour, Per::Day, Per::Week, Per::Month][..]),
                                  max in 1..20_u64, start in any_start(),
                                  steps in prop::collection::vec(0..90_000_u64, 1..400)) {
        let clock = ManualClock::at(start);
        let mut state = CounterState::default();
        let limits = [window(per, max)];
        let mut admitted = std::collections::HashMap::<_, u64>::new();
        for step in steps {
            clock.advance(Duration::from_secs(step) / 7);
            let now = clock.now();
            if charge(&mut state, &limits, now).is_ok() {
                *admitted.entry(Window::of(per, Calendar::UTC, now.wall).start).or_default() += 1;
            }
        }
        prop_assert!(admitted.values().all(|n| *n <= max), "{admitted:?}");
    }

    /// A refunded charge leaves no trace in any later result.
    #[test]
    fn given_back_is_as_if_never_charged(limits in any_limits(), start in any_start(),
                                         spent in 0..30_u64, waited in 0..5_000_u64) {
        let clock = ManualClock::at(start);
        let mut state = CounterState::default();
        for _ in 0..spent {
            if charge(&mut state, &limits, clock.now()).is_ok() {
                state.release(1);
            }
        }
        let untouched = state.clone();
        let charged_at = clock.now();
        let Ok(mark) = charge(&mut state, &limits, charged_at) else { return Ok(()) };
        clock.advance(Duration::from_millis(waited));
        state.give_back(&utc(&limits), 1, charged_at, mark);
        for l in &limits {
            prop_assert_eq!(state.remaining(l, Calendar::UTC, clock.now()).units, untouched.remaining(l, Calendar::UTC, clock.now()).units);
        }
    }

    /// However rate and burst change, nobody waits longer than the current ones require, and a refusal ends when it says.
    #[test]
    fn waits_follow_the_limits_in_force(
        steps in prop::collection::vec((1..2_000_u64, 1..300_u64, 0..3_000_u64, 0..400_usize), 1..60)
    ) {
        let clock = ManualClock::at(Timestamp::from_secs(0));
        let mut state = CounterState::default();
        for (rate, burst, ms, charges) in steps {
            let limits = [bucket(rate, burst)];
            clock.advance(Duration::from_millis(ms));
            let had = state.remaining(&limits[0], Calendar::UTC, clock.now()).units;
            let taken = (0..charges).take_while(|_| charge(&mut state, &limits, clock.now()).is_ok()).count() as u64;
            prop_assert_eq!(taken, had.min(charges as u64));
            if let Err(refused) = state.check(&utc(&limits), &Amounts::REQUEST, clock.now()) {
                let RetryAfter::Wait(wait) = refused.retry else { return Err(TestCaseError::fail("a rate refills")) };
                prop_assert!(wait <= Duration::from_nanos(1_000_000_000_u64.div_ceil(rate)), "{wait:?} at {rate}");
                clock.advance(wait);
                prop_assert!(state.check(&utc(&limits), &Amounts::REQUEST, clock.now()).is_ok());
            }
        }
    }

    /// Whatever is refunded, and whenever, a bucket never admits more than without these charges.
    #[test]
    fn a_refund_is_never_more_than_what_time_has_not_refilled(
        rate in 1..50_u64, burst in 1..12_u64, steps in prop::collection::vec((0..700_u64, 0..3_u8, 0..40_usize), 1..120)
    ) {
        let clock = ManualClock::at(Timestamp::from_secs(0));
        let mut state = CounterState::default();
        let limits = [bucket(rate, burst)];
        let mut charges: Vec<(Now, Mark)> = Vec::new();
        for (ms, act, which) in steps {
            clock.advance(Duration::from_millis(ms));
            if act == 0 && !charges.is_empty() {
                let (at, mark) = charges.remove(which % charges.len());
                state.give_back(&utc(&limits), 1, at, mark);
            } else if let Ok(mark) = charge(&mut state, &limits, clock.now()) {
                charges.push((clock.now(), mark));
                let mut replayed = CounterState::default();
                for (at, _) in &charges {
                    prop_assert!(charge(&mut replayed, &limits, *at).is_ok());
                }
            }
        }
    }

    /// The remaining units in the headers are what is then admitted.
    #[test]
    fn remaining_is_what_is_admitted(l in any_limit(), start in any_start(), spent in 0..30_u64) {
        let clock = ManualClock::at(start);
        let mut state = CounterState::default();
        for _ in 0..spent {
            _ = charge(&mut state, &[l], clock.now());
        }
        let left = state.remaining(&l, Calendar::UTC, clock.now()).units;
        let admitted = (0..100).take_while(|_| charge(&mut state, &[l], clock.now()).is_ok()).count();
        prop_assert_eq!(left, admitted as u64);
    }
}

fn shanghai() -> Calendar {
    Calendar { zone: crate::model::calendar::zone("Asia/Shanghai").expect("a zone"), ..Calendar::UTC }
}

const HOUR: Duration = Duration::from_hours(1);

/// 2026-06-10T10:00:00Z, 18:00 in Shanghai.
const WEDNESDAY: Timestamp = Timestamp::from_secs(1_781_085_600);

#[test]
fn a_window_that_is_running_goes_on_under_another_calendar() {
    let day = utc(&[window(Per::Day, 5)]);
    let moved = day.clone().in_calendar(shanghai());
    let clock = ManualClock::at(WEDNESDAY);
    let mut state = CounterState::default();
    for _ in 0..3 {
        charge_in(&mut state, &day, clock.now()).expect("of five");
    }
    for _ in 0..2 {
        charge_in(&mut state, &moved, clock.now()).expect("three are spent, and nothing is forgotten");
    }
    let refused = charge_in(&mut state, &moved, clock.now()).expect_err("nothing is counted less");
    assert_eq!(refused.retry, RetryAfter::Wait(6 * HOUR), "midnight in Shanghai is at 16:00");
    clock.advance(6 * HOUR);
    assert_eq!(state.remaining(&moved[0], moved.calendar, clock.now()).units, 5, "another day");
    charge_in(&mut state, &moved, clock.now()).expect("another day");
    clock.advance(8 * HOUR);
    assert_eq!(state.remaining(&moved[0], moved.calendar, clock.now()).units, 4, "midnight UTC is none");
    assert_eq!(state.remaining(&day[0], day.calendar, clock.now()).units, 4, "nor is it when UTC is back");
}

/// A subject not seen since the change of the calendar has used in the new window what the previous one counted.
#[test]
fn a_window_that_overlaps_the_last_one_counts_it() {
    let day = utc(&[window(Per::Day, 5)]);
    let moved = day.clone().in_calendar(shanghai());
    let clock = ManualClock::at(WEDNESDAY);
    let mut state = CounterState::default();
    charge_in(&mut state, &day, clock.now()).expect("of five");
    clock.advance(15 * HOUR);
    // 01:00 UTC on Thursday; the day of Shanghai began at 16:00 on Wednesday.
    assert_eq!(state.remaining(&moved[0], moved.calendar, clock.now()).units, 4);
    charge_in(&mut state, &moved, clock.now()).expect("of five");
    assert_eq!(state.remaining(&moved[0], moved.calendar, clock.now()).units, 3);
}

#[test]
fn a_clock_that_steps_back_over_the_end_of_a_window_finds_it_as_it_was() {
    let day = utc(&[window(Per::Day, 2)]).in_calendar(shanghai());
    let clock = ManualClock::at(WEDNESDAY.plus(6 * HOUR - SECOND));
    let mut state = CounterState::default();
    let spend = |state: &mut CounterState, clock: &ManualClock| charge_in(state, &day, clock.now()).is_ok();
    assert!(spend(&mut state, &clock) && spend(&mut state, &clock) && !spend(&mut state, &clock));
    clock.advance(2 * SECOND);
    assert!(spend(&mut state, &clock), "a new day");
    clock.set_wall(WEDNESDAY.plus(6 * HOUR - SECOND));
    assert!(!spend(&mut state, &clock), "the one before is spent");
    clock.set_wall(WEDNESDAY.plus(6 * HOUR + SECOND));
    assert!(
        spend(&mut state, &clock) && !spend(&mut state, &clock),
        "and of the new one nothing is forgotten"
    );
}
