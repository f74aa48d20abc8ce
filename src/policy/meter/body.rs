//! The body of an answer: one JSON document, or a stream of events that are one each.

use super::events::{EventParser, EventSink};
use super::frames::{FrameParser, FrameSink};
use super::json::{JsonScanner, JsonSink};

/// What streams of `OpenAI` end with.
const DONE: &[u8] = b"[DONE]";

/// What documents are read for.
pub(super) trait UsageSink: JsonSink {
    /// An event of this name begins.
    fn begin_event(&mut self, name: &[u8]);
    /// The body is made of frames, whose documents may contain others.
    fn begin_frames(&mut self) {}
    /// The document is whole: what it says counts. Returns whether what it contains is whole too.
    fn commit(&mut self) -> bool;
    /// The document is damaged: what it says does not count.
    fn discard(&mut self);
    /// The answer says outside of a document that it is an error.
    fn note_error(&mut self);
    /// Whether the answer is an error, or contains one.
    fn has_error(&self) -> bool;
}

/// How the documents of a body are framed.
#[derive(Debug)]
pub(super) enum Framing {
    /// Its first byte tells.
    Unknown,
    /// There is nothing else.
    Json,
    /// `text/event-stream`.
    Events(EventParser),
    /// `application/vnd.amazon.eventstream`.
    Frames(FrameParser),
}

/// Reads a body that arrives in pieces.
#[derive(Debug)]
pub(super) struct Body<S: JsonSink> {
    framing: Framing,
    documents: Documents<S>,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyState {
    /// Whole.
    Whole,
    /// Too early.
    Short,
    /// It is not what its type says.
    Malformed,
}

#[derive(Debug)]
struct Documents<S: JsonSink> {
    scanner: JsonScanner<S::Place>,
    sink: S,
    /// Bytes of the document in progress.
    bytes: usize,
    /// Its first bytes, up to those of [`DONE`].
    first: Vec<u8>,
    is_bad: bool,
    /// Documents of a stream that were damaged.
    malformed: u64,
}

// === impl Framing ===

impl Framing {
    /// The framing that a `Content-Type` names; none if it can have no usage.
    pub(super) fn of(content_type: Option<&[u8]>) -> Option<Self> {
        let media = content_type.unwrap_or_default().split(|byte| *byte == b';').next().unwrap_or_default();
        let media = media.trim_ascii().to_ascii_lowercase();
        Some(match media.as_slice() {
            b"" | b"text/plain" => Self::Unknown,
            b"text/event-stream" => Self::Events(EventParser::default()),
            b"application/vnd.amazon.eventstream" => Self::Frames(FrameParser::default()),
            b"application/json" | b"text/json" | b"application/x-ndjson" | b"application/jsonl" => Self::Json,
            other if other.ends_with(b"+json") => Self::Json,
            _ => return None,
        })
    }
}

// === impl Body ===

impl<S: UsageSink> Body<S> {
    /// A reader for a body with this framing.
    pub(super) fn new(framing: Framing, sink: S) -> Self {
        let scanner = JsonScanner::new();
        let mut documents =
            Documents { scanner, sink, bytes: 0, first: Vec::new(), is_bad: false, malformed: 0 };
        if matches!(framing, Framing::Frames(_)) {
            documents.sink.begin_frames();
        }
        Self { framing, documents }
    }

    /// Reads the next piece. Returns false if the rest cannot be read.
    pub(super) fn push(&mut self, piece: &[u8]) -> bool {
        if matches!(self.framing, Framing::Unknown) {
            match piece.iter().find(|byte| !byte.is_ascii_whitespace()) {
                None => return true,
                Some(b'{' | b'[') => self.framing = Framing::Json,
                Some(_) => self.framing = Framing::Events(EventParser::default()),
            }
        }
        match &mut self.framing {
            Framing::Unknown => true,
            Framing::Json => {
                self.documents.data(piece);
                !self.documents.is_bad
            }
            Framing::Events(parser) => {
                parser.push(piece, &mut self.documents);
                true
            }
            Framing::Frames(parser) => {
                let is_read = parser.push(piece, &mut self.documents).is_ok();
                self.documents.is_bad |= !is_read;
                is_read
            }
        }
    }

    /// The body has ended.
    pub(super) fn finish(&mut self) -> BodyState {
        let documents = &mut self.documents;
        let is_whole = match &mut self.framing {
            Framing::Unknown => true,
            Framing::Json => {
                let is_whole = documents.scanner.finish(&mut documents.sink);
                // An object that has ended is whole, whatever became of the document around it.
                documents.sink.commit() && is_whole
            }
            Framing::Events(parser) => {
                // An event that is cut off is not damaged, and neither are those before it.
                let malformed = documents.malformed;
                parser.finish(documents);
                documents.is_bad = false;
                std::mem::replace(&mut documents.malformed, malformed) == malformed
            }
            Framing::Frames(parser) => parser.is_complete(),
        };
        match (documents.is_bad, is_whole) {
            (true, _) => BodyState::Malformed,
            (false, true) => BodyState::Whole,
            (false, false) => BodyState::Short,
        }
    }

    /// What was read.
    pub(super) const fn sink(&self) -> &S {
        &self.documents.sink
    }

    /// Events that were damaged.
    pub(super) const fn malformed_events(&self) -> u64 {
        self.documents.malformed
    }
}

// === impl Documents ===

impl<S: UsageSink> EventSink for Documents<S> {
    fn begin(&mut self, name: &[u8]) {
        self.sink.begin_event(name);
        self.scanner.reset();
        self.first.clear();
        (self.bytes, self.is_bad) = (0, false);
    }

    fn data(&mut self, piece: &[u8]) {
        if self.bytes < DONE.len() {
            self.first.extend_from_slice(&piece[..piece.len().min(DONE.len() - self.bytes)]);
        }
        self.bytes = self.bytes.saturating_add(piece.len());
        self.is_bad = self.is_bad || self.scanner.push(piece, &mut self.sink).is_err();
    }

    fn end(&mut self) {
        if self.bytes == 0 || self.bytes == DONE.len() && self.first == DONE {
            return;
        }
        let is_whole = !self.is_bad && self.scanner.finish(&mut self.sink);
        if !(is_whole && self.sink.commit()) {
            self.damaged();
        }
    }
}

impl<S: UsageSink> FrameSink for Documents<S> {
    fn damaged(&mut self) {
        self.malformed += 1;
        self.sink.discard();
    }

    fn error(&mut self) {
        self.sink.note_error();
    }
}
