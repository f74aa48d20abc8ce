//! Bodies that name the end user, in every content coding and framing: they are read up to the limit and forwarded
//! unchanged.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::speaks2::Speaks2;
use crate::support::{Gateway, Hold, Origin, Raw, Request, route, upstream};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::HeaderValue;
use serde_json::json;
use std::io::Read;

/// Routes that find the end user in the body, to a backend over each HTTP.
fn named(more: &str) -> (Origin, Speaks2, Gateway) {
    let (origin, speaks2) = (Origin::start(), Speaks2::start());
    let in_body = "end_user = \"body:user\"\n";
    let gateway = Gateway::start(
        &[
            upstream("one", origin.address),
            upstream("two", speaks2.address) + "protocol = \"http2\"\n",
            route("one", "/v1/one", "one", in_body),
            route("two", "/v1/two", "two", in_body),
            H2C.to_owned() + more,
        ]
        .concat(),
    );
    (origin, speaks2, gateway)
}

fn all(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The supported content codings of `text`.
fn coded(text: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    [
        ("gzip", all(GzEncoder::new(text, Compression::fast()))),
        ("x-gzip", all(GzEncoder::new(text, Compression::best()))),
        ("deflate", all(ZlibEncoder::new(text, Compression::fast()))),
        ("deflate", all(DeflateEncoder::new(text, Compression::fast()))),
        ("Zstd", zstd::encode_all(text, 1).unwrap()),
    ]
}

fn post(target: &str, secret: &str, coding: &str, body: &[u8]) -> Request {
    Request::post(target, body).bearer(secret).header("Content-Encoding", coding)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coded_bodies_are_read_and_go_on_as_they_came() {
    let (origin, speaks2, gateway) = named("");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let text = format!("{{\"user\":\"ann\",\"x\":\"{}\"}}", "a".repeat(5_000)).into_bytes();
    let mut client = Client::connect(h2c(&gateway)).await;
    for (coding, body) in coded(&text) {
        let response = gateway.call(&post("/v1/one", &secret, coding, &body));
        assert_eq!(response.status, 200, "{coding}: {}", response.text());
        let seen = origin.last();
        assert_eq!((seen.header("content-encoding"), &seen.body), (Some(coding), &body), "{coding}");
        assert!(seen.header("x-keygate-end-user-id").is_some(), "{}", seen.head);
        for target in ["/v1/one", "/v1/two"] {
            let mut asked = request("POST", target, &secret);
            asked.headers_mut().insert("content-encoding", HeaderValue::from_static(coding));
            let (response, mut to) = client.begin(asked, false).await;
            to.send_data(Bytes::from(body.clone()), true).unwrap();
            assert_eq!(read(response).await.unwrap().status, 200, "{coding}");
        }
        assert!(origin.last().body == body && speaks2.heard().pop().unwrap().1 == body);
        let users = gateway.managed("GET", "/endusers", None);
        assert_eq!(users["items"].as_array().map(Vec::len), Some(1), "one and the same: {users}");
    }
}

#[test]
fn codings_that_are_not_understood_are_told_which_are() {
    let (origin, _speaks2, gateway) = named("");
    let key = gateway.create_key(json!({"rate_limit": 1000, "quota_limit": 1}));
    let body = b"{\"user\":\"ann\"}";
    for coding in ["br", "compress", "gzip, gzip", "aes128gcm"] {
        let mut client = gateway.connect();
        let response = client.call(&post("/v1/one", &key.secret, coding, body));
        assert_eq!(response.fault(), (415, 1000, "unsupported_media_type".into()), "{coding}");
        assert_eq!(response.header("accept-encoding"), Some("gzip, deflate, zstd"));
    }
    // Bodies that claim a coding and do not have it.
    for coding in ["gzip", "deflate", "zstd"] {
        let response = gateway.call(&post("/v1/one", &key.secret, coding, body));
        assert_eq!(response.fault(), (400, 1000, "bad_request".into()), "{coding}");
    }
    assert_eq!(gateway.call(&post("/v1/one", &key.secret, "identity", body)).remaining("quota"), 0);
    assert_eq!(origin.count(), 1);
}

#[test]
fn bodies_that_decode_beyond_the_maximum_are_too_large() {
    let (origin, _speaks2, gateway) = named("");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let text = [b"{\"user\":\"ann\"".as_slice(), &vec![b' '; 100_000_000], b"}"].concat();
    for (coding, body) in coded(&text) {
        assert!(body.len() < 1_000_000, "{coding}: {}", body.len());
        let response = gateway.call(&post("/v1/one", &secret, coding, &body));
        assert_eq!(response.fault(), (413, 1000, "payload_too_large".into()), "{coding}");
    }
    assert_eq!(origin.count(), 0);
}

/// A body of that many bytes that names an end user.
fn body(bytes: usize) -> Vec<u8> {
    let around = b"{\"user\":\"ann\",\"x\":\"\"}".len();
    format!("{{\"user\":\"ann\",\"x\":\"{}\"}}", "a".repeat(bytes - around)).into_bytes()
}

/// Sends `whole` in chunks of `size`, each in a packet of its own.
fn send_chunked(client: &mut Raw, target: &str, secret: &str, whole: &[u8], size: usize) {
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {secret}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    client.send(head.as_bytes());
    for part in whole.chunks(size) {
        // The request may be refused before all of it is sent.
        client.try_send(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
    }
    client.try_send(b"0\r\n\r\n");
}

#[test]
fn a_chunked_body_may_be_as_large_as_any_other() {
    let (origin, speaks2, gateway) = named("");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    // One client, because another one could come before the connection to the backend is back among the idle ones.
    let mut client = gateway.connect();
    for (bytes, size) in
        [(100, 7), (60_000, 60_000), (65_536, 1_000), (65_537, 65_537), (300_000, 30_000), (1 << 20, 100_000)]
    {
        let whole = body(bytes);
        for target in ["/v1/one", "/v1/two", "/v1/one"] {
            send_chunked(&mut client, target, &secret, &whole, size);
            let response = client.response();
            assert_eq!(response.status, 200, "{bytes} bytes, {target}: {}", response.text());
        }
        assert!(origin.last().body == whole, "{bytes} bytes");
        assert!(speaks2.heard().pop().unwrap().1 == whole, "{bytes} bytes");
    }
    assert_eq!(origin.connections(), 1, "what is between two requests is theirs");
    send_chunked(&mut client, "/v1/one", &secret, &body((1 << 20) + 1), 100_000);
    assert_eq!(client.response().fault(), (413, 1000, "payload_too_large".into()));
}

#[test]
fn a_chunked_body_that_is_refused_leaves_the_connection_open() {
    let (origin, _speaks2, gateway) = named("");
    let key = gateway.create_key(json!({"rate_limit": 1000, "quota_limit": 1}));
    let mut client = gateway.connect();
    let large = |user: &str| format!("{{\"user\":{user},\"x\":\"{}\"}}", "a".repeat(200_000)).into_bytes();
    send_chunked(&mut client, "/v1/one", &key.secret, &large("7"), 50_000);
    assert_eq!(client.response().fault(), (400, 1000, "bad_request".into()));
    send_chunked(&mut client, "/v1/one", &key.secret, &large("\"ann\""), 50_000);
    assert_eq!(client.response().status, 200);
    assert_eq!(origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_length_may_be_as_large_as_any_other() {
    let (origin, speaks2, gateway) = named("");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for (bytes, ends_alone) in
        [(100, false), (60_000, true), (300_000, false), (300_000, true), (1 << 20, true)]
    {
        let whole = body(bytes);
        for target in ["/v1/one", "/v1/two"] {
            let (response, mut to) = client.begin(request("POST", target, &secret), false).await;
            to.send_data(Bytes::from(whole.clone()), !ends_alone).unwrap();
            if ends_alone {
                to.send_data(Bytes::new(), true).unwrap();
            }
            assert_eq!(read(response).await.unwrap().status, 200, "{bytes} bytes, {target}");
        }
        assert!(origin.last().body == whole && speaks2.heard().pop().unwrap().1 == whole, "{bytes} bytes");
    }
    let (response, mut to) = client.begin(request("POST", "/v1/one", &secret), false).await;
    to.send_data(Bytes::from(body((1 << 20) + 1)), true).unwrap();
    assert_eq!(read(response).await.unwrap().status, 413);
}

#[test]
fn a_chunked_body_that_was_read_before_is_sent_again_or_its_request_fails() {
    // The first server reads a whole request and closes the connection; another may be tried, but the client gets a
    // response.
    let (first, second) = (Origin::start(), Origin::start());
    first.script(|_, _| Err(std::io::ErrorKind::Other.into()));
    let hold = Hold::new();
    hold.release();
    second.answer_after(&hold);
    let group = format!(
        "[[upstreams]]\nname = \"one\"\nservers = [\"{}\", \"{}\"]\n[upstreams.retry]\nattempts = 2\n[upstreams.eject]\nafter = 0\n",
        first.address, second.address
    );
    let gateway = Gateway::start(
        &(group + &route("one", "/v1/one", "one", "end_user = \"body:user\"\nmethods = [\"PUT\"]\n")),
    );
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let whole = body(200_000);
    for _ in 0..4 {
        let mut client = gateway.connect();
        let head = format!(
            "PUT /v1/one HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {secret}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        client.send(head.as_bytes());
        client.send(&[format!("{:x}\r\n", whole.len()).as_bytes(), &whole, b"\r\n0\r\n\r\n"].concat());
        let status = client.response().status;
        assert!(matches!(status, 200 | 502), "{status}");
    }
    assert!(second.requests().iter().all(|request| request.body == whole));
}
