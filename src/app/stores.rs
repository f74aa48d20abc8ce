//! The configured store: opened, migrated, and filled with the plans of the config.

use crate::clock::Timestamp;
use crate::config::{Config, PlanConfig, StoreLocation};
use crate::store::postgres::{self, PgOptions, PgStore};
use crate::store::shared::migrate::MigrationState;
use crate::store::sqlite::{self, SqliteOptions, SqliteStore};
use crate::store::{Actor, PlanRecord, Store, StoreError, Tenants};
use std::fs::File;
use std::sync::Arc;
use tokio::runtime::Handle;

/// A store, and the embedded one if it is that.
pub(super) type PreparedStore = (Arc<dyn Store>, Option<Arc<SqliteStore>>);

/// Creates the plans of the config that do not exist yet. Existing ones are managed by the API.
pub async fn create_plans(
    plans: &[PlanConfig],
    store: &dyn Tenants,
    now: Timestamp,
) -> Result<(), StoreError> {
    for PlanConfig { plan, description, usage_retention_days, deleted_keys_days } in plans {
        let record = PlanRecord {
            plan: plan.clone(),
            description: description.clone(),
            usage_retention_days: *usage_retention_days,
            deleted_keys_days: *deleted_keys_days,
            created_at: now,
            updated_at: now,
        };
        match store.create_plan(record, &Actor::keygate(), now).await {
            Ok(_) | Err(StoreError::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens the configured store. Its connections, if any, live on `io`.
pub async fn open_store(config: &Config, io: &Handle) -> Result<Arc<dyn Store>, StoreError> {
    let (store, _) = prepare_store(config, io, None)?;
    store.bring_up().await?;
    Ok(store)
}

/// The configured store, not opened yet, with the `lock` of the process that has the embedded one open and is being
/// replaced.
pub(super) fn prepare_store(
    config: &Config,
    io: &Handle,
    lock: Option<File>,
) -> Result<PreparedStore, StoreError> {
    match &config.store.location {
        StoreLocation::Sqlite(path) => {
            let options = SqliteOptions {
                busy_timeout: config.store.busy_timeout,
                readers: config.store.readers,
                ..SqliteOptions::default()
            };
            let store = Arc::new(SqliteStore::prepare(path, &options, lock));
            Ok((store.clone(), Some(store)))
        }
        StoreLocation::Postgres(url) => {
            let store = PgStore::prepare(url, &postgres_options(config), io.clone())?;
            Ok((Arc::new(store), None))
        }
    }
}

/// The state of the schema of the configured store; with `apply` it is migrated first.
pub async fn schema(config: &Config, apply: bool) -> Result<MigrationState, StoreError> {
    match (&config.store.location, apply) {
        (StoreLocation::Sqlite(path), true) => sqlite::migrate(path),
        (StoreLocation::Sqlite(path), false) => sqlite::check(path),
        (StoreLocation::Postgres(url), true) => postgres::migrate(url, &postgres_options(config)).await,
        (StoreLocation::Postgres(url), false) => postgres::check(url, &postgres_options(config)).await,
    }
}

fn postgres_options(config: &Config) -> PgOptions {
    PgOptions {
        connections: config.store.pool,
        connect_timeout: config.store.connect_timeout,
        statement_timeout: config.store.statement_timeout,
    }
}
