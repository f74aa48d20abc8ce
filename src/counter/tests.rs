//! Charging in this process: all limits or none, under concurrency.

use super::*;
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::model::key::{Measure, Per};
use crate::model::usage::UsageSubject;
use crate::policy::keys::limit::{CounterState, LimitName, LimitRule, Mark, RetryAfter};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn limits(rules: &[(LimitName, LimitRule)]) -> Limits {
    rules.iter().map(|(name, rule)| Limit { name: *name, count: Measure::Requests, rule: *rule }).collect()
}

struct Subject {
    key: KeyId,
    workspace: WorkspaceId,
    key_limits: Limits,
    workspace_limits: Limits,
}

impl Subject {
    fn new(key_limits: Limits, workspace_limits: Limits) -> Self {
        let key = KeyId::new(Timestamp::from_secs(1));
        Self { key, workspace: "w".parse().expect("an id"), key_limits, workspace_limits }
    }

    fn charge(&self) -> Charge<'_> {
        Charge {
            key: self.key,
            key_limits: &self.key_limits,
            workspace: &self.workspace,
            workspace_limits: &self.workspace_limits,
            end_user: None,
            amounts: Amounts::REQUEST,
        }
    }
}

fn clock() -> ManualClock {
    ManualClock::at(Timestamp::from_secs(1_764_000_000))
}

#[test]
fn many_threads_never_pass_a_limit_and_reach_it_exactly() {
    const THREADS: usize = 8;
    const EACH: usize = 2_000;
    for rule in [
        LimitRule::Bucket { rate: 1, burst: 700 },
        LimitRule::of(Per::Day, 700),
        LimitRule::of(Per::Total, 700),
    ] {
        let subject = Subject::new(limits(&[(LimitName::Key(0), rule)]), Limits::new());
        let (counters, clock, admitted) = (Counters::default(), clock(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        if counters.charge(&subject.charge(), clock.now()).is_ok() {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner(), 700, "{rule:?}");
    }
}

#[test]
fn no_more_are_in_flight_than_allowed_and_each_end_makes_room() {
    let subject =
        Subject::new(limits(&[(LimitName::Concurrency, LimitRule::InFlight { max: 2 })]), Limits::new());
    let (counters, clock) = (Counters::default(), clock());
    let first = counters.charge(&subject.charge(), clock.now()).expect("room");
    let second = counters.charge(&subject.charge(), clock.now()).expect("room");
    let refusal = counters.charge(&subject.charge(), clock.now()).expect_err("no room");
    assert_eq!(refusal.refused.retry, RetryAfter::Release);
    drop(first);
    let third = counters.charge(&subject.charge(), clock.now()).expect("room again");
    second.give_back();
    assert_eq!(third.left()[0].1.units, 0);
    assert!(counters.charge(&subject.charge(), clock.now()).is_ok());
}

#[test]
fn a_place_that_is_held_is_in_flight_and_nothing_else_is_charged() {
    let both = [
        (LimitName::Concurrency, LimitRule::InFlight { max: 1 }),
        (LimitName::Quota, LimitRule::of(Per::Total, 2)),
        (LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 1, burst: 2 }),
    ];
    let subject = Subject::new(limits(&both), Limits::new());
    let (counters, clock) = (Counters::default(), clock());
    let place = counters.hold(&subject.charge(), clock.now()).expect("room");
    let in_flight = |refusal: Box<Refusal>| refusal.refused.limit.name == LimitName::Concurrency;
    assert!(in_flight(counters.hold(&subject.charge(), clock.now()).expect_err("one place")));
    assert!(in_flight(counters.charge(&subject.charge(), clock.now()).expect_err("one place")));
    drop(place);
    for left in [1, 0] {
        let charged = counters.charge(&subject.charge(), clock.now()).expect("nothing was charged before");
        assert_eq!(charged.left()[1].1.units, left);
    }
    let spent = counters.hold(&subject.charge(), clock.now()).expect_err("both are spent");
    assert_eq!(spent.refused.limit.name, LimitName::Quota);
}

#[test]
fn a_workspace_counts_its_keys_together_and_a_refusal_costs_the_key_nothing() {
    let own = limits(&[(LimitName::Daily, LimitRule::of(Per::Day, 10))]);
    let shared = limits(&[(LimitName::Workspace(0), LimitRule::of(Per::Day, 3))]);
    let (a, b) = (Subject::new(own.clone(), shared.clone()), Subject::new(own, shared));
    let (counters, clock) = (Counters::default(), clock());
    for subject in [&a, &b, &a] {
        assert!(counters.charge(&subject.charge(), clock.now()).is_ok());
    }
    let refusal = counters.charge(&b.charge(), clock.now()).expect_err("the workspace's three are spent");
    assert_eq!(refusal.refused.limit.name, LimitName::Workspace(0));
    assert_eq!(refusal.left[0].1.units, 9, "the key's own day lost nothing");
}

#[test]
fn the_refusal_that_lasts_longest_is_told() {
    let both = [
        (LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 1, burst: 1 }),
        (LimitName::Daily, LimitRule::of(Per::Day, 1)),
    ];
    let subject =
        Subject::new(limits(&both), limits(&[(LimitName::Workspace(0), LimitRule::of(Per::Minute, 1))]));
    let (counters, clock) = (Counters::default(), clock());
    assert!(counters.charge(&subject.charge(), clock.now()).is_ok());
    let refusal = counters.charge(&subject.charge(), clock.now()).expect_err("all are spent");
    assert_eq!(refusal.refused.limit.name, LimitName::Daily);
}

#[test]
fn counting_continues_from_the_ledger() {
    let both =
        [(LimitName::Daily, LimitRule::of(Per::Day, 5)), (LimitName::Quota, LimitRule::of(Per::Total, 100))];
    let subject = Subject::new(limits(&both), Limits::new());
    let (counters, clock) = (Counters::default(), clock());
    let row =
        UsageTotals { used: [1, 2, 3, 3, 4, 99], ..UsageTotals::nothing(UsageSubject::Key(subject.key)) };
    counters.restore(&row, Calendar::UTC, clock.now().wall);
    assert!(counters.charge(&subject.charge(), clock.now()).is_ok());
    let refusal = counters.charge(&subject.charge(), clock.now()).expect_err("the hundred are spent");
    assert_eq!((refusal.refused.limit.name, refusal.refused.retry), (LimitName::Quota, RetryAfter::Never));
}

proptest! {
    /// The counters agree with the rule, charge by charge, for two keys of one workspace.
    #[test]
    fn counters_agree_with_the_rule(acts in prop::collection::vec((0..2_usize, 0..4_u8, 0..400_u64), 1..120)) {
        let own = limits(&[
            (LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 5, burst: 3 }),
            (LimitName::Daily, LimitRule::of(Per::Day, 40)),
            (LimitName::Concurrency, LimitRule::InFlight { max: 4 }),
        ]);
        let shared = limits(&[(LimitName::Workspace(0), LimitRule::of(Per::Minute, 9))]);
        let subjects = [Subject::new(own.clone(), shared.clone()), Subject::new(own.clone(), shared.clone())];
        let (counters, clock) = (Counters::default(), clock());
        let mut model = [CounterState::default(), CounterState::default(), CounterState::default()];
        let mut held: Vec<(usize, Charged, Now, [Mark; 2])> = Vec::new();
        for (who, act, ms) in acts {
            clock.advance(Duration::from_millis(ms));
            let now = clock.now();
            match act {
                0 | 1 => {
                    let fits = model[who].check(&own, &Amounts::REQUEST, now).is_ok() && model[2].check(&shared, &Amounts::REQUEST, now).is_ok();
                    let charged = counters.charge(&subjects[who].charge(), now);
                    prop_assert_eq!(fits, charged.is_ok());
                    if let Ok(charged) = charged {
                        let marks = [model[who].take(&own, &Amounts::REQUEST, now), model[2].take(&shared, &Amounts::REQUEST, now)];
                        held.push((who, charged, now, marks));
                    }
                }
                2 => if let Some((who, charged, ..)) = held.pop() {
                    drop(charged);
                    model[who].release(1);
                    model[2].release(1);
                },
                _ => if let Some((who, charged, at, marks)) = held.pop() {
                    charged.give_back();
                    model[who].give_back(&own, 1, at, marks[0]);
                    model[2].give_back(&shared, 1, at, marks[1]);
                },
            }
        }
    }
}
