//! Requests that ask for no more output than was admitted, and answers that count what was held.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::speaks2::Speaks2;
use crate::support::{Gateway, Hold, Key, Origin, Request, route, upstream};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzEncoder;
use serde_json::{Value, json};
use std::io::Read as _;

const CHAT: &str = "/v1/chat/completions";
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];
/// What an answer uses: 10 and 20 tokens.
const ANSWER: &[u8] = br#"{"model":"m","choices":[{}],"usage":{"prompt_tokens":10,"completion_tokens":20}}"#;
/// What is held without a maximum.
const HOLD: u64 = 280;
const BUDGET: u64 = 300;

fn start() -> (Origin, Speaks2, Gateway) {
    let (origin, speaks2) = (Origin::start(), Speaks2::start());
    origin.answer(200, JSON, ANSWER);
    let clamp = format!("meter = \"llm\"\nhold = {HOLD}\nclamp = true");
    let held = "meter = \"llm\"\nhold = 200\nmissing = \"hold\"";
    let config = [
        upstream("one", origin.address),
        upstream("two", speaks2.address) + "protocol = \"http2\"\n",
        route("llm", "/v1/{rest*}", "one", &clamp),
        route("model", "/model/{rest*}", "one", &clamp),
        route("moved", "/moved", "one", &format!("{clamp}\nrewrite = \"/v1/responses\"")),
        route("two", "/two/{rest*}", "two", &clamp),
        route("off", "/off/{rest*}", "one", &format!("meter = \"llm\"\nhold = {HOLD}")),
        route("held", "/held/{rest*}", "one", held),
        H2C.to_owned(),
    ];
    (origin, speaks2, Gateway::start(&config.concat()))
}

fn key_with(gateway: &Gateway, tokens: u64) -> Key {
    gateway.create_key(json!({"limits": [{"count": "tokens", "per": "total", "max": tokens}]}))
}

fn tokens_of(body: &str) -> u64 {
    u64::try_from(body.len()).unwrap().div_ceil(4)
}

/// The status of the answer to a request over HTTP/2.
async fn second(
    gateway: &Gateway,
    key: &Key,
    path: &str,
    fields: &[(&'static str, &str)],
    body: &[u8],
) -> u16 {
    let mut client = Client::connect(h2c(gateway)).await;
    let mut head = request("POST", path, &key.secret);
    for (name, value) in fields {
        head.headers_mut().insert(*name, value.parse().unwrap());
    }
    head.headers_mut().insert("content-length", body.len().into());
    let (response, mut to) = client.begin(head, false).await;
    to.send_data(Bytes::copy_from_slice(body), true).unwrap();
    read(response).await.unwrap().status.as_u16()
}

fn first(gateway: &Gateway, key: &Key, path: &str, fields: &[(&'static str, &str)], body: &[u8]) -> u16 {
    let request = Request::post(path, body).bearer(&key.secret);
    let request = fields.iter().fold(request, |request, (name, value)| request.header(name, value));
    gateway.call(&request).status
}

/// What the backend gets of a request over each HTTP, each from a key with a budget of its own.
async fn passed_on(origin: &Origin, gateway: &Gateway, path: &str, body: &str, budget: u64) -> [String; 2] {
    let got = || {
        let request = origin.last();
        let length = request.body.len().to_string();
        assert_eq!(request.header("content-length"), Some(&*length), "{path} {body}");
        String::from_utf8(request.body).unwrap()
    };
    let one = key_with(gateway, budget);
    assert_eq!(first(gateway, &one, path, &[], body.as_bytes()), 200, "{path} {body}");
    let one = got();
    let other = key_with(gateway, budget);
    assert_eq!(second(gateway, &other, path, &[], body.as_bytes()).await, 200, "{path} {body}");
    [one, got()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_maximum_of_a_request_is_lowered_to_what_is_left_in_every_dialect() {
    let (origin, _, gateway) = start();
    // `MAX` stands for what is left of each answer. It is no more than `HOLD`, so that it is added as well.
    for (path, choices, body, expected) in [
        (
            CHAT,
            1,
            r#"{"model":"m", "max_tokens" : 5000 ,"messages":[]}"#,
            r#"{"model":"m", "max_tokens" : MAX ,"messages":[]}"#,
        ),
        (
            CHAT,
            3,
            r#"{"n":3,"max_completion_tokens":900,"messages":["é"]}"#,
            r#"{"n":3,"max_completion_tokens":MAX,"messages":["é"]}"#,
        ),
        (CHAT, 1, r#"{"messages":["Hello?"]}"#, r#"{"max_completion_tokens":MAX,"messages":["Hello?"]}"#),
        (
            CHAT,
            1,
            r#"{"max_tokens":700,"max_completion_tokens":800,"messages":[]}"#,
            r#"{"max_tokens":MAX,"max_completion_tokens":MAX,"messages":[]}"#,
        ),
        (
            CHAT,
            1,
            r#"{"stream":true,"messages":["Hello?"]}"#,
            r#"{"max_completion_tokens":MAX,"stream_options":{"include_usage":true},"stream":true,"messages":["Hello?"]}"#,
        ),
        (
            "/v1/completions",
            2,
            r#"{"prompt":"Hello?","best_of":2}"#,
            r#"{"max_tokens":MAX,"prompt":"Hello?","best_of":2}"#,
        ),
        ("/v1/responses", 1, r#"{"input":"Hello?"}"#, r#"{"max_output_tokens":MAX,"input":"Hello?"}"#),
        ("/moved", 1, r#"{"input":"Hello?"}"#, r#"{"max_output_tokens":MAX,"input":"Hello?"}"#),
        ("/v1/messages", 1, r#"{"max_tokens":4096,"messages":[]}"#, r#"{"max_tokens":MAX,"messages":[]}"#),
        (
            "/v1/models/gemini:generateContent",
            2,
            r#"{"contents":[],"generationConfig":{"candidateCount":2,"maxOutputTokens":999}}"#,
            r#"{"contents":[],"generationConfig":{"candidateCount":2,"maxOutputTokens":MAX}}"#,
        ),
        (
            "/model/m/converse",
            1,
            r#"{"inferenceConfig":{"maxTokens":2048},"messages":[]}"#,
            r#"{"inferenceConfig":{"maxTokens":MAX},"messages":[]}"#,
        ),
        // Nothing to lower, or no place to say it.
        (CHAT, 1, r#"{"max_tokens":5,"messages":[]}"#, r#"{"max_tokens":5,"messages":[]}"#),
        (
            "/off/chat/completions",
            1,
            r#"{"max_tokens":5000,"messages":[]}"#,
            r#"{"max_tokens":5000,"messages":[]}"#,
        ),
        ("/v1/models/gemini:generateContent", 1, r#"{"contents":[]}"#, r#"{"contents":[]}"#),
        (CHAT, 1, r#"{"max_tokens":5000"#, r#"{"max_tokens":5000"#),
    ] {
        let budget = HOLD + tokens_of(body);
        let most = HOLD / choices;
        let expected = expected.replace("MAX", &most.to_string());
        for got in passed_on(&origin, &gateway, path, body, budget).await {
            assert_eq!(got, expected, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_over_http2_gets_the_lowered_maximum() {
    let (_origin, speaks2, gateway) = start();
    let body = r#"{"max_tokens":5000,"messages":[]}"#;
    let expected = format!(r#"{{"max_tokens":{},"messages":[]}}"#, BUDGET - tokens_of(body));
    let key = key_with(&gateway, BUDGET);
    assert_eq!(first(&gateway, &key, "/two/chat/completions", &[], body.as_bytes()), 200);
    let key = key_with(&gateway, BUDGET);
    assert_eq!(second(&gateway, &key, "/two/chat/completions", &[], body.as_bytes()).await, 200);
    let heard = speaks2.heard();
    assert_eq!(heard.len(), 2);
    for (fields, got) in heard {
        assert_eq!(String::from_utf8(got).unwrap(), expected);
        assert_eq!(fields["content-length"], expected.len().to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maximum_is_lowered_but_not_added_where_enough_is_left() {
    let (origin, _, gateway) = start();
    let body = r#"{"messages":[]}"#;
    assert_eq!(passed_on(&origin, &gateway, CHAT, body, 100_000).await, [body; 2]);
    let body = r#"{"max_tokens":1000000}"#;
    let expected = format!(r#"{{"max_tokens":{}}}"#, 100_000 - tokens_of(body));
    assert_eq!(passed_on(&origin, &gateway, CHAT, body, 100_000).await, [&*expected; 2]);
    let key = gateway.create_key(json!({}));
    assert_eq!(first(&gateway, &key, CHAT, &[], body.as_bytes()), 200);
    assert_eq!(origin.last().body, body.as_bytes(), "no limit is in force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_whose_maximum_cannot_be_lowered_must_fit_whole() {
    let (origin, _, gateway) = start();
    let key = key_with(&gateway, BUDGET);
    let asking = br#"{"max_tokens":5000}"#;
    let gzip = |body: &[u8]| {
        let mut coded = Vec::new();
        GzEncoder::new(body, Compression::fast()).read_to_end(&mut coded).unwrap();
        coded
    };
    let coded = gzip(asking);
    let gzip = &[("content-encoding", "gzip")][..];
    assert_eq!(first(&gateway, &key, CHAT, gzip, &coded), 200);
    assert_eq!(origin.last().body, coded, "it goes on as it came");
    gateway.wait_for_logs(&key, 1);
    let twice = r#"{"max_tokens":5000,"#.to_owned() + &r#""max_tokens":5000,"#.repeat(9) + r#""a":1}"#;
    for (path, fields, body) in [
        (CHAT, gzip, &coded[..]),
        (CHAT, &[], b"no JSON"),
        (CHAT, &[], twice.as_bytes()),
        ("/v1/embeddings", &[], br#"{"input":"x"}"#),
    ] {
        assert_eq!(first(&gateway, &key, path, fields, body), 429, "{path}");
        assert_eq!(second(&gateway, &key, path, fields, body).await, 429, "{path}");
    }
    // This fits with less.
    assert_eq!(first(&gateway, &key, CHAT, &[], asking), 200);
    let left = BUDGET - 30 - 5;
    assert_eq!(origin.last().body, format!(r#"{{"max_tokens":{left}}}"#).as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_for_each_answer_a_request_is_refused() {
    let (origin, _, gateway) = start();
    let key = key_with(&gateway, BUDGET);
    // 22 bytes are 6 tokens, and 2 more are left.
    let body = |n| format!(r#"{{"max_tokens":900,"n":{n}}}"#);
    assert_eq!(tokens_of(&body(2)), 6);
    origin.answer(200, JSON, br#"{"usage":{"prompt_tokens":92,"completion_tokens":200}}"#);
    assert_eq!(first(&gateway, &key, CHAT, &[], body(1).as_bytes()), 200);
    gateway.wait_for_logs(&key, 1);
    assert_eq!(first(&gateway, &key, CHAT, &[], body(3).as_bytes()), 429);
    assert_eq!(second(&gateway, &key, CHAT, &[], body(3).as_bytes()).await, 429);
    origin.answer(200, JSON, br#"{"usage":{"prompt_tokens":1,"completion_tokens":1}}"#);
    assert_eq!(first(&gateway, &key, CHAT, &[], body(2).as_bytes()), 200);
    assert_eq!(origin.last().body, br#"{"max_tokens":1,"n":2}"#);
    gateway.wait_for_logs(&key, 4);
    // 6 are left, which is the input alone.
    assert_eq!(first(&gateway, &key, CHAT, &[], body(1).as_bytes()), 429);
}

/// What the newest record says about its use.
fn usage(gateway: &Gateway, key: &Key, records: usize) -> Value {
    let row = &gateway.wait_for_logs(key, records)[0];
    json!([row["tokens_used"], row["input_tokens"], row["output_tokens"], row["usage_source"]])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_says_nothing_counts_what_was_held() {
    let (origin, _, gateway) = start();
    let path = "/held/chat/completions";
    let key = key_with(&gateway, 2_000);
    let (open, bounded) = (r#"{"messages":[]}"#, r#"{"max_tokens":50,"n":2}"#);
    origin.answer(200, JSON, br#"{"choices":[{"message":{"content":"Hello"}}]}"#);
    for (n, body, output) in [(0, open, 200), (2, bounded, 100)] {
        let input = tokens_of(body);
        let told = json!([input + output, input, output, "held"]);
        assert_eq!(first(&gateway, &key, path, &[], body.as_bytes()), 200);
        assert_eq!(usage(&gateway, &key, n + 1), told);
        assert_eq!(second(&gateway, &key, path, &[], body.as_bytes()).await, 200);
        assert_eq!(usage(&gateway, &key, n + 2), told);
    }
    let used = 2 * (tokens_of(open) + 200 + tokens_of(bounded) + 100);
    let stats = gateway.stats(&key);
    let limit =
        stats["limit_usage"].as_array().unwrap().iter().find(|limit| limit["count"] == "tokens").unwrap();
    assert_eq!((&limit["used"], &limit["held"]), (&json!(used), &json!(0)));
    let flagged = "keygate_meter_unreadable_total{reason=\"no_usage\"} 4";
    assert!(gateway.metrics().lines().any(|line| line == flagged));
    // What is reported counts, also nothing.
    origin.answer(200, JSON, br#"{"usage":{"prompt_tokens":0,"completion_tokens":0}}"#);
    assert_eq!(first(&gateway, &key, path, &[], open.as_bytes()), 200);
    assert_eq!(usage(&gateway, &key, 5), json!([0, 0, 0, "reported"]));
    // Without a limit, nothing is held.
    let free = gateway.create_key(json!({}));
    origin.answer(200, JSON, br#"{"choices":[{"message":{"content":"Hello"}}]}"#);
    assert_eq!(first(&gateway, &free, path, &[], open.as_bytes()), 200);
    let input = tokens_of(open);
    assert_eq!(usage(&gateway, &free, 1), json!([input + 2, input, 2, "estimated"]));
    // A hold never exceeds a limit, and neither does what counts instead.
    let small = key_with(&gateway, 100);
    assert_eq!(first(&gateway, &small, path, &[], open.as_bytes()), 200);
    assert_eq!(usage(&gateway, &small, 1), json!([100, input, 100 - input, "held"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_counts_what_was_held() {
    const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n";
    let (origin, _, gateway) = start();
    let (path, body) = ("/held/chat/completions", r#"{"messages":[]}"#);
    let key = key_with(&gateway, 2_000);
    let hold = Hold::new();
    origin.script(move |_, out| {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{EVENT}\r\n", EVENT.len())?;
        out.flush()?;
        hold.wait(1);
        out.write_all(b"0\r\n\r\n")
    });
    let told = json!([tokens_of(body) + 200, tokens_of(body), 200, "held"]);
    let mut client = gateway.connect();
    client.send(&Request::post(path, body).bearer(&key.secret).bytes());
    assert_eq!(client.response_head().status, 200);
    assert_eq!(client.chunk(), Some(EVENT.as_bytes().to_vec()));
    client.hang_up();
    assert_eq!(usage(&gateway, &key, 1), told);

    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut to) = client.begin(request("POST", path, &key.secret), false).await;
    to.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
    let mut answer = response.await.unwrap().into_body();
    assert_eq!(answer.data().await.unwrap().unwrap(), EVENT.as_bytes());
    drop((answer, to));
    assert_eq!(usage(&gateway, &key, 2), told);

    // Before the answer has begun.
    origin.answer_after(&Hold::new());
    let seen = origin.requests().len();
    let mut client = gateway.connect();
    client.send(&Request::post(path, body).bearer(&key.secret).bytes());
    origin.wait_for_heads(seen + 1);
    client.hang_up();
    assert_eq!(usage(&gateway, &key, 3), told);
}
