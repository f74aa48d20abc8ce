//! The configured store: opened, migrated, and filled with the plans of the config.

use crate::clock::Timestamp;
use crate::config::{Config, PlanConfig, StoreLocation};
use crate::model::key::Plan;
use crate::store::postgres::{self, PgOptions, PgStore};
use crate::store::shared::migrate::MigrationState;
use crate::store::sqlite::{self, SqliteOptions, SqliteStore};
use crate::store::{Actor, PlanPatch, PlanRecord, Store, StoreError, Tenants};
use std::fs::File;
use std::sync::Arc;
use tokio::runtime::Handle;

/// A store, and the embedded one if it is that.
pub(super) type PreparedStore = (Arc<dyn Store>, Option<Arc<SqliteStore>>);

/// Creates the plans of the config that do not exist yet, and changes those that the file owns. The API manages the
/// others: one that differs from the config's is logged, because editing the file does not change it.
pub async fn apply_plans(
    plans: &[PlanConfig],
    store: &dyn Tenants,
    now: Timestamp,
) -> Result<(), StoreError> {
    for config in plans {
        let record = PlanRecord {
            plan: config.plan.clone(),
            description: config.description.clone(),
            usage_retention_days: config.usage_retention_days,
            deleted_keys_days: config.deleted_keys_days,
            created_at: now,
            updated_at: now,
        };
        // Looked up first: a write waits for the process that is being replaced, which may be storing usage records.
        let stored = match store.plan(&config.plan.id).await {
            // The keyring reports a row that cannot be read, and the last good one may be known.
            Err(StoreError::Corrupt(_)) => continue,
            stored => stored?,
        };
        let Some(stored) = stored else {
            match store.create_plan(record, &Actor::keygate(), now).await {
                // Another node may have created it meanwhile.
                Ok(_) | Err(StoreError::AlreadyExists(_)) => continue,
                Err(error) => return Err(error),
            }
        };
        // A plan of which the file sets nothing may well have been changed through the API.
        let is_default = *config == PlanConfig::new(config.plan.id.clone());
        let differing = differing_fields(&stored, &record);
        if config.managed && !differing.is_empty() {
            store.update_plan(&config.plan.id, whole(record), &Actor::keygate(), now).await?;
            tracing::info!(plan = %config.plan.id, fields = differing.join(", "), "plan changed as the config file says");
        } else if !is_default && !differing.is_empty() {
            tracing::warn!(
                plan = %config.plan.id,
                fields = differing.join(", "),
                "the stored plan differs from the config file and stays in force; change it with PUT /plans/{}, \
                 or set managed = true to let the file decide",
                config.plan.id
            );
        }
    }
    Ok(())
}

/// A change to everything that `wanted` says.
fn whole(wanted: PlanRecord) -> PlanPatch {
    let Plan { id: _, api_ops_rate_limit, end_user_quota, default_daily_request_limit, limits, calendar } =
        wanted.plan;
    PlanPatch {
        description: Some(wanted.description),
        usage_retention_days: Some(wanted.usage_retention_days),
        deleted_keys_days: Some(wanted.deleted_keys_days),
        api_ops_rate_limit: Some(api_ops_rate_limit),
        end_user_quota: Some(end_user_quota),
        default_daily_request_limit: Some(default_daily_request_limit),
        limits: Some(limits),
        calendar: Some(calendar),
    }
}

/// The fields of a plan that the config file sets and that differ.
fn differing_fields(stored: &PlanRecord, wanted: &PlanRecord) -> Vec<&'static str> {
    let (a, b) = (&stored.plan, &wanted.plan);
    [
        ("api_ops_rate_limit", a.api_ops_rate_limit != b.api_ops_rate_limit),
        ("end_user_quota", a.end_user_quota != b.end_user_quota),
        ("default_daily_request_limit", a.default_daily_request_limit != b.default_daily_request_limit),
        ("limits", a.limits != b.limits),
        ("calendar", a.calendar != b.calendar),
        ("description", stored.description != wanted.description),
        ("usage_retention_days", stored.usage_retention_days != wanted.usage_retention_days),
        ("deleted_keys_days", stored.deleted_keys_days != wanted.deleted_keys_days),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
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
