//! The calendar windows of limits and statistics, in UTC.
//!
//! Must not know: what is counted in them.

use crate::clock::Timestamp;
use crate::model::key::Per;
use chrono::{Datelike, NaiveDate};
use std::time::Duration;

/// The start of the calendar window that contains `at`. A total has one window, which began with the epoch.
pub fn window_start(per: Per, at: Timestamp) -> Timestamp {
    let floor = |unit: i64| Timestamp::from_secs(at.as_secs().div_euclid(unit) * unit);
    match per {
        Per::Second => floor(1),
        Per::Minute => floor(60),
        Per::Hour => floor(3_600),
        Per::Day => floor(86_400),
        Per::Month => month_edges(at).map_or(Timestamp::default(), |(start, _)| start),
        Per::Total => Timestamp::default(),
    }
}

/// The end of the calendar window that contains `at`; none for a total.
pub fn window_end(per: Per, at: Timestamp) -> Option<Timestamp> {
    let length = match per {
        Per::Second => 1,
        Per::Minute => 60,
        Per::Hour => 3_600,
        Per::Day => 86_400,
        Per::Month => return month_edges(at).map(|(_, end)| end),
        Per::Total => return None,
    };
    Some(window_start(per, at).plus(Duration::from_secs(length)))
}

fn month_edges(at: Timestamp) -> Option<(Timestamp, Timestamp)> {
    let date = chrono::DateTime::from_timestamp(at.as_secs(), 0)?.date_naive();
    let first = date.with_day(1)?;
    let next = if first.month() == 12 {
        NaiveDate::from_ymd_opt(first.year().checked_add(1)?, 1, 1)?
    } else {
        first.with_month(first.month() + 1)?
    };
    let instant =
        |d: NaiveDate| d.and_hms_opt(0, 0, 0).map(|t| Timestamp::from_secs(t.and_utc().timestamp()));
    Some((instant(first)?, instant(next)?))
}
