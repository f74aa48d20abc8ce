//! Runs statements, and rows as [`RowColumns`].

use super::StoreError;
use crate::store::shared::fields::RowColumns;
use rusqlite::types::ValueRef;
use rusqlite::{Params, Row, Transaction};
use uuid::Uuid;

pub(super) use crate::store::shared::fields::{RowReader, int};

/// The first row, if there is one.
pub(super) fn one<T>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    decode: impl FnOnce(&mut RowReader<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let Some(row) = rows.next()? else { return Ok(None) };
    decode(&mut RowReader::of(row)).map(Some)
}

/// Every row.
pub(super) fn all<T>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    mut decode: impl FnMut(&mut RowReader<'_>) -> Result<T, StoreError>,
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
    mut visit: impl FnMut(&mut RowReader<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        visit(&mut RowReader::of(row))?;
    }
    Ok(())
}

/// The result of a `SELECT count(*)`.
pub(super) fn count(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<u64, StoreError> {
    Ok(one(tx, sql, params, |f| f.int("count"))?.unwrap_or(0))
}

/// Runs a statement, however many rows it affects.
pub(super) fn change(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<(), StoreError> {
    execute(tx, sql, params).map(|_| ())
}

/// Runs a statement and returns how many rows it affected.
pub(super) fn execute(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<usize, StoreError> {
    Ok(tx.prepare_cached(sql)?.execute(params)?)
}

// === impl RowColumns ===

impl RowColumns for Row<'_> {
    fn text(&self, at: usize) -> Result<Option<&str>, &'static str> {
        match self.get_ref(at) {
            Ok(ValueRef::Null) => Ok(None),
            Ok(ValueRef::Text(bytes)) => std::str::from_utf8(bytes).map(Some).map_err(|_| "is not UTF-8"),
            _ => Err("is not text"),
        }
    }

    fn int(&self, at: usize) -> Result<Option<i64>, &'static str> {
        match self.get_ref(at) {
            Ok(ValueRef::Null) => Ok(None),
            Ok(ValueRef::Integer(n)) => Ok(Some(n)),
            _ => Err("is not a number"),
        }
    }

    fn flag(&self, at: usize) -> Result<Option<bool>, &'static str> {
        match self.int(at)? {
            None => Ok(None),
            Some(0) => Ok(Some(false)),
            Some(1) => Ok(Some(true)),
            Some(_) => Err("is neither 0 nor 1"),
        }
    }

    fn bytes(&self, at: usize) -> Result<Option<&[u8]>, &'static str> {
        match self.get_ref(at) {
            Ok(ValueRef::Null) => Ok(None),
            Ok(ValueRef::Blob(bytes)) => Ok(Some(bytes)),
            _ => Err("is not binary"),
        }
    }

    fn uuid(&self, at: usize) -> Result<Option<Uuid>, &'static str> {
        let Some(bytes) = self.bytes(at)? else { return Ok(None) };
        Uuid::from_slice(bytes).map(Some).map_err(|_| "is not 16 bytes")
    }

    fn id_for_people(&self) -> String {
        match self.get_ref(0) {
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
