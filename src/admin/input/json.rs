//! Parses JSON from clients. An object with a repeated name is refused, because one parser might use the first value and
//! another one the last.
//!
//! Must not know: what any object means.

use super::shown;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt;

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadJson {
    /// It is not JSON.
    #[error("must be JSON; it stops being so at line {line}, column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1; 0 after the end of a line.
        column: usize,
    },
    /// A name occurs twice in one object.
    #[error("{0}: is there twice")]
    Twice(String),
    /// It is JSON, but not an object.
    #[error("must be a JSON object")]
    NoObject,
}

/// Any JSON value.
pub fn value(text: &[u8]) -> Result<Value, BadJson> {
    let twice = RefCell::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Unique { twice: &twice, path: JsonPath::Top }.deserialize(&mut reader);
    let read = read.and_then(|value| reader.end().map(|()| value));
    match (read, twice.into_inner()) {
        (Ok(value), None) => Ok(value),
        (Ok(_), Some(path)) => Err(BadJson::Twice(path)),
        (Err(error), _) => Err(BadJson::Syntax { line: error.line(), column: error.column() }),
    }
}

/// A JSON object.
pub fn object(text: &[u8]) -> Result<Map<String, Value>, BadJson> {
    match value(text)? {
        Value::Object(map) => Ok(map),
        _ => Err(BadJson::NoObject),
    }
}

/// An object in one line of a file, or what is wrong with it.
pub fn line(text: &str) -> Result<Map<String, Value>, String> {
    object(text.as_bytes()).map_err(|bad| match bad {
        BadJson::Twice(_) => bad.to_string(),
        BadJson::Syntax { .. } | BadJson::NoObject => "is not a JSON object".into(),
    })
}

/// Reads the value at `place`, and notes the first repeated name.
#[derive(Clone, Copy)]
struct Unique<'p> {
    twice: &'p RefCell<Option<String>>,
    path: JsonPath<'p>,
}

/// The place of a value, e.g. `limits[1].max`.
#[derive(Clone, Copy)]
enum JsonPath<'p> {
    Top,
    Member(&'p JsonPath<'p>, &'p str),
    Item(&'p JsonPath<'p>, usize),
}

impl fmt::Display for JsonPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => Ok(()),
            Self::Member(Self::Top, name) => f.write_str(&shown(name)),
            Self::Member(parent, name) => write!(f, "{parent}.{}", shown(name)),
            Self::Item(parent, n) => write!(f, "{parent}[{n}]"),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) =
            items.next_element_seed(Unique { path: JsonPath::Item(&self.path, all.len()), ..self })?
        {
            all.push(item);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            match all.entry(name) {
                Entry::Vacant(free) => {
                    let path = JsonPath::Member(&self.path, free.key());
                    let member = members.next_value_seed(Unique { path, ..self })?;
                    free.insert(member);
                }
                Entry::Occupied(taken) => {
                    let path = || JsonPath::Member(&self.path, taken.key()).to_string();
                    self.twice.borrow_mut().get_or_insert_with(path);
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unique_fields_read_as_with_any_parser() {
        for text in [
            "null",
            "[true, false, [], {}]",
            r#"{"a": 1, "b": {"a": -1, "c": [{"a": 1.5e300}, {"a": "ä\n"}]}, "": 18446744073709551615}"#,
        ] {
            assert_eq!(value(text.as_bytes()), Ok(serde_json::from_str(text).expect("JSON")), "{text}");
        }
        assert_eq!(object(b"{\"a\":{}}").map(Value::Object), Ok(json!({"a": {}})));
        assert_eq!(object(b"[]"), Err(BadJson::NoObject));
    }

    #[test]
    fn duplicate_fields_are_named_with_their_position() {
        let long = "x".repeat(10_000);
        let rows = [
            (r#"{"a": 1, "a": 1}"#, "a"),
            // The same name in two spellings.
            (r#"{"a": 1, "\u0061": 2}"#, "a"),
            (r#"{"a": {"b": [1, {"c": 0, "d": 1, "c": null}]}, "e": 1, "e": 2}"#, "a.b[1].c"),
            (r#"[[], [{"a": 1, "a": {"a": 1, "a": 2}}]]"#, "[1][0].a"),
            ("{\"a\\u0007b\": 1, \"a\\u0007b\": 1}", "ab"),
            (&format!("{{\"{long}\": 1, \"{long}\": 2}}"), &long[..64]),
        ];
        for (text, path) in rows {
            assert_eq!(value(text.as_bytes()), Err(BadJson::Twice(path.to_owned())), "{text}");
        }
    }

    #[test]
    fn invalid_json_is_reported_with_its_position() {
        for text in
            ["", "{", "{\"a\": 1} x", "{\"a\": 1, \"a\": }", "{'a': 1}", "[1,]", "\u{feff}{}", "\"\u{1}\""]
        {
            assert!(matches!(value(text.as_bytes()), Err(BadJson::Syntax { line: 1, .. })), "{text}");
        }
        assert!(matches!(value(b"\"\xff\""), Err(BadJson::Syntax { .. })));
        // Deep nesting must not exhaust the stack.
        assert!(matches!(value("[".repeat(100_000).as_bytes()), Err(BadJson::Syntax { .. })));
    }
}
