//! The calendar of a plan: the time zone in which its days begin, and the days on which its weeks and months begin.
//!
//! Must not know: what is counted. The windows are computed by [`crate::policy::keys::calendar`].

use super::key::words;
use chrono_tz::Tz;
use std::fmt;

/// When days, weeks and months begin. The default is UTC, the first of the month and Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Calendar {
    /// The zone whose midnights begin a day.
    pub zone: Tz,
    /// The day on which months begin, 1 to [`MONTH_DAY_MAX`]; the last day of a month that is shorter.
    pub month_day: u8,
    /// The day on which weeks begin.
    pub week_day: WeekDay,
}

words!(
    /// A day of the week.
    WeekDay {
        /// The first, by ISO 8601.
        Monday = "monday",
        /// The second.
        Tuesday = "tuesday",
        /// The third.
        Wednesday = "wednesday",
        /// The fourth.
        Thursday = "thursday",
        /// The fifth.
        Friday = "friday",
        /// The sixth.
        Saturday = "saturday",
        /// The seventh.
        Sunday = "sunday",
    }
);

/// The last day that a month can begin on.
pub const MONTH_DAY_MAX: u8 = 31;

/// A name that is no time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownZone;

impl Calendar {
    /// UTC, months from the first, weeks from Monday.
    pub const UTC: Self = Self { zone: Tz::UTC, month_day: 1, week_day: WeekDay::Monday };
}

impl Default for Calendar {
    fn default() -> Self {
        Self::UTC
    }
}

/// The zone with that name in the IANA database.
pub fn zone(name: &str) -> Result<Tz, UnknownZone> {
    name.parse().map_err(|_| UnknownZone)
}

impl fmt::Display for UnknownZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be the name of a time zone, as in Asia/Shanghai or UTC")
    }
}

impl std::error::Error for UnknownZone {}
