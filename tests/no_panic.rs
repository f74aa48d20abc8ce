//! Parsers of outside bytes never panic: 10 000 damaged inputs each, the same ones on every run.
//!
//! Each parser has one test that passes valid examples to [`each_damaged`]; add such a test for each new parser of outside
//! bytes. A test asserts more than the absence of a panic: accepted input must have the properties that the rest of the
//! program relies on.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use keygate::model::fault::Lang;
use keygate::policy::http::chunks::ChunkParser;
use keygate::policy::http::head::{Framing, check, find_end, is_malformed_prefix};
use keygate::policy::http::path::{canonical, check_query, decode_segment};
use keygate::policy::keys::secret::{Peppers, SECRET_MAX, Secret, SecretShape, shape};
use keygate::policy::meter::{
    Meter, MeterEnd, MeterRule, MeterSource, Metered, MeteredRequest, Missing, OnDisconnect, Unpriced,
};
use std::ops::Range;

const INPUTS: usize = 10_000;
/// Where every run begins, so that a failure can be repeated.
const SEED: u64 = 0x6b65_7967_6174_6521;

#[test]
fn no_path_or_query_panics() {
    let valid = [
        "/v1/app/a1/chat",
        "/a%20b/%E6%96%87/%7euser",
        "/x/..%2fadmin",
        "/%252e%252e/",
        "/public/..;x/admin",
        "/",
    ];
    let mut accepted = 0;
    each_damaged(&valid, |bytes| {
        // A query has no structure; the check must give an answer for all bytes.
        assert_eq!(check_query(bytes).is_ok(), bytes.iter().all(|b| (0x21..0x7f).contains(b) && *b != b'#'));
        let Ok(path) = canonical(bytes) else { return };
        accepted += 1;
        assert!(path.starts_with('/') && path.is_ascii() && !path.contains("//"));
        assert!(canonical(path.as_bytes()).is_ok_and(|again| again == path));
        for segment in path.split('/') {
            decode_segment(segment);
        }
    });
    assert!(
        accepted > INPUTS / 100,
        "only {accepted} were accepted: the examples no longer reach the parser's depths"
    );
}

#[test]
fn no_request_head_panics() {
    let valid = [
        "GET /a?b=c HTTP/1.1\r\nHost: h:80\r\nX-A: b\tc\r\n\r\n",
        "POST http://h/x HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HEAD / HTTP/1.0\r\n\r\n",
    ];
    let mut accepted = 0;
    each_damaged(&valid, |bytes| {
        let Some(end) = find_end(bytes, 0) else {
            is_malformed_prefix(bytes, 0);
            return;
        };
        let Ok(sound) = check(&bytes[..end], 50) else { return };
        accepted += 1;
        assert!(!is_malformed_prefix(&bytes[..end], 0), "what is sound is never given up");
        // Every line ends in CRLF, and nothing but tabs is invisible.
        let head = &bytes[..end];
        for (at, byte) in head.iter().enumerate() {
            match byte {
                b'\n' => assert_eq!(head[at - 1], b'\r'),
                b'\r' => assert_eq!(head[at + 1], b'\n'),
                b'\t' => {}
                _ => assert!(!byte.is_ascii_control(), "{byte:#x}"),
            }
        }
        let lower = String::from_utf8_lossy(head).to_lowercase();
        match sound.framing {
            Framing::NoBody => assert!(!lower.contains("\r\ntransfer-encoding:")),
            Framing::Length(length) => assert!(lower.contains(&format!("{length}"))),
            Framing::Chunked => assert!(!lower.contains("\r\ncontent-length:") && lower.contains("chunked")),
        }
    });
    assert!(accepted > INPUTS / 100, "only {accepted} were accepted");
}

#[test]
fn no_chunked_body_panics() {
    let valid = ["5\r\nhello\r\n0\r\n\r\n", "a;x=\"y\"\r\n0123456789\r\n00\r\nT: v\r\n\r\nnext", "0\r\n\r\n"];
    let mut accepted = 0;
    each_damaged(&valid, |bytes| {
        let (mut whole, mut split) = (ChunkParser::new(), ChunkParser::new());
        let Ok(passed) = whole.pass(bytes) else { return };
        accepted += 1;
        assert!(passed <= bytes.len() && (whole.is_done() || passed == bytes.len()));
        let one_by_one: usize =
            bytes.iter().map(|b| split.pass(std::slice::from_ref(b)).expect("as before")).sum();
        assert_eq!((one_by_one, split), (passed, whole), "it matters not how they come");
    });
    assert!(accepted > INPUTS / 100, "only {accepted} were accepted");
}

#[test]
fn no_metered_answer_panics() {
    let json = r#"{"id":"a","choices":[{"message":{"content":"x\u00e9"}}],"usage":{"prompt_tokens":12,"cost":1.5e-3}}"#;
    let events = format!("\u{feff}: c\r\nevent: a\r\ndata: {json}\r\n\r\ndata: [DONE]\n\n");
    let valid =
        [json, &events, "[{\"usageMetadata\":{\"promptTokenCount\":3,\"candidatesTokensDetails\":[{}]}}]"];
    let mut read = 0;
    each_damaged(&valid, |bytes| {
        for kind in ["application/json", "text/event-stream", "application/vnd.amazon.eventstream", ""] {
            let whole = metered(kind, [bytes].into_iter());
            assert_eq!(metered(kind, bytes.chunks(1)), whole, "it matters not how they come");
            read += usize::from(whole.reading.is_some() && whole.unreadable.is_none());
        }
    });
    assert!(read > INPUTS / 100, "only {read} were read");
}

fn metered<'b>(kind: &'static str, pieces: impl Iterator<Item = &'b [u8]>) -> Metered {
    let rule = MeterRule {
        source: MeterSource::Llm,
        missing: Missing::Estimate,
        on_disconnect: OnDisconnect::Delivered,
        max_bytes: 200,
        hold: 1,
        clamp: false,
        unpriced: Unpriced::Admit,
        include_usage: true,
    };
    let fields = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
    let request = MeteredRequest { method: &Method::POST, request_id: b"" };
    let mut meter = Meter::new(&rule, &request, StatusCode::OK, &fields);
    pieces.for_each(|piece| meter.push(piece));
    meter.finish(&MeterEnd {
        missing: rule.missing(false),
        is_whole: true,
        request_bytes: 4,
        model_requested: &"".into(),
        held: None,
    })
}

#[test]
fn no_path_segment_panics() {
    each_damaged(&["app-1", "a%20b", "%E6%96%87", "100%25", "文本", ""], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let plain = !text.contains('%');
        let decoded = decode_segment(&text);
        assert!(decoded.as_ref().is_some() || !plain);
        assert!(decoded.is_none_or(|d| d.len() <= text.len() && (!plain || d == text)));
    });
}

#[test]
fn no_secret_panics() {
    let (ours, longer) = (signed("sk-app-", 'a'), signed("sk-pure_workflow-", 'Z'));
    assert_eq!(
        (shape(ours.as_bytes(), "sk"), shape(longer.as_bytes(), "sk")),
        (SecretShape::Ours, SecretShape::Ours)
    );
    let longest = "x".repeat(SECRET_MAX);
    let valid = [ours.as_str(), &longer, "legacy_key_0001", "sk-proj-abcdef", "sk-app-", &longest];
    each_damaged(&valid, |bytes| {
        for prefix in ["sk", "", "a-b"] {
            let possible = shape(bytes, prefix) != SecretShape::Impossible;
            assert!(!possible || (bytes.len() <= SECRET_MAX && bytes.is_ascii() && !bytes.is_empty()));
            let Ok(text) = std::str::from_utf8(bytes) else {
                assert!(!possible);
                continue;
            };
            let secret = Secret::import(text.to_owned(), prefix);
            assert_eq!(secret.is_some(), possible);
            let Some(secret) = secret else { continue };
            assert_eq!((secret.expose(), format!("{secret:?}").as_str()), (text, "Secret(…)"));
            assert!(secret.hint(prefix).chars().count() <= text.len() + 1);
        }
    });
}

#[test]
fn no_pepper_text_panics() {
    let one = format!("1:{}", "4f".repeat(32));
    let two = format!("# the one before\n1:{}\n\n2:{}\n", "11".repeat(32), "a2".repeat(40));
    let comma = format!("7:{},8:{}", "07".repeat(32), "08".repeat(32));
    let mut accepted = 0;
    each_damaged(&[&one, &two, &comma, "1:00ff", "4294967295:"], |bytes| {
        let Ok(peppers) = Peppers::parse(&String::from_utf8_lossy(bytes)) else { return };
        accepted += 1;
        let versions: Vec<u32> = peppers.iter().map(|p| p.version()).collect();
        assert!(versions.first() == Some(&peppers.current().version()));
        assert!(versions.is_sorted_by(|newer, older| newer > older), "{versions:?}");
    });
    assert!(
        accepted > INPUTS / 100,
        "only {accepted} were accepted: the examples no longer reach the parser's depths"
    );
}

#[test]
fn no_accept_language_panics() {
    let valid = ["zh-CN,zh;q=0.9,en;q=0.8", "en-US", "*", "fr;q=1e400, zh;q=NaN", "zh;q=-inf,,;;q=", ""];
    each_damaged(&valid, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let chinese = Lang::preferred(&text) == Lang::Zh;
        assert!(!chinese || text.to_ascii_lowercase().contains("zh"), "{text}");
    });
}

// === the inputs ===

/// A secret of ours that is the same on every run and that no scanner takes for a real one: a constant body and its
/// checksum.
fn signed(front: &str, body: char) -> String {
    const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let text = format!("{front}{}", body.to_string().repeat(30));
    let crc = u64::from(crc32fast::hash(text.as_bytes()));
    let digit = |place: u32| char::from(BASE62[usize::try_from(crc / 62_u64.pow(place) % 62).unwrap()]);
    text + &(0..6).rev().map(digit).collect::<String>()
}

/// Calls `check` with [`INPUTS`] inputs: the valid ones first, then damaged copies of them and plain noise.
fn each_damaged(valid: &[&str], mut check: impl FnMut(&[u8])) {
    let mut random = Random(SEED);
    for text in valid {
        check(text.as_bytes());
    }
    for _ in valid.len()..INPUTS {
        let mut bytes = valid[random.below(0..valid.len())].as_bytes().to_vec();
        for _ in 0..random.below(1..4) {
            damage(&mut bytes, &mut random);
        }
        check(&bytes);
    }
}

/// Cuts, flips, inserts, repeats or replaces; always leaves fewer than about 1 000 bytes.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let len = bytes.len();
    let at = random.below(0..len + 1);
    match random.below(0..6) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(..at)),
        2 if at < len => bytes[at] ^= 1 << random.below(0..8),
        3 => bytes.insert(at, random.byte()),
        4 => {
            let piece = random.telling_piece();
            bytes.splice(at..at, piece.iter().copied());
        }
        5 if len < 300 => bytes.extend_from_within(at..),
        _ => *bytes = (0..random.below(0..64)).map(|_| random.byte()).collect(),
    }
}

/// A linear congruential generator (Knuth's MMIX constants): not random enough for secrets, repeatable for tests.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The low bits of such a generator have short periods.
        self.0 >> 33
    }

    fn below(&mut self, range: Range<usize>) -> usize {
        range.start + usize::try_from(self.next()).unwrap() % range.len()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A few bytes that are special to one of the parsers.
    fn telling_piece(&mut self) -> &'static [u8] {
        const PIECES: &[&[u8]] = &[
            b"%",
            b"%2e",
            b"%25",
            b"%2F",
            b"%00",
            b"%E6",
            b"/",
            b"//",
            b"..",
            b".;",
            b"\\",
            b"#",
            b"?",
            b" ",
            b"\0",
            b"\r\n",
            b"\x7f",
            b"\xff",
            b"\xe6\x96",
            "文".as_bytes(),
            b"sk-",
            b"sk-app-",
            b"-",
            b"_",
            b":",
            b",",
            b"\n",
            b"0:",
            b"4294967296:",
            b"zh",
            b";q=",
            b"NaN",
            b"1e999",
            b"-0",
            b"*",
        ];
        PIECES[self.below(0..PIECES.len())]
    }
}
