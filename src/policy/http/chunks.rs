//! Validates chunked bodies byte by byte (RFC 9112, 7.1): every parser must read them the same way and find the same end.
//!
//! Must not know: sockets, or what the bytes mean. Pingora's decoder accepts any octet in an extension, even line ends.
//! Here a size line is hexadecimal digits, optionally an extension of visible characters, and CRLF.

/// Longest size line or trailer section, in bytes. Extensions and trailers are rarely needed, and must not allow a client
/// to send without end.
const LINE_MAX: usize = 1_024;
/// Most digits of a size: they fit 60 bits.
const DIGITS_MAX: usize = 15;

/// The state of reading a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkParser {
    state: ChunkState,
    /// Bytes of the line or trailer section so far.
    line: usize,
}

/// The body is not chunked correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChunks;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// Digits of a size.
    Size(u64, usize),
    /// After the `;` of a size line.
    Extension(u64),
    /// The line feed of a size line.
    SizeEnd(u64),
    /// In a chunk; this many bytes are to come.
    Data(u64),
    /// The CRLF after a chunk.
    DataCr,
    DataLf,
    /// At the start of a line of the trailer section, or at the end.
    Trailer,
    /// In a trailer.
    TrailerLine,
    TrailerLf,
    LastLf,
    Done,
}

// === impl ChunkParser ===

impl ChunkParser {
    /// Before the first chunk.
    pub const fn new() -> Self {
        Self { state: ChunkState::Size(0, 0), line: 0 }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// Checks the next `bytes`. Returns how many of them belong to the body: all, unless the body ends among them.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, BadChunks> {
        let mut at = 0;
        while at < bytes.len() && self.state != ChunkState::Done {
            if let ChunkState::Data(left) = self.state {
                let here = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX).min(left);
                at += usize::try_from(here).unwrap_or(usize::MAX);
                self.state = if here == left { ChunkState::DataCr } else { ChunkState::Data(left - here) };
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

    /// Decodes the next `bytes` in place: data moves to their front, as far as the body goes. Returns how many bytes of
    /// data there are then, and how many bytes belonged to the body.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<(usize, usize), BadChunks> {
        let (mut data, mut at) = (0, 0);
        while at < bytes.len() && self.state != ChunkState::Done {
            let here = match self.state {
                ChunkState::Data(left) => usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at),
                _ => 1,
            };
            if matches!(self.state, ChunkState::Data(_)) {
                bytes.copy_within(at..at + here, data);
                data += here;
            }
            let passed = self.pass(&bytes[at..at + here])?;
            debug_assert_eq!(passed, here, "not done before");
            at += here;
        }
        Ok((data, at))
    }

    fn next(&mut self, byte: u8) -> Option<ChunkState> {
        let visible = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        Some(match (self.state, byte) {
            (ChunkState::Size(size, digits), _) if byte.is_ascii_hexdigit() && digits < DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16)?;
                ChunkState::Size(size * 16 + u64::from(digit), digits + 1)
            }
            (ChunkState::Size(size, 1..), b';') => ChunkState::Extension(size),
            (ChunkState::Size(size, 1..) | ChunkState::Extension(size), b'\r') => ChunkState::SizeEnd(size),
            (ChunkState::Extension(size), _) if visible => ChunkState::Extension(size),
            (ChunkState::SizeEnd(size), b'\n') => {
                self.line = 0;
                if size == 0 { ChunkState::Trailer } else { ChunkState::Data(size) }
            }
            (ChunkState::DataCr, b'\r') => ChunkState::DataLf,
            (ChunkState::DataLf, b'\n') => {
                self.line = 0;
                ChunkState::Size(0, 0)
            }
            (ChunkState::Trailer, b'\r') => ChunkState::LastLf,
            (ChunkState::Trailer, _) if byte > b' ' && visible => ChunkState::TrailerLine,
            (ChunkState::TrailerLine, b'\r') => ChunkState::TrailerLf,
            (ChunkState::TrailerLine, _) if visible => ChunkState::TrailerLine,
            (ChunkState::TrailerLf, b'\n') => ChunkState::Trailer,
            (ChunkState::LastLf, b'\n') => ChunkState::Done,
            _ => return None,
        })
    }
}

impl Default for ChunkParser {
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
            let mut chunks = ChunkParser::new();
            let mut passed = chunks.pass(&all[..first]).expect("sound");
            if !chunks.is_done() {
                passed += chunks.pass(&all[first..]).expect("sound");
            }
            assert!(chunks.is_done());
            assert_eq!(passed, body.len(), "split at {first}");
        }
    }

    #[test]
    fn its_data_is_the_same_however_it_comes() {
        let body = b"5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nT: v\r\n\r\n";
        let all = [body.as_slice(), b"GET /next"].concat();
        for first in 0..=all.len() {
            let mut chunks = ChunkParser::new();
            let (mut found, mut taken) = (Vec::new(), 0);
            for part in [&all[..first], &all[first..]] {
                let mut part = part.to_vec();
                let (data, here) = chunks.decode(&mut part).expect("sound");
                found.extend_from_slice(&part[..data]);
                taken += here;
            }
            assert!(chunks.is_done());
            assert_eq!((found.as_slice(), taken), (&b"hello0123456789"[..], body.len()), "split at {first}");
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
            assert_eq!(ChunkParser::new().pass(body.as_bytes()), Err(BadChunks), "{body:?}");
        }
    }
}
