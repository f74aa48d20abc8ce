//! The query for the usage in a calendar window, summed from roll-ups, for both backends.
//!
//! Roll-ups are of minutes, hours and days in UTC. A window of another zone begins in the middle of such a day, and in some
//! zones in the middle of an hour: it consists of a few hours, then days, then hours again.

use super::retention::MINUTES_FOR;
use super::rollup::WindowWidth;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::key::Per;
use crate::policy::keys::calendar::Window;
use std::fmt::Write as _;

/// Consecutive roll-ups of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct RollupRun {
    pub(in crate::store) width: WindowWidth,
    /// The start of the first one,
    pub(in crate::store) from: Timestamp,
    /// and the end of the last one.
    pub(in crate::store) to: Timestamp,
}

/// SQL before and after a sum, for a backend whose sums have too wide a type.
pub(in crate::store) type Bounds = (&'static str, &'static str);

/// A query with its numeric parameters, `$1` and so on.
pub(in crate::store) struct SpentQuery {
    pub(in crate::store) sql: String,
    pub(in crate::store) values: Vec<i64>,
}

/// The roll-ups that make up `window`, as far as they exist at `at`. Minutes are kept for less than a month: an old window
/// that began in the middle of an hour counts that whole hour.
pub(in crate::store) fn runs(window: &Window, at: Timestamp) -> Vec<RollupRun> {
    const STEPS: [WindowWidth; 3] = [WindowWidth::Minute, WindowWidth::Hour, WindowWidth::Day];
    let mut start = window.start;
    if at.since(start) > MINUTES_FOR / 2 {
        start = WindowWidth::Hour.start(start);
    }
    let mut runs: Vec<RollupRun> = Vec::new();
    while start < window.end {
        // The widest roll-up that begins here and ends in the window.
        let ends = |width: &WindowWidth| width.end(start).filter(|end| *end <= window.end);
        let widest =
            STEPS.into_iter().rev().find(|width| width.start(start) == start && ends(width).is_some());
        let width = widest.unwrap_or(WindowWidth::Minute);
        let next = width.end(start).unwrap_or(window.end);
        match runs.last_mut() {
            Some(run) if run.width == width => run.to = next,
            _ => runs.push(RollupRun { width, from: start, to: next }),
        }
        start = next;
    }
    runs
}

impl SpentQuery {
    /// The usage of every subject, in total and in each of the windows of `calendar` that contain `at`: `subject_kind`,
    /// `subject_id`, then the count in each of [`Per::WINDOWS`].
    pub(in crate::store) fn of_all(bounds: Bounds, calendar: Calendar, at: Timestamp) -> Self {
        let mut query = Self { sql: "SELECT t.subject_kind, t.subject_id".to_owned(), values: Vec::new() };
        for per in Per::WINDOWS {
            query.sql.push_str(", ");
            if per == Per::Total {
                query.sql.push_str("t.charged");
            } else {
                query.sum(bounds, "charged", &Window::of(per, calendar, at), at);
            }
        }
        query.sql.push_str(" FROM usage_rollups t WHERE t.width = 0 AND t.charged <> 0");
        query
    }

    /// The requests of every subject in that window that reached a backend.
    pub(in crate::store) fn requests(bounds: Bounds, window: &Window, at: Timestamp) -> Self {
        let mut query = Self { sql: "SELECT ".to_owned(), values: Vec::new() };
        query.sum(bounds, "requests - r.denied - r.unreached", window, at);
        query.sql.push_str(" AS requests FROM usage_rollups t WHERE t.width = 0");
        query
    }

    /// The same for one subject, whose kind and id are the next two parameters.
    pub(in crate::store) fn of_one(mut self) -> Self {
        let (kind, id) = (self.values.len() + 1, self.values.len() + 2);
        self.write(format_args!(" AND t.subject_kind = ${kind} AND t.subject_id = ${id}"));
        self
    }

    fn sum(&mut self, bounds: Bounds, column: &str, window: &Window, at: Timestamp) {
        let (before, behind) = bounds;
        self.sql.push_str(before);
        for (n, run) in runs(window, at).iter().enumerate() {
            let (width, from, to) = (run.width.seconds(), self.values.len() + 1, self.values.len() + 2);
            self.values.extend([run.from.as_micros(), run.to.as_micros()]);
            let plus = if n == 0 { "" } else { " + " };
            self.write(format_args!(
                "{plus}(SELECT coalesce(sum(r.{column}), 0) FROM usage_rollups r
                 WHERE r.subject_kind = t.subject_kind AND r.subject_id = t.subject_id AND r.width = {width}
                     AND r.start >= ${from} AND r.start < ${to})"
            ));
        }
        self.sql.push_str(behind);
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        _ = self.sql.write_fmt(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::calendar::zone;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_secs(chrono::DateTime::parse_from_rfc3339(text).expect("an instant").timestamp())
    }

    fn run(width: WindowWidth, from: &str, to: &str) -> RollupRun {
        RollupRun { width, from: at(from), to: at(to) }
    }

    #[test]
    fn a_week_of_shanghai_is_hours_then_days_then_hours() {
        let calendar = Calendar { zone: zone("Asia/Shanghai").expect("a zone"), ..Calendar::UTC };
        let now = at("2026-12-02T12:00:00Z");
        let window = Window::of(Per::Week, calendar, now);
        let expected = [
            run(WindowWidth::Hour, "2026-11-29T16:00:00Z", "2026-11-30T00:00:00Z"),
            run(WindowWidth::Day, "2026-11-30T00:00:00Z", "2026-12-06T00:00:00Z"),
            run(WindowWidth::Hour, "2026-12-06T00:00:00Z", "2026-12-06T16:00:00Z"),
        ];
        assert_eq!(runs(&window, now), expected);
    }

    #[test]
    fn a_month_of_kolkata_begins_in_the_middle_of_an_hour_until_its_minutes_are_gone() {
        let calendar = Calendar { zone: zone("Asia/Kolkata").expect("a zone"), ..Calendar::UTC };
        let first = |now: &str| runs(&Window::of(Per::Month, calendar, at(now)), at(now))[0];
        let minutes = run(WindowWidth::Minute, "2026-11-30T18:30:00Z", "2026-11-30T19:00:00Z");
        assert_eq!(first("2026-12-02T12:00:00Z"), minutes);
        let hours = run(WindowWidth::Hour, "2026-11-30T18:00:00Z", "2026-12-01T00:00:00Z");
        assert_eq!(first("2026-12-12T12:00:00Z"), hours);
    }

    proptest! {
        /// In every zone, nothing is left out or counted twice.
        #[test]
        fn runs_follow_each_other_from_one_end_to_the_other(
            zone in prop::sample::select(chrono_tz::TZ_VARIANTS.as_slice()),
            per in prop::sample::select(&[Per::Minute, Per::Hour, Per::Day, Per::Week, Per::Month][..]),
            at_s in 946_684_800..4_000_000_000_i64,
        ) {
            let at = Timestamp::from_secs(at_s);
            let window = Window::of(per, Calendar { zone, ..Calendar::UTC }, at);
            let runs = runs(&window, window.start);
            prop_assert_eq!(runs[0].from, window.start);
            prop_assert_eq!(runs[runs.len() - 1].to, window.end);
            for pair in runs.windows(2) {
                prop_assert_eq!(pair[0].to, pair[1].from);
            }
            for run in &runs {
                prop_assert_eq!(run.width.start(run.from), run.from);
                prop_assert_eq!(run.width.start(run.to), run.to);
            }
            prop_assert!(runs.len() <= 5);
        }
    }
}
