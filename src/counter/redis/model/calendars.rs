//! Calendars that change while a window runs: the window continues its count, on every node and in Redis.

use super::*;
use crate::model::calendar::WeekDay;
use chrono_tz::Tz;

/// Days that begin at midnight UTC, at 16:00, and at 18:30.
pub(super) const CALENDARS: [Calendar; 3] = [
    Calendar::UTC,
    Calendar { zone: Tz::Asia__Shanghai, month_day: 15, week_day: WeekDay::Sunday },
    Calendar { zone: Tz::Asia__Kolkata, month_day: 31, week_day: WeekDay::Wednesday },
];

const HOUR_US: i64 = 3_600_000_000;

#[test]
fn a_day_goes_on_under_another_calendar_and_ends_when_that_says() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Daily, LimitRule::of(Per::Day, 100))];
    // At 10:00 UTC.
    world.now_us += 2_000_000 + 10 * HOUR_US;
    assert_eq!(taken(&mut world, "a", &limits, 60), 60);
    world.now_us += 11_000_000;
    world.calendar = CALENDARS[1];
    let grant = world.ask("b", 2, &plain_ask(&limits, 100, 0));
    assert_eq!((grant.units, grant.used[2]), (40, 100), "nothing is forgotten");
    world.now_us += 6 * HOUR_US - 12_000_000;
    assert_eq!(taken(&mut world, "c", &limits, 1), 0, "a second before midnight in Shanghai");
    world.now_us += 1_000_000;
    assert_eq!(taken(&mut world, "d", &limits, 100), 100, "at midnight");
    world.now_us += 8 * HOUR_US;
    assert_eq!(taken(&mut world, "e", &limits, 1), 0, "midnight UTC is none");
    // Back again: a day that has begun in both calendars continues until the later end.
    world.calendar = CALENDARS[0];
    assert_eq!(taken(&mut world, "f", &limits, 1), 0);
    world.now_us += 24 * HOUR_US;
    assert_eq!(taken(&mut world, "g", &limits, 100), 100);
}

/// Whatever nodes do while their calendars change at random, a continued day admits no more than its limit.
#[test]
fn no_day_is_passed_while_its_calendar_changes() {
    let inputs = (2..4_usize, prop::collection::vec((any_act(), 0..3_usize), 1..80), 1..200_u64);
    always(&inputs, |server, (nodes, acts, day)| {
        let rate = limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 2_000, burst: 2_000 });
        let limits: Limits =
            [rate, limit(LimitName::Daily, LimitRule::of(Per::Day, day))].into_iter().collect();
        let mut run = Run::new(server, nodes, limits, unlimited());
        // Long after the last midnight of each calendar, and long before the next.
        run.world.now_us += 2_000_000 + 8 * HOUR_US;
        for (act, calendar) in &acts {
            run.world.calendar = CALENDARS[*calendar];
            for limits in &mut run.limits {
                limits.calendar = CALENDARS[*calendar];
            }
            run.play(act);
        }
        prop_assert!(run.admitted.len() as u64 <= day, "{} of {day}", run.admitted.len());
        Ok(())
    });
}
