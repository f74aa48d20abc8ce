//! Maps PostgreSQL's errors for callers. SQL, values, addresses and names stay out of the text.

use super::StoreError;
use crate::store::shared::rules;
use deadpool_postgres::{HookError, PoolError, TimeoutType};
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error.as_db_error() {
            Some(said) => of_server(said),
            None => Self::Unavailable(of_connection(&error).into()),
        }
    }
}

/// Whether the server aborted a transaction because of another one, so that a retry helps.
pub(super) fn is_conflict(error: &Error) -> bool {
    matches!(error.code(), Some(code) if is_conflict_code(code))
}

/// Whether the server rejected a value that was to be stored.
pub(super) fn is_content(error: &Error) -> bool {
    // The classes "data exception", "integrity constraint violation" and "program limit exceeded".
    matches!(error.code().and_then(|code| code.code().get(..2)), Some("22" | "23" | "54"))
}

/// Why there is no connection.
pub(super) fn of_pool(error: &PoolError) -> StoreError {
    let unavailable = |why: &str| StoreError::Unavailable(why.to_owned());
    match error {
        PoolError::Timeout(TimeoutType::Wait) => {
            unavailable("all pooled connections to the database are busy")
        }
        PoolError::Timeout(_) => unavailable("the database did not answer in time"),
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
            match error.as_db_error() {
                Some(said) => of_server(said),
                None => unavailable(of_connection(error)),
            }
        }
        PoolError::Closed => unavailable("the store has been closed"),
        PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => unavailable("connection pool failed"),
    }
}

fn is_conflict_code(code: &SqlState) -> bool {
    *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED
}

fn of_server(said: &DbError) -> StoreError {
    let code = said.code();
    let unavailable = |why: &str| StoreError::Unavailable(why.to_owned());
    if *code == SqlState::UNIQUE_VIOLATION {
        return of_constraint(said.constraint().unwrap_or_default());
    }
    if *code == SqlState::QUERY_CANCELED {
        return unavailable("the database timed out (statement_timeout)");
    }
    if *code == SqlState::LOCK_NOT_AVAILABLE || is_conflict_code(code) {
        return unavailable("the database is busy with other writes (lock_timeout)");
    }
    if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return unavailable("the database is read-only (standby?)");
    }
    if *code == SqlState::PROGRAM_LIMIT_EXCEEDED {
        return StoreError::Invalid { field: "name", why: "must be shorter".into() };
    }
    // The first two characters are the class of an error; the rest is of no use to a caller.
    match code.code().get(..2) {
        Some("08") => unavailable("the connection to the database was lost"),
        Some("28" | "3D") => unavailable("the database rejected this user or password"),
        Some("53") => unavailable("the disk of the database is full"),
        Some("57" | "25") => unavailable("the database is stopping or starting"),
        Some("58" | "F0") => unavailable("the database reports an I/O error"),
        _ => StoreError::Corrupt(format!("PostgreSQL answered with code {}", code.code())),
    }
}

/// The violated constraint, by the name of its index.
fn of_constraint(name: &str) -> StoreError {
    match name {
        "keys_live_name" => StoreError::DuplicateName,
        "keys_live_external_id" => StoreError::DuplicateExternalId,
        "keys_pkey" => StoreError::AlreadyExists("key"),
        "keys_digest" | "keys_old_digest" => rules::secret_taken(),
        _ => StoreError::Corrupt("constraint violated".into()),
    }
}

/// The error's own text may contain addresses; its kind is enough.
fn io_kind(error: &Error) -> Option<std::io::ErrorKind> {
    use std::error::Error as _;
    Some(error.source()?.downcast_ref::<std::io::Error>()?.kind())
}

/// Whether the server's certificate was not accepted.
fn is_untrusted(error: &Error) -> bool {
    io_kind(error) == Some(std::io::ErrorKind::InvalidData)
}

fn of_connection(error: &Error) -> &'static str {
    match io_kind(error) {
        Some(std::io::ErrorKind::ConnectionRefused) => "connection to the database refused",
        Some(std::io::ErrorKind::TimedOut) => "the database did not answer in time",
        Some(std::io::ErrorKind::FileTooLarge) => "the database sends more than it may",
        Some(std::io::ErrorKind::InvalidData) => "the TLS certificate of the database was rejected",
        _ if error.to_string().contains("TLS") => "TLS handshake with the database failed",
        _ => "the connection to the database was lost",
    }
}

/// A connection that fails at startup: a wrong name, password or certificate does not heal by waiting.
pub(super) fn at_start(error: &Error) -> StoreError {
    match error.code().and_then(|code| code.code().get(..2)) {
        Some("28") => StoreError::Refused("the database rejected this user or password".into()),
        Some("3D") => StoreError::Refused("no such database on the server".into()),
        _ => match error.as_db_error() {
            Some(said) => of_server(said),
            None if is_untrusted(error) => StoreError::Refused(of_connection(error).into()),
            None => StoreError::Unavailable(of_connection(error).into()),
        },
    }
}
