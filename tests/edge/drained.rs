//! Clients that leave in the middle of an answer, on routes that read it on to its end, and on those that do not.

use crate::http2::{Client, H2C, h2c, request};
use crate::speaks2::{DRIP, Speaks2};
use crate::support::{Gateway, Hold, Key, Origin, Request, eventually_true, route, upstream};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const QUESTION: &str = r#"{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Hello?"}]}"#;
/// What a whole answer used: in total, input, output, and how that is known.
const WHOLE: (u64, u64, u64, &str) = (130, 90, 40, "reported");

struct Place {
    origin: Origin,
    speaks2: Speaks2,
    hold: Hold,
    gateway: Gateway,
    key: Key,
}

/// A gateway before a backend of each version. Both send one event, and the one with the usage when they are released.
/// `proxy` is further lines of its section.
fn start(proxy: &str) -> Place {
    let (origin, speaks2, hold) = (Origin::start(), Speaks2::start(), Hold::new());
    let (released, asked) = (hold.clone(), AtomicU64::new(0));
    origin.script(move |_, out| {
        let nth = asked.fetch_add(1, Ordering::AcqRel) + 1;
        out.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        for (n, event) in DRIP.iter().enumerate() {
            // Each answer waits for a release of its own.
            released.wait(if n == 0 { 0 } else { nth });
            write!(out, "{:x}\r\n{event}\r\n", event.len())?;
            out.flush()?;
        }
        out.write_all(b"0\r\n\r\n")
    });
    let drained = "meter = \"llm\"\non_disconnect = \"drain\"";
    let config = [
        upstream("app", origin.address) + "read_timeout = \"2s\"\n",
        upstream("two", speaks2.address) + "protocol = \"http2\"\n",
        route("one", "/one/{rest*}", "app", drained),
        route("two", "/two/{rest*}", "two", drained),
        route("held", "/held/{rest*}", "app", "meter = \"llm\"\nhold = 50\non_disconnect = \"hold\""),
        H2C.to_owned(),
        "revocation_check = \"100ms\"\n".to_owned(),
        proxy.to_owned(),
    ];
    let gateway = Gateway::start(&config.concat());
    let limits = json!([{"count": "tokens", "per": "total", "max": 1_000_000}]);
    let key = gateway.create_key(json!({"limits": limits}));
    Place { origin, speaks2, hold, gateway, key }
}

impl Place {
    /// Asks over HTTP/1.1, reads the first event and leaves.
    fn ask_and_leave(&self, target: &str) {
        let mut client = self.gateway.connect();
        client.send(&Request::post(target, QUESTION).bearer(&self.key.secret).bytes());
        assert_eq!(client.response_head().status, 200);
        assert_eq!(client.chunk(), Some(DRIP[0].as_bytes().to_vec()));
        client.hang_up();
    }

    /// The same over HTTP/2. The client resets its stream, or closes its connection.
    async fn ask_and_leave_over_2(&self, target: &str, closes: bool) {
        let mut client = Client::connect(h2c(&self.gateway)).await;
        let (response, mut body) = client.begin(request("POST", target, &self.key.secret), false).await;
        body.send_data(Bytes::from_static(QUESTION.as_bytes()), true).unwrap();
        let mut answer = response.await.unwrap().into_body();
        assert_eq!(answer.data().await.unwrap().unwrap(), DRIP[0].as_bytes());
        drop((answer, body));
        if !closes {
            self.drains(1);
        }
    }

    fn drains(&self, n: u64) {
        let line = format!("keygate_answers_draining {n}");
        eventually_true(&line, || self.metric(&line));
    }

    fn metric(&self, line: &str) -> bool {
        self.gateway.metrics().lines().any(|found| found == line)
    }

    /// What became of `n` drains.
    #[track_caller]
    fn ended(&self, result: &str, n: u64) {
        let line = format!("keygate_answers_drained_total{{result=\"{result}\"}} {n}");
        assert!(self.metric(&line), "no {line} in {}", self.gateway.metrics());
    }

    /// The usage of the last of `n` records, whose client has left.
    #[track_caller]
    fn last_of(&self, n: usize) -> (Value, Value) {
        let row = self.gateway.wait_for_logs(&self.key, n).remove(0);
        assert_eq!(row["outcome"], "aborted", "{row:#}");
        eventually_true("nothing is held", || {
            let metrics = self.gateway.metrics();
            let mut held = metrics.lines().filter(|line| line.starts_with("keygate_held_units{"));
            held.all(|line| line.ends_with(" 0"))
        });
        (usage(&row), row)
    }
}

/// What is used of the key's budget of tokens, and what is held.
fn budget(gateway: &Gateway, key: &Key) -> (u64, u64) {
    let stats = gateway.stats(key);
    let limits = stats["limit_usage"].as_array().unwrap();
    let limit = limits.iter().find(|limit| limit["count"] == "tokens").unwrap();
    (limit["used"].as_u64().unwrap(), limit["held"].as_u64().unwrap())
}

fn usage(row: &Value) -> Value {
    json!(["tokens_used", "input_tokens", "output_tokens", "usage_source"].map(|field| row[field].clone()))
}

/// What a client that left after the first event is counted: an estimate of what it was sent.
fn delivered() -> Value {
    let input = QUESTION.len().div_ceil(4);
    json!([input + 2, input, 2, "estimated"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_read_to_its_end_over_every_version_of_both_sides() {
    let place = start("");
    let mut n = 0;
    for target in ["/one/drip", "/two/drip"] {
        for version in [1, 2, 3] {
            match version {
                1 => place.ask_and_leave(target),
                _ => place.ask_and_leave_over_2(target, version == 3).await,
            }
            place.drains(1);
            assert!(budget(&place.gateway, &place.key).1 > 0, "it keeps its hold");
            if target == "/one/drip" {
                place.hold.release()
            } else {
                place.speaks2.release()
            }
            n += 1;
            let (used, row) = place.last_of(n);
            assert_eq!(used, json!(WHOLE), "{target} {version}: {row:#}");
            assert_eq!(row["status_code"], 200);
            let sent = row["bytes_out"].as_u64();
            assert_eq!(sent, Some(DRIP[0].len() as u64), "only what the client was sent: {target} {version}");
            place.drains(0);
            place.ended("complete", n as u64);
        }
    }
    assert_eq!(budget(&place.gateway, &place.key), (6 * WHOLE.0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_one_that_had_not_begun() {
    let place = start("");
    let released = place.hold.clone();
    place.origin.script(move |_, out| {
        released.wait(1);
        let body = r#"{"model":"gpt-4o","choices":[{"message":{"content":"Hello"}}],"usage":{"prompt_tokens":90,"completion_tokens":40}}"#;
        write!(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    });
    let mut client = place.gateway.connect();
    client.send(&Request::post("/one/x", QUESTION).bearer(&place.key.secret).bytes());
    place.origin.wait_for_heads(1);
    client.hang_up();
    let mut client = Client::connect(h2c(&place.gateway)).await;
    let (response, mut body) = client.begin(request("POST", "/one/x", &place.key.secret), false).await;
    body.send_data(Bytes::from_static(QUESTION.as_bytes()), true).unwrap();
    place.origin.wait_for_heads(2);
    drop((response, body));
    place.drains(2);
    place.hold.release();
    for row in place.gateway.wait_for_logs(&place.key, 2) {
        assert_eq!(usage(&row), json!(WHOLE), "{row:#}");
        // As of any client that left before its response.
        assert_eq!(
            (&row["outcome"], &row["status_code"], &row["bytes_out"]),
            (&json!("aborted"), &json!(499), &json!(0))
        );
        assert_eq!(row["ttfb_ms"], Value::Null, "{row:#}");
    }
    place.ended("complete", 2);
    // The connections to the backend are used again.
    let before = place.origin.connections();
    assert_eq!(place.gateway.call(&Request::post("/one/x", QUESTION).bearer(&place.key.secret)).status, 200);
    assert_eq!(place.origin.connections(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_a_number_are_read_on_at_once() {
    let place = start("max_answers_drained = 1\n");
    place.ask_and_leave("/one/drip");
    place.drains(1);
    for n in 1..=2 {
        if n == 1 {
            place.ask_and_leave("/two/drip")
        } else {
            place.ask_and_leave_over_2("/one/drip", true).await
        }
        let row = place.gateway.wait_for_logs(&place.key, n).remove(0);
        assert_eq!(usage(&row), delivered(), "{row:#}");
        place.ended("full", n as u64);
    }
    place.drains(1);
    place.hold.release();
    assert_eq!(place.last_of(3).0.as_array().map(Vec::len), Some(4));
    place.ended("complete", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_with_its_time() {
    let place = start("answer_drain_timeout = \"300ms\"\n");
    for (n, target) in [(1, "/one/drip"), (2, "/two/drip")] {
        place.ask_and_leave(target);
        assert_eq!(place.last_of(2 * n - 1).0, delivered(), "{target}");
        place.ask_and_leave_over_2(target, true).await;
        assert_eq!(place.last_of(2 * n).0, delivered(), "{target} over HTTP/2");
        place.ended("timeout", 2 * n as u64);
    }
    place.drains(0);
    assert!(place.metric("keygate_connections_cut_total{reason=\"drain_late\"} 4"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_with_its_key() {
    let place = start("");
    place.ask_and_leave("/one/drip");
    place.ask_and_leave("/two/drip");
    place.ask_and_leave_over_2("/one/drip", true).await;
    place.ask_and_leave_over_2("/two/drip", true).await;
    place.drains(4);
    place.gateway.update_key(&place.key, &json!({"is_active": false}));
    for row in place.gateway.wait_for_logs(&place.key, 4) {
        assert_eq!(usage(&row), delivered(), "{row:#}");
    }
    place.last_of(4);
    place.ended("key", 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_when_the_gateway_stops_and_is_recorded() {
    let mut place = start("drain_timeout = \"1m\"\n");
    place.ask_and_leave("/one/drip");
    place.ask_and_leave("/two/drip");
    place.ask_and_leave_over_2("/one/drip", true).await;
    place.ask_and_leave_over_2("/two/drip", true).await;
    place.drains(4);
    let begun = Instant::now();
    assert_eq!(place.gateway.stop().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(20), "nobody waits for an answer that nobody gets");
    let Place { gateway, key, .. } = place;
    let gateway = gateway.restart();
    for row in gateway.wait_for_logs(&key, 4) {
        assert_eq!((usage(&row), &row["outcome"]), (delivered(), &json!("aborted")), "{row:#}");
    }
    assert_eq!(budget(&gateway, &key), (4 * delivered()[0].as_u64().unwrap(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_with_a_backend_that_stalls() {
    let place = start("");
    place.ask_and_leave("/one/drip");
    assert_eq!(place.last_of(1).0, delivered());
    place.ask_and_leave_over_2("/one/drip", true).await;
    assert_eq!(place.last_of(2).0, delivered());
    place.ended("backend", 2);
    place.drains(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_has_not_come_whole_is_not_read_on() {
    let mut place = start("");
    // Without a budget, the body goes on as it comes.
    place.key = place.gateway.create_key(json!({}));
    let begins = Request::post("/one/drip", QUESTION).bearer(&place.key.secret).bytes();
    let mut client = place.gateway.connect();
    client.send(&begins[..begins.len() - 1]);
    place.origin.wait_for_heads(1);
    client.hang_up();
    let (used, row) = place.last_of(1);
    assert_eq!(used[3], "estimated", "{row:#}");
    for result in ["complete", "full", "timeout", "key", "shutdown", "backend"] {
        place.ended(result, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_route_says_so_a_client_that_leaves_is_counted_what_it_held() {
    let place = start("");
    let input = QUESTION.len().div_ceil(4);
    let held = json!([input + 50, input, 50, "held"]);
    place.ask_and_leave("/held/drip");
    assert_eq!(place.last_of(1).0, held);
    place.ask_and_leave_over_2("/held/drip", true).await;
    assert_eq!(place.last_of(2).0, held);
    // One that stays is counted what it used.
    (0..3).for_each(|_| place.hold.release());
    let whole = place.gateway.call(&Request::post("/held/drip", QUESTION).bearer(&place.key.secret));
    assert_eq!(whole.status, 200);
    let row = place.gateway.wait_for_logs(&place.key, 3).remove(0);
    assert_eq!((usage(&row), &row["outcome"]), (json!(WHOLE), &json!("served")));
    place.ended("complete", 0);
}
