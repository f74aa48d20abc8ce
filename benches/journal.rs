//! Cost of the journal: CPU time of a request's two records, and the time to read a gigabyte of them at startup.
//!
//! CPU time is that of the serving thread (user and system, page faults included), which other load on the machine hardly
//! changes. Run it with `make bench-journal`; the argument is the size of the journal to recover, in MiB.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a measurement that cannot go on fails"
)]

use keygate::clock::{Clock, SystemClock};
use keygate::metrics::Metrics;
use keygate::model::id::{KeyId, RequestId, WorkspaceId};
use keygate::model::usage::Outcome;
use keygate::usage::journal::disk::RealDisk;
use keygate::usage::journal::{JournalFlusher, JournalOptions, RecordBatch};
use keygate::usage::{Journal, JournalTotals, PendingRecord, RecordStart, Recorder, WhenFull};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests in one measurement.
const REQUESTS: u64 = 500_000;
const ROUNDS: usize = 5;
const KEYS: u128 = 1_000;

fn options(folder: &Path, max_bytes: u64) -> JournalOptions {
    JournalOptions {
        folder: folder.to_path_buf(),
        aside: folder.to_path_buf(),
        max_bytes,
        segment_bytes: 4 << 20,
        sync_interval: Duration::from_millis(10),
        threads: 1,
        node: "bench".into(),
        boot: uuid::Uuid::nil(),
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap())
}

struct Bench {
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    workspace: WorkspaceId,
    upstream: Arc<str>,
}

impl Bench {
    fn of(journal: &Arc<Journal>, metrics: &Arc<Metrics>) -> Self {
        Self {
            recorder: Recorder::new(Arc::clone(journal), WhenFull::Shed, Arc::clone(metrics)),
            clock: Arc::new(SystemClock::new()),
            workspace: "workspace-1".parse().unwrap(),
            upstream: "10.0.0.12:9001".into(),
        }
    }

    fn request(&self, number: u64) {
        let arrived = self.clock.now();
        let id = RequestId::new(arrived.wall);
        let mut buffer = [0; 36];
        let start = RecordStart {
            id,
            request_id: id.0.hyphenated().encode_lower(&mut buffer),
            api_key_id: KeyId(uuid::Uuid::from_u128(u128::from(number) % KEYS)),
            workspace_id: &self.workspace,
            arrived,
            method: "POST",
            endpoint: "/v1/app/01a20461-f7b3-7f69/chat/completions",
            route: "app",
            ip_address: IpAddr::from([10, 1, 2, 3]),
            user_agent: b"python-requests/2.32.3",
            node: "gateway-1",
            end_user_id: None,
            charged: true,
            degraded: false,
        };
        let mut pending = PendingRecord::admitted(start, &self.recorder, &self.clock).unwrap();
        pending.upstream(&self.upstream);
        pending.first_byte(200);
        pending.bytes(512, 2_048);
        pending.complete(Outcome::Served, 200);
    }
}

fn cost() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let (journal, mut reader) =
        Journal::open(options(folder.path(), 4 << 30), Arc::new(RealDisk), Arc::clone(&metrics)).unwrap();
    let keeper = JournalFlusher::start(Arc::clone(&journal)).unwrap();
    let bench = Bench::of(&journal, &metrics);
    for round in 0..ROUNDS {
        let (before, begun) = (cpu_time(), Instant::now());
        (0..REQUESTS).for_each(|number| bench.request(number));
        let (used, wall) = (cpu_time() - before, begun.elapsed());
        let (before, mut batch) = (cpu_time(), RecordBatch::default());
        reader.begin_round();
        let mut has_more = true;
        while has_more {
            batch.clear();
            has_more = reader.read(1_000, &mut batch);
            reader.acknowledge(&batch, 0..batch.len());
            reader.retire();
        }
        let read = cpu_time() - before;
        let per = |time: Duration| time.as_secs_f64() * 1e6 / REQUESTS as f64;
        println!(
            "round {round}: both records {:.3} µs of CPU ({:.3} µs elapsed) a request; reading them back {:.3} µs",
            per(used),
            per(wall),
            per(read)
        );
    }
    assert_eq!(metrics.usage().shed, 0);
    keeper.stop();
}

fn recovery(mib: u64) {
    let folder = tempfile::tempdir_in(".").unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let (journal, _) =
        Journal::open(options(folder.path(), mib << 20), Arc::new(RealDisk), Arc::clone(&metrics)).unwrap();
    let bench = Bench::of(&journal, &metrics);
    let mut requests = 0;
    while !journal.is_full() {
        bench.request(requests);
        requests += 1;
    }
    let bytes = journal.bytes();
    drop((bench, journal));
    let metrics = Arc::new(Metrics::new().unwrap());
    let (begun, before) = (Instant::now(), cpu_time());
    let opened = Journal::open(options(folder.path(), mib << 20), Arc::new(RealDisk), metrics);
    let (_, mut reader) = opened.expect("the lock is free");
    let mut spent = JournalTotals::new(SystemClock::new().now().wall, &HashMap::new());
    let mut records = 0;
    reader.rest(|admit, complete| {
        records += 1;
        spent.add(admit, complete);
    });
    println!(
        "recovery: {} MiB with {records} records read and counted in {:.2} s ({:.2} s of CPU); {} subjects have spent",
        bytes >> 20,
        begun.elapsed().as_secs_f64(),
        (cpu_time() - before).as_secs_f64(),
        spent.into_rows().count(),
    );
}

fn main() {
    let mib = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_024);
    cost();
    recovery(mib);
}
