//! HTTP/2 when the gateway stops: a first GOAWAY that rejects nothing, then one with the last stream.

use crate::frames::{beginning, request};
use crate::http2::h2c;
use crate::support::{Hold, Raw, eventually_true, stand};
use serde_json::json;
use std::net::TcpStream;

const GOAWAY: u8 = 7;
const PING: u8 = 6;
const HEADERS: u8 = 1;
const ACK: u8 = 1;

/// The next frame: its kind, flags, stream and payload.
fn frame(line: &mut Raw) -> (u8, u8, u32, Vec<u8>) {
    let head = line.exactly(9);
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    (head[3], head[4], stream, line.exactly(length as usize))
}

/// The next frame of that kind, and the statuses of responses before it.
fn next(line: &mut Raw, kind: u8) -> (Vec<u8>, Vec<(u32, u8)>) {
    let mut answered = Vec::new();
    loop {
        let (found, flags, stream, payload) = frame(line);
        if found == kind && (kind != PING || flags & ACK == 0) {
            return (payload, answered);
        }
        if found == HEADERS {
            answered.push((stream, payload[0]));
        }
    }
}

fn last_stream(goaway: &[u8]) -> (u32, u32) {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    (number(&goaway[..4]), number(&goaway[4..8]))
}

#[test]
fn streams_opened_before_the_final_goaway_are_served() {
    let (origin, mut gateway) =
        stand("[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\ndrain_idle = \"1m\"\ndrain_timeout = \"1m\"\n");
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let bearer = format!("Bearer {}", key.secret);
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "gateway.test"),
        (":path", "/v1/app/x"),
        ("authorization", bearer.as_str()),
    ];
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut line = Raw::connect(h2c(&gateway));
    line.send(&beginning());
    line.send(&request(1, &fields));
    origin.wait_for_heads(1);

    gateway.signal("TERM");
    let (goaway, answered) = next(&mut line, GOAWAY);
    assert_eq!((last_stream(&goaway), answered), ((0x7fff_ffff, 0), vec![]), "it takes nothing back");
    let (ping, _) = next(&mut line, PING);
    // These are on their way when the client gets the GOAWAY.
    line.send(&request(3, &fields));
    line.send(&request(5, &fields));
    line.send(&[&b"\0\0\x08\x06\x01\0\0\0\0"[..], &ping].concat());
    let (goaway, answered) = next(&mut line, GOAWAY);
    assert_eq!((last_stream(&goaway), answered), ((5, 0), vec![]), "all that were sent will be served");
    origin.wait_for_heads(3);
    hold.release();
    let mut answers = Vec::new();
    while answers.len() < 3 {
        let (kind, _, stream, payload) = frame(&mut line);
        if kind == HEADERS {
            answers.push((stream, payload[0]));
        }
    }
    answers.sort_unstable();
    assert_eq!(answers, [(1, 0x88), (3, 0x88), (5, 0x88)], "200 has an index of its own");
    assert!(line.ends());
    assert_eq!(gateway.wait().code(), Some(0), "with the last answer it ends, not with the time");
    let rows = gateway.restart().wait_for_logs(&key, 3);
    assert!(rows.iter().all(|row| row["outcome"] == "served"), "{rows:#?}");
}

#[test]
fn an_idle_http2_connection_gets_goaway_and_is_closed() {
    let (_origin, mut gateway) =
        stand("[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\ndrain_idle = \"200ms\"\ndrain_timeout = \"10m\"\n");
    let beginning = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let (mut polite, mut deaf) = (Raw::connect(h2c(&gateway)), Raw::connect(h2c(&gateway)));
    for line in [&mut polite, &mut deaf] {
        line.send(beginning);
        assert_eq!(frame(line).0, 4, "the gateway's own settings");
    }
    gateway.signal("TERM");
    for line in [&mut polite, &mut deaf] {
        assert_eq!(last_stream(&next(line, GOAWAY).0), (0x7fff_ffff, 0));
    }
    let (ping, _) = next(&mut polite, PING);
    polite.send(&[&b"\0\0\x08\x06\x01\0\0\0\0"[..], &ping].concat());
    assert_eq!(last_stream(&next(&mut polite, GOAWAY).0), (0, 0));
    assert!(polite.ends());
    assert!(deaf.ends(), "one that does not answer is not waited for");
    eventually_true("new connections are refused", || TcpStream::connect(h2c(&gateway)).is_err());
    assert_eq!(gateway.wait().code(), Some(0));
}
