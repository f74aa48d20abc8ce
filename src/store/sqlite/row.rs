//! Reading rows: column by column in the order of the SELECT, each checked, each mistake named.
//!
//! Must not know: which table is read. A value that cannot be is [`StoreError::Corrupt`] with the column's name and
//! never with the value, which could be a digest.

use super::StoreError;
use crate::clock::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Params, Row, Transaction};
use std::fmt::Display;
use std::str::FromStr;
use uuid::Uuid;

/// The columns of one row that have not been read yet.
pub(super) struct Fields<'r> {
    row: &'r Row<'r>,
    at: usize,
}

/// The first row, if there is one.
pub(super) fn one<T>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    decode: impl FnOnce(&mut Fields<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let Some(row) = rows.next()? else { return Ok(None) };
    decode(&mut Fields { row, at: 0 }).map(Some)
}

/// Every row.
pub(super) fn all<T>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    mut decode: impl FnMut(&mut Fields<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut items = Vec::new();
    each(tx, sql, params, |fields| {
        items.push(decode(fields)?);
        Ok(())
    })?;
    Ok(items)
}

/// Every row, one at a time.
pub(super) fn each(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    mut visit: impl FnMut(&mut Fields<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        visit(&mut Fields { row, at: 0 })?;
    }
    Ok(())
}

/// The one number that a `SELECT count(*)` answers.
pub(super) fn count(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<u64, StoreError> {
    Ok(one(tx, sql, params, |f| f.int("count"))?.unwrap_or(0))
}

/// Runs a statement and answers how many rows it touched.
pub(super) fn execute(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<usize, StoreError> {
    Ok(tx.prepare_cached(sql)?.execute(params)?)
}

/// A count as SQLite holds it. What is larger was refused by the rules, or is a sum that has stopped there.
pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

// === impl Fields ===

impl<'r> Fields<'r> {
    /// The next column as it is.
    fn next(&mut self) -> Result<ValueRef<'r>, StoreError> {
        let value = self.row.get_ref(self.at)?;
        self.at += 1;
        Ok(value)
    }

    pub(super) fn text(&mut self, name: &str) -> Result<&'r str, StoreError> {
        self.maybe_text(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(super) fn maybe_text(&mut self, name: &str) -> Result<Option<&'r str>, StoreError> {
        match self.next()? {
            ValueRef::Null => Ok(None),
            ValueRef::Text(bytes) => {
                std::str::from_utf8(bytes).map(Some).map_err(|_| corrupt(name, "is not UTF-8"))
            }
            _ => Err(corrupt(name, "is not text")),
        }
    }

    /// A text that is a word, an id or an address.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<T, StoreError> {
        self.text(name)?.parse().map_err(|error| corrupt(name, error))
    }

    pub(super) fn maybe_parsed<T: FromStr<Err: Display>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, StoreError> {
        let text = self.maybe_text(name)?;
        text.map(|t| t.parse().map_err(|error| corrupt(name, error))).transpose()
    }

    /// A text that `read` understands.
    pub(super) fn read<T, E: Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&'r str) -> Result<T, E>,
    ) -> Result<T, StoreError> {
        read(self.text(name)?).map_err(|error| corrupt(name, error))
    }

    /// A whole number that fits `T`.
    pub(super) fn int<T: TryFrom<i64>>(&mut self, name: &str) -> Result<T, StoreError> {
        self.maybe_int(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(super) fn maybe_int<T: TryFrom<i64>>(&mut self, name: &str) -> Result<Option<T>, StoreError> {
        match self.next()? {
            ValueRef::Null => Ok(None),
            ValueRef::Integer(n) => T::try_from(n).map(Some).map_err(|_| corrupt(name, "is out of range")),
            _ => Err(corrupt(name, "is not a number")),
        }
    }

    pub(super) fn bool(&mut self, name: &str) -> Result<bool, StoreError> {
        match self.int::<i64>(name)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(corrupt(name, "is neither 0 nor 1")),
        }
    }

    pub(super) fn instant(&mut self, name: &str) -> Result<Timestamp, StoreError> {
        self.maybe_instant(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(super) fn maybe_instant(&mut self, name: &str) -> Result<Option<Timestamp>, StoreError> {
        let Some(us) = self.maybe_int::<i64>(name)? else { return Ok(None) };
        if us.unsigned_abs() > Timestamp::MAX.as_micros().unsigned_abs() {
            return Err(corrupt(name, "is no instant of a calendar"));
        }
        Ok(Some(Timestamp::from_micros(us)))
    }

    pub(super) fn blob(&mut self, name: &str) -> Result<&'r [u8], StoreError> {
        self.maybe_blob(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    fn maybe_blob(&mut self, name: &str) -> Result<Option<&'r [u8]>, StoreError> {
        match self.next()? {
            ValueRef::Null => Ok(None),
            ValueRef::Blob(bytes) => Ok(Some(bytes)),
            _ => Err(corrupt(name, "is not binary")),
        }
    }

    pub(super) fn uuid(&mut self, name: &str) -> Result<Uuid, StoreError> {
        self.maybe_uuid(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(super) fn maybe_uuid(&mut self, name: &str) -> Result<Option<Uuid>, StoreError> {
        let Some(bytes) = self.maybe_blob(name)? else { return Ok(None) };
        Uuid::from_slice(bytes).map(Some).map_err(|_| corrupt(name, "is not 16 bytes"))
    }

    pub(super) fn digest(&mut self, name: &str) -> Result<[u8; 32], StoreError> {
        self.maybe_digest(name)?.ok_or_else(|| corrupt(name, "is missing"))
    }

    pub(super) fn maybe_digest(&mut self, name: &str) -> Result<Option<[u8; 32]>, StoreError> {
        let Some(bytes) = self.maybe_blob(name)? else { return Ok(None) };
        bytes.try_into().map(Some).map_err(|_| corrupt(name, "is not 32 bytes"))
    }

    /// The first column as something a person can look for, whatever it holds. It is an id, never a digest.
    pub(super) fn id_for_people(&self) -> String {
        match self.row.get_ref(0) {
            Ok(ValueRef::Text(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Ok(ValueRef::Blob(bytes)) => match Uuid::from_slice(bytes) {
                Ok(id) => id.to_string(),
                Err(_) => format!("{bytes:02x?}"),
            },
            Ok(ValueRef::Integer(n)) => n.to_string(),
            Ok(ValueRef::Real(_) | ValueRef::Null) | Err(_) => "?".to_owned(),
        }
    }
}

fn corrupt(name: &str, why: impl Display) -> StoreError {
    StoreError::Corrupt(format!("{name} {why}"))
}
