//! Validates the head of an HTTP/1.1 request byte by byte: every parser must read it the same way and find the same end of
//! the message.
//!
//! Must not know: sockets, time, what a path or a field means beyond framing. Ambiguous heads are refused before any parser
//! sees them, because Pingora's parser is lenient, and backends even more so.
//!
//! *Invariant:* a head that passes is `METHOD SP target SP HTTP/1.x CRLF *(name ":" value CRLF) CRLF`, with at most one of
//! a valid `Content-Length` and `Transfer-Encoding: chunked`, and names at most one host.

use super::fields::FieldLine;
use super::path::{BadPath, behind_authority, escape_loose, is_loose};

/// Longest method, in bytes.
pub const METHOD_MAX: usize = 32;
/// Most digits of a `Content-Length`: they always fit 63 bits.
const LENGTH_DIGITS_MAX: usize = 18;
/// Longest `Host`, in bytes: a name of 253, a colon and a port, or an address in brackets.
const HOST_MAX: usize = 262;
/// Most digits of a port.
const PORT_DIGITS_MAX: usize = 5;
/// Most names in all `Connection` fields together: Pingora reads no more.
const CONNECTION_NAMES_MAX: usize = 9;
/// Longest request target that the URI type can hold, in bytes.
pub const TARGET_MAX: usize = u16::MAX as usize - 1;

/// Most bytes of the path of a refused head that are logged.
const PATH_SHOWN: usize = 512;

/// A valid head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sound {
    /// Where the message ends.
    pub framing: Framing,
    /// Whether the target contains bytes that must be escaped before it is forwarded.
    pub is_loose: bool,
}

/// Where a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// With its head.
    NoBody,
    /// After this many bytes of body.
    Length(u64),
    /// With the last chunk.
    Chunked,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHead {
    /// The request line or a field is not valid HTTP/1.1.
    Syntax,
    /// The length of the body is given twice, wrongly, or in two ways.
    Framing,
    /// A transfer coding other than `chunked`.
    Coding,
    /// `CONNECT` asks for a tunnel.
    Connect,
    /// Not exactly one valid `Host`, or it differs from the target.
    Host,
    /// `Connection` names a field that it must not name, no field, or too many.
    Connection,
    /// The request target.
    Target(BadPath),
    /// More fields than allowed.
    Fields,
}

/// The fields that matter here.
#[derive(Default)]
struct HeadFacts<'h> {
    length: Option<u64>,
    chunked: bool,
    host: Option<&'h [u8]>,
    /// Number of names in `Connection`.
    nominated: usize,
}

/// Where the head at the start of `bytes` ends, if it is complete. `searched` bytes were examined before.
pub fn find_end(bytes: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    memchr::memmem::find(bytes.get(from..)?, b"\r\n\r\n").map(|at| from + at + 4)
}

/// Whether an incomplete head can no longer become valid, so that waiting for the rest is useless. `searched` bytes were
/// examined before.
pub fn is_malformed_prefix(bytes: &[u8], searched: usize) -> bool {
    let begins_wrong = bytes.first().is_some_and(|first| !is_token(*first));
    let bare = |at: usize| at == 0 || bytes[at - 1] != b'\r';
    begins_wrong
        || memchr::memchr_iter(b'\n', bytes.get(searched..).unwrap_or_default()).any(|at| bare(searched + at))
}

/// `bytes`, which begin with a valid head with a loose target, with the target escaped.
pub fn escaped(bytes: &[u8]) -> Option<Vec<u8>> {
    let from = memchr::memchr(b' ', bytes)? + 1;
    let to = from + memchr::memchr(b' ', &bytes[from..])?;
    let target = escape_loose(&bytes[from..to])?;
    Some([&bytes[..from], &target, &bytes[to..]].concat())
}

/// What can be read from a refused head, for the answer and the log. Empty: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartialHead<'h> {
    /// The method.
    pub method: &'h str,
    /// The path as sent, without the query, up to the first byte that no path may contain.
    pub path: &'h str,
    /// The value of `Accept-Language`.
    pub languages: &'h str,
}

/// Reads a head that may be malformed or incomplete.
pub fn read_partial(bytes: &[u8]) -> PartialHead<'_> {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let mut parts = line.splitn(3, |b| *b == b' ');
    let method = parts.next().filter(|m| m.len() <= METHOD_MAX && m.iter().all(|b| is_token(*b)));
    let (Some(method), Some(target)) = (method, parts.next()) else { return PartialHead::default() };
    let origin = behind_authority(target).map_or(target, |(_, origin)| origin);
    let path = &origin[..origin.iter().take_while(|b| has(**b, PATH)).count().min(PATH_SHOWN)];
    let whole = find_end(bytes, 0).map_or(&[][..], |end| &bytes[..end]);
    let languages = whole.split(|b| *b == b'\n').skip(1).find_map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        line[..colon].eq_ignore_ascii_case(b"accept-language").then(|| line[colon + 1..].trim_ascii())
    });
    PartialHead {
        method: text(method),
        path: if path.starts_with(b"/") { text(path) } else { "" },
        languages: text(languages.unwrap_or_default()),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The parts of a head that [`check`] has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead<'h> {
    /// The method.
    pub method: &'h [u8],
    /// The target.
    pub target: &'h [u8],
    /// Whether the version is 1.1; otherwise it is 1.0.
    pub is_11: bool,
    /// From the first field line on.
    lines: &'h [u8],
}

/// Splits a head that [`check`] has accepted; none if it cannot have been.
pub fn split_head(head: &[u8]) -> Option<RequestHead<'_>> {
    let (line, lines) = split_line(head).ok()?;
    let mut parts = line.split(|b| *b == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    Some(RequestHead { method, target, is_11: version == b"HTTP/1.1", lines })
}

impl<'h> RequestHead<'h> {
    /// The fields.
    pub fn fields(&self) -> impl Iterator<Item = FieldLine<'h>> + use<'h> {
        let mut rest = self.lines;
        std::iter::from_fn(move || {
            let (line, behind) = split_line(rest).ok()?;
            // The empty line has no colon.
            let colon = memchr::memchr(b':', line)?;
            rest = behind;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

/// Converts the field names of an accepted head to lower case, as in HTTP/2. The head has passed [`check`].
pub fn lower_names(head: &mut [u8]) {
    if let Some(end) = memchr::memchr(b'\n', head) {
        field_lines(&mut head[end + 1..]).for_each(drop);
    }
}

/// Validates a complete head, its empty line included, of at most `fields_max` fields.
pub fn check(head: &[u8], fields_max: usize) -> Result<Sound, BadHead> {
    let (line, mut rest) = split_line(head)?;
    let (target, version_10, is_loose) = request_line(line)?;
    let mut seen = HeadFacts::default();
    let mut fields = 0;
    loop {
        let (line, behind) = split_line(rest)?;
        if line.is_empty() {
            // The empty line ends the head, and nothing may follow it.
            if !behind.is_empty() {
                return Err(BadHead::Syntax);
            }
            return Ok(Sound { framing: conclude(&seen, target, version_10)?, is_loose });
        }
        fields += 1;
        if fields > fields_max {
            return Err(BadHead::Fields);
        }
        field(line, &mut seen)?;
        rest = behind;
    }
}

/// The first line, without its CRLF, and the rest.
pub(super) fn split_line(bytes: &[u8]) -> Result<(&[u8], &[u8]), BadHead> {
    let end = memchr::memchr(b'\n', bytes).ok_or(BadHead::Syntax)?;
    let line = bytes[..end].strip_suffix(b"\r").ok_or(BadHead::Syntax)?;
    Ok((line, &bytes[end + 1..]))
}

/// The target, whether the version is 1.0, and whether the target is loose.
fn request_line(line: &[u8]) -> Result<(&[u8], bool, bool), BadHead> {
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
    let is_loose = check_target(target)?;
    Ok((target, version_10, is_loose))
}

/// Refuses bytes that no target may contain. This concerns where the target ends and what parsers reject; the meaning of
/// the path is checked later. Returns whether something has to be escaped.
fn check_target(target: &[u8]) -> Result<bool, BadHead> {
    if target.is_empty() || target.contains(&b' ') {
        return Err(BadHead::Syntax);
    }
    // A target that is not a path begins with an authority, which is compared with the host.
    let origin = if target[0] == b'/' {
        target
    } else {
        behind_authority(target).map_or(target, |(_, origin)| origin)
    };
    let path = origin.iter().take_while(|b| has(**b, PATH)).count();
    match origin.get(path) {
        None => Ok(false),
        Some(b'?') if origin[path..].iter().all(|b| has(*b, QUERY)) => Ok(false),
        Some(_) => check_loose(origin),
    }
}

/// The same for a target with bytes that URIs do not allow: it passes if all of these can be escaped.
fn check_loose(origin: &[u8]) -> Result<bool, BadHead> {
    let not_utf8 = std::str::from_utf8(origin).map_or_else(|bad| bad.valid_up_to(), |_| origin.len());
    let mut in_query = false;
    for (at, byte) in origin.iter().enumerate() {
        in_query |= *byte == b'?';
        let is_right = has(*byte, if in_query { QUERY } else { PATH });
        if at == not_utf8 || !(is_right || is_loose(*byte, in_query)) {
            let bad = if in_query { BadPath::QueryCharacter } else { BadPath::Character };
            return Err(BadHead::Target(bad(*byte)));
        }
    }
    Ok(true)
}

/// One field line.
fn field<'h>(line: &'h [u8], seen: &mut HeadFacts<'h>) -> Result<(), BadHead> {
    let colon = is_field_line(line).ok_or(BadHead::Syntax)?;
    let name = &line[..colon];
    let value = || line[colon + 1..].trim_ascii();
    // Only names of these lengths concern framing, so most lines need no comparison.
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
        10 if name.eq_ignore_ascii_case(b"connection") => {
            seen.nominated += connection(value()).ok_or(BadHead::Connection)?;
            if seen.nominated > CONNECTION_NAMES_MAX {
                return Err(BadHead::Connection);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The position of the colon of a field line; none if it is no field line.
pub(super) fn is_field_line(line: &[u8]) -> Option<usize> {
    let colon = line.iter().position(|b| !is_token(*b)).unwrap_or(0);
    // A line that begins with a space would be folded into the previous one; it has no name and is refused here.
    (colon > 0 && line[colon] == b':' && is_value(&line[colon + 1..])).then_some(colon)
}

/// The fields of an accepted head, from its first field line on. Names become lower case.
pub(super) fn field_lines(lines: &mut [u8]) -> impl Iterator<Item = FieldLine<'_>> + use<'_> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\n', rest)?;
        let (line, behind) = std::mem::take(&mut rest).split_at_mut(end + 1);
        rest = behind;
        let colon = memchr::memchr(b':', line)?;
        let (name, value) = line.split_at_mut(colon);
        name.make_ascii_lowercase();
        Some((&*name, value[1..].trim_ascii()))
    })
}

/// The number of names in a `Connection` field; none if it contains something else, or the name of a field that identifies
/// host or client.
fn connection(value: &[u8]) -> Option<usize> {
    let own = |name: &[u8]| {
        [&b"host"[..], b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"]
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
    };
    let mut names = value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    names.try_fold(0, |count, name| {
        let is_name = name.iter().all(|b| is_token(*b)) && !own(name);
        is_name.then_some(count + 1)
    })
}

fn conclude(seen: &HeadFacts<'_>, target: &[u8], version_10: bool) -> Result<Framing, BadHead> {
    if seen.host.is_some_and(|host| !is_host(host)) || (seen.host.is_none() && !version_10) {
        return Err(BadHead::Host);
    }
    if target[0] != b'/' {
        let (authority, _) = behind_authority(target).ok_or(BadHead::Target(BadPath::NotAbsolute))?;
        // Without a `Host`, as in HTTP/1.0, nothing would tell the backend which host is meant.
        if seen.host != Some(authority) {
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

/// A length as RFC 9110 defines it, in its only spelling: no sign, no list, no leading zero.
pub fn content_length(text: &[u8]) -> Option<u64> {
    let sound = matches!(text, [b'0'] | [b'1'..=b'9', ..])
        && text.len() <= LENGTH_DIGITS_MAX
        && text.iter().all(u8::is_ascii_digit);
    if !sound {
        return None;
    }
    Some(text.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// A host, optionally with a port; no user, no path, nothing escaped.
pub fn is_host(text: &[u8]) -> bool {
    let in_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~');
    let in_address = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b':');
    let (host, behind) = match text.strip_prefix(b"[") {
        None => text.split_at(text.iter().take_while(|b| in_name(b)).count()),
        Some(inside) => {
            let address = inside.iter().take_while(|b| in_address(b)).count();
            let Some(behind) = inside[address..].strip_prefix(b"]") else { return false };
            (&inside[..address], behind)
        }
    };
    let port = behind.strip_prefix(b":").unwrap_or(behind);
    let is_port = port.len() <= PORT_DIGITS_MAX && port.iter().all(u8::is_ascii_digit);
    !host.is_empty() && text.len() <= HOST_MAX && is_port && (behind.is_empty() || behind[0] == b':')
}

/// Whether a field value contains no control character except tabs. Eight bytes at a time, because most of a head is
/// values.
pub(super) fn is_value(text: &[u8]) -> bool {
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
    // A tab makes the fast check fail although it is allowed.
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
/// RFC 3986, 3.3: the characters of a path, including slashes and escapes.
const PATH: u8 = 2;
/// Visible ASCII without `#` (a fragment is not part of a request) and without what URIs do not allow.
const QUERY: u8 = 4;
/// The classes of each byte.
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
mod tests;
