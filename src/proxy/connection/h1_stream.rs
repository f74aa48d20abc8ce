//! A client's socket over HTTP/1.1. A reader gets the bytes of one request and no more.
//!
//! Must not know: what a request asks for. Bytes after a request body stay in the buffer for the next request, so
//! that pipelined requests are never read as a body. Invalid framing, missed deadlines and a connection closed
//! elsewhere are socket errors.

mod protocol;
mod write;

use super::socket::{HangUpWatch, Socket};
use super::{BODY_BUT_END, BODY_COMES, BODY_WHOLE, CloseReason, Connection, EXCHANGE_BUFFER};
use crate::policy::http::chunks::{BadChunks, ChunkParser};
use crate::policy::http::head::Framing;
use bytes::{Buf, BytesMut};
use pingora::protocols::UniqueIDType;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Size of the write buffer: the head and a small body of a response leave in one packet.
const WRITE_BUFFER: usize = 1_460;
/// Size of one read while a head is awaited.
const READ_AT_ONCE: usize = 4_096;
/// Maximum bytes read of the next requests while one is being served, beside those that arrived with its end.
const AHEAD_MAX: usize = 16 * 1024;
/// Maximum bytes of a body that are returned together with its head. Readers treat them like any other part.
const ALONG: usize = 64 * 1024;
/// The end of a chunked response. Pingora writes it separately.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// Probes whether a client that has closed its side is still there: one that has left resets the connection.
const STILL_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client's socket.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the stream")]
pub(in crate::proxy) struct H1ClientStream {
    io: BufWriter<Socket>,
    id: UniqueIDType,
    connection: Arc<Connection>,
    gate: BodyFraming,
    /// The last byte of the body while it is withheld from the reader.
    kept_byte: Option<u8>,
    /// Bytes received and not read yet.
    read_buf: BytesMut,
    /// The rest of a response head that is written with another `Date` than Pingora's.
    head: BytesMut,
    /// Detects that the client disconnects when the buffer is full and the socket is not read.
    hang_up: Option<HangUpWatch>,
    /// Set if the client has closed its side after its request: bytes written of the probe ([`STILL_THERE`]).
    half_closed: Option<usize>,
    /// Whether anything was written since the request began.
    answered: bool,
    /// Whether the end of the response is withheld until the request's permits are released.
    keeps_end: bool,
    /// Whether closing the socket resets the connection.
    resets: bool,
    /// Whether the client has left and its answer is read on: what is written goes nowhere.
    is_sink: bool,
    /// Where the stream is put if Pingora drops it too early.
    dropped: Option<DroppedStream>,
}

/// A slot for a stream that Pingora drops.
#[derive(Clone, Default)]
pub(in crate::proxy) struct DroppedStream(Arc<Mutex<Option<ReturnedStream>>>);

/// A stream that Pingora has dropped.
pub(in crate::proxy) enum ReturnedStream {
    /// It can carry the next request.
    Open(Box<H1ClientStream>),
    /// The request was not read completely. Closing the socket at once could destroy the response (RFC 9112, 9.6).
    Unread(Box<H1ClientStream>),
}

/// Which bytes still belong to the request.
#[derive(Debug)]
enum BodyFraming {
    /// The rest of a body of known length.
    Length(u64),
    /// The rest of a chunked body.
    Chunked(ChunkParser),
    /// None: the request has been read completely.
    Closed,
}

// === impl H1ClientStream ===

impl H1ClientStream {
    /// Wraps `socket`.
    pub(in crate::proxy) fn new(socket: Socket, connection: Arc<Connection>) -> Self {
        let id = socket.id();
        let io = BufWriter::with_capacity(WRITE_BUFFER, socket);
        Self {
            io,
            id,
            connection,
            gate: BodyFraming::Closed,
            kept_byte: None,
            read_buf: BytesMut::new(),
            head: BytesMut::new(),
            hang_up: None,
            half_closed: None,
            answered: false,
            keeps_end: false,
            resets: false,
            is_sink: false,
            dropped: None,
        }
    }

    /// Puts the stream into `dropped` if it is dropped too early.
    pub(in crate::proxy) fn return_to(&mut self, dropped: &DroppedStream) {
        self.dropped = Some(dropped.clone());
    }

    /// The buffered bytes of the next request.
    pub(in crate::proxy) fn buffered(&self) -> &[u8] {
        &self.read_buf
    }

    /// Discards the first `n` of them.
    pub(in crate::proxy) fn skip(&mut self, n: usize) {
        self.read_buf.advance(n.min(self.read_buf.len()));
    }

    /// Reads more of the next request. 0: the client has closed its side.
    pub(in crate::proxy) async fn fill(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_more(context)).await
    }

    /// Starts a request with a head of `head` bytes. Returns the head and the part of the body already here.
    pub(in crate::proxy) fn begin(&mut self, head: usize, framing: Framing) -> Result<BytesMut, BadChunks> {
        self.hang_up = None;
        let rest = &self.read_buf[head..];
        let rest = &rest[..rest.len().min(ALONG)];
        let body = match framing {
            Framing::NoBody => {
                self.gate = BodyFraming::Closed;
                0
            }
            Framing::Length(length) => {
                let here = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                self.gate = BodyFraming::of_length(length - u64::try_from(here).unwrap_or(length));
                here
            }
            Framing::Chunked => {
                let mut chunks = ChunkParser::new();
                let here = chunks.pass(rest)?;
                self.gate = BodyFraming::of_chunks(chunks);
                here
            }
        };
        self.answered = false;
        self.kept_byte = None;
        let is_whole = self.is_between_requests();
        self.connection.set_body_progress(if is_whole { BODY_WHOLE } else { BODY_COMES });
        let taken = head + body;
        // Splitting allocates; the usual request is alone in the buffer and does not need it.
        Ok(if taken == self.read_buf.len() {
            std::mem::take(&mut self.read_buf)
        } else {
            self.read_buf.split_to(taken)
        })
    }

    /// Whether anything was written since then.
    pub(in crate::proxy) const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Writes the withheld end of the response, after its request has ended.
    pub(in crate::proxy) async fn let_go(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.keeps_end) { self.flush().await } else { Ok(()) }
    }

    /// Whether the current request has been read completely.
    pub(in crate::proxy) const fn is_between_requests(&self) -> bool {
        matches!(self.gate, BodyFraming::Closed)
    }

    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.check_end()?;
        if self.is_sink {
            return Poll::Ready(Ok(0));
        }
        self.connection.register_waker(context);
        if self.read_buf.is_empty() {
            // An idle connection holds no buffer.
            self.read_buf = BytesMut::new();
            if let Socket::Plain(stream) = self.io.get_ref() {
                ready!(stream.poll_read_ready(context))?;
            }
        }
        self.read_buf.reserve(READ_AT_ONCE);
        poll_read_buf(Pin::new(self.io.get_mut()), context, &mut self.read_buf)
    }

    fn check_end(&self) -> io::Result<()> {
        match self.connection.close_reason() {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl BodyFraming {
    const fn of_length(left: u64) -> Self {
        if left == 0 { Self::Closed } else { Self::Length(left) }
    }

    fn of_chunks(chunks: ChunkParser) -> Self {
        if chunks.is_done() { Self::Closed } else { Self::Chunked(chunks) }
    }

    /// How many bytes are read at once: little more than the body, because what follows it is kept during the response.
    fn at_once(&self) -> u64 {
        let left = if let Self::Length(left) = self { *left } else { 0 };
        left.saturating_add(EXCHANGE_BUFFER as u64)
    }

    /// How many of the next `bytes` belong to the body.
    fn pass(&mut self, bytes: &[u8]) -> Result<usize, BadChunks> {
        let (passed, gate) = match self {
            Self::Closed => return Ok(0),
            Self::Length(left) => {
                let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(*left);
                (usize::try_from(here).unwrap_or(bytes.len()), Self::of_length(*left - here))
            }
            Self::Chunked(chunks) => (chunks.pass(bytes)?, Self::of_chunks(*chunks)),
        };
        *self = gate;
        Ok(passed)
    }
}

impl AsyncRead for H1ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_end()?;
        self.connection.register_waker(context);
        if self.is_sink {
            // Only closing the connection ends the wait.
            return Poll::Pending;
        }
        if let Err(error) = self.send_gathered(context) {
            return if self.become_sink() { Poll::Pending } else { Poll::Ready(Err(error)) };
        }
        if self.connection.is_tunnel() {
            return self.poll_tunnel(context, into);
        }
        if let Some(byte) = self.kept_byte {
            if self.connection.keeps_body_end() {
                return Poll::Pending;
            }
            self.kept_byte = None;
            self.connection.set_body_progress(BODY_WHOLE);
            into.put_slice(&[byte]);
            return Poll::Ready(Ok(()));
        }
        if self.is_between_requests() {
            let closed = self.poll_closed(context);
            return if closed.is_ready() && self.become_sink() { Poll::Pending } else { closed };
        }
        let before = into.filled().len();
        let polled = self.poll_body(context, into);
        match polled {
            Poll::Pending => self.connection.on_read_pending(),
            Poll::Ready(_) => self.connection.on_read(into.filled().len() - before),
        }
        polled
    }
}

impl H1ClientStream {
    fn poll_body(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        if self.read_buf.is_empty() {
            let most = self.gate.at_once();
            ready!(Pin::new(&mut self.io.get_mut().take(most)).poll_read(context, into))?;
        } else {
            let here = self.read_buf.len().min(into.remaining());
            into.put_slice(&self.read_buf.split_to(here));
        }
        let came = &into.filled()[before..];
        let Ok(passed) = self.gate.pass(came) else {
            self.connection.close_with(CloseReason::BadChunks);
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        };
        if passed < came.len() {
            // The start of the next request. Bytes buffered earlier come after it.
            let mut next = BytesMut::from(&came[passed..]);
            next.extend_from_slice(&self.read_buf);
            self.read_buf = next;
            into.set_filled(before + passed);
        }
        if self.is_between_requests() {
            return self.keep_end(into, before);
        }
        Poll::Ready(Ok(()))
    }

    /// The body is complete. Its last byte is withheld if the reader must not see the end yet.
    fn keep_end(&mut self, into: &mut ReadBuf<'_>, before: usize) -> Poll<io::Result<()>> {
        let last = into.filled().len().checked_sub(1).filter(|last| *last >= before);
        let Some(last) = last.filter(|_| self.connection.keeps_body_end()) else {
            self.connection.set_body_progress(BODY_WHOLE);
            return Poll::Ready(Ok(()));
        };
        self.kept_byte = Some(into.filled()[last]);
        into.set_filled(last);
        self.connection.set_body_progress(BODY_BUT_END);
        // Returning no byte would mean the end of the stream. The task that withholds the end checks for it.
        if last == before { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// The request has been read completely, so only a disconnect of the client matters.
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.half_closed.is_none() {
            ready!(self.poll_end(context))?;
            if self.answered && self.connection.has_answer() {
                // A client that closes after the response has started has disconnected.
                return Poll::Ready(Ok(()));
            }
            self.half_closed = Some(0);
            self.connection.mark_half_closed();
        }
        self.poll_still_there(context)
    }

    /// A response starts: finds out whether the client closed its side before it could read any of it.
    fn look_for_end(&mut self, context: &mut Context<'_>) {
        let may_have_ended = !self.answered && self.half_closed.is_none() && self.is_between_requests();
        // An error will be found by the write.
        if may_have_ended
            && !self.connection.is_tunnel()
            && matches!(self.poll_end(context), Poll::Ready(Ok(())))
        {
            self.half_closed = Some(0);
            self.connection.mark_half_closed();
        }
    }

    /// Finds out whether a client that has closed its side has left. It may just have nothing more to send (RFC 9112,
    /// 9.6 allows servers the same), and then gets its response. After a while it is probed with an interim response.
    fn poll_still_there(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(asked) = self.half_closed.filter(|_| self.connection.may_have_left_now()) else {
            return Poll::Pending;
        };
        if let Some(error) = self.io.get_ref().error()? {
            return Poll::Ready(Err(error));
        }
        if asked < STILL_THERE.len()
            && !self.connection.is_http10()
            && self.head.is_empty()
            && self.io.buffer().is_empty()
        {
            let written = ready!(Pin::new(self.io.get_mut()).poll_write(context, &STILL_THERE[asked..]))?;
            self.half_closed = Some(asked + written);
            ready!(Pin::new(self.io.get_mut()).poll_flush(context))?;
        }
        Poll::Pending
    }

    /// Ready once the client has closed its side.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.read_buf.len() < AHEAD_MAX {
            if ready!(self.poll_more(context))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let hang_up = match self.hang_up.take() {
            Some(hang_up) => hang_up,
            None => HangUpWatch::of(self.io.get_ref())?,
        };
        self.hang_up.insert(hang_up).poll(context)
    }

    fn poll_tunnel(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read_buf.is_empty() {
            return Pin::new(self.io.get_mut()).poll_read(context, into);
        }
        let here = self.read_buf.len().min(into.remaining());
        into.put_slice(&self.read_buf.split_to(here));
        Poll::Ready(Ok(()))
    }

    /// Whether to read on after the response: the client has or gets one, can still receive it, and is still sending.
    fn must_read_rest(&self) -> bool {
        if self.is_sink
            || self.connection.close_ends_answer()
            || self.connection.close_reason() == Some(CloseReason::RestLate)
        {
            return false;
        }
        if self.connection.close_reason() == Some(CloseReason::Unheard) {
            return !self.connection.is_tunnel();
        }
        let sends_on = !self.is_between_requests() || !self.read_buf.is_empty();
        let takes_nothing = self.connection.is_stalled();
        let can_be_told =
            self.connection.close_reason().is_none_or(CloseReason::can_answer) && !takes_nothing;
        self.answered && sends_on && can_be_told && !self.connection.is_tunnel()
    }

    /// Pingora flushes a response of known length only at its end. It reads from the client when it has no more of
    /// the response to write; buffered bytes are sent then.
    fn send_gathered(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.io.buffer().is_empty() && self.head.is_empty() {
            return Ok(());
        }
        let polled = self.poll_flush_all(context);
        match self.written(polled) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.head.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.head))?;
            self.head.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush_all(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_head(context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    /// Makes closing the socket reset the connection while a response is sent that would seem complete otherwise.
    fn heed_end(&mut self) {
        let resets = self.connection.close_ends_answer();
        if resets != self.resets {
            self.resets = resets;
            if let Err(error) = self.io.get_ref().resets(resets) {
                tracing::trace!(%error, "a socket does not say how it is closed");
            }
        }
    }

    fn written<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.connection.set_write_pending(polled.is_pending());
        polled
    }

    fn on_written(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.answered = true;
            self.connection.on_flushed(bytes);
        }
        polled
    }

    /// Fails if the client can no longer be written to.
    fn check_write(&self, context: &Context<'_>) -> io::Result<()> {
        match self.connection.close_reason() {
            Some(end) if !end.can_answer() || self.connection.is_cut_off() => {
                Err(io::ErrorKind::TimedOut.into())
            }
            _ => {
                self.connection.register_waker(context);
                Ok(())
            }
        }
    }
}

impl Drop for H1ClientStream {
    fn drop(&mut self) {
        // Of an incomplete response, buffered bytes are sent as far as the socket accepts them at once.
        self.heed_end();
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(Err(error)) = self.poll_flush_all(&mut context) {
            tracing::trace!(%error, "client disconnected");
        }
        let Some(dropped) = self.dropped.take() else { return };
        let stays = self.connection.take_keep_open() && self.is_between_requests();
        if stays || self.must_read_rest() {
            let rest = Box::new(Self {
                io: std::mem::replace(&mut self.io, BufWriter::with_capacity(0, Socket::Moved)),
                id: self.id,
                connection: Arc::clone(&self.connection),
                gate: BodyFraming::Closed,
                kept_byte: None,
                read_buf: if stays { std::mem::take(&mut self.read_buf) } else { BytesMut::new() },
                head: std::mem::take(&mut self.head),
                hang_up: None,
                half_closed: self.half_closed,
                answered: self.answered,
                keeps_end: false,
                resets: false,
                is_sink: false,
                dropped: stays.then(|| dropped.clone()),
            });
            *dropped.place() =
                Some(if stays { ReturnedStream::Open(rest) } else { ReturnedStream::Unread(rest) });
        }
    }
}

impl DroppedStream {
    /// Takes the stream out of the slot.
    pub(in crate::proxy) fn take(&self) -> Option<ReturnedStream> {
        self.place().take()
    }

    fn place(&self) -> MutexGuard<'_, Option<ReturnedStream>> {
        // The slot is valid even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for H1ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Pingora logs streams at debug level; the buffered bytes may contain a secret.
        f.debug_struct("H1ClientStream").field("peer", &self.connection.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
