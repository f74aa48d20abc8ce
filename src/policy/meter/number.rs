//! One number at a fixed place of a JSON answer.

use super::body::UsageSink;
use super::decimal::whole;
use super::json::{JsonSink, Want};
use std::fmt;
use std::sync::Arc;

/// The most steps of a pointer.
const STEPS_MAX: usize = 32;

/// A JSON pointer (RFC 6901): `/usage/units`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPointer(Arc<[Box<str>]>);

/// Reads the number that a pointer points at. In a stream of events, the last one counts.
#[derive(Debug)]
pub(super) struct NumberAt {
    pointer: JsonPointer,
    event: Option<u64>,
    total: Option<u64>,
    has_error: bool,
}

// === impl JsonPointer ===

impl JsonPointer {
    /// Parses a pointer. The whole document cannot be meant.
    pub fn parse(text: &str) -> Option<Self> {
        let steps = text.strip_prefix('/')?.split('/');
        let unescaped = |step: &str| {
            let is_escaped = step.split('~').skip(1).all(|tail| tail.starts_with(['0', '1']));
            is_escaped.then(|| step.replace("~1", "/").replace("~0", "~").into())
        };
        let steps: Vec<Box<str>> = steps.map(unescaped).collect::<Option<_>>()?;
        (steps.len() <= STEPS_MAX).then(|| Self(steps.into()))
    }
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

// === impl NumberAt ===

impl NumberAt {
    /// A reader for this place.
    pub(super) const fn new(pointer: JsonPointer) -> Self {
        Self { pointer, event: None, total: None, has_error: false }
    }

    /// The number, as far as the committed documents say.
    pub(super) const fn value(&self) -> Option<u64> {
        self.total
    }
}

/// A place is the number of steps that lead there, and one more; zero is nowhere.
impl JsonSink for NumberAt {
    type Place = usize;

    fn root(&self) -> usize {
        1
    }

    fn field(&self, object: usize, key: &[u8]) -> usize {
        let is_next = object
            .checked_sub(1)
            .and_then(|at| self.pointer.0.get(at))
            .is_some_and(|step| step.as_bytes() == key);
        if is_next { object + 1 } else { 0 }
    }

    fn element(&self, array: usize, index: u64) -> usize {
        let step = array.checked_sub(1).and_then(|at| self.pointer.0.get(at));
        // An index is spelled without zeros in front.
        let is_next = step.is_some_and(|step| {
            step.parse() == Ok(index) && (**step == *"0" || !step.starts_with(['0', '+']))
        });
        if is_next { array + 1 } else { 0 }
    }

    fn wants(&self, _: usize) -> Want {
        Want::Nothing
    }

    fn number(&mut self, place: usize, text: &str) {
        if place == self.pointer.0.len() + 1 {
            self.event = whole(text, 0).or(self.event);
        }
    }

    fn text(&mut self, _: usize, _: &str) {}

    fn length(&mut self, _: usize, _: u64) {}

    fn begin_object(&mut self, _: usize) {}

    fn end_object(&mut self, _: usize) {}
}

impl UsageSink for NumberAt {
    fn begin_event(&mut self, _: &[u8]) {}

    fn commit(&mut self) -> bool {
        self.total = self.event.take().or(self.total);
        true
    }

    fn discard(&mut self) {
        self.event = None;
    }

    fn note_error(&mut self) {
        self.has_error = true;
    }

    fn has_error(&self) -> bool {
        self.has_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_begins_with_a_slash_and_escapes_two_characters() {
        let steps = |text| JsonPointer::parse(text).map(|pointer| pointer.0.join(" "));
        assert_eq!(steps("/usage/0/units"), Some("usage 0 units".to_owned()));
        assert_eq!(steps("/a~1b/m~0n"), Some("a/b m~n".to_owned()));
        assert_eq!(
            JsonPointer::parse("/a~1b/m~0n").map(|pointer| pointer.to_string()),
            Some("/a~1b/m~0n".to_owned())
        );
        for bad in ["", "usage", "/a~", "/a~2"] {
            assert_eq!(steps(bad), None, "{bad}");
        }
        assert_eq!(steps(&"/a".repeat(STEPS_MAX + 1)), None);
    }
}
