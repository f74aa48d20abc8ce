//! Hides the event in which a stream of `OpenAI` says what it used, from a client that did not ask for it.
//!
//! Must not know: the proxy. It is given the stream in pieces and returns what the client gets.
//!
//! *Invariant:* an event is hidden if its data is an object whose `choices` are an empty list and whose `usage` is an object, and
//! no byte of it passes. Every other event passes whole, as soon as it is known to be another.
//!
//! *Invariant:* at most [`HELD_MAX`] bytes are held back. A longer event passes.

use super::body::Framing;
use super::events::{EventParser, EventSink};
use super::json::{JsonScanner, JsonSink, Want};
use crate::policy::http::coding::Coding;
use crate::policy::http::field_lines::EditFields;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use memchr::memchr2;

/// The longest event that is held back until it is whole. One that says what was used is much shorter.
const HELD_MAX: usize = 16 * 1024;

/// The filter of one stream.
#[derive(Debug)]
pub struct UsageEventFilter {
    parser: EventParser,
    event: Event,
    /// What has come of an event that may have to be hidden.
    held: Vec<u8>,
    /// Whether the event in progress is another and passes.
    passes: bool,
    at_line_start: bool,
    /// In a comment, which says that the connection lives and is not part of what follows.
    in_comment: bool,
    /// The last byte was CR: a LF that follows goes where it went.
    after_cr: Option<Way>,
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Pass,
    Hold,
    Drop,
}

/// The data of the event in progress.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Event {
    scanner: JsonScanner<Place>,
    /// It has data, and nothing of it shows that it cannot be hidden.
    may_be_it: bool,
    has_choices: bool,
    has_usage: bool,
    /// It was whole, and is to be hidden.
    is_it: bool,
}

/// A place in the data of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Nowhere,
    Data,
    Choices,
    Choice,
    Usage,
}

/// What the data has shown so far.
struct Shape<'e> {
    may_be_it: &'e mut bool,
    has_choices: &'e mut bool,
    has_usage: &'e mut bool,
}

// === impl UsageEventFilter ===

impl UsageEventFilter {
    /// A filter for an answer with these header fields; none if it is no stream of events, or a compressed one.
    pub fn of(status: StatusCode, fields: &impl EditFields) -> Option<Self> {
        let is_stream = matches!(Framing::of(fields.first(&CONTENT_TYPE)), Some(Framing::Events(_)));
        let is_plain = Coding::of(fields.values(&CONTENT_ENCODING)) == Some(Coding::Identity);
        (status.is_success() && is_stream && is_plain).then(Self::default)
    }

    /// Passes on what the client gets of the next piece.
    pub fn push(&mut self, piece: &[u8], pass_on: &mut Vec<u8>) {
        let mut rest = piece;
        while !rest.is_empty() {
            let end = memchr2(b'\r', b'\n', rest).map_or(rest.len(), |at| at + 1);
            let (part, behind) = rest.split_at(end);
            rest = behind;
            self.parser.push(part, &mut self.event);
            let way = match self.after_cr.take() {
                Some(way) if part == b"\n" => way,
                _ => self.way_of(part, pass_on),
            };
            match way {
                Way::Pass => pass_on.extend_from_slice(part),
                Way::Hold => self.held.extend_from_slice(part),
                Way::Drop => {}
            }
            self.after_cr = part.ends_with(b"\r").then_some(way);
            self.at_line_start = part.ends_with(b"\r") || part.ends_with(b"\n");
        }
    }

    /// The stream has ended: passes on what is held back, unless it is whole and to be hidden.
    pub fn finish(&mut self, pass_on: &mut Vec<u8>) {
        self.parser.finish(&mut self.event);
        self.end_event(pass_on);
    }

    /// Where a line goes, or a part of one; it has been read.
    fn way_of(&mut self, part: &[u8], pass_on: &mut Vec<u8>) -> Way {
        if self.at_line_start && matches!(part, b"\r" | b"\n") {
            return self.end_event(pass_on);
        }
        let is_other = self.parser.has_data() && !self.event.may_be_it;
        if is_other || self.held.len() + part.len() > HELD_MAX {
            self.passes = true;
        }
        if self.at_line_start {
            self.in_comment = self.held.is_empty() && part.starts_with(b":");
        }
        if self.passes || self.in_comment {
            pass_on.append(&mut self.held);
            return Way::Pass;
        }
        Way::Hold
    }

    /// The event has ended. Returns where the end of its last line goes.
    fn end_event(&mut self, pass_on: &mut Vec<u8>) -> Way {
        let is_it = std::mem::take(&mut self.event.is_it) && !self.passes;
        self.passes = false;
        if is_it {
            self.held.clear();
            return Way::Drop;
        }
        pass_on.append(&mut self.held);
        Way::Pass
    }
}

impl Default for UsageEventFilter {
    fn default() -> Self {
        Self {
            parser: EventParser::default(),
            event: Event::default(),
            held: Vec::new(),
            passes: false,
            at_line_start: true,
            in_comment: false,
            after_cr: None,
        }
    }
}

// === impl Event ===

impl Event {
    fn shape(&mut self) -> (&mut JsonScanner<Place>, Shape<'_>) {
        let Self { scanner, may_be_it, has_choices, has_usage, .. } = self;
        (scanner, Shape { may_be_it, has_choices, has_usage })
    }
}

impl EventSink for Event {
    fn begin(&mut self, _name: &[u8]) {
        self.scanner.reset();
        (self.may_be_it, self.has_choices, self.has_usage, self.is_it) = (true, false, false, false);
    }

    fn data(&mut self, piece: &[u8]) {
        if !self.may_be_it {
            return;
        }
        let (scanner, mut shape) = self.shape();
        if scanner.push(piece, &mut shape).is_err() {
            self.may_be_it = false;
        }
    }

    fn end(&mut self) {
        let (scanner, mut shape) = self.shape();
        let is_whole = scanner.finish(&mut shape);
        self.is_it = is_whole && self.may_be_it && self.has_choices && self.has_usage;
    }
}

// === impl Shape ===

impl Shape<'_> {
    /// A value that is no list or object stands at this place.
    fn value(&mut self, place: Place) {
        if place != Place::Nowhere {
            *self.may_be_it = false;
        }
    }
}

impl JsonSink for Shape<'_> {
    type Place = Place;

    fn root(&self) -> Place {
        Place::Data
    }

    fn field(&self, object: Place, key: &[u8]) -> Place {
        match (object, key) {
            (Place::Data, b"choices") => Place::Choices,
            (Place::Data, b"usage") => Place::Usage,
            _ => Place::Nowhere,
        }
    }

    fn element(&self, array: Place, _: u64) -> Place {
        if array == Place::Choices { Place::Choice } else { Place::Nowhere }
    }

    fn wants(&self, place: Place) -> Want {
        if place == Place::Nowhere { Want::Nothing } else { Want::Length }
    }

    fn number(&mut self, place: Place, _: &str) {
        self.value(place);
    }

    fn text(&mut self, _: Place, _: &str) {}

    fn length(&mut self, place: Place, _: u64) {
        self.value(place);
    }

    fn literal(&mut self, place: Place, _: Option<bool>) {
        self.value(place);
    }

    fn begin_array(&mut self, place: Place) {
        match place {
            Place::Nowhere => {}
            Place::Choices => *self.has_choices = true,
            _ => *self.may_be_it = false,
        }
    }

    fn begin_object(&mut self, place: Place) {
        match place {
            Place::Nowhere | Place::Data => {}
            Place::Usage => *self.has_usage = true,
            _ => *self.may_be_it = false,
        }
    }

    fn end_object(&mut self, _: Place) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: &str =
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"[]\"}}],\"usage\":null}\n\n";
    const USAGE: &str =
        "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    /// What passes, in pieces of every size and split at every byte.
    #[track_caller]
    fn shown(stream: &str) -> String {
        let filtered = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let (mut filter, mut passed) = (UsageEventFilter::default(), Vec::new());
            pieces.for_each(|piece| filter.push(piece, &mut passed));
            filter.finish(&mut passed);
            String::from_utf8(passed).expect("text")
        };
        let bytes = stream.as_bytes();
        let whole = filtered(&mut [bytes].into_iter());
        assert_eq!(filtered(&mut bytes.chunks(1)), whole, "byte by byte");
        for at in 0..bytes.len() {
            assert_eq!(filtered(&mut [&bytes[..at], &bytes[at..]].into_iter()), whole, "split at {at}");
        }
        whole
    }

    #[test]
    fn exactly_the_event_that_says_what_was_used_is_hidden() {
        assert_eq!(shown(&[CHUNK, CHUNK, USAGE, DONE].concat()), [CHUNK, CHUNK, DONE].concat());
        for (hidden, end) in [
            (USAGE.to_owned(), "\n"),
            (USAGE.replace('\n', "\r"), "\r"),
            (USAGE.replace('\n', "\r\n"), "\r\n"),
            (format!("event: message\nid: 7\n{USAGE}"), "\n"),
            (USAGE.replace("],", "],\ndata:"), "\n"),
            ("data:{\"usage\":{},\"choices\" : [ ] , \"x\":[[{}]]}\n\n".to_owned(), "\n"),
        ] {
            let around = |inner: &str| {
                [&CHUNK.replace('\n', end), inner, &CHUNK.replace('\n', end), &DONE.replace('\n', end)]
                    .concat()
            };
            assert_eq!(shown(&around(&hidden)), around(""), "{hidden}");
        }
        let marked = format!("\u{feff}{CHUNK}{USAGE}{DONE}");
        assert_eq!(shown(&marked), format!("\u{feff}{CHUNK}{DONE}"));
        // All that an event without its empty line lacks is that.
        assert_eq!(shown(&format!("{CHUNK}{}", USAGE.trim_end())), CHUNK);
    }

    #[test]
    fn every_other_event_passes_unchanged() {
        let long = format!("data: {{\"choices\":[],\"x\":\"{}\",\"usage\":{{}}}}\n\n", "y".repeat(HELD_MAX));
        for event in [
            CHUNK,
            DONE,
            "data: {\"choices\":[],\"usage\":null,\"prompt_filter_results\":[{}]}\n\n",
            "data: {\"choices\":[],\"prompt_filter_results\":[{}]}\n\n",
            "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":9}}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9},\"choices\":[{\"delta\":{}}]}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9},\"choices\":[null]}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9},\"choices\":[\"\"]}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9},\"choices\":null}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9},\"choices\":{}}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9}}\n\n",
            "data: {\"usage\":[{}],\"choices\":[]}\n\n",
            "data: {\"inner\":{\"usage\":{},\"choices\":[]}}\n\n",
            "data: [{\"usage\":{},\"choices\":[]}]\n\n",
            "data: {\"usage\":{},\"choices\":[]} x\n\n",
            "data: {\"usage\":{},\"choices\":[]\n\n",
            "data: {\"error\":{\"message\":\"no\"}}\n\n",
            "data: not JSON\n\n",
            "data:\n\n",
            "data\n\n",
            ": keep-alive\n\n",
            "event: ping\n\n",
            "retry: 10\nid\n\n",
            "\n\n\n",
            "data: {\"choices\":[],",
            &long,
        ] {
            let stream = [CHUNK, event, USAGE].concat();
            // Only where an event does not end is the next one part of it.
            let expected = if event.ends_with(',') { stream.clone() } else { [CHUNK, event].concat() };
            if event.len() < 1_000 {
                assert_eq!(shown(&stream), expected, "{event}");
            }
        }
        let mut passed = Vec::new();
        let mut filter = UsageEventFilter::default();
        long.as_bytes().chunks(1_000).for_each(|piece| filter.push(piece, &mut passed));
        assert!(filter.held.capacity() <= 2 * HELD_MAX);
        assert_eq!(passed, long.as_bytes());
    }

    #[test]
    fn an_event_passes_as_soon_as_it_is_known_to_be_another() {
        let mut filter = UsageEventFilter::default();
        let mut step = |piece: &str| {
            let mut passed = Vec::new();
            filter.push(piece.as_bytes(), &mut passed);
            String::from_utf8(passed).expect("text")
        };
        assert_eq!(step("data: {\"id\":\"c\",\"choi"), "");
        assert_eq!(step("ces\":["), "");
        assert_eq!(step("{"), "data: {\"id\":\"c\",\"choices\":[{");
        assert_eq!(step("\"delta\":{}}]}\n"), "\"delta\":{}}]}\n");
        assert_eq!(step("\n"), "\n");
        assert_eq!(step(": still"), ": still");
        assert_eq!(step(" here\n"), " here\n");
        assert_eq!(step("data: ["), "data: [");
        assert_eq!(step("DONE]\n\n"), "DONE]\n\n");
    }
}
