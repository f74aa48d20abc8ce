//! Differential test: sends the same requests and responses through both implementations. The exchange carries
//! HTTP/1.1 from end to end; Pingora's session carries everything that may be HTTP/2. Both use one origin, the
//! session through TLS without ALPN. What the client received, what the origin received and the usage records must be
//! equal, except for the differences in [`AGREED`].

use crate::speaker::{Authority, relay};
use crate::support::{Gateway, Key, Origin, PATIENCE, eventually_true, route, upstream};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

/// Responses that the two handle differently: the status from the exchange, the status from Pingora's session, and
/// the reason.
const AGREED: [(&str, u16, u16, &str); 7] = [
    ("two lengths that agree", 502, 502, "both refuse it"),
    ("a length and chunks", 502, 200, "the session drops the length; another reader may not"),
    ("a folded field", 502, 200, "obsolete (RFC 9112, 5.2); read differently by different parsers"),
    ("a space before a colon", 502, 200, "forbidden (RFC 9112, 5.1)"),
    ("bare line feeds", 502, 200, "a recipient may accept them, and need not (RFC 9112, 2.2)"),
    ("an empty chunk size", 502, 200, "no size is no zero; the session ends the body there"),
    ("an unknown coding", 502, 502, "both refuse it"),
];

/// Responses that both must pass on equally. The flag says whether the origin closes the connection after the
/// response.
const RESPONSES: [(&str, &[&str], bool); 18] = [
    ("a length", &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-One: 1\r\n\r\nhello"], false),
    ("no length but zero", &["HTTP/1.1 201 Created\r\nContent-Length: 0\r\nLocation: /x\r\n\r\n"], false),
    ("a length in two parts", &["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", "world"], false),
    ("a head in parts", &["HTTP/1.1 2", "00 OK\r\nContent-", "Length: 2\r\n\r", "\nok"], false),
    ("one chunk", &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"], false),
    (
        "chunks in odd parts",
        &[
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
            "llo",
            "\r\n",
            "A;x=1\r\n01234",
            "56789\r\n0\r",
            "\n\r\n",
        ],
        false,
    ),
    (
        "chunks with trailers",
        &[
            "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
        ],
        false,
    ),
    ("no chunk but the last", &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], false),
    ("until it closes", &["HTTP/1.1 200 OK\r\nX-One: 1\r\n\r\nall of", " it"], true),
    ("HTTP/1.0", &["HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold"], true),
    ("nothing by status", &["HTTP/1.1 204 No Content\r\nX-One: 1\r\n\r\n"], false),
    ("not modified", &["HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"], false),
    (
        "hints before it",
        &["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        false,
    ),
    (
        "hop-by-hop fields",
        &[
            "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok",
        ],
        false,
    ),
    ("an error of its own", &["HTTP/1.1 500 Broken\r\nContent-Length: 3\r\n\r\nbad"], false),
    (
        "fields of ours",
        &[
            "HTTP/1.1 200 OK\r\nX-Request-Id: no\r\nRateLimit: no\r\nX-Keygate-Degraded: no\r\nContent-Length: 2\r\n\r\nok",
        ],
        false,
    ),
    ("no answer at all", &[""], true),
    ("no HTTP", &["nonsense\r\n\r\n"], true),
];

/// The responses of [`AGREED`].
const ODD: [(&str, &str); 7] = [
    ("two lengths that agree", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
    (
        "a length and chunks",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    ("a folded field", "HTTP/1.1 200 OK\r\nX-Fold: a\r\n b\r\nContent-Length: 2\r\n\r\nok"),
    ("a space before a colon", "HTTP/1.1 200 OK\r\nX-Space : a\r\nContent-Length: 2\r\n\r\nok"),
    ("bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    ("an empty chunk size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n"),
    ("an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx"),
];

struct Stand {
    origin: Origin,
    gateway: Gateway,
    /// One key per implementation.
    keys: BTreeMap<&'static str, Key>,
    answer: Arc<Mutex<(Vec<String>, bool)>>,
    _files: tempfile::TempDir,
}

/// The result of a request, in a form that can be compared.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: String,
    fields: BTreeMap<String, Vec<String>>,
    body: Vec<u8>,
    /// The request as the origin received it: method, target, fields, body.
    received: Option<(String, String, BTreeMap<String, Vec<String>>, Vec<u8>)>,
}

impl Stand {
    fn start() -> Self {
        let (origin, ours, files) = (Origin::start(), Authority::new(), tempfile::tempdir().unwrap());
        let address = relay(&ours.certify(&["localhost"]), origin.address);
        let ca = files.path().join("ca.pem");
        std::fs::write(&ca, ours.pem()).unwrap();
        let session = format!(
            "[[upstreams]]\nname = \"session\"\nservers = [\"localhost:{}\"]\nprotocol = \"auto\"\n\
             [upstreams.eject]\nafter = 0\n[upstreams.tls]\nenabled = true\nca_file = \"{}\"\n",
            address.port(),
            ca.display()
        );
        let exchange = upstream("exchange", origin.address) + "[upstreams.eject]\nafter = 0\n";
        let routes = route("exchange", "/exchange/{rest*}", "exchange", "")
            + &route("session", "/session/{rest*}", "session", "");
        let gateway = Gateway::start(&(exchange + &session + &routes));
        let key = |way| (way, gateway.create_key(json!({"rate_limit": 1000})));
        let keys = [key("exchange"), key("session")].into();
        let answer = Arc::new(Mutex::new((Vec::<String>::new(), false)));
        let script = Arc::clone(&answer);
        origin.script(move |_, out| {
            let (parts, ends) = script.lock().unwrap().clone();
            for part in parts {
                out.write_all(part.as_bytes())?;
                out.flush()?;
            }
            if ends { Err(io::Error::other("that was all")) } else { Ok(()) }
        });
        Self { origin, gateway, keys, answer, _files: files }
    }

    /// Sends a request to the route of `way`, in `parts` parts, and reads everything until the connection closes.
    fn send(&self, way: &str, request: &str, parts: usize) -> Seen {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let bytes = format!(
            "{}\r\nHost: gateway.test\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n{body}",
            head.replace("/way/", &format!("/{way}/")),
            self.keys[way].secret
        );
        self.origin.forget();
        let mut stream = TcpStream::connect(self.gateway.proxy).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        for part in bytes.as_bytes().chunks(bytes.len().div_ceil(parts)) {
            // A refusal may arrive before the request is sent completely.
            if stream.write_all(part).is_err() {
                break;
            }
        }
        let mut all = Vec::new();
        // An incomplete response may end with a connection reset.
        stream.read_to_end(&mut all).ok();
        stream.shutdown(Shutdown::Both).ok();
        let received = self.origin.requests().pop().map(|request| {
            let target = request.target.replace(&format!("/{way}/"), "/way/");
            let lines = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            (request.method.clone(), target, fields(lines), request.body)
        });
        Seen { received, ..seen(&all) }
    }
}

/// The final response in the bytes that a client received.
fn seen(all: &[u8]) -> Seen {
    let mut rest = all;
    loop {
        let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
            let none = BTreeMap::new();
            return Seen { status: "none".into(), fields: none, body: rest.to_vec(), received: None };
        };
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let (status, lines) = head.split_once("\r\n").unwrap();
        let status = status.split(' ').nth(1).unwrap().to_owned();
        if status.starts_with('1') {
            continue;
        }
        let fields = fields(lines.split("\r\n").map(|line| line.split_once(": ").unwrap_or((line, ""))));
        let is_chunked = lines.to_lowercase().contains("transfer-encoding: chunked");
        let mut body = if is_chunked { unchunked(rest) } else { rest.to_vec() };
        if let Some(at) = body.windows(8).position(|eight| eight == b",\"time\":") {
            // The time of a refusal differs.
            body.truncate(at);
        }
        return Seen { status, fields, body, received: None };
    }
}

/// Fields by name, without those that differ between requests or that frame the body.
fn fields<'l>(lines: impl Iterator<Item = (&'l str, &'l str)>) -> BTreeMap<String, Vec<String>> {
    let differs = [
        "authorization",
        "connection",
        "content-length",
        "date",
        "ratelimit",
        "traceparent",
        "transfer-encoding",
        "x-keygate-key-id",
        "x-ratelimit-remaining-day",
        "x-ratelimit-remaining-qps",
        "x-ratelimit-reset",
        "x-request-id",
    ];
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in lines.filter(|(name, _)| !differs.contains(&&*name.to_lowercase())) {
        all.entry(name.to_lowercase()).or_default().push(value.trim().to_owned());
    }
    all
}

/// The data of a chunked body, as far as it is complete.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap_or(0);
        bytes = &bytes[end + 2..];
        let here = size.min(bytes.len());
        data.extend_from_slice(&bytes[..here]);
        bytes = bytes.get(here + 2..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    data
}

/// Requests with every framing, and with fields that have a meaning to proxies.
fn requests() -> Vec<String> {
    let mut all = Vec::new();
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        all.push(format!("{method} /way/a?b=c HTTP/1.1\r\nX-Plain: 1\r\n\r\n"));
    }
    for (fields, body) in [
        ("Content-Length: 5", "hello"),
        ("Content-Length: 0", ""),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"),
        ("Transfer-Encoding: chunked", "0\r\n\r\n"),
        ("Content-Length: 5\r\nExpect: 100-continue", "hello"),
        ("Content-Length: 3\r\nTE: trailers\r\nTrailer: X\r\nKeep-Alive: 1\r\nProxy-Authorization: x", "abc"),
        (
            "Content-Length: 1\r\nX-Forwarded-For: 9.9.9.9\r\nX_Forwarded_For: 8.8.8.8\r\nX-Keygate-Key-Id: me\r\nForwarded: for=x",
            "1",
        ),
        ("Content-Length: 1\r\nCookie: a=1\r\nX-Same: 1\r\nX-Same: 2\r\nX-Api-Kind: \u{e9}", "1"),
        ("Upgrade: h2c\r\nHTTP2-Settings: x\r\nContent-Length: 1", "1"),
    ] {
        all.push(format!("POST /way/a HTTP/1.1\r\n{fields}\r\n\r\n{body}"));
    }
    for target in [
        "/way/%61",
        "/way/a%20b?x=%20",
        "http://gateway.test/way/a?x",
        "/way/a/../b",
        "/way//a",
        "/way/a|b",
        "/other",
    ] {
        all.push(format!("GET {target} HTTP/1.1\r\nX-Plain: 1\r\n\r\n"));
    }
    all
}

#[test]
fn both_ways_forward_the_same_requests_and_responses() {
    let stand = Stand::start();
    for (name, parts, ends) in RESPONSES {
        *stand.answer.lock().unwrap() = (parts.iter().map(|part| (*part).to_owned()).collect(), ends);
        for request in
            ["GET /way/a HTTP/1.1\r\nX-Plain: 1\r\n\r\n", "HEAD /way/a HTTP/1.1\r\nX-Plain: 1\r\n\r\n"]
        {
            if request.starts_with("HEAD") && parts.concat().ends_with("ok") {
                // Neither reads the body of a response to HEAD to its end.
                continue;
            }
            let [exchange, session] = ["exchange", "session"].map(|way| stand.send(way, request, 1));
            assert_eq!(exchange, session, "{name}: {request}");
        }
    }
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    *stand.answer.lock().unwrap() = (vec![ok.to_owned()], false);
    for request in requests() {
        if request.starts_with("HEAD") {
            continue;
        }
        for parts in [1, 2, 7, request.len()] {
            let [exchange, session] = ["exchange", "session"].map(|way| stand.send(way, &request, parts));
            assert_eq!(exchange, session, "{request} in {parts} parts");
        }
    }
    let [exchange, session] = ["exchange", "session"].map(|way| &stand.keys[way]);
    let told = ["status_code", "outcome", "method", "error", "bytes_in", "bytes_out", "degraded"];
    let records = |key| -> Vec<Vec<String>> {
        let rows = stand.gateway.logs(key);
        rows.iter().map(|row| told.iter().map(|name| row[*name].to_string()).collect()).collect()
    };
    let recorded = |key| stand.gateway.recorded(key);
    // Both may have as many for a moment while more are on their way.
    stand.gateway.settled_accounts();
    eventually_true("all is stored", || recorded(exchange) > 100 && recorded(exchange) == recorded(session));
    assert_eq!(records(exchange), records(session), "the newest of them");
}

#[test]
fn the_exchange_and_the_session_differ_where_it_was_agreed() {
    let stand = Stand::start();
    for ((name, answer), (agreed, exchange, session, why)) in ODD.into_iter().zip(AGREED) {
        assert_eq!(name, agreed);
        *stand.answer.lock().unwrap() = (vec![answer.to_owned()], true);
        let statuses = ["exchange", "session"].map(|way| {
            let seen = stand.send(way, "GET /way/a HTTP/1.1\r\nX-Plain: 1\r\n\r\n", 1);
            seen.status.parse::<u16>().unwrap_or(0)
        });
        assert_eq!(statuses, [exchange, session], "{name}: {why}");
    }
}
