//! What commands print: tables for people, with heads, or JSON for programs.

use super::{Environment, Failure};
use serde_json::Value;
use std::io::{self, IsTerminal as _, Write as _};

/// Standard output.
pub(super) struct Output {
    /// JSON instead of tables.
    pub(super) json: bool,
    has_colours: bool,
    /// Nobody reads any more, as in `keygate keys list | head`.
    is_closed: bool,
}

/// A column of a table: its head, and what an item has there.
pub(super) struct Column {
    pub(super) head: &'static str,
    pub(super) cell: fn(&Value) -> String,
}

/// A table whose rows arrive in parts.
pub(super) struct Table<'o> {
    output: &'o mut Output,
    columns: &'static [Column],
    widths: Vec<usize>,
    has_head: bool,
}

/// Words that say how something is.
const GOOD: &[&str] = &["active", "served"];
const BAD: &[&str] = &["deleted", "expired", "denied", "upstream_failed", "aborted", "interrupted"];
const NEUTRAL: &[&str] = &["disabled"];

impl Output {
    pub(super) fn new(json: bool, environment: Environment<'_>) -> Self {
        let is_plain = environment.variable("NO_COLOR").is_some_and(|value| !value.is_empty())
            || environment.variable("TERM") == Some("dumb");
        Self { json, has_colours: io::stdout().is_terminal() && !is_plain, is_closed: false }
    }

    /// Prints a line; nothing once nobody reads.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_closed = true,
            Err(error) => return Err(Failure::failed(error)),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Whether somebody still reads.
    pub(super) const fn is_read(&self) -> bool {
        !self.is_closed
    }

    /// One object: JSON, or a line for each field, the important ones first.
    pub(super) fn object(&mut self, object: &Value) -> Result<(), Failure> {
        if self.json {
            return self.line(&object.to_string());
        }
        let Some(fields) = object.as_object() else { return self.line(&shown(object)) };
        let width = fields.keys().map(String::len).max().unwrap_or_default();
        let first = ["id", "name", "workspace_id", "type"];
        let others = fields.iter().filter(|(name, _)| !first.contains(&name.as_str()));
        let all = first.iter().filter_map(|name| fields.get_key_value(*name)).chain(others);
        for (name, value) in all {
            let value = if is_instant(name) { instant(value) } else { shown(value) };
            let head = self.painted("1", &format!("{name:<width$}"));
            self.line(&format!("{head}  {value}"))?;
        }
        Ok(())
    }

    /// A table with these columns, or lines of JSON.
    pub(super) fn table(&mut self, columns: &'static [Column]) -> Table<'_> {
        let widths = columns.iter().map(|column| column.head.len()).collect();
        Table { output: self, columns, widths, has_head: false }
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.has_colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn of_word(&self, word: &str, padded: &str) -> String {
        match word {
            _ if GOOD.contains(&word) => self.painted("32", padded),
            _ if BAD.contains(&word) => self.painted("31", padded),
            _ if NEUTRAL.contains(&word) => self.painted("33", padded),
            _ => padded.to_owned(),
        }
    }
}

impl Table<'_> {
    /// Prints these rows, and the heads before the first. Returns whether somebody still reads.
    pub(super) fn rows(&mut self, items: &[Value]) -> Result<bool, Failure> {
        if self.output.json {
            for item in items {
                self.output.line(&item.to_string())?;
            }
            return Ok(self.output.is_read());
        }
        let rows: Vec<Vec<String>> = items
            .iter()
            .map(|item| self.columns.iter().map(|column| (column.cell)(item)).collect())
            .collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if !std::mem::replace(&mut self.has_head, true) {
            let heads: Vec<String> = self.columns.iter().map(|column| column.head.to_owned()).collect();
            let line = self.aligned(&heads);
            let line = self.output.painted("1", &line);
            self.output.line(&line)?;
        }
        for row in &rows {
            let line = self.aligned(row);
            self.output.line(&line)?;
        }
        Ok(self.output.is_read())
    }

    fn aligned(&self, row: &[String]) -> String {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&self.widths).enumerate() {
            if at > 0 {
                line.push_str("  ");
            }
            let is_last = at + 1 == row.len();
            let padded = if is_last { cell.clone() } else { format!("{cell:<width$}") };
            line.push_str(&self.output.of_word(cell, &padded));
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A value as people read it. Control characters, which a terminal would obey, are shown.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => harmless(text),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(shown).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// `text` without characters that a terminal obeys.
pub(super) fn harmless(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// Epoch milliseconds as people read them.
pub(super) fn instant(value: &Value) -> String {
    let at = value.as_i64().and_then(chrono::DateTime::from_timestamp_millis);
    at.map_or_else(|| shown(value), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

fn is_instant(name: &str) -> bool {
    name.ends_with("_at") || ["from", "to", "until"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(shown(&json!("a\u{1b}[2Jb\nc\u{9b}é")), "a\\u{1b}[2Jb\\nc\\u{9b}é");
        assert_eq!(shown(&json!(["a", "b"])), "a,b");
        assert_eq!(shown(&Value::Null), "-");
    }

    #[test]
    fn instants_are_dates() {
        assert_eq!(instant(&json!(1_767_225_600_123_i64)), "2026-01-01T00:00:00.123Z");
        assert_eq!(instant(&Value::Null), "-");
    }
}
