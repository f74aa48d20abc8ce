//! Power cuts: the folder is reset to what was synced plus a random part of what was not, and a gateway starts on it.
//!
//! `syncs.c`, preloaded into the gateway, records what each sync has written to disk. A cut kills the process and builds
//! folders from that record: removed files are missing; a directory entry whose folder was not synced exists or not; each
//! page of a file changed since its last sync is the old or the new one. The seed repeats a failure.

use crate::crash::{answer, ledger};
use crate::support::{Gateway, Key, Origin, Request, eventually_true, one_route, write_config};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{DirEntryExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use tempfile::TempDir;

const PAGE: usize = 4_096;
const CLIENTS: usize = 4;
/// Power cuts under load, and folders built from each.
const CUTS: u64 = 3;
const FOLDERS: u64 = 3;
/// The maximum of responses before a cut.
const ANSWERS_MAX: u64 = 2_000;
/// Everything written before the last few syncs began is on disk: here, a pass of the journal syncs at most two segments.
const LAST_SYNCS: usize = 5;

/// A response: the request's id, the status, and when it was complete.
type Told = (String, u16, i64);

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// xorshift64*: the same sequence for the same seed.
struct Random(u64);

impl Random {
    /// Takes the seed from `SEED`, or a random one, and prints it.
    fn seeded(what: &str) -> Self {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(what));
        println!("{what}: SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// A gateway whose syncs are recorded.
struct Watched {
    gateway: Gateway,
    folder: Arc<TempDir>,
    syncs: TempDir,
}

impl Watched {
    fn start(config: &str) -> Self {
        let (folder, syncs) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
        write_config(folder.path(), config);
        let environment =
            [("LD_PRELOAD", library(syncs.path())), ("SYNCS_FOLDER", syncs.path().display().to_string())];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        let gateway = Gateway::run_with(Arc::clone(&folder), &environment);
        let gateway = gateway.unwrap_or_else(|stderr| panic!("the gateway does not start:\n{stderr}"));
        Self { gateway, folder, syncs }
    }

    /// Everything written before this time is on disk for certain.
    fn synced_until(&self) -> i64 {
        let log = fs::read_to_string(self.syncs.path().join("log")).unwrap_or_default();
        let mut begun: Vec<i64> = log.lines().map(|line| line.parse().unwrap()).collect();
        begun.sort_unstable();
        begun.iter().rev().nth(LAST_SYNCS - 1).copied().unwrap_or(0)
    }

    /// A gateway on the files left by the power cut.
    fn after_the_cut(&self, random: &mut Random) -> Gateway {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        self.rebuild(self.folder.path(), folder.path(), random);
        Gateway::run(folder).unwrap_or_else(|stderr| panic!("no start after the power cut:\n{stderr}"))
    }

    fn rebuild(&self, from: &Path, to: &Path, random: &mut Random) {
        let kept = |kind: &str, inode: u64| fs::read(self.syncs.path().join(format!("{kind}-{inode}")));
        let own = fs::metadata(from).map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata)).unwrap();
        let synced = String::from_utf8(kept("d", own).unwrap_or_default()).unwrap();
        let synced: BTreeSet<&str> = synced.lines().collect();
        let mut entries: Vec<_> = fs::read_dir(from).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (name, inode) = (entry.file_name().into_string().unwrap(), entry.ino());
            let is_certain = name == "keygate.toml" || synced.contains(format!("{inode} {name}").as_str());
            if !is_certain && random.below(2) == 0 {
                println!("lost: {}", entry.path().display());
                continue;
            }
            let path = to.join(&name);
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
                self.rebuild(&entry.path(), &path, random);
                continue;
            }
            if entry.file_type().unwrap().is_socket() {
                // Nobody accepts there any more.
                drop(UnixListener::bind(&path).unwrap());
                continue;
            }
            let new = fs::read(entry.path()).unwrap();
            let old = if name == "keygate.toml" { new.clone() } else { kept("f", inode).unwrap_or_default() };
            fs::write(&path, mixed(&old, &new, random)).unwrap();
            fs::set_permissions(&path, entry.metadata().unwrap().permissions()).unwrap();
        }
    }
}

/// A file of which none, some or all pages have reached the disk since its last sync.
fn mixed(old: &[u8], new: &[u8], random: &mut Random) -> Vec<u8> {
    let reached_of_two = random.below(3);
    let length = if random.below(2) < reached_of_two { new.len() } else { old.len() };
    let mut file = vec![0; length];
    for (n, page) in file.chunks_mut(PAGE).enumerate() {
        let source = if random.below(2) < reached_of_two { new } else { old };
        let there = source.get(n * PAGE..).unwrap_or_default();
        let there = &there[..there.len().min(page.len())];
        page[..there.len()].copy_from_slice(there);
    }
    file
}

/// Builds the library that records syncs.
fn library(folder: &Path) -> String {
    let path = folder.join("syncs.so").display().to_string();
    let source: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/gateway/syncs.c"].iter().collect();
    let mut cc = Command::new("cc");
    let built = cc.args(["-shared", "-fPIC", "-O2", "-o", &path]).arg(source).arg("-ldl").status();
    assert!(built.expect("cc runs").success(), "syncs.c does not compile");
    path
}

fn config(origin: &Origin) -> String {
    one_route(origin.address)
        + "[proxy]\nthreads = 1\n[plans.default]\napi_ops_rate_limit = 1000000\n[usage]\n\
           journal_segment_bytes = \"64KiB\"\njournal_max_bytes = \"64MiB\"\n"
}

/// Sends one request after the other and passes on what it received, until the connection or the receiver is gone.
fn ask_on(address: SocketAddr, secret: &str, told: &SyncSender<Told>) -> Option<()> {
    let mut line = BufReader::new(TcpStream::connect(address).ok()?);
    line.get_ref().set_nodelay(true).ok()?;
    let request = Request::get("/v1/app/x").bearer(secret).bytes();
    loop {
        line.get_mut().write_all(&request).ok()?;
        let (id, status) = answer(&mut line)?;
        told.send((id, status, now_ns())).ok()?;
    }
}

/// Sends requests from every client and changes keys meanwhile until `answers` have arrived; then the power fails.
fn under_load(watched: &mut Watched, key: &Key, answers: u64, tasks: &mut Tasks) -> Vec<Told> {
    let address = watched.gateway.proxy;
    std::thread::scope(|scope| {
        let (tell, told) = sync_channel(100_000);
        for _ in 0..CLIENTS {
            let tell = tell.clone();
            scope.spawn(move || ask_on(address, &key.secret, &tell));
        }
        drop(tell);
        let mut all = Vec::new();
        for one in told.iter().take(usize::try_from(answers).unwrap()) {
            all.push(one);
            if all.len().is_multiple_of(100) {
                tasks.one_more(&watched.gateway);
            }
        }
        watched.gateway.kill9();
        all.extend(told.iter());
        all
    })
}

/// Acknowledged changes of the administrator.
#[derive(Default)]
struct Tasks {
    there: Vec<Key>,
    deleted: Vec<Key>,
}

impl Tasks {
    /// Creates a key, and deletes every other one again.
    fn one_more(&mut self, gateway: &Gateway) {
        let key = gateway.create_key(json!({"rate_limit": 1_000}));
        if self.there.len() > self.deleted.len() {
            gateway.managed("DELETE", &format!("/apikeys/{}", key.id), None);
            self.deleted.push(key);
        } else {
            self.there.push(key);
        }
    }

    #[track_caller]
    fn are_done(&self, gateway: &Gateway) {
        for (keys, status) in [(&self.there, 200), (&self.deleted, 401)] {
            for key in keys {
                assert_eq!(gateway.get("/v1/app/x", &key.secret).status, status, "key {}", key.id);
            }
        }
    }
}

#[track_caller]
fn nothing_is_missing(gateway: &Gateway, key: &Key, told: &[Told], until: i64) {
    gateway.settled_accounts();
    let rows = ledger(gateway, key);
    let due: Vec<_> = told.iter().filter(|(.., at)| *at < until).collect();
    let missing = due.iter().filter(|(id, ..)| !rows.contains_key(id)).count();
    assert_eq!(missing, 0, "of {} that were on disk, {} were answered", due.len(), told.len());
    let charged = due.iter().filter(|(_, status, _)| *status == 200).count();
    let quota_used = gateway.stats(key)["quota_used"].as_u64().unwrap();
    assert!(quota_used >= charged as u64, "{quota_used} counted, {charged} charged");
}

#[test]
fn a_power_cut_at_any_moment_loses_no_more_than_the_journal_has_not_synced() {
    let origin = Origin::start();
    let mut random = Random::seeded("power cuts under load");
    for _ in 0..CUTS {
        let mut watched = Watched::start(&config(&origin));
        let key = watched.gateway.create_key(json!({"rate_limit": 1_000_000, "quota_limit": 10_000_000}));
        let mut tasks = Tasks::default();
        let told = under_load(&mut watched, &key, 200 + random.below(ANSWERS_MAX), &mut tasks);
        let until = watched.synced_until();
        assert!(told.iter().any(|(.., at)| *at < until), "something was on disk");
        for _ in 0..FOLDERS {
            let gateway = watched.after_the_cut(&mut random);
            nothing_is_missing(&gateway, &key, &told, until);
            tasks.are_done(&gateway);
        }
    }
}

#[test]
fn a_power_cut_of_an_idle_gateway_loses_nothing() {
    let origin = Origin::start();
    let mut random = Random::seeded("power cut of an idle gateway");
    let mut watched = Watched::start(&config(&origin));
    let key = watched.gateway.create_key(json!({"rate_limit": 1_000_000, "quota_limit": 10_000_000}));
    let mut line = watched.gateway.connect();
    let request = Request::get("/v1/app/x").bearer(&key.secret).header("X-End-User-Id", "somebody");
    let mut told = Vec::new();
    for _ in 0..1_000 {
        let response = line.call(&request);
        told.push((response.header("x-request-id").unwrap().to_owned(), response.status, now_ns()));
    }
    watched.gateway.settled_accounts_of(1_000);
    eventually_true("the ledger has them", || ledger(&watched.gateway, &key).len() == 1_000);
    let end_users = |gateway: &Gateway| gateway.managed("GET", "/endusers", None)["items"].clone();
    let before: Value = end_users(&watched.gateway);
    watched.gateway.kill9();
    for _ in 0..FOLDERS {
        let gateway = watched.after_the_cut(&mut random);
        nothing_is_missing(&gateway, &key, &told, i64::MAX);
        assert_eq!(end_users(&gateway), before);
    }
}
