//! A journal in its own folder, a stopped clock, and a ledger that the test controls.

use async_trait::async_trait;
use keygate::clock::{Clock, ManualClock, Timestamp};
use keygate::metrics::Metrics;
use keygate::model::calendar::Calendar;
use keygate::model::id::{KeyId, RequestId, WorkspaceId};
use keygate::model::usage::{Outcome, UsageRecord, UsageSubject, UsageTotals};
use keygate::store::{
    KeyStats, Ledger, LogFilter, LogPage, LogPageRequest, Page, PageRequest, RecordFilter, RecordPage,
    StoreError, UsageGroup, UsageGroupTotal, UsagePoint, UsageRange, UsageTotal, UsageTotalsFilter,
};
use keygate::usage::journal::disk::{Disk, RealDisk};
use keygate::usage::journal::{JournalOptions, JournalReader};
use keygate::usage::{
    Journal, LedgerWriter, LedgerWriterOptions, PendingRecord, RecordStart, Recorder, WhenFull,
};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

/// The time of everything.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// An open journal.
pub(crate) struct Stand {
    pub(crate) folder: Arc<TempDir>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) reader: Option<JournalReader>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) recorder: Recorder,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) key: KeyId,
}

/// Sizes of a journal.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) segment: usize,
    pub(crate) segments: u64,
    pub(crate) threads: usize,
}

/// Small segments, so that a few records fill one, and room for many.
pub(crate) const SMALL: Sizes = Sizes { segment: 4_096, segments: 1_000, threads: 1 };

pub(crate) fn options(folder: &Path, sizes: Sizes) -> JournalOptions {
    JournalOptions {
        folder: folder.join("journal"),
        aside: folder.join("journal"),
        max_bytes: sizes.segment as u64 * sizes.segments,
        segment_bytes: sizes.segment,
        sync_interval: Duration::from_millis(1),
        threads: sizes.threads,
        node: "node-1".into(),
        boot: uuid::Uuid::nil(),
    }
}

impl Stand {
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), sizes, WhenFull::Shed, Arc::new(RealDisk))
    }

    pub(crate) fn at(folder: Arc<TempDir>, sizes: Sizes, when_full: WhenFull, disk: Arc<dyn Disk>) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (journal, reader) =
            Journal::open(options(folder.path(), sizes), disk, Arc::clone(&metrics)).unwrap();
        let recorder = Recorder::new(Arc::clone(&journal), when_full, Arc::clone(&metrics));
        let clock = Arc::new(ManualClock::at(NOW));
        let key = KeyId(uuid::Uuid::from_u128(7));
        Self { folder, journal, reader: Some(reader), metrics, recorder, clock, key }
    }

    /// What another process would find if this one died now.
    pub(crate) fn crashed(&self) -> Arc<TempDir> {
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("journal")).unwrap();
        for entry in fs::read_dir(self.folder.path().join("journal")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                match fs::copy(entry.path(), copy.path().join("journal").join(entry.file_name())) {
                    // Finished and removed by the flusher since the folder was listed.
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                    copied => drop(copied.unwrap()),
                }
            }
        }
        Arc::new(copy)
    }

    /// A begun request, with this number in its path.
    pub(crate) fn begin(&self, number: u32) -> (RequestId, PendingRecord) {
        let id = RequestId::new(NOW);
        (id, self.try_begin(id, number).unwrap())
    }

    pub(crate) fn try_begin(&self, id: RequestId, number: u32) -> Option<PendingRecord> {
        let workspace: WorkspaceId = "w".parse().unwrap();
        let start = RecordStart {
            id,
            request_id: &id.to_string(),
            api_key_id: self.key,
            workspace_id: &workspace,
            arrived: self.clock.now(),
            method: "GET",
            endpoint: &format!("/v1/app/{number}"),
            route: "app",
            ip_address: IpAddr::from([127, 0, 0, 1]),
            user_agent: b"tester/1.0",
            node: "node-1",
            end_user_id: None,
            charged: true,
            degraded: false,
        };
        PendingRecord::admitted(start, &self.recorder, &self.clock).ok()
    }

    /// A request from begin to end.
    pub(crate) fn serve(&self, number: u32) -> RequestId {
        let (id, pending) = self.begin(number);
        pending.complete(Outcome::Served, 200);
        id
    }

    /// [`Stand::serve`] without its identity.
    pub(crate) fn serves(&self, number: u32) {
        self.serve(number);
    }

    /// The writer of this journal, and its stop handle.
    pub(crate) fn writer(
        &mut self,
        ledger: &Arc<TestLedger>,
        batch: usize,
    ) -> (LedgerWriter, watch::Sender<Option<tokio::time::Instant>>) {
        let (stop, stopped) = watch::channel(None);
        let options = LedgerWriterOptions { batch_records: batch, batch_delay: Duration::from_millis(1) };
        let reader = self.reader.take().unwrap();
        let ledger: Arc<dyn Ledger> = ledger.clone();
        (LedgerWriter::new(reader, ledger, Arc::clone(&self.metrics), options, stopped), stop)
    }

    /// accepted = stored + in journal + shed + set aside, and the journal's own count equals the difference.
    #[track_caller]
    pub(crate) fn assert_identity(&self) {
        let usage = self.metrics.usage();
        assert_eq!(
            usage.accepted,
            usage.stored + usage.in_journal + usage.shed + usage.set_aside,
            "{usage:?}"
        );
        assert_eq!(usage.in_journal, self.journal.waiting() as u64, "{usage:?}");
    }

    /// Segments on disk, with their sizes.
    pub(crate) fn segments(&self) -> BTreeMap<String, u64> {
        segments(&self.folder.path().join("journal"))
    }
}

pub(crate) fn segments(folder: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let named = entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()));
    named.filter(|(name, _)| name.ends_with(".journal")).collect()
}

/// The behaviour of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Is unreachable.
    Gone,
    /// Stores, and reports that it was unreachable.
    Forgetful,
    /// Refuses records whose path contains this.
    Picky(&'static str),
    /// Refuses everything with an internal error.
    Broken,
    /// Stores at most so many records in the time it has.
    Slow(usize),
}

/// A ledger in memory that keeps every record once.
#[derive(Debug)]
pub(crate) struct TestLedger {
    rows: Mutex<BTreeMap<RequestId, UsageRecord>>,
    mood: Mutex<Mood>,
    calls: watch::Sender<usize>,
    /// The number of records in each successful call.
    sizes: Mutex<Vec<usize>>,
}

impl TestLedger {
    pub(crate) fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            mood: Mutex::new(mood),
            calls: watch::Sender::new(0),
            sizes: Mutex::default(),
        })
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn rows(&self) -> BTreeMap<RequestId, UsageRecord> {
        self.rows.lock().unwrap().clone()
    }

    /// The number of records in each successful call since the last time.
    pub(crate) fn take_sizes(&self) -> Vec<usize> {
        std::mem::take(&mut *self.sizes.lock().unwrap())
    }

    /// Waits until it was called that often in all.
    pub(crate) async fn asked(&self, times: usize) {
        self.calls.subscribe().wait_for(|calls| *calls >= times).await.unwrap();
    }

    /// Adds new records; returns how many were new.
    pub(crate) fn add(&self, records: &[UsageRecord]) -> u64 {
        let mut rows = self.rows.lock().unwrap();
        let before = rows.len();
        for record in records {
            rows.entry(record.id).or_insert_with(|| record.clone());
        }
        (rows.len() - before) as u64
    }
}

fn nothing<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("it keeps records only".into()))
}

#[async_trait]
impl Ledger for TestLedger {
    async fn append(&self, records: &[UsageRecord]) -> Result<u64, StoreError> {
        let mood = *self.mood.lock().unwrap();
        let done = match mood {
            Mood::Gone => Err(StoreError::Unavailable("gone".into())),
            Mood::Forgetful => {
                self.add(records);
                Err(StoreError::Unavailable("cut off after the commit".into()))
            }
            Mood::Picky(word) if records.iter().any(|r| r.endpoint.contains(word)) => {
                Err(StoreError::Invalid { field: "usage record", why: "a path nobody likes".into() })
            }
            Mood::Broken => Err(StoreError::Corrupt("PostgreSQL answered with code 42501".into())),
            Mood::Slow(most) if records.len() > most => {
                Err(StoreError::Unavailable("it took too long".into()))
            }
            Mood::Slow(_) | Mood::Picky(_) | Mood::Well => Ok(self.add(records)),
        };
        if done.is_ok() {
            self.sizes.lock().unwrap().push(records.len());
        }
        self.calls.send_modify(|calls| *calls += 1);
        done
    }

    async fn totals(
        &self,
        _: Timestamp,
        _: Calendar,
        _: mpsc::Sender<Vec<UsageTotals>>,
    ) -> Result<(), StoreError> {
        nothing()
    }

    async fn end_user_totals(
        &self,
        _: &WorkspaceId,
        _: Timestamp,
        _: Calendar,
        _: mpsc::Sender<Vec<UsageTotals>>,
    ) -> Result<(), StoreError> {
        nothing()
    }

    async fn totals_of(
        &self,
        _: &UsageSubject,
        _: Timestamp,
        _: Calendar,
    ) -> Result<UsageTotals, StoreError> {
        nothing()
    }

    async fn stats(&self, _: &WorkspaceId, _: KeyId, _: Timestamp) -> Result<Option<KeyStats>, StoreError> {
        nothing()
    }

    async fn usage(
        &self,
        _: &WorkspaceId,
        _: KeyId,
        _: &UsageRange,
    ) -> Result<Option<Vec<UsagePoint>>, StoreError> {
        nothing()
    }

    async fn logs(
        &self,
        _: &WorkspaceId,
        _: KeyId,
        _: &LogFilter,
        _: LogPageRequest,
    ) -> Result<Option<LogPage>, StoreError> {
        nothing()
    }

    async fn workspace_series(&self, _: &WorkspaceId, _: &UsageRange) -> Result<Vec<UsagePoint>, StoreError> {
        nothing()
    }

    async fn workspace_usage(
        &self,
        _: &WorkspaceId,
        _: &UsageTotalsFilter,
    ) -> Result<UsageTotal, StoreError> {
        nothing()
    }

    async fn workspace_usage_by(
        &self,
        _: &WorkspaceId,
        _: &UsageTotalsFilter,
        _: UsageGroup,
        _: PageRequest,
    ) -> Result<Page<UsageGroupTotal>, StoreError> {
        nothing()
    }

    async fn all_records(&self, _: &RecordFilter, _: RequestId, _: u32) -> Result<RecordPage, StoreError> {
        nothing()
    }
}
