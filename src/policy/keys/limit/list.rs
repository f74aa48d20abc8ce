//! The limits of one subject as one value. Must not know: what they mean.

use super::Limit;
use crate::model::calendar::Calendar;
use smallvec::SmallVec;

/// The limits in force for one request, in the order in which a refusal names them, and the calendar of their windows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// When days, weeks and months begin.
    pub calendar: Calendar,
    list: SmallVec<[Limit; 6]>,
}

impl Limits {
    /// No limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a limit.
    pub fn push(&mut self, limit: Limit) {
        self.list.push(limit);
    }

    /// The same limits in the windows of another calendar.
    #[must_use]
    pub fn in_calendar(self, calendar: Calendar) -> Self {
        Self { calendar, ..self }
    }
}

impl std::ops::Deref for Limits {
    type Target = [Limit];

    fn deref(&self) -> &[Limit] {
        &self.list
    }
}

impl std::ops::DerefMut for Limits {
    fn deref_mut(&mut self) -> &mut [Limit] {
        &mut self.list
    }
}

impl Extend<Limit> for Limits {
    fn extend<I: IntoIterator<Item = Limit>>(&mut self, limits: I) {
        self.list.extend(limits);
    }
}

impl FromIterator<Limit> for Limits {
    fn from_iter<I: IntoIterator<Item = Limit>>(limits: I) -> Self {
        Self { calendar: Calendar::UTC, list: limits.into_iter().collect() }
    }
}
