//! Parses a usage record from a line of a file, written by [`RecordLine`](crate::policy::text::record_line::RecordLine) or
//! by a person.

use crate::admin::input::json;
use crate::clock::Timestamp;
use crate::model::usage::UsageRecord;
use crate::model::usage::fields::FieldReader;
use crate::policy::text::csv_cell::plain;
use crate::policy::text::record_line::name_in_files;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

/// The fields that files of earlier versions do not have.
const ADDED: [&str; 11] = [
    "model",
    "model_requested",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "cost_nano",
    "usage_source",
    "provider_request_id",
];

/// The fields that have not been read yet.
struct UnreadFields {
    values: Map<String, Value>,
    /// Every value is text, as in cells: an empty one may be null, others may be numbers.
    are_cells: bool,
}

/// The record in a line.
pub(super) fn read(line: &str) -> Result<UsageRecord, String> {
    record(UnreadFields { values: json::line(line)?, are_cells: false })
}

/// The record in a CSV row; `names` is the header.
pub(super) fn read_cells<'c>(
    names: impl Iterator<Item = &'c str>,
    cells: impl Iterator<Item = &'c str>,
) -> Result<UsageRecord, String> {
    let values = names.zip(cells).map(|(name, cell)| (name.to_owned(), cell.into())).collect();
    record(UnreadFields { values, are_cells: true })
}

fn record(mut line: UnreadFields) -> Result<UsageRecord, String> {
    let record = UsageRecord::read(&mut line)?;
    // A record that a gateway set aside has the same fields, and the reason.
    line.values.remove("refused_because");
    match line.values.keys().next() {
        Some(unknown) => Err(format!("{unknown}: is no field of a usage record")),
        None => Ok(record),
    }
}

// === impl UnreadFields ===

impl UnreadFields {
    fn take(&mut self, name: &str) -> Result<Value, String> {
        self.values.remove(name).ok_or_else(|| format!("{name}: is missing"))
    }

    /// The same for an optional field. Null must be explicit, except for fields that files of earlier versions lack.
    fn maybe_take(&mut self, name: &str) -> Result<Option<Value>, String> {
        if ADDED.contains(&name) && !self.values.contains_key(name) {
            return Ok(None);
        }
        Ok(match self.take(name)? {
            Value::Null => None,
            Value::String(cell) if self.are_cells && cell.is_empty() => None,
            value => Some(value),
        })
    }

    fn to_text(&self, name: &str, value: Value) -> Result<String, String> {
        match value {
            Value::String(cell) if self.are_cells => Ok(plain(&cell).to_owned()),
            Value::String(text) => Ok(text),
            _ => Err(format!("{name}: must be text")),
        }
    }

    /// What is not a number stays text, and the field's own rule reports what is allowed.
    fn to_number(&self, value: Value) -> Value {
        let Value::String(cell) = &value else { return value };
        if !self.are_cells {
            return value;
        }
        let number = cell.parse::<u64>().map(Value::from).or_else(|_| cell.parse::<i64>().map(Value::from));
        number.unwrap_or(value)
    }

    fn to_uuid(&self, name: &str, value: Value) -> Result<Uuid, String> {
        Uuid::try_parse(&self.to_text(name, value)?).map_err(|_| format!("{name}: must be a UUID"))
    }

    fn to_parsed<T: FromStr<Err: Display>>(&self, name: &str, value: Value) -> Result<T, String> {
        self.to_text(name, value)?.parse().map_err(|why| format!("{name}: {why}"))
    }

    fn to_count(&self, name: &str, value: Value) -> Result<u64, String> {
        let count = self.to_number(value).as_u64();
        count.ok_or_else(|| format!("{name}: must be a whole number, 0 or more"))
    }
}

impl FieldReader for UnreadFields {
    type Error = String;

    fn uuid(&mut self, name: &'static str) -> Result<Uuid, String> {
        let value = self.take(name)?;
        self.to_uuid(name, value)
    }

    fn maybe_uuid(&mut self, name: &'static str) -> Result<Option<Uuid>, String> {
        self.maybe_take(name)?.map(|value| self.to_uuid(name, value)).transpose()
    }

    fn text(&mut self, name: &'static str) -> Result<Arc<str>, String> {
        let value = self.take(name)?;
        self.to_text(name, value).map(Into::into)
    }

    fn maybe_text(&mut self, name: &'static str) -> Result<Option<Arc<str>>, String> {
        self.maybe_take(name)?.map(|value| self.to_text(name, value).map(Into::into)).transpose()
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<T, String> {
        let value = self.take(name)?;
        self.to_parsed(name, value)
    }

    fn maybe_parsed<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<Option<T>, String> {
        self.maybe_take(name)?.map(|value| self.to_parsed(name, value)).transpose()
    }

    fn status(&mut self, name: &'static str) -> Result<u16, String> {
        let status = self.count(name)?;
        u16::try_from(status).map_err(|_| format!("{name}: must be at most {}", u16::MAX))
    }

    fn count(&mut self, name: &'static str) -> Result<u64, String> {
        let value = self.take(name)?;
        self.to_count(name, value)
    }

    fn maybe_count(&mut self, name: &'static str) -> Result<Option<u64>, String> {
        self.maybe_take(name)?.map(|value| self.to_count(name, value)).transpose()
    }

    fn instant(&mut self, name: &'static str) -> Result<Timestamp, String> {
        let name = name_in_files(name);
        let value = self.take(name)?;
        let at = self.to_number(value).as_i64().map(Timestamp::from_micros);
        at.filter(|at| (Timestamp::default()..=Timestamp::MAX).contains(at))
            .ok_or_else(|| format!("{name}: must be epoch microseconds of the years 1970 to 9999"))
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, String> {
        let flag = match self.take(name)? {
            Value::String(cell) if self.are_cells => cell.parse().ok(),
            value => value.as_bool(),
        };
        flag.ok_or_else(|| format!("{name}: must be true or false"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::Fault;
    use crate::policy::text::record_line::RecordLine;
    use serde_json::json;

    fn names() -> Vec<&'static str> {
        UsageRecord::FIELDS.iter().copied().map(name_in_files).collect()
    }

    fn written(of: &UsageRecord) -> String {
        serde_json::to_string(&RecordLine::json(of)).expect("JSON")
    }

    #[test]
    fn a_record_is_always_written_the_same() {
        let full = UsageRecord::full_sample();
        let bare = UsageRecord::bare_sample();
        let mut rows = csv::Writer::from_writer(Vec::new());
        for record in [&full, &bare] {
            rows.serialize(RecordLine::cells(record)).expect("a row");
        }
        let text = String::from_utf8(rows.into_inner().expect("written")).expect("text");
        insta::assert_snapshot!(format!("{}\n{}\n{text:?}", written(&full), written(&bare)));
    }

    #[test]
    fn written_values_read_back_exactly() {
        for whole in [UsageRecord::full_sample(), UsageRecord::bare_sample()] {
            let line = written(&whole);
            assert!(!line.contains('\n'), "one line: {line}");
            assert_eq!(read(&line), Ok(whole));
        }
    }

    #[test]
    fn csv_cells_read_back_exactly_and_hold_no_formula() {
        let texts = ["", "=1+1", "'=1+1", "+a,\"b\"\r\n", "\t@x", "-", "plain", " =blank", "'", "a\u{0}b"];
        for (n, text) in texts.iter().enumerate() {
            let other = texts[(n + 1) % texts.len()];
            let whole = UsageRecord {
                request_id: (*text).into(),
                method: other.into(),
                endpoint: (*text).into(),
                route: other.into(),
                user_agent: (*text).into(),
                upstream: other.into(),
                node: (*text).into(),
                denial: (n % 2 == 0).then_some(Fault::KeyNotFound),
                ttfb_us: (n % 2 == 1).then_some(0),
                ip_address: None,
                end_user_id: None,
                ..UsageRecord::full_sample()
            };
            let mut rows = csv::Writer::from_writer(Vec::new());
            rows.serialize(RecordLine::cells(&whole)).expect("a row");
            let written = rows.into_inner().expect("written");
            let mut reader = csv::Reader::from_reader(written.as_slice());
            let names = reader.headers().expect("a head").clone();
            let row = reader.records().next().expect("a row").expect("sound");
            assert!(row.iter().all(|cell| !cell.starts_with(['=', '+', '-', '@', '\t', '\r'])), "{row:?}");
            assert_eq!(read_cells(names.iter(), row.iter()), Ok(whole), "{text:?}");
        }
    }

    #[test]
    fn the_head_names_the_fields_in_their_order() {
        let mut rows = csv::Writer::from_writer(Vec::new());
        rows.serialize(RecordLine::cells(&UsageRecord::full_sample())).expect("a row");
        let text = String::from_utf8(rows.into_inner().expect("written")).expect("text");
        assert_eq!(text.lines().next(), Some(names().join(",").as_str()));
    }

    #[test]
    fn a_line_of_an_earlier_version_is_a_record_without_a_reading() {
        let line = r#"{"id":"01980000-0000-7000-8000-000000000001","request_id":"r\u0001\"β","api_key_id":"00000000-0000-0000-0000-000000000002","workspace_id":"w1","at_us":1751327999999999,"method":"POST","endpoint":"/v1/a,b","route":"=route","status_code":429,"outcome":"denied","denial":null,"charged":true,"degraded":false,"response_time_us":18446744073709551615,"ttfb_us":null,"bytes_in":4,"bytes_out":5,"tokens_used":6,"ip_address":null,"user_agent":"a\nb","end_user_id":null,"upstream":"10.0.0.2:80","node":"n-1"}"#;
        assert_eq!(read(line), Ok(UsageRecord::bare_sample()));
    }

    #[test]
    fn a_line_that_is_none_is_refused_by_its_field() {
        let whole: Map<String, Value> =
            serde_json::from_str(&written(&UsageRecord::full_sample())).expect("an object");
        for name in names() {
            let mut lacking = whole.clone();
            lacking.remove(name);
            let found = read(&Value::Object(lacking).to_string());
            if ADDED.contains(&name) {
                let found = serde_json::to_value(RecordLine::json(&found.expect(name))).expect("JSON");
                assert_eq!(found[name], Value::Null, "{name}");
            } else {
                assert_eq!(found, Err(format!("{name}: is missing")));
            }
            let mut odd = whole.clone();
            odd.insert(name.into(), json!([1]));
            let why = read(&Value::Object(odd).to_string()).expect_err(name);
            assert!(why.starts_with(&format!("{name}: must be")), "{why}");
        }
        for (name, value) in [
            ("at_us", json!(-1)),
            ("at_us", json!(253_402_300_800_000_000_i64)),
            ("status_code", json!(65_536)),
            ("outcome", json!("liked")),
            ("denial", json!("mood")),
            ("ip_address", json!("localhost")),
            ("usage_source", json!("guessed")),
            ("cost_nano", json!(-1)),
            ("workspace_id", json!("a b")),
            ("more", json!(1)),
        ] {
            let mut odd = whole.clone();
            odd.insert(name.into(), value);
            let why = read(&Value::Object(odd).to_string()).expect_err(name);
            assert!(why.starts_with(&format!("{name}: ")), "{why}");
        }
        for text in ["", "[]", "{", "null"] {
            assert_eq!(read(text), Err("is not a JSON object".into()), "{text}");
        }
        let twice = format!("{{\"charged\":false,{}", &written(&UsageRecord::full_sample())[1..]);
        assert_eq!(read(&twice), Err("charged: is there twice".into()));
    }
}
