//! HTTP/2 written frame by frame, so that no client library corrects it: what the client gets, and what reaches the origin.
//! Section numbers are those of RFC 9113.

use crate::http2::{H2C, h2c};
use crate::limits::metric;
use crate::support::{Gateway, Hold, Origin, Raw, eventually_true, stand};
use serde_json::{Value, json};
use std::fmt::Write as _;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;

/// The outcome of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A response on the stream, with the envelope's error or without a body.
    Answered(u16, &'static str),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was ended by a GOAWAY with this code.
    GoneAway(u32),
    /// The connection was closed without a GOAWAY.
    Closed,
}

use Seen::{Answered, Closed, GoneAway, Reset};

/// A connection on which frames are written by hand.
struct RawFrames(Raw);

/// A frame.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block with every field written out, none of it indexed.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|n| *n < 127).expect("a short text"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The client's connection preface.
pub(crate) fn beginning() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

/// A request without a body.
pub(crate) fn request(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

/// The fields of a valid request.
fn good<'t>(path: &'t str, key: &'t str) -> [(&'t str, &'t str); 5] {
    [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "gateway.test"),
        (":path", path),
        ("authorization", key),
    ]
}

impl RawFrames {
    fn connect(gateway: &Gateway) -> Self {
        let mut raw = Raw::connect(h2c(gateway));
        raw.send(&beginning());
        Self(raw)
    }

    fn send(&mut self, bytes: &[u8]) {
        // The gateway may close the connection before it has read everything.
        self.0.try_send(bytes);
    }

    /// The next frame; none at the end of the connection.
    fn frame(&mut self) -> Option<Frame> {
        let head = self.0.try_exactly(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = self.0.try_exactly(length)?;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The outcome for `stream`, or for the connection.
    fn verdict(&mut self, stream: u32) -> Seen {
        let (mut status, mut body) = (0, Vec::new());
        while let Some(frame) = self.frame() {
            match frame.kind {
                GOAWAY => return GoneAway(number(&frame.payload[4..])),
                RST_STREAM if frame.stream == stream => return Reset(number(&frame.payload)),
                HEADERS if frame.stream == stream => status = status_of(&frame.payload),
                DATA if frame.stream == stream => body.extend_from_slice(&frame.payload),
                _ => continue,
            }
            if frame.stream == stream && frame.flags & END_STREAM != 0 {
                return Answered(status, error_of(&body));
            }
        }
        Closed
    }
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

/// The status at the beginning of a header block: indexed, or a literal under an indexed name.
fn status_of(block: &[u8]) -> u16 {
    match block[0] {
        0x88 => 200,
        0x8c => 400,
        0x8d => 404,
        // Literals are Huffman-coded, which is as long as two bytes for these.
        _ => 0,
    }
}

/// The `error` of the envelope; empty without a body, `ok` for a response of the origin.
fn error_of(body: &[u8]) -> &'static str {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return "" };
    match body["error"].as_str() {
        None => "ok",
        Some("bad_request") => "bad_request",
        Some(other) => panic!("{other}"),
    }
}

/// A gateway to probe.
struct Stand {
    origin: Origin,
    gateway: Gateway,
    key: String,
    wrong: String,
    probes: usize,
}

impl Stand {
    fn new() -> Self {
        let (origin, gateway) = stand(H2C);
        let key = format!("Bearer {}", gateway.create_key(json!({"rate_limit": 1000})).secret);
        Self { origin, gateway, key, wrong: String::new(), probes: 0 }
    }

    fn good(&self, path: &str) -> Vec<u8> {
        block(&good(path, &self.key))
    }

    fn post(&self, length: &str) -> Vec<u8> {
        block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "gateway.test"),
            (":path", "/v1/app/x"),
            ("authorization", &self.key),
            ("content-length", length),
        ])
    }

    /// Sends `bytes` on a new connection: `stream` must have one of the `expected` outcomes, and nothing reaches the
    /// origin. If only the stream ended, the next request on the connection is served.
    fn probe(&mut self, what: &str, bytes: &[u8], stream: u32, expected: &[Seen]) {
        self.probes += 1;
        self.origin.forget();
        let mut raw = RawFrames::connect(&self.gateway);
        raw.send(bytes);
        let seen = raw.verdict(stream);
        let reached = self.origin.count();
        let mut goes_on = true;
        if matches!(seen, Answered(..) | Reset(_)) {
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 101, &self.good("/v1/app/next")));
            goes_on = raw.verdict(101) == Answered(200, "ok");
        }
        if !expected.contains(&seen) || reached != 0 || !goes_on {
            writeln!(
                self.wrong,
                "{what}: {seen:?}, {reached} at the origin, goes on: {goes_on}; expected {expected:?}"
            )
            .unwrap();
        }
    }

    #[track_caller]
    fn conclude(self, at_least: usize) -> Gateway {
        assert!(self.wrong.is_empty(), "{}", self.wrong);
        assert!(self.probes >= at_least, "{} probes", self.probes);
        self.gateway
    }
}

/// Requests that sections 8.2 and 8.3 call malformed, or that are ambiguous.
#[test]
fn malformed_requests_end_their_stream_and_reach_nobody() {
    let mut stand = Stand::new();
    let key = stand.key.clone();
    let base = good("/v1/app/x", &key);
    let more = |fields: &[(&'static str, &'static str)]| [&base, fields].concat();
    let without = |name: &str| base.iter().copied().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| [vec![(name, value)], without(name)].concat();
    let one = |name: &'static str, value: &'static str| more(&[(name, value)]);
    let length = ("content-length", "0");
    // These cannot be answered: h2 resets them before our code sees them.
    let reset = [
        one("connection", "close"),
        one("transfer-encoding", "chunked"),
        one("keep-alive", "1"),
        one("proxy-connection", "close"),
        one("upgrade", "websocket"),
        one("te", "gzip"),
        one("te", "trailers, gzip"),
        one(":path", "/v1/app/y"),
        one(":status", "200"),
        one(":method", "GET"),
        one("content-length", "5"),
        one("content-length", "+0"),
        one("content-length", "-1"),
        one("content-length", "0, 0"),
        without(":method"),
        without(":scheme"),
        with(":scheme", "ht tp"),
        with(":authority", "gateway.test/x"),
        with(":authority", ""),
        with(":path", ""),
        with(":path", "v1/app/x"),
        with(":path", "http://gateway.test/v1/app/x"),
        with(":path", "/v1/app/x y"),
        with(":path", "/v1/app/x\r\n"),
        with(":path", "/v1/app/x HTTP/1.1\r\nX: y"),
        more(&[length, ("content-length", "1")]),
    ];
    let told = [
        one("host", "other.test"),
        one("host", "u@gateway.test"),
        more(&[("host", "gateway.test"), ("host", "gateway.test")]),
        without(":authority"),
        with(":authority", "u@gateway.test"),
        one("content-length", "00"),
        more(&[length, length]),
        with(":path", "*"),
        with(":path", "//gateway.test/v1/app/x"),
        with(":path", "/v1/app/../x"),
        with(":path", "/v1/app/%2e%2e/x"),
        with(":path", "/v1/app/a%2fb"),
        with(":path", "/v1/app/a\\b"),
        with(":path", "/v1/app/%00"),
    ];
    // h2 treats invalid names and values as an error of the header compression that all streams share. RFC 9113 requires
    // only a stream error.
    let ends = [
        one("Upper", "case"),
        one("x-a", "a\r\nb: c"),
        one("x-a", "a\0b"),
        one("x a", "b"),
        one("", "b"),
        one(":unknown", "x"),
        with(":method", ""),
        with(":method", "G T"),
    ];
    for (probes, expected) in [
        (reset.as_slice(), Reset(PROTOCOL_ERROR)),
        (&told, Answered(400, "bad_request")),
        (&ends, GoneAway(PROTOCOL_ERROR)),
    ] {
        for fields in probes {
            stand.probe(&format!("{:?}", fields), &request(1, fields), 1, &[expected]);
        }
    }
    // Responses are counted a moment after they are sent; requests that h2 resets are not counted.
    let line = "keygate_requests_total{outcome=\"denied\",route=\"\",status=\"4xx\"}";
    let gateway = stand.conclude(48);
    eventually_true("each is counted", || metric(&gateway, line) == told.len() as f64);
}

/// Bodies whose length differs from the head, and invalid trailers (8.1, 8.1.1). The origin may have seen the beginning of
/// such a request, and never its end.
#[test]
fn bodies_of_another_length_and_wrong_trailers_reset_their_stream() {
    let mut stand = Stand::new();
    let data = |flags: u8, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let trailers = |flags: u8, name: &str| frame(HEADERS, END_HEADERS | flags, 1, &block(&[(name, "/")]));
    for (what, length, rest) in [
        ("too long", "3", data(END_STREAM, b"hello")),
        ("too short", "9", data(END_STREAM, b"hello")),
        ("nothing of it", "9", data(END_STREAM, b"")),
        ("too long in the second part", "5", [data(0, b"hello"), data(END_STREAM, b"!")].concat()),
        ("too short before trailers", "9", [data(0, b"hello"), trailers(END_STREAM, "x-a")].concat()),
        ("trailers that are not the end", "5", [data(0, b"hello"), trailers(0, "x-a")].concat()),
    ] {
        let head = frame(HEADERS, END_HEADERS, 1, &stand.post(length));
        stand.probe(what, &[head, rest].concat(), 1, &[Reset(PROTOCOL_ERROR)]);
    }
    // A pseudo-header field in trailers should also reset the stream. h2 drops it, and request trailers are not forwarded.
    let mut raw = RawFrames::connect(&stand.gateway);
    let head = frame(HEADERS, END_HEADERS, 1, &stand.post("5"));
    raw.send(&[head, data(0, b"hello"), trailers(END_STREAM, ":path")].concat());
    assert_eq!(raw.verdict(1), Answered(200, "ok"));
    assert_eq!(
        (stand.origin.last().target.as_str(), stand.origin.last().body.as_slice()),
        ("/v1/app/x", b"hello".as_slice())
    );
    stand.conclude(6);
}

/// Frames that are malformed or not allowed at that point.
#[test]
fn wrong_frames_end_the_stream_or_the_connection() {
    let mut stand = Stand::new();
    let good = stand.good("/v1/app/x");
    let post = stand.post("5");
    let get = |stream: u32| frame(HEADERS, END_HEADERS | END_STREAM, stream, &good);
    let open = frame(HEADERS, END_HEADERS, 1, &post);
    let after = |frames: &[Vec<u8>]| [&[open.clone()], frames].concat().concat();
    let setting = |id: u16, value: u32| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    let connection = |code| vec![GoneAway(code)];
    // h2 has one code for everything that it cannot decode, where the RFC has another. The connection ends in any case.
    let undecoded = |code| vec![GoneAway(code), GoneAway(PROTOCOL_ERROR)];
    let big = vec![0; 16_385];
    for (section, bytes, expected) in [
        (
            "4.2 a DATA frame above the largest size",
            after(&[frame(DATA, END_STREAM, 1, &big)]),
            connection(FRAME_SIZE_ERROR),
        ),
        (
            "4.2 a HEADERS frame above the largest size",
            frame(HEADERS, 5, 1, &big),
            connection(FRAME_SIZE_ERROR),
        ),
        (
            "4.3 an index that no table has",
            frame(HEADERS, 5, 1, &[0xff, 0xff, 0xff, 0x7f]),
            undecoded(COMPRESSION_ERROR),
        ),
        (
            "4.3 a block that breaks off",
            frame(HEADERS, 5, 1, &[0x10, 0x05, b'x']),
            undecoded(COMPRESSION_ERROR),
        ),
        (
            "4.3 a table larger than agreed",
            frame(HEADERS, 5, 1, &[0x3f, 0xff, 0xff, 0x03]),
            undecoded(COMPRESSION_ERROR),
        ),
        ("5.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), connection(PROTOCOL_ERROR)),
        ("5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), connection(PROTOCOL_ERROR)),
        (
            "5.1 WINDOW_UPDATE on an idle stream",
            frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()),
            connection(PROTOCOL_ERROR),
        ),
        ("5.1 CONTINUATION on an idle stream", frame(CONTINUATION, 4, 1, &good), connection(PROTOCOL_ERROR)),
        ("5.1.1 a stream with an even number", get(2), connection(PROTOCOL_ERROR)),
        ("6.1 DATA on no stream", frame(DATA, 0, 0, b"x"), connection(PROTOCOL_ERROR)),
        (
            "6.1 more padding than frame",
            after(&[frame(DATA, PADDED | END_STREAM, 1, &[6, 0, 0, 0, 0, 0])]),
            connection(PROTOCOL_ERROR),
        ),
        ("6.2 HEADERS on no stream", frame(HEADERS, 5, 0, &good), connection(PROTOCOL_ERROR)),
        (
            "6.2 HEADERS with more padding than frame",
            frame(HEADERS, 5 | PADDED, 1, &[200, 0, 0]),
            connection(PROTOCOL_ERROR),
        ),
        (
            "6.2 another frame amid a header block",
            [frame(HEADERS, END_STREAM, 1, &good), frame(PING, 0, 0, &[0; 8])].concat(),
            connection(PROTOCOL_ERROR),
        ),
        (
            "6.2 another stream's block amid one",
            [frame(HEADERS, END_STREAM, 1, &good), get(3)].concat(),
            connection(PROTOCOL_ERROR),
        ),
        ("6.3 PRIORITY on no stream", frame(PRIORITY, 0, 0, &[0; 5]), connection(PROTOCOL_ERROR)),
        ("6.4 RST_STREAM on no stream", frame(RST_STREAM, 0, 0, &[0; 4]), connection(PROTOCOL_ERROR)),
        (
            "6.4 RST_STREAM of a wrong size",
            after(&[frame(RST_STREAM, 0, 1, &[0; 3])]),
            undecoded(FRAME_SIZE_ERROR),
        ),
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), connection(PROTOCOL_ERROR)),
        ("6.5 SETTINGS of a wrong size", frame(SETTINGS, 0, 0, &[0; 3]), undecoded(FRAME_SIZE_ERROR)),
        (
            "6.5 SETTINGS that acknowledge and set",
            frame(SETTINGS, ACK, 0, &setting(1, 1)),
            undecoded(FRAME_SIZE_ERROR),
        ),
        (
            "6.5.2 a switch that is neither on nor off",
            frame(SETTINGS, 0, 0, &setting(2, 2)),
            connection(PROTOCOL_ERROR),
        ),
        (
            "6.5.2 a window above the largest",
            frame(SETTINGS, 0, 0, &setting(4, 1 << 31)),
            undecoded(FLOW_CONTROL_ERROR),
        ),
        (
            "6.5.2 a frame size below the smallest",
            frame(SETTINGS, 0, 0, &setting(5, 16_383)),
            connection(PROTOCOL_ERROR),
        ),
        (
            "6.5.2 a frame size above the largest",
            frame(SETTINGS, 0, 0, &setting(5, 1 << 24)),
            connection(PROTOCOL_ERROR),
        ),
        (
            "6.6 PUSH_PROMISE from a client",
            after(&[frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])]),
            connection(PROTOCOL_ERROR),
        ),
        ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), connection(PROTOCOL_ERROR)),
        ("6.7 PING of a wrong size", frame(PING, 0, 0, &[0; 6]), undecoded(FRAME_SIZE_ERROR)),
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), connection(PROTOCOL_ERROR)),
        (
            "6.9 a window that grows by nothing",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            connection(PROTOCOL_ERROR),
        ),
        (
            "6.9 a stream's window that grows by nothing",
            after(&[frame(WINDOW_UPDATE, 0, 1, &[0; 4])]),
            vec![Reset(PROTOCOL_ERROR), GoneAway(PROTOCOL_ERROR)],
        ),
        (
            "6.9 WINDOW_UPDATE of a wrong size",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            undecoded(FRAME_SIZE_ERROR),
        ),
        (
            "6.9.1 a connection's window above the largest",
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
            connection(FLOW_CONTROL_ERROR),
        ),
        (
            "6.9.1 a stream's window above the largest",
            after(&[frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes())]),
            vec![Reset(FLOW_CONTROL_ERROR)],
        ),
        (
            "6.10 CONTINUATION on no stream",
            [frame(HEADERS, END_STREAM, 1, &good), frame(CONTINUATION, 4, 0, &[])].concat(),
            connection(PROTOCOL_ERROR),
        ),
    ] {
        stand.probe(section, &bytes, 1, &expected);
    }
    stand.conclude(36);
}

/// Frames on streams that were open before (5.1, 5.1.1, 5.1.2).
#[test]
fn frames_on_closed_streams_end_the_connection() {
    let hold = Hold::new();
    let (origin, gateway) = stand(&format!("{H2C}max_http2_streams = 2\n"));
    let key = format!("Bearer {}", gateway.create_key(json!({"rate_limit": 1000})).secret);
    let good = block(&good("/v1/app/x", &key));
    let get = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &good);
    for (what, then, expected) in [
        ("DATA", frame(DATA, END_STREAM, 5, b"x"), [GoneAway(STREAM_CLOSED), GoneAway(PROTOCOL_ERROR)]),
        ("HEADERS", get(5), [GoneAway(STREAM_CLOSED), GoneAway(PROTOCOL_ERROR)]),
        ("a smaller number", get(3), [GoneAway(PROTOCOL_ERROR), GoneAway(STREAM_CLOSED)]),
    ] {
        let mut raw = RawFrames::connect(&gateway);
        raw.send(&get(5));
        assert_eq!(raw.verdict(5), Answered(200, "ok"));
        raw.send(&then);
        let seen = raw.verdict(5);
        assert!(expected.contains(&seen) || seen == Reset(STREAM_CLOSED), "{what}: {seen:?}");
    }
    assert_eq!(origin.count(), 3);
    // More streams than allowed: the others are served.
    origin.answer_after(&hold);
    let mut raw = RawFrames::connect(&gateway);
    raw.send(&[get(1), get(3), get(5)].concat());
    assert_eq!(raw.verdict(5), Reset(REFUSED_STREAM));
    hold.release();
    assert_eq!(raw.verdict(1), Answered(200, "ok"));
    // Half a body and then the end of the stream; frames after the end are ignored.
    let mut raw = RawFrames::connect(&gateway);
    raw.send(&[get(1), frame(DATA, 0, 1, b"x")].concat());
    assert!(matches!(
        raw.verdict(1),
        Reset(STREAM_CLOSED | PROTOCOL_ERROR) | GoneAway(STREAM_CLOSED | PROTOCOL_ERROR)
    ));
}

/// Legal but rare: padding, priorities, split header blocks, unknown frames and settings.
#[test]
fn unusual_but_valid_frames_are_served() {
    let (origin, gateway) = stand(H2C);
    let key = format!("Bearer {}", gateway.create_key(json!({"rate_limit": 1000})).secret);
    let good = block(&good("/v1/app/x", &key));
    let (front, back) = good.split_at(good.len() / 2);
    let whole = frame(HEADERS, END_HEADERS | END_STREAM, 1, &good);
    let padded = [&[3][..], &good, &[0; 3]].concat();
    let prioritised = [&[0, 0, 0, 3, 15][..], &good].concat();
    let pieces: Vec<u8> = good.chunks(64).flat_map(|part| frame(CONTINUATION, 0, 1, part)).collect();
    for (what, bytes) in [
        (
            "an unknown kind of frame",
            [frame(0xfa, 0xff, 0, b"x"), whole.clone(), frame(0xfa, 0, 1, b"x")].concat(),
        ),
        ("an unknown setting", [frame(SETTINGS, 0, 0, &[0xff, 0xfe, 0, 0, 0, 1]), whole.clone()].concat()),
        ("a reserved bit", [frame(PING, 0, 0x8000_0000, &[0; 8]), whole.clone()].concat()),
        ("padding", frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &padded)),
        ("a priority", frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, &prioritised)),
        ("PRIORITY of an idle stream", [frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 1]), whole.clone()].concat()),
        (
            "a block in two",
            [frame(HEADERS, END_STREAM, 1, front), frame(CONTINUATION, END_HEADERS, 1, back)].concat(),
        ),
        (
            "a block in several",
            [frame(HEADERS, END_STREAM, 1, &[]), pieces, frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
        ),
        (
            "te: trailers",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[good.clone(), block(&[("te", "trailers")])].concat(),
            ),
        ),
    ] {
        origin.forget();
        let mut raw = RawFrames::connect(&gateway);
        raw.send(&bytes);
        assert_eq!(raw.verdict(1), Answered(200, "ok"), "{what}");
        assert_eq!(origin.last().target, "/v1/app/x", "{what}");
    }
    let mut raw = RawFrames::connect(&gateway);
    raw.send(&frame(PING, 0, 0, b"are you?"));
    let answered = loop {
        let frame = raw.frame().expect("an answer");
        if frame.kind == PING && frame.flags & ACK != 0 {
            break frame.payload;
        }
    };
    assert_eq!(answered, b"are you?");
}
