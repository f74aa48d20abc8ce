//! A file in memory: the one place of Keygate with `unsafe` in it.
//!
//! # Safety
//!
//! [`Mapping`] owns a shared, writable mapping of the whole of a file whose every byte is allocated on disk before it is
//! mapped (`Disk::create`), and which nobody but this process has reason to open (the journal's lock). So touching it
//! needs no new disk space and never goes beyond the file's end; a file that somebody truncates by hand under a running
//! gateway would end it (SIGBUS), which no checking beforehand could prevent.
//!
//! No reference to mapped memory is ever made: bytes are copied in by [`Mapping::write`], marks are set by
//! [`Mapping::set_mark`], and nothing is read through the mapping (readers use the file). Every offset is checked against
//! the mapping's length. That two threads never write the same bytes is the appender's promise: it hands out each place
//! once, under its writer's lock. A mark is one aligned atomic store, and what it overwrites was written before its frame
//! was made visible.
#![expect(unsafe_code, reason = "writing to mapped memory; see the safety argument above")]

use memmap2::{MmapRaw, UncheckedAdvice};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page, or a divisor of that.
const PAGE: usize = 4_096;

/// A file in memory.
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

    /// Copies `bytes` to the place `at`, of which nobody else writes any byte meanwhile.
    ///
    /// # Panics
    ///
    /// If that is beyond the end.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(
            at.checked_add(bytes.len()).is_some_and(|end| end <= self.len()),
            "a write beyond the segment"
        );
        // SAFETY: the target is within the mapping (asserted) and no reference to it exists; `bytes` is somewhere else,
        // because no slice of a mapping is ever made.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_mut_ptr().add(at), bytes.len());
        }
    }

    /// Sets the four bytes at the place `at` to `mark`, at once.
    ///
    /// # Panics
    ///
    /// If that is beyond the end, or no multiple of four.
    pub fn set_mark(&self, at: usize, mark: u32) {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len(), "a mark that is nowhere");
        // SAFETY: within the mapping and aligned (asserted; a mapping begins at a page). Other accesses to these bytes
        // are this one, and the write of the frame they are in, which happened before.
        let place = unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().add(at).cast()) };
        place.store(mark.to_le(), Ordering::Release);
    }

    /// Writes `range` to disk and waits for it (`msync`, as good as `fdatasync`).
    pub fn sync(&self, range: Range<usize>) -> io::Result<()> {
        self.0.flush_range(range.start, range.end.saturating_sub(range.start))
    }

    /// Makes `range` be written to disk again, without changing it: after a write that failed the kernel takes the pages
    /// for written all the same.
    pub fn touch(&self, range: Range<usize>) {
        let first = range.start - range.start % PAGE;
        for at in (first..range.end.min(self.len())).step_by(PAGE) {
            // SAFETY: within the mapping and aligned, as in `set_mark`; adding nothing changes no byte, and whatever else
            // changes these bytes is a mark, which is set atomically, too.
            let place = unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().add(at).cast()) };
            place.fetch_or(0, Ordering::Relaxed);
        }
    }

    /// Lets go of the memory, which comes back from the file when it is touched again.
    pub fn rest(&self) -> io::Result<()> {
        // SAFETY: of a shared mapping of a file this drops page table entries only; the content stays in the file.
        unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) }
    }
}
