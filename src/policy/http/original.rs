//! The request that a proxy in front asks about: where its call states it, and its head as the client sent it.
//!
//! Must not know: keys, routes, sockets. The path of the call says which statement counts, so no field that a client sends
//! takes the place of one that the proxy sets. The head is made again as bytes, to be validated and spelled like that of a
//! request that is forwarded.

use super::fields::FieldLine;
use super::head::{RequestHead, split_head};
use super::path::behind_authority;
use std::fmt;

/// What stands before a request target in the target of the call.
const BEHIND_PATH: &[u8] = b"/decide/request";
const ORIGINAL_PATH: &[u8] = b"/decide/original";
const FORWARDED_PATH: &[u8] = b"/decide/forwarded";
const ORIGINAL_METHOD: &str = "x-original-method";
const ORIGINAL_URI: &str = "x-original-uri";
const ORIGINAL_URL: &str = "x-original-url";
const FORWARDED_METHOD: &str = "x-forwarded-method";
const FORWARDED_URI: &str = "x-forwarded-uri";
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Usual size of a head, in bytes.
const HEAD: usize = 1_024;

/// Where a call states the request that it asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalSource {
    /// In `X-Original-Method` and `X-Original-URI` or `X-Original-URL`.
    OriginalFields,
    /// In `X-Forwarded-Method` and `X-Forwarded-Uri`.
    ForwardedFields,
    /// In its own method, and in its own target behind a prefix.
    RequestLine,
}

/// Why a call states no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOriginal {
    /// Its path says nothing about where the request is stated.
    Path,
    /// This field is missing or empty.
    Missing(&'static str),
    /// This field occurs twice.
    Twice(&'static str),
    /// `X-Original-URI` and `X-Original-URL` differ.
    Differ,
}

/// The source that the target of a call names, and the target behind it.
pub fn original_source(target: &[u8]) -> Option<(OriginalSource, &[u8])> {
    let (path, query) = target.split_at(target.iter().position(|b| *b == b'?').unwrap_or(target.len()));
    if path == ORIGINAL_PATH {
        return Some((OriginalSource::OriginalFields, query));
    }
    if path == FORWARDED_PATH {
        return Some((OriginalSource::ForwardedFields, query));
    }
    let behind = target.strip_prefix(BEHIND_PATH).filter(|behind| behind.starts_with(b"/"))?;
    Some((OriginalSource::RequestLine, behind))
}

/// The head of the request that the call with this head asks about. `head` has been validated; the result has not.
pub fn original_head(head: &[u8]) -> Result<Vec<u8>, BadOriginal> {
    let call = split_head(head).ok_or(BadOriginal::Path)?;
    let (source, behind) = original_source(call.target).ok_or(BadOriginal::Path)?;
    let (method, target) = match source {
        OriginalSource::RequestLine => (call.method, behind),
        OriginalSource::ForwardedFields => {
            (required(&call, FORWARDED_METHOD)?, required(&call, FORWARDED_URI)?)
        }
        OriginalSource::OriginalFields => (required(&call, ORIGINAL_METHOD)?, original_target(&call)?),
    };
    // Without it, limits by address and the addresses of keys would be held against the proxy.
    if !call.fields().any(|(name, value)| is_named(name, FORWARDED_FOR) && !value.is_empty()) {
        return Err(BadOriginal::Missing(FORWARDED_FOR));
    }
    let mut original = Vec::with_capacity(head.len());
    let mut add = |parts: [&[u8]; 4]| parts.iter().for_each(|part| original.extend_from_slice(part));
    add([method, b" ", in_origin_form(target), b" HTTP/1.1\r\n"]);
    call.fields().filter(|line| !is_of_call(line, source)).for_each(|(name, value)| {
        add([name, b": ", value, b"\r\n"]);
    });
    original.extend_from_slice(b"\r\n");
    Ok(original)
}

/// The head of a request of which a call states the parts, with fields of HTTP/2 that have no place in it left out; none: a part
/// would not stay what it is. The result has not been validated.
pub fn head_of_parts<'p>(
    method: &[u8],
    target: &[u8],
    host: &[u8],
    fields: impl Iterator<Item = FieldLine<'p>> + Clone,
) -> Option<Vec<u8>> {
    let ends_line = |text: &[u8]| text.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
    // Names that begin with a colon are of HTTP/2, and stated as the other parts.
    let fields =
        fields.filter(|(name, _)| !name.starts_with(b":") && !name.eq_ignore_ascii_case(b"connection"));
    let is_unclean = |(name, value): FieldLine<'_>| {
        name.is_empty() || name.contains(&b':') || ends_line(name) || ends_line(value)
    };
    if method.is_empty()
        || target.is_empty()
        || [method, target, host].into_iter().any(ends_line)
        || fields.clone().any(is_unclean)
    {
        return None;
    }
    let mut head = Vec::with_capacity(HEAD);
    let mut add = |parts: [&[u8]; 4]| parts.iter().for_each(|part| head.extend_from_slice(part));
    add([method, b" ", in_origin_form(target), b" HTTP/1.1\r\n"]);
    if !fields.clone().any(|(name, _)| is_named(name, "host")) {
        add([b"host", b": ", host, b"\r\n"]);
    }
    fields.for_each(|(name, value)| add([name, b": ", value, b"\r\n"]));
    head.extend_from_slice(b"\r\n");
    Some(head)
}

/// `X-Original-URI`, as nginx is usually configured, or `X-Original-URL`, as its ingress controller sends it.
fn original_target<'h>(call: &RequestHead<'h>) -> Result<&'h [u8], BadOriginal> {
    match (single(call, ORIGINAL_URI)?, single(call, ORIGINAL_URL)?) {
        (None, None) => Err(BadOriginal::Missing(ORIGINAL_URI)),
        (Some(one), None) | (None, Some(one)) => Ok(one),
        (Some(uri), Some(url)) if in_origin_form(uri) == in_origin_form(url) => Ok(uri),
        (Some(_), Some(_)) => Err(BadOriginal::Differ),
    }
}

fn required<'h>(call: &RequestHead<'h>, name: &'static str) -> Result<&'h [u8], BadOriginal> {
    single(call, name)?.ok_or(BadOriginal::Missing(name))
}

fn single<'h>(call: &RequestHead<'h>, name: &'static str) -> Result<Option<&'h [u8]>, BadOriginal> {
    let mut values = call.fields().filter(|(field, _)| is_named(field, name)).map(|(_, value)| value);
    let value = values.next();
    if values.next().is_some() {
        return Err(BadOriginal::Twice(name));
    }
    Ok(value.filter(|value| !value.is_empty()))
}

/// A target without its authority, which is that of the proxy's own host.
fn in_origin_form(target: &[u8]) -> &[u8] {
    behind_authority(target).map_or(target, |(_, origin)| origin)
}

/// Whether a field belongs to the call and not to the request: it states the request, or concerns the proxy's connection.
fn is_of_call(line: &FieldLine<'_>, source: OriginalSource) -> bool {
    let stating: &[&str] = match source {
        OriginalSource::OriginalFields => &[ORIGINAL_METHOD, ORIGINAL_URI, ORIGINAL_URL],
        OriginalSource::ForwardedFields => &[FORWARDED_METHOD, FORWARDED_URI],
        OriginalSource::RequestLine => &[],
    };
    ["connection"].iter().chain(stating).any(|name| is_named(line.0, name))
}

fn is_named(field: &[u8], name: &str) -> bool {
    field.eq_ignore_ascii_case(name.as_bytes())
}

// === impl BadOriginal ===

impl BadOriginal {
    /// The field that is the cause, in the spelling of proxies.
    pub const fn field(self) -> Option<&'static str> {
        match self {
            Self::Path => None,
            Self::Missing(name) | Self::Twice(name) => Some(name),
            Self::Differ => Some(ORIGINAL_URL),
        }
    }
}

impl fmt::Display for BadOriginal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => f.write_str(
                "This listener decides for a proxy in front: ask /decide/original, /decide/forwarded, or \
                 /decide/request followed by the path",
            ),
            Self::Missing(name) => {
                write!(f, "The proxy in front must send {name} when it asks for a decision")
            }
            Self::Twice(name) => {
                write!(f, "The proxy in front must send {name} once when it asks for a decision")
            }
            Self::Differ => write!(f, "{ORIGINAL_URI} and {ORIGINAL_URL} name different targets"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original(line: &str, fields: &str) -> Result<String, BadOriginal> {
        let head = format!("{line} HTTP/1.1\r\nHost: k\r\n{fields}X-Forwarded-For: 192.0.2.1\r\n\r\n");
        original_head(head.as_bytes()).map(|head| String::from_utf8(head).expect("text"))
    }

    const REST: &str = "Host: k\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";

    #[test]
    fn the_path_of_the_call_says_where_the_request_is_stated() {
        let all = "X-Original-Method: PUT\r\nx-original-uri: /a?b=c\r\nX-Forwarded-Method: POST\r\nX-Forwarded-Uri: /d\r\nConnection: close\r\n";
        let kept = "X-Original-Method: PUT\r\nx-original-uri: /a?b=c\r\n";
        let forwarded = "X-Forwarded-Method: POST\r\nX-Forwarded-Uri: /d\r\n";
        let rest = "X-Forwarded-For: 192.0.2.1\r\n\r\n";
        for (line, expected) in [
            ("GET /decide/original", format!("PUT /a?b=c HTTP/1.1\r\nHost: k\r\n{forwarded}{rest}")),
            ("GET /decide/forwarded", format!("POST /d HTTP/1.1\r\nHost: k\r\n{kept}{rest}")),
            (
                "PATCH /decide/request/x/../y?z",
                format!("PATCH /x/../y?z HTTP/1.1\r\nHost: k\r\n{kept}{forwarded}{rest}"),
            ),
        ] {
            assert_eq!(original(line, all), Ok(expected), "{line}");
        }
        for line in ["GET /", "GET /decide", "GET /decide/requests/x", "GET /decide/original/x", "GET /x"] {
            assert_eq!(original(line, all), Err(BadOriginal::Path), "{line}");
        }
    }

    #[test]
    fn a_head_is_made_of_parts_that_stay_what_they_are() {
        let made = |method: &str, target: &str, fields: &[(&str, &str)]| {
            let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            let head = head_of_parts(method.as_bytes(), target.as_bytes(), b"h", fields);
            head.map(|head| String::from_utf8(head).expect("text"))
        };
        let pseudo = [(":path", "/b"), ("accept", "*/*"), ("connection", "close")];
        let expected = "GET /a?b HTTP/1.1\r\nhost: h\r\naccept: */*\r\n\r\n";
        assert_eq!(made("GET", "/a?b", &pseudo).as_deref(), Some(expected));
        let expected = "GET / HTTP/1.1\r\nHost: own\r\n\r\n";
        assert_eq!(made("GET", "http://h", &[("Host", "own")]).as_deref(), Some(expected));
        for (method, target, field) in [
            ("", "/", ("a", "b")),
            ("GET", "", ("a", "b")),
            ("GET / HTTP/1.1\r\n", "/", ("a", "b")),
            ("GET", "/ HTTP/1.1\r\nx-api-key: k", ("a", "b")),
            ("GET", "/", ("a", "b\r\nx-api-key: k")),
            ("GET", "/", ("a", "b\n")),
            ("GET", "/", ("x-api-key: k\r\na", "b")),
            ("GET", "/", ("x-api-key: k, a", "b")),
            ("GET", "/", ("", "b")),
        ] {
            assert_eq!(made(method, target, &[field]), None, "{method} {target} {field:?}");
        }
    }

    #[test]
    fn a_request_is_stated_once_and_completely() {
        let method = "X-Original-Method: GET\r\n";
        let one = |target: &str| Ok(format!("GET {target} HTTP/1.1\r\n{REST}"));
        for (fields, expected) in [
            ("X-Original-URI: /a\r\n", one("/a")),
            ("X-Original-URL: https://app.test/a?b\r\n", one("/a?b")),
            ("X-Original-URL: https://app.test\r\n", one("/")),
            ("X-Original-URI: /a\r\nX-Original-URL: https://app.test/a\r\n", one("/a")),
            ("X-Original-URI: /a\r\nX-Original-URL: https://app.test/b\r\n", Err(BadOriginal::Differ)),
            ("X-Original-URI: /a\r\nX-Original-URI: /a\r\n", Err(BadOriginal::Twice(ORIGINAL_URI))),
            ("X-Original-URI:\r\n", Err(BadOriginal::Missing(ORIGINAL_URI))),
            ("", Err(BadOriginal::Missing(ORIGINAL_URI))),
            ("X-Original-URI: a b\r\n", one("a b")),
        ] {
            let found = original("GET /decide/original", &format!("{method}{fields}"));
            assert_eq!(found, expected, "{fields}");
        }
        let lacking = original("GET /decide/original", "X-Original-URI: /a\r\n");
        assert_eq!(lacking, Err(BadOriginal::Missing(ORIGINAL_METHOD)));
        let lacking = original("GET /decide/forwarded", "X-Forwarded-Method: GET\r\n");
        assert_eq!(lacking, Err(BadOriginal::Missing(FORWARDED_URI)));
        let alone = original_head(b"GET /decide/request/ HTTP/1.1\r\nHost: k\r\n\r\n");
        assert_eq!(alone, Err(BadOriginal::Missing(FORWARDED_FOR)));
    }
}
