//! One file of the journal: its name, its header, and how much of it is written, read and finished.

use super::codec::{ACKNOWLEDGED, ChecksumSeed, MARK_AT};
use super::mapping::Mapping;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use uuid::Uuid;

/// Position of the first frame. The header before it is for people.
pub const FIRST: usize = 256;
/// The suffix of file names.
const SUFFIX: &str = ".journal";

/// The name of a segment: a number in order of creation, and a random number so that frames of one are not valid in
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// Its number.
    pub sequence: u64,
    /// Its random number.
    pub salt: u64,
}

/// A position in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The number of the segment.
    pub segment: u64,
    /// The offset in bytes.
    pub offset: usize,
}

/// A segment.
#[derive(Debug)]
pub struct Segment {
    name: SegmentName,
    path: PathBuf,
    file: File,
    /// None for a segment of an earlier process.
    mapping: Option<Mapping>,
    /// The position of the next frame; bytes before it change no more, except for marks.
    committed: AtomicUsize,
    /// Whether nothing more will be written.
    is_sealed: AtomicBool,
    /// How much of it is on disk, and whether a sync failed; used by the flusher only.
    synced: AtomicUsize,
    sync_failed: AtomicBool,
    /// Whether the ledger's writer has to read it; it knows records carried over from older segments already.
    is_read: AtomicBool,
}

// === impl SegmentName ===

impl SegmentName {
    /// Parses a file name; none if it is not a segment's.
    pub fn parse(file_name: &str) -> Option<Self> {
        let (sequence, salt) = file_name.strip_suffix(SUFFIX)?.split_once('-')?;
        let number = |text: &str| {
            let is_ours = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            is_ours.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        Some(Self { sequence: number(sequence)?, salt: number(salt)? })
    }

    /// The file's name.
    pub fn file_name(self) -> String {
        format!("{:016x}-{:016x}{SUFFIX}", self.sequence, self.salt)
    }

    /// The seed of its checksums.
    pub fn seed(self) -> ChecksumSeed {
        ChecksumSeed::new(self.sequence, self.salt)
    }
}

/// The header of a segment: a line of text.
fn header(name: SegmentName, boot: Uuid, node: &str) -> [u8; FIRST] {
    let line = format!("keygate journal 1: segment {}, boot {boot}, node {node}\n", name.sequence);
    let mut header = [0; FIRST];
    let kept = line.len().min(FIRST);
    header[..kept].copy_from_slice(&line.as_bytes()[..kept]);
    header
}

// === impl Segment ===

impl Segment {
    /// A new segment, in a file whose bytes are all allocated.
    pub fn fresh(name: SegmentName, path: PathBuf, file: File, boot: Uuid, node: &str) -> io::Result<Self> {
        let mapping = Mapping::new(&file)?;
        mapping.write(0, &header(name, boot, node));
        Ok(Self { mapping: Some(mapping), ..Self::at(name, path, file, FIRST, false) })
    }

    /// A segment of an earlier process, with its length in bytes.
    pub fn left(name: SegmentName, path: PathBuf, file: File, bytes: usize) -> Self {
        Self::at(name, path, file, bytes, true)
    }

    fn at(name: SegmentName, path: PathBuf, file: File, committed: usize, is_sealed: bool) -> Self {
        Self {
            name,
            path,
            file,
            mapping: None,
            committed: AtomicUsize::new(committed),
            is_sealed: AtomicBool::new(is_sealed),
            synced: AtomicUsize::new(0),
            sync_failed: AtomicBool::new(false),
            is_read: AtomicBool::new(true),
        }
    }

    /// Its number.
    pub const fn sequence(&self) -> u64 {
        self.name.sequence
    }

    /// The seed of its checksums.
    pub fn seed(&self) -> ChecksumSeed {
        self.name.seed()
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its file, once the segment is no longer used.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Whether an earlier process left it.
    pub const fn is_left(&self) -> bool {
        self.mapping.is_none()
    }

    /// Whether the ledger's writer has to read it.
    pub fn is_read(&self) -> bool {
        self.is_read.load(Ordering::Relaxed)
    }

    /// The writer knows its content already.
    pub fn mark_known(&self) {
        self.is_read.store(false, Ordering::Relaxed);
    }

    /// Adds a frame at `at`, if it fits; `seal` is called with it first. Returns the position of the next one. Only one
    /// thread does this at a time.
    pub fn append(&self, at: usize, frame: &mut [u8], seal: impl FnOnce(&mut [u8])) -> Option<usize> {
        let mapping = self.mapping.as_ref()?;
        let end = at.checked_add(frame.len()).filter(|end| *end <= mapping.len())?;
        seal(frame);
        mapping.write(at, frame);
        self.committed.store(end, Ordering::Release);
        Some(end)
    }

    /// Nothing more will be written.
    pub fn seal(&self) {
        self.is_sealed.store(true, Ordering::Release);
    }

    /// Whether nothing more will be written. If this is called before [`Segment::committed`], that result is final.
    pub fn is_sealed(&self) -> bool {
        self.is_sealed.load(Ordering::Acquire)
    }

    /// Up to where it may be read.
    pub fn committed(&self) -> usize {
        self.committed.load(Ordering::Acquire)
    }

    /// Whether nothing was ever written to it.
    pub fn is_unused(&self) -> bool {
        !self.is_left() && self.committed() == FIRST
    }

    /// Reads committed bytes at `at`, from the page cache that the mapping writes to.
    pub fn read(&self, at: usize, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, u64::try_from(at).unwrap_or(u64::MAX))
    }

    /// The record of the frame at `at` is in the ledger.
    pub fn acknowledge(&self, at: usize) -> io::Result<()> {
        if let Some(mapping) = &self.mapping {
            mapping.set_mark(at + MARK_AT, ACKNOWLEDGED);
            return Ok(());
        }
        let place = u64::try_from(at + MARK_AT).unwrap_or(u64::MAX);
        self.file.write_all_at(&ACKNOWLEDGED.to_le_bytes(), place)
    }

    /// Syncs what is not on disk yet, with `sync`.
    pub fn sync(
        &self,
        sync: impl FnOnce(&Mapping, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(mapping) = &self.mapping else { return Ok(()) };
        let (from, to) = (self.synced.load(Ordering::Relaxed), self.committed());
        if from >= to {
            return Ok(());
        }
        if self.sync_failed.load(Ordering::Relaxed) {
            mapping.touch(from..to);
        }
        let synced = sync(mapping, from..to);
        self.sync_failed.store(synced.is_err(), Ordering::Relaxed);
        if synced.is_ok() {
            self.synced.store(to, Ordering::Relaxed);
        }
        synced
    }

    /// Syncs everything written, with `sync`. For other threads than the flusher.
    pub fn sync_written(
        &self,
        sync: impl FnOnce(&Mapping, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(mapping) = &self.mapping else { return Ok(()) };
        let written = 0..self.committed();
        if self.sync_failed.load(Ordering::Relaxed) {
            mapping.touch(written.clone());
        }
        sync(mapping, written)
    }

    /// Releases its memory, because it is rarely accessed from now on.
    pub fn rest(&self) {
        if let Some(mapping) = &self.mapping
            && let Err(error) = mapping.rest()
        {
            tracing::debug!(%error, "cannot release memory of journal segment");
        }
    }
}
