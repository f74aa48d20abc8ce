//! The query for the usage in a calendar window, summed from roll-ups, for both backends, and its rows.
//!
//! Roll-ups are of minutes, hours and days in UTC. A window of another zone begins in the middle of such a day, and in some
//! zones in the middle of an hour: it consists of a few hours, then days, then hours again. Of end users there are only days:
//! a window that begins in the middle of a day in UTC counts that whole day.

use super::fields::RowReader;
use super::retention::MINUTES_FOR;
use super::rollup::WindowWidth;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::key::{Measure, Per};
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use crate::store::StoreError;
use std::fmt::Write as _;
use uuid::Uuid;

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

/// A run whose bounds are parameters with these numbers.
#[derive(Clone, Copy, Debug)]
struct NumberedRun {
    width: i64,
    from: usize,
    to: usize,
}

/// A query with its numeric parameters, `$1` and so on.
pub(in crate::store) struct SpentQuery {
    pub(in crate::store) sql: String,
    pub(in crate::store) values: Vec<i64>,
}

/// The columns of [`Measure::METERED`].
const METERED: [&str; Measure::METERED.len()] = ["tokens", "input_tokens", "output_tokens", "cost_nano"];

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

/// The days that make up `window`; a window that begins in the middle of a day begins with that day.
fn days(window: &Window) -> [RollupRun; 1] {
    let width = WindowWidth::Day;
    [RollupRun { width, from: width.start(window.start), to: window.end }]
}

/// Where roll-ups `r` of the same subject as `t` are.
#[derive(Clone, Copy, Debug)]
struct Source {
    table: &'static str,
    same_subject: &'static str,
}

const SUBJECTS: Source = Source {
    table: "usage_rollups",
    same_subject: "r.subject_kind = t.subject_kind AND r.subject_id = t.subject_id",
};
const END_USERS: Source = Source {
    table: "usage_groups",
    same_subject: "r.workspace_id = t.workspace_id AND r.kind = t.kind AND r.name = t.name",
};

impl SpentQuery {
    /// The usage of every subject, in total and in each of the windows of `calendar` that contain `at`: `subject_kind`,
    /// `subject_id`, then for each of [`Per::WINDOWS`] the charged requests and each of [`Measure::METERED`].
    pub(in crate::store) fn of_all(bounds: Bounds, calendar: Calendar, at: Timestamp) -> Self {
        let mut query = Self { sql: "SELECT t.subject_kind, t.subject_id".to_owned(), values: Vec::new() };
        query.windows(bounds, SUBJECTS, |per| Some(runs(&Window::of(per, calendar, at), at)));
        query.sql.push_str(" FROM usage_rollups t WHERE t.width = 0 AND t.charged <> 0");
        query
    }

    /// The same of every end user of the workspace that is the next parameter, with the end user's id and without a kind.
    /// Nothing is known of windows shorter than a day.
    pub(in crate::store) fn of_end_users(bounds: Bounds, calendar: Calendar, at: Timestamp) -> Self {
        let mut query = Self { sql: "SELECT t.name".to_owned(), values: Vec::new() };
        query.windows(bounds, END_USERS, |per| {
            let is_known = !matches!(per, Per::Minute | Per::Hour);
            is_known.then(|| days(&Window::of(per, calendar, at)).to_vec())
        });
        let workspace = query.values.len() + 1;
        query.write(format_args!(
            " FROM usage_groups t WHERE t.kind = 3 AND t.width = 0 AND t.charged <> 0 AND t.workspace_id = ${workspace}"
        ));
        query
    }

    /// The same of one end user, whose id is the parameter after that.
    pub(in crate::store) fn of_one_end_user(mut self) -> Self {
        let name = self.values.len() + 2;
        self.write(format_args!(" AND t.name = ${name}"));
        self
    }

    /// The requests of every subject in that window that reached a backend.
    pub(in crate::store) fn requests(bounds: Bounds, window: &Window, at: Timestamp) -> Self {
        let mut query = Self { sql: "SELECT ".to_owned(), values: Vec::new() };
        let runs = query.with_values(runs(window, at));
        query.sum(bounds, SUBJECTS, "requests - r.denied - r.unreached", &runs);
        query.sql.push_str(" AS requests FROM usage_rollups t WHERE t.width = 0");
        query
    }

    /// The same for one subject, whose kind and id are the next two parameters.
    pub(in crate::store) fn of_one(mut self) -> Self {
        let (kind, id) = (self.values.len() + 1, self.values.len() + 2);
        self.write(format_args!(" AND t.subject_kind = ${kind} AND t.subject_id = ${id}"));
        self
    }

    /// The columns of each window. `runs` of a window of which nothing is known is none.
    fn windows(&mut self, bounds: Bounds, source: Source, runs: impl Fn(Per) -> Option<Vec<RollupRun>>) {
        for per in Per::WINDOWS {
            let runs = if per == Per::Total { None } else { runs(per).map(|runs| self.with_values(runs)) };
            for column in std::iter::once("charged").chain(METERED) {
                self.sql.push_str(", ");
                match &runs {
                    None if per == Per::Total => self.write(format_args!("t.{column}")),
                    None => self.sql.push_str("CAST(0 AS bigint)"),
                    Some(runs) => self.column(bounds, source, column, runs),
                }
            }
        }
    }

    /// A subject that never used anything of a measure costs nothing.
    fn column(&mut self, bounds: Bounds, source: Source, column: &str, runs: &[NumberedRun]) {
        if column == "charged" {
            return self.sum(bounds, source, column, runs);
        }
        self.write(format_args!("CASE WHEN t.{column} = 0 THEN 0 ELSE "));
        self.sum(bounds, source, column, runs);
        self.sql.push_str(" END");
    }

    /// Adds the bounds of `runs` to the parameters.
    fn with_values(&mut self, runs: Vec<RollupRun>) -> Vec<NumberedRun> {
        let numbered = runs.into_iter().map(|run| {
            let from = self.values.len() + 1;
            self.values.extend([run.from.as_micros(), run.to.as_micros()]);
            NumberedRun { width: run.width.seconds(), from, to: from + 1 }
        });
        numbered.collect()
    }

    fn sum(&mut self, bounds: Bounds, source: Source, column: &str, runs: &[NumberedRun]) {
        let (before, behind) = bounds;
        let Source { table, same_subject } = source;
        self.sql.push_str(before);
        for (n, NumberedRun { width, from, to }) in runs.iter().enumerate() {
            let plus = if n == 0 { "" } else { " + " };
            self.write(format_args!(
                "{plus}(SELECT coalesce(sum(r.{column}), 0) FROM {table} r
                 WHERE {same_subject} AND r.width = {width} AND r.start >= ${from} AND r.start < ${to})"
            ));
        }
        self.sql.push_str(behind);
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        _ = self.sql.write_fmt(text);
    }
}

// === rows ===

/// [`read_spent`], or none for an unreadable row: the others still count.
pub(in crate::store) fn sound_spent(f: &mut RowReader<'_>) -> Result<Option<UsageTotals>, StoreError> {
    sound(read_spent(f))
}

/// The same for an end user of `workspace`: its id, then the same numbers.
pub(in crate::store) fn sound_spent_by_end_user(
    workspace: &WorkspaceId,
    f: &mut RowReader<'_>,
) -> Result<Option<UsageTotals>, StoreError> {
    let id = f.blob("name").and_then(|bytes| {
        Uuid::from_slice(bytes).map_err(|_| StoreError::Corrupt("name of an end user is no id".into()))
    });
    let subject = id.map(|id| UsageSubject::EndUser(workspace.clone(), EndUserId(id)));
    sound(subject.and_then(|subject| read_windows(subject, f)))
}

fn sound(read: Result<UsageTotals, StoreError>) -> Result<Option<UsageTotals>, StoreError> {
    match read {
        Err(StoreError::Corrupt(why)) => {
            tracing::error!(why, "damaged usage totals, counted as zero");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// `subject_kind`, `subject_id`, then the numbers of [`read_windows`].
fn read_spent(f: &mut RowReader<'_>) -> Result<UsageTotals, StoreError> {
    let subject = read_subject(f)?;
    read_windows(subject, f)
}

/// For each of [`Per::WINDOWS`] the charged requests, then each of [`Measure::METERED`].
fn read_windows(subject: UsageSubject, f: &mut RowReader<'_>) -> Result<UsageTotals, StoreError> {
    let mut totals = UsageTotals::nothing(subject);
    for ((per, used), metered) in Per::WINDOWS.into_iter().zip(&mut totals.used).zip(&mut totals.metered) {
        *used = f.int(per.as_str())?;
        for units in metered {
            *units = f.int(per.as_str())?;
        }
    }
    Ok(totals)
}

/// The kinds of subjects in roll-ups.
const KEY: i64 = 1;
const WORKSPACE: i64 = 2;
/// No roll-up has this kind.
const NO_KIND: i64 = 0;

/// `subject_kind` and `subject_id` of a roll-up. End users have none: their totals are those of a group.
pub(in crate::store) fn subject_columns(subject: &UsageSubject) -> (i64, &[u8]) {
    match subject {
        UsageSubject::Key(id) => (KEY, id.0.as_bytes()),
        UsageSubject::Workspace(id) => (WORKSPACE, id.as_str().as_bytes()),
        UsageSubject::EndUser(_, id) => (NO_KIND, id.0.as_bytes()),
    }
}

fn read_subject(f: &mut RowReader<'_>) -> Result<UsageSubject, StoreError> {
    let corrupt = || StoreError::Corrupt("subject_id of a roll-up is no id".into());
    let kind: i64 = f.int("subject_kind")?;
    let bytes = f.blob("subject_id")?;
    match kind {
        KEY => Uuid::from_slice(bytes).map(|id| UsageSubject::Key(KeyId(id))).map_err(|_| corrupt()),
        WORKSPACE => {
            let text = std::str::from_utf8(bytes).map_err(|_| corrupt())?;
            text.parse().map(UsageSubject::Workspace).map_err(|_| corrupt())
        }
        _ => Err(StoreError::Corrupt("subject_kind of a roll-up is neither 1 nor 2".into())),
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
