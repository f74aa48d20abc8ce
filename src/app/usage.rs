//! The journal, its writer, and what they tell: how usage is wired.

use super::{Base, StartError, parts};
use crate::admin::Check;
use crate::config::Config;
use crate::counter::Counters;
use crate::metrics::{Metrics, UsageCount};
use crate::store::{SpentRow, StoreError};
use crate::usage::journal::JournalOptions;
use crate::usage::journal::disk::RealDisk;
use crate::usage::{Journal, WhenFull, Writer, WriterOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a start may take to store what an earlier run left in the journal. The rest is counted from there.
const REPLAY_WITHIN: Duration = Duration::from_millis(250);
/// Rows of spending on their way from the ledger.
const SPENT_BATCHES: usize = 4;

/// The writer of the ledger, with the journal that it empties.
pub(super) fn writer(
    config: &Config,
    base: &Base,
    deadline: watch::Receiver<Option<Instant>>,
) -> Result<Writer, StartError> {
    let options = JournalOptions {
        folder: config.usage.journal_dir.clone(),
        max_bytes: config.usage.journal_max_bytes,
        segment_bytes: config.usage.journal_segment_bytes,
        sync_interval: config.usage.journal_sync_interval,
        threads: parts::threads(config.proxy.threads),
        node: config.node.name.as_str().into(),
        boot: base.boot,
    };
    let (_, reader) = Journal::open(options, Arc::new(RealDisk), Arc::clone(&base.metrics))?;
    let options =
        WriterOptions { batch_records: config.usage.batch_records, batch_delay: config.usage.batch_delay };
    Ok(Writer::new(reader, base.store.clone(), Arc::clone(&base.metrics), options, deadline))
}

/// Runs the writer on a thread of its own: unpacking many records must not keep I/O waiting.
pub(super) fn write(writer: Writer, io: &Handle) -> JoinHandle<()> {
    let handle = io.clone();
    io.spawn_blocking(move || handle.block_on(writer.run()))
}

/// Sets the counters to what the ledger knows and to what the journal has spent beyond that, before the first request.
pub(super) async fn restore(base: &Base, counters: &Counters, writer: &mut Writer) -> Result<(), StoreError> {
    let at = base.clock.now().wall;
    let mut unstored = writer.replay(REPLAY_WITHIN, at).await;
    let (to, mut rows) = mpsc::channel::<Vec<SpentRow>>(SPENT_BATCHES);
    let read = base.store.spent(at, to);
    let put = async {
        while let Some(batch) = rows.recv().await {
            for mut row in batch {
                unstored.add_to(&mut row);
                counters.restore(&row, at);
            }
        }
        unstored
    };
    let (read, unstored) = tokio::join!(read, put);
    unstored.into_rows().for_each(|row| counters.restore(&row, at));
    read
}

pub(super) const fn when_full(config: &Config) -> WhenFull {
    match config.usage.when_full {
        crate::config::WhenFull::Shed => WhenFull::Shed,
        crate::config::WhenFull::Refuse => WhenFull::Refuse,
    }
}

/// How usage is doing. Only a node that refuses requests because its journal is full is not ready.
pub(super) fn checks(metrics: &Metrics, journal: &Journal, refuses_when_full: bool) -> [Check; 2] {
    let UsageCount { accepted, stored, in_journal, shed, set_aside } = metrics.usage();
    let is_full = journal.is_full();
    let room = if is_full { "full" } else { "has room" };
    let journal_now = format!("{room}; {} bytes, {} records wait", journal.bytes(), journal.waiting());
    let identity = format!(
        "accepted {accepted} = stored {stored} + in journal {in_journal} + shed {shed} + set aside {set_aside}"
    );
    [
        Check { name: "usage_journal", ok: !(is_full && refuses_when_full), detail: journal_now },
        Check { name: "usage", ok: true, detail: identity },
    ]
}
