//! The head of an HTTP/1.1 request, byte by byte: whether it has exactly one reading, and where its message ends.
//!
//! Must not know: sockets, time, what a path or a field means beyond framing. What two readers could take differently is
//! refused before any parser sees it: the parser behind this is lenient, and backends are more so.
//!
//! *Invariant:* a head that passes is `METHOD SP target SP HTTP/1.x CRLF *(name ":" value CRLF) CRLF`, with at most one
//! of a sound `Content-Length` and `Transfer-Encoding: chunked`, and names at most one host.

use super::fields::Line;
use super::path::{BadPath, behind_authority};

/// Longest method, in bytes.
const METHOD_MAX: usize = 32;
/// Most digits of a `Content-Length`: what fits 63 bits whatever the digits are.
const LENGTH_DIGITS_MAX: usize = 18;
/// Longest `Host`, in bytes: a name of 253, a colon and a port, with room for an address in brackets.
const HOST_MAX: usize = 262;

/// Most bytes of a path that are told of a head that is refused.
const PATH_SHOWN: usize = 512;

/// Where the message ends that a head begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// With the head.
    NoBody,
    /// After this many bytes of body.
    Length(u64),
    /// With the last chunk.
    Chunked,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHead {
    /// The request line or a field is not what HTTP/1.1 writes.
    Syntax,
    /// The body's length is told twice, wrongly, or in two ways.
    Framing,
    /// A transfer coding other than `chunked`.
    Coding,
    /// A tunnel is asked for.
    Connect,
    /// Not exactly one sound `Host`, or another one than the target names.
    Host,
    /// The request target.
    Target(BadPath),
    /// More fields than allowed.
    Fields,
}

/// What the fields say that matters here.
#[derive(Default)]
struct Seen<'h> {
    length: Option<u64>,
    chunked: bool,
    host: Option<&'h [u8]>,
}

/// Where the head at the front of `bytes` ends, if it is there whole. `searched` bytes were looked at before.
pub fn find_end(bytes: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    memchr::memmem::find(bytes.get(from..)?, b"\r\n\r\n").map(|at| from + at + 4)
}

/// Whether bytes of a head that is not whole yet can never become a sound one, so that waiting is in vain. `searched`
/// bytes were looked at before.
pub fn is_hopeless(bytes: &[u8], searched: usize) -> bool {
    let begins_wrong = bytes.first().is_some_and(|first| !is_token(*first));
    let bare = |at: usize| at == 0 || bytes[at - 1] != b'\r';
    begins_wrong
        || memchr::memchr_iter(b'\n', bytes.get(searched..).unwrap_or_default()).any(|at| bare(searched + at))
}

/// What can be made out of a head that is refused, for the refusal's wording and for the log. Empty: cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glimpse<'h> {
    /// The method.
    pub method: &'h str,
    /// The path as it was written, without the query and up to the first byte that no path has.
    pub path: &'h str,
    /// Which languages the client prefers.
    pub languages: &'h str,
}

/// Looks at a head that may be anything, whole or not.
pub fn glimpse(bytes: &[u8]) -> Glimpse<'_> {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let mut parts = line.splitn(3, |b| *b == b' ');
    let method = parts.next().filter(|m| m.len() <= METHOD_MAX && m.iter().all(|b| is_token(*b)));
    let (Some(method), Some(target)) = (method, parts.next()) else { return Glimpse::default() };
    let origin = behind_authority(target).map_or(target, |(_, origin)| origin);
    let path = &origin[..origin.iter().take_while(|b| has(**b, PATH)).count().min(PATH_SHOWN)];
    let whole = find_end(bytes, 0).map_or(&[][..], |end| &bytes[..end]);
    let languages = whole.split(|b| *b == b'\n').skip(1).find_map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        line[..colon].eq_ignore_ascii_case(b"accept-language").then(|| line[colon + 1..].trim_ascii())
    });
    Glimpse {
        method: text(method),
        path: if path.starts_with(b"/") { text(path) } else { "" },
        languages: text(languages.unwrap_or_default()),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// A head that [`check`] has passed, in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening<'h> {
    /// The method.
    pub method: &'h [u8],
    /// The target.
    pub target: &'h [u8],
    /// Whether it is of version 1.1; of 1.0 otherwise.
    pub is_11: bool,
    /// From the first field on.
    lines: &'h [u8],
}

/// Takes a head apart that [`check`] has passed; none where it cannot have.
pub fn opening(head: &[u8]) -> Option<Opening<'_>> {
    let (line, lines) = split_line(head).ok()?;
    let mut parts = line.split(|b| *b == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Opening { method, target, is_11: version == b"HTTP/1.1", lines })
}

impl<'h> Opening<'h> {
    /// The fields.
    pub fn fields(&self) -> impl Iterator<Item = Line<'h>> + use<'h> {
        let mut rest = self.lines;
        std::iter::from_fn(move || {
            let (line, behind) = split_line(rest).ok()?;
            // The empty line has none.
            let colon = line.iter().position(|b| *b == b':')?;
            rest = behind;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

/// Reads a whole head, its empty line included, of at most `fields_max` fields.
pub fn check(head: &[u8], fields_max: usize) -> Result<Framing, BadHead> {
    let (line, mut rest) = split_line(head)?;
    let (target, version_10) = request_line(line)?;
    let mut seen = Seen::default();
    let mut fields = 0;
    loop {
        let (line, behind) = split_line(rest)?;
        if line.is_empty() {
            // The empty line ends the head, and nothing is behind it.
            return if behind.is_empty() {
                conclude(&seen, target, version_10)
            } else {
                Err(BadHead::Syntax)
            };
        }
        fields += 1;
        if fields > fields_max {
            return Err(BadHead::Fields);
        }
        field(line, &mut seen)?;
        rest = behind;
    }
}

/// The first line, without its CRLF, and what is behind it.
fn split_line(bytes: &[u8]) -> Result<(&[u8], &[u8]), BadHead> {
    let end = memchr::memchr(b'\n', bytes).ok_or(BadHead::Syntax)?;
    let line = bytes[..end].strip_suffix(b"\r").ok_or(BadHead::Syntax)?;
    Ok((line, &bytes[end + 1..]))
}

/// The target, and whether the version is 1.0.
fn request_line(line: &[u8]) -> Result<(&[u8], bool), BadHead> {
    let method = line.iter().take_while(|b| is_token(**b)).count();
    if method == 0 || method > METHOD_MAX || line.get(method) != Some(&b' ') {
        return Err(BadHead::Syntax);
    }
    if &line[..method] == b"CONNECT" {
        return Err(BadHead::Connect);
    }
    let rest = &line[method + 1..];
    let version_10 = match rest.len().checked_sub(9).map(|at| &rest[at..]) {
        Some(b" HTTP/1.1") => false,
        Some(b" HTTP/1.0") => true,
        _ => return Err(BadHead::Syntax),
    };
    let target = &rest[..rest.len() - 9];
    check_target(target)?;
    Ok((target, version_10))
}

/// What no target may have. What a path means comes later; this is about where a target ends, and what no parser takes.
fn check_target(target: &[u8]) -> Result<(), BadHead> {
    if target.is_empty() || target.contains(&b' ') {
        return Err(BadHead::Syntax);
    }
    // Another form than a path has an authority in front, which is looked at together with the host.
    let origin = if target[0] == b'/' {
        target
    } else {
        behind_authority(target).map_or(target, |(_, origin)| origin)
    };
    let path = origin.iter().take_while(|b| has(**b, PATH)).count();
    match origin.get(path) {
        None => Ok(()),
        Some(b'?') if origin[path..].iter().all(|b| has(*b, QUERY)) => Ok(()),
        Some(b'?') => Err(BadHead::Target(BadPath::QueryCharacter)),
        Some(_) => Err(BadHead::Target(BadPath::Character)),
    }
}

/// One field line.
fn field<'h>(line: &'h [u8], seen: &mut Seen<'h>) -> Result<(), BadHead> {
    let colon = line.iter().position(|b| !is_token(*b)).unwrap_or(0);
    // A line that begins with a space would fold into the one before it: no name, so it ends here as well.
    if colon == 0 || line[colon] != b':' || !is_value(&line[colon + 1..]) {
        return Err(BadHead::Syntax);
    }
    let name = &line[..colon];
    let value = || line[colon + 1..].trim_ascii();
    // Only names of these lengths concern framing, so most lines are not compared with anything.
    match colon {
        4 if name.eq_ignore_ascii_case(b"host") => {
            let second = seen.host.replace(value()).is_some();
            return if second { Err(BadHead::Host) } else { Ok(()) };
        }
        14 if name.eq_ignore_ascii_case(b"content-length") => {
            let length = content_length(value()).ok_or(BadHead::Framing)?;
            if seen.length.replace(length).is_some() {
                return Err(BadHead::Framing);
            }
        }
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
            if !value().eq_ignore_ascii_case(b"chunked") {
                return Err(BadHead::Coding);
            }
            if seen.chunked {
                return Err(BadHead::Framing);
            }
            seen.chunked = true;
        }
        _ => {}
    }
    Ok(())
}

fn conclude(seen: &Seen<'_>, target: &[u8], version_10: bool) -> Result<Framing, BadHead> {
    if seen.host.is_some_and(|host| !is_host(host)) || (seen.host.is_none() && !version_10) {
        return Err(BadHead::Host);
    }
    if target[0] != b'/' {
        let (authority, _) = behind_authority(target).ok_or(BadHead::Target(BadPath::NotAbsolute))?;
        if seen.host.is_some_and(|host| host != authority) {
            return Err(BadHead::Host);
        }
    }
    match (seen.length, seen.chunked) {
        (Some(_), true) => Err(BadHead::Framing),
        (None, true) if version_10 => Err(BadHead::Framing),
        (None, true) => Ok(Framing::Chunked),
        (None | Some(0), false) => Ok(Framing::NoBody),
        (Some(length), false) => Ok(Framing::Length(length)),
    }
}

/// A length as RFC 9110 writes it, and in only one way: no sign, no list, no leading zero.
pub fn content_length(text: &[u8]) -> Option<u64> {
    let sound = matches!(text, [b'0'] | [b'1'..=b'9', ..])
        && text.len() <= LENGTH_DIGITS_MAX
        && text.iter().all(u8::is_ascii_digit);
    if !sound {
        return None;
    }
    Some(text.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// A host and perhaps a port; no user, no path, nothing escaped.
pub fn is_host(text: &[u8]) -> bool {
    let fits =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'~');
    !text.is_empty() && text.len() <= HOST_MAX && text.iter().all(fits)
}

/// Whether a field's value has no control character but tabs. Eight bytes at a time: most of a head is values.
fn is_value(text: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let (words, tail) = text.as_chunks::<8>();
    let suspicious = words.iter().any(|word| {
        let bytes = u64::from_ne_bytes(*word);
        let below_space = bytes.wrapping_sub(ONES * 0x20) & !bytes & HIGH;
        let deleted = bytes ^ (ONES * 0x7f);
        let is_deleted = deleted.wrapping_sub(ONES) & !deleted & HIGH;
        below_space | is_deleted != 0
    });
    let plain = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
    // A tab makes a word suspicious without being wrong.
    tail.iter().all(plain) && (!suspicious || text.iter().all(plain))
}

fn is_token(byte: u8) -> bool {
    has(byte, TOKEN)
}

const fn has(byte: u8, class: u8) -> bool {
    TABLE[byte as usize] & class != 0
}

/// RFC 9110, 5.6.2.
const TOKEN: u8 = 1;
/// RFC 3986, 3.3: what a path is written with, its slashes and escapes included.
const PATH: u8 = 2;
/// Visible ASCII without `#` (a fragment is no part of a request) and without what no URI may have.
const QUERY: u8 = 4;
/// What each byte may be part of.
const TABLE: [u8; 256] = table();

const fn table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        let mark = matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        if mark || byte.is_ascii_alphanumeric() {
            table[byte as usize] |= TOKEN;
        }
        let in_query = byte.is_ascii_graphic() && !matches!(byte, b'#' | b'"' | b'<' | b'>');
        if in_query {
            table[byte as usize] |= QUERY;
        }
        if in_query && !matches!(byte, b'?' | b'[' | b'\\' | b']' | b'^' | b'`' | b'{' | b'|' | b'}') {
            table[byte as usize] |= PATH;
        }
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(head: &str) -> Result<Framing, BadHead> {
        check(head.as_bytes(), 100)
    }

    #[test]
    fn what_can_be_told_of_a_refused_head() {
        for (head, method, path, languages) in [
            (
                "GET /a/../b?key=secret HTTP/1.1\r\nAccept-Language: zh-CN, en;q=0.5\r\n\r\n",
                "GET",
                "/a/../b",
                "zh-CN, en;q=0.5",
            ),
            ("GET /a HTTP/1.1\r\nhost: h\r\nACCEPT-LANGUAGE:zh\r\nbad line\r\n\r\n", "GET", "/a", "zh"),
            ("GET http://h/a?b HTTP/1.1\r\n\r\n", "GET", "/a", ""),
            ("GET http://user:pass@h/a HTTP/1.1\r\n\r\n", "GET", "", ""),
            ("GET /a\u{1b}[31m HTTP/1.1\r\n\r\n", "GET", "/a", ""),
            ("sk-secret\r\n\r\n", "", "", ""),
            ("CONNECT h:443 HTTP/1.1\r\n\r\n", "CONNECT", "", ""),
            // Not whole: more may come of any field.
            ("GET /a HTTP/1.1\r\nAccept-Language: zh\r\n", "GET", "/a", ""),
            ("\u{16}\u{3}\u{1} /x", "", "", ""),
            ("", "", "", ""),
        ] {
            assert_eq!(glimpse(head.as_bytes()), Glimpse { method, path, languages }, "{head:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9_000));
        assert_eq!(glimpse(long.as_bytes()).path.len(), PATH_SHOWN);
    }

    #[test]
    fn one_reading_or_none() {
        let good = "GET /a?b=c HTTP/1.1\r\nHost: h:80\r\nX-A:\t a b \u{e9}\r\nEmpty:\r\n\r\n";
        assert_eq!(checked(good), Ok(Framing::NoBody));
        assert_eq!(checked("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::NoBody));
        assert_eq!(
            checked("POST / HTTP/1.1\r\nhost: h\r\nCONTENT-LENGTH: 12\r\n\r\n"),
            Ok(Framing::Length(12))
        );
        let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert_eq!(checked(chunked), Ok(Framing::Chunked));
        assert_eq!(checked("GET http://h/x HTTP/1.1\r\nHost: h\r\n\r\n"), Ok(Framing::NoBody));
    }

    #[test]
    fn a_sound_head_comes_apart() {
        let head = b"GET /a?b HTTP/1.1\r\nHost: h\r\nA:\t b: c \r\nEmpty:\r\n\r\nx: y\r\n";
        let whole = opening(head).expect("a head");
        assert_eq!((whole.method, whole.target, whole.is_11), (&b"GET"[..], &b"/a?b"[..], true));
        let fields: Vec<_> = whole.fields().collect();
        assert_eq!(fields, [(&b"Host"[..], &b"h"[..]), (b"A", b"b: c"), (b"Empty", b"")]);
        let old = opening(b"PUT / HTTP/1.0\r\n\r\n").map(|o| (o.method, o.is_11, o.fields().count()));
        assert_eq!(old, Some((&b"PUT"[..], false, 0)));
        assert_eq!(opening(b"GET"), None);
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let with = |field: &str| checked(&format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"));
        for (field, expected) in [
            ("Content-Length: 1\r\nContent-Length: 1", BadHead::Framing),
            ("Content-Length: 01", BadHead::Framing),
            ("Content-Length: +1", BadHead::Framing),
            ("Content-Length: 1, 1", BadHead::Framing),
            ("Content-Length:", BadHead::Framing),
            ("Content-Length: 9999999999999999999", BadHead::Framing),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked", BadHead::Framing),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", BadHead::Framing),
            ("Transfer-Encoding: gzip, chunked", BadHead::Coding),
            ("Transfer-Encoding:", BadHead::Coding),
            ("Host: h", BadHead::Host),
            ("A : b", BadHead::Syntax),
            (" A: b", BadHead::Syntax),
            ("A: b\r\n c", BadHead::Syntax),
            ("A: b\nC: d", BadHead::Syntax),
            ("A: b\rC: d", BadHead::Syntax),
            ("A: b\0", BadHead::Syntax),
            ("A: 0123456\u{7f}", BadHead::Syntax),
            ("A", BadHead::Syntax),
            (": b", BadHead::Syntax),
            ("A\u{e9}: b", BadHead::Syntax),
        ] {
            assert_eq!(with(field), Err(expected), "{field:?}");
        }
        assert_eq!(checked("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(BadHead::Framing));
        assert_eq!(checked("GET / HTTP/1.1\r\n\r\n"), Err(BadHead::Host));
        assert_eq!(check(b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n", 1), Err(BadHead::Fields));
    }

    #[test]
    fn the_request_line_has_three_parts_and_single_spaces() {
        for line in [
            "",
            "GET",
            "GET /",
            "GET / ",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET / HTTP/1.2",
            "GET / HTTP/2.0",
            "GET / HTTP/0.9",
            "GET / http/1.1",
            "GET\t/ HTTP/1.1",
            "G(T / HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET / HTTP/1.10",
        ] {
            assert_eq!(checked(&format!("{line}\r\nHost: h\r\n\r\n")), Err(BadHead::Syntax), "{line:?}");
        }
        for (target, bad) in [
            ("/#x", BadPath::Character),
            ("/?#x", BadPath::QueryCharacter),
            ("/<", BadPath::Character),
            ("/?\"", BadPath::QueryCharacter),
            ("/\u{e9}", BadPath::Character),
            ("*", BadPath::NotAbsolute),
            ("/^", BadPath::Character),
            ("http://h/`", BadPath::Character),
            ("h:80", BadPath::NotAbsolute),
            ("ftp://h/", BadPath::NotAbsolute),
            ("http://u@h/", BadPath::NotAbsolute),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(checked(&head), Err(BadHead::Target(bad)), "{target}");
        }
    }

    #[test]
    fn every_byte_in_every_place_of_a_value() {
        for byte in 0..=255_u8 {
            let wrong = byte == 0x7f || (byte < b' ' && byte != b'\t');
            for at in 0..20 {
                let mut value = [b'a'; 20];
                value[at] = byte;
                assert_eq!(is_value(&value), !wrong, "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn the_end_is_found_however_the_bytes_come() {
        let head = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nbody\r\n\r\n";
        let end = head.len() - 8;
        for first in 0..head.len() {
            let found = find_end(&head[..first], 0).or_else(|| find_end(head, first));
            assert_eq!(found, Some(end), "{first}");
        }
        for hopeless in [b"GET / HTTP/1.1\n".as_slice(), b"\r\nGET", b"\nGET", b"\x16\x03\x01"] {
            assert!(is_hopeless(hopeless, 0), "{hopeless:?}");
        }
        let hopeful = b"GET / HTTP/1.1\r\nHost: h\r";
        assert!((0..hopeful.len()).all(|searched| !is_hopeless(hopeful, searched)));
    }
}
