//! Chunked bodies, byte by byte (RFC 9112, 7.1): whether they have exactly one reading, and where they end.
//!
//! Must not know: sockets, or what the bytes mean. The decoder behind this takes any octet in an extension, line ends
//! included; here a size line is hexadecimal digits, perhaps a visible extension, and CRLF.

/// Longest size line or trailer section, in bytes. Nobody needs extensions or trailers; they must not be a way to send
/// without end.
const LINE_MAX: usize = 1_024;
/// Most digits of a size: what fits 60 bits.
const DIGITS_MAX: usize = 15;

/// How far into a chunked body we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Bytes of the line or trailer section so far.
    line: usize,
}

/// A body that is not chunked as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChunks;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Digits of a size.
    Size(u64, usize),
    /// Behind the `;` of a size line.
    Extension(u64),
    /// The line feed of a size line.
    SizeEnd(u64),
    /// So much of the chunk is to come.
    Data(u64),
    /// The CRLF behind a chunk.
    DataCr,
    DataLf,
    /// Where a line of the trailer section begins, or the end.
    Trailer,
    /// In a trailer.
    TrailerLine,
    TrailerLf,
    LastLf,
    Done,
}

// === impl Chunks ===

impl Chunks {
    /// Before the first chunk.
    pub const fn new() -> Self {
        Self { state: State::Size(0, 0), line: 0 }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Looks at the next `bytes`. How many of them belong to the body: all, unless it ends among them.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, BadChunks> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if let State::Data(left) = self.state {
                let here = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX).min(left);
                at += usize::try_from(here).unwrap_or(usize::MAX);
                self.state = if here == left { State::DataCr } else { State::Data(left - here) };
                continue;
            }
            self.line += 1;
            if self.line > LINE_MAX {
                return Err(BadChunks);
            }
            self.state = self.next(bytes[at]).ok_or(BadChunks)?;
            at += 1;
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8) -> Option<State> {
        let visible = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        Some(match (self.state, byte) {
            (State::Size(size, digits), _) if byte.is_ascii_hexdigit() && digits < DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16)?;
                State::Size(size * 16 + u64::from(digit), digits + 1)
            }
            (State::Size(size, 1..), b';') => State::Extension(size),
            (State::Size(size, 1..) | State::Extension(size), b'\r') => State::SizeEnd(size),
            (State::Extension(size), _) if visible => State::Extension(size),
            (State::SizeEnd(size), b'\n') => {
                self.line = 0;
                if size == 0 { State::Trailer } else { State::Data(size) }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size(0, 0)
            }
            (State::Trailer, b'\r') => State::LastLf,
            (State::Trailer, _) if byte > b' ' && visible => State::TrailerLine,
            (State::TrailerLine, b'\r') => State::TrailerLf,
            (State::TrailerLine, _) if visible => State::TrailerLine,
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::LastLf, b'\n') => State::Done,
            _ => return None,
        })
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_where_it_ends_however_it_comes() {
        let body = b"5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nT: v\r\n\r\n";
        let all = [body.as_slice(), b"GET /next"].concat();
        for first in 0..=all.len() {
            let mut chunks = Chunks::new();
            let mut passed = chunks.pass(&all[..first]).expect("sound");
            if !chunks.is_done() {
                passed += chunks.pass(&all[first..]).expect("sound");
            }
            assert!(chunks.is_done());
            assert_eq!(passed, body.len(), "split at {first}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(LINE_MAX));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(200));
        for body in [
            "\r\n",
            ";\r\n",
            "g\r\n",
            " 5\r\n",
            "5 \r\n",
            "5 ;x\r\n",
            "+5\r\n",
            "0x5\r\n",
            "5\n",
            "5;a\nb\r\n",
            "5;\0\r\n",
            "5\rx",
            "5\r\nhellox",
            "5\r\nhello\n",
            "5\r\nhello\r\r",
            "0\r\n\n",
            "0\r\n b\r\n",
            "0\r\na: b\n\r\n",
            "0\r\na\0: b\r\n\r\n",
            "0000000000000000\r\n",
            "ffffffffffffffff\r\n",
            &long,
            &trailers,
        ] {
            assert_eq!(Chunks::new().pass(body.as_bytes()), Err(BadChunks), "{body:?}");
        }
    }
}
