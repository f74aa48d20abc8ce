//! Write throughput of the ledger, and its query latency with ten million records of one key: `make bench-ledger`.
//!
//! The argument `append`, `append-sqlite`, `read` or `read-sqlite` runs that part only. `KEYGATE_BENCH_ROWS` sets how many
//! rows the queries run on.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a measurement that cannot go on ends, and reads the real clock"
)]

mod fill;
mod read;

#[path = "../../tests/store_behaviours/private_postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use more of it")]
mod private_postgres;

use fill::Traffic;
use keygate::store::postgres::{PgOptions, PgStore};
use keygate::store::sqlite::{SqliteOptions, SqliteStore};
use keygate::store::{Ledger, Store};
use private_postgres::Server;
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Settings of a production server: every commit is synced, vacuum on.
const SETTINGS: &str = "-c fsync=on -c full_page_writes=on -c autovacuum=on -c shared_buffers=1GB -c max_wal_size=8GB \
     -c checkpoint_timeout=15min -c wal_compression=on";
/// Rows in one batch, as the writer sends them when it has a backlog.
const BATCHES: [usize; 2] = [1_000, 10_000];
/// How many rows each measurement appends.
const APPENDED: usize = 400_000;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wants = |part: &str| arguments.is_empty() || arguments.iter().any(|a| a == part);
    let rows = std::env::var("KEYGATE_BENCH_ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    if wants("append") {
        append().await;
    }
    if wants("append-sqlite") {
        append_to_sqlite().await;
    }
    if wants("read") {
        let server = Server::start_with(SETTINGS);
        let store = open(&server.database().await).await;
        read::table("PostgreSQL", &store, rows).await;
    }
    if wants("read-sqlite") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keygate.db");
        let store = SqliteStore::open(&path, &SqliteOptions::default()).unwrap();
        read::table("SQLite", &(Arc::new(store) as Arc<dyn Store>), rows).await;
    }
}

async fn open(url: &str) -> Arc<dyn Store> {
    let options = PgOptions { statement_timeout: Duration::from_secs(60), ..PgOptions::default() };
    Arc::new(PgStore::open(&url.parse().unwrap(), &options, Handle::current()).await.unwrap())
}

/// CPU time of a row in SQLite, for one key and for many, with the batch sizes of a busy node.
async fn append_to_sqlite() {
    println!("appending {APPENDED} rows into SQLite, keys drawn by Zipf's law:");
    for keys in [1, 10_000, 1_000_000] {
        for batch in [1_000, 10_000] {
            let folder = tempfile::tempdir_in(".").unwrap();
            let path = folder.path().join("keygate.db");
            let store = SqliteStore::open(&path, &SqliteOptions::default()).unwrap();
            let made = Traffic::of(keys, 1).batches(APPENDED, batch);
            let cpu = own_cpu();
            for batch in &made {
                assert_eq!(store.append(batch).await.unwrap(), batch.len() as u64);
            }
            println!(
                "  {keys:>7} key(s), batches of {batch:>6}: {:.2} µs of CPU a row; {} MiB on disk",
                (own_cpu() - cpu).as_secs_f64() * 1e6 / APPENDED as f64,
                std::fs::metadata(&path).unwrap().len() >> 20,
            );
        }
    }
}

/// CPU time of this process, so far.
fn own_cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap())
}

/// Rows per second into PostgreSQL, from one node and from three that serve the same keys.
async fn append() {
    println!("appending {APPENDED} rows of 1 000 keys in 50 workspaces, the busiest key 1 in 8:");
    for nodes in [1, 3] {
        for batch in BATCHES {
            let server = Server::start_with(SETTINGS);
            let url = server.database().await;
            let traffic = Arc::new(Traffic::of(1_000, 50));
            let mut stores = Vec::new();
            for _ in 0..nodes {
                stores.push(open(&url).await);
            }
            traffic.make_keys(&stores[0]).await;
            let made = traffic.batches(APPENDED, batch);
            let begun = Instant::now();
            let cpu = server_cpu();
            let parts: Vec<_> = made.chunks(made.len().div_ceil(nodes)).map(<[_]>::to_vec).collect();
            let mut running = Vec::new();
            for (store, part) in stores.into_iter().zip(parts) {
                running.push(tokio::spawn(async move {
                    for batch in &part {
                        assert_eq!(store.append(batch).await.unwrap(), batch.len() as u64);
                    }
                }));
            }
            for node in running {
                node.await.unwrap();
            }
            let took = begun.elapsed();
            println!(
                "  {nodes} node(s), batches of {batch:>6}: {:>7.0} rows/s in {took:.1?}; {:.1} µs of CPU a row, server and client",
                APPENDED as f64 / took.as_secs_f64(),
                (server_cpu() - cpu).as_secs_f64() * 1e6 / APPENDED as f64,
            );
        }
    }
}

/// CPU time of this process and of every PostgreSQL server of the machine, so far.
fn server_cpu() -> Duration {
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let own = entry.file_name().to_str() == Some(&std::process::id().to_string());
        if own || stat.contains("(postgres)") {
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    Duration::from_millis(ticks * 10)
}
