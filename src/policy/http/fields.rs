//! Read access to the header fields of a request: a map of them, or a list of slices of the head.
//!
//! Must not know: what any field means. A few fields are found as fast in a list, which costs less to build than a map.

use http::header::{CONNECTION, COOKIE, HeaderMap, HeaderName, HeaderValue};

/// Headers that concern framing or the connection; Keygate must read these as HTTP does.
const RESERVED_HEADERS: [&str; 11] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The header with this name, if a config or a caller may set or read it: it is neither about framing or the connection nor
/// Keygate's own (`x-keygate-…`).
pub fn settable_header(text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
    // Many backends treat `_` in a header as `-`, so both spellings are reserved.
    let is_own = name.as_str().replace('_', "-").starts_with("x-keygate-");
    (!is_own && !RESERVED_HEADERS.contains(&name.as_str()) && name.as_str().len() <= 128).then_some(name)
}

/// A name and a value.
pub type FieldLine<'r> = (&'r [u8], &'r [u8]);

/// Header fields. Values have no white space around them.
#[derive(Clone, Copy, Debug)]
pub enum HeaderFields<'r> {
    /// A parsed map.
    Map(&'r HeaderMap),
    /// Slices of the head.
    List(&'r [FieldLine<'r>]),
}

impl<'r> HeaderFields<'r> {
    /// The values under `name`, in their order.
    pub fn all<'n>(self, name: &'n HeaderName) -> impl Iterator<Item = &'r [u8]> + use<'r, 'n> {
        let (map, list) = match self {
            Self::Map(map) => (Some(map), &[][..]),
            Self::List(list) => (None, list),
        };
        let of_map = map.into_iter().flat_map(move |map| map.get_all(name)).map(HeaderValue::as_bytes);
        of_map.chain(list.iter().filter(|line| is_named(line, name)).map(|line| line.1))
    }

    /// The first value.
    pub fn first(self, name: &HeaderName) -> Option<&'r [u8]> {
        match self {
            Self::Map(map) => map.get(name).map(HeaderValue::as_bytes),
            Self::List(list) => list.iter().find(|line| is_named(line, name)).map(|line| line.1),
        }
    }

    /// The first value, if it is text.
    pub fn text(self, name: &HeaderName) -> Option<&'r str> {
        self.first(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Whether `Connection` names the field: then it is meant for the next hop and not forwarded.
    pub fn is_nominated(self, name: &HeaderName) -> bool {
        let is_it = |asked: &[u8]| asked.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes());
        self.all(&CONNECTION).any(|value| value.split(|b| *b == b',').any(is_it))
    }

    /// The number of fields, and their minimum size in bytes. Several HTTP/2 `cookie` fields count as the one field that
    /// they are forwarded as (RFC 9113, 8.2.3).
    pub fn size(self) -> (usize, usize) {
        let written = |name: &[u8], value: &[u8]| name.len() + value.len() + ": \r\n".len();
        let sum = |(count, bytes), written| (count + 1, bytes + written);
        match self {
            Self::Map(map) => {
                let all = map.iter().map(|(n, v)| written(n.as_str().as_bytes(), v.as_bytes()));
                let (count, bytes) = all.fold((0, 0), sum);
                let more = map.get_all(COOKIE).iter().count().saturating_sub(1);
                (count - more, bytes - more * ("cookie: \r\n".len() - "; ".len()))
            }
            Self::List(list) => list.iter().map(|(n, v)| written(n, v)).fold((0, 0), sum),
        }
    }
}

impl<'r> From<&'r HeaderMap> for HeaderFields<'r> {
    fn from(map: &'r HeaderMap) -> Self {
        Self::Map(map)
    }
}

fn is_named(line: &FieldLine<'_>, name: &HeaderName) -> bool {
    line.0.eq_ignore_ascii_case(name.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, HOST, USER_AGENT};

    /// Both representations give the same results.
    #[test]
    fn a_list_reads_like_the_map_of_it() {
        let many = HeaderName::from_static("x-many");
        let list: [FieldLine<'_>; 6] = [
            (b"HOST", b"h"),
            (b"X-Many", b"one"),
            (b"x-many", b"two: 2"),
            (b"Accept", b""),
            (b"X-MANY", b"\xe9"),
            (b"connection", b"close, X-many"),
        ];
        let mut map = HeaderMap::new();
        for (name, value) in list {
            let name = HeaderName::from_bytes(name).expect("a name");
            map.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        for fields in [HeaderFields::List(&list), HeaderFields::from(&map)] {
            assert_eq!(fields.all(&many).collect::<Vec<_>>(), [&b"one"[..], b"two: 2", b"\xe9"]);
            assert_eq!((fields.text(&HOST), fields.first(&ACCEPT)), (Some("h"), Some(&b""[..])));
            assert_eq!((fields.text(&many), fields.all(&USER_AGENT).count()), (Some("one"), 0));
            assert_eq!(fields.first(&USER_AGENT), None);
            assert!(fields.is_nominated(&many) && !fields.is_nominated(&HOST));
            let bytes = [4, 1, 6, 3, 6, 6, 6, 0, 6, 1, 10, 13].iter().sum::<usize>() + 6 * 4;
            assert_eq!(fields.size(), (6, bytes));
        }
    }
}
