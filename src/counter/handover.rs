//! Hands the counts of this process to the one that replaces it: first everything, then the changes.
//!
//! Counting goes on meanwhile and is not affected: each round reads what every subject has spent and sends the difference
//! to what was sent before, so that every charge and refund is sent exactly once.
//!
//! Rates are sent once, in the first round; they refill within a second anyway. Requests in flight are sent as they change,
//! and the other process drops them ([`RemoteInFlight`]) when this process has exited.
//!
//! Must not know: how the messages are sent.

use super::Counters;
use crate::clock::{Now, Timestamp};
use crate::model::calendar::Calendar;
use crate::model::key::Per;
use crate::model::usage::UsageSubject;
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::BucketDebt;
use std::collections::HashMap;

/// What one subject has spent in the windows that contain [`Self::at`]; after the first round, what has been added since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterDelta {
    /// The subject.
    pub subject: UsageSubject,
    /// The instant.
    pub at: Timestamp,
    /// The calendar of these windows.
    pub calendar: Calendar,
    /// Units in each of [`Per::WINDOWS`]; negative if more was refunded than charged.
    pub spent: [i64; Per::WINDOWS.len()],
    /// The debt of the buckets, in the first round.
    pub debt: Option<BucketDebt>,
    /// Change of the requests in flight.
    pub in_flight: i64,
}

/// What has been sent so far.
#[derive(Debug, Default)]
pub struct Handover {
    told: HashMap<UsageSubject, LastSent>,
}

/// What was sent for one subject.
#[derive(Clone, Copy, Debug)]
struct LastSent {
    windows: [Window; Per::WINDOWS.len()],
    spent: [u64; Per::WINDOWS.len()],
    in_flight: u64,
}

/// Requests in flight in the sending process, as reported so far.
#[derive(Debug, Default)]
pub struct RemoteInFlight(HashMap<UsageSubject, i64>);

impl Handover {
    /// What `counters` have counted and has not been sent. Nothing if they are shared with other nodes.
    pub fn deltas(&mut self, counters: &Counters, now: Now) -> Vec<CounterDelta> {
        let mut news = Vec::new();
        if counters.leases.is_some() {
            return news;
        }
        counters.local.each(|subject, state| {
            let spent = Per::WINDOWS.map(|per| state.used(per, now.wall));
            let (calendar, windows) = (state.calendar(), Window::all(state.calendar(), now.wall));
            let (before, in_flight) = (self.told.get(&subject), state.in_flight());
            let mut since = [0; Per::WINDOWS.len()];
            for (n, window) in windows.iter().enumerate() {
                // Nothing was sent for a window that has begun since.
                let told = before.filter(|b| b.windows[n].overlaps(window));
                since[n] = difference(spent[n], told.map_or(0, |b| b.spent[n]));
            }
            let debt = before.is_none().then(|| state.debt(now));
            let more = difference(in_flight, before.map_or(0, |b| b.in_flight));
            let is_nothing =
                since.iter().all(|n| *n == 0) && more == 0 && debt.is_none_or(BucketDebt::is_nothing);
            if !is_nothing {
                self.told.insert(subject.clone(), LastSent { windows, spent, in_flight });
                let at = now.wall;
                news.push(CounterDelta { subject, at, calendar, spent: since, debt, in_flight: more });
            }
        });
        news
    }
}

impl Counters {
    /// Adds what another process has counted.
    pub fn take_over(&self, told: &CounterDelta, elsewhere: &mut RemoteInFlight, now: Now) {
        if self.leases.is_none() {
            self.local.take_over(told, now);
            if told.in_flight != 0 {
                *elsewhere.0.entry(told.subject.clone()).or_default() += told.in_flight;
            }
        }
    }

    /// The other process has exited, so its requests in flight have ended.
    pub fn on_sibling_gone(&self, elsewhere: RemoteInFlight) {
        for (subject, in_flight) in elsewhere.0 {
            self.local.correct_in_flight(&subject, -in_flight);
        }
    }
}

fn difference(now: u64, before: u64) -> i64 {
    let size = i64::try_from(now.abs_diff(before)).unwrap_or(i64::MAX);
    if now < before { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::super::Charge;
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::model::id::{KeyId, WorkspaceId};
    use crate::model::key::Count;
    use crate::policy::keys::limit::{Limit, LimitName, LimitRule, Limits};
    use proptest::prelude::*;
    use std::time::Duration;

    const RATE: LimitRule = LimitRule::Bucket { rate: 2, burst: 5 };

    fn limits(rules: &[LimitRule]) -> Limits {
        let limit = |(n, rule): (u8, &LimitRule)| Limit {
            name: LimitName::Key(n),
            count: Count::Requests,
            rule: *rule,
        };
        (0..).zip(rules).map(limit).collect()
    }

    fn used(counters: &Counters, subject: &UsageSubject, at: Timestamp) -> [u64; Per::WINDOWS.len()] {
        counters.local.used(subject, at)
    }

    #[test]
    fn a_bucket_is_as_empty_there_as_it_was_here() {
        let (here, there) = (Counters::default(), Counters::default());
        let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
        let workspace: WorkspaceId = "w".parse().expect("an id");
        let (bucket, none) = (limits(&[RATE]), Limits::new());
        let charge = Charge {
            key: KeyId::new(Timestamp::from_secs(1)),
            key_limits: &bucket,
            workspace: &workspace,
            workspace_limits: &none,
        };
        for _ in 0..4 {
            drop(here.charge(&charge, clock.now()).expect("the burst"));
        }
        // The steady clock of the other process has another origin.
        let other = ManualClock::at(clock.now().wall);
        other.advance(Duration::from_hours(7));
        let told = Handover::default().deltas(&here, clock.now());
        told.iter().for_each(|t| there.take_over(t, &mut RemoteInFlight::default(), other.now()));
        assert!(there.charge(&charge, other.now()).is_ok(), "one is left");
        assert!(there.charge(&charge, other.now()).is_err());
        other.advance(Duration::from_millis(500));
        assert!(there.charge(&charge, other.now()).is_ok(), "and then one each half second");
    }

    proptest! {
        #[test]
        fn whatever_is_charged_and_given_back_is_told_once(
            steps in prop::collection::vec((0_u8..3, 0_u8..6, 0_u64..3_000), 1..60)
        ) {
            let (here, there) = (Counters::default(), Counters::default());
            let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
            let workspace: WorkspaceId = "w".parse().expect("an id");
            let high = limits(&[LimitRule::of(Per::Total, 1_000_000)]);
            let keys: Vec<_> = (0..3).map(|n| KeyId::new(Timestamp::from_secs(n))).collect();
            let (mut handover, mut elsewhere, mut open) = (Handover::default(), RemoteInFlight::default(), Vec::new());
            let tell = |handover: &mut Handover, elsewhere: &mut RemoteInFlight| {
                let told = handover.deltas(&here, clock.now());
                told.iter().for_each(|told| there.take_over(told, elsewhere, clock.now()));
            };
            for (key, action, pass_s) in steps {
                let key = keys[usize::from(key)];
                let charge =
                    Charge { key, key_limits: &high, workspace: &workspace, workspace_limits: &high };
                match action {
                    0 | 1 => drop(here.charge(&charge, clock.now()).expect("far from its limit")),
                    2 => here.charge(&charge, clock.now()).expect("far from its limit").give_back(),
                    3 => open.push(here.charge(&charge, clock.now()).expect("far from its limit")),
                    4 => drop(open.pop()),
                    _ => tell(&mut handover, &mut elsewhere),
                }
                clock.advance(Duration::from_secs(pass_s));
            }
            tell(&mut handover, &mut elsewhere);
            let at = clock.now().wall;
            let subjects = keys.iter().map(|k| UsageSubject::Key(*k)).chain([UsageSubject::Workspace(workspace.clone())]);
            let subjects: Vec<_> = subjects.collect();
            for subject in &subjects {
                prop_assert_eq!(used(&here, subject, at), used(&there, subject, at), "{:?}", subject);
                prop_assert_eq!(here.local.in_flight(subject), there.local.in_flight(subject), "{:?}", subject);
            }
            prop_assert_eq!(handover.deltas(&here, clock.now()), vec![], "and nothing is told twice");
            there.on_sibling_gone(elsewhere);
            prop_assert!(subjects.iter().all(|subject| there.local.in_flight(subject) == 0));
        }
    }
}
