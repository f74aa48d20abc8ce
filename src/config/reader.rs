//! The state of reading a configuration: where everything is written, and every mistake with its place.
//!
//! Must not know: which keys there are, or how their values are read.

use super::credential::VARIABLES as CREDENTIALS;
use super::did_you_mean::did_you_mean;
use super::error::{ConfigError, Mistake};
use super::places::{ConfigPlaces, KeyPlace, nearest};
use super::types::KnownKey;
use crate::policy::text::plain_value::{lines, value};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The prefix of variables that override a key.
const VARIABLE_PREFIX: &str = "KEYGATE_";
/// Variables of the program whose values have several lines.
const SEVERAL_LINES: [&str; 3] =
    ["KEYGATE_SECRETS_PEPPERS", "KEYGATE_SECRETS_ENCRYPTION_KEYS", "KEYGATE_TELEMETRY_HEADERS"];
/// Most mistakes that are reported.
const MISTAKES_MAX: usize = 1000;
/// Longest part of an unknown name that is quoted, in characters.
const QUOTE_MAX: usize = 64;

/// The state of reading a configuration: what was found, and what was wrong.
pub(super) struct ConfigReader<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    /// Those with [`VARIABLE_PREFIX`].
    variables: BTreeMap<&'a str, &'a str>,
    used: BTreeSet<String>,
    /// Where each key and table is written.
    places: BTreeMap<String, SourceLocation>,
    /// The paths with invalid values.
    wrong: BTreeSet<String>,
    /// Lines that are not valid TOML: what is read from them is a guess.
    broken_lines: BTreeSet<usize>,
    mistakes: Vec<Mistake>,
    untold: usize,
    known: Vec<KnownKey>,
}

/// Where something is written.
#[derive(Clone)]
pub(super) enum SourceLocation {
    /// At this byte of the file.
    File(usize),
    /// In this variable.
    Variable(String),
}

// === impl ConfigReader ===

impl<'a> ConfigReader<'a> {
    /// A reader of `text` with those variables of `env` that belong to Keygate.
    pub(super) fn new(text: &'a str, env: &'a [(String, String)]) -> Self {
        let variables = env
            .iter()
            .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            line_starts: std::iter::once(0).chain(newlines).collect(),
            variables,
            used: BTreeSet::new(),
            places: BTreeMap::new(),
            wrong: BTreeSet::new(),
            broken_lines: BTreeSet::new(),
            mistakes: Vec::new(),
            untold: 0,
            known: Vec::new(),
        }
    }

    /// Notes where `path` is written.
    pub(super) fn found(&mut self, path: &str, place: SourceLocation) {
        self.places.insert(path.to_owned(), place);
    }

    /// The value of the variable that overrides `path`, if it is set.
    pub(super) fn variable(&mut self, path: &str) -> Option<&'a str> {
        let name = variable_name(path);
        let text = self.variables.get(name.as_str()).copied()?;
        self.found(path, SourceLocation::Variable(name.clone()));
        self.used.insert(name);
        value(text).map_err(|bad| self.complain(path, bad.to_string())).ok()
    }

    /// The value of the variable `name`, which holds a credential.
    pub(super) fn credential(&mut self, name: &str) -> Option<&'a str> {
        let text = self.variables.get(name).copied()?;
        value(text).map_err(|bad| self.tell_of_variable(name, &bad.to_string())).ok()
    }

    fn tell_of_variable(&mut self, name: &str, message: &str) {
        self.tell(Mistake { place: name.to_owned(), line: None, message: message.to_owned() });
    }

    /// Notes that a key was read.
    pub(super) fn know(&mut self, key: KnownKey) {
        self.known.push(key);
    }

    /// Notes a syntax error. Only the first one of a line is reported, because the others follow from it.
    pub(super) fn complain_of_syntax(&mut self, error: &toml::de::Error) {
        let at = self.line_and_column(error.span().map_or(self.text.len(), |span| span.start));
        if self.broken_lines.insert(at.0) {
            self.tell(Mistake {
                place: String::new(),
                line: Some(at),
                message: format!("not TOML: {}", error.message()),
            });
        }
    }

    /// Notes that the value at `path`, or at the nearest enclosing place, is wrong.
    pub(super) fn complain(&mut self, path: &str, message: impl Into<String>) {
        self.wrong.insert(path.to_owned());
        self.note(path, message.into());
    }

    fn note(&mut self, path: &str, message: String) {
        match nearest(&self.places, path).map(|(place, rest)| (place.clone(), rest)) {
            Some((SourceLocation::Variable(name), rest)) => {
                let place = name + rest;
                self.tell(Mistake { place, line: None, message });
            }
            Some((SourceLocation::File(byte), _)) => {
                let at = self.line_and_column(byte);
                if !self.broken_lines.contains(&at.0) {
                    self.tell(Mistake { place: path.to_owned(), line: Some(at), message });
                }
            }
            None => self.tell(Mistake { place: path.to_owned(), line: None, message }),
        }
    }

    /// Notes that `path` is missing, unless part of the file could not be read: it may be there.
    pub(super) fn complain_of_absence(&mut self, path: &str, message: String) {
        if self.broken_lines.is_empty() {
            self.complain(path, message);
        } else {
            self.wrong.insert(path.to_owned());
        }
    }

    /// Notes that the value at `paths[0]` conflicts with the values at the other `paths`. Silent if one of them is wrong
    /// itself, because then a default was compared that nobody chose.
    pub(super) fn complain_of_conflict(&mut self, paths: &[&str], message: impl Into<String>) {
        if self.broken_lines.is_empty() && paths.iter().all(|path| self.is_sound(path)) {
            self.note(paths[0], message.into());
        }
    }

    /// Whether `path` itself, not only something in it, is wrong.
    pub(super) fn is_wrong(&self, path: &str) -> bool {
        self.wrong.contains(path)
    }

    /// Whether nothing is wrong with `path`, inside it or around it.
    fn is_sound(&self, path: &str) -> bool {
        let mut alike = self
            .wrong
            .range::<str, _>((Bound::Included(path), Bound::Unbounded))
            .take_while(|wrong| wrong.starts_with(path));
        if alike.any(|wrong| is_within(wrong, path)) {
            return false;
        }
        let mut around = path;
        while let Some(end) = around.rfind(['.', '[']) {
            around = &around[..end];
            if self.wrong.contains(around) {
                return false;
            }
        }
        true
    }

    /// Whether `path` is set.
    pub(super) fn is_given(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Reports variables that override nothing, except `others`, which belong to the program, and those with credentials.
    pub(super) fn close_variables(&mut self, others: &[&str]) {
        for name in others {
            let Some(text) = self.variables.get(name).copied() else { continue };
            let read = if SEVERAL_LINES.contains(name) { lines(text) } else { value(text) };
            if let Err(bad) = read {
                self.tell(Mistake { place: (*name).to_owned(), line: None, message: bad.to_string() });
            }
        }
        let unused: Vec<(&str, &str)> = self
            .variables
            .iter()
            .map(|(name, value)| (*name, *value))
            .filter(|(name, value)| {
                !self.used.contains(*name)
                    && !others.contains(name)
                    && !name.starts_with(CREDENTIALS)
                    && !is_service_link(name, value)
            })
            .collect();
        for (name, _) in unused {
            let tables = ["PLANS", "UPSTREAMS", "ROUTES", "PRICES"];
            let rest = &name[VARIABLE_PREFIX.len()..];
            let message = if tables.iter().any(|table| rest.starts_with(table)) {
                "plans, upstreams, routes and prices can be set in the file only".to_owned()
            } else {
                let known = self.known.iter().filter_map(|key| key.variable.as_deref());
                match did_you_mean(rest, known.map(|known| &known[VARIABLE_PREFIX.len()..])) {
                    Some(meant) => format!("unknown variable; did you mean {VARIABLE_PREFIX}{meant}?"),
                    None => "unknown variable; it overrides no key".to_owned(),
                }
            };
            self.tell(Mistake { place: quoted(name), line: None, message });
        }
    }

    /// Every key that was read, in order.
    pub(super) fn into_known(self) -> Vec<KnownKey> {
        self.known
    }

    /// Where all keys of `file` are written.
    fn all_places(&self, file: &str) -> ConfigPlaces {
        let place = |place: &SourceLocation| match place {
            SourceLocation::Variable(name) => KeyPlace::Variable(name.clone()),
            SourceLocation::File(byte) => {
                let (line, column) = self.line_and_column(*byte);
                KeyPlace::Line(line, column)
            }
        };
        let keys = self.places.iter().map(|(key, at)| (key.clone(), place(at))).collect();
        ConfigPlaces { file: file.to_owned(), keys }
    }

    /// `value`, if there was no mistake, and where its keys are written.
    pub(super) fn finish<T>(mut self, file: &str, value: T) -> Result<(T, ConfigPlaces), ConfigError> {
        if self.mistakes.is_empty() {
            return Ok((value, self.all_places(file)));
        }
        self.mistakes.sort_by_key(|mistake| mistake.line.unwrap_or((usize::MAX, 0)));
        if self.untold > 0 {
            let message = format!("{} further mistakes are not shown", self.untold);
            self.mistakes.push(Mistake { place: String::new(), line: None, message });
        }
        Err(ConfigError { file: file.to_owned(), mistakes: self.mistakes })
    }

    /// `value` at `path` as a table.
    pub(super) fn as_table(
        &mut self,
        path: &str,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Option<&'a DeTable<'a>> {
        self.found(path, SourceLocation::File(value.span().start));
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.complain(path, "must be a table");
        }
        table
    }

    fn tell(&mut self, mistake: Mistake) {
        if self.mistakes.len() < MISTAKES_MAX {
            self.mistakes.push(mistake);
        } else {
            self.untold += 1;
        }
    }

    /// Line and column of a byte of the file, both from 1.
    fn line_and_column(&self, byte: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= byte);
        let start = self.line_starts[line.saturating_sub(1)];
        let before = self.text.get(start..byte).unwrap_or_default();
        (line, before.chars().count() + 1)
    }
}

// === names ===

/// The path of `key` in the table at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The variable that overrides the key at `path`.
pub(super) fn variable_name(path: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

/// A user-chosen name, safe to show: no control characters, cut to [`QUOTE_MAX`].
pub(super) fn quoted(name: &str) -> String {
    name.chars().take(QUOTE_MAX).flat_map(char::escape_debug).collect()
}

fn is_within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Whether the variable is one that Kubernetes and Docker set for a neighbouring service called `keygate` or `keygate-…`.
/// These are ignored.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_port =
        name.rsplit_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || is_port
        || (name.ends_with("_PORT") && value.contains("://"))
}
