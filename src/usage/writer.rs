//! One loop that copies records from the journal to the ledger, in batches, each until it is stored.

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

/// First wait after a failure; doubled each time up to [`BACKOFF_MAX`]. Each wait is cut by up to a half, at random.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How often a record is refused for its content before it is set aside, if nothing else was stored beside it: then it
/// may be the store that is at fault.
const REFUSALS_MAX: u32 = 5;
/// A round waits so much longer for each record of the one before, up to [`BUSY_DELAY_MAX`]: where many come, those of one
/// key meet in one batch, and what they come to is written once.
const DELAY_PER_RECORD: Duration = Duration::from_micros(500);
const BUSY_DELAY_MAX: Duration = Duration::from_millis(500);
/// Every so many rounds, or when more than half of the journal is in use, what alone keeps old segments is carried over.
const CARRY_EVERY: u32 = 20;

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct LedgerWriterOptions {
    /// Records in a batch at most.
    pub batch_records: usize,
    /// How long a record waits for its batch to fill, where few come. A busy node takes up to half a second.
    pub batch_delay: Duration,
}

/// The writer of the ledger.
pub struct LedgerWriter {
    reader: JournalReader,
    ledger: Arc<dyn Ledger>,
    metrics: Arc<Metrics>,
    options: LedgerWriterOptions,
    /// Records handed to the ledger at once: fewer while it cannot cope with a whole batch.
    at_once: usize,
    /// None while running; the instant after which nothing is tried again, once the gateway stops.
    deadline: watch::Receiver<Option<Instant>>,
    set_aside: RejectedRecords,
    /// Read by [`LedgerWriter::replay`] and not stored.
    unstored: RecordBatch,
    /// Whether it ends when it has stored all there is.
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
    /// Who asked before it began.
    asked: u64,
    began: Option<Instant>,
}

/// The deadline came first. What is not stored stays in the journal.
struct DeadlinePassed;

/// Waits that grow.
struct Backoff(Duration);

impl LedgerWriter {
    /// A writer that, once `deadline` tells one, gives up at it.
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

    /// A writer of what other processes have left in a journal that nobody writes to: it ends when that is stored.
    #[must_use]
    pub fn of_the_rest(self) -> Self {
        Self { only_the_rest: true, ..self }
    }

    /// The journal it empties.
    pub const fn journal(&self) -> &Arc<Journal> {
        self.reader.journal()
    }

    /// What waits for this writer.
    pub fn flush(&self) -> WriterProgress {
        self.flush.clone()
    }

    /// Stores what earlier processes left, for at most about `within` and until the first failure; [`LedgerWriter::run`] goes on
    /// with the rest. Answers what that has spent, added to `spent`. To be called once, before `run`.
    ///
    /// A call of the store that failed may have stored its batch all the same: limits then count at most that batch twice.
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

    /// Writes until the gateway stops and nothing is left, or the deadline has passed.
    pub async fn run(mut self) {
        let mut batch = std::mem::take(&mut self.unstored);
        let mut rounds = 0_u32;
        let mut stored = self.store(&batch).await;
        while stored.is_ok() {
            let began = Some(Instant::now());
            let done = LastRound { asked: self.flush.asked.load(Ordering::Acquire), began };
            // Whoever could tell it to stop is gone: a start that failed.
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

    /// Stores what is in the journal now. Answers how many records that were.
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
        // A journal that is small or filling up is emptied as soon as it can be.
        let many = if self.reader.journal().is_nearly_full() { few } else { few.max(BUSY_DELAY_MAX) };
        let delay = DELAY_PER_RECORD.saturating_mul(u32::try_from(records).unwrap_or(u32::MAX));
        tokio::select! {
            () = tokio::time::sleep(delay.clamp(few, many)) => {}
            () = self.flush.wake.notified() => {}
            _ = self.deadline.changed() => {}
        }
    }

    /// Tries until every record is stored or set aside. What is refused for its content is found by halving; any other
    /// failure is the store's, and the records wait.
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
            // Not one was taken: it may be the store that is at fault.
            todo = refused.into_iter().map(|(number, _)| number..number + 1).collect();
            self.wait(&mut backoff).await?;
        }
        Ok(batch.len())
    }

    /// Stores the parts of a batch, halving those that are refused. Answers the records that are refused by themselves.
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

    /// So many at once may have been too many for the time that a statement has. A store that is simply gone takes fewer no
    /// better, and no worse: what that costs when it is back is some dozens of small calls.
    fn halve_batch(&mut self, failed: usize) {
        self.at_once = (failed / 2).max(1);
    }

    /// Slowly, so that a store that only copes with so many is not asked for too many each time.
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

    /// Waits before something is tried again.
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
    /// Waits until every record that an earlier run left is stored. False: not `within` that time.
    pub async fn has_replayed(&self, within: Duration) -> bool {
        let mut done = self.done.clone();
        matches!(tokio::time::timeout(within, done.wait_for(|done| done.began.is_some())).await, Ok(Ok(_)))
    }

    /// How long ago a record of this run may have ended that is not stored yet.
    pub fn behind(&self) -> Duration {
        self.done.borrow().began.unwrap_or(self.made).elapsed()
    }

    /// Waits until every record that has ended before this call is stored. False: not `within` that time.
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
