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
    /// The place of the field `key` of an object.
    fn field(&self, object: Self::Place, key: &str) -> Self::Place;
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
    /// The key, number or text that is captured.
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
    /// More of a string.
    Text { is_key: bool, want: Want, escaped: bool },
    /// More of a number.
    Number,
    /// More of `true`, `false` or `null`: what is left of it, and what it is.
    Literal(&'static [u8], Option<bool>),
}

// === impl JsonScanner ===

impl<P: Copy + PartialEq + Default> JsonScanner<P> {
    /// A scanner at the beginning of a document.
    pub(super) fn new() -> Self {
        Self {
            state: State::Value,
            stack: Vec::new(),
            place: P::default(),
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
            State::Number if self.stack.is_empty() => self.end_number(sink),
            // What has come of a text has come.
            State::Text { is_key: false, want: Want::Length, .. } => {
                sink.length(self.place, u64::try_from(self.length).unwrap_or(0));
            }
            _ => {}
        }
        self.documents > 0 && self.stack.is_empty() && self.state == State::Value
    }

    /// Reads the next piece.
    pub(super) fn push<S: JsonSink<Place = P>>(&mut self, piece: &[u8], sink: &mut S) -> Result<(), BadJson> {
        let mut rest = piece;
        while let Some((&byte, behind)) = rest.split_first() {
            match self.state {
                State::Text { is_key, want, escaped } => {
                    rest = self.text(rest, is_key, want, escaped, sink);
                    continue;
                }
                State::Number if matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') => {
                    self.keep(&[byte]);
                }
                // What follows a number belongs to what is around it.
                State::Number => {
                    self.end_number(sink);
                    continue;
                }
                State::Literal(left, value) => match left {
                    [only] if *only == byte => self.end_literal(value, sink),
                    [first, more @ ..] if *first == byte => self.state = State::Literal(more, value),
                    _ => return Err(BadJson),
                },
                _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => {}
                // A byte order mark.
                State::Value if self.stack.is_empty() && matches!(byte, 0xef | 0xbb | 0xbf) => {}
                State::FirstElement if byte == b']' => self.end_container(false, sink)?,
                State::Value | State::FirstElement => self.value(byte, sink)?,
                State::FirstKey if byte == b'}' => self.end_container(true, sink)?,
                State::FirstKey | State::Key if byte == b'"' => {
                    let parent = self.stack.last().map_or_else(P::default, |object| object.place);
                    let want = if parent == P::default() { Want::Nothing } else { Want::Text };
                    self.begin_text(true, want);
                }
                State::Colon if byte == b':' => self.state = State::Value,
                State::FirstKey | State::Key | State::Colon => return Err(BadJson),
                State::Comma => match byte {
                    b',' => self.next_in_container(sink)?,
                    b'}' => self.end_container(true, sink)?,
                    b']' => self.end_container(false, sink)?,
                    _ => return Err(BadJson),
                },
            }
            rest = behind;
        }
        Ok(())
    }

    /// A value begins.
    fn value<S: JsonSink<Place = P>>(&mut self, byte: u8, sink: &mut S) -> Result<(), BadJson> {
        if self.stack.is_empty() {
            self.place = sink.root();
        }
        match byte {
            b'{' | b'[' => {
                if self.stack.len() == DEPTH_MAX {
                    return Err(BadJson);
                }
                let (place, is_object) = (self.place, byte == b'{');
                self.stack.push(Container { place, is_object, count: 0 });
                if is_object {
                    sink.begin_object(place);
                    self.state = State::FirstKey;
                } else {
                    sink.begin_array(place);
                    self.place = element(place, 0, sink);
                    self.state = State::FirstElement;
                }
            }
            b'"' => {
                let is_wanted = self.place != P::default();
                self.begin_text(false, if is_wanted { sink.wants(self.place) } else { Want::Nothing });
            }
            b'-' | b'0'..=b'9' => {
                self.begin_capture();
                self.keep(&[byte]);
                self.state = State::Number;
            }
            b't' => self.state = State::Literal(b"rue", Some(true)),
            b'f' => self.state = State::Literal(b"alse", Some(false)),
            b'n' => self.state = State::Literal(b"ull", None),
            _ => return Err(BadJson),
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

    fn end_literal<S: JsonSink<Place = P>>(&mut self, value: Option<bool>, sink: &mut S) {
        if self.place != P::default() {
            sink.literal(self.place, value);
        }
        self.end_value();
    }

    fn end_number<S: JsonSink<Place = P>>(&mut self, sink: &mut S) {
        if self.place != P::default()
            && !self.overflow
            && let Ok(text) = std::str::from_utf8(&self.capture)
        {
            sink.number(self.place, text);
        }
        self.end_value();
    }

    fn begin_text(&mut self, is_key: bool, want: Want) {
        self.begin_capture();
        self.length = 0;
        self.state = State::Text { is_key, want, escaped: false };
    }

    /// Reads on in a string; returns what follows the bytes that were read.
    fn text<'b, S: JsonSink<Place = P>>(
        &mut self,
        bytes: &'b [u8],
        is_key: bool,
        want: Want,
        escaped: bool,
        sink: &mut S,
    ) -> &'b [u8] {
        let keeps = want == Want::Text;
        if escaped {
            let (first, rest) = bytes.split_at(1);
            // The four digits of `\u` are counted as they come: that makes two bytes of it.
            self.length = self.length.saturating_add(if first == b"u" { -2 } else { 1 });
            if keeps {
                self.keep(first);
            }
            if want == Want::Pieces && first == b"/" {
                sink.piece(self.place, first);
            }
            self.state = State::Text { is_key, want, escaped: false };
            return rest;
        }
        let end = memchr2(b'"', b'\\', bytes);
        let plain = &bytes[..end.unwrap_or(bytes.len())];
        self.length = self.length.saturating_add(i64::try_from(plain.len()).unwrap_or(i64::MAX));
        match want {
            Want::Text => self.keep(plain),
            Want::Pieces => sink.piece(self.place, plain),
            Want::Nothing | Want::Length => {}
        }
        let Some(end) = end else { return &[] };
        if bytes[end] == b'"' {
            self.end_text(is_key, want, sink);
        } else {
            self.escapes = true;
            if keeps {
                self.keep(b"\\");
            }
            self.state = State::Text { is_key, want, escaped: true };
        }
        &bytes[end + 1..]
    }

    fn end_text<S: JsonSink<Place = P>>(&mut self, is_key: bool, want: Want, sink: &mut S) {
        if is_key {
            let parent = self.stack.last().map_or_else(P::default, |object| object.place);
            self.place = match want {
                Want::Text => self.captured(|key| sink.field(parent, key)).unwrap_or_default(),
                _ => P::default(),
            };
            self.state = State::Colon;
            return;
        }
        let place = self.place;
        match want {
            Want::Nothing | Want::Pieces => {}
            Want::Text => {
                self.captured(|text| sink.text(place, text));
            }
            Want::Length => sink.length(place, u64::try_from(self.length).unwrap_or(0)),
        }
        self.end_value();
    }

    /// Passes on the captured string, decoded. None if it is too long or not a string.
    fn captured<R>(&mut self, pass_on: impl FnOnce(&str) -> R) -> Option<R> {
        if self.overflow {
            return None;
        }
        if !self.escapes {
            return std::str::from_utf8(&self.capture).ok().map(pass_on);
        }
        self.capture.insert(0, b'"');
        self.capture.push(b'"');
        serde_json::from_slice::<String>(&self.capture).ok().map(|text| pass_on(&text))
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

impl<P: Copy + PartialEq + Default> Default for JsonScanner<P> {
    fn default() -> Self {
        Self::new()
    }
}

fn element<S: JsonSink>(array: S::Place, index: u64, sink: &S) -> S::Place {
    if array == S::Place::default() { array } else { sink.element(array, index) }
}

/// The decimal number `text` times ten to the power of `scale`, rounded to a whole number. None if it is negative, no number,
/// or more than a count that every store and every client keeps exactly.
pub(super) fn whole(text: &str, scale: i32) -> Option<u64> {
    const EXACT_MAX: u128 = 1 << 53;
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (before, negative) = before.strip_prefix('-').map_or((before, false), |before| (before, true));
    if before.is_empty() {
        return None;
    }
    let mut digits: u128 = 0;
    let mut power = exponent.checked_add(scale)?;
    for digit in before.bytes() {
        let digit = char::from(digit).to_digit(10)?;
        digits = digits.checked_mul(10)?.checked_add(digit.into())?;
    }
    for digit in after.bytes() {
        let digit = char::from(digit).to_digit(10)?;
        // Digits behind these change nothing that is kept.
        if digits < u128::MAX / 100 {
            digits = digits * 10 + u128::from(digit);
            power = power.checked_sub(1)?;
        }
    }
    let value = if digits == 0 {
        0
    } else if power >= 0 {
        digits.checked_mul(10_u128.checked_pow(power.unsigned_abs())?)?
    } else {
        // Too small to round to anything but nothing if the power is out of reach.
        10_u128
            .checked_pow(power.unsigned_abs())
            .map_or(0, |by| digits / by + u128::from(digits % by >= by / 2))
    };
    let value = u64::try_from(value).ok().filter(|value| u128::from(*value) <= EXACT_MAX)?;
    (value == 0 || !negative).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts everything and keeps nothing.
    struct Nothing;

    impl JsonSink for Nothing {
        type Place = u8;

        fn root(&self) -> u8 {
            1
        }

        fn field(&self, _: u8, _: &str) -> u8 {
            1
        }

        fn element(&self, _: u8, _: u64) -> u8 {
            1
        }

        fn wants(&self, _: u8) -> Want {
            Want::Text
        }

        fn number(&mut self, _: u8, _: &str) {}

        fn text(&mut self, _: u8, _: &str) {}

        fn length(&mut self, _: u8, _: u64) {}

        fn begin_object(&mut self, _: u8) {}

        fn end_object(&mut self, _: u8) {}
    }

    #[test]
    fn documents_are_told_from_what_is_none() {
        for (text, is_whole) in [
            (" {\"a\":[1,-2.5e3,true,false,null,\"x\\\"\"],\"b\":{}} ", true),
            ("[]", true),
            ("7", true),
            ("{}\n{}\n", true),
            ("", false),
            ("{\"a\":1", false),
            ("[1,", false),
            ("\"x", false),
            ("{\"a\" 1}", false),
            ("{a:1}", false),
            ("[1 2]", false),
            ("[1}", false),
            ("{\"a\":1,}", false),
            ("[tru]", false),
            ("[,]", false),
            ("]", false),
            ("{} x", false),
        ] {
            let mut scanner = JsonScanner::new();
            let is_read = text.as_bytes().chunks(1).all(|byte| scanner.push(byte, &mut Nothing).is_ok());
            assert_eq!(is_read && scanner.finish(&mut Nothing), is_whole, "{text}");
        }
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut scanner = JsonScanner::new();
        assert_eq!(scanner.push(&[b'['; DEPTH_MAX], &mut Nothing), Ok(()));
        assert_eq!(scanner.push(b"[", &mut Nothing), Err(BadJson));
        scanner.reset();
        for piece in
            [b"{\"".as_slice(), &[b'k'; 100_000], b"\":\"", &[b'v'; 100_000], b"\",\"n\":", &[b'1'; 100_000]]
        {
            assert_eq!(scanner.push(piece, &mut Nothing), Ok(()));
        }
        assert!(scanner.capture.capacity() <= 2 * CAPTURE_MAX && scanner.stack.capacity() <= 2 * DEPTH_MAX);
    }

    #[test]
    fn decimal_numbers_become_whole_ones() {
        for (text, scale, value) in [
            ("0", 0, Some(0)),
            ("12", 0, Some(12)),
            ("12.0", 0, Some(12)),
            ("1.2e1", 0, Some(12)),
            ("2.5", 0, Some(3)),
            ("2.4", 0, Some(2)),
            ("0.00095", 9, Some(950_000)),
            ("1.5e-8", 9, Some(15)),
            ("0.123456789123456789123456789123456789123456789", 9, Some(123_456_789)),
            ("1e-400", 9, Some(0)),
            ("0e99", 9, Some(0)),
            ("9007199254740992", 0, Some(1 << 53)),
            ("9007199254740993", 0, None),
            ("1e99", 0, None),
            ("1e99999999999", 0, None),
            ("-0", 0, Some(0)),
            ("-1", 0, None),
            ("", 0, None),
            (".5", 0, None),
            ("1e", 0, None),
            ("1-2", 0, None),
        ] {
            assert_eq!(whole(text, scale), value, "{text}");
        }
    }
}
