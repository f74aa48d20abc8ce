//! Parses an event stream (`text/event-stream`) that arrives in pieces of any size.
//!
//! Must not know: what an event contains. Its data is passed on as it arrives, so an event has no largest size.

use memchr::memchr2;

/// The longest name of an event that is told from others.
const NAME_MAX: usize = 32;
/// Longer than the name of any field that matters.
const FIELD_MAX: usize = 8;
/// The byte order mark.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// What a stream is made of.
pub(super) trait EventSink {
    /// An event has data. `name` is what has been said before it.
    fn begin(&mut self, name: &[u8]);
    /// Its data, piece by piece; lines are joined by LF.
    fn data(&mut self, piece: &[u8]);
    /// It is whole.
    fn end(&mut self);
}

/// The parser.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    line: Line,
    /// The last byte was CR: a LF that follows belongs to it.
    after_cr: bool,
    /// Bytes of a byte order mark so far; none when the stream has begun.
    mark: Option<usize>,
    has_begun: bool,
    field: Short<FIELD_MAX>,
    name: Short<NAME_MAX>,
    has_data: bool,
}

/// Where in a line the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Line {
    /// At its first byte.
    #[default]
    Start,
    /// In the name of its field.
    Field,
    /// After the colon, where one space does not count.
    Colon,
    /// In the value of `data`.
    Data,
    /// In the value of `event`.
    Name,
    /// In anything else.
    Other,
}

/// A few bytes, or too many to be of interest.
#[derive(Debug)]
struct Short<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

// === impl EventParser ===

impl EventParser {
    /// Reads the next piece.
    pub(super) fn push(&mut self, piece: &[u8], sink: &mut impl EventSink) {
        let mut rest = piece;
        while let Some((&byte, behind)) = rest.split_first() {
            if !self.has_begun {
                let seen = self.mark.unwrap_or(0);
                if MARK.get(seen) == Some(&byte) {
                    self.mark = Some(seen + 1);
                    rest = behind;
                    continue;
                }
                self.has_begun = true;
            }
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                rest = behind;
                continue;
            }
            if matches!(byte, b'\r' | b'\n') {
                self.after_cr = byte == b'\r';
                self.end_line(sink);
                rest = behind;
                continue;
            }
            match self.line {
                Line::Start | Line::Field if byte == b':' => self.line = Line::Colon,
                Line::Start | Line::Field => {
                    self.line = Line::Field;
                    self.field.push(&[byte]);
                }
                Line::Colon => {
                    self.begin_value(sink);
                    if byte != b' ' {
                        continue;
                    }
                }
                Line::Data | Line::Name | Line::Other => {
                    let (value, behind) = rest.split_at(memchr2(b'\r', b'\n', rest).unwrap_or(rest.len()));
                    match self.line {
                        Line::Data => sink.data(value),
                        Line::Name => self.name.push(value),
                        _ => {}
                    }
                    rest = behind;
                    continue;
                }
            }
            rest = behind;
        }
    }

    /// The stream has ended. An event that lacks only its empty line is whole.
    pub(super) fn finish(&mut self, sink: &mut impl EventSink) {
        if self.line != Line::Start {
            self.end_line(sink);
        }
        self.end_event(sink);
    }

    /// Whether the event in progress has data.
    pub(super) const fn has_data(&self) -> bool {
        self.has_data
    }

    fn begin_value(&mut self, sink: &mut impl EventSink) {
        self.line = match self.field.as_bytes() {
            b"data" => Line::Data,
            b"event" => Line::Name,
            _ => Line::Other,
        };
        match self.line {
            Line::Data if std::mem::replace(&mut self.has_data, true) => sink.data(b"\n"),
            Line::Data => sink.begin(self.name.as_bytes()),
            Line::Name => self.name.clear(),
            _ => {}
        }
    }

    fn end_line(&mut self, sink: &mut impl EventSink) {
        match self.line {
            Line::Start => self.end_event(sink),
            // A field without a colon or without a value is empty.
            Line::Field | Line::Colon => self.begin_value(sink),
            _ => {}
        }
        self.line = Line::Start;
        self.field.clear();
    }

    fn end_event(&mut self, sink: &mut impl EventSink) {
        self.name.clear();
        if std::mem::take(&mut self.has_data) {
            sink.end();
        }
    }
}

// === impl Short ===

impl<const N: usize> Short<N> {
    fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        } else {
            self.length = N + 1;
        }
    }

    fn clear(&mut self) {
        self.length = 0;
    }

    /// The bytes; empty if they are too many.
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Self {
        Self { bytes: [0; N], length: 0 }
    }
}
