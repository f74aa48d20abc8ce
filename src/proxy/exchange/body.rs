//! The body of a request on its way from the client: the part in memory, the part still to be read, and whether it
//! can be sent again.
//!
//! Must not know: where it is sent.

use super::ReadRequest;
use crate::policy::http::chunks::{BadChunks, ChunkParser};
use crate::policy::http::head::Framing;
use crate::policy::meter::RequestReader;
use crate::proxy::connection::Connection;
use crate::proxy::connection::kept_body::KeptBody;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// A request body.
pub(super) struct RequestBody {
    /// How the client frames it.
    pub(super) framing: Framing,
    /// Position in the chunks of the bytes read so far.
    chunks: ChunkParser,
    /// The part that is sent first: received together with the head, or the whole body if it was read ahead.
    pub(super) here: Bytes,
    /// The parts read since, kept for a retry; none: they are not kept.
    kept: Option<KeptBody>,
    /// Body bytes read so far.
    pub(super) read: u64,
    /// Whether any part was read that is no longer in memory.
    is_spent: bool,
    /// Shown to the meter, if the route is metered.
    reader: Option<RequestReader>,
}

// === impl RequestBody ===

impl RequestBody {
    /// The body of a request.
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
        Ok(Self { framing: request.framing, chunks, here, kept: None, read, is_spent: false, reader: None })
    }

    /// Whether the request has a body.
    pub(super) fn exists(&self) -> bool {
        self.framing != Framing::NoBody
    }

    /// Records a part just read from the client and removes its chunk framing. Returns how many bytes of data are
    /// left.
    pub(super) fn take(&mut self, part: &mut [u8], connection: &Arc<Connection>) -> Result<usize, BadChunks> {
        let data = match self.framing {
            Framing::Chunked => self.chunks.decode(part)?.0,
            _ => part.len(),
        };
        self.read += u64::try_from(data).unwrap_or(u64::MAX);
        if let Some(reader) = &mut self.reader {
            reader.push(&part[..data]);
        }
        match &mut self.kept {
            Some(kept) => kept.keep(&Bytes::copy_from_slice(&part[..data]), connection),
            None => self.is_spent |= data > 0,
        }
        Ok(data)
    }

    /// Shows the body to `reader`: what has come of it, and what is read from now on.
    pub(super) fn read_with(&mut self, mut reader: RequestReader) {
        reader.push(&self.here);
        self.reader = Some(reader);
    }

    /// What the body was shown to.
    pub(super) fn take_reader(&mut self) -> Option<RequestReader> {
        self.reader.take()
    }

    /// Keeps all further parts for a retry, as long as there is room.
    pub(super) fn keep(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// A response has started, so the body is no longer needed for a retry.
    pub(super) fn stop_keeping(&mut self) {
        self.is_spent |= self.kept.take().is_some();
    }

    /// Whether the body read so far is still in memory completely.
    pub(super) fn is_replayable(&self) -> bool {
        !self.is_spent && self.kept.as_ref().is_none_or(KeptBody::is_whole)
    }

    /// Starts again from the beginning of the body, for a retry.
    pub(super) fn rewind(&mut self) {
        if let Some(kept) = self.kept.take_if(|kept| !kept.is_empty()) {
            let mut all = BytesMut::from(&self.here[..]);
            all.unsplit(kept.joined());
            self.here = all.freeze();
            self.keep();
        }
    }

    /// Stores what was read ahead, which is all that has come of the body.
    pub(super) fn set_here(&mut self, body: Bytes) {
        (self.here, self.is_spent) = (body, false);
    }

    /// Stores a body in place of the one that was read ahead.
    pub(super) fn change(&mut self, body: Bytes) {
        if let Framing::Length(length) = &mut self.framing {
            *length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        }
        self.set_here(body);
    }
}
