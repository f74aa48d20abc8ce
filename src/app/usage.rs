//! The journal, its writer, and what they tell: how usage is wired.

use super::{Base, parts};
use crate::admin::Check;
use crate::config::Config;
use crate::counter::Counters;
use crate::metrics::{Metrics, UsageCount};
use crate::store::{Ledger, SpentRow, StoreError};
use crate::usage::journal::disk::RealDisk;
use crate::usage::journal::{JournalOptions, Keeper, OpenError};
use crate::usage::{Journal, Others, Seat, Seats, WhenFull, Writer, WriterOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a start may take to store what an earlier run left in the journal. The rest is counted from there.
const REPLAY_WITHIN: Duration = Duration::from_millis(250);
/// How often it is looked whether another process of this node has gone.
const LOOK_AT_SEATS_EVERY: Duration = Duration::from_millis(250);
/// Rows of spending on their way from the ledger.
const SPENT_BATCHES: usize = 4;

/// How the journals of this process are brought to the ledger.
#[derive(Clone)]
pub(super) struct Writing {
    seats: Seats,
    options: WriterOptions,
    ledger: Arc<dyn Ledger>,
    metrics: Arc<Metrics>,
    io: Handle,
    deadline: watch::Receiver<Option<Instant>>,
    /// Held by whoever writes what others have left, and by the process until it stops: then nobody begins any more.
    open: mpsc::WeakSender<()>,
}

/// The writer of this process's journal, and those of what others have left.
pub(super) struct Writers {
    pub(super) own: Writer,
    pub(super) left: Vec<Writer>,
}

/// Prepares all writing. When the process drops its end of the channel, no more is begun of what others have left; the
/// other end ends when all that was begun is done.
pub(super) fn writing(
    config: &Config,
    base: &Base,
    io: &Handle,
    deadline: watch::Receiver<Option<Instant>>,
) -> (Writing, (mpsc::Sender<()>, mpsc::Receiver<()>)) {
    let options = JournalOptions {
        folder: config.usage.journal_dir.clone(),
        aside: config.usage.journal_dir.clone(),
        max_bytes: config.usage.journal_max_bytes,
        segment_bytes: config.usage.journal_segment_bytes,
        sync_interval: config.usage.journal_sync_interval,
        threads: parts::threads(config.proxy.threads),
        node: config.node.name.as_str().into(),
        boot: base.boot,
    };
    let metrics = Arc::clone(&base.metrics);
    let seats = Seats::new(options, Arc::new(RealDisk), Arc::clone(&metrics));
    let options =
        WriterOptions { batch_records: config.usage.batch_records, batch_delay: config.usage.batch_delay };
    let (open, all_written) = mpsc::channel(1);
    let ledger: Arc<dyn Ledger> = base.store.clone();
    let writing =
        Writing { seats, options, ledger, metrics, io: io.clone(), deadline, open: open.downgrade() };
    (writing, (open, all_written))
}

impl Writing {
    /// Takes the seat of a process that is alone, or a free one beside another process.
    pub(super) fn begin(&self, alone: bool) -> Result<Writers, OpenError> {
        if !alone {
            return Ok(Writers { own: self.writer(self.seats.beside()?), left: Vec::new() });
        }
        let (own, left) = self.seats.alone()?;
        let left = left.into_iter().map(|seat| self.writer(seat).of_the_rest());
        Ok(Writers { own: self.writer(own), left: left.collect() })
    }

    fn writer(&self, (_, reader): Seat) -> Writer {
        let (ledger, metrics) = (Arc::clone(&self.ledger), Arc::clone(&self.metrics));
        Writer::new(reader, ledger, metrics, self.options, self.deadline.clone())
    }

    /// Runs a writer on a thread of its own: unpacking many records must not keep I/O waiting.
    pub(super) fn write(&self, writer: Writer) -> JoinHandle<()> {
        let handle = self.io.clone();
        self.io.spawn_blocking(move || handle.block_on(writer.run()))
    }

    /// Brings to the ledger what is left in a seat that has no owner but this process, and lets go of the seat.
    pub(super) fn write_the_rest(&self, writer: Writer) -> JoinHandle<()> {
        let (handle, open) = (self.io.clone(), self.open.upgrade());
        self.io.spawn_blocking(move || {
            // The process stops: what is left is the next one's.
            let Some(open) = open else { return };
            let journal = Arc::clone(writer.journal());
            tracing::info!(folder = %journal.folder().display(), "usage that another process left is brought to the ledger");
            // Nobody writes to it; its keeper removes what is stored.
            journal.close();
            match Keeper::start(journal) {
                Ok(keeper) => {
                    handle.block_on(writer.run());
                    keeper.stop();
                }
                Err(error) => tracing::error!(%error, "what another process left stays in its journal"),
            }
            drop(open);
        })
    }

    /// Writes what is left in the seats of this node's other processes as they go, until it is the only one.
    pub(super) async fn follow_seats(self) {
        while self.open.strong_count() > 0 {
            let Others { left, are_alive } = self.seats.others();
            for seat in left {
                if let Err(error) = self.write_the_rest(self.writer(seat).of_the_rest()).await {
                    tracing::error!(%error, "what another process left stays in its journal");
                }
            }
            if !are_alive {
                return;
            }
            tokio::time::sleep(LOOK_AT_SEATS_EVERY).await;
        }
    }
}

/// Sets the counters to what the ledger knows and to what the journal has spent beyond that, before the first request.
pub(super) async fn restore(
    base: &Base,
    counters: &Counters,
    writers: &mut Writers,
) -> Result<(), StoreError> {
    let at = base.clock.now().wall;
    let mut unstored = writers.own.replay(REPLAY_WITHIN, at).await;
    for left in &mut writers.left {
        unstored.absorb(left.replay(REPLAY_WITHIN, at).await);
    }
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
