//! A request's permits (in flight and at its upstream) are released before its client can have read the last byte of the
//! response, and not earlier.

use crate::http2::{Client, H2C, h2c, read, request};
use crate::speaks2::Speaks2;
use crate::support::{Gateway, Hold, Key, Origin, Raw, Request, eventually, route, stand, upstream};
use serde_json::json;
use std::io::{self, Write};

/// How often each form is requested. A late release shows only now and then.
const ROUNDS: usize = 150;

/// The responses of an origin, by the last segment of the target.
fn answers(target: &str, out: &mut dyn Write) -> io::Result<()> {
    let large = vec![b'x'; 100_000];
    let of_length = |n: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n");
    match target.rsplit('/').next().unwrap_or_default() {
        "length" => out.write_all(&[of_length(2).as_bytes(), b"ok"].concat()),
        "large" => out.write_all(&[of_length(large.len()).as_bytes(), &large].concat()),
        "parts" => {
            out.write_all(of_length(6).as_bytes())?;
            out.write_all(b"okay")?;
            out.write_all(b"!!")
        }
        "chunked" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        }
        "empty" => out.write_all(of_length(0).as_bytes()),
        "none" => out.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"),
        "unchanged" => out.write_all(b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
        "failed" => out.write_all(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno"),
        "interim" => {
            out.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
            out.write_all(&[of_length(2).as_bytes(), b"ok"].concat())
        }
        // The response ends with the connection.
        "closes" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok")?;
            Err(io::ErrorKind::Other.into())
        }
        "broken" => Err(io::ErrorKind::Other.into()),
        other => panic!("no answer for {other}"),
    }
}

const FORMS: [(&str, &str, u16); 12] = [
    ("GET", "length", 200),
    ("GET", "large", 200),
    ("GET", "parts", 200),
    ("GET", "chunked", 200),
    ("HEAD", "length", 200),
    ("GET", "empty", 200),
    ("GET", "none", 204),
    ("GET", "unchanged", 304),
    ("GET", "failed", 500),
    ("GET", "interim", 200),
    ("GET", "closes", 200),
    // The backend breaks off.
    ("GET", "broken", 502),
];

/// Forms of a backend that speaks HTTP/2.
const FORMS2: [(&str, u16); 5] =
    [("drain", 200), ("bare", 200), ("trailers", 200), ("length", 200), ("unknown", 200)];

/// A gateway that allows one request at a time in every respect.
fn one_at_a_time() -> (Origin, Speaks2, Gateway, Key) {
    let (origin, speaks2) = (Origin::start(), Speaks2::start());
    origin.script(|received, out| answers(&received.target, out));
    let most = "max_requests = 1\nmax_requests_per_server = 1\n[upstreams.eject]\nafter = 0\n[upstreams.retry]\nattempts = 1\n";
    let http2 = format!("protocol = \"http2\"\n{most}");
    let config = [
        "[plans.default]\napi_ops_rate_limit = 1000000\n",
        &(upstream("app", origin.address) + most),
        &(upstream("two", speaks2.address) + &http2),
        &route("app", "/v1/app/{rest*}", "app", ""),
        &route("two", "/v1/two/{rest*}", "two", ""),
        H2C,
    ];
    let gateway = Gateway::start(&config.concat());
    let key = gateway.create_key(json!({"rate_limit": 1_000_000, "concurrency_limit": 1}));
    (origin, speaks2, gateway, key)
}

#[test]
fn sequential_http1_requests_pass_a_concurrency_limit_of_one() {
    let (_origin, _speaks2, gateway, key) = one_at_a_time();
    let mut lines: [Option<Raw>; 2] = [None, None];
    let mut ask = |n: usize, method: &str, target: &str, status: u16| {
        // Never the connection of the previous request, which would wait for itself.
        let line = &mut lines[n % 2];
        let mut client = line.take().unwrap_or_else(|| gateway.connect());
        client.send(&Request::new(method, target).bearer(&key.secret).bytes());
        let mut response = client.response_to(method);
        while response.status < 200 {
            response = client.response_to(method);
        }
        assert_eq!(response.status, status, "{method} {target}, round {n}: {}", response.text());
        let stays = response.header("connection") != Some("close") && status != 502;
        *line = stays.then_some(client);
    };
    for (method, form, status) in FORMS {
        for n in 0..ROUNDS {
            ask(n, method, &format!("/v1/app/{form}"), status);
        }
    }
    for (form, status) in FORMS2 {
        for n in 0..ROUNDS {
            ask(n, "GET", &format!("/v1/two/{form}"), status);
        }
    }
    // For HTTP/1.0 clients some responses end with the connection.
    for n in 0..2 * ROUNDS {
        let mut client = gateway.connect();
        let form = if n % 2 == 0 { "chunked" } else { "closes" };
        let head = format!("GET /v1/app/{form} HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", key.secret);
        client.send(head.as_bytes());
        assert_eq!(client.response().status, 200, "{form}, round {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_http2_requests_pass_a_concurrency_limit_of_one() {
    let (_origin, _speaks2, gateway, key) = one_at_a_time();
    let mut client = Client::connect(h2c(&gateway)).await;
    for (method, form, status) in FORMS {
        for n in 0..ROUNDS {
            let asked = request(method, &format!("/v1/app/{form}"), &key.secret);
            let answer = client.call(asked).await.unwrap();
            assert_eq!(answer.status, status, "{method} {form}, round {n}");
        }
    }
    for (form, status) in FORMS2 {
        for n in 0..ROUNDS {
            let answer = client.call(request("GET", &format!("/v1/two/{form}"), &key.secret)).await.unwrap();
            assert_eq!(answer.status, status, "{form}, round {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_parts_of_a_response_count_as_in_flight() {
    let (origin, gateway) = stand(H2C);
    // More than a stream's window, and less than all that may be in flight.
    origin.answer(200, &[], &[b'x'; 100_000]);
    let key = gateway.create_key(json!({"rate_limit": 1000, "concurrency_limit": 1}));
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, _) = client.begin(request("GET", "/v1/app/x", &key.secret), true).await;
    let response = response.await.unwrap();
    let (_, mut body) = response.into_parts();
    let mut came = 0;
    while came < 65_535 {
        came += body.data().await.unwrap().unwrap().len();
    }
    for _ in 0..20 {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 429);
    }
    body.flow_control().release_capacity(came).unwrap();
    while let Some(part) = body.data().await {
        came += part.unwrap().len();
    }
    assert_eq!(came, 100_000);
    assert_eq!(client.call(request("GET", "/v1/app/x", &key.secret)).await.unwrap().status, 200);

    // Over HTTP/1.1 the kernel buffers some of it.
    let hold = Hold::new();
    let until = hold.clone();
    origin.script(move |_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")?;
        for _ in 0..50 {
            out.write_all(&[b'x'; 1_000_000])?;
        }
        until.wait(1);
        Ok(())
    });
    let mut reader = gateway.connect();
    reader.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    assert_eq!(reader.response_head().status, 200);
    for _ in 0..20 {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 429);
    }
    assert_eq!(reader.exactly(50_000_000).len(), 50_000_000);
    hold.release();
    origin.answer(200, &[], b"ok");
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_stream_releases_its_concurrency() {
    let (origin, gateway) = stand(H2C);
    origin.answer(200, &[], &[b'x'; 100_000]);
    let key = gateway.create_key(json!({"rate_limit": 1000, "concurrency_limit": 1}));
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, stream) = client.begin(request("GET", "/v1/app/x", &key.secret), true).await;
    let response = response.await.unwrap();
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 429);
    drop((response, stream));
    eventually("its place is free", || (gateway.get("/v1/app/x", &key.secret).status == 200).then_some(()));
    let (response, _) = client.begin(request("GET", "/v1/app/x", &key.secret), true).await;
    assert_eq!(read(response).await.unwrap().status, 200);
}
