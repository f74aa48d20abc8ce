//! Ambiguous bytes (request smuggling). Each probe states what the client is answered and what the origin parses; a valid
//! request follows on the same connection, unless the response closed it.

use crate::support::{Gateway, Origin, Raw, Response, stand};
use serde_json::json;
use std::fmt::Write as _;

/// The expected outcome of a probe.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// The origin gets exactly this target and body, and the client a 200.
    Passes(&'static str, &'static str),
    /// A refusal with this status and `data.reason` (none where there is none); the origin gets nothing.
    Refused(u16, &'static str),
}

use Expect::{Passes, Refused};

/// `$K` is the key's field, `$H` a host, `$A` both; `\n` in the text stands for CRLF, `\x0a` written as `¶` for a bare
/// line feed, `¬` for a bare carriage return, `∅` for NUL.
fn bytes_of(text: &str, secret: &str) -> Vec<u8> {
    let key = format!("Authorization: Bearer {secret}");
    text.replace('\n', "\r\n")
        .replace('¶', "\n")
        .replace('¬', "\r")
        .replace('∅', "\0")
        .replace("$A", &format!("Host: h\r\n{key}"))
        .replace("$H", "Host: h")
        .replace("$K", &key)
        .into_bytes()
}

/// The request line, with the head around it.
const REQUEST_LINES: &[(&str, Expect)] = &[
    ("GET /v1/app/x HTTP/1.1", Passes("/v1/app/x", "")),
    ("GET /v1/app/x HTTP/1.0", Passes("/v1/app/x", "")),
    ("get /v1/app/x HTTP/1.1", Passes("/v1/app/x", "")),
    ("M-SEARCH /v1/app/x HTTP/1.1", Passes("/v1/app/x", "")),
    ("OPTIONS /v1/app/x HTTP/1.1", Passes("/v1/app/x", "")),
    ("GET  /v1/app/x HTTP/1.1", Refused(400, "syntax")),
    ("GET /v1/app/x  HTTP/1.1", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.1 ", Refused(400, "syntax")),
    (" GET /v1/app/x HTTP/1.1", Refused(400, "syntax")),
    ("GET\t/v1/app/x HTTP/1.1", Refused(400, "syntax")),
    ("GET /v1/app/x\tHTTP/1.1", Refused(400, "syntax")),
    ("GET /v1/app/x y HTTP/1.1", Refused(400, "syntax")),
    ("GET /v1/app/x", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/0.9", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.2", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.10", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/01.1", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/2.0", Refused(400, "syntax")),
    ("PRI * HTTP/2.0", Refused(400, "syntax")),
    ("GET /v1/app/x http/1.1", Refused(400, "syntax")),
    ("GET /v1/app/x HTTPS/1.1", Refused(400, "syntax")),
    ("G(T /v1/app/x HTTP/1.1", Refused(400, "syntax")),
    ("GÉT /v1/app/x HTTP/1.1", Refused(400, "syntax")),
    ("/v1/app/x HTTP/1.1", Refused(400, "syntax")),
    ("GET HTTP/1.1", Refused(400, "syntax")),
    ("AVERYLONGMETHODTHATNOBODYHASEVERHEARDOF /v1/app/x HTTP/1.1", Refused(400, "syntax")),
    ("TRACE /v1/app/x HTTP/1.1", Refused(501, "")),
    ("TRACK /v1/app/x HTTP/1.1", Passes("/v1/app/x", "")),
    ("CONNECT h:443 HTTP/1.1", Refused(501, "")),
    ("CONNECT /v1/app/x HTTP/1.1", Refused(501, "")),
];

/// Targets of a `GET`.
const TARGETS: &[(&str, Expect)] = &[
    ("/v1/app/%78", Passes("/v1/app/x", "")),
    ("/v1/%61pp/x?q=%61", Passes("/v1/app/x?q=%61", "")),
    ("/v1/app/a%3ab", Passes("/v1/app/a%3Ab", "")),
    ("/v1/app/;x", Passes("/v1/app/;x", "")),
    ("/v1/app/x;a=b;c", Passes("/v1/app/x;a=b;c", "")),
    ("/v1/app/...", Passes("/v1/app/...", "")),
    ("/v1/app/x?/../../etc", Passes("/v1/app/x?/../../etc", "")),
    ("/v1/app/x?a=b?c=d", Passes("/v1/app/x?a=b?c=d", "")),
    ("/v1/app/x?{a|b}", Passes("/v1/app/x?{a|b}", "")),
    ("http://h/v1/app/x", Passes("/v1/app/x", "")),
    ("HTTP://h/v1/app/x?q", Passes("/v1/app/x?q", "")),
    ("http://other/v1/app/x", Refused(400, "host")),
    ("http://h:80/v1/app/x", Refused(400, "host")),
    ("http://u@h/v1/app/x", Refused(400, "path")),
    ("http:///v1/app/x", Refused(400, "path")),
    ("http:/v1/app/x", Refused(400, "path")),
    ("ftp://h/v1/app/x", Refused(400, "path")),
    ("h:80", Refused(400, "path")),
    ("*", Refused(400, "path")),
    ("/v1/app/^", Passes("/v1/app/%5E", "")),
    ("/v1/app/{x}", Passes("/v1/app/%7Bx%7D", "")),
    ("http://h/v1/app/`x", Passes("/v1/app/%60x", "")),
    ("v1/app/x", Refused(400, "path")),
    ("\\v1\\app\\x", Refused(400, "path")),
    ("//v1/app/x", Refused(400, "path")),
    ("//h/v1/app/x", Refused(400, "path")),
    ("/v1//app/x", Refused(400, "path")),
    ("/v1/app/x//", Refused(400, "path")),
    ("/v1/./app/x", Refused(400, "path")),
    ("/v1/app/x/..", Refused(400, "path")),
    ("/v1/app/%2e%2e/admin", Refused(400, "path")),
    ("/v1/app/.%2E/admin", Refused(400, "path")),
    ("/v1/app/..;/admin", Refused(400, "path")),
    ("/v1/app/..;a=b/admin", Refused(400, "path")),
    ("/v1/app/..%3b/admin", Refused(400, "path")),
    ("/v1/app/%2e;/admin", Refused(400, "path")),
    ("/v1/app/a%2fb", Refused(400, "path")),
    ("/v1/app/a%5Cb", Refused(400, "path")),
    ("/v1/app/a\\b", Refused(400, "path")),
    ("/v1/app/..\\..\\admin", Refused(400, "path")),
    ("/v1/app/%252e%252e/admin", Refused(400, "path")),
    ("/v1/app/%25%32%65", Refused(400, "path")),
    ("/v1/app/%00", Refused(400, "path")),
    ("/v1/app/%0d%0aX-A:b", Refused(400, "path")),
    ("/v1/app/%7f", Refused(400, "path")),
    ("/v1/app/%", Refused(400, "path")),
    ("/v1/app/%4", Refused(400, "path")),
    ("/v1/app/%g0", Refused(400, "path")),
    ("/v1/app/%u002e", Refused(400, "path")),
    ("/v1/app/文", Passes("/v1/app/%E6%96%87", "")),
    ("/v1/app/x?文", Passes("/v1/app/x?%E6%96%87", "")),
    ("/v1/app/x#y", Refused(400, "path")),
    ("/v1/app/x?a#y", Refused(400, "path")),
    ("/v1/app/<x>", Passes("/v1/app/%3Cx%3E", "")),
    ("/v1/app/x?\"", Passes("/v1/app/x?%22", "")),
    ("/v1/app/`x`", Passes("/v1/app/%60x%60", "")),
    ("/v1/app/x∅", Refused(400, "path")),
    ("/v1/app/x\u{7f}", Refused(400, "path")),
    ("/v1/app/x¬", Refused(400, "path")),
];

/// Fields of a `GET`, below a `Host` and the key.
const FIELDS: &[(&str, Expect)] = &[
    ("X-A:b", Passes("/v1/app/x", "")),
    ("X-A:\t b \t", Passes("/v1/app/x", "")),
    ("X-A:", Passes("/v1/app/x", "")),
    ("X-A: é", Passes("/v1/app/x", "")),
    ("!#$%&'*+-.^_`|~0: b", Passes("/v1/app/x", "")),
    ("X-A: a\tb", Passes("/v1/app/x", "")),
    ("X-A : b", Refused(400, "syntax")),
    ("X-A\t: b", Refused(400, "syntax")),
    (" X-A: b", Refused(400, "syntax")),
    ("X-A: a\n b", Refused(400, "syntax")),
    ("X-A: a\n\tContent-Length: 5", Refused(400, "syntax")),
    ("X-A", Refused(400, "syntax")),
    (": b", Refused(400, "syntax")),
    ("X A: b", Refused(400, "syntax")),
    ("X(A): b", Refused(400, "syntax")),
    ("X\u{e9}: b", Refused(400, "syntax")),
    ("X-A: a∅b", Refused(400, "syntax")),
    ("X-A∅: b", Refused(400, "syntax")),
    ("X-A: a\u{7f}", Refused(400, "syntax")),
    ("X-A: a\u{1}b", Refused(400, "syntax")),
    ("X-A: a\u{b}b", Refused(400, "syntax")),
    ("X-A: a¬b", Refused(400, "syntax")),
    ("X-A: a¬", Refused(400, "syntax")),
    ("X-A: a¶X-B: b", Refused(400, "syntax")),
    ("X-A: a¶", Refused(400, "syntax")),
    ("Host: h", Refused(400, "host")),
    ("Host: other", Refused(400, "host")),
    ("hOST:", Refused(400, "host")),
];

/// Whole heads of their own, without a body.
const HEADS: &[(&str, Expect)] = &[
    ("GET /v1/app/x HTTP/1.0\n$K\n\n", Passes("/v1/app/x", "")),
    ("GET /v1/app/x HTTP/1.1\nHost: h:8080\n$K\n\n", Passes("/v1/app/x", "")),
    ("GET /v1/app/x HTTP/1.1\nHost: [::1]:8080\n$K\n\n", Passes("/v1/app/x", "")),
    ("GET /v1/app/x HTTP/1.1\n$K\n\n", Refused(400, "host")),
    ("GET /v1/app/x HTTP/1.1\n$K\nHost:\n\n", Refused(400, "host")),
    ("GET /v1/app/x HTTP/1.1\n$K\nHost: u@h\n\n", Refused(400, "host")),
    ("GET /v1/app/x HTTP/1.1\n$K\nHost: h/x\n\n", Refused(400, "host")),
    ("GET /v1/app/x HTTP/1.1\n$K\nHost: h h\n\n", Refused(400, "host")),
    ("GET /v1/app/x HTTP/1.1\n$K\nHost: h, h\n\n", Refused(400, "host")),
    ("\n\nGET /v1/app/x HTTP/1.1\n$A\n\n", Refused(400, "syntax")),
    ("¶GET /v1/app/x HTTP/1.1\n$A\n\n", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.1¶$A\n\n", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.1¶Host: h¶$K¶¶", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.1\n$A\n¶", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.1¬$A¬¬GET / HTTP/1.1\n\n", Refused(400, "syntax")),
    ("GET /v1/app/x HTTP/1.1\n $A\n\n", Refused(400, "syntax")),
    ("\u{16}\u{3}\u{1}", Refused(400, "syntax")),
    ("∅∅∅∅", Refused(400, "syntax")),
];

/// Fields that give the length of a `POST`, and the body.
const BODIES: &[(&str, &str, Expect)] = &[
    ("Content-Length: 5", "hello", Passes("/v1/app/x", "hello")),
    ("content-length:5", "hello", Passes("/v1/app/x", "hello")),
    ("Content-Length: 0", "", Passes("/v1/app/x", "")),
    ("X-A: b", "", Passes("/v1/app/x", "")),
    ("Content-Length: 5\nContent-Length: 5", "hello", Refused(400, "framing")),
    ("Content-Length: 5\nContent-Length: 6", "hello", Refused(400, "framing")),
    ("Content-Length: 5, 5", "hello", Refused(400, "framing")),
    ("Content-Length: 5,", "hello", Refused(400, "framing")),
    ("Content-Length: 05", "hello", Refused(400, "framing")),
    ("Content-Length: +5", "hello", Refused(400, "framing")),
    ("Content-Length: -5", "hello", Refused(400, "framing")),
    ("Content-Length: 0x5", "hello", Refused(400, "framing")),
    ("Content-Length: 5.0", "hello", Refused(400, "framing")),
    ("Content-Length: 5 5", "hello", Refused(400, "framing")),
    ("Content-Length: \"5\"", "hello", Refused(400, "framing")),
    ("Content-Length:", "hello", Refused(400, "framing")),
    ("Content-Length: ٥", "hello", Refused(400, "framing")),
    ("Content-Length: 18446744073709551621", "hello", Refused(400, "framing")),
    ("Content-Length: 99999999999999999999999999", "hello", Refused(400, "framing")),
    ("Content-Length: 5\nTransfer-Encoding: chunked", "0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked\nContent-Length: 5", "0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked\nTransfer-Encoding: chunked", "0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked\nTransfer-Encoding: identity", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding: chunked, chunked", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding: gzip, chunked", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding: chunked, gzip", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding: identity", "", Refused(501, "")),
    ("Transfer-Encoding: identity\nContent-Length: 5", "hello", Refused(501, "")),
    ("Transfer-Encoding: xchunked", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding: \"chunked\"", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding: chunked;q=1", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding:", "0\n\n", Refused(501, "")),
    ("Transfer-Encoding: \u{b}chunked", "0\n\n", Refused(400, "syntax")),
    ("Transfer-Encoding : chunked", "0\n\n", Refused(400, "syntax")),
    ("Transfer-Encoding: chunked", "5\nhello\n0\n\n", Passes("/v1/app/x", "hello")),
    ("transfer-encoding:CHUNKED", "5\nhello\n0\n\n", Passes("/v1/app/x", "hello")),
    ("Transfer-Encoding: chunked", "0\n\n", Passes("/v1/app/x", "")),
    ("Transfer-Encoding: chunked", "2\nhe\n3\nllo\n000\n\n", Passes("/v1/app/x", "hello")),
    ("Transfer-Encoding: chunked", "00005\nhello\n0\n\n", Passes("/v1/app/x", "hello")),
    ("Transfer-Encoding: chunked", "5;a=b;c=\"d\"\nhello\n0;x\n\n", Passes("/v1/app/x", "hello")),
    ("Transfer-Encoding: chunked", "5\nhello\n0\nX-Trailer: v\n\n", Passes("/v1/app/x", "hello")),
    ("Transfer-Encoding: chunked", "5¶hello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "5\nhello¶0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "5\nhelloX\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "5\nhell\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "5;a¶b\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "5;a∅\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "5 \nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", " 5\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "0x5\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "+5\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "-1\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "5¬hello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "fffffffffffffffff\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "10000000000000005\nhello\n0\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "0\n¶", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "0\n X-A: b\n\n", Refused(400, "framing")),
    ("Transfer-Encoding: chunked", "0\nX-A: b¶\n", Refused(400, "framing")),
];

/// A gateway to probe, and its origin.
struct Stand {
    origin: Origin,
    gateway: Gateway,
    secret: String,
    probes: usize,
    wrong: String,
}

impl Stand {
    fn new() -> Self {
        let (origin, gateway) = stand("[plans.default]\napi_ops_rate_limit = 100000\n");
        let secret = gateway.create_key(json!({"rate_limit": 100_000})).secret;
        Self { origin, gateway, secret, probes: 0, wrong: String::new() }
    }

    /// Tries one probe on a connection of its own, in one packet and then byte by byte.
    fn probe(&mut self, text: &str, expect: Expect) {
        self.probes += 1;
        let bytes = bytes_of(text, &self.secret);
        for dripped in [false, true] {
            if let Err(what) = self.try_probe(&bytes, dripped, expect) {
                let how = if dripped { " dripped" } else { "" };
                writeln!(self.wrong, "{text:?}{how}: {what}; expected {expect:?}").unwrap();
            }
        }
    }

    fn try_probe(&self, bytes: &[u8], dripped: bool, expect: Expect) -> Result<(), String> {
        self.origin.forget();
        let mut client = self.gateway.connect();
        if dripped {
            // Once the gateway has read enough it may close before it has read everything.
            let sent = bytes.iter().all(|byte| client.try_send(std::slice::from_ref(byte)));
            assert!(sent || matches!(expect, Refused(..)), "all of a good request is taken");
        } else {
            client.try_send(bytes);
        }
        let response = client.response();
        self.check(&response, expect)?;
        self.check_rest(client, &response)
    }

    fn check(&self, response: &Response, expect: Expect) -> Result<(), String> {
        let seen: Vec<(String, String)> = self
            .origin
            .requests()
            .into_iter()
            .map(|r| (r.target, String::from_utf8_lossy(&r.body).into_owned()))
            .collect();
        match expect {
            Passes(target, body) if response.status == 200 && seen == [(target.into(), body.into())] => {
                Ok(())
            }
            Refused(status, reason) if response.status == status && seen.is_empty() => {
                if response.body.is_empty() {
                    return Err("an answer without the envelope".into());
                }
                response.fault();
                let told = response.data()["reason"].as_str().unwrap_or_default().to_owned();
                if told == reason { Ok(()) } else { Err(format!("the reason is {told:?}")) }
            }
            _ => Err(format!("{} {}, and the origin got {seen:?}", response.status, response.text())),
        }
    }

    /// The connection is closed if the response said so; otherwise the next request on it is parsed correctly.
    fn check_rest(&self, mut client: Raw, response: &Response) -> Result<(), String> {
        let closes = response.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
        if closes {
            return if client.is_closed() { Ok(()) } else { Err("more bytes after the last answer".into()) };
        }
        self.origin.forget();
        client.send(&bytes_of("POST /v1/app/next HTTP/1.1\n$A\nContent-Length: 4\n\nnext", &self.secret));
        let next = client.response();
        let seen = self.origin.requests();
        let right = next.status == 200
            && seen.len() == 1
            && seen[0].target == "/v1/app/next"
            && seen[0].body == b"next";
        if right { Ok(()) } else { Err(format!("the next request came to {} and {seen:?}", next.status)) }
    }

    #[track_caller]
    fn conclude(self, at_least: usize) {
        assert!(self.wrong.is_empty(), "{}", self.wrong);
        assert!(self.probes >= at_least, "{} probes", self.probes);
    }
}

#[test]
fn request_lines_and_targets() {
    let mut stand = Stand::new();
    for (line, expect) in REQUEST_LINES {
        stand.probe(&format!("{line}\n$A\n\n"), *expect);
    }
    for (target, expect) in TARGETS {
        stand.probe(&format!("GET {target} HTTP/1.1\n$A\n\n"), *expect);
    }
    stand.conclude(80);
}

#[test]
fn fields_and_hosts() {
    let mut stand = Stand::new();
    for (field, expect) in FIELDS {
        stand.probe(&format!("GET /v1/app/x HTTP/1.1\n$A\n{field}\n\n"), *expect);
    }
    for (head, expect) in HEADS {
        stand.probe(head, *expect);
    }
    stand.conclude(40);
}

#[test]
fn lengths_and_bodies() {
    let mut stand = Stand::new();
    for (fields, body, expect) in BODIES {
        stand.probe(&format!("POST /v1/app/x HTTP/1.1\n$A\n{fields}\n\n{body}"), *expect);
    }
    stand.probe("POST /v1/app/x HTTP/1.0\n$K\nTransfer-Encoding: chunked\n\n0\n\n", Refused(400, "framing"));
    stand.conclude(55);
}

#[test]
fn requests_in_one_packet_are_answered_one_by_one() {
    let (origin, gateway) = stand("[plans.default]\napi_ops_rate_limit = 100000\n");
    let secret = gateway.create_key(json!({"rate_limit": 100_000})).secret;
    let parts = [
        ("POST /v1/app/1 HTTP/1.1\n$A\nContent-Length: 5\n\nfirst", 200),
        ("GET /v1/app/2 HTTP/1.1\n$A\n\n", 200),
        ("POST /v1/app/3 HTTP/1.1\n$A\nTransfer-Encoding: chunked\n\n5\nthird\n0\n\n", 200),
        ("POST /nowhere HTTP/1.1\n$A\nContent-Length: 12\n\nGET / HTTP/1", 404),
        ("GET /v1/app/.. HTTP/1.1\n$A\n\n", 400),
        ("\nHEAD /v1/app/4 HTTP/1.1\n$A\n\n", 200),
        ("POST /v1/app/5 HTTP/1.1\n$H\nContent-Length: 5\n\nnokey", 401),
        ("POST /v1/app/6 HTTP/1.1\n$A\nContent-Length: 4\n\nlast", 200),
    ];
    let all: Vec<u8> = parts.iter().flat_map(|(text, _)| bytes_of(text, &secret)).collect();
    let expected = ["/v1/app/1", "/v1/app/2", "/v1/app/3", "/v1/app/4", "/v1/app/6"];
    // Split in two at many places, so that each part of a request is once the end of a packet.
    for cut in (1..all.len()).step_by(7) {
        origin.forget();
        let mut client = gateway.connect();
        client.send(&all[..cut]);
        client.send(&all[cut..]);
        for (text, status) in parts {
            let method = text.trim_start().split(' ').next().unwrap();
            assert_eq!(client.response_to(method).status, status, "{text:?}, cut at {cut}");
        }
        let seen: Vec<_> = origin.requests().into_iter().map(|r| r.target).collect();
        assert_eq!(seen, expected, "cut at {cut}");
    }
}

#[test]
fn a_head_of_any_length_is_answered() {
    let (origin, gateway) =
        stand("[proxy]\nmax_header_bytes = \"4KiB\"\nmax_header_fields = 20\nmax_uri_bytes = \"1KiB\"\n");
    let secret = gateway.create_key(json!({})).secret;
    let long = |text: &str, n: usize| text.replace("$X", &"x".repeat(n));
    for (text, status) in [
        (long("GET /v1/app/$X HTTP/1.1\n$A\n\n", 1_100), 414),
        (long("GET /v1/app/$X HTTP/1.1\n$A\n\n", 2_000_000), 414),
        // No line end ever comes.
        (long("GET /v1/app/$X", 5_000), 414),
        (long("$X", 5_000), 414),
        (long("GET /v1/app/x HTTP/1.1\n$A\nX-A: $X\n\n", 4_200), 431),
        (long("GET /v1/app/x HTTP/1.1\n$A\nX-A: $X\n\n", 2_000_000), 431),
        (long("GET /v1/app/x HTTP/1.1\n$A\n$X", 9_000), 431),
        (format!("GET /v1/app/x HTTP/1.1\n$A\n{}\n", "a: b\n".repeat(30)), 431),
        (format!("GET /v1/app/x HTTP/1.1\n$A\n{}\n", "a: b\n".repeat(300)), 431),
        (format!("GET /v1/app/x HTTP/1.1\n$A\n{}\n", "a: b\n".repeat(100_000)), 431),
    ] {
        let mut client = gateway.connect();
        client.try_send(&bytes_of(&text, &secret));
        let response = client.response();
        assert_eq!(response.fault().0, status, "{:.60}", text);
    }
    assert_eq!(origin.count(), 0);
}
