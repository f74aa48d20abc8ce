//! The cost of a thousand slow clients for the others, and of ten thousand guessed secrets a second. A measurement, so it
//! runs by itself: `make measure`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and measures real time"
)]

#[path = "../gateway/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the gateway's own tests use more of it")]
mod support;

use keygate::model::key::KeyType;
use keygate::policy::keys::secret::Secret;
use serde_json::json;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::{Gateway, Raw, Request, stand};

const CLIENTS: u32 = 8;
const REQUESTS_PER_SECOND: u32 = 1_000;
/// The duration of each measurement, and the settling time after slow clients have connected.
const FOR: Duration = Duration::from_secs(2);
const SETTLING: Duration = Duration::from_secs(1);
const ROUNDS: usize = 9;
const SLOW: usize = 1_000;
/// Wrong secrets a second, and their connections.
const GUESSES_PER_SECOND: u32 = 10_000;
const GUESSERS: u32 = 8;
/// By how much the 99th percentile may grow beside slow clients, and beside guesses.
const LATER_MAX: Duration = Duration::from_millis(5);
const LATER_MAX_BESIDE_GUESSES: Duration = Duration::from_millis(2);
/// By how much CPU per request may grow, which other load on the machine distorts far less.
const DEARER_MAX: Duration = Duration::from_micros(100);

/// The result of one measurement.
struct Measured {
    /// The 99th percentile of the latency seen by clients.
    p99: Duration,
    /// The smallest histogram bound that covers 99 of 100 decisions of the gateway.
    own_p99: f64,
    /// CPU of the gateway's threads per request, and how long they waited for a CPU.
    cpu: Duration,
    queued: Duration,
}

/// The gateway's counters so far.
struct SoFar {
    cpu: Duration,
    queued: Duration,
    /// Decisions within a bound, by bound.
    own: Vec<(f64, u64)>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p99, own_p99, cpu, queued } = self;
        write!(f, "p99 {p99:?}, own p99 at most {own_p99} s, CPU {cpu:?} and {queued:?} queued a request")
    }
}

impl SoFar {
    fn of(gateway: &Gateway) -> Self {
        let (mut cpu, mut queued) = (0, 0);
        for task in std::fs::read_dir(format!("/proc/{}/task", gateway.ready["pid"])).unwrap() {
            // The thread has just ended.
            let Ok(text) = std::fs::read_to_string(task.unwrap().path().join("schedstat")) else { continue };
            let mut numbers = text.split_ascii_whitespace().map(|n| n.parse::<u64>().unwrap());
            cpu += numbers.next().unwrap();
            queued += numbers.next().unwrap();
        }
        let text = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
        let bucket = |line: &str| {
            let (bound, n) =
                line.strip_prefix("keygate_own_duration_seconds_bucket{le=\"")?.split_once("\"} ")?;
            Some((bound.parse().unwrap_or(f64::INFINITY), n.parse().unwrap()))
        };
        let own = text.lines().filter_map(bucket).collect();
        Self { cpu: Duration::from_nanos(cpu), queued: Duration::from_nanos(queued), own }
    }
}

/// Sends that many requests a second over a few connections.
fn measure(gateway: &Gateway, secret: &str, lasting: Duration) -> Measured {
    let before = SoFar::of(gateway);
    let every = Duration::from_secs(1) * CLIENTS / REQUESTS_PER_SECOND;
    let request = Request::get("/v1/app/x").bearer(secret);
    let mut all: Vec<Duration> = std::thread::scope(|scope| {
        let client = || {
            let mut client = gateway.connect();
            let begun = Instant::now();
            let mut taken = Vec::new();
            for n in 0.. {
                // From the time it was due: a late response delays the next ones as well, and that counts.
                let due = begun + every * n;
                if due > begun + lasting {
                    return taken;
                }
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                assert_eq!(client.call(&request).status, 200);
                taken.push(due.elapsed());
            }
            taken
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let after = SoFar::of(gateway);
    all.sort_unstable();
    let requests = u32::try_from(all.len()).unwrap();
    let within: Vec<(f64, u64)> =
        after.own.iter().zip(&before.own).map(|((bound, a), (_, b))| (*bound, a - b)).collect();
    let decided = within.last().expect("buckets").1;
    let own_p99 = within.iter().find(|(_, n)| n * 100 >= decided * 99).expect("a bucket").0;
    Measured {
        p99: all[all.len() * 99 / 100],
        own_p99,
        cpu: (after.cpu - before.cpu) / requests,
        queued: (after.queued - before.queued) / requests,
    }
}

/// The median of the differences, in seconds.
fn more(rounds: &[(Measured, Measured)], what: impl Fn(&Measured) -> Duration) -> f64 {
    let difference = |(a, b): &(Measured, Measured)| what(b).as_secs_f64() - what(a).as_secs_f64();
    let mut all: Vec<f64> = rounds.iter().map(difference).collect();
    all.sort_unstable_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Clients that send nothing, half a head or half a body, or read none of their response.
fn hold_on(gateway: &Gateway, secret: &str) -> Vec<Raw> {
    let post = Request::post("/v1/app/x", vec![b'x'; 10_000]).bearer(secret).head();
    let large = Request::get("/v1/app/large").bearer(secret).bytes();
    let beginnings = [b"".as_slice(), b"GET /v1/app/x HTTP/1.1\r\nHost: h\r\nX-Slow: ", &post, &large];
    (0..SLOW)
        .map(|n| {
            let mut client = gateway.connect();
            client.send(beginnings[n % beginnings.len()]);
            client
        })
        .collect()
}

/// Measures with and without the load of `others`, in turn, because other work on the machine comes and goes. Returns how
/// many seconds of CPU more a request cost beside that load.
fn compare<T>(gateway: &Gateway, secret: &str, later_max: Duration, mut others: impl FnMut() -> T) -> f64 {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let alone = measure(gateway, secret, FOR);
        let there = others();
        // The initial phase is not measured: responses are sent until the sockets are full.
        measure(gateway, secret, SETTLING);
        let beside = measure(gateway, secret, FOR);
        drop(there);
        println!("alone:  {alone}\nbeside: {beside}");
        rounds.push((alone, beside));
    }
    let (later, dearer) = (more(&rounds, |m| m.p99), more(&rounds, |m| m.cpu));
    println!(
        "medians of the differences: {:+.3} ms of p99, {:+.1} µs of CPU a request",
        later * 1e3,
        dearer * 1e6
    );
    // Other work can only make a round worse.
    let best = |of: fn(&(Measured, Measured)) -> Duration| rounds.iter().map(of).min().unwrap();
    println!("the best rounds: p99 {:?} alone, {:?} beside them", best(|r| r.0.p99), best(|r| r.1.p99));
    // How much the machine's other work changes the latency without any slow client.
    let spread = rounds.iter().map(|r| r.0.p99).max().unwrap() - best(|r| r.0.p99);
    if spread > later_max {
        println!("this machine was too busy to say more about latency: alone, the p99 moved by {spread:?}");
    } else {
        assert!(later <= later_max.as_secs_f64(), "{later} s later");
    }
    dearer
}

#[test]
fn a_thousand_slow_clients_move_the_others_p99_by_at_most_five_milliseconds() {
    let (origin, gateway) = stand("[plans.default]\napi_ops_rate_limit = 1000000\n");
    let secret =
        gateway.create_key(json!({"rate_limit": 1_000_000, "daily_request_limit": 100_000_000})).secret;
    let large = vec![b'x'; 4 << 20];
    origin.script(move |received, out| {
        let body: &[u8] = if received.target.ends_with("large") { &large } else { b"{\"ok\":true}" };
        write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
        out.write_all(body)
    });
    let dearer = compare(&gateway, &secret, LATER_MAX, || hold_on(&gateway, &secret));
    assert!(dearer <= DEARER_MAX.as_secs_f64(), "{dearer} s of CPU a request");
}

/// Clients that present one wrong secret after the other until this is dropped.
struct Guessing {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u32>>,
}

impl Guessing {
    fn begin(gateway: &Gateway) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let guess = |_| {
            let (mut client, stop) = (gateway.connect(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (begun, every) = (Instant::now(), Duration::from_secs(1) * GUESSERS / GUESSES_PER_SECOND);
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    let secret = Secret::generate("sk", KeyType::Service);
                    let request = Request::get("/v1/app/x").bearer(secret.expose());
                    assert_eq!(client.call(&request).status, 401);
                    done += 1;
                    std::thread::sleep((begun + every * done).saturating_duration_since(Instant::now()));
                }
                done
            })
        };
        Self { threads: (0..GUESSERS).map(guess).collect(), stop: Arc::clone(&stop) }
    }
}

impl Drop for Guessing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let done: u32 = self.threads.drain(..).map(|thread| thread.join().unwrap()).sum();
        println!("{done} guesses");
    }
}

#[test]
fn ten_thousand_guesses_a_second_move_the_others_p99_by_at_most_two_milliseconds() {
    let config = "[proxy]\nmax_invalid_keys = 0\n[plans.default]\napi_ops_rate_limit = 1000000\n";
    let (_origin, gateway) = stand(config);
    let secret =
        gateway.create_key(json!({"rate_limit": 1_000_000, "daily_request_limit": 100_000_000})).secret;
    compare(&gateway, &secret, LATER_MAX_BESIDE_GUESSES, || Guessing::begin(&gateway));
}
