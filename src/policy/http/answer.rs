//! Parses the head of an HTTP/1.1 response strictly: it must have exactly one reading, including the end of its message.
//!
//! Must not know: sockets, time, what a field means beyond framing. A backend's response is parsed as strictly as a
//! client's request, so that no client can take part of it for another response.
//!
//! *Invariant:* an accepted head is `HTTP/1.x SP status SP reason CRLF *(name ":" value CRLF) CRLF`, with at most one of a
//! valid `Content-Length` and `Transfer-Encoding: chunked`.

use super::fields::FieldLine;
use super::head::{content_length, field_lines, is_field_line, is_value, split_line};
use std::ops::Range;

/// The maximum of fields in a response.
pub const FIELDS_MAX: usize = 256;

/// An accepted head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// The status.
    pub status: u16,
    /// HTTP/1.1 if true, HTTP/1.0 otherwise.
    pub is_11: bool,
    /// What its fields say about the end of the body.
    pub declared: Declared,
    /// Whether `Connection` has the option `close`.
    pub closes: bool,
    /// Whether `Connection` has the option `keep-alive`.
    pub stays: bool,
    /// The status and the reason in the head.
    line: Range<usize>,
    /// Where the fields begin.
    fields: usize,
}

/// What the fields of a response say about the end of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// Nothing.
    Nothing,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

/// Where the body of a response ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// There is no body.
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// When the connection is closed.
    Close,
}

/// This is not the head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAnswer;

/// Parses a whole head, its empty line included.
pub fn check_answer(head: &[u8]) -> Result<AnswerHead, BadAnswer> {
    let (line, mut rest) = split_line(head).map_err(|_| BadAnswer)?;
    let (is_11, status) = status_line(line).ok_or(BadAnswer)?;
    let fields = line.len() + 2;
    let (mut length, mut chunked, mut closes, mut stays) = (None, false, false, false);
    for count in 0.. {
        let (line, behind) = split_line(rest).map_err(|_| BadAnswer)?;
        if line.is_empty() {
            // The empty line ends the head, and nothing follows it.
            let declared = match (length, chunked) {
                (Some(_), true) => return Err(BadAnswer),
                (Some(length), false) => Declared::Length(length),
                (None, true) => Declared::Chunked,
                (None, false) => Declared::Nothing,
            };
            let head = AnswerHead { status, is_11, declared, closes, stays, line: 9..fields - 2, fields };
            return if behind.is_empty() { Ok(head) } else { Err(BadAnswer) };
        }
        let colon = is_field_line(line).filter(|_| count < FIELDS_MAX).ok_or(BadAnswer)?;
        let (name, value) = (&line[..colon], || line[colon + 1..].trim_ascii());
        // Only names of these lengths matter for framing.
        match colon {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let told = content_length(value()).ok_or(BadAnswer)?;
                if length.replace(told).is_some() {
                    return Err(BadAnswer);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !value().eq_ignore_ascii_case(b"chunked") {
                    return Err(BadAnswer);
                }
                chunked = true;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for token in value().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    closes |= token.eq_ignore_ascii_case(b"close");
                    stays |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            _ => {}
        }
        rest = behind;
    }
    Err(BadAnswer)
}

/// The version and the status of `HTTP/1.1 200 OK`. The reason may be empty, and the space before it may be missing.
fn status_line(line: &[u8]) -> Option<(bool, u16)> {
    let is_11 = match line.get(..9)? {
        b"HTTP/1.1 " => true,
        b"HTTP/1.0 " => false,
        _ => return None,
    };
    let digits = line.get(9..12)?;
    let status = digits.iter().try_fold(0_u16, |status, digit| {
        digit.is_ascii_digit().then(|| status * 10 + u16::from(digit - b'0'))
    })?;
    let reason = line.get(12..)?;
    let is_reason = reason.is_empty() || (reason[0] == b' ' && is_value(reason));
    (status >= 100 && is_reason).then_some((is_11, status))
}

// === impl AnswerHead ===

impl AnswerHead {
    /// Where the body ends, for a response to a `HEAD` or to another method.
    pub const fn body_end(&self, is_head: bool) -> BodyEnd {
        match (self.status, self.declared) {
            (100..200 | 204 | 304, _) => BodyEnd::None,
            _ if is_head => BodyEnd::None,
            (_, Declared::Nothing) => BodyEnd::Close,
            (_, Declared::Length(0)) => BodyEnd::None,
            (_, Declared::Length(length)) => BodyEnd::Length(length),
            (_, Declared::Chunked) => BodyEnd::Chunked,
        }
    }

    /// Whether the connection may be reused (RFC 9112, 9.3). Chunked framing is not reliable in HTTP/1.0.
    pub fn may_reuse(&self) -> bool {
        let by_version = self.is_11 || (self.stays && self.declared != Declared::Chunked);
        by_version && !self.closes && self.status != 101
    }

    /// Whether this is an interim response (1xx).
    pub const fn is_interim(&self) -> bool {
        matches!(self.status, 100..200) && self.status != 101
    }

    /// The status and the reason as they are in `head`.
    pub fn status_and_reason<'h>(&self, head: &'h [u8]) -> &'h [u8] {
        &head[self.line.clone()]
    }

    /// Its fields; names become lower case.
    pub fn fields<'h>(&self, head: &'h mut [u8]) -> impl Iterator<Item = FieldLine<'h>> + use<'h> {
        field_lines(&mut head[self.fields..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &str) -> Vec<u8> {
        format!("{lines}\r\n\r\n").into_bytes()
    }

    #[test]
    fn events_that_end_a_response() {
        for (lines, is_head, end, reuse) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", false, BodyEnd::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0", false, BodyEnd::None, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", true, BodyEnd::None, true),
            ("HTTP/1.1 200\r\ntransfer-ENCODING: Chunked", false, BodyEnd::Chunked, true),
            (
                "HTTP/1.0 200 \r\nTransfer-Encoding: chunked\r\nConnection: keep-alive",
                false,
                BodyEnd::Chunked,
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\nConnection: x, Keep-Alive\r\nContent-Length: 1",
                false,
                BodyEnd::Length(1),
                true,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1", false, BodyEnd::Length(1), false),
            (
                "HTTP/1.1 200 OK\r\nConnection: a, close\r\nContent-Length: 1",
                false,
                BodyEnd::Length(1),
                false,
            ),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 9", false, BodyEnd::None, true),
            ("HTTP/1.1 304 Not Modified", false, BodyEnd::None, true),
            ("HTTP/1.1 200 OK\r\nX: y", false, BodyEnd::Close, true),
            ("HTTP/1.1 101 Switching Protocols", false, BodyEnd::None, false),
        ] {
            let read = check_answer(&head(lines)).expect(lines);
            assert_eq!((read.body_end(is_head), read.may_reuse()), (end, reuse), "{lines}");
        }
    }

    #[test]
    fn its_parts() {
        let mut bytes = head("HTTP/1.1 299 Just \u{e9}\r\nX-One: 1 \r\nTWO:\r\nthree: \t3");
        let read = check_answer(&bytes).expect("sound");
        assert_eq!((read.status, read.is_interim()), (299, false));
        assert_eq!(read.status_and_reason(&bytes), "299 Just \u{e9}".as_bytes());
        let fields: Vec<_> = read.fields(&mut bytes).collect();
        assert_eq!(fields, [(&b"x-one"[..], &b"1"[..]), (b"two", b""), (b"three", b"3")]);
    }

    #[test]
    fn anything_else_is_refused() {
        let many = format!("HTTP/1.1 200 OK{}", "\r\na: b".repeat(FIELDS_MAX + 1));
        for lines in [
            "",
            "HTTP/1.1",
            "HTTP/1.1 20",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 099 OK",
            "HTTP/1.1  200 OK",
            "HTTP/2.0 200 OK",
            "http/1.1 200 OK",
            "ICY 200 OK",
            "HTTP/1.1 200 O\0K",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nContent-Length: +5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nname : value",
            "HTTP/1.1 200 OK\r\n folded: value",
            "HTTP/1.1 200 OK\r\na: b\n c",
            "HTTP/1.1 200 OK\r\na: b\rc",
            "HTTP/1.1 200 OK\r\nno colon",
            "HTTP/1.1 200 OK\r\n: value",
            &many,
        ] {
            assert_eq!(check_answer(&head(lines)), Err(BadAnswer), "{lines:?}");
        }
        assert_eq!(check_answer(b"HTTP/1.1 200 OK\n\n"), Err(BadAnswer), "bare line feeds");
    }
}
