//! Disks that are full or broken, and folders owned by another user.

use crate::stand::{Mood, SMALL, Sizes, Stand, TestLedger, options, segments};
use crate::tiny_disk::TinyDisk;
use keygate::metrics::Metrics;
use keygate::model::id::RequestId;
use keygate::model::usage::Outcome;
use keygate::usage::journal::disk::{Disk, RealDisk};
use keygate::usage::journal::{JournalFlusher, Mapping, OpenError, RecordBatch};
use keygate::usage::{Journal, WhenFull};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A disk with injected failures.
#[derive(Debug, Default)]
struct TestDisk {
    is_full: AtomicBool,
    cannot_sync: AtomicBool,
    synced_bytes: AtomicUsize,
    attempts: AtomicUsize,
}

impl Disk for TestDisk {
    fn create(&self, folder: &File, path: &Path, bytes: u64) -> io::Result<File> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        if self.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        RealDisk.create(folder, path, bytes)
    }

    fn sync(&self, mapping: &Mapping, range: Range<usize>) -> io::Result<()> {
        if self.cannot_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk does not answer"));
        }
        self.synced_bytes.fetch_add(range.len(), Ordering::SeqCst);
        RealDisk.sync(mapping, range)
    }
}

/// Polls until it holds: the flusher runs every millisecond.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "this did not happen: {what}");
        std::thread::yield_now();
    }
}

fn on(disk: &Arc<TestDisk>, sizes: Sizes, when_full: WhenFull) -> Stand {
    Stand::at(Arc::new(tempfile::tempdir().unwrap()), sizes, when_full, disk.clone())
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

#[test]
fn a_full_journal_sheds_exactly_what_it_has_no_room_for_and_heals() {
    let disk = Arc::new(TestDisk::default());
    let mut stand = on(&disk, Sizes { segments: 4, ..SMALL }, WhenFull::Shed);
    let ledger = TestLedger::new(Mood::Well);
    let mut served = Vec::new();
    while !stand.journal.is_full() {
        served.push(stand.serve(0));
    }
    served.extend((0..20).map(|_| stand.serve(0)));
    let shed = usize::try_from(stand.metrics.usage().shed).unwrap();
    assert!((20..=22).contains(&shed), "{shed}");
    store_all(&mut stand, &ledger);
    let rows = ledger.rows();
    assert_eq!(rows.len(), served.len() - shed);
    assert!(served.iter().take(rows.len()).all(|id| rows.contains_key(id)));
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    eventually("there is room again", || !stand.journal.is_full());
    let after = stand.serve(1);
    store_all(&mut stand, &ledger);
    assert_eq!(ledger.rows()[&after].outcome, Outcome::Served);
    keeper.stop();
}

#[test]
fn a_full_journal_refuses_and_forgets_nobody_who_was_admitted() {
    let disk = Arc::new(TestDisk::default());
    let mut stand = on(&disk, Sizes { segments: 4, ..SMALL }, WhenFull::Refuse);
    let ledger = TestLedger::new(Mood::Well);
    let mut admitted = Vec::new();
    loop {
        let id = RequestId::new(keygate::clock::Timestamp::from_secs(1));
        match stand.try_begin(id, 0) {
            Some(pending) => admitted.push((id, pending)),
            None => break,
        }
    }
    assert!(stand.recorder.may_admit().is_err());
    let ids: Vec<_> = admitted.iter().map(|(id, _)| *id).collect();
    // There is no room for their end records, and yet their ends are stored.
    admitted.into_iter().for_each(|(_, pending)| pending.complete(Outcome::Served, 200));
    store_all(&mut stand, &ledger);
    let rows = ledger.rows();
    assert!(ids.iter().all(|id| rows[id].outcome == Outcome::Served));
    assert_eq!((rows.len(), stand.metrics.usage().shed), (ids.len(), 0));
}

#[test]
fn a_full_disk_is_retried_and_used_again() {
    let disk = Arc::new(TestDisk::default());
    disk.is_full.store(true, Ordering::SeqCst);
    let mut stand = on(&disk, SMALL, WhenFull::Shed);
    stand.serve(0);
    assert!(stand.journal.is_full());
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    for _ in 0..1_000 {
        stand.serve(0);
    }
    assert_eq!(stand.metrics.usage().shed, 1_001);
    let tried = disk.attempts.load(Ordering::SeqCst);
    assert!(tried < 1_000, "{tried} attempts: requests do not try");
    disk.is_full.store(false, Ordering::SeqCst);
    eventually("there is room again", || !stand.journal.is_full());
    let id = stand.serve(1);
    keeper.stop();
    let ledger = TestLedger::new(Mood::Well);
    store_all(&mut stand, &ledger);
    assert_eq!(ledger.rows().keys().collect::<Vec<_>>(), [&id]);
}

#[test]
fn a_full_file_system_ends_no_process_and_is_used_again_when_it_has_room() {
    let tiny = TinyDisk::mount();
    let folder = tempfile::tempdir_in(tiny.path()).unwrap();
    let sizes = Sizes { segment: 128 << 10, segments: 1_000, threads: 1 };
    let mut stand = Stand::at(Arc::new(folder), sizes, WhenFull::Shed, Arc::new(RealDisk));
    let ledger = TestLedger::new(Mood::Well);
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    let mut served = 0;
    while stand.metrics.usage().shed == 0 {
        stand.serve(0);
        served += 1;
    }
    assert!(served > 1_000, "{served}");
    // Another process fills the rest of the disk; allocated segments can still be written.
    tiny.fill();
    store_all(&mut stand, &ledger);
    assert_eq!(ledger.rows().len() as u64, served - stand.metrics.usage().shed);
    tiny.make_room();
    eventually("there is room again", || !stand.journal.is_full());
    let after = stand.serve(1);
    store_all(&mut stand, &ledger);
    assert!(ledger.rows().contains_key(&after));
    keeper.stop();
}

#[test]
fn a_sync_that_fails_is_counted_and_serving_goes_on() {
    let disk = Arc::new(TestDisk::default());
    disk.cannot_sync.store(true, Ordering::SeqCst);
    let mut stand = on(&disk, SMALL, WhenFull::Refuse);
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    let first = stand.serve(0);
    eventually("it is counted", || stand.metrics.usage_sync_failures.get() > 2);
    let second = stand.serve(1);
    disk.cannot_sync.store(false, Ordering::SeqCst);
    eventually("it reaches the disk", || disk.synced_bytes.load(Ordering::SeqCst) > 400);
    let crashed = stand.crashed();
    keeper.stop();
    let ledger = TestLedger::new(Mood::Well);
    let mut again = Stand::at(crashed, SMALL, WhenFull::Shed, Arc::new(RealDisk));
    store_all(&mut again, &ledger);
    store_all(&mut stand, &ledger);
    assert_eq!(ledger.rows().len(), 2);
    assert!([first, second].iter().all(|id| ledger.rows()[id].outcome == Outcome::Served));
}

#[test]
fn two_processes_never_own_one_journal() {
    let stand = Stand::new(SMALL);
    let metrics = Arc::new(Metrics::new().unwrap());
    let again = Journal::open(options(stand.folder.path(), SMALL), Arc::new(RealDisk), metrics);
    let error = again.map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Owned(_)));
    let path = stand.folder.path().join("journal").display().to_string();
    assert!(error.to_string().contains(&path) && error.to_string().contains("usage.journal_dir"), "{error}");
}

#[test]
fn damage_costs_what_it_hits_and_the_segment_is_kept_for_a_look() {
    let stand = Stand::new(SMALL);
    let ids: Vec<_> = (0..200).map(|n| stand.serve(n)).collect();
    let crashed = stand.crashed();
    let folder = crashed.path().join("journal");
    let names: Vec<_> = segments(&folder).into_keys().collect();
    assert!(names.len() > 5, "{names:?}");
    // A bit in the middle of one, a page of another, a third cut short, a fourth that is no segment at all.
    let change = |n: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(folder.join(&names[n])).unwrap();
        change(&mut bytes);
        fs::write(folder.join(&names[n]), bytes).unwrap();
    };
    change(0, &|bytes| bytes[1_000] ^= 4);
    change(1, &|bytes| bytes[512..1_024].fill(0));
    change(2, &|bytes| bytes.truncate(2_000));
    change(3, &|bytes| bytes.fill(0xff));
    let ledger = TestLedger::new(Mood::Well);
    let mut again = Stand::at(crashed.clone(), SMALL, WhenFull::Shed, Arc::new(RealDisk));
    store_all(&mut again, &ledger);
    let rows = ledger.rows();
    let whole = ids.iter().filter(|id| rows.get(id).is_some_and(|r| r.outcome == Outcome::Served)).count();
    // Each has some nineteen requests: the first segment loses one, the second a few, the third half of them, the fourth
    // all.
    assert!(whole >= 200 - 1 - 5 - 12 - 22 && whole < 200 - 20, "{whole}");
    assert!(rows.keys().all(|id| ids.contains(id)));
    assert!(again.metrics.usage_journal_damage.get() >= 2);
    JournalFlusher::start(Arc::clone(&again.journal)).unwrap().stop();
    let kept = segments(&folder.join("damaged"));
    assert!(kept.contains_key(&names[0]) && kept.contains_key(&names[1]), "{kept:?}");
    assert_eq!(segments(&folder).len(), 0, "nothing is read twice");
}

#[test]
fn a_segment_is_deleted_only_when_its_records_are_on_disk() {
    let disk = Arc::new(TestDisk::default());
    let mut stand = on(&disk, SMALL, WhenFull::Shed);
    let ledger = TestLedger::new(Mood::Well);
    let (long, pending) = stand.begin(0);
    let old = stand.segments().into_keys().next().unwrap();
    while stand.segments().len() < 3 {
        stand.serve(1);
    }
    store_all(&mut stand, &ledger);
    // The copy cannot be synced, and then the power fails: what was not synced is gone.
    disk.cannot_sync.store(true, Ordering::SeqCst);
    stand.reader.as_mut().unwrap().carry();
    let left = stand.crashed();
    for (name, _) in segments(&left.path().join("journal")).into_iter().filter(|(name, _)| *name != old) {
        fs::remove_file(left.path().join("journal").join(name)).unwrap();
    }
    let mut next = Stand::at(left, SMALL, WhenFull::Shed, Arc::new(RealDisk));
    store_all(&mut next, &ledger);
    assert_eq!(ledger.rows().get(&long).map(|row| row.outcome), Some(Outcome::Interrupted));
    // Here the process continues; once the disk works again, the old segment is released.
    disk.cannot_sync.store(false, Ordering::SeqCst);
    stand.reader.as_mut().unwrap().carry();
    store_all(&mut stand, &ledger);
    let ledger = TestLedger::new(Mood::Well);
    pending.complete(Outcome::Served, 200);
    store_all(&mut stand, &ledger);
    assert_eq!(ledger.rows()[&long].outcome, Outcome::Served);
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    let old = stand.journal.folder().join(old);
    eventually("the old segment is removed", || !old.exists());
    keeper.stop();
}
