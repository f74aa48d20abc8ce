//! Any bytes as an answer to be metered: `cargo +nightly fuzz run --fuzz-dir tests/fuzz meter`.
//!
//! The first two bytes choose the content type and the coding.

#![no_main]

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use keygate::policy::meter::{MeteredRequest, Meter, MeterEnd, MeterRule, MeterSource, Metered, Missing, OnDisconnect, Unpriced};
use libfuzzer_sys::fuzz_target;

const TYPES: [&str; 4] = ["application/json", "text/event-stream", "application/vnd.amazon.eventstream", ""];
const CODINGS: [&str; 5] = ["identity", "gzip", "deflate", "br", "zstd"];

fuzz_target!(|raw: &[u8]| {
    let [kind, coding, body @ ..] = raw else { return };
    let kind = TYPES[usize::from(*kind) % TYPES.len()];
    let coding = CODINGS[usize::from(*coding) % CODINGS.len()];
    let whole = metered(kind, coding, [body].into_iter());
    let dripped = metered(kind, coding, body.chunks(1));
    // How much of damaged data is decoded does depend on how it comes.
    assert!(coding != "identity" || whole == dripped);
});

fn metered<'b>(kind: &'static str, coding: &'static str, pieces: impl Iterator<Item = &'b [u8]>) -> Metered {
    let rule = MeterRule { source: MeterSource::Llm, missing: Missing::Estimate, on_disconnect: OnDisconnect::Delivered, max_bytes: 1 << 20, hold: 1, clamp: false, unpriced: Unpriced::Admit, include_usage: true };
    let mut fields = HeaderMap::new();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    fields.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
    let request = MeteredRequest { method: &Method::POST, request_id: b"" };
    let mut meter = Meter::new(&rule, &request, StatusCode::OK, &fields);
    pieces.for_each(|piece| meter.push(piece));
    meter.finish(&MeterEnd { missing: Missing::Estimate, is_whole: true, request_bytes: 4, model_requested: &"".into(), held: None })
}
