//! The body of a request on its way from the client: what is here of it, what is still to come, and whether it can be sent
//! again.
//!
//! Must not know: where it goes.

use super::ReadRequest;
use crate::policy::http::chunks::{BadChunks, ChunkParser};
use crate::policy::http::head::Framing;
use crate::proxy::connection::Connection;
use crate::proxy::connection::kept_body::KeptBody;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// A request's body.
pub(super) struct RequestBody {
    /// How the client says where it ends.
    pub(super) framing: Framing,
    /// How far into its chunks what was read is.
    chunks: ChunkParser,
    /// What of it goes first: what came along with the head, or all of it where it was read ahead.
    pub(super) here: Bytes,
    /// What of it was read since, where it may have to be sent again; none: it is not kept.
    kept: Option<KeptBody>,
    /// Bytes of it that were read.
    pub(super) read: u64,
    /// Whether any of it was read that is not here any more.
    is_spent: bool,
}

// === impl RequestBody ===

impl RequestBody {
    /// That of a request.
    pub(super) fn of(request: &ReadRequest) -> Result<Self, BadChunks> {
        let mut chunks = ChunkParser::new();
        let mut here = request.along.clone();
        if request.framing == Framing::Chunked {
            let mut along = BytesMut::from(&here[..]);
            let (data, _) = chunks.decode(&mut along)?;
            along.truncate(data);
            here = along.freeze();
        }
        let read = u64::try_from(here.len()).unwrap_or(u64::MAX);
        Ok(Self { framing: request.framing, chunks, here, kept: None, read, is_spent: false })
    }

    /// Whether the request has one.
    pub(super) fn exists(&self) -> bool {
        self.framing != Framing::NoBody
    }

    /// Takes note of a part that `client` has just sent: takes its framing off, and answers how much of it is left.
    pub(super) fn take(&mut self, part: &mut [u8], connection: &Arc<Connection>) -> Result<usize, BadChunks> {
        let data = match self.framing {
            Framing::Chunked => self.chunks.decode(part)?.0,
            _ => part.len(),
        };
        self.read += u64::try_from(data).unwrap_or(u64::MAX);
        match &mut self.kept {
            Some(kept) => kept.keep(&Bytes::copy_from_slice(&part[..data]), connection),
            None => self.is_spent |= data > 0,
        }
        Ok(data)
    }

    /// From now on what is read is kept, as far as there is room, so that it can be sent again.
    pub(super) fn keep(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// It has begun to be answered: it is not sent again.
    pub(super) fn stop_keeping(&mut self) {
        self.is_spent |= self.kept.take().is_some();
    }

    /// Whether all that was read of it is still here.
    pub(super) fn is_replayable(&self) -> bool {
        !self.is_spent && self.kept.as_ref().is_none_or(KeptBody::is_whole)
    }

    /// It is sent again, from its begin.
    pub(super) fn rewind(&mut self) {
        if let Some(kept) = self.kept.take_if(|kept| !kept.is_empty()) {
            let mut all = BytesMut::from(&self.here[..]);
            all.unsplit(kept.joined());
            self.here = all.freeze();
            self.keep();
        }
    }

    /// All of it has been read ahead.
    pub(super) fn set_whole(&mut self, body: Bytes) {
        self.here = body;
    }
}
