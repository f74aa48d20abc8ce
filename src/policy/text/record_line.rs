//! A usage record in a file: a line of JSON or a CSV row. Unlike the view of the admin API it has every field of the
//! ledger, with instants and durations in µs.

use crate::clock::Timestamp;
use crate::model::usage::UsageRecord;
use crate::model::usage::fields::FieldWriter;
use crate::policy::text::csv_cell::neutral;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// A record as it is written.
#[derive(Clone, Copy, Debug)]
pub struct RecordLine<'r> {
    record: &'r UsageRecord,
    are_cells: bool,
}

/// The fields of a line written so far.
struct LineFields<S> {
    fields: S,
    are_cells: bool,
}

/// The name of a field in a file; that of an instant includes its unit.
pub fn name_in_files(field: &'static str) -> &'static str {
    if field == "at" { "at_us" } else { field }
}

// === impl RecordLine ===

impl<'r> RecordLine<'r> {
    /// For a line of JSON.
    pub const fn json(record: &'r UsageRecord) -> Self {
        Self { record, are_cells: false }
    }

    /// For a CSV row: no client text is a formula there.
    pub const fn cells(record: &'r UsageRecord) -> Self {
        Self { record, are_cells: true }
    }
}

impl Serialize for RecordLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { record, are_cells } = *self;
        let fields = serializer.serialize_struct("UsageRecord", UsageRecord::FIELDS.len())?;
        let mut line = LineFields { fields, are_cells };
        record.write(&mut line)?;
        line.fields.end()
    }
}

// === impl LineFields ===

impl<S: SerializeStruct> FieldWriter for LineFields<S> {
    type Error = S::Error;

    fn uuid(&mut self, name: &'static str, id: Option<Uuid>) -> Result<(), S::Error> {
        self.fields.serialize_field(name, &id)
    }

    fn text(&mut self, name: &'static str, text: Option<&str>) -> Result<(), S::Error> {
        match text {
            Some(text) if self.are_cells => self.fields.serialize_field(name, &neutral(text)),
            text => self.fields.serialize_field(name, &text),
        }
    }

    fn count(&mut self, name: &'static str, count: Option<u64>) -> Result<(), S::Error> {
        self.fields.serialize_field(name, &count)
    }

    fn instant(&mut self, name: &'static str, at: Timestamp) -> Result<(), S::Error> {
        self.fields.serialize_field(name_in_files(name), &at.as_micros())
    }

    fn flag(&mut self, name: &'static str, flag: bool) -> Result<(), S::Error> {
        self.fields.serialize_field(name, &flag)
    }
}
