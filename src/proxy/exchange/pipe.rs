//! One direction of an exchange: a buffer for parts of a body, together with their framing. While a body arrives as
//! fast as it is read, a larger buffer takes its place.
//!
//! Must not know: who reads or writes. A part is written with its framing in one vectored write if possible. The next
//! part is read only after that.

use crate::proxy::connection::EXCHANGE_BUFFER;
use crate::proxy::connection::large_buffer::{LARGE_BUFFER, LargeBuffer};
use bytes::{Bytes, BytesMut};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// The bytes to be written: a prefix, a part of a body, and a suffix.
#[derive(Default)]
pub(super) struct Pipe {
    /// The bytes read.
    buf: BytesMut,
    /// Bytes read into a larger buffer, instead of `buf`.
    large: Option<LargeBuffer>,
    /// Whether the last read would have filled a small buffer.
    arrives_fast: bool,
    /// Body bytes read elsewhere, written instead of `buf`.
    given: Bytes,
    /// Written before the body: a head, the size of a chunk, or both.
    lead: Vec<u8>,
    /// The range of `buf` to be written.
    data: Range<usize>,
    /// Written after the body: the end of a chunk, or of all chunks.
    tail: &'static [u8],
    /// How many of all these bytes are written.
    written: usize,
}

/// How a body is framed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireFraming {
    /// Unchanged.
    Plain,
    /// In chunks.
    Chunked,
}

// === impl Pipe ===

impl Pipe {
    /// Reads the next part of a body. 0: the end of the stream. `larger` is asked for a larger buffer once a read has
    /// filled the small one. The larger one is given back while there is nothing to read, and when small ones do.
    pub(super) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        context: &mut Context<'_>,
        larger: impl FnOnce() -> Option<LargeBuffer>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.is_empty(), "what was read before has been written");
        self.buf.clear();
        if !self.arrives_fast {
            self.large = None;
        } else if self.large.is_none() {
            self.large = larger();
        }
        let (into, size) = match &mut self.large {
            Some(large) => (&mut **large, LARGE_BUFFER),
            None => (&mut self.buf, EXCHANGE_BUFFER),
        };
        into.clear();
        into.reserve(size);
        let polled = poll_read_buf(Pin::new(reader), context, into);
        match &polled {
            Poll::Ready(read) => self.arrives_fast = read.as_ref().is_ok_and(|read| *read >= EXCHANGE_BUFFER),
            Poll::Pending => self.large = None,
        }
        polled
    }

    /// The bytes read.
    pub(super) fn filled(&mut self) -> &mut [u8] {
        match &mut self.large {
            Some(large) => large,
            None => &mut self.buf,
        }
    }

    /// Takes over bytes read elsewhere. `arrives_fast`: the last read of them filled its buffer.
    pub(super) fn set_filled(&mut self, bytes: BytesMut, arrives_fast: bool) {
        (self.buf, self.large, self.arrives_fast) = (bytes, None, arrives_fast);
    }

    fn bytes(&self) -> &[u8] {
        self.large.as_ref().map_or(&self.buf, |large| large)
    }

    /// The prefix, written before everything else.
    pub(super) fn lead(&mut self) -> &mut Vec<u8> {
        &mut self.lead
    }

    /// Queues the range `data` of the bytes read. `is_last`: it is the end of the body.
    pub(super) fn send(&mut self, data: Range<usize>, framing: WireFraming, is_last: bool) {
        self.tail = b"";
        if framing == WireFraming::Chunked {
            if !data.is_empty() {
                write_hex(data.len(), &mut self.lead);
                self.lead.extend_from_slice(b"\r\n");
            }
            self.tail = match (data.is_empty(), is_last) {
                (true, true) => b"0\r\n\r\n",
                (false, true) => b"\r\n0\r\n\r\n",
                (false, false) => b"\r\n",
                (true, false) => b"",
            };
        }
        self.data = data;
    }

    /// The first `bytes` of those read last.
    pub(super) fn read(&self, bytes: usize) -> &[u8] {
        self.bytes().get(..bytes).unwrap_or_default()
    }

    /// Queues all bytes read, unchanged.
    pub(super) fn send_all(&mut self) {
        self.send(0..self.bytes().len(), WireFraming::Plain, false);
    }

    /// Queues `given`, which was read elsewhere.
    pub(super) fn send_given(&mut self, given: Bytes, framing: WireFraming, is_last: bool) {
        self.send(0..given.len(), framing, is_last);
        (self.given, self.data) = (given, 0..0);
    }

    /// Whether everything has been written.
    pub(super) fn is_empty(&self) -> bool {
        self.written == self.length()
    }

    fn length(&self) -> usize {
        self.lead.len() + self.given.len() + self.data.len() + self.tail.len()
    }

    /// Writes the queued bytes until all are written or `write` is pending.
    pub(super) fn poll_drain(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let data = &self.bytes()[self.data.clone()];
            let mut slices = [&self.lead[..], &self.given, data, self.tail].map(IoSlice::new);
            let mut left = &mut slices[..];
            IoSlice::advance_slices(&mut left, self.written);
            match write(left) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.written += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.lead.clear();
        self.given = Bytes::new();
        (self.data, self.tail, self.written) = (0..0, b"", 0);
        Poll::Ready(Ok(()))
    }
}

fn write_hex(number: usize, into: &mut Vec<u8>) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let digit = u32::try_from(number >> (4 * digit) & 15).unwrap_or_default();
        into.push(char::from_digit(digit, 16).map_or(b'0', |c| c as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pipe: &mut Pipe, at_once: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let drained = pipe.poll_drain(|slices| {
            let here: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let taken = here.len().min(at_once);
            all.extend_from_slice(&here[..taken]);
            Poll::Ready(Ok(taken))
        });
        assert!(matches!(drained, Poll::Ready(Ok(()))) && pipe.is_empty());
        all
    }

    #[test]
    fn parts_go_out_whole_and_framed_however_little_is_taken() {
        for at_once in [1, 2, 7, 1_000] {
            let mut pipe = Pipe::default();
            pipe.lead().extend_from_slice(b"head\r\n\r\n");
            pipe.set_filled(BytesMut::from(&b"..0123456789abcdefg.."[..]), false);
            pipe.send(2..19, WireFraming::Chunked, false);
            assert_eq!(written(&mut pipe, at_once), b"head\r\n\r\n11\r\n0123456789abcdefg\r\n");
            pipe.send(2..3, WireFraming::Chunked, true);
            assert_eq!(written(&mut pipe, at_once), b"1\r\n0\r\n0\r\n\r\n");
            pipe.send(0..0, WireFraming::Chunked, true);
            assert_eq!(written(&mut pipe, at_once), b"0\r\n\r\n");
            pipe.send(0..0, WireFraming::Chunked, false);
            assert!(pipe.is_empty(), "an empty chunk would be the end");
            pipe.send(2..4, WireFraming::Plain, true);
            assert_eq!(written(&mut pipe, at_once), b"01");
        }
    }

    #[test]
    fn sizes_are_hexadecimal() {
        for number in [1, 9, 10, 15, 16, 255, 256, 16_384, 65_535, 1 << 40] {
            let mut text = Vec::new();
            write_hex(number, &mut text);
            assert_eq!(text, format!("{number:x}").into_bytes());
        }
    }
}
