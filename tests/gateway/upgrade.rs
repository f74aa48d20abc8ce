//! SIGUSR2: a new process replaces the running one, and no well-behaved client notices.
//!
//! A well-behaved HTTP/1.1 client reconnects after `Connection: close`. A well-behaved HTTP/2 client opens no streams on a
//! connection after GOAWAY, and repeats only the streams above its last stream id.

use crate::redis::RedisServer;
use crate::support::{
    Gateway, Hold, Key, Origin, PATIENCE, Raw, Request, eventually_true, one_route, signal_to, stand,
    write_config,
};
use bytes::Bytes;
use h2::client::SendRequest;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::net::TcpStream;

/// High limits, so that only those set by the test can refuse.
const WIDE: &str = "[plans.default]\napi_ops_rate_limit = 1000000\n";

fn unlimited(mut fields: Value) -> Value {
    let more = json!({"rate_limit": 1_000_000, "daily_request_limit": 10_000_000});
    fields.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
    fields
}

/// The totals of all clients.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    served: AtomicUsize,
    denied: AtomicUsize,
}

impl Seen {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    /// Counts a response: served, or over a quota; anything else is a failure.
    #[track_caller]
    fn count(&self, status: u16) {
        match status {
            200 => self.served.fetch_add(1, Ordering::AcqRel),
            429 => self.denied.fetch_add(1, Ordering::AcqRel),
            other => panic!("a client got {other}"),
        };
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Acquire)
    }

    #[track_caller]
    fn wait_for_more(&self, more: usize) {
        let enough = self.served() + self.denied.load(Ordering::Acquire) + more;
        eventually_true("clients are answered", || {
            self.served() + self.denied.load(Ordering::Acquire) >= enough
        });
    }
}

/// One connection after the other.
fn http1(proxy: SocketAddr, request: &Request, seen: &Seen) {
    let mut line = Raw::connect(proxy);
    while seen.goes_on() {
        let answer = line.call(request);
        seen.count(answer.status);
        if answer.header("connection") == Some("close") {
            assert!(line.is_closed());
            line = Raw::connect(proxy);
        }
    }
}

async fn http2(h2c: SocketAddr, secret: &str, seen: &Seen) {
    let mut line = open(h2c).await;
    while seen.goes_on() {
        let asked = match line.clone().ready().await {
            Ok(mut ready) => {
                let request = http::Request::builder()
                    .uri("http://gateway.test/v1/app/h2")
                    .header("authorization", format!("Bearer {secret}"));
                ready.send_request(request.body(()).expect("a request"), true).map(|(answer, _)| answer)
            }
            Err(error) => Err(error),
        };
        let answered = match asked {
            Ok(answer) => answer.await,
            // No request can be sent any more, so none was.
            Err(error) => {
                assert!(error.is_go_away() || error.is_io(), "{error}");
                line = open(h2c).await;
                continue;
            }
        };
        match answered {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let mut body = answer.into_body();
                while let Some(part) = body.data().await {
                    let part = part.expect("the whole answer");
                    body.flow_control().release_capacity(part.len()).expect("what came");
                }
                seen.count(status);
            }
            // Above the last stream of the GOAWAY: not processed.
            Err(error) if error.is_go_away() && error.is_remote() => line = open(h2c).await,
            Err(error) => panic!("a request over HTTP/2 failed: {error}"),
        }
    }
}

async fn open(h2c: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(h2c).await.expect("a connection");
    let (send, connection) = h2::client::handshake(socket).await.expect("a handshake");
    tokio::spawn(async move { connection.await.ok() });
    send
}

fn h2c(gateway: &Gateway) -> SocketAddr {
    gateway.ready["proxy_h2c"].as_str().and_then(|a| a.parse().ok()).expect("an address")
}

#[track_caller]
fn ends(gateway: &mut Gateway, pid: u32) {
    eventually_true("the process before ends", || gateway.has_ended(pid));
}

/// Upgrades and reloads repeatedly while clients of both kinds send requests all the time.
fn upgrades_under_load(gateway: &mut Gateway, key: &Key, times: usize, seen: &Seen) {
    let (proxy, h2c, admin) = (gateway.proxy, h2c(gateway), gateway.admin);
    std::thread::scope(|scope| {
        for n in 0..3 {
            scope.spawn(move || {
                let request = Request::get(&format!("/v1/app/{n}")).bearer(&key.secret);
                http1(proxy, &request, seen);
            });
        }
        // What an orchestrator sees meanwhile.
        scope.spawn(move || {
            while seen.goes_on() {
                assert_eq!(Raw::connect(admin).call(&Request::get("/readyz")).status, 200);
            }
        });
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let two = async { tokio::join!(http2(h2c, &key.secret, seen), http2(h2c, &key.secret, seen)) };
            runtime.expect("a runtime").block_on(two);
        });
        // A panic of this thread must not leave the others running.
        let upgraded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..times {
                seen.wait_for_more(200);
                let before = gateway.upgrade();
                assert_eq!(gateway.proxy, proxy, "the same sockets");
                seen.wait_for_more(50);
                ends(gateway, before);
                assert_eq!(gateway.admin("POST", "/reload", None).status, 200);
                seen.wait_for_more(50);
            }
            seen.wait_for_more(100);
        }));
        seen.stop.store(true, Ordering::Release);
        if let Err(panic) = upgraded {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn upgrades_and_reloads_under_load_fail_no_request_and_record_each_once() {
    let (origin, mut gateway) = stand(&format!("{WIDE}[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n"));
    let key = gateway.create_key(unlimited(json!({"quota_limit": 10_000_000})));
    let seen = Seen::default();
    upgrades_under_load(&mut gateway, &key, 4, &seen);
    let served = seen.served();
    assert_eq!(
        (origin.count(), seen.denied.load(Ordering::Acquire)),
        (served, 0),
        "each reached the backend once"
    );
    let expected = json!(served);
    eventually_true("each is in the ledger once", || gateway.stats(&key)["total_requests"] == expected);
    assert_eq!(gateway.stats(&key)["quota_used"], expected);
    let answer = gateway.get("/v1/app/x", &key.secret);
    assert_eq!(answer.remaining("quota"), 10_000_000 - served as u64 - 1, "and counted once");
    assert!(
        !gateway.stderr().contains("has the same node.name"),
        "nobody takes one of them for another node"
    );
}

#[test]
fn a_quota_is_used_up_across_upgrades_as_if_there_were_none() {
    let (_origin, mut gateway) = stand(&format!("{WIDE}[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n"));
    let fields = json!({"quota_limit": 100, "rate_limit": 1000, "rate_burst": 1000});
    let (key, daily) = (gateway.create_key(fields), gateway.create_key(json!({"daily_request_limit": 40})));
    let admitted = |gateway: &Gateway, key: &Key, n: usize| {
        (0..n).filter(|_| gateway.get("/v1/app/x", &key.secret).status == 200).count()
    };
    for _ in 0..3 {
        assert_eq!((admitted(&gateway, &key, 30), admitted(&gateway, &daily, 10)), (30, 10));
        let before = gateway.upgrade();
        ends(&mut gateway, before);
    }
    assert_eq!((admitted(&gateway, &key, 30), admitted(&gateway, &daily, 30)), (10, 10));
}

#[test]
fn a_quota_that_many_race_for_is_passed_by_no_more_than_was_on_its_way() {
    let (_origin, mut gateway) = stand(&format!("{WIDE}[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n"));
    let key = gateway.create_key(unlimited(json!({"quota_limit": 900})));
    let seen = Seen::default();
    upgrades_under_load(&mut gateway, &key, 3, &seen);
    let served = seen.served();
    // The old process admits some more after it has handed over its counts: requests while both accept, and the last
    // requests on its connections. If it started counting from zero, it would be a multiple.
    assert!((900..1_000).contains(&served), "{served}");
    let expected = json!(served);
    eventually_true("each is in the ledger once", || gateway.stats(&key)["quota_used"] == expected);
}

#[test]
fn a_rate_is_not_given_again_by_an_upgrade() {
    let (_origin, mut gateway) = stand("");
    // One each hundred seconds, after two.
    let limits = json!([{"count": "requests", "per": "hour", "max": 36}]);
    let key = gateway.create_key(json!({"rate_limit": 1, "rate_burst": 30, "limits": limits}));
    for _ in 0..30 {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    }
    let before = gateway.upgrade();
    let answers: Vec<_> = (0..30).map(|_| gateway.get("/v1/app/x", &key.secret).status).collect();
    let again = answers.iter().filter(|status| **status == 200).count();
    assert!(again < 15, "a second gives back one, and it took {again}");
    ends(&mut gateway, before);
}

#[test]
fn a_new_process_that_does_not_serve_changes_nothing() {
    let (origin, mut gateway) = stand("[proxy]\nthreads = 2\n");
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let path = gateway.folder().join("keygate.toml");
    let config = std::fs::read_to_string(&path).expect("read");
    let mut kept = gateway.connect();
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let pid = gateway.pid();
    for (broken, says) in [
        (
            config.replace("threads = 2", "threads = \"many\""),
            "exited before it was serving (exit status: 64)",
        ),
        (config.replacen("127.0.0.1:0", "192.0.2.1:1", 1), "exited before it was serving (exit status: 1)"),
    ] {
        std::fs::write(&path, broken).expect("written");
        gateway.signal("USR2");
        eventually_true("it says why", || gateway.stderr().contains(says));
        let answer = kept.call(&request);
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
        assert_eq!(gateway.call(&request).status, 200);
        assert_eq!(Raw::connect(gateway.admin).call(&Request::get("/readyz")).status, 200);
    }
    assert_eq!((gateway.pid(), gateway.has_ended(pid)), (pid, false));
    std::fs::write(&path, config).expect("written");
    let before = gateway.upgrade();
    drop(kept);
    ends(&mut gateway, before);
    assert_eq!(gateway.call(&request).status, 200);
    let seen = origin.count();
    eventually_true("all is recorded", || gateway.stats(&key)["total_requests"] == json!(seen));
}

#[test]
fn another_program_than_agreed_is_ended_and_changes_nothing() {
    let origin = Origin::start();
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    write_config(folder.path(), &(one_route(origin.address) + "[proxy]\nupgrade_timeout = \"5s\"\n"));
    let program = folder.path().join("the program");
    let place = |what: &Path| {
        std::fs::remove_file(&program).ok();
        symlink(what, &program).expect("linked");
    };
    place(Path::new(env!("CARGO_BIN_EXE_keygate")));
    let mut gateway = Gateway::run_program(&program, Arc::clone(&folder), &[]).expect("it starts");
    let key = gateway.create_key(json!({}));
    for (script, says) in [
        ("exit 3", "exited before it was serving (exit status: 3)"),
        ("exec cat >/dev/null", "was not serving within 5s"),
        ("echo serving >&0; exec cat >/dev/null", "unexpected message from the new process"),
    ] {
        let path = folder.path().join("script");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("set");
        place(&path);
        gateway.signal("USR2");
        eventually_true("it says why", || gateway.stderr().contains(says));
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    }
    std::fs::remove_file(&program).expect("removed");
    gateway.signal("USR2");
    eventually_true("it says why", || gateway.stderr().contains("No such file"));
    place(Path::new(env!("CARGO_BIN_EXE_keygate")));
    let before = gateway.upgrade();
    ends(&mut gateway, before);
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
}

#[test]
fn a_reload_during_an_upgrade_is_declined_for_the_new_process_would_not_know_of_it() {
    let origin = Origin::start();
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    write_config(folder.path(), &(one_route(origin.address) + "[proxy]\nupgrade_timeout = \"10m\"\n"));
    let program = folder.path().join("the program");
    symlink(Path::new(env!("CARGO_BIN_EXE_keygate")), &program).expect("linked");
    let gateway = Gateway::run_program(&program, Arc::clone(&folder), &[]).expect("it starts");
    // A process that has read its config and then waits until the test lets it fail.
    let fail = folder.path().join("fail");
    mknodat(CWD, &fail, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
    std::fs::remove_file(&program).expect("removed");
    std::fs::write(&program, "#!/bin/sh\nread told <fail\nexit 3\n").expect("written");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("set");
    gateway.signal("USR2");
    eventually_true("it begins", || gateway.stderr().contains("upgrade started"));
    let declined = gateway.admin("POST", "/reload", None);
    assert_eq!(declined.fault(), (409, 1000, "conflict".into()));
    assert!(declined.text().contains("An upgrade is under way"), "{}", declined.text());
    gateway.signal("HUP");
    let told = "config not reloaded: an upgrade is in progress";
    eventually_true("it says why", || gateway.stderr().contains(told));
    let lines = || gateway.managed("GET", "/audit?platform=true&action=config.reload", None)["items"].clone();
    assert_eq!(lines(), json!([]));
    std::fs::write(&fail, "now\n").expect("written");
    let told = "exited before it was serving (exit status: 3)";
    eventually_true("it has failed", || gateway.stderr().contains(told));
    assert_eq!(gateway.admin("POST", "/reload", None).status, 200);
}

#[test]
fn while_the_old_process_drains_there_is_no_further_upgrade_and_its_end_loses_nothing() {
    let (origin, mut gateway) = stand("[proxy]\ndrain_timeout = \"10m\"\n");
    let key = gateway.create_key(json!({"quota_limit": 50}));
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut slow = gateway.connect();
    slow.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    origin.wait_for_heads(1);
    let old = gateway.upgrade();
    gateway.signal("USR2");
    eventually_true("it says why", || gateway.stderr().contains("the previous process is still draining"));
    eventually_true("the old one knows that it is replaced", || {
        gateway.stderr().contains("replaced by another process, draining: waiting for requests in flight")
    });
    // systemd tells every process of a service to stop.
    signal_to(old, "TERM");
    eventually_true("it says so", || gateway.stderr().contains("already draining"));
    assert!(!gateway.has_ended(old));
    signal_to(old, "KILL");
    ends(&mut gateway, old);
    let rows = gateway.wait_for_logs(&key, 1);
    assert_eq!((&rows[0]["endpoint"], &rows[0]["outcome"]), (&json!("/v1/app/slow"), &json!("interrupted")));
    hold.release();
    origin.answer(200, &[], b"{}");
    assert_eq!(gateway.get("/v1/app/x", &key.secret).remaining("quota"), 48, "the old one had told of it");
    eventually_true("the new one knows that it is alone", || {
        gateway.stderr().contains("old process has exited")
    });
    let before = gateway.upgrade();
    ends(&mut gateway, before);
    assert_eq!(gateway.get("/v1/app/x", &key.secret).remaining("quota"), 47);
}

#[test]
fn a_request_that_outlives_the_upgrade_is_answered_by_the_process_that_has_it() {
    let (origin, mut gateway) = stand("[proxy]\ndrain_timeout = \"10m\"\n");
    let key = gateway.create_key(json!({"quota_limit": 50}));
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut slow = gateway.connect();
    slow.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    origin.wait_for_heads(1);
    let old = gateway.upgrade();
    assert_eq!(gateway.managed("GET", "/plans", None)["page"]["total"], 1, "the admin API is the new one's");
    hold.release();
    let mut answer = slow.response();
    let mut answered = 1;
    while answer.header("connection") != Some("close") {
        // It had not begun to drain yet.
        answer = slow.call(&Request::get("/v1/app/next").bearer(&key.secret));
        answered += 1;
    }
    assert_eq!(answer.status, 200);
    ends(&mut gateway, old);
    assert!(gateway.wait().success());
    let rows = gateway.wait_for_logs(&key, answered);
    assert!(rows.iter().all(|row| row["outcome"] == "served"), "{rows:#?}");
    assert!(!gateway.has_ended(gateway.pid()));
}

#[test]
fn requests_in_flight_in_the_old_process_count_in_the_new_one() {
    let (origin, mut gateway) = stand("[proxy]\ndrain_timeout = \"10m\"\n");
    let key = gateway.create_key(json!({"concurrency_limit": 1}));
    let hold = Hold::new();
    origin.answer_after(&hold);
    let mut slow = gateway.connect();
    slow.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    origin.wait_for_heads(1);
    let old = gateway.upgrade();
    for _ in 0..3 {
        let refused = gateway.get("/v1/app/beside", &key.secret);
        assert_eq!(
            (refused.status, refused.json()["data"]["limit"].as_str()),
            (429, Some("concurrency_limit"))
        );
    }
    hold.release();
    assert_eq!(slow.response().status, 200);
    eventually_true("its place is free", || gateway.get("/v1/app/beside", &key.secret).status == 200);
    slow.hang_up();
    ends(&mut gateway, old);
    assert_eq!(gateway.get("/v1/app/beside", &key.secret).status, 200);
}

#[test]
fn listeners_may_change_in_an_upgrade() {
    let (origin, mut gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let first = gateway.proxy;
    write_config(
        gateway.folder(),
        &(one_route(origin.address) + "[proxy]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n"),
    );
    let old = gateway.upgrade();
    ends(&mut gateway, old);
    let all = gateway.ready["proxies"].as_array().expect("two").clone();
    assert_eq!((all.len(), &all[0]), (2, &json!(first.to_string())), "the first is the one it had");
    for address in all {
        let address = address.as_str().and_then(|a| a.parse().ok()).expect("an address");
        let answer = Raw::connect(address).call(&Request::get("/v1/app/x").bearer(&key.secret));
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn systemd_is_notified_of_the_main_pid_after_an_upgrade() {
    let origin = Origin::start();
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    write_config(folder.path(), &one_route(origin.address));
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("set");
    let hears = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).expect("something is said in time");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let socket = path.to_str().expect("text");
    let mut gateway =
        Gateway::run_with(Arc::clone(&folder), &[("NOTIFY_SOCKET", socket)]).expect("it starts");
    assert_eq!(hears(), "READY=1");
    let old = gateway.upgrade();
    assert_eq!(hears(), format!("MAINPID={}", gateway.pid()));
    ends(&mut gateway, old);
    gateway.signal("TERM");
    assert_eq!(hears(), "STOPPING=1", "and the old process did not say it");
    let pid = gateway.pid();
    ends(&mut gateway, pid);
}

#[test]
fn take_over_without_a_predecessor_is_refused() {
    let (_origin, gateway) = stand("");
    let refused = gateway.command(&["run", "--take-over"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("--take-over: "), "{refused:?}");
}

#[test]
fn limits_that_nodes_share_are_used_up_across_upgrades_too() {
    let redis = RedisServer::start();
    let (_origin, mut gateway) = stand(&format!("[counters]\nurl = \"redis://{}\"\n", redis.address));
    let begun = Instant::now();
    loop {
        let counts = used_up_across_upgrades(&mut gateway);
        // Where Redis was late, a process used its fallback.
        if counts.iter().all(|(_, degraded)| *degraded == 0) {
            assert_eq!(counts.map(|(admitted, _)| admitted), [20, 20, 20]);
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "Redis never answers all in time");
    }
}

/// Uses up a quota of 60 and sends more, with two upgrades in between. Returns how many of each part were admitted, and how
/// many decisions were made without Redis.
fn used_up_across_upgrades(gateway: &mut Gateway) -> [(usize, usize); 3] {
    let key = gateway.create_key(json!({"quota_limit": 60, "rate_limit": 1000}));
    [20, 20, 30].map(|requests| {
        let answers: Vec<_> = (0..requests).map(|_| gateway.get("/v1/app/x", &key.secret)).collect();
        if requests == 20 {
            let before = gateway.upgrade();
            ends(gateway, before);
        }
        let admitted = answers.iter().filter(|answer| answer.status == 200).count();
        (admitted, answers.iter().filter(|answer| answer.header("x-keygate-degraded").is_some()).count())
    })
}

#[test]
fn records_left_by_an_upgraded_process_are_found_at_the_next_start() {
    let (origin, mut gateway) = stand("");
    let key = gateway.create_key(json!({"quota_limit": 50, "rate_limit": 1000}));
    let old = gateway.upgrade();
    ends(&mut gateway, old);
    let hold = Hold::new();
    for _ in 0..20 {
        assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    }
    origin.answer_after(&hold);
    let mut slow = gateway.connect();
    slow.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    origin.wait_for_heads(21);
    assert!(gateway.folder().join("data/journal/slot-2").exists());
    let pid = gateway.pid();
    signal_to(pid, "KILL");
    ends(&mut gateway, pid);
    hold.release();
    let again = gateway.restart();
    let rows = again.wait_for_logs(&key, 21);
    let interrupted = rows.iter().filter(|row| row["outcome"] == "interrupted").count();
    assert_eq!((interrupted, &again.stats(&key)["quota_used"]), (1, &json!(21)));
    origin.answer(200, &[], b"{}");
    assert_eq!(again.get("/v1/app/x", &key.secret).remaining("quota"), 28);
}

#[test]
fn a_new_process_waits_for_a_store_that_others_write() {
    let (_origin, mut gateway) = stand("[store]\nbusy_timeout = \"10ms\"\n");
    let key = gateway.create_key(json!({}));
    let writer = rusqlite::Connection::open(gateway.folder().join("data/keygate.db")).expect("a database");
    writer.busy_timeout(PATIENCE).expect("it can wait");
    // It can be read, and not be written.
    writer.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
    gateway.signal("USR2");
    eventually_true("the new process waits", || {
        gateway.stderr().contains("store busy during the start, retrying")
    });
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200, "the old process serves");
    assert!(!gateway.stderr().contains("upgrade failed"), "{}", gateway.stderr());
    writer.execute_batch("ROLLBACK").expect("the write lock is free");
    let old = gateway.wait_for_successor();
    ends(&mut gateway, old);
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    eventually_true("usage is stored", || gateway.logs(&key).len() == 2);
}
