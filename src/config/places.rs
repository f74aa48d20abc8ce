//! Where the keys of a configuration are written, for mistakes that only show when it is used: in files that it names, or in the
//! routes as a whole.

use super::error::{ConfigError, Mistake};
use std::collections::BTreeMap;

/// Where a key is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyPlace {
    /// Line and column, both from 1.
    Line(usize, usize),
    /// In this variable.
    Variable(String),
}

/// Where the keys of a configuration are written.
#[derive(Clone, Debug, Default)]
pub struct ConfigPlaces {
    pub(super) file: String,
    pub(super) keys: BTreeMap<String, KeyPlace>,
}

impl ConfigPlaces {
    /// The error of these mistakes, each a key and what is wrong with it.
    pub fn error(&self, mistakes: impl IntoIterator<Item = (String, String)>) -> ConfigError {
        let mut mistakes: Vec<Mistake> =
            mistakes.into_iter().map(|(key, message)| self.mistake(key, message)).collect();
        mistakes.sort_by_key(|mistake| mistake.line.unwrap_or((usize::MAX, 0)));
        ConfigError { file: self.file.clone(), mistakes }
    }

    fn mistake(&self, key: String, message: String) -> Mistake {
        match nearest(&self.keys, &key) {
            Some((KeyPlace::Line(line, column), _)) => {
                Mistake { line: Some((*line, *column)), place: key, message }
            }
            Some((KeyPlace::Variable(name), rest)) => {
                Mistake { line: None, place: format!("{name}{rest}"), message }
            }
            None => Mistake { line: None, place: key, message },
        }
    }
}

/// The place of `path`, or of the nearest enclosing key, and the part of `path` below it.
pub(super) fn nearest<'m, 'p, T>(places: &'m BTreeMap<String, T>, path: &'p str) -> Option<(&'m T, &'p str)> {
    let mut end = path.len();
    loop {
        if let Some(place) = places.get(&path[..end]) {
            return Some((place, &path[end..]));
        }
        end = path[..end].rfind(['.', '['])?;
    }
}
