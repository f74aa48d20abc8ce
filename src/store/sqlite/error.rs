//! Maps SQLite's errors for callers. SQL, values and paths stay out of the text.

use super::StoreError;
use crate::store::shared::rules;
use rusqlite::{Error, ErrorCode, ffi};

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match &error {
            Error::SqliteFailure(code, text) => failure(*code, text.as_deref().unwrap_or_default()),
            Error::SqlInputError { error, .. } => failure(*error, ""),
            Error::FromSqlConversionFailure(column, ..)
            | Error::IntegralValueOutOfRange(column, _)
            | Error::Utf8Error(column, _)
            | Error::InvalidColumnType(column, ..) => Self::Corrupt(format!("column {column} of a row")),
            _ => Self::Corrupt("unexpected answer from SQLite".into()),
        }
    }
}

/// Why a usage record was not stored. A value that the schema or SQLite rejects is the record's fault.
pub(super) fn of_record(error: Error) -> StoreError {
    let code = error.sqlite_error_code();
    let error = StoreError::from(error);
    match code {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
            StoreError::Invalid { field: "usage record", why: error.to_string() }
        }
        _ => error,
    }
}

fn failure(error: ffi::Error, text: &str) -> StoreError {
    let unavailable = |why: &str| StoreError::Unavailable(why.to_owned());
    match error.code {
        ErrorCode::ConstraintViolation => constraint(error.extended_code, text),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => unavailable("the database file is locked"),
        ErrorCode::DiskFull => unavailable("the disk is full"),
        ErrorCode::SystemIoFailure => unavailable("the database file cannot be read or written"),
        ErrorCode::ReadOnly | ErrorCode::PermissionDenied => unavailable("the database file is read-only"),
        ErrorCode::CannotOpen => unavailable("the database file cannot be opened"),
        ErrorCode::OutOfMemory => unavailable("out of memory"),
        ErrorCode::OperationInterrupted | ErrorCode::OperationAborted => {
            unavailable("the call was cancelled")
        }
        ErrorCode::FileLockingProtocolFailed => unavailable("the database file cannot be locked"),
        ErrorCode::NotADatabase => StoreError::Refused("the file is not a Keygate database".into()),
        ErrorCode::DatabaseCorrupt => StoreError::Corrupt("the database file is damaged".into()),
        _ => StoreError::Corrupt(format!("SQLite answered with code {}", error.extended_code)),
    }
}

/// The violated constraint. SQLite names the columns of the index, and only those.
fn constraint(extended_code: i32, text: &str) -> StoreError {
    let columns = text.rsplit(": ").next().unwrap_or_default();
    match columns {
        "keys.workspace_id, keys.resource_id, keys.name" => StoreError::DuplicateName,
        "keys.workspace_id, keys.external_id" => StoreError::DuplicateExternalId,
        "keys.id" => StoreError::AlreadyExists("key"),
        "keys.digest" | "keys.old_digest" => rules::secret_taken(),
        _ => StoreError::Corrupt(format!("constraint violated (SQLite code {extended_code})")),
    }
}
