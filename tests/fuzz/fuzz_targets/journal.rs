//! Any bytes as a journal's frame and as what it carries: `cargo +nightly fuzz run --fuzz-dir tests/fuzz journal`.

#![no_main]

use keygate::usage::journal::codec::{
    Complete, HEADER, FrameKind, PAYLOAD_MAX, ParsedFrame, ChecksumSeed, admit, begin, complete, encode_whole, id_of, parse,
    record, seal, split_whole,
};
use libfuzzer_sys::fuzz_target;

/// As long as the text of a UUID.
const ID: usize = 36;

fuzz_target!(|raw: &[u8]| {
    let Some((&first, rest)) = raw.split_first() else { return };
    let seed = ChecksumSeed::new(7, 11);
    found(raw, seed);
    written(rest, usize::from(first), seed);
    beginning(rest);
    end(rest);
    both(rest);
});

/// Frames found in any bytes lie within them.
fn found(raw: &[u8], seed: ChecksumSeed) {
    if let ParsedFrame::Frame(frame) = parse(raw, seed, 0) {
        assert!(frame.payload.len() < raw.len() && frame.len > frame.payload.len());
    }
}

/// A written frame is read back at its offset, at no other, and not after a byte has changed.
fn written(payload: &[u8], which: usize, seed: ChecksumSeed) {
    let payload = &payload[..payload.len().min(PAYLOAD_MAX)];
    let mut frame = Vec::new();
    begin(&mut frame, FrameKind::Admit, |out| out.extend_from_slice(payload));
    seal(&mut frame, seed, 64);
    match parse(&frame, seed, 64) {
        ParsedFrame::Frame(found) => {
            assert_eq!((found.payload, found.len), (payload, frame.len()));
            assert!(found.kind == Some(FrameKind::Admit) && !found.acknowledged);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(parse(&frame, seed, 72), ParsedFrame::Not);
    assert_eq!(parse(&frame, ChecksumSeed::new(8, 11), 64), ParsedFrame::Not);
    if !payload.is_empty() {
        let at = HEADER + which % payload.len();
        frame[at] ^= 0x20;
        assert_eq!(parse(&frame, seed, 64), ParsedFrame::Not, "a byte changed at {at}");
    }
}

/// A begin record that can be read can be written again. Texts above the limit are cut then; after that it stays the same.
fn beginning(payload: &[u8]) {
    let (mut own, mut own_once, mut own_twice) = ([0; ID], [0; ID], [0; ID]);
    let Ok(read) = admit(payload, &mut own) else { return };
    assert_eq!(id_of(payload), Ok(read.id));
    let (mut once, mut twice) = (Vec::new(), Vec::new());
    read.encode(&mut once);
    let cut = admit(&once, &mut own_once).expect("as it was written");
    assert_eq!(
        (cut.id, cut.api_key_id, cut.at, cut.ip_address),
        (read.id, read.api_key_id, read.at, read.ip_address)
    );
    assert!(read.endpoint.starts_with(cut.endpoint) && read.request_id.starts_with(cut.request_id));
    cut.encode(&mut twice);
    assert_eq!(admit(&twice, &mut own_twice), Ok(cut));
}

fn end(payload: &[u8]) {
    let Ok(read) = complete(payload) else { return };
    assert_eq!(id_of(payload), Ok(read.id));
    let mut once = Vec::new();
    read.encode(&mut once);
    let cut = complete(&once).expect("as it was written");
    assert!(read.upstream.starts_with(cut.upstream));
    assert_eq!(Complete { upstream: cut.upstream, reading: cut.reading, ..read }, cut);
    assert_eq!(read.reading.map(|reading| reading.tokens), cut.reading.map(|reading| reading.tokens));
}

fn both(payload: &[u8]) {
    let Ok((first, second)) = split_whole(payload) else { return };
    let Ok(ended) = complete(second) else { return };
    let mut again = Vec::new();
    encode_whole(&mut again, first, &ended);
    let (same, rest) = split_whole(&again).expect("as it was written");
    assert_eq!((same, id_of(rest)), (first, Ok(ended.id)));
    // A record may be refused; it is never a panic.
    if let Ok(record) = record(first, Some(second)) {
        assert_eq!(id_of(first), Ok(record.id));
    }
}
