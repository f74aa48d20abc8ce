//! The journal: a file that holds usage records until they are in the ledger, so that answered requests survive the death
//! of the process.
//!
//! # Limits
//!
//! | what | how much |
//! |---|---|
//! | the whole journal | `usage.journal_max_bytes`, 1 GiB; then it is full |
//! | a segment | `usage.journal_segment_bytes`, 4 MiB, fully allocated when it is created |
//! | segments being written | one per worker thread, and one for carried-over records; two more are prepared |
//! | a record | about 230 bytes for both parts with a short path; at most 8 KiB each |
//! | texts in it | path 2 048 bytes, user agent 256, any other 255; longer ones are cut |
//! | lost when the process dies | nothing that was answered; a request whose last byte was being sent may be `interrupted` |
//! | lost when the machine dies | what was written in the last `usage.journal_sync_interval`, 10 ms, and one sync |
//! | file descriptors | one per segment; 64 are reserved for new segments when others have used up all |
//! | kept open by requests in flight | at most four times the size of their starts |
//! | damaged segments that are kept | the last 16 |
//!
//! # Format
//!
//! ```text
//! NNNNNNNNNNNNNNNN-SSSSSSSSSSSSSSSS.journal       number and random number of the segment, in hexadecimal
//!
//! 0        a line of text for people: version, number, boot, node                          256 bytes
//! 256      frame, frame, frame, …                                each begins at a multiple of 8
//!          zeros, to the end
//!
//! frame    0  "KG"        2 bytes
//!          2  kind        1       1 admit, 2 complete, 3 whole (both in one)
//!          3  version     1       1
//!          4  length      4       of the payload, little-endian as all numbers
//!          8  checksum    4       CRC-32C of: number and random number of the segment, place in it, bytes 0 to 8, payload
//!         12  mark        4       21 7d 6f 6b once the ledger has the record; not in the checksum
//!         16  payload             then zeros up to a multiple of 8
//! ```
//!
//! An `admit` is written before a request is forwarded, a `complete` when it has ended. Both contain the id of the usage
//! record, which is the ledger's primary key, so that storing a record again changes nothing. The random number in the name
//! ensures that bytes from a client are never taken for a frame.
//!
//! # Failures
//!
//! A full disk: see `WhenFull`; the journal uses the disk again when it has room. A failed sync is counted and logged, and
//! serving goes on: only the death of the machine could lose records then. Damaged bytes are skipped, the frames after them
//! are read, and the segment is moved to `damaged/` in the folder `aside`. Nothing here prevents a start, except a folder
//! that another process owns ([`super::slots`] gives each process of a node its own folder).

pub mod codec;
pub mod disk;
mod flusher;
mod mapping;
pub mod pairing;
mod reader;
mod reserve;
pub mod scan;
pub mod segment;
mod segment_writer;

pub use flusher::JournalFlusher;
pub use mapping::Mapping;
pub use reader::{JournalReader, RecordBatch};

use crate::durable;
use crate::metrics::Metrics;
use crate::model::id::fill_random;
use codec::FrameKind;
use disk::Disk;
use reserve::Reserve;
use segment::{Position, Segment, SegmentName};
use segment_writer::{SegmentWriter, writer_of_this_thread};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// Options of a journal.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The folder. Created if it does not exist.
    pub folder: PathBuf,
    /// The folder for files that a person should look at. All processes of one node share it.
    pub aside: PathBuf,
    /// Most bytes of all segments.
    pub max_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: usize,
    /// How often written data is synced to disk.
    pub sync_interval: Duration,
    /// Number of threads that write concurrently.
    pub threads: usize,
    /// The name of this node; for people.
    pub node: Box<str>,
    /// The id of this process; for people.
    pub boot: Uuid,
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns it.
    #[error(
        "journal {folder} is in use by another process; give each process its own usage.journal_dir",
        folder = .0.display()
    )]
    Owned(PathBuf),
    /// The folder cannot be read or created.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

/// There is no room for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is full")]
pub struct JournalFull;

/// The journal of this process.
#[derive(Debug)]
pub struct Journal {
    options: JournalOptions,
    disk: Arc<dyn Disk>,
    metrics: Arc<Metrics>,
    /// The last one is for carried-over records.
    writers: Box<[SegmentWriter]>,
    /// Segments with records that the ledger may not have.
    live: Mutex<BTreeMap<u64, Arc<Segment>>>,
    /// Prepared segments.
    spares: Mutex<VecDeque<Arc<Segment>>>,
    /// Finished segments.
    done: Mutex<Vec<FinishedSegment>>,
    /// The number of files.
    segments: AtomicUsize,
    next_sequence: AtomicU64,
    is_full: AtomicBool,
    is_closing: AtomicBool,
    /// Ends without room in a segment; their starts are in segments, which bounds their number.
    late: Mutex<VecDeque<Box<[u8]>>>,
    /// Records that have ended and are not in the ledger yet.
    waiting: AtomicUsize,
    /// Descriptors for segments, and for set-aside files.
    reserve: Reserve,
    /// Its folder, kept open so that syncing it needs no descriptor.
    folder: File,
    /// Held as long as the journal is open.
    _lock: File,
}

/// A finished segment.
#[derive(Debug)]
struct FinishedSegment {
    segment: Arc<Segment>,
    is_damaged: bool,
}

impl Journal {
    /// Takes ownership of the folder. The reader begins with records of earlier processes.
    pub fn open(
        options: JournalOptions,
        disk: Arc<dyn Disk>,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, JournalReader), OpenError> {
        let lock = own(&options.folder)?;
        let folder = File::open(&options.folder)
            .map_err(|error| OpenError::Io { path: options.folder.clone(), error })?;
        let left = left_segments(&options.folder)?;
        let next = left.keys().next_back().map_or(1, |last| last + 1);
        // Every writer has its own segment; there must be more than these.
        let most =
            usize::try_from(options.max_bytes / options.segment_bytes.max(1) as u64).unwrap_or(usize::MAX);
        let writers = options.threads.clamp(1, (most / 2).max(1)) + 1;
        let journal = Arc::new(Self {
            writers: (0..writers).map(|_| SegmentWriter::default()).collect(),
            segments: AtomicUsize::new(left.len()),
            live: Mutex::new(left),
            spares: Mutex::default(),
            done: Mutex::default(),
            next_sequence: AtomicU64::new(next),
            is_full: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            late: Mutex::default(),
            waiting: AtomicUsize::new(0),
            reserve: Reserve::for_segments(most),
            folder,
            options,
            disk,
            metrics,
            _lock: lock,
        });
        let reader = JournalReader::new(Arc::clone(&journal));
        Ok((journal, reader))
    }

    /// Writes a frame: a copy into mapped memory. `payload` appends its content.
    pub fn append(
        &self,
        kind: FrameKind,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Position, JournalFull> {
        let own = writer_of_this_thread() % self.lock_writers().len();
        let mut writer = self.lock_writers()[own].lock();
        let mut frame = std::mem::take(&mut writer.scratch);
        codec::begin(&mut frame, kind, payload);
        let mut written = writer.append(&mut frame, || self.take_segment());
        writer.scratch = frame;
        if written.is_err() && self.writers.len() > 2 {
            let frame = writer.scratch.clone();
            drop(writer);
            written = self.append_elsewhere(frame, own);
        }
        written
    }

    /// The writer of this thread has no room; another one may have some.
    fn append_elsewhere(&self, mut frame: Vec<u8>, own: usize) -> Result<Position, JournalFull> {
        let others = self.lock_writers().iter().enumerate().filter(|(n, _)| *n != own);
        let mut tried = others.map(|(_, writer)| writer.lock().append(&mut frame, || Err(JournalFull)));
        tried.find(Result::is_ok).unwrap_or(Err(JournalFull))
    }

    /// Writes the start of a request again, into the segment for carried-over records.
    fn carry(&self, payload: &[u8]) -> Result<(Position, Arc<Segment>), JournalFull> {
        let mut writer = self.writers[self.writers.len() - 1].lock();
        let mut frame = std::mem::take(&mut writer.scratch);
        codec::begin(&mut frame, FrameKind::Admit, |out| out.extend_from_slice(payload));
        let written = writer.append(&mut frame, || {
            let segment = self.take_segment()?;
            segment.mark_known();
            Ok(segment)
        });
        writer.scratch = frame;
        let at = written?;
        writer.segment().map(|segment| (at, segment)).ok_or(JournalFull)
    }

    /// Syncs the segments of these copies, independently of the flusher.
    fn sync_copies(&self, copies: &[(Position, Arc<Segment>)]) -> io::Result<()> {
        let mut synced = None;
        for (at, segment) in copies.iter().rev() {
            if synced.replace(at.segment) != Some(at.segment) {
                segment.sync_written(|mapping, range| self.disk.sync(mapping, range))?;
            }
        }
        Ok(())
    }

    fn lock_writers(&self) -> &[SegmentWriter] {
        &self.writers[..self.writers.len() - 1]
    }

    /// Keeps an end for which there was no room. Its start is in a segment, so after a crash the request is `interrupted`.
    pub(super) fn keep_late(&self, payload: Box<[u8]>) {
        lock(&self.late).push_back(payload);
    }

    fn take_late(&self) -> VecDeque<Box<[u8]>> {
        std::mem::take(&mut *lock(&self.late))
    }

    /// No more writes are expected: empty segments are removed, the others are closed. A later write starts a new segment.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        self.close_writers();
    }

    /// Whether the last attempt to get a segment failed.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Whether more than half of it is in use.
    pub fn is_nearly_full(&self) -> bool {
        self.bytes() > self.options.max_bytes / 2
    }

    /// One more record has ended that the ledger does not have.
    pub(super) fn on_record_pending(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// So many records of earlier processes now count as accepted by this one.
    fn on_accepted(&self, records: usize) {
        self.waiting.fetch_add(records, Ordering::Relaxed);
        self.metrics.usage_accepted.inc_by(u64::try_from(records).unwrap_or(u64::MAX));
    }

    /// So many records have been stored or dropped.
    pub(super) fn on_records_settled(&self, by: usize) {
        self.waiting.fetch_sub(by, Ordering::Relaxed);
    }

    /// Records that have ended and are not in the ledger yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Bytes of all its segments on disk.
    pub fn bytes(&self) -> u64 {
        let segments = self.segments.load(Ordering::Relaxed);
        u64::try_from(segments.saturating_mul(self.options.segment_bytes)).unwrap_or(u64::MAX)
    }

    /// Runs `open`, which needs file descriptors, with reserved ones if there are no others.
    pub(super) fn open_file<T>(&self, open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        self.reserve.open(open)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    /// The folder for files that a person should look at.
    pub fn aside(&self) -> &Path {
        &self.options.aside
    }

    /// The next segment to write to.
    fn take_segment(&self) -> Result<Arc<Segment>, JournalFull> {
        let spare = lock(&self.spares).pop_front();
        let segment = match spare {
            Some(segment) => segment,
            // An attempt failed a moment ago; the flusher keeps trying.
            None if self.is_full() => return Err(JournalFull),
            None => self.make_segment().map_err(|error| {
                self.mark_full(&error);
                JournalFull
            })?,
        };
        lock(&self.live).insert(segment.sequence(), Arc::clone(&segment));
        Ok(segment)
    }

    fn make_segment(&self) -> io::Result<Arc<Segment>> {
        let bytes = self.options.segment_bytes as u64;
        let has_room = |n: usize| ((n as u64 + 1) * bytes <= self.options.max_bytes).then_some(n + 1);
        if self.segments.fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room).is_err() {
            return Err(io::Error::other("usage.journal_max_bytes reached"));
        }
        let mut salt = [0; 8];
        fill_random(&mut salt);
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let name = SegmentName { sequence, salt: u64::from_le_bytes(salt) };
        let path = self.options.folder.join(name.file_name());
        let made = self.reserve.open(|| self.disk.create(&self.folder, &path, bytes)).and_then(|file| {
            Segment::fresh(name, path, file, self.options.boot, &self.options.node).map(Arc::new)
        });
        if made.is_err() {
            self.segments.fetch_sub(1, Ordering::Relaxed);
        }
        made
    }

    fn mark_full(&self, error: &io::Error) {
        if !self.is_full.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, folder = %self.options.folder.display(), "usage journal full");
        }
    }

    fn mark_not_full(&self) {
        if self.is_full.swap(false, Ordering::Relaxed) {
            tracing::info!("usage journal has room again");
        }
    }

    /// The segments to read, oldest first.
    fn live(&self) -> Vec<Arc<Segment>> {
        lock(&self.live).values().cloned().collect()
    }

    /// Everything in this segment is in the ledger.
    fn finish_segment(&self, segment: Arc<Segment>, is_damaged: bool) {
        lock(&self.live).remove(&segment.sequence());
        lock(&self.done).push(FinishedSegment { segment, is_damaged });
    }
}

/// Creates the folder, for its owner only, and takes its lock, which the kernel releases when this process ends.
fn own(folder: &Path) -> Result<File, OpenError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| OpenError::Io { path, error }
    };
    durable::create_folder(folder).map_err(io(folder))?;
    let path = folder.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Owned(folder.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(OpenError::Io { path, error }),
    }
}

/// The segments in the folder. One that cannot be opened is skipped and stays where it is.
fn left_segments(folder: &Path) -> Result<BTreeMap<u64, Arc<Segment>>, OpenError> {
    let io = |error| OpenError::Io { path: folder.to_path_buf(), error };
    let mut left = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(SegmentName::parse) else {
            continue;
        };
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        match opened.and_then(|file| Ok((usize::try_from(file.metadata()?.len()).unwrap_or(0), file))) {
            Ok((bytes, file)) => {
                left.insert(name.sequence, Arc::new(Segment::left(name, path, file, bytes)));
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "cannot open journal segment, skipped");
            }
        }
    }
    Ok(left)
}

/// Nothing under these locks can panic half-way, so a poisoned lock guards valid values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
