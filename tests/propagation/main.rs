//! How soon a change made through one node takes effect on another. It measures real time, so nothing runs beside it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and measures real time"
)]

#[path = "../counters/chaos.rs"]
#[expect(dead_code, reason = "the tests of trouble use it")]
mod chaos;
#[path = "../nodes/cluster.rs"]
#[expect(dead_code, reason = "the tests of several nodes use more of it")]
mod cluster;
#[path = "../store_behaviours/private_postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use more of it")]
mod private_postgres;
#[path = "../gateway/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the gateway's own tests use more of it")]
mod support;

use cluster::{Pair, pair, wait};
use private_postgres::Server;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Gateway, Key, Request, Spare, eventually_true, soon};

/// The interval of the background load: 500 requests per second to each node.
const EVERY: Duration = Duration::from_millis(2);

/// From the response of one node's admin API to the first request on which the other applies the change, 200 times, while
/// both serve 500 other requests per second each.
#[test]
fn a_change_acts_on_the_other_node_within_moments_while_both_are_busy() {
    const TRIALS: usize = 200;
    let Pair { first, second, _origin } = pair(&wait(Server::shared().database()));
    let key = first.create_key(
        json!({"rate_limit": 1_000, "rate_burst": 1_000_000, "daily_request_limit": 100_000_000}),
    );
    eventually_true("the other node knows the key", || second.get("/v1/app/x", &key.secret).status == 200);
    let busy = first.create_key(
        json!({"rate_limit": 1_000, "rate_burst": 1_000_000, "daily_request_limit": 100_000_000}),
    );
    let (load, served) = (Load::default(), AtomicU64::new(0));
    let mut waits = std::thread::scope(|scope| {
        // Ends the load also when a trial fails.
        let _until_then = load.guard();
        for node in [&first, &second] {
            scope.spawn(|| {
                let mut connection = node.connect();
                load.paced(|| {
                    connection.call(&Request::get("/v1/app/load").bearer(&busy.secret));
                    served.fetch_add(1, Ordering::Relaxed);
                });
            });
        }
        trials(TRIALS, &first, &second, &key)
    });
    let served = served.into_inner();
    let [real, spare] = [|wait: &Wait| wait.real, |wait: &Wait| wait.spare].map(|of| {
        waits.sort_by_key(of);
        [TRIALS / 2, TRIALS * 99 / 100, TRIALS - 1].map(|n| of(&waits[n]))
    });
    println!(
        "propagation over {TRIALS} changes beside {served} requests: median {:?}, p99 {:?}, latest {:?}",
        real[0], real[1], real[2]
    );
    assert!(spare[1] <= Duration::from_millis(100), "{real:?}, of which the machine had {spare:?} to spare");
    assert!(spare[2] <= Duration::from_secs(2), "{real:?}, of which the machine had {spare:?} to spare");
}

/// A steady load until it is stopped.
#[derive(Default)]
struct Load(AtomicBool);

struct Done<'l>(&'l Load);

impl Load {
    fn guard(&self) -> Done<'_> {
        Done(self)
    }

    fn paced(&self, mut request: impl FnMut()) {
        let mut next = Instant::now();
        while !self.0.load(Ordering::Relaxed) {
            request();
            next += EVERY;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// How long it took, and how much spare time the machine had meanwhile.
struct Wait {
    real: Duration,
    spare: Duration,
}

/// Disables and enables `key` through `first`; how long after each response the other node still applied the old state.
fn trials(count: usize, first: &Gateway, second: &Gateway, key: &Key) -> Vec<Wait> {
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let mut client = second.connect();
    let mut status = || {
        let response = client.call(&request);
        // A request in progress when its key is disabled may be the connection's last.
        if response.header("connection") == Some("close") {
            client = second.connect();
        }
        response.status
    };
    let one = |trial: usize| {
        let active = trial % 2 == 1;
        first.update_key(key, &json!({ "is_active": active }));
        let (answered, waited) = (Instant::now(), Spare::begin());
        while (status() == 200) != active {
            assert!(waited.elapsed() < Duration::from_secs(10), "trial {trial} never arrived");
        }
        Wait { real: answered.elapsed(), spare: waited.elapsed() }
    };
    (0..count).map(one).collect()
}

#[test]
fn a_change_that_nobody_announces_is_found_within_two_seconds() {
    let url = wait(Server::shared().database());
    let Pair { first, second, _origin } = pair(&url);
    let key = first.create_key(json!({}));
    eventually_true("the other node knows the key", || second.get("/v1/app/x", &key.secret).status == 200);
    // What a node would write, without the notification.
    let sql = "WITH next AS (UPDATE change_seq SET value = value + 1 RETURNING value)
               UPDATE keys SET is_active = false, version = (SELECT value FROM next)";
    wait(async { private_postgres::raw(&url).await.batch_execute(sql).await.unwrap() });
    soon(Duration::from_secs(2), "both nodes refuse the key", || {
        [&first, &second].iter().all(|node| node.get("/v1/app/x", &key.secret).status == 401)
    });
}

/// If the clock always stood, no promise could fail; if it always ran, any stall of the machine would fail one.
#[test]
fn the_clock_of_promises_goes_on_and_stands_while_the_machine_does() {
    let (real, spare) = (Instant::now(), Spare::begin());
    eventually_true("it goes on", || spare.elapsed() >= Duration::from_millis(100));
    let shown = spare.elapsed();
    assert!(shown <= real.elapsed(), "it is fast: {shown:?}");
    let (real, spare) = (Instant::now(), Spare::begin());
    // This process is stopped for a second.
    let stall = r#"kill -s STOP "$1"; sleep 1; kill -s CONT "$1""#;
    let pid = std::process::id().to_string();
    let stalled = std::process::Command::new("sh").args(["-c", stall, "sh", &pid]).status();
    assert!(stalled.expect("a shell").success());
    let (shown, passed) = (spare.elapsed(), real.elapsed());
    assert!(shown + Duration::from_millis(700) <= passed, "{shown:?} of {passed:?}");
}
