//! Any bytes as the head of a response, and then as its body: `cargo +nightly fuzz run --fuzz-dir tests/fuzz answer`.

#![no_main]

use keygate::policy::http::answer::{BodyEnd, check_answer};
use keygate::policy::http::chunks::ChunkParser;
use keygate::policy::http::head::find_end;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    let Some(end) = find_end(raw, 0) else { return };
    let (head, body) = raw.split_at(end);
    let Ok(answer) = check_answer(head) else { return };
    let fields: usize = answer.fields(&mut head.to_vec()).map(|(name, value)| name.len() + value.len()).sum();
    assert!(fields < head.len(), "nothing is read twice");
    if answer.body_end(false) != BodyEnd::Chunked {
        return;
    }
    // What is decoded does not depend on how it comes.
    let mut all = body.to_vec();
    let whole = ChunkParser::new().decode(&mut all).map(|(data, _)| all[..data].to_vec());
    let (mut chunks, mut dripped) = (ChunkParser::new(), Vec::new());
    for byte in body {
        let mut byte = [*byte];
        match chunks.decode(&mut byte) {
            Ok((data, _)) => dripped.extend_from_slice(&byte[..data]),
            Err(_) => return assert!(whole.is_err()),
        }
    }
    assert_eq!(whole, Ok(dripped));
});
