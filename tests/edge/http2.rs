//! HTTP/2 from clients: the same rules, limits of its own, and backends that speak HTTP/1.1 all the same.

use crate::support::{Gateway, Origin, Request, eventually_true, one_route, stand};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::net::TcpStream;

const H2C: &str = "[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n";

/// A connection, and the work of driving it.
pub(crate) struct Client {
    send: SendRequest<Bytes>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) async fn over<S>(stream: S) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(async move { connection.await.ok() });
        Self { send: send.ready().await.expect("ready") }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.expect("a connection")).await
    }

    pub(crate) async fn begin(
        &mut self,
        request: http::Request<()>,
        end: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = self.send.clone().ready().await.expect("ready");
        ready.send_request(request, end).expect("sent")
    }

    pub(crate) async fn call(&mut self, request: http::Request<()>) -> Result<Answer, h2::Error> {
        let (response, _) = self.begin(request, true).await;
        read(response).await
    }
}

pub(crate) async fn read(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (parts, mut stream): (_, RecvStream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(part) = stream.data().await {
        let bytes = part?;
        stream.flow_control().release_capacity(bytes.len())?;
        body.extend_from_slice(&bytes);
    }
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

impl Answer {
    fn fault(&self) -> (u16, String) {
        let envelope: Value = serde_json::from_slice(&self.body).expect("the envelope");
        (self.status.as_u16(), envelope["error"].as_str().expect("a name").to_owned())
    }
}

pub(crate) fn request(method: &str, target: &str, secret: &str) -> http::Request<()> {
    http::Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(format!("http://gateway.test{target}"))
        .version(http::Version::HTTP_2)
        .header("authorization", format!("Bearer {secret}"))
        .body(())
        .unwrap()
}

pub(crate) fn h2c(gateway: &Gateway) -> SocketAddr {
    gateway.ready["proxy_h2c"].as_str().expect("an address").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_one_connection_and_one_set_of_rules() {
    let (origin, gateway) = stand(H2C);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let answer = client.call(request("GET", "/v1/%61pp/x?q=1", &secret)).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, b"{\"ok\":true}".as_slice()));
    let seen = origin.last();
    assert_eq!((seen.target.as_str(), seen.header("host")), ("/v1/app/x?q=1", Some("gateway.test")));
    assert_eq!(seen.header("x-forwarded-host"), Some("gateway.test"));
    assert!(seen.header("authorization").is_none() && seen.header("x-keygate-key-id").is_some());
    assert!(answer.headers.contains_key("x-request-id") && !answer.headers.contains_key("connection"));
    origin.forget();
    for (method, target, key, fault) in [
        ("GET", "/nowhere", secret.as_str(), (404, "route_not_found")),
        ("GET", "/v1/app/../x", &secret, (400, "bad_request")),
        ("GET", "/v1/app//x", &secret, (400, "bad_request")),
        ("GET", "/v1/app/%2e%2e/x", &secret, (400, "bad_request")),
        ("GET", "/v1/app/a%2fb", &secret, (400, "bad_request")),
        ("GET", "/v1/app/%00", &secret, (400, "bad_request")),
        ("GET", "/v1/app/x", "nonsense", (401, "api_key_invalid")),
        ("TRACE", "/v1/app/x", &secret, (501, "not_implemented")),
    ] {
        let answer = client.call(request(method, target, key)).await.unwrap();
        assert_eq!(answer.fault(), (fault.0, fault.1.to_owned()), "{method} {target}");
    }
    let mut many = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (response, _) = client.begin(request("GET", &format!("/v1/app/{n}"), &secret), true).await;
        many.spawn(read(response));
    }
    while let Some(answer) = many.join_next().await {
        assert_eq!(answer.unwrap().unwrap().status, 200);
    }
    assert_eq!(origin.count(), 50);
}

/// A connection's beginning and one request as frames.
pub(crate) fn frames(fields: &[(&str, &str)]) -> Vec<u8> {
    let beginning = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    [beginning, headers(1, fields)].concat()
}

/// The frame of a request without a body, every field written out, so that nothing can mend it on the way.
pub(crate) fn headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|n| *n < 127).expect("a short text"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = u32::try_from(block.len()).unwrap().to_be_bytes()[1..].to_vec();
    // HEADERS that end the headers and the stream.
    bytes.extend_from_slice(b"\x01\x05");
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(&block);
    bytes
}

/// What the gateway makes of it: a status, or none where it reset the stream or the connection.
fn verdict(gateway: &Gateway, fields: &[(&str, &str)]) -> Option<u8> {
    let mut client = crate::support::Raw::connect(h2c(gateway));
    client.send(&frames(fields));
    loop {
        let head = client.exactly(9);
        let payload = client.exactly(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize);
        match head[3] {
            // HEADERS begin with the status: indexed, or a literal under an indexed name.
            1 => return Some(payload[0]),
            3 | 7 => return None,
            _ => {}
        }
    }
}

#[test]
fn what_http2_calls_malformed_never_reaches_a_backend() {
    let (origin, gateway) = stand(H2C);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let key = format!("Bearer {secret}");
    let base = |path: &'static str| {
        vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "gateway.test"),
            (":path", path),
            ("authorization", key.as_str()),
        ]
    };
    assert_eq!(verdict(&gateway, &base("/v1/app/x")), Some(0x88), "200 has an index of its own");
    assert_eq!(origin.count(), 1);
    origin.forget();
    let more = |field: (&'static str, &'static str)| [base("/v1/app/x"), vec![field]].concat();
    let without = |name: &str| base("/v1/app/x").into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| [vec![(name, value)], without(name)].concat();
    let mut probes = vec![
        more(("connection", "close")),
        more(("transfer-encoding", "chunked")),
        more(("keep-alive", "1")),
        more(("proxy-connection", "close")),
        more(("upgrade", "websocket")),
        more(("te", "gzip")),
        more(("host", "other.test")),
        more(("content-length", "5")),
        more(("content-length", "00")),
        more(("content-length", "0, 0")),
        more(("content-length", "+0")),
        more(("Upper", "case")),
        more(("x-a", "a\r\nb: c")),
        more(("x-a", "a\0b")),
        more(("x a", "b")),
        more(("", "b")),
        more((":path", "/v1/app/y")),
        more((":status", "200")),
        more((":unknown", "x")),
        without(":authority"),
        without(":path"),
        without(":method"),
        without(":scheme"),
        with(":authority", "u@gateway.test"),
        with(":authority", "gateway.test/x"),
        with(":authority", ""),
        with(":path", ""),
        with(":path", "*"),
        with(":path", "v1/app/x"),
        with(":path", "http://gateway.test/v1/app/x"),
        with(":path", "//gateway.test/v1/app/x"),
        with(":path", "/v1/app/../x"),
        with(":path", "/v1/app/%2e%2e/x"),
        with(":path", "/v1/app/a%2fb"),
        with(":path", "/v1/app/a\\b"),
        with(":path", "/v1/app/%00"),
        with(":path", "/v1/app/x y"),
        with(":path", "/v1/app/x\r\n"),
        with(":path", "/v1/app/x HTTP/1.1\r\nX: y"),
        with(":path", "/v1/app/\u{e9}"),
    ];
    probes.push([more(("content-length", "0")), vec![("content-length", "0")]].concat());
    probes.push([more(("host", "gateway.test")), vec![("host", "gateway.test")]].concat());
    for probe in probes {
        let found = verdict(&gateway, &probe);
        // 400 has an index of its own as well.
        assert!(matches!(found, None | Some(0x8c)), "{probe:?}: {found:?}");
        assert_eq!(origin.count(), 0, "{probe:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_ends_in_an_empty_frame_ends_once() {
    let (origin, gateway) = stand(&format!("{H2C}threads = 1\n"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for n in 0..20 {
        let (response, mut body) =
            client.begin(request("POST", &format!("/v1/app/{n}"), &secret), false).await;
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        eventually_true("the part is there before the end is sent", || {
            origin.arriving() == b"hello" || n > 0
        });
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(read(response).await.unwrap().status, 200);
        assert_eq!((origin.last().target, origin.last().body), (format!("/v1/app/{n}"), b"hello".to_vec()));
    }
    // Had the end been written twice, the origin would have closed and the next request would have been another's.
    assert_eq!((origin.count(), origin.connections()), (20, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_coming_resets_its_stream_and_no_other() {
    let (origin, gateway) = stand(&format!("{H2C}body_timeout = \"300ms\"\n"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut body) = client.begin(request("POST", "/v1/app/slow", &secret), false).await;
    body.send_data(Bytes::from_static(b"only this"), false).unwrap();
    let ended = read(response).await;
    assert!(ended.as_ref().is_err() || ended.as_ref().unwrap().status == 408, "{ended:?}");
    assert_eq!(client.call(request("GET", "/v1/app/next", &secret)).await.unwrap().status, 200);
    assert_eq!(origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_drips_resets_its_stream_and_no_other() {
    let times = "header_timeout = \"500ms\"\nbody_timeout = \"10s\"\nmin_body_rate = \"10KiB\"\n";
    let in_body = "[[routes]]\nname = \"named\"\npath = \"/v1/named/{rest*}\"\nupstream = \"app\"\nscopes = [\"app\"]\nend_user = \"body:user\"\n";
    let (origin, gateway) = stand(&format!("{in_body}{H2C}{times}"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for (n, target) in ["/v1/app/slow", "/v1/named/slow"].into_iter().enumerate() {
        let mut slow = request("POST", target, &secret);
        slow.headers_mut().insert("content-length", http::HeaderValue::from_static("100000"));
        let (response, mut body) = client.begin(slow, false).await;
        let ended = tokio::spawn(read(response));
        while !ended.is_finished() {
            // Each request beside it is a pause between two drops.
            assert_eq!(client.call(request("GET", "/v1/app/beside", &secret)).await.unwrap().status, 200);
            // Once the stream is reset nothing more can be sent, which is what is waited for.
            body.send_data(Bytes::from_static(b"x"), false).ok();
        }
        let ended = ended.await.unwrap();
        assert!(ended.as_ref().is_err_and(h2::Error::is_reset), "{target}: {ended:?}");
        assert_eq!(crate::limits::cut(&gateway, "body_slow"), (n + 1) as f64);
    }
    assert!(origin.requests().iter().all(|r| r.target == "/v1/app/beside"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_or_wrong_beginning_is_closed() {
    let (_origin, gateway) = stand(&format!("{H2C}first_byte_timeout = \"300ms\"\n"));
    for beginning in
        [b"".as_slice(), b"PRI * HT", b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"]
    {
        let mut client = crate::support::Raw::connect(h2c(&gateway));
        client.send(beginning);
        let shown = String::from_utf8_lossy(beginning).into_owned();
        assert!(client.ends(), "{shown:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_clients_and_http2_clients_have_doors_of_their_own() {
    let origin = Origin::start();
    let gateway = Gateway::start(&(one_route(origin.address) + H2C));
    let secret = gateway.create_key(json!({})).secret;
    assert_eq!(gateway.call(&Request::get("/v1/app/x").bearer(&secret)).status, 200);
    let stream = TcpStream::connect(gateway.proxy).await.unwrap();
    let refused = async {
        let (send, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move { connection.await.ok() });
        let (response, _) = send.ready().await?.send_request(request("GET", "/v1/app/x", &secret), true)?;
        response.await
    };
    assert!(refused.await.is_err());
    assert_eq!(origin.count(), 1);
}
