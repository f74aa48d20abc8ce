//! Interim responses: a client that waits for `100 Continue` gets it, with every combination of HTTP versions.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::speaks2::Speaks2;
use crate::support::{Gateway, Origin, Raw, Request, eventually_true, route, upstream};
use bytes::Bytes;
use h2::client::ResponseFuture;
use serde_json::json;
use std::future::poll_fn;

fn both() -> (Origin, Speaks2, Gateway, String) {
    let (origin, speaks2) = (Origin::start(), Speaks2::start());
    let gateway = Gateway::start(
        &[
            upstream("one", origin.address),
            upstream("two", speaks2.address) + "protocol = \"http2\"\n",
            route("one", "/v1/one/{rest*}", "one", ""),
            route("two", "/v1/two/{rest*}", "two", ""),
            route("named", "/v1/named", "one", "end_user = \"body:user\"\n"),
            H2C.to_owned(),
        ]
        .concat(),
    );
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    (origin, speaks2, gateway, secret)
}

/// The status of the next interim response.
async fn interim(response: &mut ResponseFuture) -> Option<u16> {
    let told = poll_fn(|context| response.poll_informational(context)).await;
    told.map(|told| told.expect("an interim answer").status().as_u16())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_100_continue_is_answered_over_http2() {
    let (origin, speaks2, gateway, secret) = both();
    let mut client = Client::connect(h2c(&gateway)).await;
    for target in ["/v1/one/x", "/v1/two/x", "/v1/named"] {
        let mut asked = request("POST", target, &secret);
        asked.headers_mut().insert("expect", http::HeaderValue::from_static("100-continue"));
        let (mut response, mut body) = client.begin(asked, false).await;
        assert_eq!(interim(&mut response).await, Some(100), "{target}");
        body.send_data(Bytes::from_static(b"{\"user\":\"ann\"}"), true).unwrap();
        assert_eq!(read(response).await.unwrap().status, 200, "{target}");
    }
    assert_eq!(origin.last().body, b"{\"user\":\"ann\"}");
    let (fields, body) = speaks2.heard().pop().unwrap();
    assert_eq!((body.as_slice(), fields.get("expect")), (&b"{\"user\":\"ann\"}"[..], None));
    // A refused request gets only the refusal.
    let mut asked = request("POST", "/v1/one/x", "nonsense");
    asked.headers_mut().insert("expect", http::HeaderValue::from_static("100-continue"));
    let (response, _body) = client.begin(asked, false).await;
    assert_eq!(read(response).await.unwrap().status, 401);
}

#[test]
fn expect_100_continue_is_answered_over_http1() {
    let (origin, speaks2, gateway, secret) = both();
    for target in ["/v1/one/x", "/v1/two/x", "/v1/named"] {
        let mut client: Raw = gateway.connect();
        let asked =
            Request::post(target, "{\"user\":\"ann\"}").bearer(&secret).header("Expect", "100-continue");
        client.send(&asked.head());
        assert_eq!(client.response_head().status, 100, "{target}");
        client.send(b"{\"user\":\"ann\"}");
        assert_eq!(client.response().status, 200, "{target}");
    }
    assert_eq!((origin.count(), speaks2.heard().len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_of_a_backend_are_forwarded_over_http2() {
    let (origin, _speaks2, gateway, secret) = both();
    origin.script(|_, out| {
        out.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")?;
        out.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n")?;
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    });
    let mut client = Client::connect(h2c(&gateway)).await;
    let (mut response, _) = client.begin(request("GET", "/v1/one/x", &secret), true).await;
    for link in ["</a.css>", "</b.css>"] {
        let told = poll_fn(|context| response.poll_informational(context)).await.unwrap().unwrap();
        assert_eq!((told.status().as_u16(), told.headers()["link"].to_str().unwrap()), (103, link));
        assert!(told.headers().contains_key("x-request-id"));
    }
    let answer = read(response).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"ok"[..]));
    eventually_true("one request came of it", || origin.count() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_of_a_backend_over_http2_are_left_out_and_the_response_is_whole() {
    let (_origin, speaks2, gateway, secret) = both();
    let first = gateway.get("/v1/two/hints", &secret);
    assert_eq!((first.status, first.text().as_str()), (200, "ok"));
    let mut client = Client::connect(h2c(&gateway)).await;
    let (mut response, _) = client.begin(request("GET", "/v1/two/hints", &secret), true).await;
    assert_eq!(interim(&mut response).await, None);
    let answer = read(response).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"ok"[..]));
    assert_eq!(speaks2.heard().len(), 2);
}
