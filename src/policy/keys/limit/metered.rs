//! What only a meter finds out, counted in windows: what was used, and what requests in flight hold.
//!
//! A hold is taken in the window of the charge and settled there, whenever the request ends. A window that is over keeps
//! its holds until it is forgotten. Must not know: limits, requests.

use super::window_count::{Counted, WindowCounts, seconds};
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::key::{Measure, Per};
use crate::policy::keys::calendar::Window;

/// Units of each of [`Measure::METERED`].
pub type MeteredUnits = [u64; Measure::METERED.len()];

/// The counts of one window. The default is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MeteredCount {
    /// What was used.
    pub used: MeteredUnits,
    /// What requests in flight hold.
    pub held: MeteredUnits,
    /// The first second counted here, if the window began earlier under another calendar.
    since_s: Option<u32>,
}

/// The counts of all windows of one subject.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct MeteredState {
    /// In the order of [`Per::WINDOWS`].
    windows: [WindowCounts<MeteredCount>; Per::WINDOWS.len()],
}

impl Counted for MeteredCount {
    fn on_moved(&mut self, start_s: u32) {
        self.since_s = Some(self.since(start_s));
    }

    fn since(&self, start_s: u32) -> u32 {
        self.since_s.map_or(start_s, |since_s| since_s.min(start_s))
    }
}

impl MeteredCount {
    /// What was used and what is held of the `n`-th of [`Measure::METERED`].
    pub(super) const fn of(&self, n: usize) -> (u64, u64) {
        (self.used[n], self.held[n])
    }
}

impl MeteredState {
    /// The counts of the window of `calendar` that contains `at`.
    pub(super) fn count(&self, per: Per, calendar: Calendar, at: Timestamp) -> MeteredCount {
        let Some(counts) = per.window_index().map(|n| &self.windows[n]) else {
            return MeteredCount::default();
        };
        // Also if that window belongs to another calendar: it would continue its count.
        if counts.newest.contains(seconds(at)) {
            return counts.newest.used;
        }
        counts.used(&Window::of(per, calendar, at))
    }

    /// Continues the counts in the windows of another calendar.
    pub(super) fn follow(&mut self, calendar: Calendar, at: Timestamp) {
        for (counts, window) in self.windows.iter_mut().zip(Window::all(calendar, at)) {
            counts.turn(&window);
        }
    }

    /// Takes a hold in the windows that contain `at`.
    pub(super) fn hold(&mut self, units: &MeteredUnits, calendar: Calendar, at: Timestamp) {
        for (counts, window) in self.windows.iter_mut().zip(Window::all(calendar, at)) {
            add(&mut counts.turn(&window).used.held, units);
        }
    }

    /// Replaces a hold that was taken at `at` by what was used.
    pub(super) fn settle(&mut self, hold: &MeteredUnits, used: &MeteredUnits, at: Timestamp) {
        for counts in &mut self.windows {
            if let Some(count) = counts.of_second(seconds(at)) {
                subtract(&mut count.held, hold);
                add(&mut count.used, used);
            }
        }
    }

    /// The counts of the window of `calendar` that contains `at`, to be corrected.
    pub(super) fn count_mut(&mut self, n: usize, calendar: Calendar, at: Timestamp) -> &mut MeteredCount {
        &mut self.windows[n].turn(&Window::of(Per::WINDOWS[n], calendar, at)).used
    }
}

/// Adds units of each measure.
pub(super) fn add(to: &mut MeteredUnits, units: &MeteredUnits) {
    to.iter_mut().zip(units).for_each(|(to, units)| *to = to.saturating_add(*units));
}

fn subtract(from: &mut MeteredUnits, units: &MeteredUnits) {
    from.iter_mut().zip(units).for_each(|(from, units)| *from = from.saturating_sub(*units));
}
