//! Slow readers after the backend has begun to answer: they get some time, then the connection is closed.

use crate::http2::{Client, H2C, h2c, request};
use crate::limits::{cut, metric};
use crate::support::{Gateway, Key, Origin, PATIENCE, Raw, Request, soon, stand};
use bytes::Bytes;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// An origin that responds when it has the head, and reads the rest of the body all the same.
fn early() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut part = [0; 16 * 1024];
                if stream.read(&mut part).is_ok_and(|n| n > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").unwrap();
                }
                while stream.read(&mut part).is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

fn early_route() -> (Origin, Gateway, Key) {
    let more = crate::support::upstream("early", early())
        + &crate::support::route("early", "/v1/early", "early", "")
        + H2C;
    let (origin, gateway) = stand(&more);
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    (origin, gateway, key)
}

/// Longer than the timeout for the rest of a body.
const LONG: Duration = Duration::from_secs(45);

#[test]
fn the_rest_of_a_body_may_not_trickle_on_for_ever_once_it_was_answered() {
    let (_origin, gateway, key) = early_route();
    let mut client = gateway.connect();
    let head = format!(
        "POST /v1/early HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\n",
        key.secret
    );
    client.send(head.as_bytes());
    client.send(b"x");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "early"));
    let begun = Instant::now();
    while client.try_send(b"x") {
        // Each poll is a pause, far shorter than any of the timeouts.
        metric(&gateway, "keygate_connections");
        std::thread::sleep(Duration::from_millis(100));
        assert!(begun.elapsed() < PATIENCE, "it trickles on");
    }
    let rows = gateway.wait_for_logs(&key, 1);
    assert_eq!((rows[0]["outcome"].as_str(), rows[0]["status_code"].as_u64()), (Some("served"), Some(200)));
    assert_eq!(cut(&gateway, "rest_late"), 1.0);
}

#[test]
fn a_pause_after_the_answer_ends_it_sooner() {
    let (_origin, gateway, key) = early_route();
    let mut client = gateway.connect();
    let head = format!(
        "POST /v1/early HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\n",
        key.secret
    );
    client.send(head.as_bytes());
    assert_eq!(client.response().text(), "early");
    client.send(b"x");
    soon(LONG, "it is closed", || cut(&gateway, "rest_late") == 1.0);
    assert!(client.ends());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_a_streams_body_may_not_trickle_on_for_ever_either() {
    let (_origin, gateway, key) = early_route();
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut body) = client.begin(request("POST", "/v1/early", &key.secret), false).await;
    body.send_data(Bytes::from_static(b"x"), false).unwrap();
    let mut answer = response.await.unwrap().into_body();
    assert_eq!(answer.data().await.unwrap().unwrap(), b"early"[..]);
    let begun = Instant::now();
    while body.send_data(Bytes::from_static(b"x"), false).is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(begun.elapsed() < PATIENCE, "it trickles on");
    }
    assert_eq!(cut(&gateway, "rest_late"), 1.0);
    let rows = gateway.wait_for_logs(&key, 1);
    assert_eq!(rows[0]["outcome"], "served");
}

/// A response of 50 MB.
fn large(origin: &Origin) {
    origin.script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")?;
        for _ in 0..50 {
            out.write_all(&[b'x'; 1_000_000])?;
        }
        Ok(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_read_byte_by_byte_is_reset() {
    let (origin, gateway) = stand(&format!("{H2C}write_timeout = \"1s\"\nmin_body_rate = \"10KiB\"\n"));
    large(&origin);
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, _) = client.begin(request("GET", "/v1/app/x", &key.secret), true).await;
    let mut body = response.await.unwrap().into_body();
    let begun = Instant::now();
    let (mut owed, mut sips) = (0, tokio::time::interval(Duration::from_millis(50)));
    let ended = loop {
        tokio::select! {
            part = body.data() => match part {
                Some(Ok(part)) => owed += part.len(),
                ended => break ended,
            },
            // One byte more at a time is some progress. Unpaced, they are more than 10 KiB a second.
            _ = sips.tick(), if owed > 0 => {
                body.flow_control().release_capacity(1).unwrap();
                owed -= 1;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "it is served on");
    };
    assert!(ended.is_some_and(|ended| ended.is_err()), "the stream is reset");
    assert_eq!((cut(&gateway, "write_slow"), cut(&gateway, "write_stalled")), (1.0, 0.0));
    gateway.wait_for_logs(&key, 1);
    // Other streams of the connection are served, once this one's bytes are no longer in the connection's window.
    drop(body);
    origin.answer(200, &[], b"ok");
    assert_eq!(client.call(request("GET", "/v1/app/x", &key.secret)).await.unwrap().status, 200);
}

/// A client that requests a large response and reads `bytes` at a time, about ten times a second, until it `is_cut`.
fn sips(gateway: &Gateway, key: &Key, bytes: usize, is_cut: impl Fn() -> bool) {
    let stream = TcpStream::connect(gateway.proxy).unwrap();
    set_socket_recv_buffer_size(&stream, 4_096).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(&Request::get("/v1/app/x").bearer(&key.secret).bytes()).unwrap();
    let (mut part, begun) = (vec![0; bytes], Instant::now());
    while !is_cut() {
        assert!((&stream).read(&mut part).is_ok_and(|n| n > 0), "what is on its way comes");
        std::thread::sleep(Duration::from_millis(100));
        assert!(begun.elapsed() < PATIENCE, "it is served on");
    }
}

#[test]
fn an_http1_client_that_reads_too_slowly_is_disconnected_and_one_that_reads_is_not() {
    let (origin, gateway) = stand("[proxy]\nwrite_timeout = \"2s\"\nmin_body_rate = \"100KiB\"\n");
    large(&origin);
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let before = || cut(&gateway, "write_slow") + cut(&gateway, "write_stalled");
    sips(&gateway, &key, 2_000, || before() >= 1.0);
    gateway.wait_for_logs(&key, 1);
    let mut reader: Raw = gateway.connect();
    assert_eq!(reader.call(&Request::get("/v1/app/x").bearer(&key.secret)).body.len(), 50_000_000);
    assert_eq!(before(), 1.0);
}
