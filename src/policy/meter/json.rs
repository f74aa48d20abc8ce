//! A JSON scanner that takes a document in pieces of any size and keeps nothing but its place in it.
//!
//! Must not know: what the document means. A [`JsonSink`] says which places matter; text elsewhere is skipped.
//!
//! *Invariant:* memory is bounded by [`DEPTH_MAX`] and [`CAPTURE_MAX`], whatever the document contains, and the result does not
//! depend on how it is cut into pieces.

use memchr::memchr2;

/// The deepest nesting that is read.
pub(super) const DEPTH_MAX: usize = 512;
/// The longest key, number or text that is captured.
pub(super) const CAPTURE_MAX: usize = 256;

/// What a document is read for. `Place` says where in the document a value stands; the default is "nowhere of interest".
pub(super) trait JsonSink {
    /// A place in the document.
    type Place: Copy + PartialEq + Default + std::fmt::Debug;

    /// Where the document itself stands.
    fn root(&self) -> Self::Place;
    /// The place of the field `key` of an object. A key that is no text matches nothing.
    fn field(&self, object: Self::Place, key: &[u8]) -> Self::Place;
    /// The place of an element of an array.
    fn element(&self, array: Self::Place, index: u64) -> Self::Place;
    /// What is wanted of a string at this place.
    fn wants(&self, place: Self::Place) -> Want;
    /// A number.
    fn number(&mut self, place: Self::Place, text: &str);
    /// A string, where [`Want::Text`] was said and it is not too long.
    fn text(&mut self, place: Self::Place, text: &str);
    /// `true`, `false`, or `null`: none.
    fn literal(&mut self, _place: Self::Place, _value: Option<bool>) {}
    /// A piece of a string, where [`Want::Pieces`] was said. Of its escapes only that of the slash is decoded.
    fn piece(&mut self, _place: Self::Place, _piece: &[u8]) {}
    /// About how many bytes a string has, where [`Want::Length`] was said.
    fn length(&mut self, place: Self::Place, bytes: u64);
    /// An array begins.
    fn begin_array(&mut self, _place: Self::Place) {}
    /// An object begins.
    fn begin_object(&mut self, place: Self::Place);
    /// An object ends.
    fn end_object(&mut self, place: Self::Place);
}

/// What is wanted of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Nothing.
    Nothing,
    /// Its text.
    Text,
    /// Its length.
    Length,
    /// All of it, piece by piece.
    Pieces,
}

/// This is not JSON, or it is nested too deeply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadJson;

/// The scanner. It reads one document, or several that follow each other.
#[derive(Debug)]
pub(super) struct JsonScanner<P> {
    state: State,
    stack: Vec<Container<P>>,
    /// Where the value stands that is read now or comes next.
    place: P,
    /// What is wanted of the key or string that is cut or has escapes.
    want: Want,
    /// Its next byte is escaped.
    is_escaped: bool,
    /// What is left of the literal that is cut, and what it is.
    literal: (&'static [u8], Option<bool>),
    /// The key, number or text that is cut into pieces or has escapes, as far as it has come.
    capture: Vec<u8>,
    /// It has become too long.
    overflow: bool,
    /// It contains an escape.
    escapes: bool,
    length: i64,
    documents: u64,
}

#[derive(Clone, Copy, Debug)]
struct Container<P> {
    place: P,
    is_object: bool,
    /// Elements so far.
    count: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value.
    Value,
    /// The first element of an array, or its end.
    FirstElement,
    /// The first key of an object, or its end.
    FirstKey,
    /// A key.
    Key,
    /// The colon after a key.
    Colon,
    /// A comma, or the end of the container.
    Comma,
    /// More of a key.
    KeyText,
    /// More of a string.
    Text,
    /// More of a number.
    Number,
    /// More of a literal.
    Literal,
}

// === impl JsonScanner ===

impl<P: Copy + PartialEq + Default> JsonScanner<P> {
    /// A scanner at the beginning of a document.
    pub(super) fn new() -> Self {
        Self {
            state: State::Value,
            stack: Vec::new(),
            place: P::default(),
            want: Want::Nothing,
            is_escaped: false,
            literal: (b"", None),
            capture: Vec::new(),
            overflow: false,
            escapes: false,
            length: 0,
            documents: 0,
        }
    }

    /// Goes back to the beginning of a document, and keeps the memory.
    pub(super) fn reset(&mut self) {
        self.state = State::Value;
        self.stack.clear();
        self.documents = 0;
    }

    /// The input has ended. Returns whether whole documents have been read, at least one, and nothing of another.
    pub(super) fn finish<S: JsonSink<Place = P>>(&mut self, sink: &mut S) -> bool {
        match self.state {
            State::Number if self.stack.is_empty() => self.end_captured_number(sink),
            // What has come of a text has come.
            State::Text if self.want == Want::Length => {
                sink.length(self.place, u64::try_from(self.length).unwrap_or(0));
            }
            _ => {}
        }
        self.documents > 0 && self.stack.is_empty() && self.state == State::Value
    }

    /// Reads the next piece. What lies whole in it is read where it lies; only what is cut, or has escapes, is copied.
    pub(super) fn push<S: JsonSink<Place = P>>(&mut self, piece: &[u8], sink: &mut S) -> Result<(), BadJson> {
        let mut rest = piece;
        while let Some((&byte, behind)) = rest.split_first() {
            rest = match self.state {
                State::KeyText | State::Text => self.text(rest, sink),
                State::Number => self.number(rest, sink),
                State::Literal => self.literal(rest, self.literal.0, self.literal.1, sink)?,
                _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => behind,
                // A byte order mark.
                State::Value if self.stack.is_empty() && matches!(byte, 0xef | 0xbb | 0xbf) => behind,
                State::Value => self.value(rest, sink)?,
                State::FirstElement if byte != b']' => self.value(rest, sink)?,
                State::FirstKey | State::Key if byte == b'"' => self.begin_text(behind, true, sink),
                State::Colon if byte == b':' => {
                    self.state = State::Value;
                    behind
                }
                State::Comma if byte == b',' => {
                    self.next_in_container(sink)?;
                    behind
                }
                State::Comma | State::FirstKey if byte == b'}' => {
                    self.end_container(true, sink)?;
                    behind
                }
                State::Comma | State::FirstElement if byte == b']' => {
                    self.end_container(false, sink)?;
                    behind
                }
                _ => return Err(BadJson),
            };
        }
        Ok(())
    }

    /// A value begins. This and the functions below return what follows the bytes that they have read.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "a sixth of what the meter takes, and left alone by the compiler"
    )]
    fn value<'b, S: JsonSink<Place = P>>(
        &mut self,
        bytes: &'b [u8],
        sink: &mut S,
    ) -> Result<&'b [u8], BadJson> {
        if self.stack.is_empty() {
            self.place = sink.root();
        }
        let behind = &bytes[1..];
        let (literal, value): (&'static [u8], _) = match bytes[0] {
            b'"' => return Ok(self.begin_text(behind, false, sink)),
            b'-' | b'0'..=b'9' => {
                self.begin_capture();
                self.state = State::Number;
                return Ok(self.number(bytes, sink));
            }
            b'{' | b'[' => {
                self.begin_container(bytes[0] == b'{', sink)?;
                return Ok(behind);
            }
            b't' => (b"true", Some(true)),
            b'f' => (b"false", Some(false)),
            b'n' => (b"null", None),
            _ => return Err(BadJson),
        };
        self.literal(bytes, literal, value, sink)
    }

    fn begin_container<S: JsonSink<Place = P>>(
        &mut self,
        is_object: bool,
        sink: &mut S,
    ) -> Result<(), BadJson> {
        if self.stack.len() == DEPTH_MAX {
            return Err(BadJson);
        }
        let place = self.place;
        self.stack.push(Container { place, is_object, count: 0 });
        if is_object {
            sink.begin_object(place);
            self.state = State::FirstKey;
        } else {
            sink.begin_array(place);
            self.place = element(place, 0, sink);
            self.state = State::FirstElement;
        }
        Ok(())
    }

    fn next_in_container<S: JsonSink<Place = P>>(&mut self, sink: &S) -> Result<(), BadJson> {
        let container = self.stack.last_mut().ok_or(BadJson)?;
        if container.is_object {
            self.state = State::Key;
            return Ok(());
        }
        container.count += 1;
        let Container { place, count, .. } = *container;
        self.place = element(place, count, sink);
        self.state = State::Value;
        Ok(())
    }

    fn end_container<S: JsonSink<Place = P>>(
        &mut self,
        is_object: bool,
        sink: &mut S,
    ) -> Result<(), BadJson> {
        let container = self.stack.pop().filter(|c| c.is_object == is_object).ok_or(BadJson)?;
        if is_object {
            sink.end_object(container.place);
        }
        self.end_value();
        Ok(())
    }

    fn end_value(&mut self) {
        if self.stack.is_empty() {
            self.documents += 1;
            self.state = State::Value;
        } else {
            self.state = State::Comma;
        }
    }

    /// Reads on in a literal of which `left` is still to come.
    fn literal<'b, S: JsonSink<Place = P>>(
        &mut self,
        bytes: &'b [u8],
        left: &'static [u8],
        value: Option<bool>,
        sink: &mut S,
    ) -> Result<&'b [u8], BadJson> {
        if let Some(behind) = bytes.strip_prefix(left) {
            if self.place != P::default() {
                sink.literal(self.place, value);
            }
            self.end_value();
            return Ok(behind);
        }
        let left = left.strip_prefix(bytes).ok_or(BadJson)?;
        (self.state, self.literal) = (State::Literal, (left, value));
        Ok(&[])
    }

    /// Reads on in a number.
    fn number<'b, S: JsonSink<Place = P>>(&mut self, bytes: &'b [u8], sink: &mut S) -> &'b [u8] {
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
        let end = bytes.iter().position(|byte| !is_part(byte));
        let (digits, behind) = bytes.split_at(end.unwrap_or(bytes.len()));
        let is_wanted = self.place != P::default();
        let is_cut = !self.capture.is_empty() || self.overflow;
        if end.is_some() && !is_cut {
            if is_wanted && digits.len() <= CAPTURE_MAX {
                pass_number(self.place, digits, sink);
            }
            self.end_value();
        } else {
            self.keep(digits);
            if end.is_some() {
                self.end_captured_number(sink);
            }
        }
        behind
    }

    fn end_captured_number<S: JsonSink<Place = P>>(&mut self, sink: &mut S) {
        if self.place != P::default() && !self.overflow {
            pass_number(self.place, &self.capture, sink);
        }
        self.end_value();
    }

    /// A string begins; the bytes are those after its quotation mark.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "a sixth of what the meter takes, and left alone by the compiler"
    )]
    fn begin_text<'b, S: JsonSink<Place = P>>(
        &mut self,
        bytes: &'b [u8],
        is_key: bool,
        sink: &mut S,
    ) -> &'b [u8] {
        let place = if is_key { self.place_of_container() } else { self.place };
        let want = match (place == P::default(), is_key) {
            (true, _) => Want::Nothing,
            (false, true) => Want::Text,
            (false, false) => sink.wants(place),
        };
        let end = end_of_plain(bytes);
        if let Some((text, [b'"', behind @ ..])) = end.and_then(|end| bytes.split_at_checked(end)) {
            if is_key {
                self.end_key((want == Want::Text && text.len() <= CAPTURE_MAX).then_some(text), sink);
                // The colon mostly follows at once.
                let Some(value) = behind.strip_prefix(b":") else { return behind };
                self.state = State::Value;
                return value;
            }
            match want {
                Want::Text if text.len() <= CAPTURE_MAX => pass_text(place, text, sink),
                Want::Pieces => sink.piece(place, text),
                Want::Length => sink.length(place, text.len() as u64),
                Want::Nothing | Want::Text => {}
            }
            self.end_value();
            return behind;
        }
        self.begin_capture();
        (self.length, self.want, self.is_escaped) = (0, want, false);
        self.state = if is_key { State::KeyText } else { State::Text };
        bytes
    }

    /// Reads on in a key or string that is cut into pieces or has escapes.
    fn text<'b, S: JsonSink<Place = P>>(&mut self, bytes: &'b [u8], sink: &mut S) -> &'b [u8] {
        let keeps = self.want == Want::Text;
        if std::mem::take(&mut self.is_escaped) {
            let (first, rest) = bytes.split_at(1);
            // The four digits of `\u` are counted as they come: that makes two bytes of it.
            self.length = self.length.saturating_add(if first == b"u" { -2 } else { 1 });
            if keeps {
                self.keep(first);
            }
            if self.want == Want::Pieces && first == b"/" {
                sink.piece(self.place, first);
            }
            return rest;
        }
        let end = end_of_plain(bytes);
        let plain = &bytes[..end.unwrap_or(bytes.len())];
        self.length = self.length.saturating_add(i64::try_from(plain.len()).unwrap_or(i64::MAX));
        match self.want {
            Want::Text => self.keep(plain),
            Want::Pieces => sink.piece(self.place, plain),
            Want::Nothing | Want::Length => {}
        }
        let Some(end) = end else { return &[] };
        if bytes[end] == b'"' {
            self.end_captured_text(sink);
        } else {
            (self.escapes, self.is_escaped) = (true, true);
            if keeps {
                self.keep(b"\\");
            }
        }
        &bytes[end + 1..]
    }

    fn end_captured_text<S: JsonSink<Place = P>>(&mut self, sink: &mut S) {
        let is_captured = self.want == Want::Text && !self.overflow && self.decode_capture();
        let capture = std::mem::take(&mut self.capture);
        if self.state == State::KeyText {
            self.end_key(is_captured.then_some(&capture), sink);
        } else {
            if is_captured {
                pass_text(self.place, &capture, sink);
            } else if self.want == Want::Length {
                sink.length(self.place, u64::try_from(self.length).unwrap_or(0));
            }
            self.end_value();
        }
        self.capture = capture;
    }

    /// A key has ended; none if nobody wants it, or it is too long or not a string.
    fn end_key<S: JsonSink<Place = P>>(&mut self, key: Option<&[u8]>, sink: &S) {
        let object = self.place_of_container();
        self.place = key.map_or_else(P::default, |key| sink.field(object, key));
        self.state = State::Colon;
    }

    fn place_of_container(&self) -> P {
        self.stack.last().map_or_else(P::default, |container| container.place)
    }

    /// Replaces the escapes of the captured string. Returns false if it is not a string.
    fn decode_capture(&mut self) -> bool {
        if self.escapes {
            self.capture.insert(0, b'"');
            self.capture.push(b'"');
            let Ok(text) = serde_json::from_slice::<String>(&self.capture) else { return false };
            self.capture.clear();
            self.capture.extend_from_slice(text.as_bytes());
        }
        true
    }

    fn begin_capture(&mut self) {
        self.capture.clear();
        (self.overflow, self.escapes) = (false, false);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.overflow |= self.capture.len() + bytes.len() > CAPTURE_MAX;
        if !self.overflow {
            self.capture.extend_from_slice(bytes);
        }
    }
}

/// Where the string ends, or its next escape begins. Most strings are shorter than what a call of [`memchr2`] costs.
fn end_of_plain(bytes: &[u8]) -> Option<usize> {
    /// Words that are looked at first.
    const WORDS: usize = 4;
    const ONES: u64 = u64::MAX / 255;
    const SIZE: usize = size_of::<u64>();
    // The lowest byte that is zero has its highest bit set, and none below it has.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    let (words, _) = bytes.as_chunks::<SIZE>();
    for (at, word) in words.iter().take(WORDS).enumerate() {
        let word = u64::from_le_bytes(*word);
        let hits = zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
        if hits != 0 {
            return Some(at * SIZE + hits.trailing_zeros() as usize / 8);
        }
    }
    let start = words.len().min(WORDS) * SIZE;
    let rest = bytes.get(start..)?;
    memchr2(b'"', b'\\', rest).map(|end| start + end)
}

fn pass_number<S: JsonSink>(place: S::Place, digits: &[u8], sink: &mut S) {
    if let Ok(text) = std::str::from_utf8(digits) {
        sink.number(place, text);
    }
}

fn pass_text<S: JsonSink>(place: S::Place, text: &[u8], sink: &mut S) {
    if let Ok(text) = std::str::from_utf8(text) {
        sink.text(place, text);
    }
}

impl<P: Copy + PartialEq + Default> Default for JsonScanner<P> {
    fn default() -> Self {
        Self::new()
    }
}

fn element<S: JsonSink>(array: S::Place, index: u64, sink: &S) -> S::Place {
    if array == S::Place::default() { array } else { sink.element(array, index) }
}

#[cfg(test)]
mod tests;
