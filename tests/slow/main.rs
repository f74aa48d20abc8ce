//! What a thousand clients that hold on cost the others. A measurement, so it runs by itself: `make measure`.
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

use serde_json::json;
use std::time::{Duration, Instant};
use support::{Gateway, Raw, Request, stand};

const CLIENTS: u32 = 8;
const REQUESTS_PER_SECOND: u32 = 1_000;
const FOR: Duration = Duration::from_secs(4);
const SLOW: usize = 1_000;
/// How much later the slowest hundredth may be answered.
const LATER_MAX: Duration = Duration::from_millis(5);

/// The 99th percentile of the latency of so many requests a second over a few connections.
fn p99(gateway: &Gateway, secret: &str) -> Duration {
    let every = Duration::from_secs(1) * CLIENTS / REQUESTS_PER_SECOND;
    let request = Request::get("/v1/app/x").bearer(secret);
    let mut all: Vec<Duration> = std::thread::scope(|scope| {
        let client = || {
            let mut client = gateway.connect();
            let begun = Instant::now();
            let mut taken = Vec::new();
            for n in 0.. {
                // From when it was due: a late answer makes the next ones late as well, and that counts.
                let due = begun + every * n;
                if due > begun + FOR {
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
    all.sort_unstable();
    all[all.len() * 99 / 100]
}

/// Clients that say nothing, half a head, half a body, or take none of what they asked for.
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
    // Alternating, because other work on the machine comes and goes.
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let alone = p99(&gateway, &secret);
        let slow = hold_on(&gateway, &secret);
        // What was asked for is on its way until the sockets are full; the subject is what holding on costs after that.
        p99(&gateway, &secret);
        let beside = p99(&gateway, &secret);
        println!("p99 alone {alone:?}, beside {} slow clients {beside:?}", slow.len());
        rounds.push((beside.saturating_sub(alone), alone, beside));
    }
    rounds.sort_unstable();
    let (later, alone, beside) = rounds[1];
    println!("median: {alone:?} alone, {beside:?} beside them: {later:?} later");
    assert!(later <= LATER_MAX, "{later:?} later");
}
