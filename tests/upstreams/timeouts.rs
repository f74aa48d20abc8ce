//! Timeouts of a backend: each has its own limit, a 504 and a name in metrics and log, with every combination of HTTP
//! versions.

use crate::group::Group;
use crate::support::{
    Gateway, Hold, Origin, PATIENCE, Raw, Request, Response, Spare, eventually, eventually_true, route,
};
use bytes::Bytes;
use h2::client::SendRequest;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const GONE: &str = "[upstreams.eject]\nafter = 0\n";

/// The metrics and the access log of the one request that timed out.
#[track_caller]
fn failure(gateway: &Gateway) -> String {
    let line: Value = eventually("the line of the access log", || {
        let log = gateway.stderr();
        serde_json::from_str(log.lines().find(|line| line.contains("keygate::access"))?).ok()
    });
    assert_eq!(line["outcome"], "upstream_failed", "{line}");
    let failed: Vec<_> = results(gateway).into_iter().filter(|(name, _)| name != "answered").collect();
    let [(name, 1)] = &failed[..] else { panic!("one attempt failed: {failed:?}") };
    assert_eq!(line["backend_failure"], **name, "log and metrics say the same");
    name.clone()
}

/// The results of attempts, and how often.
fn results(gateway: &Gateway) -> Vec<(String, u64)> {
    let text = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    let series = text.lines().filter(|line| line.starts_with("keygate_upstream_results_total{"));
    let read = series.map(|line| {
        let name = line.split("result=\"").nth(1).unwrap().split('"').next().unwrap();
        (name.to_owned(), line.rsplit(' ').next().unwrap().parse().unwrap())
    });
    read.filter(|(_, count)| *count > 0).collect()
}

/// A gateway with an access log in front of one server.
fn before(server: SocketAddr, upstream: &str, more: &str) -> (Gateway, String) {
    let config = format!(
        "[log]\naccess = true\nformat = \"json\"\n[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n\
         [[upstreams]]\nname = \"app\"\nservers = [\"localhost:{}\"]\n{upstream}\n{GONE}{more}",
        server.port()
    );
    let gateway = Gateway::start(&(config + &route("app", "/v1/app/{rest*}", "app", "")));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    (gateway, secret)
}

/// A server that accepts no connection: its queue is full, and further SYNs are dropped.
struct Full {
    address: SocketAddr,
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Full {
    fn new() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    fn at(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            socket.listen(1).unwrap().into_std().unwrap()
        });
        listener.set_nonblocking(false).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
            assert!(queued.len() < 100, "the queue has an end");
        }
        Self { address, listener, _queued: queued }
    }

    /// Accepts from now on, and answers every request.
    fn serve(self) {
        std::thread::spawn(move || {
            for stream in self.listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
                    // The test ends before some of these have sent anything.
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                        .ok();
                });
            }
        });
    }
}

/// An HTTP/2 backend: `/late` is answered when `hold` is released, `/pause` begins and then continues.
struct Backend {
    address: SocketAddr,
    /// The path and the `te` field of each request.
    heard: Arc<Mutex<Vec<(String, String)>>>,
    _runtime: Runtime,
}

impl Backend {
    fn start(hold: &Hold) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<_>>> = Arc::default();
        let (hold, hearing) = (hold.clone(), Arc::clone(&heard));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, hold.clone(), Arc::clone(&hearing)));
            }
        });
        Self { address, heard, _runtime: runtime }
    }
}

async fn serve(stream: tokio::net::TcpStream, hold: Hold, heard: Arc<Mutex<Vec<(String, String)>>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let te = request.headers().get("te").map_or("", |te| te.to_str().unwrap()).to_owned();
        let path = request.uri().path().to_owned();
        heard.lock().unwrap().push((path.clone(), te));
        let hold = hold.clone();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(part)) = body.data().await {
                body.flow_control().release_capacity(part.len()).unwrap();
            }
            let released = || tokio::task::spawn_blocking(move || hold.wait(1));
            let waits = path.ends_with("late");
            if waits {
                released().await.unwrap();
                return;
            }
            // A late response is dropped; everything else is checked by the test.
            let Ok(mut sent) = respond.send_response(http::Response::new(()), false) else { return };
            if let Some(size) = path.strip_prefix("/v1/app/large/") {
                // h2 buffers it and sends as the window allows.
                sent.send_data(vec![b'x'; size.parse().unwrap()].into(), true).ok();
                return;
            }
            sent.send_data(Bytes::from_static(b"ok"), false).ok();
            if path.ends_with("pause") {
                released().await.unwrap();
            }
            sent.send_data(Bytes::from_static(b"ay"), false).ok();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            sent.send_trailers(trailers).ok();
        });
    }
}

/// An HTTP/2 client with one connection.
struct Client {
    send: SendRequest<Bytes>,
    runtime: Runtime,
}

/// The result of one of its requests.
struct Answer {
    status: u16,
    body: Vec<u8>,
    trailers: Option<http::HeaderMap>,
}

impl Client {
    fn of(gateway: &Gateway) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = gateway.ready["proxy_h2c"].as_str().unwrap();
        let send = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(async move { connection.await.ok() });
            send
        });
        Self { send, runtime }
    }

    /// How many bytes of a response arrive that is not read until `hold` is released.
    fn taking_after(&self, hold: Hold, path: &str, secret: &str) -> usize {
        let request = http::Request::post(format!("http://gateway.test{path}"))
            .header("authorization", format!("Bearer {secret}"))
            .body(())
            .unwrap();
        let send = self.send.clone();
        let answered = async {
            let (response, mut stream) = send.ready().await?.send_request(request, false)?;
            stream.send_data(Bytes::from_static(b"a body"), true)?;
            let mut answer = response.await?.into_body();
            // The window is not extended until then.
            tokio::task::spawn_blocking(move || hold.wait(1)).await.unwrap();
            let mut came = 0;
            while let Some(part) = answer.data().await {
                let part = part?;
                answer.flow_control().release_capacity(part.len())?;
                came += part.len();
            }
            Ok::<_, h2::Error>(came)
        };
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, answered).await.expect("in time") })
            .expect("all of it")
    }

    fn call(&self, path: &str, secret: &str, body: &'static [u8]) -> Result<Answer, h2::Error> {
        let request = http::Request::builder()
            .method(if body.is_empty() { "GET" } else { "POST" })
            .uri(format!("http://gateway.test{path}"))
            .header("authorization", format!("Bearer {secret}"))
            .header("te", "trailers")
            .body(())
            .unwrap();
        let send = self.send.clone();
        let answered = async {
            let (response, mut stream) = send.ready().await?.send_request(request, body.is_empty()).unwrap();
            if !body.is_empty() {
                stream.send_data(Bytes::from_static(body), true)?;
            }
            let (head, mut answer) = response.await?.into_parts();
            let mut came = Vec::new();
            while let Some(part) = answer.data().await {
                let part = part?;
                answer.flow_control().release_capacity(part.len())?;
                came.extend_from_slice(&part);
            }
            let trailers = answer.trailers().await?;
            Ok(Answer { status: head.status.as_u16(), body: came, trailers })
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answered).await.expect("in time") })
    }
}

#[track_caller]
fn is_504(response: &Response) {
    assert_eq!(response.fault(), (504, 10003, "gateway_timeout".into()));
}

// === each has its own name ===

#[test]
fn a_server_that_accepts_no_connection_is_a_connect_timeout() {
    let full = Full::new();
    let (gateway, secret) =
        before(full.address, "connect_timeout = \"200ms\"\n[upstreams.retry]\nattempts = 1", "");
    is_504(&gateway.get("/v1/app/x", &secret));
    assert_eq!(failure(&gateway), "connect_timed_out");
}

#[test]
fn a_silent_tls_handshake_is_a_tls_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = "connect_timeout = \"200ms\"\n[upstreams.tls]\nenabled = true\ndanger_accept_any_certificate = true\n\
               [upstreams.retry]\nattempts = 1";
    let (gateway, secret) = before(silent.local_addr().unwrap(), tls, "");
    is_504(&gateway.get("/v1/app/x", &secret));
    assert_eq!(failure(&gateway), "tls_timed_out");
}

#[test]
fn a_server_that_does_not_read_the_request_is_a_write_timeout() {
    let idle = TcpListener::bind("127.0.0.1:0").unwrap();
    // It might respond without reading on, and gets the time to.
    let times = "write_timeout = \"300ms\"\nread_timeout = \"300ms\"";
    let (gateway, secret) = before(idle.local_addr().unwrap(), times, "");
    let request = Request::post("/v1/app/x", vec![b'x'; 32 << 20]).bearer(&secret);
    let mut connection = gateway.connect();
    // Not all of it is read; the response arrives all the same.
    connection.try_send(&request.bytes());
    is_504(&connection.response());
    assert_eq!(failure(&gateway), "write_timed_out");
}

#[test]
fn a_server_that_pauses_within_its_answer_is_a_read_timeout() {
    let (origin, hold) = (Origin::start(), Hold::new());
    let waits = hold.clone();
    origin.script(move |_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")?;
        waits.wait(1);
        out.write_all(b"ay")
    });
    let (gateway, secret) = before(origin.address, "read_timeout = \"1s\"", "");
    let mut connection = gateway.connect();
    connection.send(&Request::get("/v1/app/x").bearer(&secret).bytes());
    assert_eq!(connection.response_head().status, 200);
    assert!(connection.ends(), "what cannot be finished is cut");
    assert_eq!(failure(&gateway), "read_timed_out");
    hold.release();
}

#[test]
fn request_timeout_ends_a_response_that_stalls() {
    let (origin, hold) = (Origin::start(), Hold::new());
    let waits = hold.clone();
    origin.script(move |_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")?;
        waits.wait(1);
        out.write_all(b"ay")
    });
    let (gateway, secret) = before(origin.address, "request_timeout = \"1s\"", "");
    let begun = Instant::now();
    let mut connection = gateway.connect();
    connection.send(&Request::get("/v1/app/x").bearer(&secret).bytes());
    assert_eq!(connection.response_head().status, 200);
    assert!(connection.ends());
    assert!(begun.elapsed() >= Duration::from_secs(1), "never early");
    assert_eq!(failure(&gateway), "request_timed_out");
    hold.release();

    let full = Full::new();
    let (gateway, secret) = before(full.address, "request_timeout = \"300ms\"", "");
    is_504(&gateway.get("/v1/app/x", &secret));
    assert_eq!(
        failure(&gateway),
        "request_timed_out",
        "the time of a connection is within that of the request"
    );
}

// === the first byte, whoever speaks what ===

#[test]
fn the_first_byte_has_a_time_of_its_own_over_every_http() {
    for (times, may_pause) in [
        ("first_byte_timeout = \"1s\"\n", true),
        ("read_timeout = \"300ms\"\n", false),
        ("request_timeout = \"300ms\"\n", false),
    ] {
        let hold = Hold::new();
        let (origin, backend) = (Origin::start(), Backend::start(&hold));
        let waits = hold.clone();
        origin.script(move |request, out| {
            if request.target.ends_with("late") {
                waits.wait(1);
            }
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")?;
            if request.target.ends_with("pause") {
                waits.wait(1);
            }
            out.write_all(b"ay")
        });
        let servers =
            [(origin.address, "protocol = \"http1\"\n"), (backend.address, "protocol = \"http2\"\n")];
        // Another upstream with the same server has no timeouts.
        let calm = |(address, protocol): &(SocketAddr, &str)| {
            format!(
                "[[upstreams]]\nname = \"calm\"\nservers = [\"localhost:{}\"]\n{protocol}\n{}",
                address.port(),
                route("calm", "/v1/calm/{rest*}", "calm", "")
            )
        };
        let stands: Vec<_> = servers
            .iter()
            .map(|server| before(server.0, &format!("{}{times}", server.1), &calm(server)))
            .collect();
        for (gateway, secret) in &stands {
            let client = Client::of(gateway);
            let mut tried = 0;
            for body in ["", "a body"] {
                let request = Request::new("POST", "/v1/app/late").bearer(secret);
                is_504(&gateway.call(&if body.is_empty() { request } else { request.body(body) }));
                let late =
                    client.call("/v1/app/late", secret, body.as_bytes()).expect("it is answered, not reset");
                let envelope: Value = serde_json::from_slice(&late.body).expect("the envelope");
                assert_eq!(
                    (late.status, envelope["error"].as_str()),
                    (504, Some("gateway_timeout")),
                    "{times}"
                );
                tried += 2;
                // The connection serves other requests as before, to the end of their responses.
                let fine = client.call("/v1/calm/fine", secret, body.as_bytes()).unwrap();
                assert_eq!((fine.status, &*fine.body), (200, &b"okay"[..]));
            }
            let name =
                if times.starts_with("request") { "request_timed_out" } else { "first_byte_timed_out" };
            let counted = results(gateway);
            assert!(counted.contains(&(name.to_owned(), tried)), "{times}: {counted:?}");
        }
        if may_pause {
            // Once a response has begun, only the pause counts, which may be longer.
            let paused: Vec<_> = stands
                .iter()
                .map(|(gateway, secret)| {
                    let (client, secret) = (Client::of(gateway), secret.clone());
                    std::thread::spawn(move || client.call("/v1/app/pause", &secret, b""))
                })
                .collect();
            for (gateway, secret) in &stands {
                is_504(&gateway.get("/v1/app/late", secret));
            }
            hold.release();
            for answer in paused {
                assert_eq!(answer.join().unwrap().expect("it goes on").body, b"okay");
            }
        }
        hold.release();
    }
}

#[test]
fn grpc_keeps_its_trailers_where_the_first_byte_has_a_time() {
    let backend = Backend::start(&Hold::new());
    let (gateway, secret) = before(backend.address, "protocol = \"http2\"\nfirst_byte_timeout = \"10s\"", "");
    let answer = Client::of(&gateway).call("/v1/app/call", &secret, b"\0\0\0\0\x02hi").unwrap();
    assert_eq!((answer.status, &*answer.body), (200, &b"okay"[..]));
    assert_eq!(answer.trailers.expect("trailers")["grpc-status"], "0");
    assert_eq!(*backend.heard.lock().unwrap(), [("/v1/app/call".to_owned(), "trailers".to_owned())]);
}

// === waiting for a connection ===

#[test]
fn max_pending_bounds_the_requests_that_wait_for_a_connection() {
    let full = Full::new();
    let config = format!("max_pending = 2\nconnect_timeout = \"30s\"\n{GONE}");
    let group = Group::start_with(&[full.address], &config);
    let request = Request::get("/v1/app/x").bearer(&group.secret);
    let mut waiting = Vec::new();
    for n in 1..=2 {
        let mut connection = group.gateway.connect();
        connection.send(&request.bytes());
        waiting.push(connection);
        let series =
            format!("keygate_upstream_requests_in_flight{{server=\"{}\",upstream=\"app\"}}", full.address);
        eventually_true("it waits", || group.metric(&series) == Some(n));
    }
    let key = group.gateway.create_key(json!({"quota_limit": 1}));
    let begun = Spare::begin();
    for _ in 0..5 {
        let refused = group.gateway.get("/v1/app/x", &key.secret);
        assert_eq!(refused.fault(), (503, 10003, "service_unavailable".into()));
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "at once, not after the others' {:?}",
        begun.elapsed()
    );
    let refused = "keygate_upstream_unavailable_total{reason=\"max_pending\",upstream=\"app\"}";
    assert_eq!(group.metric(refused), Some(5));
    full.serve();
    for mut connection in waiting {
        assert_eq!(connection.response().status, 200, "who waited is served once the server accepts");
    }
    assert_eq!(group.gateway.get("/v1/app/x", &key.secret).status, 200, "what was refused was not charged");
}

#[test]
fn a_request_that_reuses_a_connection_is_not_pending() {
    // One connection is accepted and answered; others get no answer to their handshake.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = format!("max_pending = 1\nconnect_timeout = \"30s\"\n{GONE}");
    let group = Group::start_with(&[address], &config);
    let request = Request::get("/v1/app/x").bearer(&group.secret);
    let mut first = group.gateway.connect();
    first.send(&request.bytes());
    let (mut stream, _) = listener.accept().unwrap();
    let mut answer_one = move || {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    };
    answer_one();
    assert_eq!(first.response().status, 200);
    drop(listener);
    let full = Full::at(address);
    // While the open connection is in use, another request has to open its own, and takes the only permit.
    first.send(&request.bytes());
    let mut waiting = group.gateway.connect();
    let series = format!("keygate_upstream_requests_in_flight{{server=\"{address}\",upstream=\"app\"}}");
    eventually_true("the first is at the server", || group.metric(&series) == Some(1));
    waiting.send(&request.bytes());
    eventually_true("the second waits", || group.metric(&series) == Some(2));
    assert_eq!(group.gateway.get("/v1/app/x", &group.secret).status, 503, "there is no place for a third");
    answer_one();
    assert_eq!(first.response().status, 200);
    // The connection is free again, and the permit still taken.
    first.send(&request.bytes());
    answer_one();
    assert_eq!(first.response().status, 200);
    full.serve();
    assert_eq!(waiting.response().status, 200);
}

// === to a backend over HTTP/2 ===

#[test]
fn a_request_may_take_longer_to_send_than_its_backend_to_answer() {
    let hold = Hold::new();
    let backend = Backend::start(&hold);
    let (gateway, secret) = before(backend.address, "protocol = \"http2\"\nread_timeout = \"300ms\"", "");
    let head = Request::new("POST", "/v1/app/slow").bearer(&secret).header("Transfer-Encoding", "chunked");
    let mut connection = gateway.connect();
    connection.send(&head.head());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(900) {
        connection.send(b"1\r\nx\r\n");
        // Another request is a pause between two chunks.
        assert_eq!(gateway.get("/v1/app/beside", &secret).status, 200);
    }
    connection.send(b"0\r\n\r\n");
    let answer = connection.response();
    assert_eq!((answer.status, &*answer.body), (200, &b"okay"[..]));
    // From then on the backend's timeouts apply, for the first byte and for each pause.
    for (path, name) in [("/v1/app/late", "first_byte_timed_out"), ("/v1/app/pause", "read_timed_out")] {
        let mut connection = gateway.connect();
        connection.send(&Request::post(path, "a body").bearer(&secret).bytes());
        if path.ends_with("late") {
            is_504(&connection.response());
        } else {
            assert_eq!(connection.response_head().status, 200);
            assert!(connection.ends(), "what cannot be finished is cut");
        }
        eventually_true(name, || results(&gateway).contains(&(name.to_owned(), 1)));
    }
    hold.release();
}

#[test]
fn a_client_that_reads_nothing_is_not_taken_for_a_slow_backend() {
    let size = 16 << 20;
    let backend = Backend::start(&Hold::new());
    let (gateway, secret) = before(backend.address, "protocol = \"http2\"\nread_timeout = \"300ms\"", "");
    let target = format!("/v1/app/large/{size}");
    let mut plain = gateway.connect();
    plain.send(&Request::post(&target, "a body").bearer(&secret).bytes());
    assert_eq!(plain.response_head().status, 200);
    let client = Client::of(&gateway);
    let (hold, secret_too) = (Hold::new(), secret.clone());
    let released = hold.clone();
    let slow = std::thread::spawn(move || client.taking_after(released, &target, &secret_too));
    // Nor does it delay other requests on the same connection.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(gateway.get("/v1/app/beside", &secret).status, 200);
    }
    hold.release();
    let mut came = 0;
    while let Some(part) = plain.chunk() {
        came += part.len();
    }
    assert_eq!((came, slow.join().unwrap()), (size, size));
}
