//! A client's socket as Pingora sees it: it yields the bytes of one request and no more.
//!
//! Must not know: what a request asks for. What comes after a request's body waits here for the next one, so that
//! pipelined requests are never taken for a body; a body that is not framed as its head said, a client that is late or
//! stalls, and a connection that was ended elsewhere, are errors of the socket.

mod protocol;

use super::socket::{HangUpWatch, Socket};
use super::{BODY_BUT_END, BODY_COMES, BODY_WHOLE, CloseReason, Connection};
use crate::policy::http::chunks::{BadChunks, ChunkParser};
use crate::policy::http::head::Framing;
use bytes::{Buf, BytesMut};
use pingora::protocols::UniqueIDType;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is written at once is gathered up to so many bytes: an answer's head and a small body leave in one packet.
const WRITE_BUFFER: usize = 1_460;
/// Read at once while a head is awaited.
const READ_AT_ONCE: usize = 4_096;
/// While a request is being served, so much of the next ones is read, and what came with its last bytes.
const AHEAD_MAX: usize = 16 * 1024;
/// Most of a body that comes along with its head: a part like any other, as far as whoever reads it is concerned.
const ALONG: usize = 64 * 1024;
/// What a chunked answer ends with, as Pingora writes it: by itself.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// What shows whether a client that has closed its side is still there: whoever has left resets the connection.
const STILL_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client's socket.
pub(in crate::proxy) struct H1ClientStream {
    io: BufWriter<Socket>,
    id: UniqueIDType,
    connection: Arc<Connection>,
    gate: BodyFraming,
    /// The last byte of the body, where it is kept from whoever reads that.
    kept_byte: Option<u8>,
    /// Read, and not asked for yet.
    read_buf: BytesMut,
    /// What is left of a head that goes out with another `Date` than Pingora gave it.
    head: BytesMut,
    /// Tells that the client leaves, where so much is ahead that no more is read.
    hang_up: Option<HangUpWatch>,
    /// Whether the client has closed its side after its request, and how far it has been asked whether it is still there.
    half_closed: Option<Asked>,
    /// Whether anything was written since the request began.
    answered: bool,
    /// Whether the end of the answer waits until all that the request has taken is free.
    keeps_end: bool,
    /// Whether closing the socket resets the connection.
    resets: bool,
    /// Where it goes when Pingora drops it too early.
    dropped: Option<DroppedStream>,
}

/// Where a stream goes that Pingora drops.
#[derive(Clone, Default)]
pub(in crate::proxy) struct DroppedStream(Arc<Mutex<Option<ReturnedStream>>>);

/// A stream whose request was answered.
pub(in crate::proxy) enum ReturnedStream {
    /// The next one may come.
    Open(Box<H1ClientStream>),
    /// The request has not come whole: closing it at once would take the answer away from the client (RFC 9112, 9.6).
    Unread(Box<H1ClientStream>),
}

/// Of what a client that has closed its side was asked ([`STILL_THERE`]), so many bytes are written.
type Asked = usize;

/// What may be read.
#[derive(Debug)]
enum BodyFraming {
    /// The rest of a body of known length.
    Length(u64),
    /// The rest of a chunked body.
    Chunked(ChunkParser),
    /// Nothing: the request's last byte has been read.
    Closed,
}

// === impl H1ClientStream ===

impl H1ClientStream {
    /// Takes over `stream`.
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
            dropped: None,
        }
    }

    /// Goes to `dropped` when it is dropped too early.
    pub(in crate::proxy) fn return_to(&mut self, dropped: &DroppedStream) {
        self.dropped = Some(dropped.clone());
    }

    /// What has been read of the next request.
    pub(in crate::proxy) fn buffered(&self) -> &[u8] {
        &self.read_buf
    }

    /// Throws away the first `n` bytes of it.
    pub(in crate::proxy) fn skip(&mut self, n: usize) {
        self.read_buf.advance(n.min(self.read_buf.len()));
    }

    /// Reads more of the next request. 0: the client has closed its side.
    pub(in crate::proxy) async fn fill(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_more(context)).await
    }

    /// Lets a request pass whose head is the first `head` bytes ahead. What of its body is here already comes along.
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
        self.connection.has_of_body(if is_whole { BODY_WHOLE } else { BODY_COMES });
        let taken = head + body;
        // Splitting costs an allocation that the usual request, alone in its buffer, can do without.
        Ok(if taken == self.read_buf.len() {
            std::mem::take(&mut self.read_buf)
        } else {
            self.read_buf.split_to(taken)
        })
    }

    /// Whether the client was told anything since then.
    pub(in crate::proxy) const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Writes what was kept of the answer until its request had ended.
    pub(in crate::proxy) async fn let_go(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.keeps_end) { self.flush().await } else { Ok(()) }
    }

    /// Whether the request that began last has been read to its end.
    pub(in crate::proxy) const fn is_between_requests(&self) -> bool {
        matches!(self.gate, BodyFraming::Closed)
    }

    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.check_end()?;
        self.connection.register_waker(context);
        if self.read_buf.is_empty() {
            // A connection that waits holds no buffer.
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

    /// How many of `bytes`, which come next, belong to the body.
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
        self.send_gathered(context)?;
        if self.connection.is_tunnel() {
            return self.poll_tunnel(context, into);
        }
        if let Some(byte) = self.kept_byte {
            if self.connection.is_to_keep_body_end() {
                return Poll::Pending;
            }
            self.kept_byte = None;
            self.connection.has_of_body(BODY_WHOLE);
            into.put_slice(&[byte]);
            return Poll::Ready(Ok(()));
        }
        if self.is_between_requests() {
            return self.poll_closed(context);
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
            ready!(Pin::new(self.io.get_mut()).poll_read(context, into))?;
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
            // The beginning of the next request. What was ahead before is behind it.
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

    /// The body has come whole. Where that is not to be known yet, its last byte is kept.
    fn keep_end(&mut self, into: &mut ReadBuf<'_>, before: usize) -> Poll<io::Result<()>> {
        let last = into.filled().len().checked_sub(1).filter(|last| *last >= before);
        let Some(last) = last.filter(|_| self.connection.is_to_keep_body_end()) else {
            self.connection.has_of_body(BODY_WHOLE);
            return Poll::Ready(Ok(()));
        };
        self.kept_byte = Some(into.filled()[last]);
        into.set_filled(last);
        self.connection.has_of_body(BODY_BUT_END);
        // No byte at all would be the end of the connection. Whoever keeps the end looks whether it is here.
        if last == before { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// There is nothing to read before the answer; only that the client has gone is worth knowing.
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.half_closed.is_none() {
            ready!(self.poll_end(context))?;
            if self.answered && self.connection.has_answer() {
                // Whoever has read of an answer and closes has read enough.
                return Poll::Ready(Ok(()));
            }
            self.half_closed = Some(0);
            self.connection.is_half_closed();
        }
        self.poll_still_there(context)
    }

    /// An answer begins: whoever has closed its side before has read nothing of it.
    fn look_for_end(&mut self, context: &mut Context<'_>) {
        let may_have_ended = !self.answered && self.half_closed.is_none() && self.is_between_requests();
        // What goes wrong with that is found when it is written to.
        if may_have_ended
            && !self.connection.is_tunnel()
            && matches!(self.poll_end(context), Poll::Ready(Ok(())))
        {
            self.half_closed = Some(0);
            self.connection.is_half_closed();
        }
    }

    /// Whether a client that has closed its side has left: it may only have nothing more to say (RFC 9112, 9.6 lets servers do
    /// the same), and gets its answer. One that waits for long is asked, by an interim answer that means nothing more.
    fn poll_still_there(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(asked) = self.half_closed.filter(|_| self.connection.has_perhaps_left()) else {
            return Poll::Pending;
        };
        if let Some(error) = self.io.get_ref().error()? {
            return Poll::Ready(Err(error));
        }
        if asked < STILL_THERE.len()
            && !self.connection.speaks_old()
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

    /// Whether the client has been answered or is to be, can still be told so, and is not done sending.
    fn is_owed_reading(&self) -> bool {
        if self.connection.would_end_answer() || self.connection.close_reason() == Some(CloseReason::RestLate)
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

    /// Pingora does not flush an answer of known length before its end. It asks for more of the request when there is
    /// nothing more of the answer to write yet; then what has been gathered goes out.
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

    /// Writes to the client at once, past what is gathered, of which there must be nothing.
    pub(in crate::proxy) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.io.buffer().is_empty() && self.head.is_empty(), "nothing is gathered");
        self.check_write(context)?;
        self.heed_end();
        self.look_for_end(context);
        let polled = Pin::new(self.io.get_mut()).poll_write_vectored(context, bytes);
        let polled = self.written(polled);
        self.on_written(polled)
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

    /// Has the socket reset its connection, however it is closed, while an answer is under way that would seem whole otherwise.
    fn heed_end(&mut self) {
        let resets = self.connection.would_end_answer();
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

    /// Whether the client can still be written to.
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

impl AsyncWrite for H1ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_write(context)?;
        self.heed_end();
        self.look_for_end(context);
        if bytes == LAST_CHUNK && !self.connection.is_free() && self.is_between_requests() {
            self.keeps_end = true;
        }
        let polled = self.poll_head(context);
        ready!(self.written(polled))?;
        let date = self.connection.take_date();
        let polled = if date.is_some_and(|date| write_dated(bytes, date.as_bytes(), &mut self.head)) {
            // What the socket does not take yet goes out in front of whatever is written next.
            match self.poll_head(context) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
            }
        } else {
            Pin::new(&mut self.io).poll_write(context, bytes)
        };
        let polled = self.written(polled);
        self.on_written(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_write(context)?;
        let polled = self.poll_head(context);
        ready!(self.written(polled))?;
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        let polled = self.written(polled);
        self.on_written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write(context)?;
        self.heed_end();
        if self.keeps_end {
            return Poll::Ready(Ok(()));
        }
        let polled = self.poll_flush_all(context);
        self.written(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write(context)?;
        self.heed_end();
        let polled = self.poll_head(context);
        ready!(self.written(polled))?;
        let polled = Pin::new(&mut self.io).poll_shutdown(context);
        self.written(polled)
    }
}

impl Drop for H1ClientStream {
    fn drop(&mut self) {
        // Of an answer that broke off, what was written goes out as far as the socket takes it at once.
        self.heed_end();
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(Err(error)) = self.poll_flush_all(&mut context) {
            tracing::trace!(%error, "client disconnected");
        }
        let Some(dropped) = self.dropped.take() else { return };
        let stays = self.connection.take_keep_open() && self.is_between_requests();
        if stays || self.is_owed_reading() {
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
                dropped: stays.then(|| dropped.clone()),
            });
            *dropped.place() =
                Some(if stays { ReturnedStream::Open(rest) } else { ReturnedStream::Unread(rest) });
        }
    }
}

/// Writes a head as Pingora has written it, with the `Date` that the backend gave: Pingora puts its own in place of it.
fn write_dated(head: &[u8], date: &[u8], into: &mut BytesMut) -> bool {
    const NAME: &[u8] = b"\r\nDate: ";
    let place = || {
        let at = memchr::memmem::find(head, NAME)? + NAME.len();
        Some((at, at + memchr::memchr(b'\r', &head[at..])?))
    };
    let Some((at, end)) = place() else { return false };
    for part in [&head[..at], date, &head[end..]] {
        into.extend_from_slice(part);
    }
    true
}

impl DroppedStream {
    /// What was left there.
    pub(in crate::proxy) fn take(&self) -> Option<ReturnedStream> {
        self.place().take()
    }

    fn place(&self) -> MutexGuard<'_, Option<ReturnedStream>> {
        // A place is whole whatever happened to the thread that held it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for H1ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Pingora prints streams in its debug log; the bytes ahead may hold a secret.
        f.debug_struct("H1ClientStream").field("peer", &self.connection.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
