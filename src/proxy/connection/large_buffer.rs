//! Large buffers for bodies that arrive faster than small reads can take them.
//!
//! Must not know: what is read. There is a fixed number of them in the process; who gets none reads on in small parts.

use super::Connection;
use bytes::BytesMut;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size of a large buffer, in bytes.
pub(in crate::proxy) const LARGE_BUFFER: usize = 64 * 1024;
/// This many unused ones are kept for the next read.
const UNUSED_MAX: usize = 32;
/// The part of the budget for bodies that large buffers may take.
const SHARE: u64 = 8;

/// The large buffers of the process.
#[derive(Default)]
pub(super) struct LargeBuffers {
    /// How many are in use.
    used: AtomicU64,
    max: u64,
    /// The one used last is the next to be used, while the processor still has it in its cache.
    unused: Mutex<Vec<BytesMut>>,
}

/// A large buffer in use. It counts in what its connection holds, and is given back when it is dropped.
pub(in crate::proxy) struct LargeBuffer {
    bytes: BytesMut,
    connection: Arc<Connection>,
}

// === impl LargeBuffers ===

impl LargeBuffers {
    /// As many as fit into their share of `budget` bytes.
    pub(super) fn within(budget: u64) -> Self {
        Self { max: budget / SHARE / LARGE_BUFFER as u64, ..Self::default() }
    }

    fn take(&self) -> Option<BytesMut> {
        if self.used.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.used.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let unused = self.unused().pop();
        Some(unused.unwrap_or_else(|| BytesMut::with_capacity(LARGE_BUFFER)))
    }

    fn give_back(&self, mut bytes: BytesMut) {
        bytes.clear();
        let mut unused = self.unused();
        if unused.len() < UNUSED_MAX {
            unused.push(bytes);
        }
        drop(unused);
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    fn unused(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        // The list is valid even if a thread panicked while it held the lock.
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// A large buffer for a body of this client; none if all are in use.
    pub(in crate::proxy) fn large_buffer(self: &Arc<Self>) -> Option<LargeBuffer> {
        let bytes = self.shared.large_buffers.take()?;
        self.buffered.large.fetch_add(LARGE_BUFFER as u64, Ordering::Relaxed);
        Some(LargeBuffer { bytes, connection: Arc::clone(self) })
    }
}

// === impl LargeBuffer ===

impl Deref for LargeBuffer {
    type Target = BytesMut;

    fn deref(&self) -> &BytesMut {
        &self.bytes
    }
}

impl DerefMut for LargeBuffer {
    fn deref_mut(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }
}

impl Drop for LargeBuffer {
    fn drop(&mut self) {
        self.connection.buffered.large.fetch_sub(LARGE_BUFFER as u64, Ordering::Relaxed);
        self.connection.shared.large_buffers.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConnectionDefaults, Deadlines};
    use super::*;
    use std::time::Duration;

    #[test]
    fn large_buffers_are_few_counted_and_used_again() {
        let deadlines = Deadlines {
            first_byte: Duration::ZERO,
            head: Duration::ZERO,
            idle: Duration::ZERO,
            body: Duration::ZERO,
            write: Duration::ZERO,
            linger: Duration::ZERO,
            last_request: Duration::ZERO,
        };
        let budget = 3 * SHARE * LARGE_BUFFER as u64 + 1;
        let shared = Arc::new(ConnectionDefaults::new(deadlines, 0, budget));
        let connection = Arc::new(Connection::new(([127, 0, 0, 1], 1).into(), false, &shared));
        let mut first = connection.large_buffer().expect("the first");
        first.extend_from_slice(b"some");
        let place = first.as_ptr();
        let others =
            [connection.large_buffer().expect("the second"), connection.large_buffer().expect("the third")];
        assert!(connection.large_buffer().is_none(), "a share of the budget and no more");
        assert_eq!(connection.bytes(), 3 * LARGE_BUFFER as u64);
        drop(others);
        drop(first);
        assert_eq!(connection.bytes(), 0);
        let again = connection.large_buffer().expect("one that was given back");
        assert!(
            again.is_empty() && again.capacity() >= LARGE_BUFFER && again.as_ptr() == place,
            "the last one"
        );
        shared.large_buffers.used.fetch_add(2 * UNUSED_MAX as u64, Ordering::Relaxed);
        let many: Vec<_> = (0..2 * UNUSED_MAX).map(|_| BytesMut::with_capacity(LARGE_BUFFER)).collect();
        many.into_iter().for_each(|bytes| shared.large_buffers.give_back(bytes));
        assert_eq!(shared.large_buffers.unused().len(), UNUSED_MAX);
    }
}
