//! The writer: at-least-once delivery to a ledger that may be unreachable, not answer, or refuse a record, which stores
//! each record once.

use crate::stand::{Mood, NOW, SMALL, Sizes, Stand, TestLedger};
use keygate::model::tokens::{MeterReading, ReadingSource, TokenCounts};
use keygate::model::usage::Outcome;
use keygate::policy::prices::{ModelPrice, Rates};
use keygate::usage::journal::JournalFlusher;
use keygate::usage::journal::disk::RealDisk;
use keygate::usage::{JournalTotals, PricesInForce, WhenFull};
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn served_requests_are_stored_once_and_the_journal_is_emptied() {
    let mut stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Well);
    let (writer, stop) = stand.writer(&ledger, 10);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    let served: Vec<_> = (0..100).map(|n| stand.serve(n)).collect();
    assert!(flush.flushed(PATIENCE).await);
    stand.assert_identity();
    let rows = ledger.rows();
    assert!(served.iter().all(|id| rows.contains_key(id)) && rows.len() == 100);
    stop.send_replace(Some(Instant::now()));
    running.await.unwrap();
    JournalFlusher::start(Arc::clone(&stand.journal)).unwrap().stop();
    assert_eq!(stand.segments().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_metered_request_costs_what_its_model_costs_when_it_ends() {
    let mut stand = Stand::new(SMALL);
    let prices = Arc::new(PricesInForce::default());
    let of = |input| {
        let rates = Rates { input, ..Rates::default() };
        [ModelPrice { model: "gpt-4o*".into(), rates, tiers: Vec::new() }]
    };
    prices.set_stored(of(1_000_000).into());
    stand.recorder = stand.recorder.pricing(Arc::clone(&prices));
    let reading = |served: &str, cost_nano| MeterReading {
        tokens: TokenCounts { total: 7, input: 7, ..TokenCounts::default() },
        model_requested: "gpt-4o".into(),
        model_served: served.into(),
        provider_request_id: "".into(),
        cost_nano,
        source: ReadingSource::Reported,
    };
    let serve = |stand: &Stand, readings: &[MeterReading]| {
        let (id, mut pending) = stand.begin(1);
        readings.iter().for_each(|reading| _ = pending.metered("app", reading.clone()));
        pending.complete(Outcome::Served, 200);
        id
    };
    let unnamed = MeterReading { model_requested: "".into(), ..reading("other", None) };
    let cases = [
        (serve(&stand, &[reading("gpt-4o-mini", None)]), Some(7)),
        (serve(&stand, &[reading("unknown", None)]), Some(7)),
        (serve(&stand, &[reading("gpt-4o", Some(90))]), Some(90)),
        (serve(&stand, std::slice::from_ref(&unnamed)), None),
        (serve(&stand, &[MeterReading { cost_nano: Some(5), ..unnamed }]), Some(5)),
        (serve(&stand, &[]), None),
    ];
    prices.set_file(&of(2_000_000));
    let later = serve(&stand, &[reading("gpt-4o", None)]);
    let cost = |model: &str| stand.metrics.cost_nano.with_label_values(&["app", model]).get();
    assert_eq!([cost("gpt-4o*"), cost("other")], [7 + 7 + 90 + 14, 5]);
    assert_eq!(stand.metrics.unpriced.with_label_values(&["app"]).get(), 1);

    let ledger = TestLedger::new(Mood::Well);
    let (writer, _stop) = stand.writer(&ledger, 10);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    assert!(flush.flushed(PATIENCE).await);
    running.abort();
    let rows = ledger.rows();
    for (id, expected) in cases.into_iter().chain([(later, Some(14))]) {
        assert_eq!(rows[&id].cost_nano, expected, "{:?}", rows[&id]);
    }
    assert_eq!((rows[&later].tokens_used, rows[&later].model.as_deref()), (7, Some("gpt-4o")));
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_gone_gets_it_all_when_it_is_back() {
    let mut stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Gone);
    let (writer, _stop) = stand.writer(&ledger, 10);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    (0..50).for_each(|n| stand.serves(n));
    ledger.asked(5).await;
    assert!(!flush.flushed(Duration::from_secs(10)).await);
    assert_eq!(stand.metrics.usage().in_journal, 50);
    stand.assert_identity();
    ledger.set(Mood::Well);
    assert!(flush.flushed(PATIENCE).await);
    stand.assert_identity();
    assert_eq!((ledger.rows().len(), stand.metrics.usage().stored), (50, 50));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_busy_node_writes_more_at_once_and_a_quiet_or_full_one_soon() {
    const MILLI: Duration = Duration::from_millis(1);
    for (sizes, busy) in [(SMALL, 200 * MILLI), (Sizes { segments: 40, ..SMALL }, MILLI)] {
        let mut stand = Stand::new(sizes);
        let ledger = TestLedger::new(Mood::Well);
        let (writer, _stop) = stand.writer(&ledger, 10_000);
        (0..400).for_each(|n| stand.serves(n));
        let running = tokio::spawn(writer.run());
        ledger.asked(1).await;
        // The pause of the round after one with 400 records, and of the round after one with a single record.
        for (round, wait) in [(2, busy), (3, MILLI)] {
            let begun = Instant::now();
            stand.serves(400);
            ledger.asked(round).await;
            let took = begun.elapsed();
            assert!(took >= wait && took <= wait + MILLI, "{took:?} in round {round}, not {wait:?}");
        }
        stand.assert_identity();
        running.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_off_after_the_commit_counts_nothing_twice() {
    let mut stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Forgetful);
    let (writer, _stop) = stand.writer(&ledger, 10);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    (0..25).for_each(|n| stand.serves(n));
    ledger.asked(3).await;
    ledger.set(Mood::Well);
    assert!(flush.flushed(PATIENCE).await);
    stand.assert_identity();
    assert_eq!((ledger.rows().len(), stand.metrics.usage().stored), (25, 25));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_refused_is_set_aside_alone_and_blocks_nothing() {
    let mut stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Picky("/13"));
    let (writer, _stop) = stand.writer(&ledger, 64);
    let flush = writer.flush();
    let served: Vec<_> = (0..100).map(|n| stand.serve(n)).collect();
    let running = tokio::spawn(writer.run());
    assert!(flush.flushed(PATIENCE).await);
    let rows = ledger.rows();
    assert_eq!(rows.len(), 99);
    assert!(!rows.contains_key(&served[13]));
    assert_eq!((stand.metrics.usage().set_aside, stand.metrics.usage().in_journal), (1, 0));
    stand.assert_identity();
    // A single failing record could be the store's fault, so it takes a little longer.
    let alone = stand.serve(13);
    assert!(flush.flushed(PATIENCE).await);
    stand.assert_identity();
    let file = fs::read_to_string(stand.journal.folder().join("set-aside.ndjson")).unwrap();
    let lines: Vec<serde_json::Value> =
        file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> = lines.iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, [served[13].to_string(), alone.to_string()]);
    assert_eq!((&lines[0]["endpoint"], &lines[0]["status_code"]), (&"/v1/app/13".into(), &200.into()));
    assert!(lines[0]["refused_because"].as_str().unwrap().contains("a path nobody likes"));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_refuses_everything_for_its_own_reasons_gets_it_all_when_it_is_mended() {
    let mut stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Broken);
    let (writer, _stop) = stand.writer(&ledger, 16);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    (0..100).for_each(|n| stand.serves(n));
    // Long enough for many tries, however small the parts.
    ledger.asked(50).await;
    assert!(!flush.has_replayed(Duration::from_secs(10)).await);
    let usage = stand.metrics.usage();
    assert_eq!((usage.in_journal, usage.set_aside, usage.stored), (100, 0, 0));
    assert!(!stand.journal.folder().join("set-aside.ndjson").exists());
    ledger.set(Mood::Well);
    assert!(flush.flushed(PATIENCE).await && flush.has_replayed(PATIENCE).await);
    stand.assert_identity();
    assert_eq!((ledger.rows().len(), stand.metrics.usage().stored), (100, 100));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_too_slow_for_a_batch_gets_parts_and_whole_batches_when_it_is_faster() {
    for copes_with in [1, 5, 63] {
        let mut stand = Stand::new(SMALL);
        let ledger = TestLedger::new(Mood::Slow(copes_with));
        let (writer, _stop) = stand.writer(&ledger, 64);
        let flush = writer.flush();
        (0..200).for_each(|n| stand.serves(n));
        let begun = Instant::now();
        let running = tokio::spawn(writer.run());
        assert!(flush.flushed(10 * PATIENCE).await);
        stand.assert_identity();
        assert_eq!((ledger.rows().len(), stand.metrics.usage().set_aside), (200, 0));
        let sizes = ledger.take_sizes();
        assert!(sizes.iter().all(|size| *size <= copes_with), "{sizes:?}");
        // After each failure it is not called for a while, and then mostly not with the failing records.
        let failed = stand.metrics.usage_store_failures.get();
        assert!(begun.elapsed() >= Duration::from_millis(25) * u32::try_from(failed).unwrap());
        assert!(failed <= 6 + sizes.len() as u64, "{failed} failures beside {sizes:?}");
        ledger.set(Mood::Well);
        (0..1_000).for_each(|n| stand.serves(n));
        assert!(flush.flushed(PATIENCE).await);
        assert!(ledger.take_sizes().contains(&64), "it copes with whole batches again");
        stand.assert_identity();
        running.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn records_not_stored_at_shutdown_are_stored_by_the_next_process() {
    let mut stand = Stand::new(SMALL);
    let ledger = TestLedger::new(Mood::Gone);
    let (writer, stop) = stand.writer(&ledger, 10);
    let running = tokio::spawn(writer.run());
    let (cut_off, pending) = stand.begin(0);
    (1..30).for_each(|n| stand.serves(n));
    drop(pending);
    ledger.asked(1).await;
    stop.send_replace(Some(Instant::now() + Duration::from_secs(3)));
    running.await.unwrap();
    stand.assert_identity();
    assert_eq!(stand.metrics.usage().shed, 0, "nothing is lost");
    JournalFlusher::start(Arc::clone(&stand.journal)).unwrap().stop();
    let Stand { folder, journal, recorder, .. } = stand;
    drop((journal, recorder));

    let mut next = Stand::at(folder, SMALL, WhenFull::Shed, Arc::new(RealDisk));
    ledger.set(Mood::Well);
    let (mut writer, _stop) = next.writer(&ledger, 10);
    let spent = writer.replay(PATIENCE, JournalTotals::new(NOW, &HashMap::new())).await;
    assert_eq!(spent.into_rows().count(), 0, "all of it is in the ledger");
    assert_eq!(ledger.rows().len(), 30);
    assert_eq!(ledger.rows()[&cut_off].outcome, Outcome::Interrupted);
    next.assert_identity();
    assert_eq!(next.metrics.usage().stored, 30);
}

#[tokio::test(start_paused = true)]
async fn records_not_stored_at_start_count_once_in_limits() {
    let stand = Stand::new(SMALL);
    (0..40).for_each(|n| stand.serves(n));
    let (_, mut pending) = stand.begin(40);
    pending.given_back();
    pending.complete(Outcome::UpstreamFailed, 502);
    let (_open, _never_ends) = stand.begin(41);
    let mut next = Stand::at(stand.crashed(), SMALL, WhenFull::Shed, Arc::new(RealDisk));
    let ledger = TestLedger::new(Mood::Gone);
    let (mut writer, _stop) = next.writer(&ledger, 10);
    let rows: Vec<_> =
        writer.replay(PATIENCE, JournalTotals::new(NOW, &HashMap::new())).await.into_rows().collect();
    assert_eq!(rows.len(), 2, "a key and a workspace");
    for row in rows {
        assert_eq!(row.used, [41; 6], "forty served and one cut off, which may have been answered");
    }
    assert_eq!(next.metrics.usage().in_journal, 42);
    next.assert_identity();
    ledger.set(Mood::Well);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    assert!(flush.flushed(PATIENCE).await);
    next.assert_identity();
    assert_eq!((ledger.rows().len(), next.metrics.usage().stored), (42, 42));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_lasts_does_not_keep_what_was_written_beside_it() {
    let mut stand = Stand::new(Sizes { segments: 8, ..SMALL });
    let ledger = TestLedger::new(Mood::Well);
    let (writer, _stop) = stand.writer(&ledger, 10);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    let (id, pending) = stand.begin(0);
    // Some ten times the capacity of the journal.
    for n in 1..1_500 {
        stand.serve(n);
        if n % 10 == 0 {
            assert!(flush.flushed(PATIENCE).await);
            // Requests come slowly enough for files to be removed.
            while stand.journal.bytes() > 5 * 4_096 {
                assert!(flush.flushed(PATIENCE).await);
                std::thread::yield_now();
            }
        }
    }
    assert_eq!(stand.metrics.usage().shed, 0);
    let crashed = stand.crashed();
    pending.complete(Outcome::Served, 200);
    assert!(flush.flushed(PATIENCE).await);
    assert_eq!(ledger.rows()[&id].outcome, Outcome::Served);
    stand.assert_identity();
    running.abort();
    keeper.stop();
    // Had it died before, the request would be known as well.
    let mut next = Stand::at(crashed, SMALL, WhenFull::Shed, Arc::new(RealDisk));
    let late = TestLedger::new(Mood::Well);
    let (mut writer, _stop) = next.writer(&late, 10);
    drop(writer.replay(PATIENCE, JournalTotals::new(NOW, &HashMap::new())).await);
    assert_eq!(late.rows()[&id].outcome, Outcome::Interrupted);
}

#[tokio::test]
async fn threads_write_at_the_same_time_and_a_request_may_end_on_another_than_it_began_on() {
    let mut stand = Stand::new(Sizes { threads: 4, segment: 16_384, ..SMALL });
    let ledger = TestLedger::new(Mood::Well);
    let (writer, _stop) = stand.writer(&ledger, 100);
    let flush = writer.flush();
    let running = tokio::spawn(writer.run());
    let keeper = JournalFlusher::start(Arc::clone(&stand.journal)).unwrap();
    let stand = Arc::new(stand);
    let begun = tokio::task::spawn_blocking({
        let stand = Arc::clone(&stand);
        move || {
            let all = std::thread::scope(|scope| {
                let begin = |from: u32| (from..from + 500).map(|n| stand.begin(n)).collect::<Vec<_>>();
                let threads: Vec<_> = (0..4).map(|t| scope.spawn(move || begin(t * 500))).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
            });
            let ids: Vec<_> = all.iter().flatten().map(|(id, _)| *id).collect();
            std::thread::scope(|scope| {
                for part in all.into_iter().rev() {
                    let end = |(_, pending): (_, keygate::usage::PendingRecord)| {
                        pending.complete(Outcome::Served, 200)
                    };
                    scope.spawn(move || part.into_iter().for_each(end));
                }
            });
            ids
        }
    });
    let ids = begun.await.unwrap();
    assert!(flush.flushed(PATIENCE).await);
    let rows = ledger.rows();
    assert_eq!(rows.len(), 2_000);
    assert!(ids.iter().all(|id| rows[id].outcome == Outcome::Served));
    stand.assert_identity();
    running.abort();
    keeper.stop();
}
