//! The calendar windows of limits and statistics: when they begin and end.
//!
//! Minutes and hours are those of UTC; days, weeks and months begin at midnight in the calendar's zone. A day on which the
//! clocks change has 23 or 25 hours. Must not know: what is counted.
//!
//! *Invariant:* the windows of one kind in one calendar follow each other without gaps or overlaps, whatever the zone does,
//! and the window of a time contains it.

use crate::clock::Timestamp;
use crate::model::calendar::{Calendar, WeekDay};
use crate::model::key::Per;
use chrono::{DateTime, Datelike, Days, MappedLocalTime, Months, NaiveDate, TimeDelta, TimeZone};
use chrono_tz::Tz;
use std::time::Duration;

/// One calendar window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Window {
    /// Its first instant.
    pub start: Timestamp,
    /// The first instant after it; [`Window::NEVER`] for a total, which does not end.
    pub end: Timestamp,
}

const MINUTE_S: i64 = 60;
const HOUR_S: i64 = 3_600;
const DAY_S: i64 = 86_400;
/// Days since a Monday at 1970-01-01, which was a Thursday.
const EPOCH_WEEKDAY: i64 = 3;

impl Window {
    /// The end of a window that does not end.
    pub const NEVER: Timestamp = Timestamp::MAX;

    /// The window of `calendar` that contains `at`.
    pub fn of(per: Per, calendar: Calendar, at: Timestamp) -> Self {
        let secs = at.as_secs();
        match per {
            Per::Second => Self::of_secs(secs, 1),
            Per::Minute => Self::of_secs(secs.div_euclid(MINUTE_S) * MINUTE_S, MINUTE_S),
            Per::Hour => Self::of_secs(secs.div_euclid(HOUR_S) * HOUR_S, HOUR_S),
            Per::Total => Self { start: Timestamp::default(), end: Self::NEVER },
            Per::Day if calendar.zone == Tz::UTC => Self::of_secs(secs.div_euclid(DAY_S) * DAY_S, DAY_S),
            Per::Week if calendar.zone == Tz::UTC => {
                let day = secs.div_euclid(DAY_S);
                let into = (day + EPOCH_WEEKDAY - weekday_index(calendar.week_day)).rem_euclid(7);
                Self::of_secs((day - into) * DAY_S, 7 * DAY_S)
            }
            Per::Day | Per::Week | Per::Month => {
                Self::of_days(per, calendar, at).unwrap_or(Self { start: at, end: at })
            }
        }
    }

    /// The window of each of [`Per::WINDOWS`].
    pub fn all(calendar: Calendar, at: Timestamp) -> [Self; Per::WINDOWS.len()] {
        Per::WINDOWS.map(|per| Self::of(per, calendar, at))
    }

    /// Whether `at` is in it.
    pub fn contains(&self, at: Timestamp) -> bool {
        self.start <= at && at < self.end
    }

    /// Whether the two have an instant in common. Two windows of one kind then are the same or belong to different
    /// calendars.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The time from `at` to its end; none if it does not end.
    pub fn left(&self, at: Timestamp) -> Option<Duration> {
        (self.end != Self::NEVER).then(|| self.end.since(at))
    }

    const fn of_secs(start: i64, length: i64) -> Self {
        Self { start: Timestamp::from_secs(start), end: Timestamp::from_secs(start + length) }
    }

    /// The window with midnights as its edges. None beyond the supported range of dates.
    fn of_days(per: Per, calendar: Calendar, at: Timestamp) -> Option<Self> {
        let local = DateTime::from_timestamp(at.as_secs(), 0)?.with_timezone(&calendar.zone).date_naive();
        let begin = |day: NaiveDate| midnight(calendar.zone, day);
        let (before, after): (fn(_, _) -> _, fn(_, _) -> _) = match per {
            Per::Month => (previous_month, next_month),
            Per::Week => (|d, _| previous(d, 7), |d, _| next(d, 7)),
            _ => (|d, _| previous(d, 1), |d, _| next(d, 1)),
        };
        let mut first = match per {
            Per::Month => month_start(local.with_day(1)?, calendar)?,
            Per::Week => {
                let into =
                    i64::from(local.weekday().num_days_from_monday()) - weekday_index(calendar.week_day);
                previous(local, u64::try_from(into.rem_euclid(7)).ok()?)?
            }
            _ => local,
        };
        // The date decides, except when a day is repeated or skipped at the date line.
        while begin(first)? > at {
            first = before(first, calendar)?;
        }
        loop {
            let next = after(first, calendar)?;
            let end = begin(next)?;
            if at < end {
                return Some(Self { start: begin(first)?, end });
            }
            first = next;
        }
    }
}

fn previous(day: NaiveDate, days: u64) -> Option<NaiveDate> {
    day.checked_sub_days(Days::new(days))
}

fn next(day: NaiveDate, days: u64) -> Option<NaiveDate> {
    day.checked_add_days(Days::new(days))
}

fn previous_month(start: NaiveDate, calendar: Calendar) -> Option<NaiveDate> {
    month_start(start.with_day(1)?.checked_sub_months(Months::new(1))?, calendar)
}

fn next_month(start: NaiveDate, calendar: Calendar) -> Option<NaiveDate> {
    month_start(start.with_day(1)?.checked_add_months(Months::new(1))?, calendar)
}

/// The day in the month of `first` on which a month of `calendar` begins: the last day of a shorter month.
fn month_start(first: NaiveDate, calendar: Calendar) -> Option<NaiveDate> {
    first.with_day(u32::from(calendar.month_day).min(u32::from(first.num_days_in_month())))
}

/// The instant at which `day` begins in `zone`: midnight or, if the clocks skip it, the first instant after the gap.
fn midnight(zone: Tz, day: NaiveDate) -> Option<Timestamp> {
    let midnight = day.and_hms_opt(0, 0, 0)?;
    // The longest gap of any zone is a day: Samoa had no 30 December 2011.
    (0..=24 * 60).find_map(|minutes| {
        let local = midnight.checked_add_signed(TimeDelta::minutes(minutes))?;
        match zone.from_local_datetime(&local) {
            MappedLocalTime::Single(at) | MappedLocalTime::Ambiguous(at, _) => {
                Some(Timestamp::from_secs(at.timestamp()))
            }
            MappedLocalTime::None => None,
        }
    })
}

const fn weekday_index(day: WeekDay) -> i64 {
    day as i64
}

#[cfg(test)]
mod tests;
