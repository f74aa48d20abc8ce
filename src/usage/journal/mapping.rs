//! A memory-mapped file: the only place in Keygate with `unsafe`.
//!
//! # Safety
//!
//! [`Mapping`] owns a shared, writable mapping of a whole file. Every byte of the file is allocated on disk before it is
//! mapped (`Disk::create`), and no other process has a reason to open it (the journal's lock). So access needs no new disk
//! space and never goes beyond the end of the file. If a person truncates the file under a running gateway, the process is
//! killed (SIGBUS); no check can prevent this.
//!
//! No reference to mapped memory is ever created: bytes are copied in by [`Mapping::write`], marks are set by
//! [`Mapping::set_mark`], and nothing is read through the mapping (readers use the file). Every offset is checked against
//! the length of the mapping. The appender guarantees that two threads never write the same bytes: it hands out each
//! position once, under the lock of its writer. A mark is one aligned atomic store; the bytes that it overwrites were
//! written before their frame was made visible.
#![expect(unsafe_code, reason = "writing to mapped memory; see the safety argument above")]

use memmap2::{MmapRaw, UncheckedAdvice};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// The size of a page, or a divisor of it.
const PAGE: usize = 4_096;

/// A memory-mapped file.
#[derive(Debug)]
pub struct Mapping(MmapRaw);

impl Mapping {
    /// Maps the whole of `file`, whose bytes are all allocated.
    pub fn new(file: &File) -> io::Result<Self> {
        MmapRaw::map_raw(file).map(Self)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `bytes` to position `at`; no other thread may write these bytes meanwhile.
    ///
    /// # Panics
    ///
    /// If this is beyond the end.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(
            at.checked_add(bytes.len()).is_some_and(|end| end <= self.len()),
            "a write beyond the segment"
        );
        // SAFETY: the target is within the mapping (asserted) and no reference to it exists; `bytes` is elsewhere, because
        // no slice of a mapping is ever created.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_mut_ptr().add(at), bytes.len());
        }
    }

    /// Sets the four bytes at position `at` to `mark`, atomically.
    ///
    /// # Panics
    ///
    /// If this is beyond the end, or not a multiple of four.
    pub fn set_mark(&self, at: usize, mark: u32) {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len(), "a mark that is nowhere");
        // SAFETY: within the mapping and aligned (asserted; a mapping begins at a page). The only other access to these
        // bytes is the write of their frame, which happened before.
        let place = unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().add(at).cast()) };
        place.store(mark.to_le(), Ordering::Release);
    }

    /// Syncs `range` to disk (`msync`, as good as `fdatasync`).
    pub fn sync(&self, range: Range<usize>) -> io::Result<()> {
        self.0.flush_range(range.start, range.end.saturating_sub(range.start))
    }

    /// Marks `range` as dirty again without changing it: after a failed write, the kernel treats the pages as written.
    pub fn touch(&self, range: Range<usize>) {
        let first = range.start - range.start % PAGE;
        for at in (first..range.end.min(self.len())).step_by(PAGE) {
            // SAFETY: within the mapping and aligned, as in `set_mark`; adding zero changes no byte, and the only other
            // change of these bytes is a mark, which is set atomically, too.
            let place = unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().add(at).cast()) };
            place.fetch_or(0, Ordering::Relaxed);
        }
    }

    /// Releases the memory; pages are read from the file again when they are accessed.
    pub fn rest(&self) -> io::Result<()> {
        // SAFETY: for a shared mapping of a file this only drops page table entries; the content stays in the file.
        unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) }
    }
}
