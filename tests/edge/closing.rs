//! How connections end: a client that half-closes still gets its response, a truncated response is recognizable as such,
//! and an HTTP/2 client learns which requests were processed.

use crate::frames::{beginning, request};
use crate::http2::h2c;
use crate::support::{Gateway, Hold, Origin, Raw, Request, route, stand, upstream};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Sends, closes the write side, then reads to the end.
fn send_and_close(gateway: &Gateway, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.proxy).unwrap();
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream
}

fn all(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an orderly end");
    text
}

#[test]
fn a_client_that_closes_its_side_gets_its_answer() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let get = Request::get("/v1/app/x").bearer(&key.secret).bytes();
    let post = Request::post("/v1/app/x", vec![b'x'; 100_000]).bearer(&key.secret).bytes();
    let old = format!("GET /v1/app/x HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", key.secret).into_bytes();
    let hold = Hold::new();
    let mut served = 0;
    for bytes in [&get, &post, &old] {
        let hold = Hold::new();
        origin.answer_after(&hold);
        let mut stream = send_and_close(&gateway, bytes);
        served += 1;
        origin.wait_for_heads(served);
        hold.release();
        let text = all(&mut stream);
        assert!(text.contains(" 200 ") && text.ends_with("{\"ok\":true}"), "{text}");
    }
    // A response in parts, with a pipelined request.
    let released = hold.clone();
    origin.script(move |_, out| {
        released.wait(1);
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")?;
        out.write_all(b"5\r\nwhole\r\n0\r\n\r\n")
    });
    let small = Request::post("/v1/app/x", "a body").bearer(&key.secret).bytes();
    let mut stream = send_and_close(&gateway, &[get.clone(), small, get.clone()].concat());
    origin.wait_for_heads(served + 1);
    hold.release();
    let text = all(&mut stream);
    assert_eq!((text.matches("half").count(), text.matches("whole").count()), (3, 3), "{text}");
    let rows = gateway.wait_for_logs(&key, served + 3);
    assert!(rows.iter().all(|row| row["outcome"] == "served"), "{rows:?}");
}

#[test]
fn a_client_that_closed_its_side_is_asked_whether_it_is_still_there_and_gets_its_answer_all_the_same() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    client.say_no_more();
    assert_eq!(client.response_head().status, 100, "after a while");
    hold.release();
    assert_eq!(client.response().status, 200);
    assert!(client.is_closed());
    assert_eq!(gateway.wait_for_logs(&key, 1)[0]["outcome"], "served");
}

#[test]
fn a_broken_answer_that_ends_with_its_connection_is_no_whole_one() {
    let (origin, gateway) = stand("[proxy]\nrevocation_check = \"100ms\"\n");
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let hold = Hold::new();
    let released = hold.clone();
    origin.script(move |received, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")?;
        if received.target.ends_with("breaks") {
            return Err(ErrorKind::Other.into());
        }
        if received.target.ends_with("waits") {
            released.wait(1);
        }
        out.write_all(b"0\r\n\r\n")
    });
    let ask = |form: &str| {
        let mut stream = TcpStream::connect(gateway.proxy).unwrap();
        stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        let head = format!("GET /v1/app/{form} HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", key.secret);
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let mut text = Vec::new();
    ask("whole").read_to_end(&mut text).expect("an orderly end");
    assert!(text.ends_with(b"half"));
    let is_reset = |mut stream: TcpStream| {
        let ended = stream.read_to_end(&mut Vec::new());
        assert_eq!(ended.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    };
    is_reset(ask("breaks"));
    // Whichever side breaks it off.
    let cut = ask("waits");
    gateway.wait_for_logs(&key, 2);
    gateway.update_key(&key, &json!({"is_active": false}));
    is_reset(cut);
    gateway.update_key(&key, &json!({"is_active": true}));
    let killed = ask("waits");
    let mut first = [0; 12];
    (&killed).read_exact(&mut first).unwrap();
    gateway.signal("KILL");
    is_reset(killed);
    hold.release();
}

const GOAWAY: u8 = 7;

/// The GOAWAY that the client gets before its connection ends: the last stream and the error code.
fn goodbye(line: &mut Raw) -> Option<(u32, u32)> {
    loop {
        let head = line.try_exactly(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = line.try_exactly(length)?;
        if head[3] == GOAWAY {
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            assert!(line.ends());
            return Some((number(0), number(4)));
        }
    }
}

#[test]
fn an_idle_http2_connection_ends_with_goaway_and_the_last_stream() {
    let times = "idle_timeout = \"1s\"\nfirst_byte_timeout = \"1s\"\n";
    let (_origin, gateway) = stand(&format!("[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n{times}"));
    let bearer = format!("Bearer {}", gateway.create_key(json!({"rate_limit": 1000})).secret);
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "gateway.test"),
        (":path", "/v1/app/x"),
        ("authorization", bearer.as_str()),
    ];
    for served in [0, 1, 3] {
        let mut line = Raw::connect(h2c(&gateway));
        line.send(&beginning());
        for stream in (1..=served).step_by(2) {
            line.send(&request(stream, &fields));
        }
        assert_eq!(goodbye(&mut line), Some((served, 0)), "{served}");
    }
}

#[test]
fn an_evicted_http2_connection_ends_with_goaway() {
    let origin = Origin::start();
    let config = upstream("app", origin.address) + &route("app", "/v1/app/{rest*}", "app", "");
    let gateway =
        Gateway::start(&(config + "[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\nmax_connections = 1\n"));
    let mut line = Raw::connect(h2c(&gateway));
    line.send(&beginning());
    // The gateway sends its SETTINGS before it has read anything. Its SETTINGS ACK means that the connection is
    // established.
    const SETTINGS: u8 = 4;
    const ACKNOWLEDGED: u8 = 1;
    loop {
        let head = line.exactly(9);
        line.exactly(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize);
        if (head[3], head[4]) == (SETTINGS, ACKNOWLEDGED) {
            break;
        }
    }
    let newcomer = gateway.connect();
    assert_eq!(goodbye(&mut line), Some((0, 0)));
    drop(newcomer);
}
