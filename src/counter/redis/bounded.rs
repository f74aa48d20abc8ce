//! A stream from Redis that limits messages. The driver accepts messages of any length and keeps them in memory.
//!
//! [`Bounded`] reads types and lengths (RESP 2 and 3) beside the driver. A server that announces or sends too much loses the
//! connection before its data takes memory.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest message; the longest expected one is the table of a cluster's slots, a few MiB at most.
const MESSAGE_BYTES_MAX: u64 = 16 << 20;
/// Most elements of a message. Each takes memory, however short it is.
const ELEMENTS_MAX: u64 = 1 << 20;
/// Length of the line that begins a value; of errors and simple strings it is the whole value.
const LINE_MAX: usize = 64 << 10;

/// A stream that limits messages.
pub(super) struct Bounded<S> {
    stream: S,
    bounds: Bounds,
}

/// Progress in the stream of messages.
#[derive(Debug, Default)]
struct Bounds {
    /// The number in the line so far, after its type.
    line: Line,
    /// Bytes of a bulk string still to come, with its line end.
    bulk: u64,
    /// Values of the message still to come, and all of it so far.
    pending: u64,
    elements: u64,
    /// Bytes of the message so far.
    bytes: u64,
}

/// The line that begins a value.
#[derive(Debug, Default)]
struct Line {
    kind: Option<u8>,
    length: usize,
    /// Absolute value of the number in it; none: it is no number.
    number: Option<u64>,
    is_negative: bool,
}

/// Why a server is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMuch {
    #[error("Redis sent a message of more than {} MiB", MESSAGE_BYTES_MAX >> 20)]
    Bytes,
    #[error("Redis sent a message of more than {ELEMENTS_MAX} values")]
    Elements,
    #[error("Redis sent a line of more than {} KiB", LINE_MAX >> 10)]
    Line,
    #[error("the server does not speak the protocol of Redis")]
    Protocol,
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, bounds: Bounds::default() }
    }
}

impl Bounds {
    /// Accepts the next bytes of the stream.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), TooMuch> {
        while let Some(byte) = bytes.first() {
            if self.bulk > 0 {
                let part = self.bulk.min(bytes.len() as u64);
                self.bulk -= part;
                self.bytes += part;
                bytes = &bytes[usize::try_from(part).unwrap_or(bytes.len())..];
                self.end_value();
                continue;
            }
            self.bytes += 1;
            bytes = &bytes[1..];
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.begin_value(&line)?;
                self.end_value();
            } else {
                self.line.add(*byte)?;
            }
            if self.bytes > MESSAGE_BYTES_MAX {
                return Err(TooMuch::Bytes);
            }
        }
        Ok(())
    }

    /// A value begins, or is over with its line.
    fn begin_value(&mut self, line: &Line) -> Result<(), TooMuch> {
        let number = || if line.is_negative { Some(0) } else { line.number };
        self.pending = self.pending.saturating_sub(1);
        self.elements += 1;
        let more = match line.kind {
            Some(b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') => 0,
            // A negative length is a null, without bytes.
            Some(b'$' | b'!' | b'=') if line.is_negative => 0,
            Some(b'$' | b'!' | b'=') => {
                let length = number().ok_or(TooMuch::Protocol)?;
                if length > MESSAGE_BYTES_MAX {
                    return Err(TooMuch::Bytes);
                }
                self.bulk = length + 2;
                0
            }
            Some(b'*' | b'~' | b'>') => number().ok_or(TooMuch::Protocol)?,
            Some(b'%') => number().ok_or(TooMuch::Protocol)?.saturating_mul(2),
            // Attributes come before the value that they are about.
            Some(b'|') => number().ok_or(TooMuch::Protocol)?.saturating_mul(2).saturating_add(1),
            _ => return Err(TooMuch::Protocol),
        };
        self.pending = self.pending.saturating_add(more);
        if self.pending.saturating_add(self.elements) > ELEMENTS_MAX {
            return Err(TooMuch::Elements);
        }
        Ok(())
    }

    fn end_value(&mut self) {
        if self.pending == 0 && self.bulk == 0 {
            (self.bytes, self.elements) = (0, 0);
        }
    }
}

impl Line {
    fn add(&mut self, byte: u8) -> Result<(), TooMuch> {
        self.length += 1;
        if self.length > LINE_MAX {
            return Err(TooMuch::Line);
        }
        match (self.length, byte) {
            (1, kind) => (self.kind, self.number) = (Some(kind), Some(0)),
            (2, b'-') => self.is_negative = true,
            (_, b'0'..=b'9') => {
                let digit = u64::from(byte - b'0');
                self.number = self.number.map(|n| n.saturating_mul(10).saturating_add(digit));
            }
            (_, b'\r') => {}
            _ => self.number = None,
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if let Err(why) = self.bounds.pass(&buffer.filled()[before..]) {
            // The driver tells its callers only that the connection is gone.
            tracing::error!(%why, "invalid answer from Redis, connection dropped");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes after which an answer is refused; none: it is accepted, and so is the same again.
    fn refused(answer: &[u8], step: usize) -> Option<TooMuch> {
        let mut bounds = Bounds::default();
        for _ in 0..2 {
            for part in answer.chunks(step) {
                if let Err(why) = bounds.pass(part) {
                    return Some(why);
                }
            }
            assert_eq!(
                (bounds.pending, bounds.bulk, bounds.bytes),
                (0, 0, 0),
                "a message ends where it ends"
            );
        }
        None
    }

    #[test]
    fn answers_of_both_protocols_pass_in_parts_of_any_length() {
        let answers: [&[u8]; 12] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":-5\r\n",
            b"$5\r\nhe\r\no\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*3\r\n:1\r\n*2\r\n$1\r\na\r\n$-1\r\n+b\r\n",
            b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n,1.5\r\n",
            b"|1\r\n+a\r\n:1\r\n#t\r\n",
            b">2\r\n+a\r\n_\r\n",
            b"=5\r\ntxt:a\r\n",
        ];
        for answer in answers {
            for step in 1..=answer.len() {
                let text = String::from_utf8_lossy(answer);
                assert_eq!(refused(answer, step), None, "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn oversized_answers_are_refused_when_announced_or_before_they_are_complete() {
        let nested = |n: usize| [b"*2\r\n:1\r\n".repeat(n), b":1\r\n".to_vec()].concat();
        assert_eq!(refused(&nested(1_000), 7), None);
        for (answer, why) in [
            (b"$400000000\r\n".to_vec(), TooMuch::Bytes),
            (b"$99999999999999999999999\r\n".to_vec(), TooMuch::Bytes),
            (b"*1000000000\r\n".to_vec(), TooMuch::Elements),
            (b"%9223372036854775807\r\n".to_vec(), TooMuch::Elements),
            (nested(600_000), TooMuch::Elements),
            (
                [
                    b"*100\r\n".to_vec(),
                    [b"$1000000\r\n".to_vec(), vec![b'x'; 1_000_000], b"\r\n".to_vec()].concat().repeat(20),
                ]
                .concat(),
                TooMuch::Bytes,
            ),
            (vec![b'+'; LINE_MAX + 1], TooMuch::Line),
            (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), TooMuch::Protocol),
            (b"$x\r\n".to_vec(), TooMuch::Protocol),
            (b"\r\n".to_vec(), TooMuch::Protocol),
        ] {
            for step in [1, 4_096] {
                assert_eq!(refused(&answer, step), Some(why), "{} bytes", answer.len());
            }
        }
    }
}
