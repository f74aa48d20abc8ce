//! Streams that are made to say what they used: the request asks for it, and a client that did not does not see it.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::speaks2::Speaks2;
use crate::support::{Gateway, Hold, Key, Origin, Request, route, upstream};
use bytes::Bytes;
use serde_json::{Value, json};

const TEXT: &str = "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"Hello\"}}],\"usage\":null}\n\n";
const USAGE: &str = "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":90,\"completion_tokens\":40}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const QUESTION: &str = r#"{"model":"m", "stream":true, "messages":[{"role":"user","content":"Hé?"}]}"#;
const ASKING: &str = r#"{"stream_options":{"include_usage":true},"model":"m", "stream":true, "messages":[{"role":"user","content":"Hé?"}]}"#;
const PATH: &str = "/v1/chat/completions";

/// Routes to a backend over each HTTP, and one that leaves requests alone.
fn start() -> (Origin, Speaks2, Gateway, Key) {
    let (origin, speaks2) = (Origin::start(), Speaks2::start());
    let config = [
        upstream("one", origin.address),
        upstream("two", speaks2.address) + "protocol = \"http2\"\n",
        route("llm", "/v1/{rest*}", "one", "meter = \"llm\""),
        route("off", "/off/{rest*}", "one", "meter = \"llm\"\ninclude_usage = false"),
        route("two", "/two/{rest*}", "two", "meter = \"llm\""),
        H2C.to_owned() + "end_user_body_bytes = \"4KiB\"\n",
    ];
    let gateway = Gateway::start(&config.concat());
    let key = gateway.create_key(json!({}));
    (origin, speaks2, gateway, key)
}

/// Answers with these parts, one chunk each; each waits for a release of `hold`, if there is one.
fn stream(origin: &Origin, fields: &'static str, parts: Vec<&'static [u8]>, hold: Option<&Hold>) {
    let hold = hold.cloned();
    origin.script(move |_, out| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
        );
        out.write_all(head.as_bytes())?;
        for (n, part) in (1..).zip(&parts) {
            if let Some(hold) = &hold {
                hold.wait(n);
            }
            out.write_all(format!("{:x}\r\n", part.len()).as_bytes())?;
            out.write_all(part)?;
            out.write_all(b"\r\n")?;
            out.flush()?;
        }
        out.write_all(b"0\r\n\r\n")
    });
}

fn whole(origin: &Origin, fields: &'static str) {
    stream(origin, fields, [TEXT, USAGE, DONE].map(str::as_bytes).to_vec(), None);
}

/// The body of the answer over HTTP/1.1 and over HTTP/2, and that of what the backend got each time.
async fn ask(origin: &Origin, gateway: &Gateway, key: &Key, path: &str, body: &str) -> [(String, String); 2] {
    let got = || String::from_utf8(origin.last().body).unwrap();
    let first =
        gateway.call(&Request::post(path, body).bearer(&key.secret).header("Accept-Encoding", "gzip"));
    assert_eq!(first.status, 200, "{}", first.text());
    let first = (first.text(), got());
    let mut client = Client::connect(h2c(gateway)).await;
    let (response, mut to) = client.begin(request("POST", path, &key.secret), false).await;
    to.send_data(Bytes::from(body.to_owned()), true).unwrap();
    let second = read(response).await.unwrap();
    [first, (String::from_utf8(second.body).unwrap(), got())]
}

/// Where the tokens of the records come from, and how many there are.
fn usage(rows: &[Value]) -> Vec<(&str, u64)> {
    rows.iter()
        .map(|row| (row["usage_source"].as_str().unwrap(), row["tokens_used"].as_u64().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_it_used_and_the_client_does_not_see_it() {
    let (origin, _, gateway, key) = start();
    whole(&origin, "");
    for answer in ask(&origin, &gateway, &key, PATH, QUESTION).await {
        assert_eq!(answer, ([TEXT, DONE].concat(), ASKING.to_owned()));
    }
    let [first, second] = &origin.requests()[..] else { panic!("two requests") };
    assert_eq!(first.header("content-length"), Some(&*ASKING.len().to_string()));
    for request in [first, second] {
        assert_eq!(
            (request.header("accept-encoding"), request.times("accept-encoding")),
            (Some("identity"), 1)
        );
    }
    assert_eq!(usage(&gateway.wait_for_logs(&key, 2)), [("reported", 130); 2]);
    // The size of what the client sent, not of what became of it.
    assert_eq!(gateway.logs(&key)[0]["bytes_in"], QUESTION.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_ask_for_usage_or_do_not_stream_are_unchanged() {
    let (origin, _, gateway, key) = start();
    whole(&origin, "");
    for (path, body) in [
        (PATH, r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
        (PATH, r#"{"messages":[]}"#),
        (PATH, r#"{"stream":false}"#),
        (PATH, "not JSON"),
        (PATH, r#"{"stream":true"#),
        ("/v1/responses", QUESTION),
        ("/v1/messages", QUESTION),
        ("/off/chat/completions", QUESTION),
    ] {
        for answer in ask(&origin, &gateway, &key, path, body).await {
            assert_eq!(answer, ([TEXT, USAGE, DONE].concat(), body.to_owned()), "{path} {body}");
        }
        assert_eq!(origin.requests()[0].header("accept-encoding"), Some("gzip"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_stream_and_a_whole_answer_pass_as_they_are() {
    let (origin, _, gateway, key) = start();
    whole(&origin, "Content-Encoding: gzip\r\n");
    for (answer, got) in ask(&origin, &gateway, &key, PATH, QUESTION).await {
        assert_eq!((answer, &*got), ([TEXT, USAGE, DONE].concat(), ASKING));
    }
    let answer = br#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
    origin.answer(200, &[("Content-Type", "application/json")], answer);
    for (shown, _) in ask(&origin, &gateway, &key, PATH, QUESTION).await {
        assert_eq!(shown.as_bytes(), answer);
    }
    origin.answer(400, &[("Content-Type", "text/event-stream")], USAGE.as_bytes());
    let refused = gateway.call(&Request::post(PATH, QUESTION).bearer(&key.secret));
    assert_eq!((refused.status, refused.text()), (400, USAGE.to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_a_length_has_none_when_a_part_is_hidden() {
    let (origin, _, gateway, key) = start();
    static ALL: &str = concat!(
        "data: {\"choices\":[{}]}\r\n\r\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":90,\"completion_tokens\":40}}\r\n\r\n",
        "data: [DONE]\r\n\r\n"
    );
    origin.answer(200, &[("Content-Type", "text/event-stream")], ALL.as_bytes());
    for (answer, _) in ask(&origin, &gateway, &key, PATH, QUESTION).await {
        assert_eq!(answer, "data: {\"choices\":[{}]}\r\n\r\ndata: [DONE]\r\n\r\n");
    }
    // HTTP/1.0 has no framing for that.
    let mut client = gateway.connect();
    let old = Request::post(PATH, QUESTION).bearer(&key.secret).bytes();
    client.send(&String::from_utf8(old).unwrap().replace("HTTP/1.1", "HTTP/1.0").into_bytes());
    let response = client.response();
    assert_eq!((response.text(), origin.last().body), (ALL.to_owned(), QUESTION.as_bytes().to_vec()));
}

#[test]
fn an_event_that_comes_in_pieces_is_hidden_and_delays_no_other() {
    let (origin, _, gateway, key) = start();
    let hold = Hold::new();
    let (begin, end) = TEXT.split_at(60);
    let pieces: Vec<&[u8]> = USAGE.as_bytes().chunks(7).collect();
    let parts =
        [&[begin.as_bytes(), end.as_bytes()], &pieces[..], &[b": ping\n\n", DONE.as_bytes()]].concat();
    let count = parts.len();
    stream(&origin, "", parts, Some(&hold));
    let mut client = gateway.connect();
    client.send(&Request::post(PATH, QUESTION).bearer(&key.secret).bytes());
    assert_eq!(client.response_head().status, 200);
    for expected in [begin, end] {
        hold.release();
        assert_eq!(client.chunk(), Some(expected.as_bytes().to_vec()));
    }
    (3..count).for_each(|_| hold.release());
    assert_eq!(client.chunk(), Some(b": ping\n\n".to_vec()));
    hold.release();
    assert_eq!((client.chunk(), client.chunk()), (Some(DONE.as_bytes().to_vec()), None));
    assert_eq!(usage(&gateway.wait_for_logs(&key, 1)), [("reported", 130)]);
    // The connection goes on.
    client.send(&Request::get("/off/models").bearer(&key.secret).bytes());
    assert_eq!(client.response_head().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_to_look_at_goes_on_as_it_came() {
    let (origin, speaks2, gateway, key) = start();
    whole(&origin, "");
    let long = QUESTION.replace("Hé?", &"a".repeat(100_000));
    for answer in ask(&origin, &gateway, &key, PATH, &long).await {
        assert_eq!(answer, ([TEXT, USAGE, DONE].concat(), long.clone()));
    }
    // Without a length, of which the limit is only reached while it is read.
    for size in [20, 3_000, 5_000, 100_000] {
        let body = QUESTION.replace("Hé?", &"a".repeat(size));
        let changed = if size < 4_000 { ASKING.replace("Hé?", &"a".repeat(size)) } else { body.clone() };
        for path in [PATH, "/two/chat/completions"] {
            let got = || if path == PATH { origin.last().body } else { speaks2.heard().pop().unwrap().1 };
            let mut client = gateway.connect();
            let head = Request::new("POST", path).bearer(&key.secret).header("Transfer-Encoding", "chunked");
            client.send(&head.head());
            for part in body.as_bytes().chunks(1_000) {
                client.send(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
            }
            client.send(b"0\r\n\r\n");
            assert_eq!(client.response().status, 200, "{path} {size}");
            assert!(got() == changed.as_bytes(), "{path} {size}: {} bytes", got().len());

            for ends_apart in [false, true] {
                let mut client = Client::connect(h2c(&gateway)).await;
                let (response, mut to) = client.begin(request("POST", path, &key.secret), false).await;
                let parts: Vec<&[u8]> = body.as_bytes().chunks(1_000).collect();
                for (n, part) in (1..).zip(&parts) {
                    to.send_data(Bytes::copy_from_slice(part), n == parts.len() && !ends_apart).unwrap();
                }
                if ends_apart {
                    to.send_data(Bytes::new(), true).unwrap();
                }
                assert_eq!(read(response).await.unwrap().status, 200, "{path} {size}");
                assert!(got() == changed.as_bytes(), "{path} {size} over HTTP/2: {} bytes", got().len());
            }
        }
    }
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_once() {
    let (origin, _, gateway, key) = start();
    whole(&origin, "");
    let mut client = gateway.connect();
    client.send(&Request::post(PATH, QUESTION).bearer(&key.secret).header("Expect", "100-continue").head());
    assert_eq!(client.response_head().status, 100);
    client.send(QUESTION.as_bytes());
    assert_eq!(client.response().text(), [TEXT, DONE].concat());
    assert_eq!((origin.last().header("expect"), origin.last().body), (None, ASKING.as_bytes().to_vec()));
}

#[test]
fn a_body_that_does_not_come_is_not_charged() {
    let (origin, _, gateway, _) = start();
    let key = gateway.create_key(json!({"quota_limit": 5}));
    let mut client = gateway.connect();
    let request = Request::post(PATH, QUESTION).bearer(&key.secret).bytes();
    client.send(&request[..request.len() - 1]);
    client.say_no_more();
    drop(client.response_head());
    let row = &gateway.wait_for_logs(&key, 1)[0];
    assert_eq!((&row["tokens_used"], &row["usage_source"]), (&json!(0), &Value::Null), "{row:#}");
    assert_eq!(gateway.call(&Request::get("/off/models").bearer(&key.secret)).status, 200);
    assert_eq!(gateway.call(&Request::get("/off/models").bearer(&key.secret)).remaining("quota"), 3);
    assert!(origin.requests().iter().all(|request| request.method == "GET"));
}
