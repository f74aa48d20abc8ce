//! Two and three nodes, one Redis: a limit is never exceeded, and in the end fully used.

use crate::node::{Node, PATIENCE, Setup, TestKey, clock, eventually, in_turn};
use crate::redis::RedisServer;
use crate::spare::Spare;
use keygate::clock::{Clock, Now, Timestamp};
use keygate::counter::ChargeError;
use keygate::model::calendar::Calendar;
use keygate::model::key::Per;
use keygate::policy::keys::calendar::Window;
use keygate::policy::keys::limit::{LimitName, LimitRule};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Concurrent requests per node.
const AT_ONCE: usize = 24;

/// The earliest and the latest time of one admission, in ns of the monotonic clock.
type Admission = (u64, u64);

/// The results of many requests.
struct Driven {
    /// In the order in which they began.
    admitted: Vec<Admission>,
    /// How many were sent.
    asked: u64,
}

/// Charges `key` at every node from many tasks, each node at `per_second`, for `long`.
async fn drive(nodes: &[Arc<Node>], key: &TestKey, per_second: u64, long: Duration) -> Driven {
    let until = Instant::now() + long;
    let mut tasks = Vec::new();
    for node in nodes {
        for lane in 0..AT_ONCE {
            let (node, key) = (Arc::clone(node), key.clone());
            tasks.push(tokio::spawn(async move {
                let at_once = u32::try_from(AT_ONCE).expect("few");
                let gap = Duration::from_secs(1) * at_once / u32::try_from(per_second).expect("few");
                let mut due = Instant::now() + gap * u32::try_from(lane).expect("few") / at_once;
                let (mut admitted, mut asked) = (Vec::new(), 0);
                while Instant::now() < until {
                    tokio::time::sleep_until(due).await;
                    due += gap;
                    let before = clock().now().steady_ns;
                    asked += 1;
                    match key.charge(&node).await {
                        Ok(_) => admitted.push((before, clock().now().steady_ns)),
                        // On a busy machine an answer may reach a request too late.
                        Err(ChargeError::Limit { .. } | ChargeError::Unavailable) => {}
                    }
                }
                (admitted, asked)
            }));
        }
    }
    let (mut admitted, mut asked) = (Vec::new(), 0);
    for task in tasks {
        let of_lane = task.await.expect("a task");
        admitted.extend(of_lane.0);
        asked += of_lane.1;
    }
    admitted.sort_unstable();
    Driven { admitted, asked }
}

/// In every interval: no more than the burst and the refill. An interval starts at the earliest time of its first admission
/// and ends at the latest time of its last, so that a busy machine causes no false failure.
fn assert_never_above(admitted: &[Admission], rate: u64) {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 of everything")]
    let refilled = |ns: u64| ns as f64 * rate as f64 / 1e9;
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 of everything")]
    let burst = rate as f64;
    let (mut least, mut latest, mut before) = (f64::INFINITY, 0, 0.0);
    for (first, last) in admitted {
        latest = latest.max(*last);
        least = least.min(before - refilled(*first));
        before += 1.0;
        let above = before - refilled(latest) - least - burst;
        assert!(above < 0.001, "{above} above {rate} per second and its burst at {latest} ns");
    }
}

/// Sends twice the rate, and never more is admitted. How much of the rate is reached, and with how many calls, is tested
/// with a simulated clock (`src/counter/redis/model/demand.rs`).
async fn a_rate_is_never_passed(nodes: usize, rate: u64, long: Duration) {
    let server = RedisServer::start();
    let nodes = Setup::strict(nodes).all(&server).await;
    let key = TestKey::rate(rate);
    let driven = drive(&nodes, &key, 2 * rate / nodes.len() as u64 + 1, long).await;
    assert_never_above(&driven.admitted, rate);
    let calls: u64 = nodes.iter().map(|n| n.metrics.counter_calls.get()).sum();
    let stats = server.command(&["INFO", "commandstats"]);
    let cost = stats.lines().find(|l| l.starts_with("cmdstat_evalsha:")).unwrap_or_default();
    println!(
        "{} nodes, {rate} per second: {} of {} admitted with {calls} calls; {cost}, memory {}",
        nodes.len(),
        driven.admitted.len(),
        driven.asked,
        server.command(&["MEMORY", "USAGE", &format!("kg:{{w}}:k:{}", key.id)])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_rates_are_never_passed_over_two_and_three_nodes() {
    let _turn = in_turn().await;
    let long = Duration::from_secs(4);
    tokio::join!(
        a_rate_is_never_passed(2, 5, long),
        a_rate_is_never_passed(3, 5, long),
        a_rate_is_never_passed(2, 100, long),
        a_rate_is_never_passed(3, 100, long)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_of_a_busy_key_is_never_passed() {
    let _turn = in_turn().await;
    for (nodes, rate) in [(3, 5_000), (2, 10_000), (3, 10_000)] {
        a_rate_is_never_passed(nodes, rate, Duration::from_millis(3_500)).await;
    }
}

fn start_of(per: Per, at: Timestamp) -> Timestamp {
    Window::of(per, Calendar::UTC, at).start
}

/// Never above the limit, and in the end all of it: units in flight, or granted in a lost answer, are returned and can be
/// used.
async fn a_total_is_exact(nodes: usize, max: u64, each: u64) {
    let server = RedisServer::start();
    let nodes = Setup::strict(nodes).all(&server).await;
    let key = TestKey::window(Per::Total, max);
    let mut admitted = drive(&nodes, &key, each, Duration::from_millis(2_500)).await.admitted.len() as u64;
    let waited = Instant::now();
    while admitted < max {
        assert!(waited.elapsed() < PATIENCE, "only {admitted} of {max}");
        for node in &nodes {
            admitted += u64::from(key.charge(node).await.is_ok());
        }
        // Returned units are available only to later requests.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 0..100 {
        admitted += u64::from(key.charge(&nodes[n % nodes.len()]).await.is_ok());
    }
    assert_eq!(admitted, max);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_are_reached_to_the_last_request_and_never_passed() {
    let _turn = in_turn().await;
    tokio::join!(
        a_total_is_exact(2, 5, 300),
        a_total_is_exact(3, 5, 300),
        a_total_is_exact(2, 100, 300),
        a_total_is_exact(3, 100, 300),
    );
    a_total_is_exact(3, 10_000, 3_500).await;
    a_total_is_exact(2, 10_000, 5_000).await;
}

/// A clock that is wrong by a fixed offset.
struct Off(i64);

impl Clock for Off {
    fn now(&self) -> Now {
        let now = clock().now();
        Now { wall: Timestamp::from_micros(now.wall.as_micros() + self.0 * 1_000_000), ..now }
    }
}

/// Real minutes by the clock of Redis: the nodes' own clocks are off by minutes, which does not matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_minute_has_more_than_its_limit_and_the_next_begins_anew() {
    let server = RedisServer::start();
    let mut nodes = Vec::new();
    for (name, seconds) in [("a", 437), ("b", -181), ("c", 0)] {
        let setup = Setup { clock: Arc::new(Off(seconds)), ..Setup::strict(3) };
        nodes.push(Arc::new(setup.node(name, server.address).await));
    }
    let into_minute = clock().now().wall.as_millis().rem_euclid(60_000).unsigned_abs();
    // From three seconds before the end of a minute until some after.
    tokio::time::sleep(Duration::from_millis((57_000 + 60_000 - into_minute) % 60_000)).await;
    let long = Duration::from_millis(7_500);
    let keys = [5, 100, 10_000].map(|max| (TestKey::window(Per::Minute, max), max));
    let (five, hundred, many) = tokio::join!(
        drive(&nodes, &keys[0].0, 50, long),
        drive(&nodes[..2], &keys[1].0, 200, long),
        drive(&nodes, &keys[2].0, 1_700, long)
    );
    let now = clock().now();
    let minute_of = |ns: u64| start_of(Per::Minute, now.wall.minus(Duration::from_nanos(now.steady_ns - ns)));
    let last_minute = start_of(Per::Minute, now.wall);
    for (driven, (_, max)) in [five, hundred, many].into_iter().zip(keys) {
        let count = |is: &dyn Fn(&Admission) -> bool| driven.admitted.iter().filter(|a| is(a)).count() as u64;
        // A request close to the end of a minute may count in either.
        let surely = count(&|(first, _)| minute_of(*first) == last_minute);
        println!("{max} per minute: {} admitted, {surely} in the new minute", driven.admitted.len());
        assert!(surely <= max, "{surely} of {max} in one minute");
        assert!(driven.admitted.len() as u64 <= 2 * max, "{} of {max} in two minutes", driven.admitted.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_in_flight_are_shared_and_free_again_when_requests_end() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let nodes = Setup::strict(2).all(&server).await;
    let mut key = TestKey::rate(1_000);
    key.limits.push(crate::node::limits(&[(LimitName::Concurrency, LimitRule::InFlight { max: 4 })])[0]);
    let mut held = Vec::new();
    let begun = Instant::now();
    while held.len() < 4 {
        assert!(begun.elapsed() < PATIENCE, "only {} of four places", held.len());
        held.extend(key.decided(&nodes[held.len() % 2]).await);
    }
    for n in 0..8 {
        assert!(key.decided(&nodes[n % 2]).await.is_err(), "a fifth");
    }
    held.clear();
    let freed = Spare::begin();
    // Real time: permits that a node does not use are returned within about a tenth of a second.
    while held.len() < 4 {
        assert!(freed.elapsed() < Duration::from_secs(1), "node 1 has {} of what node 0 left", held.len());
        held.extend(key.charge(&nodes[1]).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_costs_no_other_limit_anything() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let nodes = Setup::strict(2).all(&server).await;
    let mut key = TestKey::window(Per::Total, 10);
    key.workspace_limits = crate::node::limits(&[(LimitName::Workspace(0), LimitRule::of(Per::Day, 3))]);
    let mut admitted = 0;
    for n in 0..20 {
        admitted += usize::from(key.decided(&nodes[n % 2]).await.is_ok());
    }
    assert_eq!(admitted, 3, "the workspace's three");
    eventually("no more than these are counted", || server.spent(&format!("kg:{{w}}:k:{}", key.id)) == 3)
        .await;
}

/// A dead node holds its in-flight permits for five seconds by the clock of Redis; then they are free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_of_a_node_that_dies_are_free_within_seven_seconds() {
    let server = RedisServer::start();
    let io = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let doomed = Setup { io: Some(io.handle().clone()), ..Setup::strict(2) };
    let (doomed, other) =
        (doomed.node("doomed", server.address).await, Setup::strict(2).node("other", server.address).await);
    let mut key = TestKey::rate(1_000);
    key.limits.push(crate::node::limits(&[(LimitName::Concurrency, LimitRule::InFlight { max: 2 })])[0]);
    let lived = Instant::now();
    for _ in 0..2 {
        // As when the process is killed: the permit is never returned.
        std::mem::forget(key.decided(&doomed).await.expect("a place"));
    }
    io.shutdown_background();
    let died = Spare::begin();
    while key.charge(&other).await.is_err() {
        assert!(died.elapsed() < Duration::from_secs(7), "places of the dead are never free");
        // Real time is measured.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(lived.elapsed() > Duration::from_secs(2), "{:?}: before anybody could know", lived.elapsed());
}
