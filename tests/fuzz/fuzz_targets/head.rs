//! Any bytes as the head of a request: `cargo +nightly fuzz run --fuzz-dir tests/fuzz head`.

#![no_main]

use keygate::policy::http::head::{Framing, check, find_end, read_partial, is_malformed_prefix};
use libfuzzer_sys::fuzz_target;

const FIELDS_MAX: usize = 20;

fuzz_target!(|raw: &[u8]| {
    end(raw);
    told(raw);
    if let Ok(sound) = check(raw, FIELDS_MAX) {
        passed(raw, sound.framing);
    }
});

/// The end is found however the bytes are split.
fn end(raw: &[u8]) {
    let found = find_end(raw, 0);
    let naive = raw.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    assert_eq!(found, naive);
    for searched in [raw.len() / 3, raw.len() / 2, raw.len()] {
        if find_end(&raw[..searched], 0).is_none() {
            assert_eq!(find_end(raw, searched), naive);
        }
    }
}

/// The log gets one line, without the query.
fn told(raw: &[u8]) {
    let seen = read_partial(raw);
    assert!(seen.method.bytes().all(|b| b.is_ascii_graphic()));
    assert!(seen.path.is_empty() || seen.path.starts_with('/'));
    assert!(seen.path.bytes().all(|b| b.is_ascii_graphic() && b != b'?'));
    assert!(!seen.languages.contains('\n'));
}

/// An accepted head, parsed again as simply as the next server might.
fn passed(raw: &[u8], framing: Framing) {
    assert_eq!(find_end(raw, 0), Some(raw.len()), "it ends where it ends");
    for cut in 0..raw.len() {
        assert!(!is_malformed_prefix(&raw[..cut], 0), "waiting for it was not in vain");
    }
    let inner = &raw[..raw.len() - 4];
    assert!(inner.iter().all(|b| *b == b'\t' || *b == b'\r' || *b == b'\n' || (*b >= b' ' && *b != 0x7f)));
    let lines: Vec<&[u8]> = split(inner);
    assert!(lines.iter().all(|line| !line.contains(&b'\r') && !line.contains(&b'\n') && !line.is_empty()));
    assert_eq!(lines[0].iter().filter(|b| **b == b' ').count(), 2, "method, target, version");
    assert!(lines[0].ends_with(b" HTTP/1.1") || lines[0].ends_with(b" HTTP/1.0"));
    let fields: Vec<(Vec<u8>, &[u8])> = lines[1..].iter().map(|line| field(line)).collect();
    assert!(fields.len() <= FIELDS_MAX);
    let all = |name: &[u8]| fields.iter().filter(|(n, _)| n == name).map(|(_, v)| *v).collect::<Vec<_>>();
    let (lengths, codings) = (all(b"content-length"), all(b"transfer-encoding"));
    assert!(all(b"host").len() <= 1);
    match framing {
        Framing::NoBody => assert!(codings.is_empty() && lengths.iter().all(|l| *l == b"0")),
        Framing::Length(n) => assert!(codings.is_empty() && lengths == [n.to_string().as_bytes()]),
        Framing::Chunked => assert!(lengths.is_empty() && codings.len() == 1),
    }
}

fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(at) = bytes.windows(2).position(|two| two == b"\r\n") {
        lines.push(&bytes[..at]);
        bytes = &bytes[at + 2..];
    }
    lines.push(bytes);
    lines
}

/// The name in lower case, and the value without surrounding whitespace.
fn field(line: &[u8]) -> (Vec<u8>, &[u8]) {
    let colon = line.iter().position(|b| *b == b':').expect("a field has a colon");
    assert!(colon > 0 && line[..colon].iter().all(|b| b.is_ascii_graphic()));
    (line[..colon].to_ascii_lowercase(), line[colon + 1..].trim_ascii())
}
