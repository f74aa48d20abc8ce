//! Requests that fail on their way to a backend: whatever the cause, they end, are reported and leave nothing behind.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::speaks2::Speaks2;
use crate::support::{Gateway, Key, Origin, eventually, route, upstream};
use bytes::Bytes;
use serde_json::json;

/// Routes to a backend over each HTTP, with small bodies only.
fn small(times: &str) -> (Origin, Speaks2, Gateway, Key) {
    let (origin, speaks2) = (Origin::start(), Speaks2::start());
    let most = "max_body_bytes = \"16KiB\"\n";
    let gateway = Gateway::start(
        &[
            &(upstream("one", origin.address) + times + "max_requests = 1\n"),
            &(upstream("two", speaks2.address) + times + "max_requests = 1\nprotocol = \"http2\"\n"),
            &route("one", "/v1/one/{rest*}", "one", most),
            &route("two", "/v1/two/{rest*}", "two", most),
            &route("free", "/v1/free/{rest*}", "two", ""),
            H2C,
        ]
        .map(|part: &str| part)
        .concat(),
    );
    let key = gateway.create_key(json!({"rate_limit": 1000, "concurrency_limit": 1}));
    (origin, speaks2, gateway, key)
}

#[test]
fn a_chunked_body_that_grows_too_large_is_413_whatever_its_backend_speaks() {
    let (_origin, _speaks2, gateway, key) = small("");
    for (n, target) in ["/v1/one/x", "/v1/two/x", "/v1/two/y", "/v1/one/y"].into_iter().enumerate() {
        let mut client = gateway.connect();
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n",
            key.secret
        );
        client.send(head.as_bytes());
        for _ in 0..10 {
            // The response may arrive before the request is sent completely. Its body has no end.
            client.try_send(&[b"2000\r\n".as_slice(), &[b'x'; 8192], b"\r\n"].concat());
        }
        let response = client.response();
        assert_eq!(response.fault(), (413, 1000, "payload_too_large".into()), "{target}");
        drop(client);
        let rows = gateway.wait_for_logs(&key, n + 1);
        assert_eq!(
            (rows[0]["outcome"].as_str(), rows[0]["status_code"].as_u64()),
            (Some("denied"), Some(413))
        );
    }
    for target in ["/v1/one/x", "/v1/two/x"] {
        assert_eq!(gateway.get(target, &key.secret).status, 200, "no place is left taken");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_length_that_grows_too_large_is_413_whatever_its_backend_speaks() {
    let (_origin, _speaks2, gateway, key) = small("");
    let mut client = Client::connect(h2c(&gateway)).await;
    for target in ["/v1/one/x", "/v1/two/x", "/v1/two/y", "/v1/one/y"] {
        let (response, mut body) = client.begin(request("POST", target, &key.secret), false).await;
        body.send_data(Bytes::from(vec![b'x'; 80_000]), false).unwrap();
        assert_eq!(read(response).await.unwrap().status, 413, "{target}");
    }
    for target in ["/v1/one/x", "/v1/two/x"] {
        assert_eq!(client.call(request("GET", target, &key.secret)).await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_over_http2_that_takes_nothing_and_says_nothing_is_not_waited_for_for_ever() {
    let (_origin, _speaks2, gateway, key) = small("write_timeout = \"300ms\"\nread_timeout = \"300ms\"\n");
    let mut client = gateway.connect();
    let head = format!(
        "POST /v1/free/deaf HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\nContent-Length: 4000000\r\n\r\n",
        key.secret
    );
    client.send(head.as_bytes());
    client.try_send(&[b'x'; 3_999_999]);
    assert_eq!(client.response().fault(), (504, 10003, "gateway_timeout".into()));
    let mut client = Client::connect(h2c(&gateway)).await;
    let free = || gateway.get("/v1/free/x", &key.secret).status == 200;
    eventually("its place is free", || free().then_some(()));
    let (response, mut body) = client.begin(request("POST", "/v1/free/deaf", &key.secret), false).await;
    body.send_data(Bytes::from(vec![b'x'; 4_000_000]), true).unwrap();
    let ended = read(response).await;
    assert!(ended.as_ref().map_or_else(h2::Error::is_reset, |answer| answer.status == 504), "{ended:?}");
    eventually("its place is free", || free().then_some(()));
}
