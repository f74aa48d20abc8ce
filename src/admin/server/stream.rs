//! A client's socket as hyper sees it: it yields only complete, unambiguous requests, within their deadlines.
//!
//! Must not know: what is requested. A head is read completely and validated by `policy::http::head` before hyper sees it,
//! and a body ends where the head says. A message that two parsers could frame differently is answered here and ends the
//! connection.

use super::ServerLimits;
use super::table::{AdminCloseReason, AdminConnection, AdminStage};
use crate::clock::Clock;
use crate::envelope::last_answer;
use crate::model::fault::Fault;
use crate::model::id::RequestId;
use crate::policy::http::chunks::ChunkParser;
use crate::policy::http::head::{Framing, check, escaped, find_end, is_malformed_prefix, read_partial};
use crate::policy::keys::denial::{BadRequest, Denial};
use bytes::{Buf, Bytes, BytesMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::io::poll_read_buf;

/// The bytes of a head besides target and fields: method, version, line ends.
const AROUND: usize = 64;
/// Bytes read at a time.
const READ_AT_ONCE: usize = 4 * 1024;
/// Limits for discarding what arrives after a last answer: bytes, time, and longest pause.
const LINGER_BYTES: usize = 16 * 1024 * 1024;
const LINGER_WITHIN: Duration = Duration::from_secs(10);
const LINGER_PAUSE: Duration = Duration::from_secs(2);

/// A client's socket.
pub(super) struct AdminClientStream<S> {
    socket: S,
    connection: Arc<AdminConnection>,
    limits: ServerLimits,
    clock: Arc<dyn Clock>,
    phase: StreamPhase,
    /// Read from the socket and not passed on yet.
    read_buf: BytesMut,
    /// Bytes of it that were searched for the end of a head.
    searched: usize,
    /// Whether a request was served.
    has_served: bool,
    /// Runs while the client must send something; its stage, if it runs.
    timer: Pin<Box<Sleep>>,
    awaited: Option<AdminStage>,
    /// Runs while the client does not read.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Whether hyper has written data that is not flushed: the kernel does not have the whole response yet.
    is_unflushed: bool,
    /// The waker of the reader, which waits for that before the next head.
    reader: Option<Waker>,
}

/// What is being read.
enum StreamPhase {
    /// The next head.
    Head,
    /// A request: bytes of its head, then its body.
    Request(usize, StreamBody),
    /// Nothing more: the rest of a last answer is still to be written.
    Refusing(Bytes),
    /// Nothing more: incoming data is discarded, up to this many bytes and this time.
    Lingering(usize, Instant),
    /// Nothing more.
    Closed,
}

/// The rest of a body.
enum StreamBody {
    Length(u64),
    Chunked(ChunkParser),
}

// === impl AdminClientStream ===

impl<S: AsyncRead + AsyncWrite + Unpin> AdminClientStream<S> {
    pub(super) fn new(
        socket: S,
        connection: Arc<AdminConnection>,
        limits: ServerLimits,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            socket,
            connection,
            limits,
            clock,
            phase: StreamPhase::Head,
            read_buf: BytesMut::new(),
            searched: 0,
            has_served: false,
            timer: Box::pin(sleep(limits.first_byte)),
            awaited: None,
            write_timer: None,
            is_unflushed: false,
            reader: None,
        }
    }

    /// Reads until a head is complete and valid. Then the phase changes.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_unflushed {
            // The client is still reading the previous response, which has its own deadline.
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        loop {
            if self.has_served && self.read_buf.starts_with(b"\r\n") {
                // An empty line before a request line is allowed (RFC 9112, 2.2); some clients end a body with it.
                self.read_buf.advance(2);
                self.searched = 0;
                continue;
            }
            if let Some(end) = find_end(&self.read_buf, self.searched) {
                self.begin(end);
                return Poll::Ready(Ok(()));
            }
            if let Some(denial) = self.refusal_so_far() {
                self.refuse(&denial);
                return Poll::Ready(Ok(()));
            }
            self.searched = self.read_buf.len();
            let (stage, within) = match (self.read_buf.is_empty(), self.has_served) {
                (true, false) => (AdminStage::New, self.limits.first_byte),
                (true, true) => (AdminStage::Idle, self.limits.idle),
                (false, _) => (AdminStage::Head, self.limits.head),
            };
            if self.awaited.replace(stage) != Some(stage) {
                self.connection.enter(stage);
                self.timer.as_mut().reset(Instant::now() + within);
            }
            match self.poll_more(context) {
                Poll::Ready(Ok(0)) => {
                    self.phase = StreamPhase::Closed;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(self.timer.as_mut().poll(context));
                    self.mark_late(stage);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// A deadline has passed.
    fn mark_late(&mut self, stage: AdminStage) {
        let reason = match stage {
            AdminStage::Head => AdminCloseReason::HeaderTimeout,
            AdminStage::Idle => AdminCloseReason::IdleTimeout,
            _ => AdminCloseReason::FirstByteTimeout,
        };
        self.connection.close(reason);
        if stage == AdminStage::Head {
            self.refuse(&Denial::Plain(Fault::RequestTimeout));
        } else {
            self.phase = StreamPhase::Closed;
        }
    }

    /// Why an incomplete head can no longer become acceptable.
    fn refusal_so_far(&self) -> Option<Denial> {
        if is_malformed_prefix(&self.read_buf, self.searched)
            && !(self.has_served && *self.read_buf == b"\r"[..])
        {
            return Some(Denial::BadRequest(BadRequest::Syntax));
        }
        self.too_large(self.read_buf.len()).map(Denial::Plain)
    }

    /// Which part of a head of at least this size is too large.
    fn too_large(&self, head: usize) -> Option<Fault> {
        let line = memchr::memchr(b'\n', &self.read_buf[..head]).unwrap_or(head);
        if line > self.limits.uri_bytes + AROUND {
            Some(Fault::UriTooLong)
        } else if head - line > self.limits.header_bytes + AROUND {
            Some(Fault::HeadersTooLarge)
        } else {
            None
        }
    }

    /// A complete head is there: starts the request, or refuses it.
    fn begin(&mut self, end: usize) {
        self.awaited = None;
        if let Some(fault) = self.too_large(end) {
            return self.refuse(&Denial::Plain(fault));
        }
        let sound = match check(&self.read_buf[..end], self.limits.header_fields) {
            Ok(sound) => sound,
            Err(bad) => return self.refuse(&Denial::from(bad)),
        };
        let body = match sound.framing {
            Framing::NoBody => StreamBody::Length(0),
            Framing::Length(length) => StreamBody::Length(length),
            Framing::Chunked => StreamBody::Chunked(ChunkParser::new()),
        };
        let behind = self.read_buf.len() - end;
        if sound.is_loose
            && let Some(escaped) = escaped(&self.read_buf)
        {
            self.read_buf = BytesMut::from(escaped.as_slice());
        }
        let end = self.read_buf.len() - behind;
        (self.phase, self.searched, self.has_served) = (StreamPhase::Request(end, body), 0, true);
        self.connection.enter(AdminStage::Call);
    }

    /// From here on only a last answer is written.
    fn refuse(&mut self, denial: &Denial) {
        let now = self.clock.now().wall;
        let answer = last_answer(denial, read_partial(&self.read_buf), RequestId::new(now), now);
        self.connection.enter(AdminStage::Closing);
        self.phase = StreamPhase::Refusing(answer.into());
    }

    fn poll_refuse(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let StreamPhase::Refusing(answer) = &mut self.phase
            && !answer.is_empty()
        {
            let written = Pin::new(&mut self.socket).poll_write(context, answer);
            if let Poll::Ready(Ok(n)) = written {
                answer.advance(n);
            }
            ready!(self.poll_taken(context, written))?;
        }
        self.poll_last(context)
    }

    /// Closes our side, and starts to discard incoming data.
    fn poll_last(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
        self.connection.enter(AdminStage::Closing);
        self.read_buf.clear();
        self.timer.as_mut().reset(Instant::now() + LINGER_PAUSE);
        self.phase = StreamPhase::Lingering(LINGER_BYTES, Instant::now() + LINGER_WITHIN);
        Poll::Ready(Ok(()))
    }

    /// Closing a socket with unread data, or with data in flight, would reset the connection and lose the last answer.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let StreamPhase::Lingering(left, until) = self.phase {
            match self.poll_more(context) {
                Poll::Ready(Ok(n @ 1..)) if n < left => {
                    self.read_buf.clear();
                    self.phase = StreamPhase::Lingering(left - n, until);
                    self.timer.as_mut().reset(until.min(Instant::now() + LINGER_PAUSE));
                }
                Poll::Pending if self.timer.as_mut().poll(context).is_pending() => return Poll::Pending,
                _ => self.phase = StreamPhase::Closed,
            }
        }
        Poll::Ready(())
    }

    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read_buf.reserve(READ_AT_ONCE);
        poll_read_buf(Pin::new(&mut self.socket), context, &mut self.read_buf)
    }

    /// Passes on what belongs to the request, and nothing more.
    fn poll_request(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let StreamPhase::Request(head, body) = &self.phase else { return Poll::Ready(Ok(())) };
        let has_ended = *head == 0
            && match body {
                StreamBody::Length(left) => *left == 0,
                StreamBody::Chunked(chunks) => chunks.is_done(),
            };
        if has_ended {
            self.phase = StreamPhase::Head;
            return Poll::Ready(Ok(()));
        }
        if self.read_buf.is_empty() {
            let Poll::Ready(read) = self.poll_more(context) else {
                self.connection.enter(AdminStage::Body);
                return Poll::Pending;
            };
            self.connection.enter(AdminStage::Call);
            if read? == 0 {
                self.phase = StreamPhase::Closed;
                return Poll::Ready(Ok(()));
            }
        }
        let StreamPhase::Request(head, body) = &mut self.phase else { return Poll::Ready(Ok(())) };
        let here = self.read_buf.len().min(into.remaining());
        let taken = if *head > 0 {
            let taken = here.min(*head);
            *head -= taken;
            taken
        } else {
            match body {
                StreamBody::Length(left) => {
                    let taken = here.min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    taken
                }
                StreamBody::Chunked(chunks) => {
                    chunks.pass(&self.read_buf[..here]).map_err(|_| io::ErrorKind::InvalidData)?
                }
            }
        };
        into.put_slice(&self.read_buf[..taken]);
        self.read_buf.advance(taken);
        Poll::Ready(Ok(()))
    }

    /// After a write: a client that does not read has a deadline.
    fn poll_taken(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            if self.write_timer.take().is_some() && !matches!(self.phase, StreamPhase::Refusing(_)) {
                self.connection.enter(AdminStage::Call);
            }
            return Poll::Ready(written);
        }
        if self.write_timer.is_none() && !matches!(self.phase, StreamPhase::Refusing(_)) {
            self.connection.enter(AdminStage::Answer);
        }
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(self.limits.write)));
        ready!(timer.as_mut().poll(context));
        self.connection.close(AdminCloseReason::WriteTimeout);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for AdminClientStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let before = into.filled().len();
        loop {
            match &stream.phase {
                StreamPhase::Head => ready!(stream.poll_head(context))?,
                StreamPhase::Request(..) => {
                    ready!(stream.poll_request(context, into))?;
                    if into.filled().len() > before {
                        return Poll::Ready(Ok(()));
                    }
                }
                StreamPhase::Refusing(_) => ready!(stream.poll_refuse(context))?,
                StreamPhase::Lingering(..) => ready!(stream.poll_linger(context)),
                StreamPhase::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for AdminClientStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.is_unflushed = true;
        let written = Pin::new(&mut stream.socket).poll_write(context, bytes);
        stream.poll_taken(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.is_unflushed = true;
        let written = Pin::new(&mut stream.socket).poll_write_vectored(context, bytes);
        stream.poll_taken(context, written)
    }

    /// Parts of a body are written without copying: data that many clients get at once exists once.
    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        ready!(Pin::new(&mut stream.socket).poll_flush(context))?;
        stream.is_unflushed = false;
        if let Some(reader) = stream.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        // The unread rest of a request may still be in flight.
        if matches!(stream.phase, StreamPhase::Request(..)) {
            ready!(stream.poll_last(context))?;
        }
        if matches!(stream.phase, StreamPhase::Lingering(..)) {
            ready!(stream.poll_linger(context));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut stream.socket).poll_shutdown(context)
    }
}
