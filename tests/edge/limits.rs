//! Limits of a client: connections, time, bytes. Other clients are served meanwhile.

use crate::support::{
    Gateway, Hold, Origin, PATIENCE, Raw, Request, eventually_true, one_route, stand, write_config,
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// A counter or gauge of `/metrics`.
pub(crate) fn metric(gateway: &Gateway, line: &str) -> f64 {
    let text = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0.0, |n| n.parse().expect("a number"))
}

pub(crate) fn cut(gateway: &Gateway, reason: &str) -> f64 {
    metric(gateway, &format!("keygate_connections_cut_total{{reason=\"{reason}\"}}"))
}

#[test]
fn the_connection_idle_longest_is_evicted_and_busy_ones_stay() {
    let (origin, gateway) = stand("[proxy]\nmax_connections = 8\nfirst_byte_timeout = \"60s\"\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut busy = gateway.connect();
    busy.send(&Request::get("/v1/app/busy").bearer(&secret).bytes());
    origin.wait_for_heads(1);
    let mut silent: Vec<Raw> = (0..7).map(|_| gateway.connect()).collect();
    eventually_true("all places are taken", || metric(&gateway, "keygate_connections") == 8.0);
    // Each new connection is accepted, and an idle one is closed for it.
    for n in 1..=3 {
        silent.push(gateway.connect());
        eventually_true("somebody silent went", || cut(&gateway, "crowded") >= f64::from(n));
    }
    hold.release();
    assert_eq!(busy.response().status, 200, "it was being served");
    let mut late = gateway.connect();
    assert_eq!(late.call(&Request::get("/v1/app/late").bearer(&secret)).status, 200, "there is always room");
}

#[test]
fn a_new_connection_is_refused_when_every_other_is_busy() {
    let (origin, gateway) = stand("[proxy]\nmax_connections = 3\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut busy: Vec<Raw> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut busy {
        client.send(&Request::get("/v1/app/x").bearer(&secret).bytes());
    }
    origin.wait_for_heads(3);
    assert!(gateway.connect().is_closed());
    assert_eq!(metric(&gateway, "keygate_connections_refused_total{reason=\"full\"}"), 1.0);
    hold.release();
    assert!(busy.iter_mut().all(|client| client.response().status == 200));
}

#[test]
fn no_more_connections_are_taken_in_than_there_are_descriptors_for() {
    let origin = Origin::start();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_config(folder.path(), &(one_route(origin.address) + "[proxy]\nfirst_byte_timeout = \"10m\"\n"));
    let program = folder.path().join("program");
    let script = format!("#!/bin/sh\nulimit -n 400\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_keygate"));
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let gateway = Gateway::run_program(&program, folder, &[]).unwrap();
    let told = "at most 100 client connections, because 400 open files are allowed: proxy.max_connections = 20000 takes 40306";
    eventually_true("it is told", || gateway.stderr().contains(told));
    let secret = gateway.create_key(json!({})).secret;
    let silent: Vec<Raw> = (0..150).map(|_| gateway.connect()).collect();
    // A connection accepted at the same instant as the others may be among those closed.
    eventually_true("all have been taken in", || cut(&gateway, "crowded") >= 50.0);
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200, "there is room, also for its backend");
    assert!(cut(&gateway, "crowded") >= 51.0 && !gateway.stderr().contains("cannot accept connections"));
    drop(silent);
}

#[test]
fn without_descriptors_whoever_waits_makes_room_and_that_is_told_once() {
    let (_origin, gateway) = stand("[proxy]\nfirst_byte_timeout = \"10m\"\n");
    let pid = Pid::from_raw(gateway.pid().try_into().unwrap());
    let may_open = |files: Option<u64>| {
        let limit = Rlimit { current: files, maximum: getrlimit(Resource::Nofile).maximum };
        prlimit(pid, Resource::Nofile, limit).unwrap().current
    };
    let mut silent: Vec<Raw> = (0..20).map(|_| gateway.connect()).collect();
    eventually_true("they are taken in", || metric(&gateway, "keygate_connections") == 20.0);
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    let before = may_open(Some(open.try_into().unwrap()));
    let times = |what: &str| gateway.stderr().matches(what).count();
    let (begins, ends) = ("cannot accept connections", "accepting connections again");
    eventually_true("it is told", || {
        silent.push(gateway.connect());
        times(begins) > 0
    });
    let mut late = gateway.connect();
    assert_eq!(late.call(&Request::get("/v1/app/x")).status, 401, "somebody silent went for it");
    may_open(before);
    eventually_true("that it is over is told", || {
        silent.push(gateway.connect());
        times(ends) > 0
    });
    assert_eq!(times(begins), times(ends));
    assert!(cut(&gateway, "crowded") >= 1.0);
}

#[test]
fn one_address_has_only_so_many_connections() {
    let (_origin, gateway) = stand("[proxy]\nmax_connections_per_address = 3\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut open: Vec<Raw> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut open {
        assert_eq!(client.call(&Request::get("/v1/app/x").bearer(&secret)).status, 200);
    }
    assert!(gateway.connect().is_closed());
    open.pop().unwrap().hang_up();
    eventually_true("the place is free again", || {
        let mut client = gateway.connect();
        client.try_send(&Request::get("/v1/app/x").bearer(&secret).bytes()) && !client.is_closed()
    });
}

#[test]
fn a_connection_carries_only_so_many_requests() {
    let (_origin, gateway) = stand("[proxy]\nmax_requests_per_connection = 3\n");
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    for last in [false, false, true] {
        let response = client.call(&Request::get("/v1/app/x").bearer(&secret));
        assert_eq!(response.status, 200);
        let closes = response.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
        assert_eq!(closes, last);
    }
    assert!(client.is_closed());
}

#[test]
fn every_wait_for_a_client_has_an_end() {
    // One timeout at a time is short, so that a slow machine runs into no other.
    let short = |time: &str| {
        let (origin, gateway) = stand(&format!("[proxy]\n{time}\nmin_body_rate = 0\n"));
        let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
        (origin, gateway, Request::get("/v1/app/x").bearer(&secret), secret)
    };
    let is_late = |mut client: Raw| {
        assert_eq!(client.response().fault(), (408, 1000, "request_timeout".into()));
        assert!(client.is_closed());
    };
    let (_origin, gateway, ..) = short("first_byte_timeout = \"300ms\"");
    assert!(gateway.connect().is_closed(), "nothing was ever said");
    assert_eq!(cut(&gateway, "silent"), 1.0);

    let (origin, gateway, good, _) = short("header_timeout = \"300ms\"");
    let mut half = gateway.connect();
    half.send(b"GET /v1/app/x HTTP/1.1\r\n");
    is_late(half);
    // The same on a connection that has served a request.
    let mut later = gateway.connect();
    assert_eq!(later.call(&good).status, 200);
    later.send(b"GET /v1/app/x HTT");
    is_late(later);
    assert_eq!((origin.count(), cut(&gateway, "head_late")), (1, 2.0));

    let (_origin, gateway, good, _) = short("idle_timeout = \"1s\"");
    let mut idle = gateway.connect();
    assert_eq!(idle.call(&good).status, 200);
    assert!(idle.is_closed());
    assert_eq!(cut(&gateway, "silent"), 1.0);

    let (origin, gateway, _, secret) = short("body_timeout = \"300ms\"");
    let mut body = gateway.connect();
    let head = Request::post("/v1/app/x", "whole").bearer(&secret).head();
    body.send(&[&head, b"wh".as_slice()].concat());
    is_late(body);
    assert_eq!((origin.count(), cut(&gateway, "body_late")), (0, 1.0));
}

#[test]
fn a_head_or_body_that_drips_for_ever_is_cut_off() {
    let (origin, gateway) =
        stand("[proxy]\nheader_timeout = \"500ms\"\nbody_timeout = \"10s\"\nmin_body_rate = \"10KiB\"\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let head = Request::post("/v1/app/x", vec![b'x'; 100_000]).bearer(&secret).head();
    for (first, drop, reason) in [
        (b"GET /v1/app/x HTTP/1.1\r\nX-A: ".as_slice(), b"a".as_slice(), "head_late"),
        (&head, b"x", "body_slow"),
    ] {
        let mut client = gateway.connect();
        client.send(first);
        let begun = Instant::now();
        while cut(&gateway, reason) == 0.0 {
            // Each read of the metrics is a pause between two bytes.
            client.try_send(drop);
            assert!(begun.elapsed() < PATIENCE, "{reason}: it drips on");
        }
        assert_eq!(client.response().fault(), (408, 1000, "request_timeout".into()), "{reason}");
    }
    assert_eq!(origin.count(), 0);
}

/// An origin that sends an endless body.
pub(crate) fn endless(origin: &crate::support::Origin) {
    origin.script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")?;
        let part = vec![b'x'; 64 * 1024];
        (0..15_000).try_for_each(|_| out.write_all(&part))
    });
}

#[test]
fn a_client_that_reads_nothing_is_disconnected() {
    let (origin, gateway) = stand("[proxy]\nwrite_timeout = \"300ms\"\n");
    let key = gateway.create_key(json!({}));
    endless(&origin);
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    let row = &gateway.wait_for_logs(&key, 1)[0];
    assert_eq!(row["outcome"], "aborted");
    assert_eq!(cut(&gateway, "write_stalled"), 1.0);
}

#[test]
fn clients_that_read_nothing_cannot_exhaust_memory() {
    let (origin, gateway) = stand("[proxy]\nmax_bytes_in_flight = \"1MiB\"\nwrite_timeout = \"10m\"\n");
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    endless(&origin);
    let mut greedy: Vec<Raw> = (0..64).map(|_| gateway.connect()).collect();
    for client in &mut greedy {
        client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    }
    // Each has two buffers of 16 KiB here, so that 32 of them fit. Two may have a larger one.
    eventually_true("half of them are gone", || cut(&gateway, "over_budget") >= 32.0);
    eventually_true("the rest fits", || metric(&gateway, "keygate_bytes_in_flight") <= f64::from(1 << 20));
    origin.answer(200, &[], b"fine");
    assert_eq!(gateway.get("/v1/app/x", &key.secret).text(), "fine");
}

#[test]
fn what_arrives_fast_has_a_larger_buffer_within_the_budget() {
    let (origin, gateway) = stand("[proxy]\nmax_bytes_in_flight = \"1MiB\"\nwrite_timeout = \"10m\"\n");
    let key = gateway.create_key(json!({}));
    endless(&origin);
    let mut clients: Vec<Raw> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(&Request::get("/v1/app/x").bearer(&key.secret).bytes());
    }
    // Each has two buffers of 16 KiB. An eighth of the budget is two larger ones of 64 KiB.
    let held = f64::from((3 * 2 * 16 + 2 * 64) * 1024);
    let now = || metric(&gateway, "keygate_bytes_in_flight");
    eventually_true("three clients are seen to read nothing", || now() == held);
    drop(clients);
    eventually_true("everything is given back", || now() == 0.0);
}

#[test]
fn a_thousand_idle_clients_do_not_slow_the_others() {
    // Clients and backend are all in this process, and the default limit may be a thousand files.
    let files = rlimit::increase_nofile_limit(8_192).unwrap();
    assert!(files >= 4_096, "no more than {files} open files are allowed (ulimit -Hn)");
    let (origin, gateway) = stand("[plans.default]\napi_ops_rate_limit = 100000\n");
    let secret = gateway.create_key(json!({"rate_limit": 100_000})).secret;
    let post = Request::post("/v1/app/x", vec![b'x'; 10_000]).bearer(&secret).head();
    let holding: Vec<Raw> = (0..1_000)
        .map(|n| {
            let mut client = gateway.connect();
            match n % 3 {
                0 => {}
                1 => client.send(b"GET /v1/app/x HTTP/1.1\r\nHost: h\r\nX-Slow: "),
                _ => client.send(&post),
            }
            client
        })
        .collect();
    let mut client = gateway.connect();
    for n in 0..1_000 {
        assert_eq!(client.call(&Request::get(&format!("/v1/app/{n}")).bearer(&secret)).status, 200);
    }
    assert_eq!(origin.count(), 1_000);
    assert_eq!(holding.len(), 1_000);
}
