//! The segment that one worker thread writes to.
//!
//! A writer's lock is taken by its own thread, and rarely by another one, so it costs no system call. If there are more
//! threads than writers, they share them, so that any thread can write.

use super::codec::seal;
use super::segment::{FIRST, Position, Segment};
use super::{JournalFull, lock};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// In its own cache lines, so that threads do not slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct SegmentWriter(Mutex<OpenSegment>);

#[derive(Debug, Default)]
pub(super) struct OpenSegment {
    segment: Option<Arc<Segment>>,
    at: usize,
    /// A reusable buffer for frames.
    pub(super) scratch: Vec<u8>,
}

/// Numbers threads in the order of their first call.
pub(super) fn writer_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: Cell<Option<usize>> = const { Cell::new(None) });
    let number = |known: &Cell<Option<usize>>| {
        known.get().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            known.set(Some(number));
            number
        })
    };
    // A thread that is ending has no number any more; any writer will do.
    NUMBER.try_with(number).unwrap_or(0)
}

impl SegmentWriter {
    pub(super) fn lock(&self) -> MutexGuard<'_, OpenSegment> {
        lock(&self.0)
    }
}

impl OpenSegment {
    /// Writes `frame`, into the `next` segment if this one is full.
    pub(super) fn append(
        &mut self,
        frame: &mut [u8],
        next: impl FnOnce() -> Result<Arc<Segment>, JournalFull>,
    ) -> Result<Position, JournalFull> {
        if let Some(at) = self.put(frame) {
            return Ok(at);
        }
        let fresh = next()?;
        if let Some(full) = self.segment.replace(fresh) {
            full.seal();
        }
        self.at = FIRST;
        self.put(frame).ok_or(JournalFull)
    }

    fn put(&mut self, frame: &mut [u8]) -> Option<Position> {
        let segment = self.segment.as_ref()?;
        let (offset, seed) = (self.at, segment.seed());
        let place = u32::try_from(offset).ok()?;
        self.at = segment.append(offset, frame, |frame| seal(frame, seed, place))?;
        Some(Position { segment: segment.sequence(), offset })
    }

    pub(super) fn segment(&self) -> Option<Arc<Segment>> {
        self.segment.clone()
    }

    /// Closes the segment, for now.
    pub(super) fn close(&mut self) {
        if let Some(segment) = self.segment.take() {
            segment.seal();
        }
    }
}
