//! Editing the header fields of a message: a parser's header map, or the lines of a raw head with added fields.
//!
//! Must not know: what any field means. A rewrite of a message is written once for both.

use super::fields::FieldLine;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Up to this many fields need no allocation.
const INLINE: usize = 24;

/// Editable header fields. Names are in lower case.
pub trait EditFields {
    /// The values under `name`, in order.
    fn values<'f>(&'f self, name: &'f HeaderName) -> impl Iterator<Item = &'f [u8]>;

    /// Sets the field; replaces all fields of its name.
    fn insert(&mut self, name: HeaderName, value: HeaderValue);

    /// Adds the field after those of its name.
    fn append(&mut self, name: HeaderName, value: HeaderValue);

    /// Removes all fields of this name.
    fn remove(&mut self, name: &HeaderName);

    /// Removes all fields whose name matches.
    fn remove_if(&mut self, is_meant: impl FnMut(&str) -> bool);

    /// The first value under `name`.
    fn first<'f>(&'f self, name: &'f HeaderName) -> Option<&'f [u8]> {
        self.values(name).next()
    }

    /// Whether there is a field of this name.
    fn has(&self, name: &HeaderName) -> bool {
        self.first(name).is_some()
    }
}

impl EditFields for HeaderMap {
    fn values<'f>(&'f self, name: &'f HeaderName) -> impl Iterator<Item = &'f [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        Self::insert(self, name, value);
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        Self::append(self, name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }

    fn remove_if(&mut self, mut is_meant: impl FnMut(&str) -> bool) {
        // Usually there is none, and an empty list allocates nothing.
        let found: Vec<HeaderName> = self.keys().filter(|name| is_meant(name.as_str())).cloned().collect();
        for name in found {
            Self::remove(self, &name);
        }
    }
}

/// The fields of a head as lines with names in lower case.
pub struct FieldLines<'h>(SmallVec<[Line<'h>; INLINE]>);

enum Line<'h> {
    /// A line of the head.
    Read(FieldLine<'h>),
    /// An added field.
    Written(HeaderName, HeaderValue),
}

// === impl FieldLines ===

impl<'h> FieldLines<'h> {
    /// The fields of a head.
    pub fn new(lines: impl Iterator<Item = FieldLine<'h>>) -> Self {
        Self(lines.map(Line::Read).collect())
    }

    /// Appends them to `head`, with the empty line that ends it.
    pub fn write_to(&self, head: &mut Vec<u8>) {
        for line in &self.0 {
            let (name, value) = line.parts();
            head.extend_from_slice(name);
            head.extend_from_slice(b": ");
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
    }
}

impl Line<'_> {
    fn parts(&self) -> FieldLine<'_> {
        match self {
            Self::Read(line) => *line,
            Self::Written(name, value) => (name.as_str().as_bytes(), value.as_bytes()),
        }
    }

    fn is(&self, name: &HeaderName) -> bool {
        self.parts().0 == name.as_str().as_bytes()
    }
}

impl EditFields for FieldLines<'_> {
    fn values<'f>(&'f self, name: &'f HeaderName) -> impl Iterator<Item = &'f [u8]> {
        self.0.iter().filter(|line| line.is(name)).map(|line| line.parts().1)
    }

    fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        self.remove(&name);
        self.append(name, value);
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push(Line::Written(name, value));
    }

    fn remove(&mut self, name: &HeaderName) {
        self.0.retain(|line| !line.is(name));
    }

    fn remove_if(&mut self, mut is_meant: impl FnMut(&str) -> bool) {
        self.0.retain(|line| std::str::from_utf8(line.parts().0).is_ok_and(|name| !is_meant(name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, HOST, VIA};

    /// The same steps on both kinds give the same fields.
    fn edited(fields: &mut impl EditFields) -> Vec<Vec<u8>> {
        fields.insert(HOST, HeaderValue::from_static("other"));
        fields.append(VIA, HeaderValue::from_static("b"));
        fields.remove(&ACCEPT);
        fields.remove_if(|name| name.starts_with("x-own"));
        [HOST, VIA, ACCEPT, HeaderName::from_static("x-own-1"), HeaderName::from_static("x-other")]
            .iter()
            .flat_map(|name| fields.values(name).map(<[u8]>::to_vec).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn lines_and_maps_are_edited_alike() {
        let rows: [FieldLine<'_>; 7] = [
            (b"host", b"h"),
            (b"via", b"a"),
            (b"accept", b"1"),
            (b"x-own-1", b"2"),
            (b"accept", b"3"),
            (b"x-own-2", b"4"),
            (b"x-other", b"\xe9"),
        ];
        let mut map = HeaderMap::new();
        for (name, value) in rows {
            let name = HeaderName::from_bytes(name).expect("a name");
            map.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        let mut lines = FieldLines::new(rows.into_iter());
        let wanted: [&[u8]; 4] = [b"other", b"a", b"b", b"\xe9"];
        assert_eq!(edited(&mut map), wanted);
        assert_eq!(edited(&mut lines), wanted);
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        lines.write_to(&mut head);
        assert_eq!(head, b"GET / HTTP/1.1\r\nvia: a\r\nx-other: \xe9\r\nhost: other\r\nvia: b\r\n\r\n");
    }
}
