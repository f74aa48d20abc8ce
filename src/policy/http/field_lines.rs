//! Editing the header fields of a message: a parser's header map, the lines of a raw head with added fields, or the fields
//! of a message that is made here.
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
pub struct FieldLines<'h> {
    lines: SmallVec<[Line<'h>; INLINE]>,
    /// The bits of their names, and of some that were removed: most names that are looked for are not here.
    names: u128,
}

/// The fields of a message that is made here. There are few, and nearly all are written and never looked for.
#[derive(Clone, Debug, Default)]
pub struct FieldList(Vec<(HeaderName, HeaderValue)>);

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
        let mut names = 0;
        let lines = lines.inspect(|(name, _)| names |= bit(name)).map(Line::Read).collect();
        Self { lines, names }
    }

    fn may_have(&self, name: &HeaderName) -> bool {
        self.names & bit(name.as_str().as_bytes()) != 0
    }

    /// Appends them to `head`, with the empty line that ends it.
    pub fn write_to(&self, head: &mut Vec<u8>) {
        for line in &self.lines {
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
        let lines = if self.may_have(name) { &self.lines[..] } else { &[] };
        lines.iter().filter(|line| line.is(name)).map(|line| line.parts().1)
    }

    fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        self.remove(&name);
        self.append(name, value);
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.names |= bit(name.as_str().as_bytes());
        self.lines.push(Line::Written(name, value));
    }

    fn remove(&mut self, name: &HeaderName) {
        if self.may_have(name) {
            self.lines.retain(|line| !line.is(name));
        }
    }

    fn remove_if(&mut self, mut is_meant: impl FnMut(&str) -> bool) {
        self.lines.retain(|line| std::str::from_utf8(line.parts().0).is_ok_and(|name| !is_meant(name)));
    }
}

/// A bit for a name, which other names may share.
fn bit(name: &[u8]) -> u128 {
    let [first, .., last] = name else { return 1 };
    let mixed = usize::from(*first) * 7 + usize::from(*last) * 3 + name.len();
    1 << (mixed & 127)
}

// === impl FieldList ===

impl FieldList {
    /// An empty list with room for so many.
    pub fn with_capacity(fields: usize) -> Self {
        Self(Vec::with_capacity(fields))
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }
}

impl EditFields for FieldList {
    fn values<'f>(&'f self, name: &'f HeaderName) -> impl Iterator<Item = &'f [u8]> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_bytes())
    }

    fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        self.remove(&name);
        self.append(name, value);
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push((name, value));
    }

    fn remove(&mut self, name: &HeaderName) {
        if self.0.iter().any(|(found, _)| found == name) {
            self.0.retain(|(found, _)| found != name);
        }
    }

    fn remove_if(&mut self, mut is_meant: impl FnMut(&str) -> bool) {
        self.0.retain(|(name, _)| !is_meant(name.as_str()));
    }
}

impl From<HeaderMap> for FieldList {
    fn from(map: HeaderMap) -> Self {
        Self(map.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

impl From<FieldList> for HeaderMap {
    fn from(list: FieldList) -> Self {
        let mut map = Self::with_capacity(list.0.len());
        for (name, value) in list.0 {
            map.append(name, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, HOST, VIA};

    /// The same steps on all kinds give the same fields.
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
    fn lines_maps_and_lists_are_edited_alike() {
        let rows: [FieldLine<'_>; 7] = [
            (b"host", b"h"),
            (b"via", b"a"),
            (b"accept", b"1"),
            (b"x-own-1", b"2"),
            (b"accept", b"3"),
            (b"x-own-2", b"4"),
            (b"x-other", b"\xe9"),
        ];
        let (mut map, mut list) = (HeaderMap::new(), FieldList::default());
        for (name, value) in rows {
            let name = HeaderName::from_bytes(name).expect("a name");
            let value = HeaderValue::from_bytes(value).expect("a value");
            map.append(&name, value.clone());
            list.append(name, value);
        }
        let mut lines = FieldLines::new(rows.into_iter());
        let wanted: [&[u8]; 4] = [b"other", b"a", b"b", b"\xe9"];
        assert_eq!(edited(&mut map), wanted);
        assert_eq!(edited(&mut lines), wanted);
        assert_eq!(edited(&mut list), wanted);
        assert_eq!(HeaderMap::from(list), map);
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        lines.write_to(&mut head);
        assert_eq!(head, b"GET / HTTP/1.1\r\nvia: a\r\nx-other: \xe9\r\nhost: other\r\nvia: b\r\n\r\n");
    }
}
