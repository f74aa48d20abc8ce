//! Hop-by-hop and end-to-end header fields, and fields of Keygate that a backend cannot remove.

use crate::http2::{Answer, Client, H2C, h2c, request};
use crate::support::{Gateway, Request, Response, stand};
use serde_json::json;

const DATED: &str = "Tue, 15 Nov 1994 08:12:31 GMT";

/// The same request over either HTTP, and the fields of the answers, names in lower case.
async fn both(
    gateway: &Gateway,
    client: &mut Client,
    method: &str,
    secret: &str,
) -> [Vec<(String, String)>; 2] {
    let of_first = |response: Response| -> Vec<(String, String)> {
        response.headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect()
    };
    let of_second = |answer: Answer| -> Vec<(String, String)> {
        let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
        answer.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    };
    let first =
        gateway.call(&Request::new(method, "/v1/app/x").bearer(secret).header("Origin", "https://a.example"));
    let mut asked = request(method, "/v1/app/x", secret);
    asked.headers_mut().insert("origin", "https://a.example".parse().unwrap());
    let second = client.call(asked).await.unwrap();
    [of_first(first), of_second(second)]
}

fn all<'f>(fields: &'f [(String, String)], name: &str) -> Vec<&'f str> {
    fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_a_backend_names_in_connection_are_removed_and_ours_stay() {
    let own = "[[routes]]\nname = \"set\"\npath = \"/v1/app/x\"\nupstream = \"app\"\nscopes = []\n\
               [routes.response_headers]\nset = [\"X-Set: by the route\"]\n[routes.cors]\norigins = [\"*\"]\n";
    let (origin, gateway) = stand(&format!("{own}{H2C}"));
    origin.answer(
        200,
        &[
            ("Connection", "X-Debug-Node, Content-Length, X-Set"),
            (
                "Connection",
                "x-other , X-Request-Id,X-RateLimit-Limit-QPS, RateLimit, Date, Access-Control-Allow-Origin",
            ),
            ("X-Debug-Node", "node-7"),
            ("X-Other", "1"),
            ("X-Keygate-Degraded", "counters"),
            ("X-Kept", "kept"),
            ("Upgrade", "h2c"),
            ("Keep-Alive", "timeout=5"),
        ],
        b"{}",
    );
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for fields in both(&gateway, &mut client, "GET", &secret).await {
        for gone in ["x-debug-node", "x-other", "x-keygate-degraded", "upgrade", "keep-alive"] {
            assert_eq!(all(&fields, gone), Vec::<&str>::new(), "{gone}: {fields:?}");
        }
        assert_eq!(all(&fields, "x-kept"), ["kept"]);
        assert_eq!(all(&fields, "x-set"), ["by the route"]);
        assert_eq!(all(&fields, "content-length"), ["2"]);
        for ours in
            ["x-request-id", "x-ratelimit-limit-qps", "ratelimit", "date", "access-control-allow-origin"]
        {
            assert_eq!(all(&fields, ours).len(), 1, "{ours}: {fields:?}");
        }
        assert!(all(&fields, "connection").iter().all(|value| *value == "keep-alive"), "{fields:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_named_in_connection_are_removed_from_interim_responses_and_trailers() {
    let (origin, gateway) = stand(H2C);
    origin.script(|_, out| {
        out.write_all(
            b"HTTP/1.1 103 Early Hints\r\nConnection: X-Debug-Node\r\nX-Debug-Node: early\r\nLink: </a>\r\n\r\n\
              HTTP/1.1 200 OK\r\nConnection: X-Debug-Node, X-Late\r\nX-Debug-Node: node-7\r\nTrailer: X-Debug-Node\r\n\
              Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Debug-Node: late\r\nX-Late: late\r\nX-Request-Id: late\r\n\r\n",
        )
    });
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut first = gateway.connect();
    first.send(&Request::get("/v1/app/x").bearer(&secret).bytes());
    let early = first.response_head();
    assert_eq!((early.status, early.header("link")), (103, Some("</a>")));
    assert_eq!((early.header("x-debug-node"), early.header("connection")), (None, None), "{early:?}");
    let answer = first.response();
    assert_eq!((answer.status, answer.body.as_slice()), (200, b"{}".as_slice()));
    let text = format!("{answer:?}");
    assert!(!text.contains("node-7") && !text.contains("late"), "{text}");
    let mut client = Client::connect(h2c(&gateway)).await;
    let answer = client.call(request("GET", "/v1/app/x", &secret)).await.unwrap();
    let text = format!("{answer:?}");
    assert!(answer.status == 200 && !text.contains("node-7") && !text.contains("late"), "{text}");
}

#[test]
fn an_upgrade_keeps_what_it_needs_and_nothing_else() {
    let (origin, gateway) = stand("");
    origin.script_socket(|_, socket| {
        use std::io::Write as _;
        socket.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade, X-Debug-Node\r\nUpgrade: websocket\r\n\
              X-Debug-Node: node-7\r\nSec-WebSocket-Accept: x\r\n\r\nhello",
        )
    });
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    let request = Request::get("/v1/app/x").bearer(&secret).header("Connection", "Upgrade");
    let request = request.header("Upgrade", "websocket").header("Sec-WebSocket-Version", "13");
    client.send(&request.header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==").bytes());
    let answer = client.response_head();
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    assert!(answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
    assert_eq!((answer.header("x-debug-node"), answer.header("sec-websocket-accept")), (None, Some("x")));
    assert_eq!(client.exactly(5), b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_keeps_its_date_and_those_without_one_get_one() {
    let (origin, gateway) = stand(H2C);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    origin.answer(200, &[("Date", DATED), ("X-Kept", "kept")], b"{}");
    for method in ["GET", "HEAD"] {
        for fields in both(&gateway, &mut client, method, &secret).await {
            assert_eq!(
                (all(&fields, "date"), all(&fields, "x-kept")),
                (vec![DATED], vec!["kept"]),
                "{method}"
            );
        }
    }
    // Whatever the value, and with more bytes in front of it than one write.
    let long: &'static str = Box::leak("x".repeat(9_000).into_boxed_str());
    for date in ["Tuesday, 15-Nov-94 08:12:31 GMT", "yesterday"] {
        let headers: &'static [(&str, &str)] = Box::leak(Box::new([("X-Long", long), ("Date", date)]));
        origin.answer(200, headers, b"{}");
        for fields in both(&gateway, &mut client, "GET", &secret).await {
            assert_eq!((all(&fields, "date"), all(&fields, "x-long")), (vec![date], vec![long]));
        }
    }
    // On a kept connection each response has its own date.
    let mut one = gateway.connect();
    for n in 0..3 {
        let date: &'static str = Box::leak(format!("Tue, 15 Nov 1994 08:12:3{n} GMT").into_boxed_str());
        let headers: &'static [(&str, &str)] = Box::leak(Box::new([("Date", date)]));
        origin.answer(200, headers, b"{}");
        let answer = one.call(&Request::get("/v1/app/x").bearer(&secret));
        assert_eq!((answer.header("date"), answer.body.as_slice()), (Some(date), b"{}".as_slice()));
        let refused = one.call(&Request::get("/v1/app/x").bearer("nonsense"));
        assert!(refused.status == 401 && refused.header("date").is_some_and(|own| own != date));
    }
    origin.answer(200, &[], b"{}");
    for secret in [secret.as_str(), "nonsense"] {
        for fields in both(&gateway, &mut client, "GET", secret).await {
            let date = all(&fields, "date");
            assert!(date.len() == 1 && date[0].len() == DATED.len() && date[0] != DATED, "{fields:?}");
        }
    }
}
