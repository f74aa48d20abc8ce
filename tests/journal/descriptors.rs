//! File descriptor exhaustion: the journal has reserved some for itself.
//!
//! The limit applies to the process, so the test runs again in a process of its own.

use crate::stand::{Mood, SMALL, Stand, TestLedger};
use keygate::usage::WhenFull;
use keygate::usage::journal::disk::RealDisk;
use keygate::usage::journal::{JournalFlusher, RecordBatch};
use std::collections::BTreeSet;
use std::fs::File;
use std::process::Command;
use std::sync::Arc;

const NAME: &str = "descriptors::records_find_room_while_others_take_every_descriptor";
const INSIDE: &str = "TAKES_EVERY_DESCRIPTOR";
/// The process's limit of file descriptors.
const ALLOWED: u64 = 256;
/// Records written before anything is stored, and afterwards; a segment holds about a dozen.
const RECORDS: usize = 100;

#[test]
fn records_find_room_while_others_take_every_descriptor() {
    if std::env::var_os(INSIDE).is_some() {
        return records_find_room();
    }
    let own = std::env::current_exe().unwrap();
    let ran = Command::new(own).args([NAME, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

fn records_find_room() {
    let (_, most) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
    rlimit::setrlimit(rlimit::Resource::NOFILE, ALLOWED, most).unwrap();
    let mut stand =
        Stand::at(Arc::new(tempfile::tempdir().unwrap()), SMALL, WhenFull::Shed, Arc::new(RealDisk));
    let ledger = TestLedger::new(Mood::Well);
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    let (mut ids, mut taken) = (BTreeSet::new(), Vec::new());
    let mut fill = |stand: &Stand| {
        for _ in 0..RECORDS {
            // All that is free, also what was freed since the last record.
            taken.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
            ids.insert(stand.serve(0));
        }
    };
    fill(&stand);
    store_all(&mut stand, &ledger);
    fill(&stand);
    store_all(&mut stand, &ledger);
    drop(taken);
    assert_eq!(stand.metrics.usage().shed, 0);
    assert_eq!(ledger.rows().into_keys().collect::<BTreeSet<_>>(), ids);
    keeper.stop();
}

/// Stores everything, and lets the flusher remove finished segments.
fn store_all(stand: &mut Stand, ledger: &TestLedger) {
    let reader = stand.reader.as_mut().unwrap();
    reader.begin_round();
    let mut batch = RecordBatch::default();
    let mut has_more = true;
    while has_more {
        batch.clear();
        has_more = reader.read(100, &mut batch);
        ledger.add(&batch.records);
        reader.acknowledge(&batch, 0..batch.len());
        reader.retire();
    }
}
