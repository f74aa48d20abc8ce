//! Changes what a JSON request asks for at single places: every other byte of the body stays as it came.
//!
//! Must not know: why. A body that is not what the provider expects is left alone; the provider answers it.

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::ops::Range;

/// Most fields of one object that are looked at. No client sends a field twice.
const FIELDS_MAX: usize = 8;

/// The changes to one body, in order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BodyEdits(Vec<Edit>);

/// Bytes of a body, and what takes their place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edit {
    at: Range<usize>,
    text: String,
}

/// What a request is to say.
struct Setting<'s> {
    /// The object of the request that has the field; none: the request itself.
    object: Option<&'s str>,
    name: &'s str,
    value: &'s str,
}

/// The fields of an object that have one of some names.
pub(super) struct Members<'n, 'b> {
    /// Where its first field begins.
    pub first: usize,
    /// Whether it has no field at all.
    pub is_empty: bool,
    /// Each with its name.
    pub values: Vec<(&'n str, &'b RawValue)>,
}

// === impl BodyEdits ===

impl BodyEdits {
    /// Makes a request of `OpenAI`'s chat completions or completions ask for its usage at the end of the stream. None: it does
    /// so already, or cannot.
    pub fn asking_for_usage(body: &[u8]) -> Option<Self> {
        let setting = Setting { object: Some("stream_options"), name: "include_usage", value: "true" };
        let mut edits = Self::default();
        edits.set(body, &setting, |value| value == "true")?;
        edits.sorted()
    }

    /// The parts of the changed body.
    pub fn parts<'b>(&'b self, body: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|edit| edit.at.end));
        let ends = self.0.iter().map(|edit| (edit.at.start, edit.text.as_bytes()));
        let ends = ends.chain(std::iter::once((body.len(), &b""[..])));
        starts.zip(ends).flat_map(|(start, (end, text))| [body.get(start..end).unwrap_or_default(), text])
    }

    /// The length of the changed body.
    pub fn length(&self, body: &[u8]) -> u64 {
        self.parts(body).map(|part| part.len() as u64).sum()
    }

    /// Makes `body` say `setting`, wherever it says something that is not `fine`.
    fn set(&mut self, body: &[u8], setting: &Setting<'_>, is_fine: impl Fn(&str) -> bool) -> Option<()> {
        let Some(object) = setting.object else {
            return self.set_in(body, 0, setting, is_fine);
        };
        let Members { first, is_empty, values } = Members::of(body, &[object])?;
        let whole = || format!("{{\"{}\":{}}}", setting.name, setting.value);
        if values.is_empty() {
            self.insert(first, is_empty, object, &whole());
        }
        for (_, value) in values {
            let start = offset(body, value);
            match value.get().as_bytes() {
                b"null" => self.replace(start, value, whole()),
                [b'{', ..] => self.set_in(value.get().as_bytes(), start, setting, &is_fine)?,
                _ => return None,
            }
        }
        Some(())
    }

    /// The same in one object, which begins at `offset` of the body.
    fn set_in(
        &mut self,
        object: &[u8],
        start: usize,
        setting: &Setting<'_>,
        is_fine: impl Fn(&str) -> bool,
    ) -> Option<()> {
        let Members { first, is_empty, values } = Members::of(object, &[setting.name])?;
        if values.is_empty() {
            self.insert(start + first, is_empty, setting.name, setting.value);
        }
        for (_, value) in values.into_iter().filter(|(_, value)| !is_fine(value.get())) {
            self.replace(start + offset(object, value), value, setting.value.to_owned());
        }
        Some(())
    }

    /// The changes of both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self.0.sort_by_key(|edit| edit.at.start);
        self
    }

    /// Puts `text` in the place of a value that begins there.
    pub(super) fn replace(&mut self, at: usize, value: &RawValue, text: String) {
        self.0.push(Edit { at: at..at + value.get().len(), text });
    }

    /// Adds a field in front of the others.
    pub(super) fn insert(&mut self, at: usize, is_only: bool, name: &str, value: &str) {
        let comma = if is_only { "" } else { "," };
        self.0.push(Edit { at: at..at, text: format!("\"{name}\":{value}{comma}") });
    }

    /// In the order of the body; none if nothing changes.
    pub(super) fn sorted(mut self) -> Option<Self> {
        self.0.sort_by_key(|edit| edit.at.start);
        (!self.0.is_empty()).then_some(self)
    }
}

// === impl Members ===

impl<'n, 'b> Members<'n, 'b> {
    /// The fields of this object that have one of these names. None if it is no object, or has too many of them.
    pub(super) fn of(object: &'b [u8], names: &[&'n str]) -> Option<Self> {
        let mut reader = serde_json::Deserializer::from_slice(object);
        let (is_empty, values) = reader.deserialize_map(MembersVisitor(names)).ok()?;
        reader.end().ok()?;
        let first = object.iter().position(|byte| *byte == b'{')? + 1;
        Some(Self { first, is_empty, values })
    }
}

struct MembersVisitor<'l, 'n>(&'l [&'n str]);

impl<'de, 'n> Visitor<'de> for MembersVisitor<'_, 'n> {
    type Value = (bool, Vec<(&'n str, &'de RawValue)>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut is_empty, mut values) = (true, Vec::new());
        while let Some(name) = map.next_key_seed(OneOf(self.0))? {
            is_empty = false;
            match name {
                None => _ = map.next_value::<IgnoredAny>()?,
                Some(_) if values.len() == FIELDS_MAX => {
                    return Err(A::Error::custom("too many fields that change"));
                }
                Some(name) => values.push((name, map.next_value()?)),
            }
        }
        Ok((is_empty, values))
    }
}

/// Reads a key: which of these names it is, if any.
struct OneOf<'l, 'n>(&'l [&'n str]);

impl<'de, 'n> DeserializeSeed<'de> for OneOf<'_, 'n> {
    type Value = Option<&'n str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'n> Visitor<'_> for OneOf<'_, 'n> {
    type Value = Option<&'n str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().copied().find(|name| *name == key))
    }
}

/// Where a value stands in the bytes that it was read from.
pub(super) fn offset(bytes: &[u8], value: &RawValue) -> usize {
    value.get().as_ptr().addr().saturating_sub(bytes.as_ptr().addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(body: &str, edits: Option<BodyEdits>) -> Option<String> {
        let edits = edits?;
        let parts: Vec<u8> = edits.parts(body.as_bytes()).flatten().copied().collect();
        assert_eq!(edits.length(body.as_bytes()), parts.len() as u64);
        String::from_utf8(parts).ok()
    }

    #[test]
    fn a_stream_is_made_to_say_what_it_used() {
        for (body, expected) in [
            (
                r#" {"model":"m", "stream" : true}"#,
                Some(r#" {"stream_options":{"include_usage":true},"model":"m", "stream" : true}"#),
            ),
            (r"{}", Some(r#"{"stream_options":{"include_usage":true}}"#)),
            (
                r#"{"stream_options": null, "stream":true}"#,
                Some(r#"{"stream_options": {"include_usage":true}, "stream":true}"#),
            ),
            (r#"{"stream_options":{ }}"#, Some(r#"{"stream_options":{"include_usage":true }}"#)),
            (
                r#"{"stream_options":{"include_obfuscation":false}}"#,
                Some(r#"{"stream_options":{"include_usage":true,"include_obfuscation":false}}"#),
            ),
            (
                r#"{"stream_options":{"include_usage": false }, "é":"\u0000{"}"#,
                Some(r#"{"stream_options":{"include_usage": true }, "é":"\u0000{"}"#),
            ),
            (
                r#"{"stream_options":{"include_usage":null},"stream_options":{"include_usage":true,"include\u005fusage":false}}"#,
                Some(
                    r#"{"stream_options":{"include_usage":true},"stream_options":{"include_usage":true,"include\u005fusage":true}}"#,
                ),
            ),
            (r#"{"stream_options":{"include_usage":true}}"#, None),
            // The provider says what is wrong with these.
            (r#"{"stream_options":5}"#, None),
            (r#"{"stream_options":[]}"#, None),
            (r#"[{"stream":true}]"#, None),
            (r#"{"stream":true"#, None),
            (r#"{"stream":true}}"#, None),
            ("", None),
        ] {
            let edited = changed(body, BodyEdits::asking_for_usage(body.as_bytes()));
            assert_eq!(edited.as_deref(), expected, "{body}");
        }
        let often = format!("{{{}\"x\":1}}", r#""stream_options":{},"#.repeat(FIELDS_MAX + 1));
        assert_eq!(BodyEdits::asking_for_usage(often.as_bytes()), None);
        // What is not text is left to the provider.
        let not_text = b"{\"a\":\"\xff\"}";
        let edits = BodyEdits::asking_for_usage(not_text).expect("edits");
        let parts: Vec<u8> = edits.parts(not_text).flatten().copied().collect();
        assert_eq!(parts, b"{\"stream_options\":{\"include_usage\":true},\"a\":\"\xff\"}");
    }
}
