//! Seats: one journal, several processes of one node, and never two at one seat.

use crate::stand::{Mood, SMALL, Stand, TestLedger, options, segments};
use keygate::metrics::Metrics;
use keygate::store::{Ledger, Outcome};
use keygate::usage::journal::disk::RealDisk;
use keygate::usage::journal::{Keeper, OpenError};
use keygate::usage::{Seats, Writer, WriterOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What another process sees of the journal in `folder`.
fn process(folder: &Path) -> Seats {
    Seats::new(options(folder, SMALL), Arc::new(RealDisk), Arc::new(Metrics::new().unwrap()))
}

#[test]
fn one_that_takes_over_has_a_seat_of_its_own_and_strangers_have_none() {
    let stand = Stand::new(SMALL);
    let folder = Arc::clone(&stand.folder);
    let is_owned = || matches!(process(folder.path()).alone(), Err(OpenError::Owned(it)) if it == folder.path().join("journal"));
    assert!(is_owned());
    let second = process(folder.path());
    let seat = second.beside().unwrap();
    assert_eq!(seat.0.folder(), folder.path().join("journal/seat-2"));
    assert!(is_owned() && second.others().are_alive);
    drop(stand);
    assert!(is_owned(), "the first seat is free, and the node is not");
    let others = second.others();
    assert!(!others.are_alive && others.left.is_empty(), "nothing was written there");
    let third = process(folder.path()).beside().unwrap();
    assert_eq!(third.0.folder(), folder.path().join("journal"));
    drop((seat, third));
    assert!(process(folder.path()).alone().is_ok());
}

#[test]
fn there_are_four_seats() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<_> = (0..4).map(|_| process(folder.path()).beside().unwrap()).collect();
    assert!(matches!(process(folder.path()).beside(), Err(OpenError::Owned(_))));
    drop(all);
}

#[tokio::test(start_paused = true)]
async fn what_a_process_leaves_in_its_seat_the_next_one_stores_once() {
    let stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Gone);
    let served: Vec<_> = (0..50).map(|n| stand.serve(n)).collect();
    let (open, _pending) = stand.begin(50);
    let crashed = stand.crashed();

    let metrics = Arc::new(Metrics::new().unwrap());
    let next = Seats::new(options(crashed.path(), SMALL), Arc::new(RealDisk), Arc::clone(&metrics));
    // It had the second seat.
    std::fs::rename(crashed.path().join("journal"), crashed.path().join("seat-2")).unwrap();
    std::fs::create_dir(crashed.path().join("journal")).unwrap();
    std::fs::rename(crashed.path().join("seat-2"), crashed.path().join("journal/seat-2")).unwrap();
    let (own, mut left) = next.alone().unwrap();
    assert_eq!((left.len(), own.0.bytes()), (1, 0));
    let (journal, reader) = left.remove(0);
    let (stop, stopped) = watch::channel(None);
    let options = WriterOptions { batch_records: 7, batch_delay: Duration::from_millis(1) };
    let to: Arc<dyn Ledger> = ledger.clone();
    let running =
        tokio::spawn(Writer::new(reader, to, Arc::clone(&metrics), options, stopped).of_the_rest().run());
    ledger.asked(3).await;
    ledger.set(Mood::Well);
    running.await.unwrap();
    drop(stop);
    let rows = ledger.rows();
    assert_eq!(rows.len(), 51);
    assert!(served.iter().all(|id| rows[id].outcome == Outcome::Served));
    assert_eq!(rows[&open].outcome, Outcome::Interrupted);
    let usage = metrics.usage();
    assert_eq!((usage.accepted, usage.stored, usage.in_journal), (51, 51, 0));
    journal.close();
    Keeper::start(journal).unwrap().stop();
    assert_eq!(segments(&crashed.path().join("journal/seat-2")).len(), 0);
    assert!(next.others().left.is_empty());
}
