//! The admin listener against clients that hold connections, send ambiguous messages or do not read.

use crate::limits::metric;
use crate::support::{Gateway, Origin, Raw, Request, eventually_true, one_route, stand, write_config};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tokio::net::TcpSocket;

fn closed(gateway: &Gateway, reason: &str) -> f64 {
    metric(gateway, &format!("keygate_admin_connections_closed_total{{reason=\"{reason}\"}}"))
}

/// The response to `bytes` on a new connection, and whether the connection is closed after it.
fn answer_to(gateway: &Gateway, bytes: &[u8]) -> (crate::support::Response, bool) {
    let mut client = Raw::connect(gateway.admin);
    client.send(bytes);
    let response = client.response();
    let ends = response.header("connection") == Some("close");
    (response, ends && client.is_closed())
}

/// A gateway with a limit of open files, and its own binary.
fn with_files(files: u32, config: &str) -> Gateway {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_config(folder.path(), config);
    let program = folder.path().join("keygate-with-few-files");
    let text = format!("#!/bin/sh\nulimit -n {files} && exec {} \"$@\"\n", env!("CARGO_BIN_EXE_keygate"));
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    Gateway::run_program(&program, folder, &[]).expect("it starts")
}

#[test]
fn silent_admin_connections_affect_no_other() {
    rlimit::increase_nofile_limit(4_096).unwrap();
    let origin = Origin::start();
    let gateway = with_files(1_024, &(one_route(origin.address) + "[proxy]\nfirst_byte_timeout = \"10m\"\n"));
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let mut silent = Vec::new();
    for n in 0..1_100 {
        silent.push(Raw::connect(gateway.admin));
        if n % 100 == 99 {
            assert_eq!(Raw::connect(gateway.admin).call(&Request::get("/healthz")).status, 200);
            assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
        }
    }
    // An eighth of the file limit.
    eventually_true("the rest was closed", || metric(&gateway, "keygate_admin_connections") <= 128.0);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    assert!(descriptors < 512, "{descriptors} descriptors are open");
    // New clients of the proxy and their records have the files they need.
    for _ in 0..100 {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    }
    eventually_true("all records are stored", || gateway.stats(&key)["total_requests"] == 111);
    assert_eq!(metric(&gateway, "keygate_usage_shed_total"), 0.0);
    assert!(closed(&gateway, "evicted") >= 972.0);
    assert!(!gateway.stderr().contains("cannot accept"), "{}", gateway.stderr());
}

#[test]
fn admin_connections_have_the_deadlines_of_the_proxy() {
    let (_origin, gateway) =
        stand("[proxy]\nfirst_byte_timeout = \"300ms\"\nheader_timeout = \"300ms\"\nidle_timeout = \"1s\"\n");
    let mut silent = Raw::connect(gateway.admin);
    assert!(silent.is_closed());
    assert_eq!(closed(&gateway, "first_byte_timeout"), 1.0);

    let (late, ends) = answer_to(&gateway, b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-Slow: ");
    assert_eq!(late.fault(), (408, 1000, "request_timeout".into()));
    assert!(ends && late.header("x-request-id").is_some());
    assert_eq!(closed(&gateway, "header_timeout"), 1.0);

    let mut idle = Raw::connect(gateway.admin);
    assert_eq!(idle.call(&Request::get("/healthz")).status, 200);
    assert_eq!(idle.call(&Request::get("/healthz")).status, 200, "it stays open for the next");
    assert!(idle.is_closed());
    assert_eq!(closed(&gateway, "idle_timeout"), 1.0);
}

#[test]
fn an_admin_body_that_does_not_come_is_told() {
    let (_origin, gateway) = stand("");
    let mut client = Raw::connect(gateway.admin);
    let request = Request::post("/apikeys", "{}").header("Content-Type", "application/json");
    client.send(&request.bearer(&gateway.token()).head());
    assert_eq!(client.response().fault(), (408, 1000, "request_timeout".into()));
    assert!(client.is_closed());
}

#[test]
fn admin_clients_that_read_nothing_are_disconnected() {
    let (_origin, gateway) = stand("[proxy]\nwrite_timeout = \"300ms\"\n");
    let key = gateway.create_key(json!({"rate_limit": 1, "rate_burst": 1}));
    let mut client = gateway.connect();
    const RECORDS: usize = 1_500;
    for _ in 0..RECORDS {
        let status = client.call(&Request::get("/v1/app/x").bearer(&key.secret)).status;
        assert!([200, 429].contains(&status), "{status}");
    }
    let total = || metric(&gateway, "keygate_usage_stored_total");
    eventually_true("the records are stored", || total() >= 1_500.0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // A public page, requested repeatedly, and a response that is generated while it is read.
    let page = Request::get("/openapi.json").bytes().repeat(100);
    let export = format!("/apikeys/{}/logs?format=ndjson", key.id);
    let export = Request::get(&export).bearer(&gateway.token()).bytes().repeat(50);
    for (n, requests) in [page, export].into_iter().enumerate() {
        let stream = runtime.block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            socket.connect(gateway.admin).await.unwrap()
        });
        let mut stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.write_all(&requests).unwrap();
        let what = format!("{n} is cut off");
        eventually_true(&what, || closed(&gateway, "write_timeout") > n as f64);
        eventually_true("its place is free", || metric(&gateway, "keygate_admin_connections") == 1.0);
    }
    let whole = gateway.admin("GET", &format!("/apikeys/{}/logs?format=ndjson", key.id), None);
    assert_eq!(whole.text().lines().count(), RECORDS, "who takes it gets it");
}

#[test]
fn admin_requests_have_one_reading() {
    let (_origin, gateway) = stand("[proxy]\nmax_header_fields = 20\n[admin]\nmax_body_bytes = \"1KiB\"\n");
    let many = "X-A: b\r\n".repeat(21);
    let large = "x".repeat(40 << 10);
    let long = "x".repeat(9 << 10);
    let cases = [
        (
            "GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\nx", 400),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\nHost: h\n\n", 400),
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET http://a/healthz HTTP/1.1\r\nHost: b\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
        // HTTP/2 is not supported here.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (&format!("GET /healthz HTTP/1.1\r\nHost: h\r\n{many}\r\n"), 431),
        (&format!("GET /healthz HTTP/1.1\r\nHost: h\r\nX: {large}\r\n\r\n"), 431),
        (&format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n"), 414),
    ];
    for (text, status) in cases {
        let (response, ends) = answer_to(&gateway, text.as_bytes());
        let shown: String = text.chars().take(60).collect();
        assert_eq!(response.fault().0, status, "{shown:?}");
        assert_eq!(response.fault().1, 1000, "{shown:?}");
        assert!(ends && response.header("x-request-id").is_some(), "{shown:?}");
    }
    let zh = "GET /healthz HTTP/1.1\r\nHost: h\r\nHost: h\r\nAccept-Language: zh\r\n\r\n";
    let (told, _) = answer_to(&gateway, zh.as_bytes());
    assert!(told.json()["msg"].as_str().unwrap().chars().any(|c| c > '\u{2e80}'), "{told:?}");

    // A client that sends all of a too large body first still gets the response.
    let body = format!("{{\"name\":\"{}\"}}", "x".repeat(8 << 20));
    let request = Request::post("/apikeys", body).header("Content-Type", "application/json");
    let mut client = Raw::connect(gateway.admin);
    client.send(&request.bearer(&gateway.token()).bytes());
    assert_eq!(client.response().fault(), (413, 1000, "payload_too_large".into()));
}

#[test]
fn admin_clients_may_pipeline_send_chunks_and_close_their_side() {
    let (_origin, gateway) = stand("");
    let mut client = Raw::connect(gateway.admin);
    let two = [Request::get("/healthz").bytes(), Request::get("/nowhere").bytes()].concat();
    client.send(&two);
    assert_eq!([client.response().status, client.response().status], [200, 404]);

    let body = json!({"name": "in chunks", "type": "service", "scopes": ["app"]}).to_string();
    let (first, second) = body.split_at(7);
    let head = format!(
        "POST /apikeys HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        gateway.token()
    );
    client.send(head.as_bytes());
    for part in [first, second, ""] {
        client.send(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
    }
    assert_eq!(client.response().status, 200);
    client.send(head.as_bytes());
    client.send(b"x\r\n");
    assert_eq!(client.response().fault(), (400, 1000, "bad_request".into()));
    assert!(client.is_closed());

    let mut client = Raw::connect(gateway.admin);
    client.send(&Request::get("/healthz").bytes());
    client.say_no_more();
    assert_eq!(client.response().status, 200);
    assert!(client.is_closed());
}

#[test]
fn an_admin_client_over_its_quota_evicts_its_own_idle_connections() {
    let (_origin, gateway) = stand(
        "[proxy]\nfirst_byte_timeout = \"10m\"\n[admin]\nmax_connections = 8\nmax_connections_per_address = 4\n",
    );
    let body = json!({"name": "slow", "type": "service", "scopes": ["app"]}).to_string();
    let request = Request::post("/apikeys", body.clone()).header("Content-Type", "application/json");
    let mut silent: Vec<Raw> = (0..20).map(|_| Raw::connect(gateway.admin)).collect();
    let mut slow = Raw::connect(gateway.admin);
    assert_eq!(slow.call(&Request::get("/healthz")).status, 200);
    slow.send(&request.bearer(&gateway.token()).head());
    silent.extend((0..20).map(|_| Raw::connect(gateway.admin)));
    eventually_true("there are no more than may be", || metric(&gateway, "keygate_admin_connections") <= 4.0);
    // Silent connections were closed first.
    slow.send(body.as_bytes());
    assert_eq!(slow.response().status, 200);
    drop(silent);
    assert!(closed(&gateway, "evicted") >= 36.0);
}
