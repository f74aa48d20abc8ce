//! Slots: one journal, several processes of one node, and never two processes in one slot.

use crate::stand::{Mood, SMALL, Stand, TestLedger, options, segments};
use keygate::metrics::Metrics;
use keygate::model::usage::Outcome;
use keygate::store::Ledger;
use keygate::usage::journal::disk::RealDisk;
use keygate::usage::journal::{JournalFlusher, OpenError};
use keygate::usage::{JournalSlots, LedgerWriter, LedgerWriterOptions, PendingReplays};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;

/// Another process's view of the journal in `folder`.
fn process(folder: &Path) -> JournalSlots {
    JournalSlots::new(options(folder, SMALL), Arc::new(RealDisk), Arc::new(Metrics::new().unwrap()))
}

/// What another process would find if this one died now and had had the second slot.
fn crashed_in_second_slot(stand: &Stand) -> Arc<TempDir> {
    let crashed = stand.crashed();
    let (journal, aside) = (crashed.path().join("journal"), crashed.path().join("aside"));
    fs::rename(&journal, &aside).unwrap();
    fs::create_dir(&journal).unwrap();
    fs::rename(&aside, journal.join("slot-2")).unwrap();
    crashed
}

#[test]
fn an_upgraded_process_has_a_slot_of_its_own_and_others_have_none() {
    let stand = Stand::new(SMALL);
    let folder = Arc::clone(&stand.folder);
    let is_owned = || matches!(process(folder.path()).open_exclusive(), Err(OpenError::Owned(it)) if it == folder.path().join("journal"));
    assert!(is_owned());
    let second = process(folder.path());
    let slot = second.open_free().unwrap();
    assert_eq!(slot.0.folder(), folder.path().join("journal/slot-2"));
    assert!(is_owned() && second.others().are_alive);
    drop(stand);
    assert!(is_owned(), "the first slot is free, and the node is not");
    let others = second.others();
    assert!(!others.are_alive && others.left.is_empty(), "nothing was written there");
    let third = process(folder.path()).open_free().unwrap();
    assert_eq!(third.0.folder(), folder.path().join("journal"));
    drop((slot, third));
    assert!(process(folder.path()).open_exclusive().is_ok());
}

#[test]
fn a_fifth_process_finds_no_free_journal_slot() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<_> = (0..4).map(|_| process(folder.path()).open_free().unwrap()).collect();
    assert!(matches!(process(folder.path()).open_free(), Err(OpenError::Owned(_))));
    drop(all);
}

#[tokio::test(start_paused = true)]
async fn records_left_in_a_journal_slot_are_stored_once_by_the_next_process() {
    let stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Gone);
    let served: Vec<_> = (0..50).map(|n| stand.serve(n)).collect();
    let (open, _pending) = stand.begin(50);
    let crashed = crashed_in_second_slot(&stand);

    let metrics = Arc::new(Metrics::new().unwrap());
    let next = JournalSlots::new(options(crashed.path(), SMALL), Arc::new(RealDisk), Arc::clone(&metrics));
    let (own, mut left) = next.open_exclusive().unwrap();
    assert_eq!((left.len(), own.0.bytes()), (1, 0));
    let (journal, reader) = left.remove(0);
    let (stop, stopped) = watch::channel(None);
    let options = LedgerWriterOptions { batch_records: 7, batch_delay: Duration::from_millis(1) };
    let to: Arc<dyn Ledger> = ledger.clone();
    let writer = LedgerWriter::new(reader, to, Arc::clone(&metrics), options, stopped).of_the_rest();
    let replays = PendingReplays::default();
    assert!(replays.are_done(Duration::ZERO).await, "nobody has left anything");
    replays.add(writer.flush());
    let running = tokio::spawn(writer.run());
    ledger.asked(3).await;
    assert!(!replays.are_done(Duration::from_secs(5)).await);
    ledger.set(Mood::Well);
    assert!(replays.are_done(Duration::from_secs(60)).await);
    assert_eq!(ledger.rows().len(), 51);
    running.await.unwrap();
    assert!(replays.are_done(Duration::ZERO).await, "for ever");
    drop(stop);
    let rows = ledger.rows();
    assert_eq!(rows.len(), 51);
    assert!(served.iter().all(|id| rows[id].outcome == Outcome::Served));
    assert_eq!(rows[&open].outcome, Outcome::Interrupted);
    let usage = metrics.usage();
    assert_eq!((usage.accepted, usage.stored, usage.in_journal), (51, 51, 0));
    journal.close();
    JournalFlusher::start(journal).unwrap().stop();
    assert_eq!(segments(&crashed.path().join("journal/slot-2")).len(), 0);
    assert!(next.others().left.is_empty());
}

#[tokio::test(start_paused = true)]
async fn set_aside_files_are_in_the_configured_folder_whatever_the_slot() {
    let stand = Stand::new(SMALL);
    (0..100).for_each(|n| stand.serves(n));
    let crashed = crashed_in_second_slot(&stand);
    let folder = crashed.path().join("journal");
    let slot = folder.join("slot-2");
    let damaged = segments(&slot).into_keys().next().unwrap();
    let mut bytes = fs::read(slot.join(&damaged)).unwrap();
    bytes[1_000] ^= 4;
    fs::write(slot.join(&damaged), bytes).unwrap();

    let metrics = Arc::new(Metrics::new().unwrap());
    let next = JournalSlots::new(options(crashed.path(), SMALL), Arc::new(RealDisk), Arc::clone(&metrics));
    let (_own, mut left) = next.open_exclusive().unwrap();
    let (journal, reader) = left.remove(0);
    let (_stop, stopped) = watch::channel(None);
    let options = LedgerWriterOptions { batch_records: 64, batch_delay: Duration::from_millis(1) };
    let ledger: Arc<dyn Ledger> = TestLedger::new(Mood::Picky("/9"));
    LedgerWriter::new(reader, ledger, Arc::clone(&metrics), options, stopped).of_the_rest().run().await;
    journal.close();
    JournalFlusher::start(journal).unwrap().stop();
    assert!(segments(&folder.join("damaged")).contains_key(&damaged));
    let set_aside = fs::read_to_string(folder.join("set-aside.ndjson")).unwrap();
    let lines = set_aside.lines().count() as u64;
    // Nine and ninety to ninety-nine, except for damaged ones.
    assert!(lines == metrics.usage().set_aside && (10..=11).contains(&lines), "{lines}");
    let in_slot: Vec<_> = fs::read_dir(&slot).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(in_slot, ["lock"]);
}
