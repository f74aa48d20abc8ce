//! Bodies that are buffered until they are complete: their memory is counted and bounded, and they delay neither other
//! requests nor the revocation of a key.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::limits::{cut, endless, metric};
use crate::support::{Gateway, Hold, Key, Origin, Raw, Request, eventually, eventually_true, route, stand};
use bytes::Bytes;
use serde_json::json;

/// A gateway with a route whose requests name their end user in the body.
fn named(proxy: &str) -> (Origin, Gateway) {
    let in_body = route("body", "/v1/body", "app", "end_user = \"body:user\"");
    stand(&format!("{in_body}{proxy}"))
}

/// A body of `bytes` bytes that names an end user.
fn body(bytes: usize) -> Vec<u8> {
    let around = b"{\"user\":\"ann\",\"x\":\"\"}".len();
    format!("{{\"user\":\"ann\",\"x\":\"{}\"}}", "a".repeat(bytes - around)).into_bytes()
}

fn held(gateway: &Gateway) -> f64 {
    metric(gateway, "keygate_bytes_in_flight")
}

/// A client that has sent the head and `part` of the body, and the rest of the body.
fn begun(gateway: &Gateway, secret: &str, whole: &[u8], part: usize) -> (Raw, Vec<u8>) {
    let mut client = gateway.connect();
    client.send(&Request::post("/v1/body", whole).bearer(secret).head());
    // The request may be refused before all of it is sent.
    client.try_send(&whole[..part]);
    (client, whole[part..].to_vec())
}

const NO_ROOM: (u16, u64, &str) = (503, 10003, "service_unavailable");

#[track_caller]
fn is_told(client: &mut Raw, (status, code, name): (u16, u64, &str)) {
    assert_eq!(client.response().fault(), (status, code, name.to_owned()));
}

#[test]
fn buffered_bodies_use_at_most_half_of_the_memory_and_delay_no_reader() {
    let (origin, gateway) = named("[proxy]\nmax_bytes_in_flight = \"1MiB\"\nheader_timeout = \"10m\"\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let whole = body(400_000);
    // Nearly all of it, so that however the buffer grew, another one does not fit beside it.
    let (mut first, rest) = begun(&gateway, &secret, &whole, 390_000);
    eventually_true("the first is held", || held(&gateway) >= 390_000.0);
    for _ in 0..5 {
        let (mut next, _) = begun(&gateway, &secret, &whole, 300_000);
        is_told(&mut next, NO_ROOM);
    }
    assert!(held(&gateway) <= f64::from(1 << 20), "{} bytes", held(&gateway));
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    origin.forget();
    first.send(&rest);
    assert_eq!(first.response().status, 200);
    assert!(origin.last().body == whole);
    eventually_true("nothing is held any more", || held(&gateway) == 0.0);
    assert_eq!((cut(&gateway, "over_budget"), cut(&gateway, "held_back")), (0.0, 0.0));
}

#[test]
fn a_body_that_is_held_back_for_long_goes_when_others_need_the_room() {
    let times = "header_timeout = \"300ms\"\nmin_body_rate = 0\nbody_timeout = \"10m\"\n";
    let (origin, gateway) = named(&format!("[proxy]\nmax_bytes_in_flight = \"2560KiB\"\n{times}"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let (mut slow, _) = begun(&gateway, &secret, &body(1_048_576), 1_000_000);
    eventually_true("it is held", || held(&gateway) >= 1_000_000.0);
    let mut others = Vec::new();
    eventually_true("it goes for others", || {
        others.push(begun(&gateway, &secret, &body(400_000), 350_000));
        cut(&gateway, "held_back") > 0.0
    });
    is_told(&mut slow, NO_ROOM);
    drop(others);
    eventually_true("there is room", || {
        gateway.call(&Request::post("/v1/body", body(1_000)).bearer(&secret)).status == 200
    });
    assert_eq!(origin.last().body, body(1_000));
}

#[test]
fn a_body_that_is_held_back_has_its_keys_place_in_flight_and_costs_nothing() {
    let (origin, gateway) = named("");
    let key = gateway.create_key(json!({"concurrency_limit": 1, "quota_limit": 9}));
    let whole = body(1_000);
    let (client, _) = begun(&gateway, &key.secret, &whole, 500);
    eventually_true("it is held", || held(&gateway) > 0.0);
    // No byte of the body is needed.
    let (mut another, _) = begun(&gateway, &key.secret, &whole, 0);
    is_told(&mut another, (429, 3017, "limit_exceeded"));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 429);
    client.hang_up();
    let next = eventually("its place is free", || {
        Some(gateway.get("/v1/app/x", &key.secret)).filter(|response| response.status == 200)
    });
    assert_eq!((next.remaining("quota"), origin.count()), (8, 1));
    assert_eq!(gateway.call(&Request::post("/v1/body", whole).bearer(&key.secret)).remaining("quota"), 7);
    // An exhausted limit is reported before any of the body is read.
    let poor = gateway.create_key(json!({"quota_limit": 1}));
    assert_eq!(gateway.get("/v1/app/x", &poor.secret).status, 200);
    let (mut client, _) = begun(&gateway, &poor.secret, &body(1_000), 0);
    is_told(&mut client, (429, 3016, "quota_exceeded"));
}

fn switch_off(gateway: &Gateway, key: &Key) {
    gateway.update_key(key, &json!({"is_active": false}));
}

#[test]
fn a_body_that_is_held_back_ends_with_its_key() {
    // End user checks at an interval, and again when the body is complete.
    for (check, is_asked) in [("100ms", true), ("1h", false)] {
        let (origin, gateway) = named(&format!("[proxy]\nrevocation_check = \"{check}\"\n"));
        for (deleted, told) in
            [(false, (401, 3011, "api_key_inactive")), (true, (401, 3009, "api_key_invalid"))]
        {
            let key = gateway.create_key(json!({}));
            let (mut client, rest) = begun(&gateway, &key.secret, &body(1_000), 500);
            eventually_true("it is held", || held(&gateway) > 0.0);
            if deleted {
                gateway.managed("DELETE", &format!("/apikeys/{}", key.id), None);
            } else {
                switch_off(&gateway, &key);
            }
            if !is_asked {
                client.send(&rest);
            }
            is_told(&mut client, told);
            eventually_true("nothing is held", || held(&gateway) == 0.0);
        }
        assert_eq!(origin.count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_held_back_ends_with_its_key() {
    let (origin, gateway) = named(&format!("{H2C}revocation_check = \"100ms\"\n"));
    let key = gateway.create_key(json!({}));
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut stream) = client.begin(request("POST", "/v1/body", &key.secret), false).await;
    stream.send_data(Bytes::from_static(b"{\"user\":"), false).unwrap();
    eventually_true("it is held", || held(&gateway) > 0.0);
    switch_off(&gateway, &key);
    assert_eq!(read(response).await.unwrap().status, 401);
    assert_eq!((cut(&gateway, "key_inactive"), origin.count()), (1.0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_over_hold_nothing_while_their_connection_goes_on() {
    let (origin, gateway) = named(&format!("{H2C}max_bytes_in_flight = \"1MiB\"\n"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let hold = Hold::new();
    let until = hold.clone();
    origin.script(move |received, out| {
        let large = vec![b'x'; 1_000_000];
        let answer: &[u8] = match received.target.as_str() {
            "/v1/app/large" => &large,
            "/v1/app/open" => {
                until.wait(1);
                b"done"
            }
            _ => b"ok",
        };
        out.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len()).as_bytes())?;
        out.write_all(answer)
    });
    let mut client = Client::connect(h2c(&gateway)).await;
    let (open, _) = client.begin(request("GET", "/v1/app/open", &secret), true).await;
    for _ in 0..40 {
        let (response, mut stream) = client.begin(request("POST", "/v1/body", &secret), false).await;
        stream.send_data(body(60_000).into(), true).unwrap();
        assert_eq!(read(response).await.unwrap().body, b"ok");
    }
    for _ in 0..20 {
        let (response, _) = client.begin(request("GET", "/v1/app/large", &secret), true).await;
        let began = response.await.unwrap();
        assert_eq!(began.status(), 200);
        // Resets it.
        drop(began);
    }
    eventually_true("nothing is held", || held(&gateway) == 0.0);
    hold.release();
    assert_eq!(read(open).await.unwrap().body, b"done");
    assert_eq!(cut(&gateway, "over_budget"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_whose_client_reads_nothing_cannot_exhaust_memory() {
    let (origin, gateway) = named(&format!("{H2C}max_bytes_in_flight = \"8MiB\"\nwrite_timeout = \"10m\"\n"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    endless(&origin);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(h2c(&gateway)).await;
        let mut answers = Vec::new();
        for _ in 0..20 {
            // The window of this stream is never opened.
            answers.push(client.begin(request("GET", "/v1/app/x", &secret), true).await);
        }
        clients.push((client, answers));
    }
    eventually_true("some of them are gone", || cut(&gateway, "over_budget") >= 2.0);
    eventually_true("the rest fits", || held(&gateway) <= f64::from(8 << 20));
    origin.answer(200, &[], b"fine");
    assert_eq!(gateway.get("/v1/app/x", &secret).text(), "fine");
}
