//! Any bytes as a chunked body: `cargo +nightly fuzz run --fuzz-dir tests/fuzz chunks`.

#![no_main]

use keygate::policy::http::chunks::{BadChunks, ChunkParser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    let Some((&step, body)) = raw.split_first() else { return };
    let whole = pass(body, body.len().max(1));
    let dripped = pass(body, usize::from(step).max(1));
    assert_eq!(whole, dripped, "it comes to the same however it comes");
    if let Ok((passed, true)) = whole {
        assert_eq!(naive(&body[..passed]), Some(passed), "the next server reads as much");
    }
});

/// How many bytes belong to the body, and whether it has ended.
fn pass(body: &[u8], step: usize) -> Result<(usize, bool), BadChunks> {
    let (mut chunks, mut passed) = (ChunkParser::new(), 0);
    for part in body.chunks(step) {
        let here = chunks.pass(part)?;
        passed += here;
        if chunks.is_done() {
            return Ok((passed, true));
        }
        assert_eq!(here, part.len(), "all of it, unless it ends");
    }
    Ok((passed, false))
}

/// Reads sizes and skips chunks, and trusts every line end. Deliberately independent of the code under test.
fn naive(body: &[u8]) -> Option<usize> {
    let line = |from: usize| Some(from + body.get(from..)?.windows(2).position(|two| two == b"\r\n")?);
    let mut at = 0;
    loop {
        let end = line(at)?;
        let digits = body[at..end].split(|b| *b == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at = end + 2;
        if size == 0 {
            break;
        }
        at = at.checked_add(size)?;
        assert_eq!(body.get(at..at + 2)?, b"\r\n");
        at += 2;
    }
    loop {
        let end = line(at)?;
        let is_last = end == at;
        at = end + 2;
        if is_last {
            return Some(at);
        }
    }
}
