//! Where windows begin and end, by examples and for every zone.

use super::*;
use crate::model::calendar::{MONTH_DAY_MAX, zone};
use proptest::prelude::*;

fn at(text: &str) -> Timestamp {
    Timestamp::from_secs(DateTime::parse_from_rfc3339(text).expect("an instant").timestamp())
}

fn calendar(name: &str) -> Calendar {
    Calendar { zone: zone(name).expect("a zone"), ..Calendar::UTC }
}

fn window(per: Per, calendar: Calendar, instant: &str) -> [Timestamp; 2] {
    let Window { start, end } = Window::of(per, calendar, at(instant));
    [start, end]
}

fn hours(calendar: Calendar, instant: &str) -> u64 {
    let Window { start, end } = Window::of(Per::Day, calendar, at(instant));
    end.since(start).as_secs() / 3_600
}

#[test]
fn windows_begin_and_end_on_the_calendar() {
    let now = "2028-02-29T23:59:59Z";
    for (per, start, end) in [
        (Per::Second, "2028-02-29T23:59:59Z", "2028-03-01T00:00:00Z"),
        (Per::Minute, "2028-02-29T23:59:00Z", "2028-03-01T00:00:00Z"),
        (Per::Hour, "2028-02-29T23:00:00Z", "2028-03-01T00:00:00Z"),
        (Per::Day, "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
        (Per::Week, "2028-02-28T00:00:00Z", "2028-03-06T00:00:00Z"),
        (Per::Month, "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
    ] {
        assert_eq!(window(per, Calendar::UTC, now), [at(start), at(end)], "{per}");
    }
    assert_eq!(window(Per::Month, Calendar::UTC, "2026-12-31T12:00:00Z")[1], at("2027-01-01T00:00:00Z"));
    let total = Window::of(Per::Total, Calendar::UTC, at(now));
    assert_eq!((total.start, total.left(at(now))), (Timestamp::default(), None));
}

#[test]
fn days_weeks_and_months_follow_the_zone_and_their_first_days() {
    let shanghai = Calendar { month_day: 15, week_day: WeekDay::Sunday, ..calendar("Asia/Shanghai") };
    // 01:00 on Monday 15 June in Shanghai.
    let now = "2026-06-14T17:00:00Z";
    for (per, start, end) in [
        (Per::Hour, "2026-06-14T17:00:00Z", "2026-06-14T18:00:00Z"),
        (Per::Day, "2026-06-14T16:00:00Z", "2026-06-15T16:00:00Z"),
        (Per::Week, "2026-06-13T16:00:00Z", "2026-06-20T16:00:00Z"),
        (Per::Month, "2026-06-14T16:00:00Z", "2026-07-14T16:00:00Z"),
    ] {
        assert_eq!(window(per, shanghai, now), [at(start), at(end)], "{per}");
    }
    assert_eq!(window(Per::Month, shanghai, "2026-06-14T15:59:59Z")[0], at("2026-05-14T16:00:00Z"));
}

#[test]
fn a_month_begins_on_the_last_day_where_there_is_no_31st() {
    let last = Calendar { month_day: 31, ..Calendar::UTC };
    for (now, start, end) in [
        ("2026-02-15T00:00:00Z", "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"),
        ("2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"),
        ("2028-02-29T12:00:00Z", "2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z"),
        ("2026-04-30T00:00:00Z", "2026-04-30T00:00:00Z", "2026-05-31T00:00:00Z"),
        ("2026-12-31T23:59:59Z", "2026-12-31T00:00:00Z", "2027-01-31T00:00:00Z"),
    ] {
        assert_eq!(window(Per::Month, last, now), [at(start), at(end)], "{now}");
    }
}

#[test]
fn a_day_on_which_clocks_change_is_shorter_or_longer() {
    let berlin = calendar("Europe/Berlin");
    assert_eq!(hours(berlin, "2026-03-29T12:00:00Z"), 23);
    assert_eq!(hours(berlin, "2026-10-25T12:00:00Z"), 25);
    assert_eq!(hours(berlin, "2026-10-26T12:00:00Z"), 24);
    let week = Window::of(Per::Week, berlin, at("2026-10-25T12:00:00Z"));
    assert_eq!(week.end.since(week.start).as_secs() / 3_600, 7 * 24 + 1);
}

/// In São Paulo clocks went from 24:00 to 01:00: the day began at 01:00. In Havana they go from 01:00 back to 00:00.
#[test]
fn a_midnight_that_is_skipped_or_comes_twice_begins_one_day() {
    let sao_paulo = calendar("America/Sao_Paulo");
    assert_eq!(
        window(Per::Day, sao_paulo, "2018-11-04T12:00:00Z"),
        [at("2018-11-04T03:00:00Z"), at("2018-11-05T02:00:00Z")]
    );
    let havana = calendar("America/Havana");
    let day = [at("2026-11-01T04:00:00Z"), at("2026-11-02T05:00:00Z")];
    for instant in ["2026-11-01T04:00:00Z", "2026-11-01T04:30:00Z", "2026-11-01T05:30:00Z"] {
        assert_eq!(window(Per::Day, havana, instant), day, "{instant}");
    }
}

/// Samoa crossed the date line and had no 30 December 2011.
#[test]
fn a_zone_that_changes_its_offset_leaves_no_gap() {
    let apia = calendar("Pacific/Apia");
    assert_eq!(
        window(Per::Day, apia, "2011-12-30T09:59:59Z"),
        [at("2011-12-29T10:00:00Z"), at("2011-12-30T10:00:00Z")]
    );
    assert_eq!(
        window(Per::Day, apia, "2011-12-30T10:00:00Z"),
        [at("2011-12-30T10:00:00Z"), at("2011-12-31T10:00:00Z")]
    );
    let first = Calendar { month_day: 30, ..apia };
    assert_eq!(window(Per::Month, first, "2011-12-30T10:00:00Z")[0], at("2011-12-30T10:00:00Z"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// In every zone and on any day, each window is followed by the next and contains its instants.
    #[test]
    fn windows_follow_each_other_without_gap_or_overlap(
        zone in prop::sample::select(chrono_tz::TZ_VARIANTS.as_slice()),
        month_day in 1..=MONTH_DAY_MAX,
        week_day in prop::sample::select(WeekDay::ALL),
        per in prop::sample::select(Per::WINDOWS[..5].to_vec()),
        at_s in 0..4_000_000_000_i64,
    ) {
        let calendar = Calendar { zone, month_day, week_day };
        let at = Timestamp::from_secs(at_s);
        let window = Window::of(per, calendar, at);
        prop_assert!(window.contains(at));
        prop_assert_eq!(Window::of(per, calendar, window.start), window);
        prop_assert_eq!(Window::of(per, calendar, window.end.minus(Duration::from_micros(1))), window);
        let next = Window::of(per, calendar, window.end);
        prop_assert_eq!(next.start, window.end);
        prop_assert!(!next.overlaps(&window));
    }
}
