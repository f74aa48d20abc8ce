//! Memory held by the message bodies of a client: responses that the client has yet to accept, uploads that the
//! backend has yet to accept, and request bodies buffered until they are complete.

use super::Connection;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

/// Maximum response bytes on the way to a client before its socket: Pingora's pipe of four parts of 64 KiB, one more
/// part held by the code that fills it, and the buffer for the next read.
const PIPE_BYTES: u64 = 6 * 64 * 1024;

/// Size of the body buffer of an exchange (HTTP/1.1 on both sides) in one direction, in bytes.
pub(in crate::proxy) const EXCHANGE_BUFFER: usize = 16 * 1024;

/// Memory budget for the bodies of all clients.
pub(super) struct MemoryBudget {
    bytes: u64,
    /// Response bytes that clients have yet to accept, as of the last check.
    answers: AtomicU64,
    /// Request body bytes in memory.
    uploads: AtomicU64,
    /// Whether an upload found no room since the last check.
    wanted: AtomicBool,
}

/// Bytes in memory for one connection or stream.
#[derive(Default)]
pub(super) struct BufferedBytes {
    /// Response bytes received for this client, and bytes it has accepted. Only where one response follows another,
    /// as in HTTP/1.1.
    taken: AtomicU64,
    given: AtomicU64,
    /// Response bytes of its streams in memory, and the number of streams that wait for the client.
    queued: AtomicU64,
    waiting: AtomicUsize,
    /// Request body bytes that the backend has yet to accept, as far as they are counted.
    carried: AtomicU64,
    /// Bytes of a request body buffered until it is complete.
    back: AtomicU64,
    /// Bytes of its large buffers in use.
    pub(super) large: AtomicU64,
    /// Whether a part of a body waits for room in the budget.
    waits_for_room: AtomicBool,
}

/// A part of a request body on its way to a backend. It is counted until it is dropped, sent or not.
struct CountedPart {
    bytes: Bytes,
    connection: Arc<Connection>,
}

/// A part of a stream's response. It is counted until it is dropped, written to the socket or not.
struct QueuedPart {
    bytes: Bytes,
    parent: Arc<Connection>,
}

/// A request body buffered until it is complete. It is counted from its first byte until it is dropped, sent or not.
pub struct BufferedBody {
    bytes: Vec<u8>,
    /// Length of the body, if known.
    length: Option<usize>,
    counted: u64,
    connection: Arc<Connection>,
}

/// Counts request body bytes kept for a retry, until it is dropped.
pub struct KeptBytesGuard {
    counted: u64,
    connection: Arc<Connection>,
}

/// Marks a stream as waiting for its client to accept a part of the response.
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
    /// Records the response bytes in memory. Returns the bytes of all bodies, and by how much responses exceed the
    /// budget.
    pub(in crate::proxy) fn set_answer_bytes(&self, answers: u64) -> (u64, u64) {
        let MemoryBudget { bytes, .. } = self.budget;
        self.budget.answers.store(answers, Ordering::Relaxed);
        let uploads = self.budget.uploads.load(Ordering::Relaxed);
        // Uploads above their half of the budget must not close clients that read responses.
        (answers + uploads, (answers + uploads.min(bytes / 2)).saturating_sub(bytes))
    }

    /// Whether there is no room for uploads, or an upload found none since the last call.
    pub(in crate::proxy) fn take_room_wanted(&self) -> bool {
        self.budget.wanted.swap(false, Ordering::Relaxed) || !self.has_room()
    }

    /// How many bytes should be freed then.
    pub(in crate::proxy) const fn relief(&self) -> u64 {
        self.budget.bytes / 16
    }

    /// Whether more of request bodies may be read. Uploads may use at most half of the budget, so that backends that
    /// accept nothing do not affect clients that read their responses.
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
    /// An empty buffer for a body.
    pub fn new(connection: &Arc<Connection>, length: Option<u64>) -> Self {
        let length = length.and_then(|length| usize::try_from(length).ok());
        Self { bytes: Vec::new(), length, counted: 0, connection: Arc::clone(connection) }
    }

    /// Bytes buffered so far.
    pub fn so_far(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Appends a part. Returns whether there was room for it.
    #[must_use]
    pub fn add(&mut self, part: &[u8]) -> bool {
        let needed = self.bytes.len() + part.len();
        if needed > self.bytes.capacity() && !self.grow(needed) {
            return false;
        }
        self.bytes.extend_from_slice(part);
        true
    }

    /// Grows the buffer to at least `needed` bytes. It doubles, but not beyond the known length of the body. The
    /// capacity is what counts in the budget.
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

    /// The buffered body.
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
    /// Counts more bytes. Returns whether there was room for them.
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
    /// Sets whether the stream waits now.
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
    /// Resets the response counters for the next request.
    pub(super) fn begin(&self) {
        self.taken.store(0, Ordering::Relaxed);
        self.given.store(0, Ordering::Relaxed);
    }
}

impl Connection {
    /// Counts a part of a response received for this client. A part of a stream is wrapped and counts itself, because
    /// the stream may be reset at any time and the bytes in the HTTP/2 buffers are not visible elsewhere.
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

    /// A guard for writing a part of a stream's response.
    pub const fn part_wait_guard(&self) -> PartWaitGuard<'_> {
        PartWaitGuard { stream: self, waits: false }
    }

    /// The client has accepted this many bytes.
    pub fn on_flushed(&self, bytes: usize) {
        self.buffered.given.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.takes_bytes(bytes);
    }

    /// Whether there is room for more bodies in memory. If not, the next check closes slow uploads.
    pub fn check_room(&self) -> bool {
        let has_room = self.shared.has_room();
        if !has_room {
            self.shared.budget.wanted.store(true, Ordering::Relaxed);
        }
        has_room
    }

    /// Returns when there is room for more of the request body, or the connection is being closed.
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

    /// Wakes the task if it waits for room.
    pub(in crate::proxy) fn wake_if_waiting_for_room(&self) {
        if self.buffered.waits_for_room.load(Ordering::Acquire) {
            self.close.wake();
        }
    }

    /// Counts a part of the request body until it is dropped.
    pub fn count_upload(self: &Arc<Self>, part: Bytes) -> Bytes {
        self.shared.budget.uploads.fetch_add(len(&part), Ordering::Relaxed);
        self.buffered.carried.fetch_add(len(&part), Ordering::Relaxed);
        Bytes::from_owner(CountedPart { bytes: part, connection: Arc::clone(self) })
    }

    /// Starts counting body bytes that are kept for a retry.
    pub fn kept_bytes_guard(self: &Arc<Self>) -> KeptBytesGuard {
        KeptBytesGuard { counted: 0, connection: Arc::clone(self) }
    }

    /// Whether a stream waits for the backend to accept its upload. An HTTP/1.1 socket is not read meanwhile, so it
    /// does not wait for the client.
    pub(super) fn waits_for_backend(&self) -> bool {
        self.is_stream() && self.buffered.carried.load(Ordering::Relaxed) > 0
    }

    /// Response bytes held for this client, approximately.
    pub(in crate::proxy) fn bytes(&self) -> u64 {
        let BufferedBytes { taken, given, queued, waiting, large, .. } = &self.buffered;
        let kept = taken.load(Ordering::Relaxed).saturating_sub(given.load(Ordering::Relaxed));
        let waiting = u64::try_from(waiting.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        let pipes = waiting.max(self.is_stalled().into());
        let each = if self.is_in_exchange() { 2 * EXCHANGE_BUFFER as u64 } else { PIPE_BYTES };
        kept + queued.load(Ordering::Relaxed) + large.load(Ordering::Relaxed) + pipes.saturating_mul(each)
    }

    /// Whether closing it may free memory: the client, or a stream of it, does not accept its response.
    pub(in crate::proxy) fn may_free_memory(&self) -> bool {
        self.is_stalled() || self.buffered.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes of its request body that are buffered until it is complete.
    pub(in crate::proxy) fn buffered_body_bytes(&self) -> u64 {
        self.buffered.back.load(Ordering::Relaxed)
    }
}

fn len(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
