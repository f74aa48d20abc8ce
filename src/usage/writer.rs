//! Copies records from the journal to the ledger in batches, and retries each batch until it is stored.

use super::JournalTotals;
use super::RejectedRecords;
use super::journal::{Journal, JournalReader, RecordBatch};
use crate::metrics::Metrics;
use crate::model::id::fill_random;
use crate::store::{Ledger, StoreError};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// First delay after a failure; doubled each time up to [`BACKOFF_MAX`]. Each delay is reduced by a random part of up to a
/// half.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How often a record is refused for its content before it is set aside, if nothing else was stored with it: the store may
/// be at fault.
const REFUSALS_MAX: u32 = 5;
/// A round waits this much longer for each record of the previous one, up to [`BUSY_DELAY_MAX`]. At high load, records of
/// the same key then share a batch, and its roll-ups are written once.
const DELAY_PER_RECORD: Duration = Duration::from_micros(500);
const BUSY_DELAY_MAX: Duration = Duration::from_millis(500);
/// Every so many rounds, or when more than half of the journal is in use, records that alone keep old segments are carried
/// over.
const CARRY_EVERY: u32 = 20;

/// Options of the writer.
#[derive(Clone, Copy, Debug)]
pub struct LedgerWriterOptions {
    /// Most records in a batch.
    pub batch_records: usize,
    /// How long a record waits for its batch at low load. A busy node takes up to half a second.
    pub batch_delay: Duration,
}

/// The writer of the ledger.
pub struct LedgerWriter {
    reader: JournalReader,
    ledger: Arc<dyn Ledger>,
    metrics: Arc<Metrics>,
    options: LedgerWriterOptions,
    /// Records given to the ledger at once: fewer while it cannot handle a whole batch.
    at_once: usize,
    /// None while running; after a stop, the instant after which nothing is retried.
    deadline: watch::Receiver<Option<Instant>>,
    set_aside: RejectedRecords,
    /// Read by [`LedgerWriter::replay`] and not stored yet.
    unstored: RecordBatch,
    /// Whether it ends when everything is stored.
    only_the_rest: bool,
    flush: WriterProgress,
    done: watch::Sender<LastRound>,
}

/// Waits for the writer.
#[derive(Clone, Debug)]
pub struct WriterProgress {
    asked: Arc<AtomicU64>,
    wake: Arc<Notify>,
    done: watch::Receiver<LastRound>,
    made: Instant,
}

/// The last round in which everything was stored.
#[derive(Clone, Copy, Debug, Default)]
struct LastRound {
    /// The number of requests for a flush before it began.
    asked: u64,
    began: Option<Instant>,
}

/// The deadline has passed. Records that are not stored stay in the journal.
struct DeadlinePassed;

/// Increasing delays.
struct Backoff(Duration);

impl LedgerWriter {
    /// A writer that gives up at `deadline`, once this is set.
    pub fn new(
        reader: JournalReader,
        ledger: Arc<dyn Ledger>,
        metrics: Arc<Metrics>,
        options: LedgerWriterOptions,
        deadline: watch::Receiver<Option<Instant>>,
    ) -> Self {
        let set_aside = RejectedRecords::of(reader.journal().aside());
        let (done, seen) = watch::channel(LastRound::default());
        let flush =
            WriterProgress { asked: Arc::default(), wake: Arc::default(), done: seen, made: Instant::now() };
        let unstored = RecordBatch::default();
        let only_the_rest = false;
        let at_once = options.batch_records;
        Self {
            reader,
            ledger,
            metrics,
            options,
            at_once,
            deadline,
            set_aside,
            unstored,
            only_the_rest,
            flush,
            done,
        }
    }

    /// A writer for records that other processes left in a journal: it ends when they are stored.
    #[must_use]
    pub fn of_the_rest(self) -> Self {
        Self { only_the_rest: true, ..self }
    }

    /// The journal that it reads.
    pub const fn journal(&self) -> &Arc<Journal> {
        self.reader.journal()
    }

    /// A handle to wait for this writer.
    pub fn flush(&self) -> WriterProgress {
        self.flush.clone()
    }

    /// Stores records of earlier processes, for about `within` at most and until the first failure; [`LedgerWriter::run`]
    /// continues with the rest. Returns their totals, added to `spent`. Call this once, before `run`.
    ///
    /// A failed call of the store may have stored its batch all the same: limits then count at most that batch twice.
    pub async fn replay(&mut self, within: Duration, mut spent: JournalTotals) -> JournalTotals {
        let until = Instant::now() + within;
        let mut batch = RecordBatch::default();
        while self.reader.is_behind() && Instant::now() < until {
            batch.clear();
            self.reader.read(self.options.batch_records, &mut batch);
            if batch.is_empty() {
                continue;
            }
            if let Err(error) = self.ledger.append(&batch.records).await {
                tracing::warn!(%error, "cannot store usage records of an earlier run yet, retrying");
                batch.records.iter().for_each(|record| spent.add_record(record));
                self.halve_batch(batch.len());
                self.unstored = batch;
                break;
            }
            self.on_stored(&batch, 0..batch.len());
            self.reader.retire();
        }
        self.reader.rest(|admit, complete| spent.add(admit, complete));
        spent
    }

    /// Writes until the gateway stops and everything is stored, or until the deadline.
    pub async fn run(mut self) {
        let mut batch = std::mem::take(&mut self.unstored);
        let mut rounds = 0_u32;
        let mut stored = self.store(&batch).await;
        while stored.is_ok() {
            let began = Some(Instant::now());
            let done = LastRound { asked: self.flush.asked.load(Ordering::Acquire), began };
            // The sender of the deadline is gone: the startup failed.
            let is_alone = self.deadline.has_changed().is_err();
            let is_stopping = is_alone || self.only_the_rest || self.deadline.borrow().is_some();
            if is_stopping {
                self.reader.journal().close();
            }
            stored = self.round(&mut batch).await;
            let Ok(records) = stored else { break };
            self.done.send_replace(done);
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(CARRY_EVERY) || self.reader.journal().is_nearly_full() {
                self.reader.carry();
                self.reader.retire();
            }
            match is_stopping {
                true if records == 0 => break,
                true => {}
                false => self.wait_for_more(records).await,
            }
        }
        let left = self.reader.journal().waiting();
        if left > 0 {
            tracing::warn!(
                left,
                "shutdown timeout reached, usage records stay in the journal for the next start"
            );
        }
    }

    /// Stores what is in the journal now. Returns the number of records.
    async fn round(&mut self, batch: &mut RecordBatch) -> Result<usize, DeadlinePassed> {
        self.reader.begin_round();
        let mut records = 0;
        loop {
            batch.clear();
            let has_more = self.reader.read(self.options.batch_records, batch);
            records += self.store(batch).await?;
            self.reader.retire();
            if !has_more {
                return Ok(records);
            }
        }
    }

    /// Waits for the next round; the last one stored so many records.
    async fn wait_for_more(&mut self, records: usize) {
        let few = self.options.batch_delay;
        // A journal that is small or filling up is emptied as fast as possible.
        let many = if self.reader.journal().is_nearly_full() { few } else { few.max(BUSY_DELAY_MAX) };
        let delay = DELAY_PER_RECORD.saturating_mul(u32::try_from(records).unwrap_or(u32::MAX));
        tokio::select! {
            () = tokio::time::sleep(delay.clamp(few, many)) => {}
            () = self.flush.wake.notified() => {}
            _ = self.deadline.changed() => {}
        }
    }

    /// Retries until every record is stored or set aside. Records that are refused for their content are found by
    /// bisection; any other failure is the store's, and the records wait.
    async fn store(&mut self, batch: &RecordBatch) -> Result<usize, DeadlinePassed> {
        let mut backoff = Backoff(BACKOFF);
        let mut refusals = 0;
        let mut stored = 0;
        let mut todo: Vec<Range<usize>> = std::iter::once(0..batch.len()).collect();
        while !batch.is_empty() {
            let refused = self.store_parts(batch, todo, &mut stored, &mut backoff).await?;
            if refused.is_empty() {
                break;
            }
            self.metrics.usage_store_failures.inc();
            refusals += 1;
            if stored > 0 || refusals > REFUSALS_MAX {
                self.reject(batch, &refused);
                break;
            }
            // Nothing was accepted: the store may be at fault.
            todo = refused.into_iter().map(|(number, _)| number..number + 1).collect();
            self.wait(&mut backoff).await?;
        }
        Ok(batch.len())
    }

    /// Stores the parts of a batch, splitting those that are refused. Returns the records that are refused individually.
    async fn store_parts(
        &mut self,
        batch: &RecordBatch,
        mut todo: Vec<Range<usize>>,
        stored: &mut usize,
        backoff: &mut Backoff,
    ) -> Result<Vec<(usize, String)>, DeadlinePassed> {
        let mut refused = Vec::new();
        while let Some(mut part) = todo.pop() {
            if part.len() > self.at_once {
                let next = part.start + self.at_once;
                todo.push(next..part.end);
                part.end = next;
            }
            match self.ledger.append(&batch.records[part.clone()]).await {
                Ok(_) => {
                    *stored += part.len();
                    self.grow_batch();
                    self.on_stored(batch, part);
                    *backoff = Backoff(BACKOFF);
                }
                Err(error) if error.is_content() && part.len() == 1 => {
                    refused.push((part.start, error.to_string()));
                }
                Err(error) if error.is_content() => {
                    let middle = part.start + part.len() / 2;
                    todo.extend([middle..part.end, part.start..middle]);
                }
                Err(error) => {
                    self.report(&error, backoff);
                    self.halve_batch(part.len());
                    todo.push(part);
                    self.wait(backoff).await?;
                }
            }
        }
        Ok(refused)
    }

    /// The batch may have been too large for the statement timeout. For a store that is unreachable, smaller batches only
    /// cost some dozens of small calls when it is back.
    fn halve_batch(&mut self, failed: usize) {
        self.at_once = (failed / 2).max(1);
    }

    /// Grows slowly, so that a store with a limit is not overloaded each time.
    fn grow_batch(&mut self) {
        self.at_once = (self.at_once + self.at_once / 8 + 1).min(self.options.batch_records);
    }

    fn on_stored(&mut self, batch: &RecordBatch, numbers: Range<usize>) {
        let n = numbers.len();
        self.reader.acknowledge(batch, numbers);
        self.metrics.usage_stored.inc_by(count(n));
        self.reader.journal().on_records_settled(n);
    }

    fn reject(&mut self, batch: &RecordBatch, refused: &[(usize, String)]) {
        for (number, why) in refused {
            let record = &batch.records[*number];
            match self.reader.journal().open_file(|| self.set_aside.add(record, why)) {
                Ok(()) => {
                    self.metrics.usage_set_aside.inc();
                    tracing::error!(id = %record.id, why, "store rejected usage record, written to set-aside.ndjson");
                }
                Err(error) => {
                    self.metrics.usage_shed.inc();
                    tracing::error!(id = %record.id, why, %error, "store rejected usage record and it cannot be set aside, record lost");
                }
            }
            self.reader.acknowledge(batch, *number..number + 1);
            self.reader.journal().on_records_settled(1);
        }
    }

    /// Waits before a retry.
    async fn wait(&mut self, backoff: &mut Backoff) -> Result<(), DeadlinePassed> {
        let deadline = *self.deadline.borrow();
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(DeadlinePassed);
        }
        let wait = tokio::time::sleep(backoff.next());
        tokio::pin!(wait);
        tokio::select! {
            () = &mut wait => Ok(()),
            changed = self.deadline.changed() => changed.map_err(|_| DeadlinePassed),
        }
    }

    fn report(&self, error: &StoreError, backoff: &Backoff) {
        self.metrics.usage_store_failures.inc();
        if backoff.is_fresh() {
            tracing::warn!(%error, "cannot store usage records, they wait in the journal");
        }
    }
}

impl WriterProgress {
    /// Waits until every record of an earlier run is stored. False: not `within` that time.
    pub async fn has_replayed(&self, within: Duration) -> bool {
        let mut done = self.done.clone();
        matches!(tokio::time::timeout(within, done.wait_for(|done| done.began.is_some())).await, Ok(Ok(_)))
    }

    /// How long ago a record of this run may have ended that is not stored yet.
    pub fn behind(&self) -> Duration {
        self.done.borrow().began.unwrap_or(self.made).elapsed()
    }

    /// Waits until every record that ended before this call is stored. False: not `within` that time.
    pub async fn flushed(&self, within: Duration) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake.notify_one();
        let mut done = self.done.clone();
        matches!(tokio::time::timeout(within, done.wait_for(|done| done.asked >= asked)).await, Ok(Ok(_)))
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let mut random = [0_u8; 4];
        fill_random(&mut random);
        let part = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
        let wait = self.0.mul_f64(1.0 - part / 2.0);
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
        wait
    }

    fn is_fresh(&self) -> bool {
        self.0 == BACKOFF
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
