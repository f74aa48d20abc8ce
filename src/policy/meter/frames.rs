//! Parses the binary event stream of AWS (`application/vnd.amazon.eventstream`) as it arrives.
//!
//! Must not know: what an event contains. Its payload is passed on as it arrives; what it says counts only when its checksum
//! has been right.

use super::events::EventSink;

/// Length of the frame, length of its headers, and their checksum.
const PRELUDE: usize = 12;
/// The checksum at the end of a frame.
const CHECKSUM: usize = 4;
/// Longest headers that are read.
const HEADERS_MAX: usize = 4096;
/// Longest frame, as AWS says.
const FRAME_MAX: usize = 24 * 1024 * 1024;

/// The parser.
#[derive(Debug)]
pub(super) struct FrameParser {
    part: Part,
    /// The prelude, the headers or the checksum, as far as they have come.
    buffer: Vec<u8>,
    /// Bytes of this part that are still to come.
    left: usize,
    headers: usize,
    payload: usize,
    checksum: crc32fast::Hasher,
}

/// Parts of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Prelude,
    Headers,
    Payload,
    Checksum,
}

/// What a stream is made of.
pub(super) trait FrameSink: EventSink {
    /// The frame in progress is damaged.
    fn damaged(&mut self);
    /// The frame in progress tells of an error.
    fn error(&mut self);
}

/// The beginning of a frame is damaged, so nobody knows where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadFrame;

impl Default for FrameParser {
    fn default() -> Self {
        let checksum = crc32fast::Hasher::new();
        Self { part: Part::Prelude, buffer: Vec::new(), left: PRELUDE, headers: 0, payload: 0, checksum }
    }
}

impl FrameParser {
    /// Reads the next piece.
    pub(super) fn push(&mut self, mut piece: &[u8], sink: &mut impl FrameSink) -> Result<(), BadFrame> {
        while !piece.is_empty() {
            let (now, rest) = piece.split_at(piece.len().min(self.left));
            piece = rest;
            self.left -= now.len();
            if self.part == Part::Payload {
                self.checksum.update(now);
                sink.data(now);
            } else {
                self.buffer.extend_from_slice(now);
            }
            while self.left == 0 {
                self.end_part(sink)?;
            }
        }
        Ok(())
    }

    /// Whether the stream may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.part == Part::Prelude && self.buffer.is_empty()
    }

    /// A part is complete.
    fn end_part(&mut self, sink: &mut impl FrameSink) -> Result<(), BadFrame> {
        (self.part, self.left) = match self.part {
            Part::Prelude => {
                self.prelude().ok_or(BadFrame)?;
                (Part::Headers, self.headers)
            }
            Part::Headers => {
                let kind = header(&self.buffer, b":message-type");
                if kind.is_some_and(|kind| kind != b"event") {
                    sink.error();
                }
                sink.begin(b"");
                self.checksum.update(&self.buffer);
                (Part::Payload, self.payload)
            }
            Part::Payload => (Part::Checksum, CHECKSUM),
            Part::Checksum => {
                let checksum = std::mem::take(&mut self.checksum).finalize();
                if self.buffer == checksum.to_be_bytes() {
                    sink.end();
                } else {
                    sink.damaged();
                }
                (Part::Prelude, PRELUDE)
            }
        };
        self.buffer.clear();
        Ok(())
    }

    fn prelude(&mut self) -> Option<()> {
        let number = |at: usize| {
            let bytes: [u8; 4] = self.buffer.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_be_bytes(bytes)).ok()
        };
        let (frame, headers, checksum) = (number(0)?, number(4)?, number(8)?);
        let is_right = usize::try_from(crc32fast::hash(&self.buffer[..8])) == Ok(checksum);
        if !is_right || frame > FRAME_MAX || headers > HEADERS_MAX {
            return None;
        }
        (self.headers, self.payload) = (headers, frame.checked_sub(PRELUDE + headers + CHECKSUM)?);
        self.checksum.update(&self.buffer);
        Some(())
    }
}

/// The value of the header `name`, if it is text.
fn header<'h>(mut headers: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    loop {
        let (length, rest) = headers.split_first()?;
        let (found, rest) = rest.split_at_checked(usize::from(*length))?;
        let (kind, rest) = rest.split_first()?;
        let size = match kind {
            // Two truth values, a byte, two, four and eight bytes.
            0 | 1 => 0,
            2 => 1,
            3 => 2,
            4 => 4,
            5 | 8 => 8,
            // Bytes and text have a length.
            6 | 7 => 2 + usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])),
            9 => 16,
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(size)?;
        if found == name && *kind == 7 {
            return value.get(2..);
        }
        headers = rest;
    }
}
