//! Request bodies: a client that is refused during its upload can read the response; what the backend does not accept is
//! not read.

use crate::http2::{Client, read, request};
use crate::limits::{cut, metric};
use crate::support::{Hold, Raw, Request, Response, eventually_true, route, stand, upstream};
use bytes::Bytes;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// More than all buffers between a client and the gateway hold.
const LARGE: usize = 20 * 1024 * 1024;

/// A backend with a scripted connection.
fn backend(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// One more route, `/v1/other/…`, to `address`.
fn another_route(address: SocketAddr, more: &str) -> String {
    upstream("other", address) + &route("other", "/v1/other/{rest*}", "other", more)
}

/// Sends all of a large body before it reads the response, as many clients do.
#[track_caller]
fn send_then_read(mut client: Raw, head: &[u8], chunked: bool) -> Response {
    client.send(head);
    let part = vec![b'x'; 64 * 1024];
    for _ in 0..LARGE / part.len() {
        if chunked {
            client.send(b"10000\r\n");
        }
        client.send(&part);
        if chunked {
            client.send(b"\r\n");
        }
    }
    if chunked {
        client.send(b"0\r\n\r\n");
    }
    let response = client.response();
    assert_eq!(response.header("connection"), Some("close"), "{response:?}");
    assert!(client.is_closed());
    response
}

#[test]
fn an_answer_before_the_end_of_an_upload_can_be_read_after_it() {
    // Responds when it has the head, and reads nothing more.
    let early = backend(|mut stream| {
        let mut head = [0; 16 * 1024];
        let begun = stream.read(&mut head).is_ok_and(|n| n > 0);
        assert!(begun, "a request");
        let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly";
        stream.write_all(answer).unwrap();
        // Until the gateway has closed it.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        while stream.read(&mut head).is_ok_and(|n| n > 0) {}
    });
    let small = route("small", "/v1/small/{rest*}", "app", "max_body_bytes = \"1MiB\"");
    let (origin, gateway) = stand(&(another_route(early, "") + &small));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let head = |target: &str, key: &str, fields: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n{fields}\r\n\r\n")
    };
    let length = format!("Content-Length: {LARGE}");
    let chunked = "Transfer-Encoding: chunked".to_owned();
    for (head, fault) in [
        (head("/v1/app/x", "nonsense", &length), (401, 3009, "api_key_invalid")),
        (head("/v1/app/x", "nonsense", &chunked), (401, 3009, "api_key_invalid")),
        (head("/v1/small/x", &secret, &length), (413, 1000, "payload_too_large")),
        // Detected in the middle of the body.
        (head("/v1/small/x", &secret, &chunked), (413, 1000, "payload_too_large")),
        (head("/nowhere", &secret, &length), (404, 4000, "route_not_found")),
        // Refused before there is a request.
        (head("/v1/app/x", &secret, &format!("{length}\r\n{length}")), (400, 1000, "bad_request")),
    ] {
        let response = send_then_read(gateway.connect(), head.as_bytes(), head.contains("chunked"));
        assert_eq!(response.fault(), (fault.0, fault.1, fault.2.to_owned()), "{head}");
    }
    assert_eq!(origin.count(), 0);
    // The backend's own early response.
    let response = send_then_read(gateway.connect(), head("/v1/other/x", &secret, &length).as_bytes(), false);
    assert_eq!((response.status, response.text().as_str()), (413, "early"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_over_http2_harms_no_other_stream() {
    let (origin, gateway) = stand(crate::http2::H2C);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(crate::http2::h2c(&gateway)).await;
    for _ in 0..3 {
        let (response, mut body) = client.begin(request("POST", "/v1/app/x", "nonsense"), false).await;
        // The response may have arrived before the body is sent; then it is not sent.
        body.send_data(Bytes::from(vec![b'x'; LARGE]), true).ok();
        assert_eq!(read(response).await.unwrap().status, 401);
        assert_eq!(client.call(request("GET", "/v1/app/x", &secret)).await.unwrap().status, 200);
    }
    assert_eq!(origin.count(), 3);
}

#[test]
fn reading_from_an_endless_sender_is_bounded() {
    let (_origin, gateway) = stand("");
    let mut client = gateway.connect();
    client.send(b"POST /v1/app/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    let part = [b"100000\r\n".as_slice(), &vec![b'x'; 1024 * 1024], b"\r\n"].concat();
    let (mut sent, begun, mut longest_pause) = (0, Instant::now(), Duration::ZERO);
    let mut last = begun;
    while client.try_send(&part) {
        sent += 1;
        assert!(sent < 500, "it reads on");
        longest_pause = longest_pause.max(last.elapsed());
        last = Instant::now();
    }
    // What the backend reads plus what sockets buffer, unless the machine stalled: the gateway gives up after a pause of two
    // seconds, or after thirty seconds in all.
    longest_pause = longest_pause.max(last.elapsed());
    let is_stalled = longest_pause > Duration::from_secs(1) || begun.elapsed() > Duration::from_secs(30);
    assert!(sent >= 64 || is_stalled, "it is read for a while: {sent} MiB, with pauses of {longest_pause:?}");
}

#[test]
fn bytes_that_a_backend_does_not_take_are_not_read_from_the_client() {
    let (hold, begun) = (Hold::new(), Arc::new(AtomicUsize::new(0)));
    let (until, begins) = (hold.clone(), Arc::clone(&begun));
    let stuck = backend(move |mut stream| {
        begins.fetch_add(1, Ordering::AcqRel);
        until.wait(1);
        let (mut part, mut came) = (vec![0; 64 * 1024], 0);
        while came < LARGE {
            match stream.read(&mut part) {
                Ok(n @ 1..) => came += n,
                _ => return,
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntook").unwrap();
    });
    let more = another_route(stuck, "");
    let (origin, gateway) = stand(&format!("{more}[proxy]\nmax_bytes_in_flight = \"1MiB\"\n"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let post = |target: &str, n: usize| Request::post(target, vec![b'x'; n]).bearer(&secret);
    let mut clients: Vec<Raw> = (0..6).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(&post("/v1/other/x", LARGE).head());
        client.send(b"x");
    }
    eventually_true("all have begun", || begun.load(Ordering::Acquire) == clients.len());
    let before = gateway.resident_bytes();
    let upload = |mut client: Raw| {
        std::thread::spawn(move || {
            client.send(&vec![b'x'; LARGE - 1]);
            client.response()
        })
    };
    let uploads: Vec<_> = clients.into_iter().map(upload).collect();
    // What is not taken waits at the client. An upload has one buffer here, however long it is, and others go on.
    let held = || metric(&gateway, "keygate_bytes_in_flight");
    let requests = origin.count();
    for n in [0, 1_000, 20_000, 200_000] {
        assert_eq!(gateway.call(&post("/v1/app/x", n)).status, 200, "{n} bytes");
        assert_eq!(origin.last().body.len(), n);
        assert!(held() <= f64::from(6 * 32 << 10), "{} bytes", held());
    }
    assert_eq!(origin.count(), requests + 4);
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < LARGE as u64 / 2, "{grown} bytes more");
    assert!(uploads.iter().all(|upload| !upload.is_finished()), "nobody has taken them");
    hold.release();
    for upload in uploads {
        assert_eq!(upload.join().unwrap().text(), "took");
    }
    eventually_true("all was taken", || held() == 0.0);
    assert_eq!(gateway.call(&post("/v1/app/x", 20_000)).status, 200);
    assert_eq!(cut(&gateway, "over_budget"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_over_http2_are_counted_and_wait_as_well() {
    let (hold, begun) = (Hold::new(), Arc::new(AtomicUsize::new(0)));
    let (until, begins) = (hold.clone(), Arc::clone(&begun));
    let stuck = backend(move |mut stream| {
        begins.fetch_add(1, Ordering::AcqRel);
        until.wait(1);
        let (mut part, mut all) = (vec![0; 64 * 1024], Vec::new());
        while !all.ends_with(b"0\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(n @ 1..) => all.extend_from_slice(&part[..n]),
                _ => return,
            }
        }
        let came = all.iter().filter(|byte| **byte == b'~').count();
        let answer =
            format!("HTTP/1.1 200 OK\r\nX-Came: {came}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let more = another_route(stuck, "");
    let proxy = "[proxy]\nmax_bytes_in_flight = \"1MiB\"\nlisten_h2c = [\"127.0.0.1:0\"]\n";
    let (_origin, gateway) = stand(&format!("{more}{proxy}"));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(crate::http2::h2c(&gateway)).await;
    let mut answers = Vec::new();
    for _ in 0..10 {
        // Each request reaches the backend before the memory is used up.
        let (response, mut body) = client.begin(request("POST", "/v1/other/x", &secret), false).await;
        body.send_data(Bytes::from_static(b"~"), false).unwrap();
        answers.push((response, body));
    }
    eventually_true("all have begun", || begun.load(Ordering::Acquire) == answers.len());
    let rest = Bytes::from(vec![b'~'; LARGE - 1]);
    for (_, body) in &mut answers {
        body.send_data(rest.clone(), true).unwrap();
    }
    let held = || metric(&gateway, "keygate_bytes_in_flight");
    eventually_true("its streams have all they may", || held() >= f64::from(512 << 10));
    assert!(held() <= f64::from((512 + 10 * 16) << 10), "{} bytes", held());
    // Other streams of the connection do not notice a stream that waits for memory.
    assert_eq!(client.call(request("GET", "/v1/app/x", &secret)).await.unwrap().status, 200);
    hold.release();
    for (response, _) in answers {
        assert_eq!(read(response).await.unwrap().headers["x-came"], LARGE.to_string());
    }
    eventually_true("all was taken", || held() == 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_reads_nothing_is_not_reported_as_a_client_fault() {
    let hold = Hold::new();
    let until = hold.clone();
    let stuck = backend(move |mut stream| {
        until.wait(1);
        let (mut part, mut last) = (vec![0; 64 * 1024], Vec::new());
        while !last.ends_with(b"0\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(n @ 1..) => last = [&last[last.len().saturating_sub(5)..], &part[..n]].concat(),
                _ => return,
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntook").unwrap();
    });
    let times = "body_timeout = \"3s\"\n";
    let (_origin, gateway) = stand(&format!("{}{}{times}", another_route(stuck, ""), crate::http2::H2C));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(crate::http2::h2c(&gateway)).await;
    let mut was_late = 0.0;
    let response = loop {
        let (response, mut body) = client.begin(request("POST", "/v1/other/x", &secret), false).await;
        if body.send_data(Bytes::from(vec![b'x'; LARGE]), true).is_ok() {
            break response;
        }
        // A stalled machine delayed this client, and its stream was closed.
        was_late += 1.0;
        assert_eq!(cut(&gateway, "body_late"), was_late);
    };
    let held = || metric(&gateway, "keygate_bytes_in_flight");
    let mut since = Instant::now();
    eventually_true("nothing was taken for longer than the client may make us wait", || {
        // While the kernel's buffers fill, everything may be in flight for a moment.
        if held() == 0.0 {
            since = Instant::now();
        }
        since.elapsed().as_millis() >= 4_500
    });
    hold.release();
    assert_eq!(read(response).await.unwrap().body, b"took");
    assert_eq!(cut(&gateway, "body_late"), was_late);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_backend_takes_nothing_ends_with_its_key_all_the_same() {
    let hold = Hold::new();
    let until = hold.clone();
    // No task waits for the client at that point that could send it a reason.
    let stuck = backend(move |_stream| until.wait(1));
    let (origin, gateway) =
        stand(&format!("{}{}revocation_check = \"100ms\"\n", another_route(stuck, ""), crate::http2::H2C));
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let other = gateway.create_key(json!({"rate_limit": 1000}));
    let mut client = Client::connect(crate::http2::h2c(&gateway)).await;
    let (response, mut body) = client.begin(request("POST", "/v1/other/x", &key.secret), false).await;
    body.send_data(Bytes::from(vec![b'x'; LARGE]), true).unwrap();
    eventually_true("the backend does not take all", || metric(&gateway, "keygate_bytes_in_flight") > 0.0);
    gateway.update_key(&key, &json!({"is_active": false}));
    let ended = read(response).await;
    assert!(ended.as_ref().map_or_else(h2::Error::is_reset, |answer| answer.status == 401), "{ended:?}");
    assert_eq!(cut(&gateway, "key_inactive"), 1.0);
    assert_eq!(client.call(request("GET", "/v1/app/beside", &other.secret)).await.unwrap().status, 200);
    assert_eq!(origin.count(), 1);
    hold.release();
}

#[test]
fn the_minimum_body_rate_does_not_apply_once_the_response_has_begun() {
    // Responds at once, and reads to the end.
    let chatty = backend(|mut stream| {
        let (mut part, mut all) = ([0; 1024], Vec::new());
        let mut told = false;
        while !all.ends_with(b"0\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(n @ 1..) => all.extend_from_slice(&part[..n]),
                _ => return,
            }
            if !told {
                told = true;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
                    .unwrap();
            }
        }
        stream.write_all(b"3\r\nbye\r\n0\r\n\r\n").unwrap();
    });
    let proxy = "[proxy]\nheader_timeout = \"200ms\"\nbody_timeout = \"10s\"\nmin_body_rate = \"1MiB\"\n";
    let (_origin, gateway) = stand(&format!("{}{proxy}", another_route(chatty, "")));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let head = format!(
        "POST /v1/other/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {secret}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut client = gateway.connect();
    client.send(head.as_bytes());
    client.send(b"1\r\na\r\n");
    assert_eq!(client.response_head().status, 200);
    assert_eq!(client.chunk().unwrap(), b"hi");
    let begun = Instant::now();
    while begun.elapsed().as_millis() < 1_500 {
        // Each read of the metrics is a pause.
        metric(&gateway, "keygate_connections");
        client.send(b"1\r\na\r\n");
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.chunk().unwrap(), b"bye");
    assert!(client.chunk().is_none());
    assert_eq!(cut(&gateway, "body_slow"), 0.0);
}
