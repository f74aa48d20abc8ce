//! HTTP/2 from clients: the same rules, limits of its own, and backends that still speak HTTP/1.1.

use crate::support::{Gateway, Origin, Request, eventually_true, one_route, stand};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::net::TcpStream;

pub(crate) const H2C: &str = "[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n";

/// A connection, and the work of driving it.
pub(crate) struct Client {
    send: SendRequest<Bytes>,
}

/// A response, read to its end.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_too_large_are_told_so() {
    let (origin, gateway) = stand(&format!("{H2C}max_header_bytes = \"4KiB\"\nmax_uri_bytes = \"1KiB\"\n"));
    let secret = gateway.create_key(json!({})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let with = |bytes: usize| {
        let mut request = request("GET", "/v1/app/x", &secret);
        request.headers_mut().insert("x-long", "x".repeat(bytes).parse().unwrap());
        request
    };
    assert_eq!(client.call(with(3_800)).await.unwrap().status, 200);
    for bytes in [4_100, 9_000, 17_000] {
        let told = client.call(with(bytes)).await.unwrap().fault();
        assert_eq!(told, (431, "request_header_fields_too_large".to_owned()), "{bytes} bytes");
    }
    let long = request("GET", &format!("/v1/app/{}", "x".repeat(1_100)), &secret);
    assert_eq!(client.call(long).await.unwrap().fault(), (414, "uri_too_long".to_owned()));
    let bare = client.call(with(20_000)).await.unwrap();
    assert_eq!((bare.status.as_u16(), bare.body.len()), (431, 0));
    assert_eq!((client.call(with(1)).await.unwrap().status.as_u16(), origin.count()), (200, 2));
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
    // If the end had been written twice, the origin would have closed, and the next request would use another connection.
    assert_eq!((origin.count(), origin.connections()), (20, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_body_is_408_and_affects_no_other_stream() {
    let (origin, gateway) = stand(&format!("{H2C}body_timeout = \"300ms\"\n"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let (response, mut body) = client.begin(request("POST", "/v1/app/slow", &secret), false).await;
    body.send_data(Bytes::from_static(b"only this"), false).unwrap();
    assert_eq!(read(response).await.unwrap().fault(), (408, "request_timeout".into()));
    assert_eq!(client.call(request("GET", "/v1/app/next", &secret)).await.unwrap().status, 200);
    assert_eq!(origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trickling_body_is_408_and_affects_no_other_stream() {
    let times = "header_timeout = \"500ms\"\nbody_timeout = \"10s\"\nmin_body_rate = \"10KiB\"\n";
    let in_body = "[[routes]]\nname = \"named\"\npath = \"/v1/named/{rest*}\"\nupstream = \"app\"\nscopes = [\"app\"]\nresource = \"any\"\nend_user = \"body:user\"\n";
    let (origin, gateway) = stand(&format!("{in_body}{H2C}{times}"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for (n, target) in ["/v1/app/slow", "/v1/named/slow"].into_iter().enumerate() {
        let mut slow = request("POST", target, &secret);
        slow.headers_mut().insert("content-length", http::HeaderValue::from_static("100000"));
        let (response, mut body) = client.begin(slow, false).await;
        let ended = tokio::spawn(read(response));
        while !ended.is_finished() {
            // Each request in between is a pause between two bytes.
            assert_eq!(client.call(request("GET", "/v1/app/beside", &secret)).await.unwrap().status, 200);
            // Once the stream has ended nothing more can be sent.
            body.send_data(Bytes::from_static(b"x"), false).ok();
        }
        assert_eq!(ended.await.unwrap().unwrap().fault(), (408, "request_timeout".into()), "{target}");
        assert_eq!(crate::limits::cut(&gateway, "body_slow"), (n + 1) as f64);
    }
    assert!(origin.requests().iter().all(|r| r.target == "/v1/app/beside"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_the_http2_preface_is_closed() {
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
async fn http1_and_h2c_have_separate_listeners() {
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
