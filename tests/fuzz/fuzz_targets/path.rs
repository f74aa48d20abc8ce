//! Any bytes as path, query and segment: `cargo +nightly fuzz run --fuzz-dir tests/fuzz path`.

#![no_main]

use keygate::policy::http::path::{canonical, check_query, decode_segment};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    path(raw);
    query(raw);
    if let Ok(text) = std::str::from_utf8(raw) {
        segment(text);
    }
});

fn path(raw: &[u8]) {
    let Ok(path) = canonical(raw) else { return };
    assert!(canonical(path.as_bytes()).is_ok_and(|again| again == path && !again.was_respelled()));
    assert_eq!(path.was_respelled(), path.as_bytes() != raw);
    assert_eq!(unescaped(raw), unescaped(path.as_bytes()), "the same bytes are meant");

    assert!(path.starts_with('/') && !path.contains("//"));
    assert!(path.split('/').all(|s| !matches!(s.split(';').next(), Some("." | ".."))));
    assert!(path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/".contains(&b)));
    for (at, _) in path.match_indices('%') {
        assert!(path[at + 1..at + 3].bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')));
    }
}

fn query(raw: &[u8]) {
    let harmless = raw.iter().all(|b| (0x21..0x7f).contains(b) && *b != b'#');
    assert_eq!(check_query(raw).is_ok(), harmless);
}

fn segment(text: &str) {
    let expected = unescaped(text.as_bytes()).and_then(|bytes| String::from_utf8(bytes).ok());
    assert_eq!(decode_segment(text).as_deref(), expected.as_deref());
}

/// The unescaped bytes; `None` when an escape is incomplete. Deliberately independent of the code under test.
fn unescaped(raw: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut pieces = raw.split(|b| *b == b'%');
    bytes.extend_from_slice(pieces.next()?);
    for piece in pieces {
        let digits = piece.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        bytes.extend_from_slice(&piece[2..]);
    }
    Some(bytes)
}
