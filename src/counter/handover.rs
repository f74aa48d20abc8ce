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
use crate::model::key::{Measure, Per};
use crate::model::usage::UsageSubject;
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::{BucketDebt, MeteredCount};
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
    /// What meters found out and what is held in each of [`Per::WINDOWS`], if there is anything.
    pub metered: Option<Box<[MeteredDelta; Per::WINDOWS.len()]>>,
    /// The debt of the buckets, in the first round.
    pub debt: Option<BucketDebt>,
    /// Change of the requests in flight.
    pub in_flight: i64,
}

/// The same in one window, of each of [`Measure::METERED`]: what was used, and what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MeteredDelta {
    /// Units that were used.
    pub used: [i64; Measure::METERED.len()],
    /// Units that requests in flight hold.
    pub held: [i64; Measure::METERED.len()],
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
    metered: [MeteredCount; Per::WINDOWS.len()],
    in_flight: u64,
}

/// Requests in flight in the sending process, as reported so far.
#[derive(Debug, Default)]
pub struct RemoteInFlight(HashMap<UsageSubject, RemoteRequests>);

/// The requests in flight of one subject.
#[derive(Clone, Copy, Debug, Default)]
struct RemoteRequests {
    count: i64,
    /// What they hold in each of [`Per::WINDOWS`] that contained `at`.
    held: [[i64; Measure::METERED.len()]; Per::WINDOWS.len()],
    at: Timestamp,
    calendar: Calendar,
}

impl Handover {
    /// What `counters` have counted and has not been sent. Nothing if they are shared with other nodes.
    pub fn deltas(&mut self, counters: &Counters, now: Now) -> Vec<CounterDelta> {
        let mut news = Vec::new();
        if counters.leases.is_some() {
            return news;
        }
        counters.local.each(|subject, state| {
            let spent = Per::WINDOWS.map(|per| state.used(per, now.wall));
            let metered = Per::WINDOWS.map(|per| state.metered(per, now.wall));
            let (calendar, windows) = (state.calendar(), Window::all(state.calendar(), now.wall));
            let (before, in_flight) = (self.told.get(&subject), state.in_flight());
            let mut since = [0; Per::WINDOWS.len()];
            let mut metered_since = [MeteredDelta::default(); Per::WINDOWS.len()];
            for (n, window) in windows.iter().enumerate() {
                // Nothing was sent for a window that has begun since.
                let told = before.filter(|b| b.windows[n].overlaps(window));
                since[n] = difference(spent[n], told.map_or(0, |b| b.spent[n]));
                metered_since[n] =
                    MeteredDelta::between(&metered[n], &told.map_or_else(Default::default, |b| b.metered[n]));
            }
            let is_metered = metered_since.iter().any(|delta| *delta != MeteredDelta::default());
            let debt = before.is_none().then(|| state.debt(now));
            let more = difference(in_flight, before.map_or(0, |b| b.in_flight));
            let is_nothing = since.iter().all(|n| *n == 0)
                && !is_metered
                && more == 0
                && debt.is_none_or(BucketDebt::is_nothing);
            if !is_nothing {
                self.told.insert(subject.clone(), LastSent { windows, spent, metered, in_flight });
                let metered = is_metered.then(|| Box::new(metered_since));
                let at = now.wall;
                news.push(CounterDelta {
                    subject,
                    at,
                    calendar,
                    spent: since,
                    metered,
                    debt,
                    in_flight: more,
                });
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
            if told.in_flight != 0 || told.metered.is_some() {
                elsewhere.0.entry(told.subject.clone()).or_default().add(told);
            }
        }
    }

    /// The other process has exited, so its requests in flight have ended.
    pub fn on_sibling_gone(&self, elsewhere: RemoteInFlight) {
        for (subject, requests) in elsewhere.0 {
            self.local.correct_in_flight(&subject, -requests.count);
            self.local.release_held(&subject, &requests.held, requests.at);
        }
    }
}

// === impl MeteredDelta, RemoteRequests ===

impl MeteredDelta {
    fn between(now: &MeteredCount, before: &MeteredCount) -> Self {
        let mut delta = Self::default();
        for n in 0..Measure::METERED.len() {
            delta.used[n] = difference(now.used[n], before.used[n]);
            delta.held[n] = difference(now.held[n], before.held[n]);
        }
        delta
    }
}

impl RemoteRequests {
    fn add(&mut self, told: &CounterDelta) {
        self.count += told.in_flight;
        let windows =
            Window::all(told.calendar, told.at).into_iter().zip(Window::all(self.calendar, self.at));
        for (n, (now, before)) in windows.enumerate() {
            if !now.overlaps(&before) {
                // The holds of a window that is over end with it.
                self.held[n] = Default::default();
            }
            let more = told.metered.as_ref().map_or_else(Default::default, |metered| metered[n].held);
            self.held[n].iter_mut().zip(more).for_each(|(held, more)| *held += more);
        }
        (self.at, self.calendar) = (told.at, told.calendar);
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
    use crate::model::amounts::Amounts;
    use crate::model::id::{EndUserId, KeyId, WorkspaceId};
    use crate::policy::keys::limit::{Limit, LimitName, LimitRule, Limits, MeteredUnits};
    use proptest::prelude::*;
    use std::time::Duration;

    const RATE: LimitRule = LimitRule::Bucket { rate: 2, burst: 5 };

    fn limits(rules: &[LimitRule]) -> Limits {
        let limit = |(n, rule): (u8, &LimitRule)| Limit {
            name: LimitName::Key(n),
            count: Measure::Requests,
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
            end_user: None,
            amounts: Amounts::REQUEST,
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
        fn charges_and_returns_are_reported_once(
            steps in prop::collection::vec((0_u8..3, 0_u8..6, 0_u64..3_000), 1..60)
        ) {
            let (here, there) = (Counters::default(), Counters::default());
            let clock = ManualClock::at(Timestamp::from_secs(1_764_000_000));
            let workspace: WorkspaceId = "w".parse().expect("an id");
            let high = limits(&[LimitRule::of(Per::Total, 1_000_000)]);
            let end_user = EndUserId::new(Timestamp::from_secs(1));
            let keys: Vec<_> = (0..3).map(|n| KeyId::new(Timestamp::from_secs(n))).collect();
            let (mut handover, mut elsewhere, mut open) = (Handover::default(), RemoteInFlight::default(), Vec::new());
            let tell = |handover: &mut Handover, elsewhere: &mut RemoteInFlight| {
                let told = handover.deltas(&here, clock.now());
                told.iter().for_each(|told| there.take_over(told, elsewhere, clock.now()));
            };
            for (key, action, pass_s) in steps {
                let key = keys[usize::from(key)];
                let amounts = Amounts::REQUEST.with(Measure::Tokens, pass_s).with(Measure::Cost, 7);
                let charge = Charge {
                    key,
                    key_limits: &high,
                    workspace: &workspace,
                    workspace_limits: &high,
                    end_user: Some((end_user, &high)),
                    amounts: if action == 0 { Amounts::REQUEST } else { amounts },
                };
                match action {
                    0 | 1 => drop(here.charge(&charge, clock.now()).expect("far from its limit")),
                    2 => here.charge(&charge, clock.now()).expect("far from its limit").give_back(),
                    3 => open.push(here.charge(&charge, clock.now()).expect("far from its limit")),
                    4 => {
                        let hold = open.pop().and_then(|mut charged| charged.take_hold());
                        hold.map(|hold| hold.settle(&Amounts::default().with(Measure::Tokens, pass_s / 2)));
                    }
                    _ => tell(&mut handover, &mut elsewhere),
                }
                clock.advance(Duration::from_secs(pass_s));
            }
            tell(&mut handover, &mut elsewhere);
            let at = clock.now().wall;
            let subjects = keys.iter().map(|k| UsageSubject::Key(*k)).chain([
                UsageSubject::Workspace(workspace.clone()),
                UsageSubject::EndUser(workspace.clone(), end_user),
            ]);
            let subjects: Vec<_> = subjects.collect();
            let metered = |counters: &Counters, subject: &UsageSubject| {
                counters.local.metered(subject, at).map(|count| (count.used, count.held))
            };
            for subject in &subjects {
                prop_assert_eq!(used(&here, subject, at), used(&there, subject, at), "{:?}", subject);
                prop_assert_eq!(metered(&here, subject), metered(&there, subject), "{:?}", subject);
                prop_assert_eq!(here.local.in_flight(subject), there.local.in_flight(subject), "{:?}", subject);
            }
            prop_assert_eq!(handover.deltas(&here, clock.now()), vec![], "and nothing is told twice");
            there.on_sibling_gone(elsewhere);
            prop_assert!(subjects.iter().all(|subject| there.local.in_flight(subject) == 0));
            let holds = |subject| metered(&there, subject).iter().any(|(_, held)| *held != MeteredUnits::default());
            prop_assert!(!subjects.iter().any(holds), "what the other process held is released");
        }
    }
}
