//! WebSockets: an upgraded connection has no body length and its own timeout, and its end counts as no failure.

use crate::group::Group;
use crate::support::{Gateway, Hold, Origin, Raw, Request, route};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const EJECTIONS: &str = "keygate_upstream_ejections_total";

/// A client's frame; the missing mask does not matter here.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    [&[0x82, 126][..], &length.to_be_bytes(), payload].concat()
}

/// One failure is enough to eject a server, so that nothing here may count as one.
fn strict(more: &str) -> String {
    format!("{more}\n[upstreams.eject]\nafter = 1\nshare_percent = 100\n")
}

/// An origin that accepts an upgrade and then echoes what it gets, and ends when the client says so.
fn echoing(origin: &Origin) {
    origin.script_socket(|request, socket| {
        if request.header("upgrade").is_none() {
            return socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
        socket.write_all(SWITCHING)?;
        echo(socket)
    });
}

fn echo(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut part = [0; 4096];
    loop {
        match socket.read(&mut part)? {
            0 => return Ok(()),
            _ if part.starts_with(b"\x82\x7e\0\x03bye") => return socket.shutdown(Shutdown::Both),
            n => socket.write_all(&part[..n])?,
        }
    }
}

fn upgrade(secret: &str) -> Request {
    Request::get("/v1/app/ws")
        .bearer(secret)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

/// A client in a tunnel.
fn open(gateway: &Gateway, secret: &str) -> Raw {
    let mut client = gateway.connect();
    client.send(&upgrade(secret).bytes());
    assert_eq!(client.response_head().status, 101);
    client
}

/// A backend that runs this on each connection, and then closes it.
fn backend(each: impl Fn(&mut TcpStream) -> std::io::Result<()> + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, each) = (socket.unwrap(), each.clone());
            socket.set_nodelay(true).unwrap();
            // A client notices when its backend has gone.
            std::thread::spawn(move || each(&mut socket));
        }
    });
    address
}

fn read_head(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

#[test]
fn a_websocket_lives_however_soon_its_backend_agrees() {
    // It accepts an upgrade before it is requested.
    let hasty = backend(|socket| {
        socket.write_all(SWITCHING)?;
        read_head(socket)?;
        echo(socket)
    });
    let upstream = format!("[[upstreams]]\nname = \"app\"\nservers = [\"{hasty}\"]\n");
    let gateway = Gateway::start(&(upstream + &route("app", "/v1/app/{rest*}", "app", "")));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..250_u32 {
                    let mut client = open(&gateway, &secret);
                    let message = frame(&n.to_be_bytes());
                    client.send(&message);
                    assert_eq!(client.exactly(message.len()), message, "the {n}-th lives");
                }
            });
        }
    });
}

#[test]
fn a_tunnel_has_no_body_limit() {
    let origin = Origin::start();
    echoing(&origin);
    let upstream = format!("[[upstreams]]\nname = \"app\"\nservers = [\"{}\"]\n", origin.address);
    let config = upstream + &route("app", "/v1/app/{rest*}", "app", "max_body_bytes = \"1KiB\"\n");
    let gateway = Gateway::start(&config);
    let key = gateway.create_key(json!({}));
    let mut client = open(&gateway, &key.secret);
    for n in 0..100_u8 {
        let message = frame(&[n; 500]);
        client.send(&message);
        assert_eq!(client.exactly(message.len()), message);
    }
    client.send(&frame(b"bye"));
    assert!(client.is_closed());
    let row = gateway.wait_for_logs(&key, 1).remove(0);
    assert_eq!((&row["status_code"], &row["outcome"]), (&json!(101), &json!("served")), "{row:#}");
    // For a request without an upgrade the limit holds as before.
    let too_much = Request::post("/v1/app/x", vec![b'x'; 2_000]).bearer(&key.secret);
    assert_eq!(gateway.call(&too_much).status, 413);
}

#[test]
fn an_idle_tunnel_is_closed_by_a_time_of_its_own_and_is_no_failure() {
    let group = Group::start(
        &[1],
        &strict("read_timeout = \"50ms\"\nrequest_timeout = \"1s\"\ntunnel_idle_timeout = \"3s\""),
    );
    echoing(&group.origins[0]);
    let key = group.gateway.create_key(json!({}));
    let mut client = open(&group.gateway, &key.secret);
    let begun = Instant::now();
    let message = frame(b"in between");
    client.send(&message);
    assert_eq!(client.exactly(message.len()), message);
    assert_eq!(client.exactly(4), [0x88, 2, 0x03, 0xe9], "it says that it goes away (1001)");
    assert!(begun.elapsed() >= Duration::from_secs(3), "neither a request's time nor a pause's ends it");
    assert!(client.is_closed());
    let row = group.gateway.wait_for_logs(&key, 1).remove(0);
    assert_eq!((&row["status_code"], &row["outcome"]), (&json!(101), &json!("served")), "{row:#}");
    assert_eq!(group.metric_of(EJECTIONS, 0, "").unwrap_or(0), 0);
    assert_eq!(group.metric("keygate_connections_cut_total{reason=\"tunnel_idle\"}"), Some(1));
    assert_eq!(group.get(), 200);
}

#[test]
fn either_side_keeps_a_tunnel_open() {
    let group = Group::start(&[1], &strict("tunnel_idle_timeout = \"2s\""));
    // One that only sends, and one that only receives.
    group.origins[0].script_socket(|request, socket| {
        socket.write_all(SWITCHING)?;
        if request.target.ends_with("listens") {
            return std::io::copy(socket, &mut std::io::sink()).map(drop);
        }
        loop {
            socket.write_all(&frame(b"on"))?;
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let begun = Instant::now();
    let mut clients = ["speaks", "listens"].map(|which| {
        let mut client = group.gateway.connect();
        let request = upgrade(&group.secret).bytes();
        let target = format!("/v1/app/{which}");
        client.send(&String::from_utf8(request).unwrap().replace("/v1/app/ws", &target).into_bytes());
        assert_eq!(client.response_head().status, 101);
        client
    });
    let message = frame(b"on");
    while begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(clients[0].exactly(message.len()), message);
        clients[1].send(&message);
    }
}

#[test]
fn a_tunnel_whose_backend_breaks_off_is_no_failure() {
    let address = backend(|socket| {
        let head = read_head(socket)?;
        if !head.windows(9).any(|name| name.eq_ignore_ascii_case(b"upgrade: ")) {
            return socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
        socket.write_all(SWITCHING)?;
        // A socket closed with unread bytes is reset.
        socket.peek(&mut [0; 1]).map(drop)
    });
    let group = Group::start_with(&[address], &strict(""));
    let key = group.gateway.create_key(json!({}));
    for _ in 0..3 {
        let mut client = open(&group.gateway, &key.secret);
        client.send(&frame(b"unread"));
        assert!(client.is_closed());
    }
    for row in group.gateway.wait_for_logs(&key, 3) {
        assert_eq!((&row["status_code"], &row["outcome"]), (&json!(101), &json!("served")), "{row:#}");
    }
    let ejections = format!("{EJECTIONS}{{server=\"{address}\",upstream=\"app\"}}");
    assert_eq!(group.metric(&ejections).unwrap_or(0), 0);
    assert_eq!(group.get(), 200);
}

#[test]
fn disabling_a_key_closes_its_tunnels_with_a_close_frame() {
    let origin = Origin::start();
    echoing(&origin);
    let upstream = format!("[[upstreams]]\nname = \"app\"\nservers = [\"{}\"]\n", origin.address);
    let config = upstream + &route("app", "/v1/app/{rest*}", "app", "");
    let gateway = Gateway::start(&("[proxy]\nrevocation_check = \"100ms\"\n".to_owned() + &config));
    let key = gateway.create_key(json!({}));
    let mut client = open(&gateway, &key.secret);
    let message = frame(b"hello");
    client.send(&message);
    assert_eq!(client.exactly(message.len()), message);
    gateway.update_key(&key, &json!({"is_active": false}));
    assert_eq!(client.exactly(4), [0x88, 2, 0x03, 0xf0], "a violation of policy (1008)");
    assert!(client.is_closed());
    assert_eq!(gateway.wait_for_logs(&key, 1)[0]["outcome"], "denied");
}

#[test]
fn a_close_frame_is_not_put_into_the_middle_of_another() {
    let group = Group::start(&[1], &strict("tunnel_idle_timeout = \"500ms\""));
    group.origins[0].script_socket(|_, socket| {
        socket.write_all(SWITCHING)?;
        socket.write_all(b"\x82\x05hel")?;
        echo(socket)
    });
    let mut client = open(&group.gateway, &group.secret);
    assert_eq!(client.exactly(5), b"\x82\x05hel");
    assert!(client.is_closed());
}

#[test]
fn an_upgrade_that_is_not_answered_in_time_is_504() {
    let group = Group::start(&[1], "read_timeout = \"300ms\"\n[upstreams.eject]\nafter = 0\n");
    let hold = Hold::new();
    group.origins[0].answer_after(&hold);
    let response = group.gateway.call(&upgrade(&group.secret));
    assert_eq!(response.fault(), (504, 10003, "gateway_timeout".into()));
    hold.release();
    // And a declined upgrade is a request like any other.
    let mut client = group.gateway.connect();
    for _ in 0..2 {
        assert_eq!(client.call(&upgrade(&group.secret)).status, 200);
    }
}
