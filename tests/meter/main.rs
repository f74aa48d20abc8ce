//! Answers of every provider, and what they used: the meter must say exactly this, however an answer is cut and compressed.
//!
//! `corpus/` has one exchange per file: what is expected, the fields of the answer, a line `---`, and the body.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use flate2::Compression;
use flate2::read::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use keygate::model::tokens::{MeterReading, ReadingSource, TokenCounts};
use keygate::policy::meter::{
    JsonPointer, Meter, MeterEnd, MeterRule, MeterSource, Metered, MeteredRequest, Missing, OnDisconnect,
    Unpriced, Unreadable,
};
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// One exchange, as its file says.
struct Exchange {
    name: String,
    rule: MeterRule,
    method: Method,
    status: StatusCode,
    fields: HeaderMap,
    request_bytes: u64,
    is_whole: bool,
    body: Vec<u8>,
    expected: Metered,
}

#[test]
fn every_exchange_is_metered_exactly_however_it_is_cut() {
    let all = corpus();
    assert!(all.len() >= 60, "{} exchanges", all.len());
    for exchange in all {
        let body = &exchange.body;
        assert_eq!(exchange.metered(None, &[body]), exchange.expected, "{}", exchange.name);
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(exchange.metered(None, &bytes), exchange.expected, "{}, byte by byte", exchange.name);
        for at in 0..body.len() {
            let (front, back) = body.split_at(at);
            let metered = exchange.metered(None, &[front, back]);
            assert_eq!(metered, exchange.expected, "{}, split at {at}", exchange.name);
        }
    }
}

#[test]
fn every_exchange_is_metered_exactly_when_it_is_compressed() {
    for exchange in corpus() {
        // Where nothing is understood, the bytes that came are counted, and those are others.
        let counts_bytes =
            matches!(exchange.expected.unreadable, Some(Unreadable::Coding | Unreadable::Malformed));
        if counts_bytes || exchange.body.is_empty() {
            continue;
        }
        for (coding, body) in compressed(&exchange.body) {
            let name = &exchange.name;
            assert_eq!(exchange.metered(Some(coding), &[&body]), exchange.expected, "{name}, {coding}");
            let bytes: Vec<&[u8]> = body.chunks(1).collect();
            assert_eq!(
                exchange.metered(Some(coding), &bytes),
                exchange.expected,
                "{name}, {coding}, byte by byte"
            );
            for at in 0..body.len().min(200) {
                let (front, back) = body.split_at(at);
                let metered = exchange.metered(Some(coding), &[front, back]);
                assert_eq!(metered, exchange.expected, "{name}, {coding}, split at {at}");
            }
        }
    }
}

#[test]
fn an_exchange_cut_anywhere_is_an_estimate_or_what_was_reported_until_there() {
    for exchange in corpus() {
        let Metered { unreadable, malformed_events, .. } = exchange.expected;
        if !exchange.name.contains("-chat-") || unreadable.is_some() || malformed_events > 0 {
            continue;
        }
        let Some(whole) = &exchange.expected.reading else { continue };
        for at in 0..exchange.body.len() {
            let cut = Exchange { is_whole: false, body: exchange.body[..at].to_vec(), ..exchange.same() };
            let Metered { reading, unreadable, .. } = cut.metered(None, &[&cut.body]);
            let Some(reading) = reading else { panic!("{}: nothing at {at}", exchange.name) };
            match reading.source {
                ReadingSource::Reported => {
                    assert_eq!(
                        (reading.tokens, unreadable),
                        (whole.tokens, None),
                        "{} at {at}",
                        exchange.name
                    );
                }
                ReadingSource::Estimated => assert_eq!(unreadable, Some(Unreadable::Truncated)),
                other => panic!("{}: {other} at {at}", exchange.name),
            }
        }
    }
}

#[test]
fn a_compressed_answer_that_ends_early_is_truncated() {
    let text = "y".repeat(2_000);
    let body =
        format!(r#"{{"choices":[{{"message":{{"content":"{text}"}}}}],"usage":{{"prompt_tokens":5}}}}"#);
    let exchange = Exchange {
        body: body.into(),
        ..parsed("early", "content-type: application/json\nexpect: none\n---\n")
    };
    for (coding, body) in compressed(&exchange.body) {
        let metered = exchange.metered(Some(coding), &[&body[..body.len() / 2]]);
        assert_eq!(metered.unreadable, Some(Unreadable::Truncated), "{coding}");
    }
}

#[test]
fn a_small_body_that_decodes_to_a_large_one_is_looked_at_up_to_the_limit() {
    let body =
        [b"{\"choices\":\"".as_slice(), &[b'x'; 4_000_000], b"\",\"usage\":{\"prompt_tokens\":5}}"].concat();
    let mut exchange = parsed("bomb", "content-type: application/json\nexpect: none\n---\n");
    for (max_bytes, is_read) in [(body.len() as u64, true), (body.len() as u64 / 2, false)] {
        exchange.rule.max_bytes = max_bytes;
        for (coding, body) in compressed(&body) {
            let metered = exchange.metered(Some(coding), &[&body]);
            let unreadable = (!is_read).then_some(Unreadable::TooLarge);
            assert_eq!(metered.unreadable, unreadable, "{coding}, {max_bytes}");
        }
    }
}

impl Exchange {
    /// What the meter says when the body comes in these pieces.
    fn metered(&self, coding: Option<&str>, pieces: &[&[u8]]) -> Metered {
        let mut fields = self.fields.clone();
        if let Some(coding) = coding {
            // Not a name of its own.
            let name = coding.trim_start_matches("raw ");
            fields.insert(CONTENT_ENCODING, HeaderValue::from_str(name).unwrap());
        }
        let request = MeteredRequest { method: &self.method, request_id: b"our-own" };
        let mut meter = Meter::new(&self.rule, &request, self.status, &fields);
        for piece in pieces {
            meter.push(piece);
        }
        let model: Arc<str> = "asked-for".into();
        let end = MeterEnd {
            missing: self.rule.missing(false),
            is_whole: self.is_whole,
            request_bytes: self.request_bytes,
            model_requested: &model,
            held: None,
        };
        meter.finish(&end)
    }

    fn same(&self) -> Self {
        Self {
            name: self.name.clone(),
            rule: self.rule.clone(),
            method: self.method.clone(),
            status: self.status,
            fields: self.fields.clone(),
            request_bytes: self.request_bytes,
            is_whole: self.is_whole,
            body: self.body.clone(),
            expected: self.expected.clone(),
        }
    }
}

fn corpus() -> Vec<Exchange> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/meter/corpus");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    let parse = |path: &PathBuf| {
        parsed(path.file_stem().unwrap().to_str().unwrap(), &fs::read_to_string(path).unwrap())
    };
    paths.iter().map(parse).collect()
}

/// Reads the file of an exchange.
fn parsed(name: &str, file: &str) -> Exchange {
    let (head, body) = file.split_once("---\n").unwrap_or_else(|| panic!("{name}: no line `---`"));
    let source = MeterSource::Llm;
    let mut exchange = Exchange {
        name: name.to_owned(),
        rule: MeterRule {
            source,
            missing: Missing::Estimate,
            on_disconnect: OnDisconnect::Delivered,
            max_bytes: 64 * 1024 * 1024,
            hold: 1,
            clamp: false,
            unpriced: Unpriced::Admit,
            include_usage: true,
        },
        method: Method::POST,
        status: StatusCode::OK,
        fields: HeaderMap::new(),
        request_bytes: 0,
        is_whole: true,
        body: body.as_bytes().to_vec(),
        expected: Metered::default(),
    };
    // A backend that sends the request's own id back says nothing.
    exchange.fields.insert("x-request-id", HeaderValue::from_static("our-own"));
    for line in head.lines() {
        let (field, value) = line.split_once(": ").unwrap_or_else(|| panic!("{name}: {line}"));
        match field {
            "meter" => exchange.rule.source = meter_source(value),
            "missing" => exchange.rule.missing = value.parse().unwrap(),
            "max" => exchange.rule.max_bytes = value.parse().unwrap(),
            "method" => exchange.method = value.parse().unwrap(),
            "status" => exchange.status = value.parse().unwrap(),
            "asked" => exchange.request_bytes = value.parse().unwrap(),
            "cut" => exchange.is_whole = value != "yes",
            "lines" => {
                let end = if value == "cr" { "\r" } else { "\r\n" };
                exchange.body = body.replace('\n', end).into();
            }
            "mark" => exchange.body = format!("\u{feff}{body}").into(),
            "frames" => exchange.body = body.lines().flat_map(frame).collect(),
            "expect" => exchange.expected.reading = expected(name, value),
            "unreadable" => exchange.expected.unreadable = Some(value.parse().unwrap()),
            "malformed" => exchange.expected.malformed_events = value.parse().unwrap(),
            other => {
                let name: HeaderName = other.parse().unwrap();
                exchange.fields.insert(name, HeaderValue::from_str(value).unwrap());
            }
        }
    }
    exchange
}

fn meter_source(text: &str) -> MeterSource {
    match text.split_once(':').unwrap() {
        ("json", pointer) => MeterSource::Json(JsonPointer::parse(pointer).unwrap()),
        (_, name) => MeterSource::Header(name.parse().unwrap()),
    }
}

/// `none`, or words such as `input=5`.
fn expected(name: &str, text: &str) -> Option<MeterReading> {
    if text == "none" {
        return None;
    }
    let mut reading = MeterReading {
        tokens: TokenCounts::default(),
        model_requested: "asked-for".into(),
        model_served: "".into(),
        provider_request_id: "".into(),
        cost_nano: None,
        source: ReadingSource::Reported,
    };
    let mut total = None;
    for word in text.split(' ') {
        let (key, value) = word.split_once('=').unwrap_or_else(|| panic!("{name}: {word}"));
        let number = || value.parse().unwrap_or_else(|_| panic!("{name}: {word}"));
        let tokens = &mut reading.tokens;
        match key {
            "total" => total = Some(number()),
            "input" => tokens.input = number(),
            "output" => tokens.output = number(),
            "cached" => tokens.cached = number(),
            "write" => tokens.cache_write = number(),
            "reasoning" => tokens.reasoning = number(),
            "audio" => tokens.audio = number(),
            "cost" => reading.cost_nano = Some(number()),
            "model" => reading.model_served = value.into(),
            "id" => reading.provider_request_id = value.into(),
            "source" => reading.source = value.parse().unwrap(),
            _ => panic!("{name}: {word}"),
        }
    }
    reading.tokens.total = total.unwrap_or(reading.tokens.input + reading.tokens.output);
    Some(reading)
}

/// A frame of AWS: `TYPE JSON`, with `!` in front for a wrong checksum and `exception:` in front for an error.
fn frame(line: &str) -> Vec<u8> {
    let Some((kind, payload)) = line.split_once(' ').filter(|(kind, _)| !kind.ends_with(':')) else {
        return line.as_bytes().to_vec();
    };
    let damage = u32::from(kind.starts_with('!'));
    let (message, event) = match kind.trim_start_matches('!').split_once(':') {
        Some((message, event)) => (message, event),
        None => ("event", kind.trim_start_matches('!')),
    };
    let mut headers = Vec::new();
    let kind = if message == "event" { ":event-type" } else { ":exception-type" };
    for (name, value) in [(kind, event), (":content-type", "application/json"), (":message-type", message)] {
        headers.push(u8::try_from(name.len()).unwrap());
        headers.extend_from_slice(name.as_bytes());
        headers.push(7);
        headers.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        headers.extend_from_slice(value.as_bytes());
    }
    let length = |bytes: usize| u32::try_from(bytes).unwrap().to_be_bytes();
    let mut frame = [length(12 + headers.len() + payload.len() + 4), length(headers.len())].concat();
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(&headers);
    frame.extend_from_slice(payload.as_bytes());
    let checksum = crc32fast::hash(&frame) ^ damage;
    frame.extend_from_slice(&checksum.to_be_bytes());
    frame
}

/// The body in every coding that is read.
fn compressed(body: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let all = |mut reader: Box<dyn Read + '_>| {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let half = body.len() / 2;
    let level = Compression::default();
    let parts = [&body[..half], &body[half..]];
    vec![
        ("gzip", all(Box::new(GzEncoder::new(body, level)))),
        // Two members that follow each other are one body.
        ("gzip", parts.iter().flat_map(|part| all(Box::new(GzEncoder::new(*part, level)))).collect()),
        ("deflate", all(Box::new(ZlibEncoder::new(body, level)))),
        ("raw deflate", all(Box::new(DeflateEncoder::new(body, level)))),
        ("zstd", zstd::encode_all(body, 3).unwrap()),
        ("br", all(Box::new(brotli::CompressorReader::new(body, 4096, 5, 22)))),
    ]
}
