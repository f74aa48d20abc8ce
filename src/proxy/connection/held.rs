//! What of bodies is in memory for a client: answers it has yet to take, uploads the backend has yet to take.

use super::Connection;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

/// What may be on its way to a client beside what was handed to its socket: Pingora's pipe of four parts of 64 KiB.
const PIPE_BYTES: u64 = 4 * 64 * 1024;

/// What all clients may have in memory together.
pub(super) struct Budget {
    bytes: u64,
    /// Bytes of answers that clients have yet to take, as of the last look.
    answers: AtomicU64,
    /// Bytes of requests' bodies that backends have yet to take.
    uploads: AtomicU64,
}

/// What one has.
#[derive(Default)]
pub(super) struct Held {
    /// Bytes of bodies taken for this client, and bytes that it has taken in turn.
    taken: AtomicU64,
    given: AtomicU64,
    /// Bytes of the request's body that the backend has yet to take, as far as they are counted.
    carried: AtomicU64,
    /// Whether a part of a body waits for others to be taken.
    waits_for_room: AtomicBool,
}

/// A part of a request's body on its way to a backend, counted until it is there or nowhere.
struct Part {
    bytes: Bytes,
    connection: Arc<Connection>,
}

// === impl Budget ===

impl Budget {
    pub(super) const fn new(bytes: u64) -> Self {
        Self { bytes, answers: AtomicU64::new(0), uploads: AtomicU64::new(0) }
    }
}

impl super::Shared {
    /// That so many bytes of answers were found. Answers how many there are of all bodies.
    pub(in crate::proxy) fn found(&self, answers: u64) -> u64 {
        self.budget.answers.store(answers, Ordering::Relaxed);
        answers + self.budget.uploads.load(Ordering::Relaxed)
    }

    /// Whether more of requests' bodies may be read. They have at most half of the memory, so that backends which take
    /// nothing cost clients nothing that take their answers.
    pub(in crate::proxy) fn has_room(&self) -> bool {
        let Budget { bytes, answers, uploads } = &self.budget;
        let uploads = uploads.load(Ordering::Relaxed);
        uploads < bytes / 2 && uploads + answers.load(Ordering::Relaxed) < *bytes
    }
}

// === impl Part ===

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let (bytes, connection) = (len(&self.bytes), &self.connection);
        connection.shared.budget.uploads.fetch_sub(bytes, Ordering::Relaxed);
        if connection.held.carried.fetch_sub(bytes, Ordering::Relaxed) == bytes {
            connection.waits_anew();
        }
    }
}

// === impl Held ===

impl Held {
    /// Another request begins.
    pub(super) fn begin(&self) {
        self.taken.store(0, Ordering::Relaxed);
        self.given.store(0, Ordering::Relaxed);
    }
}

impl Connection {
    /// So many bytes of bodies are held for this client.
    pub fn takes(&self, bytes: usize) {
        if let Some(parent) = &self.parent {
            return parent.takes(bytes);
        }
        self.held.taken.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The client has taken so many bytes.
    pub fn gives(&self, bytes: usize) {
        self.held.given.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether there is room for more bodies in memory.
    pub fn has_room(&self) -> bool {
        self.shared.has_room()
    }

    /// Returns when there is room for more of the request's body, or the connection ends.
    pub async fn room(&self) {
        std::future::poll_fn(|context| {
            self.wakes(context);
            self.held.waits_for_room.store(true, Ordering::Release);
            let goes_on = self.has_room() || self.ends().is_some();
            if goes_on { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.held.waits_for_room.store(false, Ordering::Release);
    }

    /// There is room: whoever waits for it goes on.
    pub(in crate::proxy) fn has_found_room(&self) {
        if self.held.waits_for_room.load(Ordering::Acquire) {
            self.ending.wake();
        }
    }

    /// Counts a part of the request's body until the backend has it.
    pub fn carries(self: &Arc<Self>, part: Bytes) -> Bytes {
        self.shared.budget.uploads.fetch_add(len(&part), Ordering::Relaxed);
        self.held.carried.fetch_add(len(&part), Ordering::Relaxed);
        Bytes::from_owner(Part { bytes: part, connection: Arc::clone(self) })
    }

    /// Whether a stream waits for the backend to take what it has. A socket is not read then, and so waits for nobody.
    pub(super) fn waits_for_backend(&self) -> bool {
        self.is_stream() && self.held.carried.load(Ordering::Relaxed) > 0
    }

    /// Bytes of bodies held for this client, about.
    pub(in crate::proxy) fn bytes(&self) -> u64 {
        let (taken, given) = (&self.held.taken, &self.held.given);
        let kept = taken.load(Ordering::Relaxed).saturating_sub(given.load(Ordering::Relaxed));
        kept + if self.is_stalled() { PIPE_BYTES } else { 0 }
    }

    /// Whether ending it may free memory: it takes nothing, or has streams, each of which may take nothing.
    pub(in crate::proxy) fn may_hold(&self) -> bool {
        self.is_stalled() || (self.is_tunnel() && self.bytes() > 0)
    }
}

fn len(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
