//! The count of a calendar window.
//!
//! A window that overlaps the counted one is that window under another calendar, so it continues the count. Must not know:
//! limits, or which calendar it is.

use crate::clock::Timestamp;
use crate::policy::keys::calendar::Window;

/// What is counted in a window.
pub(super) trait Counted: Copy + Default {
    /// The count goes on in a window that begins elsewhere; this one began at `start_s`.
    fn on_moved(&mut self, start_s: u32);

    /// The first second that was counted here, in a window that begins at `start_s`.
    fn since(&self, start_s: u32) -> u32;
}

/// Requests: a refund finds only the window as it is now.
impl Counted for u64 {
    fn on_moved(&mut self, _: u32) {}

    fn since(&self, start_s: u32) -> u32 {
        start_s
    }
}

/// The counts of the newest window and of the one before: the clock may step back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct WindowCounts<C> {
    pub(super) newest: WindowCount<C>,
    before: WindowCount<C>,
}

/// The count of one window. All windows begin and end at a full second; 32 bits suffice until 2106 and halve the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct WindowCount<C> {
    start_s: u32,
    end_s: u32,
    pub(super) used: C,
}

// === impl WindowCounts, WindowCount ===

impl<C: Counted> WindowCounts<C> {
    /// The count of a window that is current, has just begun, or is over.
    #[cold]
    pub(super) fn turn(&mut self, window: &Window) -> &mut WindowCount<C> {
        let fresh = WindowCount::of(window);
        if self.newest.is_of(window) {
            let mut used = self.newest.used;
            used.on_moved(self.newest.start_s);
            self.newest = WindowCount { used, ..fresh };
            &mut self.newest
        } else if fresh.start_s >= self.newest.end_s {
            // The previous window is kept: the clock may step back into it.
            self.before = std::mem::replace(&mut self.newest, fresh);
            &mut self.newest
        } else {
            let used = if self.before.is_of(window) { self.before.used } else { C::default() };
            self.before = WindowCount { used, ..fresh };
            &mut self.before
        }
    }

    /// The count of `window`, if it is known.
    pub(super) fn used(&self, window: &Window) -> C {
        [&self.newest, &self.before].iter().find(|c| c.is_of(window)).map_or_else(C::default, |c| c.used)
    }

    /// The count of the window in which that second was counted, if it is known.
    pub(super) fn of_second(&mut self, at_s: u32) -> Option<&mut C> {
        let mut both = [&mut self.newest, &mut self.before].into_iter();
        both.find(|c| c.used.since(c.start_s) <= at_s && at_s < c.end_s).map(|count| &mut count.used)
    }
}

impl WindowCounts<u64> {
    /// Subtracts `cost` from the window of that second.
    pub(super) fn subtract(&mut self, at_s: u32, cost: u64) {
        if let Some(used) = self.of_second(at_s) {
            *used = used.saturating_sub(cost);
        }
    }
}

impl<C: Counted> WindowCount<C> {
    /// The end of a window that does not end.
    const NEVER: u32 = u32::MAX;

    pub(super) fn of(window: &Window) -> Self {
        let end_s = if window.end == Window::NEVER { Self::NEVER } else { seconds(window.end) };
        Self { start_s: seconds(window.start), end_s, used: C::default() }
    }

    pub(super) const fn contains(&self, at_s: u32) -> bool {
        self.start_s <= at_s && at_s < self.end_s
    }

    /// Whether this counts `window`, or the same window under another calendar.
    fn is_of(&self, window: &Window) -> bool {
        let other = Self::of(window);
        (self.start_s, self.end_s) == (other.start_s, other.end_s)
            || (self.start_s < other.end_s && other.start_s < self.end_s)
    }

    pub(super) fn end(&self) -> Option<Timestamp> {
        (self.end_s != Self::NEVER).then(|| Timestamp::from_secs(self.end_s.into()))
    }
}

// === time ===

/// The second of `at`, as stored in windows.
pub(super) fn seconds(at: Timestamp) -> u32 {
    u32::try_from(at.as_secs().max(0)).unwrap_or(u32::MAX)
}
