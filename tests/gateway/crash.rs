//! Crashes of the process and failures of its disk: an answered request is in the ledger once, and limits count it.

use crate::support::{Gateway, Key, Origin, Request, Spare, eventually_true, one_route, soon};
use crate::tiny_disk::TinyDisk;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

const KILLS: u64 = 20;
const CLIENTS: usize = 8;
/// The maximum of responses between two kills.
const ANSWERS_MAX: u64 = 600;
const QUOTA: u64 = 1_000;
/// Time within which a new request must succeed again.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// What a client received: the request's id and the status.
type Told = (String, u16);

/// Sends one request after the other and passes on what it received, until the connection or the receiver is gone.
fn ask_on(address: SocketAddr, secret: &str, told: &SyncSender<Told>) -> Option<()> {
    let mut line = BufReader::new(TcpStream::connect(address).ok()?);
    line.get_ref().set_nodelay(true).ok()?;
    let request = Request::get("/v1/app/x").bearer(secret).bytes();
    loop {
        line.get_mut().write_all(&request).ok()?;
        told.send(answer(&mut line)?).ok()?;
    }
}

/// One complete response; `None` if it is cut off.
pub(crate) fn answer(from: &mut impl BufRead) -> Option<Told> {
    let (mut status, mut id, mut length) = (None, None, 0);
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let line = line.strip_suffix("\r\n")?;
        match line.split_once(": ") {
            None if line.is_empty() => break,
            None => status = line.split(' ').nth(1)?.parse().ok(),
            Some((name, value)) if name.eq_ignore_ascii_case("x-request-id") => id = Some(value.to_owned()),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?
            }
            Some(_) => {}
        }
    }
    from.read_exact(&mut vec![0; length]).ok()?;
    Some((id?, status?))
}

/// All records of a gateway on `SQLite`: outcome, status and whether it was charged, by request id.
pub(crate) fn ledger(gateway: &Gateway, key: &Key) -> BTreeMap<String, (String, u16, bool)> {
    let path = gateway.folder().join("data/keygate.db");
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sql = "SELECT request_id, outcome, status_code, charged FROM usage WHERE api_key_id = ?1";
    let mut statement = database.prepare(sql).unwrap();
    let id: uuid::Uuid = key.id.parse().unwrap();
    let rows = statement.query_map([id.as_bytes()], |row| {
        Ok((row.get::<_, String>(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)))
    });
    let mut found = BTreeMap::new();
    for (request_id, row) in rows.unwrap().map(Result::unwrap) {
        assert!(found.insert(request_id.clone(), row).is_none(), "{request_id} is there twice");
    }
    found
}

/// Sends requests from every client until `answers` have arrived, then kills the gateway. Returns all responses.
fn under_load(gateway: &mut Gateway, keys: [&Key; 2], answers: u64) -> [Vec<Told>; 2] {
    let address = gateway.proxy;
    std::thread::scope(|scope| {
        let (tell, told) = sync_channel(0);
        for client in 0..CLIENTS {
            let key = client % 2;
            let (to_one, from_one) = sync_channel(100_000);
            let tell: SyncSender<(usize, Told)> = tell.clone();
            scope.spawn(move || ask_on(address, &keys[key].secret, &to_one));
            scope.spawn(move || from_one.into_iter().for_each(|one| drop(tell.send((key, one)))));
        }
        drop(tell);
        let mut all = [Vec::new(), Vec::new()];
        for (key, one) in told.iter().take(usize::try_from(answers).unwrap()) {
            all[key].push(one);
        }
        gateway.kill9();
        told.iter().for_each(|(key, one)| all[key].push(one));
        all
    })
}

#[test]
fn requests_answered_before_any_of_twenty_kills_are_recorded_once() {
    let origin = Origin::start();
    let plan = "[plans.default]\napi_ops_rate_limit = 1000000\n[usage]\njournal_segment_bytes = \"64KiB\"\njournal_max_bytes = \"64MiB\"\n";
    let mut gateway = Gateway::start(&(one_route(origin.address) + plan));
    let generous = json!({"rate_limit": 1_000_000, "daily_request_limit": 100_000_000});
    let free = gateway.create_key(generous.clone());
    let mut fields = generous;
    fields["quota_limit"] = QUOTA.into();
    let limited = gateway.create_key(fields);
    let mut told = [Vec::new(), Vec::new()];
    let (mut serving, random) = (Duration::ZERO, RandomState::new());
    for kill in 0..KILLS {
        let begun = Instant::now();
        let more = under_load(&mut gateway, [&free, &limited], 1 + random.hash_one(kill) % ANSWERS_MAX);
        serving += begun.elapsed();
        told.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
        gateway = gateway.restart();
        let ready = Spare::begin();
        assert_eq!(gateway.get("/v1/app/again", &free.secret).status, 200);
        assert!(ready.elapsed() < AGAIN_WITHIN, "{:?}", ready.elapsed());
    }
    let answers = told.iter().map(Vec::len).sum::<usize>();
    println!("{answers} answers, {:.0} a second", answers as f64 / serving.as_secs_f64());
    let accounts = gateway.settled_accounts();
    assert_eq!((accounts.shed, accounts.set_aside), (0, 0));
    let mut cut_off = 0;
    for (key, told) in [&free, &limited].into_iter().zip(&told) {
        let rows = ledger(&gateway, key);
        for (id, status) in told {
            let outcome = if *status == 200 { "served" } else { "denied" };
            let row =
                rows.get(id).unwrap_or_else(|| panic!("{id} was answered with {status} and is not there"));
            let is_cut_off = (row.0.as_str(), row.1) == ("interrupted", 0);
            cut_off += u64::from(is_cut_off);
            assert!(is_cut_off || (row.0.as_str(), row.1) == (outcome, *status), "{id}: {row:?}");
        }
    }
    // The last byte was sent and the end record not yet written: at most one request per client.
    assert!(cut_off <= KILLS * CLIENTS as u64, "{cut_off}");
    let charged = ledger(&gateway, &limited).values().filter(|(.., charged)| *charged).count() as u64;
    let served = told[1].iter().filter(|(_, status)| *status == 200).count() as u64;
    assert!(served <= charged && charged <= QUOTA, "{served} served, {charged} charged");
    assert!(gateway.stop().success());
    assert_eq!(segments(&gateway), BTreeSet::new(), "a clean stop leaves nothing");
}

fn segments(gateway: &Gateway) -> BTreeSet<String> {
    let entries = fs::read_dir(gateway.folder().join("data/journal")).unwrap().map(Result::unwrap);
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".journal")).collect()
}

/// A gateway whose journal is on its own file system of one megabyte. The ledger is written so rarely that the journal
/// fills up before.
fn on(disk: &TinyDisk, origin: &Origin, when_full: &str) -> Gateway {
    let folder = disk.path().join("journal");
    Gateway::start(&format!(
        "{}[proxy]\nthreads = 1\n[plans.default]\napi_ops_rate_limit = 1000000\n[usage]\njournal_dir = \"{}\"\n\
         journal_segment_bytes = \"64KiB\"\njournal_max_bytes = \"512KiB\"\nbatch_delay = \"3s\"\nwhen_full = \"{when_full}\"\n",
        one_route(origin.address),
        folder.display(),
    ))
}

#[test]
fn on_a_full_disk_serving_goes_on_and_what_is_lost_is_counted_exactly() {
    let (disk, origin) = (TinyDisk::mount(), Origin::start());
    let gateway = on(&disk, &origin, "shed");
    let key = gateway.create_key(json!({"rate_limit": 1_000_000}));
    disk.fill();
    let mut line = gateway.connect();
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let mut asked = 0;
    while gateway.accounts().shed == 0 {
        for _ in 0..100 {
            assert_eq!(line.call(&request).status, 200);
            asked += 1;
        }
    }
    let accounts = gateway.settled_accounts_of(asked);
    assert_eq!(accounts.stored + accounts.shed, asked);
    assert_eq!(ledger(&gateway, &key).len() as u64, accounts.stored);
    disk.make_room();
    eventually_true("nothing is lost any more", || {
        let before = gateway.accounts().shed;
        assert_eq!(line.call(&request).status, 200);
        asked += 1;
        gateway.accounts().shed == before
    });
    let accounts = gateway.settled_accounts_of(asked);
    assert_eq!(ledger(&gateway, &key).len() as u64, accounts.stored);
}

#[test]
fn on_a_full_disk_nothing_is_admitted_that_cannot_be_recorded_if_the_config_says_so() {
    let (disk, origin) = (TinyDisk::mount(), Origin::start());
    let gateway = on(&disk, &origin, "refuse");
    let key = gateway.create_key(json!({"rate_limit": 1_000_000, "quota_limit": 100_000}));
    disk.fill();
    let mut line = gateway.connect();
    let request = Request::get("/v1/app/x").bearer(&key.secret);
    let mut served = 0;
    let refusal = loop {
        let response = line.call(&request);
        if response.status != 200 {
            break response;
        }
        served += 1;
    };
    assert_eq!(refusal.fault(), (503, 10_003, "service_unavailable".into()));
    assert_eq!(gateway.call(&Request::get("/healthz")).status, 404, "the proxy has no such path");
    let readiness = crate::support::Raw::connect(gateway.admin).call(&Request::get("/readyz?verbose"));
    assert!(readiness.status == 503 && readiness.text().contains("full"), "{}", readiness.text());
    disk.make_room();
    soon(AGAIN_WITHIN, "requests are admitted again", || line.call(&request).status == 200);
    gateway.settled_accounts();
    let rows = ledger(&gateway, &key);
    let in_ledger = rows.values().filter(|(outcome, ..)| outcome == "served").count();
    assert_eq!(in_ledger, served + 1, "all that were served");
    assert_eq!(gateway.stats(&key)["quota_used"], served + 1, "refusals cost nothing");
}

#[test]
fn a_journal_that_another_process_owns_is_refused_with_its_folder() {
    let origin = Origin::start();
    let folder = tempfile::tempdir().unwrap();
    let journal = format!("[usage]\njournal_dir = \"{}\"\n", folder.path().join("j").display());
    let mut gateway = Gateway::start(&(one_route(origin.address) + &journal));
    let second = || {
        let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
        crate::support::write_config(folder.path(), &(one_route(origin.address) + &journal));
        Gateway::run(folder)
    };
    let refusal = second().err().expect("refused");
    let path = folder.path().join("j").display().to_string();
    assert!(refusal.contains(&path) && refusal.contains("another process"), "{refusal}");
    gateway.kill9();
    assert!(second().is_ok(), "whoever is dead owns nothing");
}
