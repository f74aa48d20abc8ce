//! How long requests wait for Redis, with paused time: when the runtime is idle, the clock jumps to the next timer. Waits
//! are therefore measured to the millisecond, whatever the load of the machine.

use crate::chaos::{ChaosProxy, Mode};
use crate::node::{Node, PATIENCE, PROMISED, Setup, TestKey};
use crate::redis::RedisServer;
use crate::spare::Spare;
use keygate::clock::{Clock, Now, Timestamp};
use keygate::model::key::Per;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::time::Instant;

/// Failures of Redis that requests must not notice.
pub(crate) const FAILURES: [(&str, Mode); 10] = [
    ("cut", Mode::Cut),
    ("hung", Mode::Hang),
    ("slow by 30 ms", Mode::Late(Duration::from_millis(30))),
    ("slow by 300 ms", Mode::Late(Duration::from_millis(300))),
    ("slow by 5 s", Mode::Late(Duration::from_secs(5))),
    ("read-only", Mode::Say("-READONLY You can't write against a read only replica.\r\n")),
    ("loading", Mode::Say("-LOADING Redis is loading the dataset in memory\r\n")),
    ("moved", Mode::Say("-MOVED 3999 127.0.0.1:1\r\n")),
    ("garbage", Mode::Say("\u{1}\u{2}garbage\r\n")),
    ("flood", Mode::Flood),
];
const KEYS: usize = 20;
const EACH: usize = 30;

/// A clock that follows the runtime's time.
struct RuntimeClock {
    start: Instant,
    wall: Timestamp,
}

impl Clock for RuntimeClock {
    fn now(&self) -> Now {
        let passed = self.start.elapsed();
        let steady = passed + Duration::from_secs(1);
        Now {
            wall: self.wall.plus(passed),
            steady_ns: u64::try_from(steady.as_nanos()).expect("a short test"),
        }
    }
}

#[test]
fn no_request_waits_longer_than_promised_however_redis_fails() {
    let server = RedisServer::start();
    for (name, mode) in FAILURES {
        let begun = Instant::now();
        let Measured { waits, counted } = loop {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            if let Some(measured) = runtime.block_on(waits(&server, name, mode)) {
                break measured;
            }
            assert!(begun.elapsed() < PATIENCE, "{name}: Redis is given up before anybody asks");
        };
        let longest = waits.iter().max().expect("requests");
        assert!(*longest <= PROMISED, "{name}: a request waited {longest:?}");
        // Only the first requests wait; then the failure is known.
        let waited = waits.iter().filter(|w| **w > Duration::from_millis(2)).count();
        assert!(waited <= 2 * KEYS, "{name}: {waited} of {} requests waited", waits.len());
        if matches!(mode, Mode::Hang | Mode::Late(_)) {
            assert!(*longest >= Duration::from_millis(10), "{name}: nobody had to wait, {longest:?}");
        }
        let [all, in_time] = counted;
        assert_eq!(in_time, all, "{name}: the metric says the same");
        assert!(all >= (KEYS * EACH) as u64, "{name}: and has them all, not {all}");
    }
}

/// The results of many requests while Redis failed.
struct Measured {
    /// How long each request waited.
    waits: Vec<Duration>,
    /// How many requests waited at all according to the metric, and how many of those no longer than promised.
    counted: [u64; 2],
}

fn counted(node: &Node) -> [u64; 2] {
    let shown = node.metrics.render();
    ["count", "bucket{le=\"0.02\"}"].map(|what| {
        let line =
            shown.lines().find_map(|l| l.strip_prefix("keygate_counter_wait_seconds_")?.strip_prefix(what));
        line.expect("a metric").trim().parse::<u64>().expect("a number")
    })
}

/// How long each of many requests waited while Redis failed in this way. `None` if the failure was detected before the
/// first request: a node checks Redis once a second, and on a busy machine that second may be over.
async fn waits(server: &RedisServer, name: &str, mode: Mode) -> Option<Measured> {
    let proxy = ChaosProxy::before(server.address).await;
    let start = Instant::now();
    let clock = Arc::new(RuntimeClock { start, wall: crate::node::clock().now().wall });
    let node = Arc::new(Setup { clock, ..Setup::of(1) }.node("n", proxy.address).await);
    let keys: Vec<TestKey> = (0..KEYS).map(|_| TestKey::window(Per::Total, 1_000_000)).collect();
    for key in &keys {
        // On a busy machine an answer may be late.
        while key.charge(&node).await.expect("admitted").degraded() {
            assert!(start.elapsed() < PATIENCE, "{name}: before");
            tokio::task::yield_now().await;
        }
    }
    // Units left over from the first moment are returned.
    tokio::time::sleep(Duration::from_millis(150)).await;
    tokio::time::pause();
    proxy.set(mode);
    // Units leased before the failure are not what is measured.
    tokio::time::advance(Duration::from_millis(60)).await;
    if matches!(mode, Mode::Hang | Mode::Late(_)) && node.metrics.counter_up.get() == 0 {
        return None;
    }
    // Up to here real time was involved.
    let before = counted(&node);
    let lane = |key: TestKey| {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let mut waits = Vec::new();
            for _ in 0..EACH {
                let (charged, took) = key.timed(&node).await;
                drop(charged.expect("there is room in the share"));
                waits.push(took);
                tokio::task::yield_now().await;
            }
            waits
        })
    };
    let lanes: Vec<_> = keys.into_iter().map(lane).collect();
    let mut all = Vec::new();
    for lane in lanes {
        all.extend(lane.await.expect("a lane"));
    }
    let after = counted(&node);
    Some(Measured { waits: all, counted: [after[0] - before[0], after[1] - before[1]] })
}

/// However many keys are used while Redis hangs, the number of calls in flight is bounded.
#[test]
fn tasks_do_not_pile_up_while_redis_hangs_and_it_is_found_again_at_once() {
    const KEYS_MAX: usize = 4_000;
    let server = RedisServer::start();
    let io = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let setup = Setup { io: Some(io.handle().clone()), ..Setup::of(1) };
    let node = Arc::new(io.block_on(setup.node("n", server.address)));
    server.signal("-STOP");
    let test = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let most = test.block_on(async {
        let mut most = 0;
        let mut tasks = Vec::new();
        for n in 0..KEYS_MAX {
            let (node, key) = (Arc::clone(&node), TestKey::window(Per::Total, 1_000_000));
            tasks.push(tokio::spawn(async move {
                for _ in 0..3 {
                    drop(key.charge(&node).await.expect("its share is all"));
                }
            }));
            if n % 50 == 0 {
                tokio::task::yield_now().await;
                most = most.max(io.metrics().num_alive_tasks());
            }
        }
        for task in tasks {
            task.await.expect("a task");
            most = most.max(io.metrics().num_alive_tasks());
        }
        most
    });
    assert!(most <= 128 + 16, "{most} tasks for {KEYS_MAX} keys");
    server.signal("-CONT");
    let healed = Spare::begin();
    let key = TestKey::window(Per::Total, 1_000_000);
    test.block_on(async {
        while key.charge(&node).await.expect("its share is all").degraded() {
            assert!(healed.elapsed() < Duration::from_secs(2), "no recovery within 2 s");
            // Real time is measured.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let asking = || node.metrics.counter_asking.get();
        while asking() > 0 || io.metrics().num_alive_tasks() > 16 {
            assert!(healed.elapsed() < Duration::from_secs(10), "{} questions are left", asking());
            // Real time is measured.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    drop(node);
    io.shutdown_background();
}
