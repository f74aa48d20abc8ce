//! The schema's history: which migrations there are, which a database has, and whether the two fit.
//!
//! Must not know: how a backend is opened or locked. When a migration fails nothing of it stays, and starting is refused.

use super::StoreError;
use refinery::{Migration, Runner};

/// One migration, as a file and as a line of a database's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationName {
    /// Its number.
    pub number: i32,
    /// What it does, in a word or three.
    pub name: String,
}

/// How far a database has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationState {
    /// What it has, oldest first.
    pub applied: Vec<MigrationName>,
    /// What it lacks, oldest first.
    pub pending: Vec<MigrationName>,
}

/// The table in which a database remembers its history.
pub(super) const HISTORY_TABLE: &str = "refinery_schema_history";

/// One embedded file: its name as refinery spells it, and its text.
type File = (&'static str, &'static str);

/// The migrations of the embedded store. `V1__initial` is `migrations/sqlite/0001_initial.sql`, and so on.
pub(super) const SQLITE: &[File] =
    &[("V1__initial", include_str!("../../migrations/sqlite/0001_initial.sql"))];

/// What runs the migrations of `files`: all that are pending in one transaction.
pub(super) fn runner(files: &[File]) -> Result<Runner, StoreError> {
    let mut migrations = Vec::with_capacity(files.len());
    for (name, text) in files {
        migrations.push(Migration::unapplied(name, text).map_err(|error| refused(&error))?);
    }
    Ok(Runner::new(&migrations).set_grouped(true))
}

/// Compares what there is with what a database has. Refuses a database that is newer than this program.
pub(super) fn compare(known: &Runner, applied: Vec<MigrationName>) -> Result<MigrationState, StoreError> {
    let newest_known = known.get_migrations().iter().map(Migration::version).max().unwrap_or(0);
    let newest_applied = applied.iter().map(|m| m.number).max().unwrap_or(0);
    if newest_applied > newest_known {
        return Err(StoreError::Refused(format!(
            "the database has schema {newest_applied}, but this Keygate knows schemas up to {newest_known} only; \
             run the newer Keygate, or restore a backup from before the upgrade"
        )));
    }
    let pending = known.get_migrations().iter().map(MigrationName::from);
    let pending = pending.filter(|m| applied.iter().all(|a| a.number != m.number)).collect();
    Ok(MigrationState { applied, pending })
}

/// A migration that could not be run, for the operator.
pub(super) fn refused(error: &refinery::Error) -> StoreError {
    use std::error::Error as _;
    let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    StoreError::Refused(format!("the schema cannot be brought up to date: {error}{cause}"))
}

impl From<&Migration> for MigrationName {
    fn from(migration: &Migration) -> Self {
        Self { number: migration.version(), name: migration.name().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: i32) -> MigrationName {
        MigrationName { number, name: format!("step_{number}") }
    }

    #[test]
    fn the_embedded_list_is_numbered_without_gaps() {
        let known = runner(SQLITE).unwrap();
        let numbers: Vec<i32> = known.get_migrations().iter().map(Migration::version).collect();
        assert_eq!(numbers, (1..=i32::try_from(SQLITE.len()).unwrap()).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_database_lacks_is_pending() {
        let known = runner(&[("V1__step_1", ""), ("V2__step_2", ""), ("V3__step_3", "")]).unwrap();
        let state = compare(&known, vec![name(1)]).unwrap();
        assert_eq!((state.applied, state.pending), (vec![name(1)], vec![name(2), name(3)]));
    }

    #[test]
    fn a_newer_database_is_refused_with_both_numbers() {
        let known = runner(&[("V1__step_1", "")]).unwrap();
        let error = compare(&known, vec![name(1), name(2)]).unwrap_err().to_string();
        assert!(error.contains("schema 2") && error.contains("up to 1"), "{error}");
    }
}

impl std::fmt::Display for MigrationName {
    /// As its file is named.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}_{}", self.number, self.name)
    }
}
