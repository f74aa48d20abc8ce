//! What is written to the client: by Pingora, through a buffer, or directly by an exchange. Once the client has left and its
//! answer is read on, every write succeeds and goes nowhere.

use super::{H1ClientStream, LAST_CHUNK};
use bytes::BytesMut;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

impl H1ClientStream {
    /// Whether the client has left and its answer is read on.
    pub(in crate::proxy) const fn is_sink(&self) -> bool {
        self.is_sink
    }

    /// The client has left. Returns whether its answer is read on.
    pub(super) fn become_sink(&mut self) -> bool {
        // A request that has not arrived completely is not answered.
        self.is_sink = self.is_sink || (self.is_between_requests() && self.connection.begin_drain());
        if self.is_sink {
            self.connection.set_write_pending(false);
        }
        self.is_sink
    }

    /// Runs `write` of this many bytes, unless the client has left or is found to have left.
    fn unless_sink(
        &mut self,
        bytes: usize,
        write: impl FnOnce(&mut Self) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if !self.is_sink {
            let polled = write(self);
            if !matches!(polled, Poll::Ready(Err(_))) || !self.become_sink() {
                return polled;
            }
        }
        self.connection.on_flushed(bytes);
        Poll::Ready(Ok(bytes))
    }

    /// Writes to the client directly. The write buffer must be empty.
    pub(in crate::proxy) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unless_sink(total(bytes), |stream| {
            debug_assert!(stream.io.buffer().is_empty() && stream.head.is_empty(), "nothing is gathered");
            stream.check_write(context)?;
            stream.heed_end();
            stream.look_for_end(context);
            let polled = Pin::new(stream.io.get_mut()).poll_write_vectored(context, bytes);
            let polled = stream.written(polled);
            stream.on_written(polled)
        })
    }

    fn poll_write_gathered(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_write(context)?;
        self.heed_end();
        self.look_for_end(context);
        if bytes == LAST_CHUNK && !self.connection.holds_no_permits() && self.is_between_requests() {
            self.keeps_end = true;
        }
        let polled = self.poll_head(context);
        ready!(self.written(polled))?;
        let date = self.connection.take_date();
        let polled = if date.is_some_and(|date| write_dated(bytes, date.as_bytes(), &mut self.head)) {
            // Bytes that the socket does not accept yet are written before the next ones.
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
}

impl AsyncWrite for H1ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_sink(bytes.len(), |stream| stream.poll_write_gathered(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unless_sink(total(bytes), |stream| {
            stream.check_write(context)?;
            let polled = stream.poll_head(context);
            ready!(stream.written(polled))?;
            let polled = Pin::new(&mut stream.io).poll_write_vectored(context, bytes);
            let polled = stream.written(polled);
            stream.on_written(polled)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.unless_sink(0, |stream| {
            stream.check_write(context)?;
            stream.heed_end();
            if stream.keeps_end {
                return Poll::Ready(Ok(0));
            }
            let polled = stream.poll_flush_all(context);
            stream.written(polled).map_ok(|()| 0)
        });
        flushed.map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.unless_sink(0, |stream| {
            stream.check_write(context)?;
            stream.heed_end();
            let polled = stream.poll_head(context);
            ready!(stream.written(polled))?;
            let polled = Pin::new(&mut stream.io).poll_shutdown(context);
            stream.written(polled).map_ok(|()| 0)
        });
        shut.map_ok(|_| ())
    }
}

fn total(bytes: &[io::IoSlice<'_>]) -> usize {
    bytes.iter().map(|slice| slice.len()).sum()
}

/// Copies a head written by Pingora, with Pingora's `Date` replaced by the backend's.
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
