//! The reader of JSON: what it tells of a text, however that is cut.

use super::*;

/// Accepts everything and writes down what it is told; pieces of a string in one line.
#[derive(Default)]
struct Log {
    told: String,
    pieces: String,
    want: Option<Want>,
}

impl Log {
    fn note(&mut self, line: std::fmt::Arguments<'_>) {
        let pieces = std::mem::take(&mut self.pieces);
        if !pieces.is_empty() {
            self.told.push_str(&format!("{pieces}\n"));
        }
        self.told.push_str(&format!("{line}\n"));
    }
}

impl JsonSink for Log {
    type Place = u8;

    fn root(&self) -> u8 {
        1
    }

    /// The sum of the bytes, so that a key with another text is another place; 0 is nowhere.
    fn field(&self, object: u8, key: &[u8]) -> u8 {
        key.iter().fold(object, |sum, byte| sum.wrapping_mul(7).wrapping_add(*byte))
    }

    fn element(&self, array: u8, index: u64) -> u8 {
        array.wrapping_add(u8::try_from(index % 16).unwrap()).max(1)
    }

    fn wants(&self, _: u8) -> Want {
        self.want.unwrap_or(Want::Text)
    }

    fn number(&mut self, place: u8, text: &str) {
        self.note(format_args!("{place} number {text}"));
    }

    fn text(&mut self, place: u8, text: &str) {
        self.note(format_args!("{place} text {text}"));
    }

    fn literal(&mut self, place: u8, value: Option<bool>) {
        self.note(format_args!("{place} literal {value:?}"));
    }

    fn piece(&mut self, _: u8, piece: &[u8]) {
        self.pieces.extend(piece.iter().copied().map(char::from));
    }

    fn length(&mut self, place: u8, bytes: u64) {
        self.note(format_args!("{place} length {bytes}"));
    }

    fn begin_array(&mut self, place: u8) {
        self.note(format_args!("{place} ["));
    }

    fn begin_object(&mut self, place: u8) {
        self.note(format_args!("{place} {{"));
    }

    fn end_object(&mut self, place: u8) {
        self.note(format_args!("{place} }}"));
    }
}

/// What is told of these pieces, and whether they are whole documents.
fn read(pieces: &[&[u8]], want: Want) -> (String, bool) {
    let (mut scanner, mut log) = (JsonScanner::new(), Log { want: Some(want), ..Log::default() });
    let is_read = pieces.iter().all(|piece| scanner.push(piece, &mut log).is_ok());
    let is_whole = is_read && scanner.finish(&mut log);
    log.note(format_args!("end"));
    (log.told, is_whole)
}

#[test]
fn a_document_means_the_same_however_it_is_cut() {
    let long = "0123456789".repeat(CAPTURE_MAX / 10);
    let documents = [
        r#"{"a":1,"b":[-2.5e3,true,false,null,{}],"c":{"d":"x\"\\y\u00e9\/z","e":"","":"é"}} "#.to_owned(),
        format!(
            r#" {{ "n" : {long}12345 , "m":{long}{long},"{long}key" : "v" , "k\n":"{long}" , "t":"{long}toolong" }}"#
        ),
        r#"[[],[[]],"a","bcdefghijklmnopqrstuvwxyz0123456789\"more",0]{"x":nul}"#.to_owned(),
        r#"{"a":tru,"b":1}"#.to_owned(),
        "7".to_owned(),
        "\u{feff}[1]\n[2]".to_owned(),
    ];
    for document in documents {
        let document = document.as_bytes();
        for want in [Want::Nothing, Want::Text, Want::Length, Want::Pieces] {
            let whole = read(&[document], want);
            for at in 0..=document.len() {
                let (first, second) = document.split_at(at);
                assert_eq!(read(&[first, second], want), whole, "cut at {at}, {want:?}");
            }
            let bytes: Vec<&[u8]> = document.chunks(1).collect();
            assert_eq!(read(&bytes, want), whole, "byte by byte, {want:?}");
        }
    }
}

#[test]
fn a_value_is_told_with_its_place() {
    let told = |text: &str| read(&[text.as_bytes()], Want::Text).0;
    let (a, b) = (7 + b'a', 7 + b'b');
    assert_eq!(
        told(r#"{"a":"x\ty","b":[12,null]}"#),
        format!("1 {{\n{a} text x\ty\n{b} [\n{b} number 12\n{} literal None\n1 }}\nend\n", b + 1)
    );
}

#[test]
fn the_end_of_a_string_is_found_wherever_it_is() {
    for length in 0..80 {
        for end in [b'"', b'\\'] {
            // Bytes that differ from a mark in one bit only, and the highest.
            for filler in [b'!', b'#', b'\x22' ^ 0x80, b']', b'\xff', b'\0'] {
                let mut text = vec![filler; length];
                assert_eq!(end_of_plain(&text), None, "{length} × {filler}");
                text.push(end);
                text.extend_from_slice(b"\"\\x");
                assert_eq!(end_of_plain(&text), Some(length), "{length} × {filler}");
            }
        }
    }
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
        let is_read = text.as_bytes().chunks(1).all(|byte| scanner.push(byte, &mut Log::default()).is_ok());
        assert_eq!(is_read && scanner.finish(&mut Log::default()), is_whole, "{text}");
    }
}

#[test]
fn memory_is_bounded_whatever_comes() {
    let mut scanner = JsonScanner::new();
    assert_eq!(scanner.push(&[b'['; DEPTH_MAX], &mut Log::default()), Ok(()));
    assert_eq!(scanner.push(b"[", &mut Log::default()), Err(BadJson));
    scanner.reset();
    for piece in
        [b"{\"".as_slice(), &[b'k'; 100_000], b"\":\"", &[b'v'; 100_000], b"\",\"n\":", &[b'1'; 100_000]]
    {
        assert_eq!(scanner.push(piece, &mut Log::default()), Ok(()));
    }
    assert!(scanner.capture.capacity() <= 2 * CAPTURE_MAX && scanner.stack.capacity() <= 2 * DEPTH_MAX);
}
