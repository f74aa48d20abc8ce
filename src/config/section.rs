//! Reads a configuration section by section, without stopping at a mistake.
//!
//! The call that reads a key names the key, its rule and its default. The variable that overrides it, the error for unknown
//! keys, and the list of all keys follow from this call.
//!
//! Must not know: which keys there are, or what they mean.

use super::did_you_mean::did_you_mean;
use super::raw_value::RawValue;
use super::reader::{ConfigReader, SourceLocation, join, quoted, variable_name};
use super::rule::ValueRule;
use super::types::KnownKey;
use crate::policy::text::plain_value::value;
use std::ops::RangeInclusive;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A table that is being read.
pub(super) struct Section<'r, 'a> {
    reading: &'r mut ConfigReader<'a>,
    path: String,
    /// The path with `[]` and `NAME` for the parts that the user chooses.
    pattern: String,
    table: Option<&'a DeTable<'a>>,
    /// Whether variables can override its keys.
    variables: bool,
    asked: Vec<&'static str>,
}

// === impl Section ===

impl<'r, 'a> Section<'r, 'a> {
    /// The result of `read` for the whole file.
    pub(super) fn root<T>(
        reading: &'r mut ConfigReader<'a>,
        table: &'a DeTable<'a>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let mut root = Self {
            reading,
            path: String::new(),
            pattern: String::new(),
            table: Some(table),
            variables: true,
            asked: Vec::new(),
        };
        let value = read(&mut root);
        root.close();
        value
    }

    /// The value of `key`, or `default` if it is absent or wrong.
    pub(super) fn value<R: ValueRule>(&mut self, key: &'static str, rule: &R, default: R::Value) -> R::Value {
        self.know(key, rule.show(&default));
        self.read(key, rule).unwrap_or(default)
    }

    /// The value of a required key; none if it is absent or wrong, which is a mistake.
    pub(super) fn required<R: ValueRule>(&mut self, key: &'static str, rule: &R) -> Option<R::Value> {
        self.know(key, String::new());
        if self.find(key).is_some() {
            return self.read(key, rule);
        }
        let message = format!("is missing; it must be {}", rule.must());
        self.reading.complain_of_absence(&join(&self.path, key), message);
        None
    }

    /// The items of the list `key`, or `default` if it is absent or any item is wrong.
    pub(super) fn list<R: ValueRule>(
        &mut self,
        key: &'static str,
        rule: &R,
        count: RangeInclusive<usize>,
        default: Vec<R::Value>,
    ) -> Vec<R::Value> {
        let shown: Vec<String> = default.iter().map(|item| rule.show(item)).collect();
        self.know(key, format!("[{}]", shown.join(", ")));
        self.read_list(key, rule, &count).unwrap_or(default)
    }

    /// The items of a required list; empty if it is absent or any item is wrong, which is a mistake.
    pub(super) fn required_list<R: ValueRule>(
        &mut self,
        key: &'static str,
        rule: &R,
        count: RangeInclusive<usize>,
    ) -> Vec<R::Value> {
        self.know(key, String::new());
        if self.find(key).is_some() {
            return self.read_list(key, rule, &count).unwrap_or_default();
        }
        let message = format!("is missing; it must be a list, each item {}", rule.must());
        self.reading.complain_of_absence(&join(&self.path, key), message);
        Vec::new()
    }

    /// The result of `read` for the table `key`, which is empty if absent.
    pub(super) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 'a>) -> T) -> T {
        self.asked.push(key);
        let path = join(&self.path, key);
        let found = self.table.and_then(|table| table.get(key));
        let table = found.and_then(|value| self.reading.as_table(&path, value));
        let mut child = Section {
            pattern: join(&self.pattern, key),
            reading: self.reading,
            path,
            table,
            variables: self.variables,
            asked: Vec::new(),
        };
        let value = read(&mut child);
        child.close();
        value
    }

    /// The results of `read` for each table in the list `key`, in order; none for an item that is not a table.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        count_max: usize,
        read: impl Fn(&mut Section<'_, 'a>) -> T,
    ) -> Vec<Option<T>> {
        self.asked.push(key);
        let path = join(&self.path, key);
        let Some(value) = self.table.and_then(|table| table.get(key)) else { return Vec::new() };
        self.reading.found(&path, SourceLocation::File(value.span().start));
        let Some(items) = value.get_ref().as_array() else {
            self.reading.complain(&path, format!("must be a list of tables, each under [[{path}]]"));
            return vec![None];
        };
        if items.len() > count_max {
            self.reading.complain(&path, format!("must be at most {count_max} tables"));
            return vec![None];
        }
        let pattern = format!("{}[]", join(&self.pattern, key));
        let mut values = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            values.push(self.one_of_many(format!("{path}[{n}]"), pattern.clone(), item, &read));
        }
        values
    }

    /// The results of `read` for each table in the table `key`, with its name.
    pub(super) fn named_tables<T>(
        &mut self,
        key: &'static str,
        count_max: usize,
        read: impl Fn(&mut Section<'_, 'a>) -> T,
    ) -> Vec<(&'a str, T)> {
        self.asked.push(key);
        let path = join(&self.path, key);
        let Some(value) = self.table.and_then(|table| table.get(key)) else { return Vec::new() };
        let Some(table) = self.reading.as_table(&path, value) else { return Vec::new() };
        if table.len() > count_max {
            self.reading.complain(&path, format!("must be at most {count_max} tables"));
            return Vec::new();
        }
        let pattern = format!("{}.NAME", join(&self.pattern, key));
        let mut values = Vec::with_capacity(table.len());
        for (key, item) in table {
            let name: &'a str = key.get_ref();
            let child = self.one_of_many(join(&path, &quoted(name)), pattern.clone(), item, &read);
            values.extend(child.map(|made| (name, made)));
        }
        values
    }

    fn one_of_many<T>(
        &mut self,
        path: String,
        pattern: String,
        value: &'a Spanned<DeValue<'a>>,
        read: impl Fn(&mut Section<'_, 'a>) -> T,
    ) -> Option<T> {
        let table = Some(self.reading.as_table(&path, value)?);
        let mut child =
            Section { reading: self.reading, path, pattern, table, variables: false, asked: Vec::new() };
        let value = read(&mut child);
        child.close();
        Some(value)
    }

    fn read<R: ValueRule>(&mut self, key: &'static str, rule: &R) -> Option<R::Value> {
        let given = self.find(key)?;
        match rule.read(given) {
            Ok(value) => Some(value),
            Err(message) => {
                self.reading.complain(&join(&self.path, key), message);
                None
            }
        }
    }

    fn read_list<R: ValueRule>(
        &mut self,
        key: &'static str,
        rule: &R,
        count: &RangeInclusive<usize>,
    ) -> Option<Vec<R::Value>> {
        let given = self.find(key)?;
        let path = join(&self.path, key);
        let Some(items) = given.items() else {
            self.reading.complain(&path, format!("must be a list, each item {}", rule.must()));
            return None;
        };
        if !count.contains(&items.len()) {
            self.reading
                .complain(&path, format!("must be a list of {} to {} items", count.start(), count.end()));
            return None;
        }
        let mut values = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            let item_path = format!("{path}[{n}]");
            if let RawValue::File(value) = item {
                self.reading.found(&item_path, SourceLocation::File(value.span().start));
            }
            // Each item of a variable could be quoted separately.
            let read = match item {
                RawValue::Variable(text) => {
                    value(text).map_err(|bad| bad.to_string()).and_then(|_| rule.read(*item))
                }
                RawValue::File(_) => rule.read(*item),
            };
            match read {
                Ok(value) => values.push(value),
                Err(message) => self.reading.complain(&item_path, message),
            }
        }
        (values.len() == items.len()).then_some(values)
    }

    /// The value written for `key`; a variable overrides the file.
    fn find(&mut self, key: &'static str) -> Option<RawValue<'a>> {
        let path = join(&self.path, key);
        if self.variables
            && let Some(text) = self.reading.variable(&path)
        {
            return Some(RawValue::Variable(text));
        }
        let value = self.table?.get(key)?;
        self.reading.found(&path, SourceLocation::File(value.span().start));
        Some(RawValue::File(value))
    }

    fn know(&mut self, key: &'static str, default: String) {
        self.asked.push(key);
        let variable = self.variables.then(|| variable_name(&join(&self.path, key)));
        self.reading.know(KnownKey { path: join(&self.pattern, key), variable, default });
    }

    /// Reports keys that nothing has read.
    fn close(self) {
        let Some(table) = self.table else { return };
        for (key, _) in table {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let message = match did_you_mean(name, self.asked.iter().copied()) {
                Some(meant) => format!("unknown key; did you mean {meant:?}?"),
                None => format!("unknown key; known here: {}", self.asked.join(", ")),
            };
            let path = join(&self.path, &quoted(name));
            self.reading.found(&path, SourceLocation::File(key.span().start));
            self.reading.complain(&path, message);
        }
    }
}
