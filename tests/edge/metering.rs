//! What the answers of a metered route used: in the record and the metrics, over both HTTP versions, with every byte unchanged.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::public::public;
use crate::support::{Gateway, Hold, Key, Origin, Request, eventually_true, route, upstream};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const EVENTS: [&str; 4] = [
    "data: {\"id\":\"chatcmpl-1\",\"model\":\"gpt-4o-2024-08-06\",\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n",
    "data: {not json}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"model\":\"gpt-4o-2024-08-06\",\"choices\":[],\"usage\":{\"prompt_tokens\":90,\"completion_tokens\":40,\
     \"prompt_tokens_details\":{\"cached_tokens\":30},\"cost\":0.0005}}\n\n",
    "data: [DONE]\n\n",
];
const QUESTION: &str = r#"{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Hello?"}]}"#;
const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: req_1\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A gateway with one route for language models, and one for each other kind of meter.
fn metered() -> (Origin, Gateway, Key) {
    let origin = Origin::start();
    let config = [
        upstream("app", origin.address),
        route("llm", "/v1/{rest*}", "app", "meter = \"llm\""),
        route("zero", "/zero/{rest*}", "app", "meter = \"llm\"\nmissing = \"zero\""),
        route("units", "/units", "app", "meter = \"json:/result/units\""),
        route("header", "/header", "app", "meter = \"header:X-Tokens-Used\""),
        route("plain", "/plain", "app", ""),
        public("open", "/open", "meter = \"json:/result/units\""),
        H2C.to_owned(),
    ];
    let gateway = Gateway::start(&config.concat());
    let key = gateway.create_key(json!({}));
    (origin, gateway, key)
}

/// Answers with these parts, one chunk each. The first `free` are sent at once, each further one when `hold` is released.
fn stream(origin: &Origin, parts: &'static [&'static str], free: usize, hold: &Hold) {
    let hold = hold.clone();
    origin.script(move |_, out| {
        out.write_all(STREAM_HEAD)?;
        for (n, part) in parts.iter().enumerate() {
            if n >= free {
                hold.wait(u64::try_from(n - free + 1).unwrap());
            }
            write!(out, "{:x}\r\n{part}\r\n", part.len())?;
            out.flush()?;
        }
        out.write_all(b"0\r\n\r\n")
    });
}

/// A request with a body over HTTP/2.
async fn ask(client: &mut Client, target: &str, key: &Key) -> crate::http2::Answer {
    let (response, mut body) = client.begin(request("POST", target, &key.secret), false).await;
    body.send_data(Bytes::from_static(QUESTION.as_bytes()), true).unwrap();
    read(response).await.unwrap()
}

/// What a record says about its use.
fn usage(row: &Value) -> Value {
    let fields = [
        "tokens_used",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "cost_nano",
        "usage_source",
        "model_requested",
        "model",
        "provider_request_id",
    ];
    fields.iter().map(|field| row.get(*field).cloned().unwrap_or("no such field".into())).collect()
}

#[track_caller]
fn assert_metric(gateway: &Gateway, series: &str, value: u64) {
    let metrics = gateway.metrics();
    assert!(
        metrics.lines().any(|line| line == format!("{series} {value}")),
        "no {series} {value} in {metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_metered_and_unchanged_over_both_versions() {
    let (origin, gateway, key) = metered();
    assert_metric(&gateway, "keygate_tokens_total{kind=\"input\",model=\"other\",route=\"llm\"}", 0);
    assert_metric(&gateway, "keygate_meter_unreadable_total{reason=\"event\"}", 0);
    stream(&origin, &EVENTS, EVENTS.len(), &Hold::new());
    let response = gateway.call(&Request::post("/v1/chat/completions", QUESTION).bearer(&key.secret));
    assert_eq!((response.status, response.text()), (200, EVENTS.concat()));
    let answer = ask(&mut Client::connect(h2c(&gateway)).await, "/v1/chat/completions", &key).await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, EVENTS.concat().into_bytes()));
    assert_eq!(origin.last().body, QUESTION.as_bytes());
    for row in gateway.wait_for_logs(&key, 2) {
        let told = json!([130, 90, 30, 40, 500_000, "reported", "gpt-4o", "gpt-4o-2024-08-06", "req_1"]);
        assert_eq!(usage(&row), told, "{row:#}");
    }
    assert_metric(&gateway, "keygate_tokens_total{kind=\"input\",model=\"other\",route=\"llm\"}", 180);
    assert_metric(&gateway, "keygate_tokens_total{kind=\"cached\",model=\"other\",route=\"llm\"}", 60);
    assert_metric(&gateway, "keygate_meter_unreadable_total{reason=\"event\"}", 2);
    assert_metric(&gateway, "keygate_meter_unreadable_total{reason=\"no_usage\"}", 0);
}

#[test]
fn each_event_passes_before_the_next_one_comes() {
    let (origin, gateway, key) = metered();
    let hold = Hold::new();
    stream(&origin, &EVENTS, 0, &hold);
    let mut client = gateway.connect();
    client.send(&Request::post("/v1/chat/completions", QUESTION).bearer(&key.secret).bytes());
    assert_eq!(client.response_head().status, 200);
    for event in EVENTS {
        hold.release();
        assert_eq!(client.chunk(), Some(event.as_bytes().to_vec()));
    }
    assert_eq!(client.chunk(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_answer_is_metered_and_unchanged() {
    let (origin, gateway, key) = metered();
    let text = br#"{"id":"msg_1","model":"claude","content":[{"type":"text","text":"Hi"}],
        "usage":{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":7}}"#;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    let body = encoder.finish().unwrap();
    let sent = body.clone();
    origin.script(move |_, out| {
        let length = sent.len();
        write!(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n")?;
        out.write_all(&sent)
    });
    assert_eq!(gateway.call(&Request::post("/v1/messages", "{}").bearer(&key.secret)).body, body);
    assert_eq!(ask(&mut Client::connect(h2c(&gateway)).await, "/v1/messages", &key).await.body, body);
    for row in gateway.wait_for_logs(&key, 2) {
        let told = [json!(22), json!(15), json!(5), json!(7), Value::Null, json!("reported")];
        assert_eq!(usage(&row).as_array().unwrap()[..6], told, "{row:#}");
        assert_eq!((&row["model"], &row["provider_request_id"]), (&json!("claude"), &json!("msg_1")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_of_a_cancelled_stream_is_estimated_from_what_was_sent() {
    let (origin, gateway, key) = metered();
    stream(&origin, &EVENTS, 1, &Hold::new());
    let input = QUESTION.len().div_ceil(4);
    let told = json!([input + 2, input, 0, 2, null, "estimated", "gpt-4o", "gpt-4o-2024-08-06", "req_1"]);
    let mut client = gateway.connect();
    client.send(&Request::post("/v1/chat/completions", QUESTION).bearer(&key.secret).bytes());
    assert_eq!(client.response_head().status, 200);
    assert_eq!(client.chunk(), Some(EVENTS[0].as_bytes().to_vec()));
    client.hang_up();
    assert_eq!(usage(&gateway.wait_for_logs(&key, 1)[0]), told);
    assert_metric(&gateway, "keygate_meter_unreadable_total{reason=\"truncated\"}", 1);

    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut body) =
        client.begin(request("POST", "/v1/chat/completions", &key.secret), false).await;
    body.send_data(Bytes::from_static(QUESTION.as_bytes()), true).unwrap();
    let mut answer = response.await.unwrap().into_body();
    assert_eq!(answer.data().await.unwrap().unwrap(), EVENTS[0].as_bytes());
    drop((answer, body));
    assert_eq!(usage(&gateway.wait_for_logs(&key, 2)[0]), told);
}

#[test]
fn a_client_that_leaves_before_the_answer_has_used_its_input() {
    let (origin, gateway, key) = metered();
    origin.answer_after(&Hold::new());
    let mut client = gateway.connect();
    client.send(&Request::post("/v1/chat/completions", QUESTION).bearer(&key.secret).bytes());
    origin.wait_for_heads(1);
    client.hang_up();
    let input = QUESTION.len().div_ceil(4);
    let told = json!([input, input, 0, 0, null, "estimated", "gpt-4o", null, null]);
    assert_eq!(usage(&gateway.wait_for_logs(&key, 1)[0]), told);
}

#[test]
fn an_answer_that_took_two_attempts_is_counted_once() {
    let origins = [Origin::start(), Origin::start()];
    let attempts = Arc::new(AtomicUsize::new(0));
    for origin in &origins {
        let attempts = Arc::clone(&attempts);
        origin.script(move |_, out| {
            if attempts.fetch_add(1, Ordering::AcqRel) == 0 {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            out.write_all(b"HTTP/1.1 200 OK\r\nX-Tokens-Used: 7\r\nContent-Length: 0\r\n\r\n")
        });
    }
    let servers = origins.each_ref().map(|origin| origin.address.to_string());
    let group = format!("[[upstreams]]\nname = \"app\"\nservers = {servers:?}\n");
    let gateway =
        Gateway::start(&(group + &route("header", "/header", "app", "meter = \"header:X-Tokens-Used\"")));
    let key = gateway.create_key(json!({}));
    assert_eq!(gateway.get("/header", &key.secret).status, 200);
    assert_eq!(attempts.load(Ordering::Acquire), 2);
    assert_eq!(gateway.wait_for_logs(&key, 1)[0]["tokens_used"], 7);
    assert_metric(&gateway, "keygate_tokens_total{kind=\"total\",model=\"other\",route=\"header\"}", 7);
}

#[test]
fn each_kind_of_meter_says_what_it_found() {
    let (origin, gateway, key) = metered();
    let json = &[("Content-Type", "application/json")];
    let mut seen = 0;
    let mut row_of = |method: &str, target: &str| {
        gateway.call(&Request::new(method, target).bearer(&key.secret).body(""));
        seen += 1;
        let row = gateway.wait_for_logs(&key, seen).remove(0);
        (row["tokens_used"].as_u64().unwrap(), row["usage_source"].as_str().map(str::to_owned))
    };
    origin.answer(200, json, br#"{"result":{"units":42}}"#);
    assert_eq!(row_of("GET", "/units"), (42, Some("reported".into())));
    assert_eq!(gateway.call(&Request::get("/open")).status, 200);
    eventually_true("a request without a key is metered too", || {
        gateway.metrics().contains("keygate_tokens_total{kind=\"total\",model=\"other\",route=\"open\"} 42")
    });
    assert_eq!(row_of("POST", "/zero/chat"), (0, Some("missing".into())));
    assert_eq!(row_of("GET", "/v1/models"), (0, None));
    assert_eq!(row_of("GET", "/plain"), (0, None));
    origin.answer(500, json, br#"{"usage":{"prompt_tokens":4}}"#);
    assert_eq!(row_of("POST", "/v1/chat/completions"), (0, None));
    // The client gets 502 and nothing of this answer, so it has not used it.
    origin.script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
    });
    assert_eq!(row_of("POST", "/v1/chat/completions"), (0, None));
    origin.answer(200, json, br#"{"usage":{"prompt_tokens":0,"completion_tokens":0}}"#);
    assert_eq!(row_of("POST", "/v1/chat/completions"), (0, Some("reported".into())));
    eventually_true("the answer without usage is counted", || {
        gateway.metrics().contains("keygate_meter_unreadable_total{reason=\"no_usage\"} 1")
    });
}
