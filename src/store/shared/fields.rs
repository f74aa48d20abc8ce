//! Reads rows column by column in the order of the SELECT, with checks and precise errors.
//!
//! Must not know: which table is read, or how a backend represents values ([`RowColumns`] does). An invalid value is
//! [`StoreError::Corrupt`] with the name of the column and never the value, which could be a digest.

use crate::clock::Timestamp;
use crate::model::usage::fields::FieldReader;
use crate::store::StoreError;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

/// One row of a backend. None is NULL; an error says what a value is not, to follow the column's name.
pub(in crate::store) trait RowColumns {
    fn text(&self, at: usize) -> Result<Option<&str>, &'static str>;
    fn int(&self, at: usize) -> Result<Option<i64>, &'static str>;
    fn flag(&self, at: usize) -> Result<Option<bool>, &'static str>;
    fn bytes(&self, at: usize) -> Result<Option<&[u8]>, &'static str>;
    fn uuid(&self, at: usize) -> Result<Option<Uuid>, &'static str>;
    /// The first column as text for messages, whatever it contains. It is an id, never a digest.
    fn id_for_people(&self) -> String;
}

/// The columns of one row that are still to be read.
pub(in crate::store) struct RowReader<'r> {
    row: &'r dyn RowColumns,
    at: usize,
}

/// A count as both backends store it. Larger ones were refused by the rules, or are saturated sums.
pub(in crate::store) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

// === impl RowReader ===

impl<'r> RowReader<'r> {
    /// All columns of `row`.
    pub(in crate::store) fn of(row: &'r dyn RowColumns) -> Self {
        Self { row, at: 0 }
    }

    pub(in crate::store) fn text(&mut self, name: &str) -> Result<&'r str, StoreError> {
        self.maybe_text(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(in crate::store) fn maybe_text(&mut self, name: &str) -> Result<Option<&'r str>, StoreError> {
        let at = self.step();
        self.row.text(at).map_err(|why| corrupt(name, why))
    }

    /// A text that is a word, an id or an address.
    pub(in crate::store) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<T, StoreError> {
        self.text(name)?.parse().map_err(|error| corrupt(name, error))
    }

    pub(in crate::store) fn maybe_parsed<T: FromStr<Err: Display>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, StoreError> {
        let text = self.maybe_text(name)?;
        text.map(|t| t.parse().map_err(|error| corrupt(name, error))).transpose()
    }

    /// A text that `read` can parse.
    pub(in crate::store) fn read<T, E: Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&'r str) -> Result<T, E>,
    ) -> Result<T, StoreError> {
        read(self.text(name)?).map_err(|error| corrupt(name, error))
    }

    /// A whole number that fits `T`.
    pub(in crate::store) fn int<T: TryFrom<i64>>(&mut self, name: &str) -> Result<T, StoreError> {
        self.maybe_int(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(in crate::store) fn maybe_int<T: TryFrom<i64>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, StoreError> {
        let at = self.step();
        let Some(n) = self.row.int(at).map_err(|why| corrupt(name, why))? else { return Ok(None) };
        T::try_from(n).map(Some).map_err(|_| corrupt(name, "is out of range"))
    }

    pub(in crate::store) fn bool(&mut self, name: &str) -> Result<bool, StoreError> {
        let at = self.step();
        let flag = self.row.flag(at).map_err(|why| corrupt(name, why))?;
        flag.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(in crate::store) fn instant(&mut self, name: &str) -> Result<Timestamp, StoreError> {
        self.maybe_instant(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(in crate::store) fn maybe_instant(&mut self, name: &str) -> Result<Option<Timestamp>, StoreError> {
        let Some(us) = self.maybe_int::<i64>(name)? else { return Ok(None) };
        if us.unsigned_abs() > Timestamp::MAX.as_micros().unsigned_abs() {
            return Err(corrupt(name, "is no instant of a calendar"));
        }
        Ok(Some(Timestamp::from_micros(us)))
    }

    pub(in crate::store) fn blob(&mut self, name: &str) -> Result<&'r [u8], StoreError> {
        self.maybe_blob(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(in crate::store) fn maybe_blob(&mut self, name: &str) -> Result<Option<&'r [u8]>, StoreError> {
        let at = self.step();
        self.row.bytes(at).map_err(|why| corrupt(name, why))
    }

    pub(in crate::store) fn uuid(&mut self, name: &str) -> Result<Uuid, StoreError> {
        self.maybe_uuid(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(in crate::store) fn maybe_uuid(&mut self, name: &str) -> Result<Option<Uuid>, StoreError> {
        let at = self.step();
        self.row.uuid(at).map_err(|why| corrupt(name, why))
    }

    pub(in crate::store) fn digest(&mut self, name: &str) -> Result<[u8; 32], StoreError> {
        self.maybe_digest(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(in crate::store) fn maybe_digest(&mut self, name: &str) -> Result<Option<[u8; 32]>, StoreError> {
        let Some(bytes) = self.maybe_blob(name)? else { return Ok(None) };
        bytes.try_into().map(Some).map_err(|_| corrupt(name, "is not 32 bytes"))
    }

    /// See [`RowColumns::id_for_people`].
    pub(in crate::store) fn id_for_people(&self) -> String {
        self.row.id_for_people()
    }

    /// The same row from its first column on.
    pub(in crate::store) fn rewound(&self) -> Self {
        Self { row: self.row, at: 0 }
    }

    /// Skips a column.
    pub(in crate::store) fn skip(&mut self) {
        self.step();
    }

    fn step(&mut self) -> usize {
        self.at += 1;
        self.at - 1
    }
}

impl FieldReader for RowReader<'_> {
    type Error = StoreError;

    fn uuid(&mut self, name: &'static str) -> Result<Uuid, StoreError> {
        RowReader::uuid(self, name)
    }

    fn maybe_uuid(&mut self, name: &'static str) -> Result<Option<Uuid>, StoreError> {
        RowReader::maybe_uuid(self, name)
    }

    fn text(&mut self, name: &'static str) -> Result<Arc<str>, StoreError> {
        RowReader::text(self, name).map(Into::into)
    }

    fn maybe_text(&mut self, name: &'static str) -> Result<Option<Arc<str>>, StoreError> {
        Ok(RowReader::maybe_text(self, name)?.map(Into::into))
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<T, StoreError> {
        RowReader::parsed(self, name)
    }

    fn maybe_parsed<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, StoreError> {
        RowReader::maybe_parsed(self, name)
    }

    fn status(&mut self, name: &'static str) -> Result<u16, StoreError> {
        self.int(name)
    }

    fn count(&mut self, name: &'static str) -> Result<u64, StoreError> {
        self.int(name)
    }

    fn maybe_count(&mut self, name: &'static str) -> Result<Option<u64>, StoreError> {
        self.maybe_int(name)
    }

    fn instant(&mut self, name: &'static str) -> Result<Timestamp, StoreError> {
        RowReader::instant(self, name)
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, StoreError> {
        self.bool(name)
    }
}

fn corrupt(name: &str, why: impl Display) -> StoreError {
    StoreError::Corrupt(format!("{name} {why}"))
}
