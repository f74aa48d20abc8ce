//! What of bodies is in memory for a client: answers it has yet to take, uploads the backend has yet to take or that are held
//! back until they are whole.

use super::Connection;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

/// What may be on its way to a client beside what was handed to its socket: Pingora's pipe of four parts of 64 KiB, one more
/// in the hand of whoever fills it, and the buffer that the next is read into.
const PIPE_BYTES: u64 = 6 * 64 * 1024;

/// Bytes of a body that an exchange between two sides that speak HTTP/1.1 has in memory in one direction.
pub(in crate::proxy) const EXCHANGE_BUFFER: usize = 16 * 1024;

/// What all clients may have in memory together.
pub(super) struct MemoryBudget {
    bytes: u64,
    /// Bytes of answers that clients have yet to take, as of the last look.
    answers: AtomicU64,
    /// Bytes of requests' bodies that backends have yet to take.
    uploads: AtomicU64,
    /// Whether there was none for somebody since the last look.
    wanted: AtomicBool,
}

/// What one has.
#[derive(Default)]
pub(super) struct BufferedBytes {
    /// Bytes of answers taken for this client, and bytes that it has taken in turn, where one answer follows the other.
    taken: AtomicU64,
    given: AtomicU64,
    /// Bytes of the answers of its streams that are in memory, and how many of them wait for the client.
    queued: AtomicU64,
    waiting: AtomicUsize,
    /// Bytes of the request's body that the backend has yet to take, as far as they are counted.
    carried: AtomicU64,
    /// Bytes of the request's body that are held back until it is whole.
    back: AtomicU64,
    /// Whether a part of a body waits for others to be taken.
    waits_for_room: AtomicBool,
}

/// A part of a request's body on its way to a backend, counted until it is there or nowhere.
struct CountedPart {
    bytes: Bytes,
    connection: Arc<Connection>,
}

/// A part of a stream's answer, counted until it is in the socket or nowhere.
struct QueuedPart {
    bytes: Bytes,
    parent: Arc<Connection>,
}

/// A request's body that is held back until it is whole, counted from its first byte until it is there or nowhere.
pub struct BufferedBody {
    bytes: Vec<u8>,
    /// How long it will be, where that is known.
    length: Option<usize>,
    counted: u64,
    connection: Arc<Connection>,
}

/// Bytes of a request's body that are kept beside those on their way, counted until this is dropped.
pub struct KeptBytesGuard {
    counted: u64,
    connection: Arc<Connection>,
}

/// A stream's wait for its client to take a part of the answer.
pub struct PartWaitGuard<'c> {
    stream: &'c Connection,
    waits: bool,
}

// === impl MemoryBudget ===

impl MemoryBudget {
    pub(super) const fn new(bytes: u64) -> Self {
        Self { bytes, answers: AtomicU64::new(0), uploads: AtomicU64::new(0), wanted: AtomicBool::new(false) }
    }
}

impl super::ConnectionDefaults {
    /// That so many bytes of answers were found. Answers how many there are of all bodies, and by how many those of answers
    /// are too many.
    pub(in crate::proxy) fn set_answer_bytes(&self, answers: u64) -> (u64, u64) {
        let MemoryBudget { bytes, .. } = self.budget;
        self.budget.answers.store(answers, Ordering::Relaxed);
        let uploads = self.budget.uploads.load(Ordering::Relaxed);
        // What uploads have beyond their half is not those to blame who read answers.
        (answers + uploads, (answers + uploads.min(bytes / 2)).saturating_sub(bytes))
    }

    /// Whether there is no room for uploads, or was none for somebody who has gone for it since this was asked last.
    pub(in crate::proxy) fn take_room_wanted(&self) -> bool {
        self.budget.wanted.swap(false, Ordering::Relaxed) || !self.has_room()
    }

    /// How much is to be free again then.
    pub(in crate::proxy) const fn relief(&self) -> u64 {
        self.budget.bytes / 16
    }

    /// Whether more of requests' bodies may be read. They have at most half of the memory, so that backends which take
    /// nothing cost clients nothing that take their answers.
    pub(in crate::proxy) fn has_room(&self) -> bool {
        let MemoryBudget { bytes, answers, uploads, .. } = &self.budget;
        let uploads = uploads.load(Ordering::Relaxed);
        uploads < bytes / 2 && uploads + answers.load(Ordering::Relaxed) < *bytes
    }
}

// === impl CountedPart ===

impl AsRef<[u8]> for CountedPart {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for CountedPart {
    fn drop(&mut self) {
        let (bytes, connection) = (len(&self.bytes), &self.connection);
        connection.shared.budget.uploads.fetch_sub(bytes, Ordering::Relaxed);
        if connection.buffered.carried.fetch_sub(bytes, Ordering::Relaxed) == bytes {
            connection.restart_body_deadline();
        }
    }
}

// === impl QueuedPart ===

impl AsRef<[u8]> for QueuedPart {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for QueuedPart {
    fn drop(&mut self) {
        self.parent.buffered.queued.fetch_sub(len(&self.bytes), Ordering::Relaxed);
    }
}

// === impl BufferedBody ===

impl BufferedBody {
    /// Nothing yet.
    pub fn new(connection: &Arc<Connection>, length: Option<u64>) -> Self {
        let length = length.and_then(|length| usize::try_from(length).ok());
        Self { bytes: Vec::new(), length, counted: 0, connection: Arc::clone(connection) }
    }

    /// Bytes so far.
    pub fn so_far(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Keeps another part. Answers whether there was room for it.
    #[must_use]
    pub fn add(&mut self, part: &[u8]) -> bool {
        let needed = self.bytes.len() + part.len();
        if needed > self.bytes.capacity() && !self.grow(needed) {
            return false;
        }
        self.bytes.extend_from_slice(part);
        true
    }

    /// Takes up as much as is needed, in leaps, and not more than it will be. That is what counts.
    fn grow(&mut self, needed: usize) -> bool {
        if !self.connection.check_room() {
            return false;
        }
        let leap = self.bytes.capacity().saturating_mul(2).min(self.length.unwrap_or(usize::MAX));
        self.bytes.reserve_exact(leap.max(needed) - self.bytes.len());
        let takes = u64::try_from(self.bytes.capacity()).unwrap_or(u64::MAX);
        let more = takes.saturating_sub(self.counted);
        self.counted += more;
        self.connection.shared.budget.uploads.fetch_add(more, Ordering::Relaxed);
        self.connection.buffered.back.fetch_add(more, Ordering::Relaxed);
        true
    }

    /// The whole of it.
    pub fn whole(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for BufferedBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for BufferedBody {
    fn drop(&mut self) {
        self.connection.shared.budget.uploads.fetch_sub(self.counted, Ordering::Relaxed);
        self.connection.buffered.back.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

// === impl KeptBytesGuard ===

impl KeptBytesGuard {
    /// Counts more. Answers whether there was room for it.
    #[must_use]
    pub fn add(&mut self, bytes: usize) -> bool {
        let has_room = self.connection.shared.has_room();
        if has_room {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            self.counted += bytes;
            self.connection.shared.budget.uploads.fetch_add(bytes, Ordering::Relaxed);
        }
        has_room
    }
}

impl Drop for KeptBytesGuard {
    fn drop(&mut self) {
        self.connection.shared.budget.uploads.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

// === impl PartWaitGuard ===

impl PartWaitGuard<'_> {
    /// Whether it waits at the moment.
    pub fn set(&mut self, waits: bool) {
        if waits == self.waits {
            return;
        }
        self.waits = waits;
        self.stream.set_part_pending(waits);
        if let Some(parent) = &self.stream.parent {
            if waits {
                parent.buffered.waiting.fetch_add(1, Ordering::Relaxed);
            } else {
                parent.buffered.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for PartWaitGuard<'_> {
    fn drop(&mut self) {
        self.set(false);
    }
}

// === impl BufferedBytes ===

impl BufferedBytes {
    /// Another request begins.
    pub(super) fn begin(&self) {
        self.taken.store(0, Ordering::Relaxed);
        self.given.store(0, Ordering::Relaxed);
    }
}

impl Connection {
    /// A part of an answer is there for this client. Of a stream, which may be reset at any time, it counts itself: what HTTP/2
    /// holds of it is seen by nobody else.
    pub fn on_buffered(&self, part: &mut Bytes) {
        let Some(parent) = &self.parent else {
            self.buffered.taken.fetch_add(len(part), Ordering::Relaxed);
            return;
        };
        if !part.is_empty() {
            parent.buffered.queued.fetch_add(len(part), Ordering::Relaxed);
            let bytes = std::mem::take(part);
            *part = Bytes::from_owner(QueuedPart { bytes, parent: Arc::clone(parent) });
        }
    }

    /// A part of a stream's answer is about to be written.
    pub const fn part_wait_guard(&self) -> PartWaitGuard<'_> {
        PartWaitGuard { stream: self, waits: false }
    }

    /// The client has taken so many bytes.
    pub fn on_flushed(&self, bytes: usize) {
        self.buffered.given.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.takes_bytes(bytes);
    }

    /// Whether there is room for more bodies in memory.
    pub fn check_room(&self) -> bool {
        let has_room = self.shared.has_room();
        if !has_room {
            self.shared.budget.wanted.store(true, Ordering::Relaxed);
        }
        has_room
    }

    /// Returns when there is room for more of the request's body, or the connection ends.
    pub async fn wait_for_room(&self) {
        std::future::poll_fn(|context| {
            self.register_waker(context);
            self.buffered.waits_for_room.store(true, Ordering::Release);
            let goes_on = self.check_room() || self.close_reason().is_some();
            if goes_on { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.buffered.waits_for_room.store(false, Ordering::Release);
    }

    /// There is room: whoever waits for it goes on.
    pub(in crate::proxy) fn wake_if_waiting_for_room(&self) {
        if self.buffered.waits_for_room.load(Ordering::Acquire) {
            self.close.wake();
        }
    }

    /// Counts a part of the request's body until the backend has it.
    pub fn count_upload(self: &Arc<Self>, part: Bytes) -> Bytes {
        self.shared.budget.uploads.fetch_add(len(&part), Ordering::Relaxed);
        self.buffered.carried.fetch_add(len(&part), Ordering::Relaxed);
        Bytes::from_owner(CountedPart { bytes: part, connection: Arc::clone(self) })
    }

    /// Begins to count what is kept of a body, so that it can be sent again.
    pub fn kept_bytes_guard(self: &Arc<Self>) -> KeptBytesGuard {
        KeptBytesGuard { counted: 0, connection: Arc::clone(self) }
    }

    /// Whether a stream waits for the backend to take what it has. A socket is not read then, and so waits for nobody.
    pub(super) fn waits_for_backend(&self) -> bool {
        self.is_stream() && self.buffered.carried.load(Ordering::Relaxed) > 0
    }

    /// Bytes of answers held for this client, about.
    pub(in crate::proxy) fn bytes(&self) -> u64 {
        let BufferedBytes { taken, given, queued, waiting, .. } = &self.buffered;
        let kept = taken.load(Ordering::Relaxed).saturating_sub(given.load(Ordering::Relaxed));
        let waiting = u64::try_from(waiting.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        let pipes = waiting.max(self.is_stalled().into());
        let each = if self.is_in_exchange() { 2 * EXCHANGE_BUFFER as u64 } else { PIPE_BYTES };
        kept + queued.load(Ordering::Relaxed) + pipes.saturating_mul(each)
    }

    /// Whether ending it may free memory: it takes nothing, or one of its streams does not.
    pub(in crate::proxy) fn may_free_memory(&self) -> bool {
        self.is_stalled() || self.buffered.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes of its request's body that are held back.
    pub(in crate::proxy) fn buffered_body_bytes(&self) -> u64 {
        self.buffered.back.load(Ordering::Relaxed)
    }
}

fn len(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
