//! The history of the schema: the known migrations, those of a database, and whether they match.
//!
//! Must not know: how a backend is opened or locked. A failed migration is rolled back, and the start is refused.

use crate::store::StoreError;
use refinery::{Migration, Runner};

/// One migration, as a file and in a database's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationName {
    /// Its number.
    pub number: i32,
    /// A short name.
    pub name: String,
}

/// The state of a database's schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationState {
    /// Applied migrations, oldest first.
    pub applied: Vec<MigrationName>,
    /// Pending migrations, oldest first.
    pub pending: Vec<MigrationName>,
}

/// The table with a database's history.
pub(in crate::store) const HISTORY_TABLE: &str = "refinery_schema_history";

/// One embedded file: its name in refinery's format, and its text.
type MigrationFile = (&'static str, &'static str);

/// The migrations of the embedded store. `V1__initial` is `migrations/sqlite/0001_initial.sql`, and so on.
pub(in crate::store) const SQLITE: &[MigrationFile] = &[
    ("V1__initial", include_str!("../../../migrations/sqlite/0001_initial.sql")),
    ("V2__restorable_keys", include_str!("../../../migrations/sqlite/0002_restorable_keys.sql")),
    ("V3__requests_that_reached", include_str!("../../../migrations/sqlite/0003_requests_that_reached.sql")),
    ("V4__plan_calendar", include_str!("../../../migrations/sqlite/0004_plan_calendar.sql")),
    ("V5__meter_readings", include_str!("../../../migrations/sqlite/0005_meter_readings.sql")),
    ("V6__usage_groups", include_str!("../../../migrations/sqlite/0006_usage_groups.sql")),
    ("V7__deleted_workspaces", include_str!("../../../migrations/sqlite/0007_deleted_workspaces.sql")),
    ("V8__end_user_of_a_key", include_str!("../../../migrations/sqlite/0008_end_user_of_a_key.sql")),
    ("V9__prices", include_str!("../../../migrations/sqlite/0009_prices.sql")),
    ("V10__grants", include_str!("../../../migrations/sqlite/0010_grants.sql")),
    ("V11__upstream_credentials", include_str!("../../../migrations/sqlite/0011_upstream_credentials.sql")),
    ("V12__external_ids", include_str!("../../../migrations/sqlite/0012_external_ids.sql")),
    ("V13__idempotency_keys", include_str!("../../../migrations/sqlite/0013_idempotency_keys.sql")),
];

/// The migrations of PostgreSQL: the same numbers and names.
pub(in crate::store) const POSTGRES: &[MigrationFile] = &[
    ("V1__initial", include_str!("../../../migrations/postgres/0001_initial.sql")),
    ("V2__restorable_keys", include_str!("../../../migrations/postgres/0002_restorable_keys.sql")),
    (
        "V3__requests_that_reached",
        include_str!("../../../migrations/postgres/0003_requests_that_reached.sql"),
    ),
    ("V4__plan_calendar", include_str!("../../../migrations/postgres/0004_plan_calendar.sql")),
    ("V5__meter_readings", include_str!("../../../migrations/postgres/0005_meter_readings.sql")),
    ("V6__usage_groups", include_str!("../../../migrations/postgres/0006_usage_groups.sql")),
    ("V7__deleted_workspaces", include_str!("../../../migrations/postgres/0007_deleted_workspaces.sql")),
    ("V8__end_user_of_a_key", include_str!("../../../migrations/postgres/0008_end_user_of_a_key.sql")),
    ("V9__prices", include_str!("../../../migrations/postgres/0009_prices.sql")),
    ("V10__grants", include_str!("../../../migrations/postgres/0010_grants.sql")),
    ("V11__upstream_credentials", include_str!("../../../migrations/postgres/0011_upstream_credentials.sql")),
    ("V12__external_ids", include_str!("../../../migrations/postgres/0012_external_ids.sql")),
    ("V13__idempotency_keys", include_str!("../../../migrations/postgres/0013_idempotency_keys.sql")),
];

/// A runner for `files`, which applies all pending ones in one transaction.
pub(in crate::store) fn runner(files: &[MigrationFile]) -> Result<Runner, StoreError> {
    let mut migrations = Vec::with_capacity(files.len());
    for (name, text) in files {
        migrations.push(Migration::unapplied(name, text).map_err(|error| refused(&error))?);
    }
    Ok(Runner::new(&migrations).set_grouped(true))
}

/// One line of a database's history.
#[derive(Clone, Debug)]
pub(in crate::store) struct HistoryLine {
    pub(in crate::store) migration: MigrationName,
    /// The checksum of the text that was run, in refinery's format.
    pub(in crate::store) checksum: String,
}

/// Compares the known migrations with a database's history. Refuses a database that is newer than this program, and one
/// with another text under the same number.
pub(in crate::store) fn compare(
    known: &Runner,
    history: Vec<HistoryLine>,
) -> Result<MigrationState, StoreError> {
    let newest_known = known.get_migrations().iter().map(Migration::version).max().unwrap_or(0);
    let newest_applied = history.iter().map(|line| line.migration.number).max().unwrap_or(0);
    if newest_applied > newest_known {
        return Err(StoreError::Refused(format!(
            "the database has schema {newest_applied}, but this Keygate knows schemas up to {newest_known} only; \
             run the newer Keygate, or restore a backup from before the upgrade"
        )));
    }
    let mut pending = Vec::new();
    for migration in known.get_migrations() {
        match history.iter().find(|line| line.migration.number == migration.version()) {
            None => pending.push(MigrationName::from(migration)),
            Some(line) if line.checksum == migration.checksum().to_string() => {}
            Some(_) => {
                return Err(StoreError::Refused(format!(
                    "migration {} of the database is not the one this Keygate knows; the file must never change \
                     after a release",
                    migration.version()
                )));
            }
        }
    }
    let applied = history.into_iter().map(|line| line.migration).collect();
    Ok(MigrationState { applied, pending })
}

/// The error of a migration, for the operator.
pub(in crate::store) fn refused(error: &refinery::Error) -> StoreError {
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

    const STEPS: &[MigrationFile] = &[("V1__step_1", ""), ("V2__step_2", ""), ("V3__step_3", "")];

    fn name(number: i32) -> MigrationName {
        MigrationName { number, name: format!("step_{number}") }
    }

    /// The history of a database that has the first `applied` of `files`.
    fn history(files: &[MigrationFile], applied: usize) -> Vec<HistoryLine> {
        let runner = runner(&files[..applied]).unwrap();
        let line = |m: &Migration| HistoryLine { migration: m.into(), checksum: m.checksum().to_string() };
        runner.get_migrations().iter().map(line).collect()
    }

    #[test]
    fn the_embedded_list_is_numbered_without_gaps() {
        let known = runner(SQLITE).unwrap();
        let numbers: Vec<i32> = known.get_migrations().iter().map(Migration::version).collect();
        assert_eq!(numbers, (1..=i32::try_from(SQLITE.len()).unwrap()).collect::<Vec<_>>());
    }

    #[test]
    fn both_backends_have_the_same_numbers_and_names() {
        let names = |files: &[MigrationFile]| files.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(SQLITE), names(POSTGRES));
    }

    #[test]
    fn missing_migrations_are_pending() {
        let state = compare(&runner(STEPS).unwrap(), history(STEPS, 1)).unwrap();
        assert_eq!((state.applied, state.pending), (vec![name(1)], vec![name(2), name(3)]));
    }

    #[test]
    fn a_newer_database_is_refused_with_both_numbers() {
        let error = compare(&runner(&STEPS[..1]).unwrap(), history(STEPS, 2)).unwrap_err().to_string();
        assert!(error.contains("schema 2") && error.contains("up to 1"), "{error}");
    }

    #[test]
    fn another_text_under_a_known_number_is_refused() {
        let edited = [("V1__step_1", "-- edited")];
        let error = compare(&runner(STEPS).unwrap(), history(&edited, 1)).unwrap_err().to_string();
        assert!(error.contains("migration 1 "), "{error}");
    }
}

impl std::fmt::Display for MigrationName {
    /// The name of its file.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}_{}", self.number, self.name)
    }
}
