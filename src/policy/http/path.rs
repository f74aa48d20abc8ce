//! Canonical paths: one spelling for each request target, which routes match and backends get.
//!
//! Must not know: routes, hosts, HTTP. An ambiguous spelling is refused, not repaired.
//!
//! *Invariant:* a [`CanonicalPath`] is its own canonical path, so the path that was authorized is the path that is
//! forwarded.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

/// A canonical path: RFC 3986 characters only, no unnecessary escapes, upper-case hexadecimal, no dot segments, no empty
/// segment before the last. An escaped slash stays in its segment; the route decides whether it is allowed. Made by
/// [`canonical`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

/// Why a path or query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadPath {
    /// It does not begin with `/`.
    NotAbsolute,
    /// This byte is not allowed in a path.
    Character(u8),
    /// A `%` without two hexadecimal digits.
    Escape,
    /// The escape of this byte: a slash, a backslash or a control character.
    ForbiddenEscape(u8),
    /// An escape that decodes to another escape.
    DoubleEncoding,
    /// A `.` or `..` segment, however spelled.
    DotSegment,
    /// Two slashes in a row.
    EmptySegment,
    /// This byte is not allowed in a query.
    QueryCharacter(u8),
}

/// The class of a byte for the scan of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ByteClass {
    Plain,
    Slash,
    Percent,
    Outside,
}

/// Whether a path is canonical already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PathSpelling {
    Canonical,
    Loose,
}

/// The class of every byte. Plain bytes are RFC 3986's `pchar` without the escapes.
const CLASSES: [ByteClass; 256] = classes();

/// The canonical spelling of `raw`, the path part of a request target (no query).
///
/// Borrows `raw` if it is canonical already: the usual path costs one scan and no allocation.
pub fn canonical(raw: &[u8]) -> Result<CanonicalPath<'_>, BadPath> {
    if scan(raw)? == PathSpelling::Canonical {
        let text = std::str::from_utf8(raw).map_err(|bad| BadPath::Character(raw[bad.valid_up_to()]))?;
        return Ok(CanonicalPath(Cow::Borrowed(text)));
    }
    let text = respell(raw);
    // Decoding can produce a dot segment or a double encoding that the first scan could not see.
    scan(text.as_bytes())?;
    Ok(CanonicalPath(Cow::Owned(text)))
}

/// The path and the query of a request target (RFC 9112, 3.2), in origin form or after the authority of an absolute form.
/// Other forms (`*`, an authority, a path without its slash) and dubious authorities are refused.
pub fn split_target(raw: &[u8]) -> Result<(&[u8], &[u8]), BadPath> {
    let origin =
        if raw.first() == Some(&b'/') { raw } else { behind_authority(raw).ok_or(BadPath::NotAbsolute)?.1 };
    match origin.iter().position(|b| *b == b'?') {
        Some(at) => Ok((&origin[..at], &origin[at + 1..])),
        None => Ok((origin, b"")),
    }
}

/// The authority of an absolute form, and the origin form after it.
pub(in crate::policy) fn behind_authority(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| raw.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme)))?;
    let rest = &raw[scheme.len()..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at(end);
    // No user information, no escapes: a host, optionally with a port.
    let host = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if authority.is_empty() || !authority.iter().all(host) || origin.first() == Some(&b'?') {
        return None;
    }
    Some((authority, if origin.is_empty() { b"/" } else { origin }))
}

/// Checks that `raw`, the query part of a request target (without the `?`), may be forwarded unchanged.
///
/// A query is never rewritten, because only the backend knows its meaning. Only bytes that could change where the request
/// ends are refused: control characters, space, non-ASCII and `#`.
pub fn check_query(raw: &[u8]) -> Result<(), BadPath> {
    match raw.iter().find(|b| !b.is_ascii_graphic() || **b == b'#') {
        None => Ok(()),
        Some(byte) => Err(BadPath::QueryCharacter(*byte)),
    }
}

/// Whether a canonical path contains an escaped slash.
pub fn has_encoded_slash(path: &str) -> bool {
    memchr::memmem::find(path.as_bytes(), b"%2F").is_some()
}

/// Whether clients use this byte unescaped in paths, or in queries, although URIs require an escape, and its meaning is
/// still clear: visible ASCII without a meaning in URIs, and valid UTF-8. Not `\`, which some parsers treat as a slash, and
/// not `#`, which begins a fragment.
pub const fn is_loose(byte: u8, in_query: bool) -> bool {
    match byte {
        b'"' | b'<' | b'>' | 0x80.. => true,
        b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => !in_query,
        _ => false,
    }
}

/// A request target with its loose bytes escaped (see [`is_loose`]); none if it has none, or is not UTF-8.
pub fn escape_loose(target: &[u8]) -> Option<Vec<u8>> {
    // The brackets of an authority stay as they are.
    let origin = if target.first() == Some(&b'/') { target } else { behind_authority(target)?.1 };
    let path = origin.iter().position(|b| *b == b'?').unwrap_or(origin.len());
    let first = (0..origin.len()).find(|at| is_loose(origin[*at], *at > path))?;
    std::str::from_utf8(target).ok()?;
    let mut escaped = Vec::with_capacity(target.len() + 16);
    escaped.extend_from_slice(&target[..target.len() - origin.len() + first]);
    for (at, byte) in origin.iter().enumerate().skip(first) {
        if is_loose(*byte, at > path) {
            escaped.extend_from_slice(&[b'%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        } else {
            escaped.push(*byte);
        }
    }
    Some(escaped)
}

/// A byte of a path or query, for messages.
pub fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("`{}`", char::from(byte)) } else { format!("0x{byte:02X}") }
}

const fn hex_digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'A' + value - 10 }
}

/// The decoded text of one path segment. None if an escape is incomplete or the bytes are not UTF-8.
pub fn decode_segment(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'%' {
            bytes.push(escaped_byte(behind)?);
            rest = behind.get(2..)?;
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// Refuses ambiguous paths, and returns whether the rest is canonical.
fn scan(path: &[u8]) -> Result<PathSpelling, BadPath> {
    if path.first() != Some(&b'/') {
        return Err(BadPath::NotAbsolute);
    }
    let mut spelling = PathSpelling::Canonical;
    // Where the segment begins, with and without treating an escaped slash as a slash.
    let (mut whole, mut segment) = (1, 1);
    let mut at = 1;
    while let Some(byte) = path.get(at) {
        match CLASSES[usize::from(*byte)] {
            ByteClass::Plain => at += 1,
            ByteClass::Slash if at == segment => return Err(BadPath::EmptySegment),
            ByteClass::Slash => {
                refuse_dots(&path[segment..at])?;
                at += 1;
                (whole, segment) = (at, at);
            }
            ByteClass::Percent => {
                if check_escape(&path[at + 1..])? == PathSpelling::Loose {
                    spelling = PathSpelling::Loose;
                }
                at += 3;
                if path[at - 2..at].eq_ignore_ascii_case(b"2f") {
                    if whole == at - 3 {
                        return Err(BadPath::EmptySegment);
                    }
                    refuse_dots(&path[segment..at - 3])?;
                    segment = at;
                }
            }
            ByteClass::Outside => return Err(BadPath::Character(*byte)),
        }
    }
    refuse_dots(&path[segment..])?;
    Ok(spelling)
}

/// Refuses `.` and `..`, also with path parameters: some backends remove `;x` before they resolve dots.
fn refuse_dots(segment: &[u8]) -> Result<(), BadPath> {
    let Some(behind_one) = segment.strip_prefix(b".") else { return Ok(()) };
    let behind = behind_one.strip_prefix(b".").unwrap_or(behind_one);
    if behind.is_empty() || behind.starts_with(b";") || behind.starts_with(b"%3B") {
        return Err(BadPath::DotSegment);
    }
    Ok(())
}

/// Checks one escape; `behind` is what follows its `%`.
fn check_escape(behind: &[u8]) -> Result<PathSpelling, BadPath> {
    let byte = escaped_byte(behind).ok_or(BadPath::Escape)?;
    match byte {
        b'\\' => return Err(BadPath::ForbiddenEscape(byte)),
        _ if byte.is_ascii_control() => return Err(BadPath::ForbiddenEscape(byte)),
        b'%' if matches!(escaped_byte(&behind[2..]), Some(b'.' | b'/' | b'\\' | b'%')) => {
            return Err(BadPath::DoubleEncoding);
        }
        _ => {}
    }
    let lower_case = behind[..2].iter().any(u8::is_ascii_lowercase);
    Ok(if lower_case || is_unreserved(byte) { PathSpelling::Loose } else { PathSpelling::Canonical })
}

/// Decodes unnecessary escapes and writes the others in upper case. `path` has passed [`scan`].
fn respell(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        match escaped_byte(&path[at + 1..]).filter(|_| *byte == b'%') {
            None => {
                text.push(char::from(*byte));
                at += 1;
            }
            Some(decoded) => {
                if is_unreserved(decoded) {
                    text.push(char::from(decoded));
                } else {
                    text.extend(path[at..at + 3].iter().map(|b| char::from(b.to_ascii_uppercase())));
                }
                at += 3;
            }
        }
    }
    text
}

/// The byte that the two hexadecimal digits at the start of `digits` encode.
fn escaped_byte(digits: &[u8]) -> Option<u8> {
    let value = |b: u8| char::from(b).to_digit(16);
    let [high, low, ..] = digits else { return None };
    u8::try_from(value(*high)? * 16 + value(*low)?).ok()
}

/// RFC 3986, section 2.3: escaped or not, these mean the same.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

const fn classes() -> [ByteClass; 256] {
    let mut table = [ByteClass::Outside; 256];
    let mut byte = 0_u8;
    // Only ASCII is allowed.
    while byte < 128 {
        table[byte as usize] = match byte {
            b'/' => ByteClass::Slash,
            b'%' => ByteClass::Percent,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => {
                ByteClass::Plain
            }
            _ if is_unreserved(byte) => ByteClass::Plain,
            _ => ByteClass::Outside,
        };
        byte += 1;
    }
    table
}

// === impl CanonicalPath ===

impl CanonicalPath<'_> {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the client's spelling was different, so that its bytes must not be forwarded.
    pub const fn was_respelled(&self) -> bool {
        matches!(self.0, Cow::Owned(_))
    }

    /// The path as an owned text.
    pub fn into_string(self) -> String {
        self.0.into_owned()
    }
}

impl Deref for CanonicalPath<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CanonicalPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl BadPath ===

impl BadPath {
    /// The byte that caused the error, if one did.
    pub const fn offending(self) -> Option<u8> {
        match self {
            Self::Character(byte) | Self::ForbiddenEscape(byte) | Self::QueryCharacter(byte) => Some(byte),
            _ => None,
        }
    }
}

/// The reason, for the client. It contains at most one byte of what the client sent.
impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAbsolute => f.write_str("the path must begin with /"),
            Self::Character(byte) => {
                write!(f, "the path has the character {}, which {}", shown(byte), remedy(byte))
            }
            Self::Escape => f.write_str("the path has a % that is not followed by two hexadecimal digits"),
            Self::ForbiddenEscape(b'/') => {
                f.write_str("the path has an encoded slash (%2F), which its route does not take")
            }
            Self::ForbiddenEscape(byte) => {
                write!(f, "the path has the escape %{byte:02X}, of a backslash or control character")
            }
            Self::DoubleEncoding => f.write_str("the path is percent-encoded twice"),
            Self::DotSegment => f.write_str("the path has a . or .. segment"),
            Self::EmptySegment => f.write_str("the path has two slashes in a row"),
            Self::QueryCharacter(byte) => {
                write!(f, "the query has the character {}, which {}", shown(byte), remedy(byte))
            }
        }
    }
}

/// How to correct a character.
fn remedy(byte: u8) -> &'static str {
    match byte {
        b'\\' => "some servers take for a slash",
        0x80.. => "is not UTF-8; it must be percent-encoded",
        _ if byte.is_ascii_control() => "is a control character",
        _ => "must be percent-encoded",
    }
}

impl std::error::Error for BadPath {}

#[cfg(test)]
mod tests;
