//! A clock of Redis that was ahead and is corrected: what it wrote meanwhile delays nobody longer than a limit requires,
//! and nothing is spent twice.

use super::*;

const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;

/// A node that calls for the first time, so that none has a promise that another would have to respect.
fn admitted(world: &mut World, limits: &[Limit], need: u64) -> u64 {
    let name = format!("n{}", world.now_us);
    let ask = plain_ask(limits, need, 0);
    let units = world.ask(&name, 2, &ask).units;
    world.redis_forgets_promises(&name);
    units
}

impl World {
    fn redis_forgets_promises(&mut self, node: &str) {
        let hash = format!("kg:{{{}}}:k:{}", self.workspace, self.key);
        redis::cmd("HDEL").arg(hash).arg(format!("n:{node}")).exec(&mut self.redis).expect("an answer");
    }
}

/// A day with a limit of a hundred, of which sixty are spent, and the next, of which twenty are spent before the clock is
/// corrected.
fn back_from_tomorrow(world: &mut World, limits: &[Limit]) {
    world.now_us = START_US - DAY_US / 2;
    assert_eq!(admitted(world, limits, 60), 60);
    world.now_us += DAY_US;
    assert_eq!(admitted(world, limits, 20), 20);
    world.now_us += SECOND_US - DAY_US;
}

#[test]
fn a_rate_that_was_spent_while_the_clock_was_ahead_refills_at_once() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 1_000, burst: 100 })];
    world.now_us += DAY_US;
    // Some at once, and some granted in advance.
    assert_eq!(admitted(&mut world, &limits, 20), 20);
    assert!(world.ask("b", 2, &plain_ask(&limits, 0, 20)).units > 0);
    world.now_us -= DAY_US;
    // It is unknown how long ago that was.
    assert_eq!(admitted(&mut world, &limits, 1), 0);
    world.now_us += SECOND_US / 5;
    assert_eq!(admitted(&mut world, &limits, 200), 100);
}

#[test]
fn a_day_goes_on_where_it_was_when_the_clock_comes_back_to_it() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Daily, LimitRule::of(Per::Day, 100))];
    back_from_tomorrow(&mut world, &limits);
    assert_eq!(admitted(&mut world, &limits, 100), 40);
    world.now_us += DAY_US;
    assert_eq!(admitted(&mut world, &limits, 100), 80, "and so does the next, when it comes");
}

/// A hash that was created "tomorrow" does not know what was used of today before.
#[test]
fn a_key_that_was_new_while_the_clock_was_ahead_has_one_day_for_both() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Daily, LimitRule::of(Per::Day, 100))];
    world.now_us += DAY_US;
    assert_eq!(admitted(&mut world, &limits, 70), 70);
    world.now_us -= DAY_US;
    assert_eq!(admitted(&mut world, &limits, 100), 30);
}

#[test]
fn places_of_a_node_that_died_while_the_clock_was_ahead_are_free_after_five_seconds() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Concurrency, LimitRule::InFlight { max: 1 })];
    let ask = LeaseRequest { places: Some(0), max_places: 1, ..plain_ask(&limits, 1, 0) };
    world.now_us += DAY_US;
    assert_eq!(world.ask("dead", 2, &ask).places, 1);
    world.now_us -= DAY_US;
    assert_eq!(world.ask("a", 2, &ask).places, 0);
    world.now_us += 5 * SECOND_US;
    assert_eq!(world.ask("b", 2, &ask).places, 1);
}
