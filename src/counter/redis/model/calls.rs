//! Single calls and their effects.

use super::*;

/// Units granted from a full bucket and spent at the end of their validity must not meet a bucket that is full again.
#[test]
fn units_spent_late_do_not_add_to_a_full_burst() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 1_000, burst: 100 })];
    let late = world.ask("a", 2, &plain_ask(&limits, 0, 50)).units;
    assert_eq!(late, 50);
    world.now_us += 49_000;
    let at_once = taken(&mut world, "b", &limits, 100);
    assert!(late + at_once <= 100, "{late} late and {at_once} at once from a burst of 100");
    // Without units granted in advance, waiting requests get the whole burst.
    world.now_us += 1_000_000;
    assert_eq!(taken(&mut world, "c", &limits, 200), 100);
}

/// What is promised to a node is not granted to others, until ten seconds after its last call.
#[test]
fn a_promise_is_kept_for_ten_seconds() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Quota, LimitRule::of(Per::Total, 100))];
    let promised = world.ask("a", 2, &plain_ask(&limits, 20, 0)).promises[5];
    assert_eq!(promised, 20, "a quarter of what is left");
    assert_eq!(taken(&mut world, "b", &limits, 100), 60);
    world.now_us += 9_900_000;
    assert_eq!(taken(&mut world, "c", &limits, 100), 0);
    world.now_us += 200_000;
    assert_eq!(taken(&mut world, "d", &limits, 100), 20);
}

#[test]
fn a_node_that_stops_leaves_all_to_the_others() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Quota, LimitRule::of(Per::Total, 100))];
    let mut pool = SubjectPool::default();
    pool.set_limits(&limits.iter().copied().collect());
    pool.attempt(1);
    let now = world.now();
    let ask = LeaseRequest { ahead: 40, ..pool.ask(requests(1), now.steady_ns, now.wall, Calendar::UTC) };
    let grant = world.ask("a", 1, &ask);
    assert!(grant.units > 1 && grant.promises[5] > 0, "{grant:?}");
    pool.answer(&ask, &grant, now.steady_ns, now.steady_ns);
    pool.spend(1, now);
    pool.leave();
    let last = pool.ask(requests(0), now.steady_ns + 1_000, now.wall, Calendar::UTC);
    assert_eq!(world.ask("a", 1, &last).used[5], 1);
    assert_eq!(taken(&mut world, "b", &limits, 100), 99);
}

/// A call that arrives after a later one, or twice, changes nothing.
#[test]
fn a_call_counts_once_and_in_its_order() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Quota, LimitRule::of(Per::Total, 100))];
    let call = |seq, told, need| {
        let windows =
            [WindowReport { since: 1, spent: told, told, ..WindowReport::default() }; WINDOWS.len()];
        LeaseRequest { seq, windows, ..plain_ask(&limits, need, 0) }
    };
    assert_eq!(world.ask("a", 2, &call(1, 0, 10)).units, 10);
    assert_eq!(world.ask("a", 2, &call(2, 10, 10)).used[5], 20);
    for seq in [1, 2] {
        assert_eq!(world.call("a", 2, &call(seq, 0, 10), None), [ScriptTotals::Old]);
    }
    let again = world.ask("a", 2, &call(3, 10, 0));
    assert_eq!(again.used[5], 10, "the answer to the second was lost, and with it nothing");
}

/// A late node reports only what the ledger could not know when Redis was filled from it.
#[test]
fn units_in_the_ledger_are_not_counted_twice() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Quota, LimitRule::of(Per::Total, 100))];
    world.ledger = [0, 0, 0, 0, 0, 50];
    assert_eq!(world.ask("a", 2, &plain_ask(&limits, 1, 0)).used[5], 51);
    let told = |at_us, units| LeaseRequest {
        untold: vec![OutstandingUnits { at_us, units }],
        windows: [WindowReport { since: 1, spent: units, ..WindowReport::default() }; WINDOWS.len()],
        ..plain_ask(&limits, 0, 0)
    };
    let before = START_US - 10_000_000;
    assert_eq!(world.ask("b", 2, &told(before, 7)).used[5], 51, "spent long before: in the ledger");
    assert_eq!(world.ask("c", 2, &told(START_US - 1_000_000, 7)).used[5], 58, "too young for the ledger");
}

/// A stream that began long ago is not in the ledger, because it has not ended.
#[test]
fn open_requests_are_not_taken_for_a_part_of_the_ledger() {
    let mut pool = SubjectPool::default();
    pool.set_limits(&Limits::from_iter([limit(LimitName::Quota, LimitRule::of(Per::Total, 100))]));
    let outage = FallbackState { nodes: 1, share_unknown: true, gone_since_ns: Some(0), well_ns: 0 };
    let at = |s: u64| Now {
        wall: Timestamp::from_micros(START_US + s as i64 * 1_000_000),
        steady_ns: s * 1_000_000_000,
    };
    for s in [0, 0, 5] {
        pool.may_spend_fallback(1, &outage, at(s)).expect("its share");
        assert_eq!(pool.spend_fallback(1, &outage, at(s)).units(), 1);
    }
    let told = |pool: &mut SubjectPool, s| {
        let ask = pool.ask(Wanted::default(), at(s).steady_ns, at(s).wall, Calendar::default());
        ask.untold.iter().map(|u| ((u.at_us - START_US) / 1_000_000, u.units)).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut pool, 20), [(20, 3)], "none has ended");
    pool.end();
    assert_eq!(told(&mut pool, 21), [(5, 1), (21, 2)], "whose unit has ended is unknown");
    pool.end();
    pool.end();
    assert_eq!(told(&mut pool, 22), [(0, 2), (5, 1)]);
}

/// After a fail-over the highest reported value counts, plus what each node has spent since, once.
#[test]
fn another_server_hears_what_it_lacks_before_it_grants() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Quota, LimitRule::of(Per::Total, 100))];
    let first = world.ask("a", 2, &plain_ask(&limits, 30, 0));
    let said = |spent, told, heard| [WindowReport { since: 1, spent, told, heard, held: 0 }; WINDOWS.len()];
    world.server = "s2";
    world.now_us += 1_000;
    let word = |seq, windows| LeaseRequest { seq, epoch: first.epoch, windows, ..plain_ask(&limits, 10, 0) };
    let held_back = world.ask("a", 2, &word(2, said(30, 30, 30)));
    assert!(held_back.is_held_back && held_back.units == 0);
    // Another node heard sixty, and has spent four since.
    let other = world.ask("b", 2, &word(2, said(34, 30, 60)));
    assert_eq!(other.used[5], 64);
    world.now_us += 1_100_000;
    let windows = said(30, 30, 60);
    let granted = world.ask("a", 2, &LeaseRequest { epoch: held_back.epoch, ..word(3, windows) });
    assert_eq!((granted.units, granted.used[5]), (10, 74));
}

/// During a rolling upgrade, scripts of two versions run side by side: they count in the same fields and enforce one limit.
#[test]
fn two_versions_of_the_script_admit_one_limit() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let versions = [world.script.clone(), format!("{}\n-- the next version", world.script)];
    let limits = [limit(LimitName::Quota, LimitRule::of(Per::Total, 100))];
    let mut granted = 0;
    for n in 0..60 {
        world.script.clone_from(&versions[n % 2]);
        granted += world.ask(&format!("n{n}"), 2, &plain_ask(&limits, 3, 0)).units;
        world.now_us += 11_000_000;
    }
    assert_eq!(granted, 100);
}
