//! Long-lived streams: they pass in both directions without delay and end with their key or their client.

use crate::limits::{cut, endless, metric};
use crate::support::{Gateway, Hold, Key, Origin, Request, Spare, eventually_true, stand};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};

/// An origin whose response begins and then waits until it is released.
fn open_ended(origin: &Origin) -> Hold {
    let hold = Hold::new();
    let released = hold.clone();
    origin.script(move |_, out| {
        out.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        out.write_all(b"9\r\ndata: 1\n\n\r\n")?;
        released.wait(1);
        out.write_all(b"0\r\n\r\n")
    });
    hold
}

#[test]
fn a_key_that_is_switched_off_deleted_expired_or_replaced_ends_its_streams() {
    let (origin, gateway) = stand("[proxy]\nrevocation_check = \"100ms\"\n");
    let _hold = open_ended(&origin);
    // The expiry must be in the future when the gateway learns of it.
    let expires = |key: &Key| {
        let soon = json!({"expires_at": chrono_ms(500)});
        gateway.admin("PUT", &format!("/apikeys/{}", key.id), Some(&soon)).status == 200
    };
    let ways: [(&str, Box<dyn Fn(&Key)>); 4] = [
        ("key_inactive", Box::new(|key| drop(gateway.update_key(key, &json!({"is_active": false}))))),
        ("key_gone", Box::new(|key| drop(gateway.managed("DELETE", &format!("/apikeys/{}", key.id), None)))),
        (
            "key_gone",
            Box::new(|key| drop(gateway.managed("POST", &format!("/apikeys/{}/regenerate", key.id), None))),
        ),
        ("key_expired", Box::new(|key| eventually_true("it will expire", || expires(key)))),
    ];
    for (how, end) in ways {
        let (key, other) = (gateway.create_key(json!({})), gateway.create_key(json!({})));
        let mut client = gateway.connect();
        client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
        assert_eq!(client.response_head().status, 200, "{how}");
        assert_eq!(client.chunk().as_deref(), Some(b"data: 1\n\n".as_slice()));
        let mut untouched = gateway.connect();
        untouched.send(&Request::get("/v1/app/x").bearer(&other.secret).bytes());
        assert_eq!(untouched.response_head().status, 200);
        end(&key);
        let begun = Spare::begin();
        assert!(client.is_closed(), "{how}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{how}: {:?}", begun.elapsed());
        assert_eq!(untouched.chunk().as_deref(), Some(b"data: 1\n\n".as_slice()));
        untouched.hang_up();
    }
}

/// A gateway with a key for each name; the secrets were hashed with pepper 1, and pepper 2 is current.
fn repeppered<const N: usize>(more: &str) -> (Origin, Gateway, [Key; N]) {
    let (origin, mut gateway) = stand(more);
    let keys = std::array::from_fn(|_| gateway.create_key(json!({})));
    gateway.stop();
    let pepper = gateway.folder().join("data/pepper");
    let old = std::fs::read_to_string(&pepper).unwrap();
    std::fs::write(&pepper, format!("{old}2:{}\n", "c3".repeat(32))).unwrap();
    (origin, gateway.restart(), keys)
}

/// Waits until that many secrets are hashed with pepper 2.
fn wait_for_rehashes(gateway: &Gateway, n: i64) {
    eventually_true("they are hashed anew", || {
        let database = rusqlite::Connection::open(gateway.folder().join("data/keygate.db")).unwrap();
        let sql = "SELECT count(*) FROM keys WHERE pepper_version = 2";
        database.query_row(sql, [], |row| row.get(0)).is_ok_and(|found: i64| found == n)
    });
}

#[test]
fn a_replaced_secret_ends_what_began_under_an_older_pepper_over_every_protocol() {
    let more = format!("{}revocation_check = \"100ms\"\n", crate::http2::H2C);
    let (origin, gateway, keys) = repeppered::<2>(&more);
    let [leaked, untouched] = &keys;
    let hold = open_ended(&origin);
    let begin = |key: &Key| {
        let mut client = gateway.connect();
        client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
        assert_eq!(client.response_head().status, 200);
        assert_eq!(client.chunk().as_deref(), Some(b"data: 1\n\n".as_slice()));
        client
    };
    let (mut stream, mut other) = (begin(leaked), begin(untouched));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut body = runtime.block_on(async {
        let mut client = crate::http2::Client::connect(crate::http2::h2c(&gateway)).await;
        let (response, _) =
            client.begin(crate::http2::request("GET", "/v1/app/x", &leaked.secret), true).await;
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "data: 1\n\n");
        body
    });
    wait_for_rehashes(&gateway, 2);
    let answer = gateway.managed("POST", &format!("/apikeys/{}/regenerate", leaked.id), None);
    assert!(stream.is_closed(), "HTTP/1.1");
    let end = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), body.data()).await });
    assert!(end.expect("HTTP/2 in time").is_none_or(|part| part.is_err()), "HTTP/2");
    assert_eq!(gateway.get("/v1/app/x", &leaked.secret).status, 401);
    assert_ne!(answer["api_key"], json!(leaked.secret));
    // Rehashing has ended no stream.
    hold.release();
    assert_eq!(other.chunk(), None, "the end that the backend sends");
}

#[test]
fn the_end_of_a_grace_period_ends_what_began_by_the_old_secret_and_nothing_else() {
    let (origin, gateway) = stand("[proxy]\nrevocation_check = \"100ms\"\n");
    let key = gateway.create_key(json!({}));
    echoing(&origin);
    let tunnel = |secret: &str| {
        let mut client = gateway.connect();
        client.send(&upgrade(secret));
        assert_eq!(client.response_head().status, 101);
        client
    };
    let mut old = tunnel(&key.secret);
    let body = json!({"grace_period_seconds": 1});
    let path = format!("/apikeys/{}/regenerate", key.id);
    let issued = gateway.managed("POST", &path, Some(&body))["api_key"].as_str().unwrap().to_owned();
    let mut new = tunnel(&issued);
    assert_eq!(old.exactly(4), [0x88, 2, 0x03, 0xf0], "its time is over: a violation of policy (1008)");
    assert!(old.is_closed());
    for message in [b"one".as_slice(), b"two"] {
        new.send(message);
        assert_eq!(new.exactly(3), message);
    }
}

fn chrono_ms(ahead: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap() + ahead
}

/// An origin that accepts an upgrade and then echoes what it gets.
fn echoing(origin: &Origin) {
    origin.script_socket(|_, socket| {
        socket.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        let mut part = [0; 1024];
        loop {
            match std::io::Read::read(socket, &mut part)? {
                0 => return Ok(()),
                n => socket.write_all(&part[..n])?,
            }
        }
    });
}

fn upgrade(secret: &str) -> Vec<u8> {
    Request::get("/v1/app/ws")
        .bearer(secret)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .bytes()
}

#[test]
fn a_websocket_passes_after_the_checks_of_its_key_and_ends_with_it() {
    let (origin, gateway) =
        stand("[proxy]\nrevocation_check = \"100ms\"\nbody_timeout = \"300ms\"\nidle_timeout = \"1s\"\n");
    echoing(&origin);
    let key = gateway.create_key(json!({}));
    let mut refused = gateway.connect();
    refused.send(&upgrade("nonsense"));
    assert_eq!(refused.response().fault(), (401, 3009, "api_key_invalid".into()));
    assert_eq!(origin.count(), 0);
    let mut client = gateway.connect();
    client.send(&upgrade(&key.secret));
    let head = client.response_head();
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
    // Bytes that look like a request, like chunks, or like neither: all pass.
    for message in [b"\x81\x05hello".as_slice(), b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"\0\xff\n"] {
        client.send(message);
        assert_eq!(client.exactly(message.len()), message);
    }
    // Longer than any timeout of bodies or idle connections.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_500) {
        let logs = gateway.logs(&key);
        assert!(logs.is_empty(), "it has not ended: {logs:?}");
    }
    client.send(b"still here");
    assert_eq!(client.exactly(10), b"still here");
    gateway.update_key(&key, &json!({"is_active": false}));
    assert!(client.is_closed());
    assert_eq!(gateway.wait_for_logs(&key, 1).len(), 1);
}

#[test]
fn a_client_that_leaves_takes_its_backend_request_with_it() {
    let (origin, gateway) = stand("");
    let _hold = open_ended(&origin);
    let key = gateway.create_key(json!({"concurrency_limit": 1}));
    for n in 1..=3 {
        let mut client = gateway.connect();
        client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
        assert_eq!(client.response_head().status, 200);
        client.hang_up();
        // Its in-flight permit is released at once, although the backend has not ended its response.
        let rows = gateway.wait_for_logs(&key, n);
        assert!(rows.iter().all(|row| row["outcome"] == "aborted"), "{rows:?}");
    }
}

#[test]
fn a_response_that_nobody_reads_ends_with_its_key() {
    let (origin, gateway) = stand("[proxy]\nrevocation_check = \"100ms\"\nwrite_timeout = \"10m\"\n");
    let key = gateway.create_key(json!({}));
    endless(&origin);
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    eventually_true("it takes nothing", || metric(&gateway, "keygate_bytes_in_flight") > 0.0);
    gateway.update_key(&key, &json!({"is_active": false}));
    // The backend's side has ended as well.
    gateway.wait_for_logs(&key, 1);
    assert_eq!((cut(&gateway, "key_inactive"), cut(&gateway, "write_stalled")), (1.0, 0.0));
}
