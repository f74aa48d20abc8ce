//! The part of a request body received so far, kept for a retry.
//!
//! Must not know: when a request is retried.

use super::{Connection, KeptBytesGuard};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// Maximum size of a kept body. A head and a body that are longer together could not be given to Pingora at once.
const KEPT_MAX: usize = 512 * 1024;

/// The part of a body received so far.
#[derive(Default)]
pub struct KeptBody {
    parts: Vec<Bytes>,
    bytes: usize,
    counted: Option<KeptBytesGuard>,
    /// Whether the body is too long, or there was no room for it.
    is_lost: bool,
}

// === impl KeptBody ===

impl KeptBody {
    /// Keeps a part that is about to be sent.
    pub(in crate::proxy) fn keep(&mut self, part: &Bytes, connection: &Arc<Connection>) {
        if self.is_lost || part.is_empty() {
            return;
        }
        self.bytes += part.len();
        let counted = self.counted.get_or_insert_with(|| connection.kept_bytes_guard());
        if self.bytes > KEPT_MAX || !counted.add(part.len()) {
            *self = Self { is_lost: true, ..Self::default() };
            return;
        }
        self.parts.push(part.clone());
    }

    /// Whether everything received so far is here.
    pub(in crate::proxy) const fn is_whole(&self) -> bool {
        !self.is_lost
    }

    /// Whether nothing is kept.
    pub(in crate::proxy) const fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(in crate::proxy) fn joined(&self) -> BytesMut {
        let mut all = BytesMut::with_capacity(self.bytes);
        self.parts.iter().for_each(|part| all.extend_from_slice(part));
        all
    }
}
