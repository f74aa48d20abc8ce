//! Reads a JSON object field by field, and finds all mistakes, not only the first.
//!
//! *Invariant:* the known fields are exactly those that were read; there is no separate list that could become incomplete.

use serde_json::{Map, Value};
use std::fmt::Write as _;

/// One mistake in a request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FieldError {
    /// The field, e.g. `limits[1].max`.
    pub field: String,
    /// What is allowed.
    pub message: String,
}

/// Most mistakes in one answer, so that a body of mistakes is cheap.
pub(crate) const ERRORS_MAX: usize = 100;
/// Most bytes of an unknown field name that are repeated.
const NAME_SHOWN: usize = 64;

/// A JSON object that is being read.
pub(crate) struct InputFields<'a> {
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
    errors: Vec<FieldError>,
}

/// Why a value is not allowed: one message, or several with their places inside the value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ValidationErrors(pub(crate) Vec<FieldError>);

// === impl InputFields ===

impl<'a> InputFields<'a> {
    /// Starts to read `map`.
    pub(crate) fn of(map: &'a Map<String, Value>) -> Self {
        Self { map, known: Vec::with_capacity(16), errors: Vec::new() }
    }

    /// A required field that must not be null.
    pub(crate) fn required<T>(
        &mut self,
        name: &'static str,
        rule: impl FnOnce(&Value) -> Result<T, ValidationErrors>,
    ) -> Option<T> {
        match self.take(name) {
            None | Some(Value::Null) => {
                self.refuse(name, "is required");
                None
            }
            Some(value) => self.check(name, rule(value)),
        }
    }

    /// An optional field of a new record; null means absent.
    pub(crate) fn optional<T>(
        &mut self,
        name: &'static str,
        rule: impl FnOnce(&Value) -> Result<T, ValidationErrors>,
    ) -> Option<T> {
        match self.take(name) {
            None | Some(Value::Null) => None,
            Some(value) => self.check(name, rule(value)),
        }
    }

    /// A field of a change: absent stays, null is a mistake.
    pub(crate) fn changed<T>(
        &mut self,
        name: &'static str,
        rule: impl FnOnce(&Value) -> Result<T, ValidationErrors>,
    ) -> Option<T> {
        match self.take(name) {
            None => None,
            Some(Value::Null) => {
                self.refuse(name, "cannot be null; leave it out to keep it as it is");
                None
            }
            Some(value) => self.check(name, rule(value)),
        }
    }

    /// A field of a change: absent stays, null clears.
    #[expect(clippy::option_option, reason = "as patches have it: absent, cleared, set")]
    pub(crate) fn cleared<T>(
        &mut self,
        name: &'static str,
        rule: impl FnOnce(&Value) -> Result<T, ValidationErrors>,
    ) -> Option<Option<T>> {
        match self.take(name) {
            None => None,
            Some(Value::Null) => Some(None),
            Some(value) => self.check(name, rule(value)).map(Some),
        }
    }

    /// A field of the record that this request must not contain.
    pub(crate) fn fixed(&mut self, name: &'static str) {
        if self.map.contains_key(name) {
            self.refuse(name, "cannot be changed");
        }
        self.known.push(name);
    }

    /// Notes a mistake.
    pub(crate) fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(FieldError { field: field.into(), message: message.into() });
        }
    }

    /// All mistakes, including unknown fields.
    pub(crate) fn finish(mut self) -> Vec<FieldError> {
        for name in self.map.keys() {
            if self.errors.len() >= ERRORS_MAX {
                break;
            }
            if !self.known.contains(&name.as_str()) {
                self.refuse(shown(name), unknown_field(name, &self.known));
            }
        }
        self.errors
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.map.get(name)
    }

    fn check<T>(&mut self, name: &str, outcome: Result<T, ValidationErrors>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(ValidationErrors(errors)) => {
                for flaw in errors {
                    self.refuse(format!("{name}{}", flaw.field), flaw.message);
                }
                None
            }
        }
    }
}

// === impl ValidationErrors ===

impl ValidationErrors {
    /// The mistakes of the list element at `place`.
    pub(crate) fn within(self, place: usize) -> impl Iterator<Item = FieldError> {
        self.0.into_iter().map(move |flaw| {
            let mut field = format!("[{place}]");
            if !flaw.field.is_empty() && !flaw.field.starts_with('[') {
                field.push('.');
            }
            // Writing to a String cannot fail.
            _ = write!(field, "{}", flaw.field);
            FieldError { field, message: flaw.message }
        })
    }
}

impl From<String> for ValidationErrors {
    fn from(message: String) -> Self {
        Self(vec![FieldError { field: String::new(), message }])
    }
}

impl From<&str> for ValidationErrors {
    fn from(message: &str) -> Self {
        Self::from(message.to_owned())
    }
}

// === names ===

/// The message for a field or parameter that does not exist.
pub(crate) fn unknown_field(name: &str, known: &[&str]) -> String {
    match did_you_mean(name, known) {
        Some(near) => format!("is not known here; did you mean {near}?"),
        None => "is not known here".to_owned(),
    }
}

/// The part of an unknown name that an answer repeats.
pub(crate) fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(NAME_SHOWN).collect()
}

/// The name in `known` with the smallest edit distance to `name`.
fn did_you_mean<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let name: Vec<char> = name.chars().take(NAME_SHOWN).collect();
    known.iter().copied().min_by_key(|candidate| distance(&name, candidate))
}

/// Levenshtein distance, one row at a time.
fn distance(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (n, wanted) in to.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = n + 1;
        for (m, have) in from.iter().enumerate() {
            let replaced = diagonal + usize::from(*have != wanted);
            diagonal = row[m + 1];
            row[m + 1] = replaced.min(row[m] + 1).min(diagonal + 1);
        }
    }
    row[from.len()]
}
