//! Budgets under concurrency: the bound of the overshoot is reached and never passed.

use super::*;
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::model::key::Measure;
use crate::policy::keys::limit::{LimitName, LimitRule};
use proptest::prelude::*;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

const NOW: Timestamp = Timestamp::from_secs(1_764_000_000);
const MAX: u64 = 10_000;

struct Subject {
    key: KeyId,
    workspace: WorkspaceId,
    end_user: EndUserId,
    limits: Limits,
    none: Limits,
}

impl Subject {
    /// The key, its workspace and its end user have the same limit.
    fn new(count: Measure, per: Per, max: u64) -> Self {
        let limit = Limit { name: LimitName::Key(0), count, rule: LimitRule::of(per, max) };
        Self {
            key: KeyId::new(NOW),
            workspace: "w".parse().expect("an id"),
            end_user: EndUserId::new(NOW),
            limits: [limit].into_iter().collect(),
            none: Limits::new(),
        }
    }

    fn charge(&self, tokens: u64) -> Charge<'_> {
        Charge {
            key: self.key,
            key_limits: &self.none,
            workspace: &self.workspace,
            workspace_limits: &self.limits,
            end_user: Some((self.end_user, &self.limits)),
            amounts: Amounts::REQUEST.with(Measure::Tokens, tokens),
        }
    }

    fn subjects(&self) -> [UsageSubject; 3] {
        [
            UsageSubject::Key(self.key),
            UsageSubject::Workspace(self.workspace.clone()),
            UsageSubject::EndUser(self.workspace.clone(), self.end_user),
        ]
    }
}

fn tokens(units: u64) -> Amounts {
    Amounts::default().with(Measure::Tokens, units)
}

/// What is used and held of tokens in all.
fn total(counters: &Counters, subject: &UsageSubject) -> (u64, u64) {
    let count = counters.local.metered(subject, NOW)[Per::WINDOWS.len() - 1];
    (count.used[0], count.held[0])
}

#[test]
fn the_overshoot_reaches_what_requests_in_flight_use_beyond_their_holds() {
    const THREADS: u64 = 8;
    const BEYOND: u64 = 7;
    let (counters, clock) = (Counters::default(), ManualClock::at(NOW));
    let subject = Subject::new(Measure::Tokens, Per::Total, MAX);
    let (all_hold, passed) = (Barrier::new(8), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let hold = MAX / THREADS;
                let mut charged = counters.charge(&subject.charge(hold), clock.now()).expect("its share");
                all_hold.wait();
                let refusal = counters.charge(&subject.charge(1), clock.now()).expect_err("all is held");
                assert_eq!(refusal.left.iter().map(|(_, left)| left.units).min(), Some(0));
                all_hold.wait();
                let more = charged.take_hold().expect("a hold").settle(&tokens(hold + BEYOND));
                passed.fetch_add(more[0], Ordering::Relaxed);
            });
        }
    });
    for subject in subject.subjects() {
        assert_eq!(total(&counters, &subject), (MAX + THREADS * BEYOND, 0), "{subject:?}");
    }
    assert_eq!(passed.into_inner(), THREADS * BEYOND, "each unit beyond the limit is told once");
    assert!(counters.charge(&subject.charge(1), clock.now()).is_err());
}

#[test]
fn many_threads_never_pass_a_budget_when_they_hold_enough_and_leave_no_hold() {
    let (counters, clock) = (Counters::default(), ManualClock::at(NOW));
    let subject = Subject::new(Measure::Tokens, Per::Month, MAX);
    let used = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (counters, clock, subject, used) = (&counters, &clock, &subject, &used);
            scope.spawn(move || {
                for n in 0..2_000 {
                    let hold = 1 + (n * 37 + thread * 11) % 50;
                    let Ok(mut charged) = counters.charge(&subject.charge(hold), clock.now()) else {
                        continue;
                    };
                    match n % 4 {
                        0 => charged.give_back(),
                        1 => drop(charged),
                        _ => {
                            let hold_of = charged.take_hold().expect("a hold");
                            drop(charged);
                            let actual = hold - n % hold;
                            assert_eq!(hold_of.settle(&tokens(actual)), MeteredUnits::default());
                            used.fetch_add(actual, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let used = used.into_inner();
    assert!((MAX - 50..=MAX).contains(&used), "{used}");
    for subject in subject.subjects() {
        assert_eq!(total(&counters, &subject), (used, 0), "{subject:?}");
        assert_eq!(counters.local.in_flight(&subject), 0);
    }
}

proptest! {
    /// After an admission everything used and held fits; after that, a limit is passed only by what requests that were in
    /// flight then use beyond their holds.
    #[test]
    fn the_overshoot_is_bounded(
        steps in prop::collection::vec((any::<bool>(), 1..400_u64, 0..600_u64, 0..40_u64), 1..200),
        per in prop::sample::select(&[Per::Minute, Per::Day, Per::Total][..]),
    ) {
        const MAX: u64 = 1_000;
        let (counters, clock) = (Counters::default(), ManualClock::at(NOW));
        let subject = Subject::new(Measure::Tokens, per, MAX);
        let n = per.window_index().expect("a window");
        let of_workspace = UsageSubject::Workspace(subject.workspace.clone());
        let (mut open, mut beyond) = (Vec::new(), 0);
        for (is_charge, hold, actual, pass_s) in steps {
            if is_charge || open.is_empty() {
                let charged = counters.charge(&subject.charge(hold), clock.now());
                let count = counters.local.metered(&of_workspace, clock.now().wall)[n];
                match charged {
                    Ok(charged) => {
                        prop_assert!(count.used[0] + count.held[0] <= MAX);
                        open.push((charged, hold));
                        beyond = 0;
                    }
                    Err(_) => prop_assert!(count.used[0] + count.held[0] + hold > MAX),
                }
            } else {
                let (mut charged, hold) = open.swap_remove(usize::try_from(actual).expect("small") % open.len());
                if let Some(held) = charged.take_hold() {
                    held.settle(&tokens(actual));
                    beyond += actual.saturating_sub(hold);
                }
            }
            let count = counters.local.metered(&of_workspace, clock.now().wall)[n];
            prop_assert!(count.used[0] <= MAX + beyond, "{count:?} {beyond}");
            clock.advance(std::time::Duration::from_secs(pass_s));
        }
        drop(open);
        let held = |subject: &UsageSubject| counters.local.metered(subject, clock.now().wall).map(|count| count.held);
        for subject in subject.subjects() {
            prop_assert_eq!(held(&subject), [MeteredUnits::default(); Per::WINDOWS.len()]);
        }
    }
}

/// A hold finds its window, however the calendar has moved it since.
#[test]
fn a_hold_is_settled_in_its_window_under_another_calendar() {
    let (counters, clock) = (Counters::default(), ManualClock::at(NOW));
    let mut subject = Subject::new(Measure::Tokens, Per::Day, MAX);
    let mut charged = counters.charge(&subject.charge(100), clock.now()).expect("room");
    // Under this calendar the day began after the charge.
    let zone = crate::model::calendar::zone("Asia/Shanghai").expect("a zone");
    let begun = crate::policy::keys::calendar::Window::of(Per::Day, Calendar { zone, ..Calendar::UTC }, NOW);
    clock.set_wall(begun.end);
    let calendar = Calendar { zone, ..Calendar::UTC };
    subject.limits = subject.limits.clone().in_calendar(calendar);
    let other = counters.charge(&subject.charge(1), clock.now()).expect("room");
    drop(other);
    charged.take_hold().expect("a hold").settle(&tokens(60));
    let of_workspace = UsageSubject::Workspace(subject.workspace.clone());
    let counts = counters.local.metered(&of_workspace, clock.now().wall);
    assert!(counts.iter().all(|count| count.held == MeteredUnits::default()), "{counts:?}");
    assert_eq!(counts[Per::WINDOWS.len() - 1].used[0], 60);
}
