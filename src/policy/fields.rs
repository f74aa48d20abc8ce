//! The header fields of a request, for those who only read some: a map of them, or the head in which they stand.
//!
//! Must not know: what any field means. Looking for a few names in a short head is cheaper than making a map of it.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Header fields. Values have no white space around them.
#[derive(Clone, Copy, Debug)]
pub enum Fields<'r> {
    /// As a parser keeps them.
    Map(&'r HeaderMap),
    /// As they stand in a head, from behind its first line on: one that [`super::head::check`] has passed.
    Lines(&'r [u8]),
}

impl<'r> Fields<'r> {
    /// The values under `name`, in their order.
    pub fn all<'n>(self, name: &'n HeaderName) -> impl Iterator<Item = &'r [u8]> + use<'r, 'n> {
        let (map, lines) = match self {
            Self::Map(map) => (Some(map), &[][..]),
            Self::Lines(lines) => (None, lines),
        };
        let of_map = map.into_iter().flat_map(move |map| map.get_all(name)).map(HeaderValue::as_bytes);
        let named = move |(found, value): (&[u8], &'r [u8])| is_named(found, name).then_some(value);
        of_map.chain(split(lines).filter_map(named))
    }

    /// The first of them.
    pub fn first(self, name: &HeaderName) -> Option<&'r [u8]> {
        match self {
            Self::Map(map) => map.get(name).map(HeaderValue::as_bytes),
            Self::Lines(lines) => {
                split(lines).find(|(found, _)| is_named(found, name)).map(|(_, value)| value)
            }
        }
    }

    /// The first of them, if it is text.
    pub fn text(self, name: &HeaderName) -> Option<&'r str> {
        self.first(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// How many there are, and their bytes as they are written at least.
    pub fn size(self) -> (usize, usize) {
        let written = |name: &[u8], value: &[u8]| name.len() + value.len() + ": \r\n".len();
        let sum = |(count, bytes), written| (count + 1, bytes + written);
        match self {
            Self::Map(map) => {
                map.iter().map(|(n, v)| written(n.as_str().as_bytes(), v.as_bytes())).fold((0, 0), sum)
            }
            Self::Lines(lines) => split(lines).map(|(n, v)| written(n, v)).fold((0, 0), sum),
        }
    }
}

impl<'r> From<&'r HeaderMap> for Fields<'r> {
    fn from(map: &'r HeaderMap) -> Self {
        Self::Map(map)
    }
}

fn is_named(found: &[u8], name: &HeaderName) -> bool {
    found.len() == name.as_str().len() && found.eq_ignore_ascii_case(name.as_str().as_bytes())
}

/// Names and values, up to the empty line.
fn split(mut lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\n', lines)?;
        let line = lines[..end].trim_ascii_end();
        let colon = memchr::memchr(b':', line)?;
        lines = &lines[end + 1..];
        Some((&line[..colon], line[colon + 1..].trim_ascii_start()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, HOST, USER_AGENT};

    /// Both ways to keep fields say the same.
    #[test]
    fn a_head_reads_like_the_map_of_it() {
        let x_many = HeaderName::from_static("x-many");
        let head = b"HOST: h\r\nX-Many:\t one \r\nx-many:two: 2\r\nAccept:\r\nX-MANY: \xe9\r\n\r\n";
        let mut map = HeaderMap::new();
        for (name, value) in [(&HOST, "h"), (&x_many, "one"), (&x_many, "two: 2"), (&ACCEPT, "")]
            .map(|(n, v)| (n, v.as_bytes()))
        {
            map.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        map.append(&x_many, HeaderValue::from_bytes(b"\xe9").expect("a value"));
        for fields in [Fields::Lines(head), Fields::from(&map)] {
            assert_eq!(fields.all(&x_many).collect::<Vec<_>>(), [&b"one"[..], b"two: 2", b"\xe9"]);
            assert_eq!((fields.text(&HOST), fields.first(&ACCEPT)), (Some("h"), Some(&b""[..])));
            assert_eq!((fields.first(&USER_AGENT), fields.all(&USER_AGENT).count()), (None, 0));
            assert_eq!(fields.size(), (5, 4 + 1 + 3 * 6 + 3 + 6 + 1 + 6 + 5 * 4));
        }
        assert_eq!(Fields::Lines(b"\r\n").size(), (0, 0));
    }
}
