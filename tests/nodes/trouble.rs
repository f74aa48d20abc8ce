//! Database outages of every kind: requests are not affected, administrators get an error within two seconds, a write
//! without an answer happened completely or not at all, and everything recovers without a restart.

use crate::chaos::Mode;
use crate::cluster::{Line, Pair, number, pair_with, sql, wait};
use crate::disk::Disk;
use crate::private_postgres::Server;
use crate::support::{Gateway, Key, Request, Spare, eventually_true};
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// The promised longest wait of an administrator, and the tolerance of a test that measures it.
const TOLD_WITHIN: Duration = Duration::from_millis(2_000 + 700);
/// The median of requests during an outage; a request that called the database would take longer.
const USUAL: Duration = Duration::from_millis(100);
/// The maximum of any request: every timeout is longer.
const SLOWEST: Duration = Duration::from_millis(900);
/// Requests that each node serves at least during the outage.
const SERVED_MIN: usize = 200;
/// A client's pause between two requests.
const PACE: Duration = Duration::from_millis(2);

/// The effect of the outage on administrators.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admin {
    /// Reads and writes fail.
    Nothing,
    /// Reads work.
    Reads,
    /// Both may work.
    Maybe,
}

/// Two nodes, each with its own proxy to one database.
struct Stand {
    pair: Pair,
    lines: [Line; 2],
    /// The database's URL without the proxies.
    url: String,
    key: Key,
    /// Requests that presented the key, by node.
    sent: [AtomicU64; 2],
}

/// The result of a call to the admin API.
struct Told {
    name: String,
    status: u16,
    after: Duration,
}

/// Tells clients to stop.
#[derive(Default)]
struct Done {
    is: Mutex<bool>,
    changed: Condvar,
}

/// Tells them when it is dropped.
struct Finally<'d>(&'d Done);

impl Done {
    /// Waits for the stop, at most `pace`. Returns whether the clients have to stop.
    fn after(&self, pace: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.is.lock().unwrap(), pace, |is| !*is);
        *waited.unwrap().0
    }
}

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        *self.0.is.lock().unwrap() = true;
        self.0.changed.notify_all();
    }
}

impl Stand {
    fn on(server: &Server) -> Self {
        Self::at(wait(server.database()), "")
    }

    fn at(url: String, more: &str) -> Self {
        let lines = [Line::to(&url), Line::to(&url)];
        let pair = pair_with([&lines[0].url, &lines[1].url], more);
        let key = pair.key(json!({
            "rate_limit": 1_000, "rate_burst": 10_000_000, "daily_request_limit": 1_000_000_000,
        }));
        let stand = Self { pair, lines, url, key, sent: [AtomicU64::new(0), AtomicU64::new(0)] };
        for at in [0, 1] {
            assert_eq!(stand.end_user(at, "known").0, 200);
        }
        stand
    }

    fn node(&self, at: usize) -> &Gateway {
        self.pair.nodes()[at]
    }

    /// Sets the mode of all proxies.
    fn lines(&self, mode: Mode) {
        self.lines.iter().for_each(|line| line.set(mode));
    }

    /// A request for an end user: its status and how long it took.
    fn end_user(&self, at: usize, name: &str) -> (u16, Duration) {
        let request = Request::get("/v1/app/x").bearer(&self.key.secret).header("X-End-User-Id", name);
        let begun = Spare::begin();
        let status = self.node(at).call(&request).status;
        self.sent[at].fetch_add(1, Ordering::Relaxed);
        (status, begun.elapsed())
    }

    /// One client's requests on one connection until `done`, with the duration of each. Every one must be served.
    fn serve(&self, at: usize, done: &Done) -> Vec<Duration> {
        let mut connection = self.node(at).connect();
        let request = Request::get("/v1/app/x").bearer(&self.key.secret);
        let mut waits = Vec::new();
        while !done.after(PACE) || waits.len() < SERVED_MIN {
            let begun = Spare::begin();
            let response = connection.call(&request);
            waits.push(begun.elapsed());
            assert_eq!(response.status, 200, "{response:?}");
        }
        self.sent[at].fetch_add(waits.len() as u64, Ordering::Relaxed);
        waits
    }

    /// A timed creation of a key.
    fn create(&self, at: usize, name: String) -> Told {
        let begun = Spare::begin();
        let status = self.pair.try_create(self.node(at), &name);
        Told { name, status, after: begun.elapsed() }
    }

    fn read(&self, at: usize) -> Told {
        let begun = Spare::begin();
        let token = self.pair.first.token();
        let status = self.node(at).admin_as(&token, "GET", "/apikeys", None).status;
        Told { name: "GET".into(), status, after: begun.elapsed() }
    }

    /// Checks everything that must hold during the outage. Returns the results of the administrators.
    fn endure(&self, admin: Admin, new_end_users: &[u16]) -> Vec<Told> {
        let (done, told) = (Done::default(), Mutex::new(Vec::new()));
        let waits: Vec<Vec<Duration>> = std::thread::scope(|scope| {
            let lanes = [0, 1].map(|at| {
                let done = &done;
                scope.spawn(move || self.serve(at, done))
            });
            // Also when a check fails: the clients must not run for ever.
            let finally = Finally(&done);
            std::thread::scope(|calls| {
                for at in [0, 1] {
                    for round in 0..2 {
                        let told = &told;
                        calls.spawn(move || {
                            let answer = self.create(at, format!("in trouble {at} {round}"));
                            told.lock().unwrap().push(answer);
                        });
                    }
                    calls.spawn(move || self.readers_are_told(at, admin));
                    calls.spawn(move || self.end_users_are_told(at, new_end_users));
                }
            });
            drop(finally);
            lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
        });
        for mut node in waits {
            node.sort_unstable();
            let (usual, slowest) = (node[node.len() / 2], node[node.len() - 1]);
            assert!(usual <= USUAL && slowest <= SLOWEST, "median {usual:?}, slowest {slowest:?}");
        }
        let told = told.into_inner().unwrap();
        for Told { name, status, after } in &told {
            assert!(*after <= TOLD_WITHIN, "{name}: {status} after {after:?}");
            let may_succeed = admin == Admin::Maybe;
            assert!(*status == 503 || (may_succeed && *status == 200), "{name}: {status}");
        }
        told
    }

    fn readers_are_told(&self, at: usize, admin: Admin) {
        let read = self.read(at);
        assert!(read.after <= TOLD_WITHIN, "GET answers {} after {:?}", read.status, read.after);
        match admin {
            Admin::Nothing => assert_eq!(read.status, 503),
            Admin::Reads => assert_eq!(read.status, 200),
            Admin::Maybe => assert!([200, 503].contains(&read.status), "{}", read.status),
        }
        let ready = crate::support::Raw::connect(self.node(at).admin).call(&Request::get("/readyz"));
        assert_eq!(ready.status, 200, "{ready:?}");
        assert_eq!(self.node(at).get("/v1/app/x", "sk-service-unknown").status, 401);
    }

    fn end_users_are_told(&self, at: usize, new: &[u16]) {
        assert_eq!(self.end_user(at, "known").0, 200, "who is known passes");
        let (status, after) = self.end_user(at, &format!("new {at}"));
        assert!(new.contains(&status), "a new end user: {status}");
        assert!(after <= TOLD_WITHIN, "a new end user: {status} after {after:?}");
    }

    /// Checks everything that must hold after the outage.
    fn recover(&self, told: &[Told]) {
        for at in [0, 1] {
            static TRIES: AtomicU64 = AtomicU64::new(0);
            eventually_true("keys can be made again", || {
                let name = format!("try {}", TRIES.fetch_add(1, Ordering::Relaxed));
                self.create(at, name).status == 200
            });
        }
        let fresh = self.pair.key(json!({}));
        for node in self.pair.nodes() {
            assert_eq!(node.get("/v1/app/x", &fresh.secret).status, 200);
        }
        eventually_true("new end users are welcome", || self.end_user(0, "after").0 == 200);
        self.nothing_is_half_done(told);
        let mut total = 0;
        for at in [0, 1] {
            let accounts = self.node(at).settled_accounts();
            assert_eq!(accounts.shed, 0, "{accounts:?}");
            let sent = self.sent[at].load(Ordering::Relaxed);
            // One more for the fresh key.
            assert_eq!(accounts.accepted, sent + 1, "{accounts:?}");
            total += sent;
        }
        assert_eq!(self.pair.first.recorded(&self.key), total);
    }

    /// Whatever the response was, a key exists with its audit entry and its change number, or not at all.
    fn nothing_is_half_done(&self, told: &[Told]) {
        for Told { name, status, .. } in told {
            let there = number(&self.url, &format!("SELECT count(*) FROM keys WHERE name = '{name}'"));
            assert!(there == 1 || (there == 0 && *status == 503), "{name}: {status}, and there are {there}");
        }
        let half = "SELECT count(*) FROM keys k FULL JOIN
                        (SELECT * FROM audit WHERE action = 'key.create') a ON a.target = k.id::text
                    WHERE k.id IS NULL OR a.id IS NULL OR k.version < a.version
                       OR k.version > (SELECT value FROM change_seq)";
        assert_eq!(number(&self.url, half), 0, "keys without a line, lines without a key");
    }
}

/// An outage that the proxies can cause.
fn on_the_way(mode: Mode, admin: Admin, new_end_users: &[u16]) {
    let stand = Stand::on(Server::shared());
    stand.lines(mode);
    let told = stand.endure(admin, new_end_users);
    stand.lines(Mode::Pass);
    stand.recover(&told);
}

#[test]
fn refused() {
    on_the_way(Mode::Cut, Admin::Nothing, &[503]);
}

#[test]
fn silent() {
    on_the_way(Mode::Hang, Admin::Nothing, &[503]);
}

#[test]
fn slow_by_300_ms() {
    on_the_way(Mode::Late(Duration::from_millis(300)), Admin::Maybe, &[200, 503]);
}

#[test]
fn slow_by_5_s() {
    on_the_way(Mode::Late(Duration::from_secs(5)), Admin::Nothing, &[503]);
}

#[test]
fn answers_garbage() {
    on_the_way(Mode::Say("\u{1}\u{0}garbage\u{0}\u{ff}"), Admin::Nothing, &[503]);
}

#[test]
fn cut_between_commit_and_its_answer() {
    on_the_way(Mode::CutAfter("COMMIT"), Admin::Nothing, &[503]);
}

#[test]
fn frozen() {
    let server = Server::start();
    let stand = Stand::on(&server);
    server.freeze();
    let told = stand.endure(Admin::Nothing, &[503]);
    server.thaw();
    stand.recover(&told);
}

#[test]
fn stopped_and_started_again() {
    let mut server = Server::start();
    let stand = Stand::on(&server);
    server.stop();
    let told = stand.endure(Admin::Nothing, &[503]);
    server.start_again();
    stand.recover(&told);
}

#[test]
fn read_only() {
    let stand = Stand::on(Server::shared());
    let turn = |on: &str| {
        sql(
            &stand.url,
            &format!(
                "SET TRANSACTION READ WRITE;
                 DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {on}',
                     current_database()); END $$;
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'keygate'"
            ),
        );
    };
    turn("on");
    let told = stand.endure(Admin::Reads, &[503]);
    turn("off");
    stand.recover(&told);
}

#[test]
fn full() {
    let server = Server::start();
    let disk = wait(Disk::with_database(&server));
    let stand = Stand::at(disk.url().to_owned(), "");
    disk.fill();
    // The tables have a little free space left.
    let full = (0..2_000).find(|n| stand.create(0, format!("until it is full {n}")).status == 503);
    assert!(full.is_some(), "it never is full");
    let told = stand.endure(Admin::Maybe, &[200, 503]);
    disk.make_room();
    stand.recover(&told);
    drop(stand);
}

#[test]
fn thousands_of_requests_while_it_hangs_cost_no_memory_and_are_all_kept() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 1_000;
    /// What the records of all requests may take, and what allocators keep.
    const GROWTH_MAX: u64 = 48 << 20;
    let stand = Stand::on(Server::shared());
    let crowd = |names: &str| {
        std::thread::scope(|scope| {
            for at in [0, 1] {
                for client in 0..CLIENTS {
                    let stand = &stand;
                    scope.spawn(move || {
                        let mut connection = stand.node(at).connect();
                        for n in 0..REQUESTS {
                            let request = Request::get("/v1/app/x").bearer(&stand.key.secret);
                            // One in ten is for a new end user.
                            let is_new = n % 10 == 0;
                            let name = format!("{names} {client} {n}");
                            let request =
                                if is_new { request.header("X-End-User-Id", &name) } else { request };
                            let status = connection.call(&request).status;
                            assert!(status == 200 || (is_new && status == 503), "{status}");
                        }
                        stand.sent[at].fetch_add(REQUESTS as u64, Ordering::Relaxed);
                    });
                }
            }
        });
    };
    crowd("before");
    let before = [0, 1].map(|at| stand.node(at).resident_bytes());
    stand.lines(Mode::Hang);
    crowd("during");
    for at in [0, 1] {
        let grown = stand.node(at).resident_bytes().saturating_sub(before[at]);
        assert!(grown <= GROWTH_MAX, "{grown} bytes more");
        assert!(stand.node(at).accounts().on_the_way > 0, "it waits");
    }
    stand.lines(Mode::Pass);
    stand.recover(&[]);
}
