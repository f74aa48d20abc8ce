//! Pipelining: what a client sends before it has the response to its previous request.

use crate::support::{Hold, Request, route, stand};
use rustix::net::sockopt::set_socket_linger;
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn a_large_body_that_was_sent_ahead_is_held_back_and_goes_on_whole() {
    let (origin, gateway) = stand(&route("body", "/v1/body", "app", "end_user = \"body:user\""));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/first").bearer(&secret).bytes());
    origin.wait_for_heads(1);
    let whole = format!("{{\"user\":\"ann\",\"x\":\"{}\"}}", "a".repeat(70_000)).into_bytes();
    client.send(&Request::post("/v1/body", whole.clone()).bearer(&secret).bytes());
    hold.release();
    assert_eq!([client.response().status, client.response().status], [200, 200]);
    assert!(origin.last().body == whole);
}

#[test]
fn a_client_that_sent_much_ahead_is_seen_to_leave() {
    let (origin, gateway) = stand("");
    let hold = Hold::new();
    origin.answer_after(&hold);
    let key = gateway.create_key(json!({"concurrency_limit": 1}));
    for (n, resets) in [(1, true), (2, false)] {
        let client = TcpStream::connect(gateway.proxy).unwrap();
        let first = Request::get("/v1/app/first").bearer(&key.secret).bytes();
        let ahead = [b"GET /".as_slice(), &vec![b'a'; 70_000]].concat();
        (&client).write_all(&[first, ahead].concat()).unwrap();
        origin.wait_for_heads(n);
        if resets {
            set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        // The backend has not answered.
        let rows = gateway.wait_for_logs(&key, n);
        assert!(rows.iter().all(|row| row["outcome"] == "aborted"), "{rows:?}");
    }
    hold.release();
}
