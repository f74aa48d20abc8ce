//! SIGTERM: a well-behaved client sees `Connection: close`, and every request is answered.

use crate::support::{Gateway, Hold, Raw, Request, Response, eventually_true, stand};
use serde_json::json;
use std::net::TcpStream;
use std::time::Duration;

fn ready(gateway: &Gateway) -> u16 {
    Raw::connect(gateway.admin).call(&Request::get("/readyz")).status
}

fn connection(response: &Response) -> Option<&str> {
    response.header("connection")
}

/// Waits until no connection is accepted any more, so that all open ones are draining.
#[track_caller]
fn drains(gateway: &Gateway) {
    eventually_true("new connections are refused", || TcpStream::connect(gateway.proxy).is_err());
}

#[test]
fn readiness_fails_first_and_requests_are_served_until_load_balancers_know() {
    let (_origin, mut gateway) = stand("[proxy]\ndrain_delay = \"1m\"\ndrain_timeout = \"1m\"\n");
    let key = gateway.create_key(json!({}));
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let mut kept = gateway.connect();
    assert_eq!(kept.call(&request).status, 200);
    gateway.signal("TERM");
    eventually_true("readiness says no", || ready(&gateway) == 503);
    assert_eq!(Raw::connect(gateway.admin).call(&Request::get("/healthz")).status, 200, "it is alive");
    let mut late = gateway.connect();
    for line in [&mut kept, &mut late] {
        for _ in 0..2 {
            let answer = line.call(&request);
            assert_eq!((answer.status, connection(&answer)), (200, Some("keep-alive")));
        }
    }
    gateway.signal("INT");
    assert_eq!(gateway.wait().code(), Some(130), "the second signal waits for nothing");
}

#[test]
fn every_connection_gets_its_next_response_with_connection_close() {
    let (origin, mut gateway) = stand("[proxy]\ndrain_idle = \"1m\"\ndrain_timeout = \"1m\"\n");
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let unknown = Request::get("/v1/app/x").bearer("sk-none");
    let (mut idle, mut denied, mut streamed) = (gateway.connect(), gateway.connect(), gateway.connect());
    for line in [&mut idle, &mut denied] {
        assert_eq!(line.call(&request).status, 200);
    }
    let mut silent = gateway.connect();
    let mut begun = gateway.connect();
    let bytes = request.bytes();
    begun.send(&bytes[..10]);
    let hold = Hold::new();
    let end = hold.clone();
    origin.script(move |received, out| {
        if received.target.ends_with("/slow") {
            end.wait(1);
            return out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
        }
        if received.target.ends_with("/streamed") {
            out.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            )?;
            end.wait(1);
            return out.write_all(b"4\r\nbody\r\n0\r\n\r\n");
        }
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
    });
    streamed.send(&Request::get("/v1/app/streamed").bearer(&key.secret).bytes());
    let head = streamed.response_head();
    assert_eq!((head.status, connection(&head)), (200, Some("keep-alive")), "nobody knows better yet");
    let mut busy = gateway.connect();
    busy.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    origin.wait_for_heads(4);

    gateway.signal("TERM");
    drains(&gateway);
    let last = |line: &mut Raw, response: &Response, status: u16| {
        assert_eq!((response.status, connection(response)), (status, Some("close")));
        assert!(line.is_closed(), "as it said");
    };
    let answer = idle.call(&request);
    last(&mut idle, &answer, 200);
    let answer = denied.call(&unknown);
    last(&mut denied, &answer, 401);
    let answer = silent.call(&request);
    last(&mut silent, &answer, 200);
    begun.send(&bytes[10..]);
    let answer = begun.response();
    last(&mut begun, &answer, 200);

    hold.release();
    let answer = busy.response();
    last(&mut busy, &answer, 200);
    // Its response had allowed another request, so that request is answered.
    assert_eq!((streamed.chunk(), streamed.chunk()), (Some(b"body".to_vec()), None));
    let answer = streamed.call(&request);
    last(&mut streamed, &answer, 200);
    assert_eq!(gateway.wait().code(), Some(0), "with the last answer it ends, not with the time");
    let rows = gateway.restart().wait_for_logs(&key, 8);
    assert!(rows.iter().all(|row| row["outcome"] == "served"), "{rows:#?}");
}

#[test]
fn a_connection_that_waits_is_closed_after_its_time_and_then_the_process_ends() {
    let (_origin, mut gateway) = stand("[proxy]\ndrain_idle = \"200ms\"\ndrain_timeout = \"10m\"\n");
    let key = gateway.create_key(json!({}));
    let (mut idle, mut silent) = (gateway.connect(), gateway.connect());
    assert_eq!(idle.call(&Request::get("/v1/app/x").bearer(&key.secret)).status, 200);
    gateway.signal("TERM");
    assert!(idle.is_closed() && silent.is_closed());
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn streams_open_after_the_drain_time_are_cut_and_recorded() {
    let (origin, mut gateway) =
        stand("[proxy]\ndrain_delay = \"100ms\"\ndrain_idle = \"1m\"\ndrain_timeout = \"300ms\"\n");
    let key = gateway.create_key(json!({}));
    let idle = gateway.connect();
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut cut = gateway.connect();
    cut.send(&Request::get("/v1/app/cut").bearer(&key.secret).bytes());
    origin.wait_for_heads(1);
    let begun = std::time::Instant::now();
    assert_eq!(gateway.stop().code(), Some(0));
    assert!(begun.elapsed() > Duration::from_millis(300), "it had its time");
    assert!(cut.is_closed());
    hold.release();
    drop(idle);
    let rows = gateway.restart().wait_for_logs(&key, 1);
    assert_eq!(rows[0]["outcome"], "interrupted");
}
