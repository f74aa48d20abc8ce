//! Migrates the schema: one node at a time, on its own connection, in one transaction.
//!
//! Must not know: what the tables are used for. A database that is not suitable is `Refused` with a message for the
//! operator. A crash half-way changes nothing, because PostgreSQL rolls the whole transaction back.

use super::PostgresUrl;
use super::link::{Connector, drive};
use super::{PgOptions, StoreError, error};
use crate::store::shared::migrate::{
    self, HISTORY_TABLE, HistoryLine, MigrationName, MigrationState, POSTGRES,
};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Row};

/// "KyGt": the advisory lock for changing the schema of this database.
const LOCK: i64 = 0x4b79_4774;
/// How long to wait for another node that changes the schema.
const LOCK_WITHIN: Duration = Duration::from_mins(1);

/// A connection outside the pool, closed when it is dropped.
struct SchemaConnection {
    client: Client,
    driver: JoinHandle<()>,
}

/// Migrates the schema of the database at `url` and returns its state. Nodes of this version and of the previous one may be
/// using it. Call it on the runtime that is to do the work.
pub async fn migrate(url: &PostgresUrl, options: &PgOptions) -> Result<MigrationState, StoreError> {
    bring_up_to_date(url, options).await?;
    check(url, options).await
}

/// Returns the state of the database at `url`, and changes nothing.
pub async fn check(url: &PostgresUrl, options: &PgOptions) -> Result<MigrationState, StoreError> {
    let connection = SchemaConnection::open(url, options, options.statement_timeout).await?;
    within(options.statement_timeout * 2, state(&connection.client)).await
}

/// Applies pending migrations. Of several nodes that start at once, one does it and the others wait.
pub(super) async fn bring_up_to_date(url: &PostgresUrl, options: &PgOptions) -> Result<(), StoreError> {
    // A migration may take as long as it needs.
    let mut connection = SchemaConnection::open(url, options, Duration::ZERO).await?;
    let patience = options.statement_timeout * 2;
    within(patience, require_fit(&connection.client)).await?;
    if within(patience, state(&connection.client)).await?.pending.is_empty() {
        return Ok(());
    }
    lock(&connection.client).await?;
    if within(patience, state(&connection.client)).await?.pending.is_empty() {
        return Ok(());
    }
    let runner = migrate::runner(POSTGRES)?;
    let report = runner.run_async(&mut connection.client).await.map_err(|error| migrate::refused(&error))?;
    for migration in report.applied_migrations() {
        tracing::info!(%migration, "schema migrated");
    }
    Ok(())
}

/// Requires UTF-8, and a session that sees rows as they are; otherwise stored data would be changed.
async fn require_fit(client: &Client) -> Result<(), StoreError> {
    let encoding = client.query_one("SELECT current_setting('server_encoding')", &[]).await?;
    match encoding.try_get::<_, &str>(0)? {
        "UTF8" => Ok(()),
        other => Err(StoreError::Refused(format!(
            "the database has the encoding {other}; make one with ENCODING 'UTF8'"
        ))),
    }
}

/// The lock ends with the connection, so a crash releases it.
async fn lock(client: &Client) -> Result<(), StoreError> {
    client.batch_execute(&format!("SET lock_timeout = {}", LOCK_WITHIN.as_millis())).await?;
    let taken = within(LOCK_WITHIN * 2, async {
        client.query_one("SELECT pg_advisory_lock($1)::text", &[&LOCK]).await.map_err(StoreError::from)
    });
    match taken.await {
        Ok(_) => Ok(()),
        Err(StoreError::Unavailable(_)) => Err(StoreError::Unavailable(
            "another Keygate has held the schema lock for a minute; look for it in pg_stat_activity".into(),
        )),
        Err(other) => Err(other),
    }
}

/// Not by refinery, which panics on a history that it did not write itself.
async fn state(client: &Client) -> Result<MigrationState, StoreError> {
    let known = migrate::runner(POSTGRES)?;
    let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&HISTORY_TABLE]).await?;
    if !exists.try_get::<_, bool>(0)? {
        return migrate::compare(&known, Vec::new());
    }
    // The format that refinery can parse.
    let sql = format!(
        "SELECT version, name, checksum, checksum ~ '^[0-9]+$'
             AND applied_on ~ '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}[.0-9]*(Z|[+-][0-9:]+)$'
         FROM {HISTORY_TABLE} ORDER BY version"
    );
    let rows = client.query(&sql, &[]).await?;
    let mut history = Vec::with_capacity(rows.len());
    for row in &rows {
        history.push(history_line(row)?);
    }
    migrate::compare(&known, history)
}

fn history_line(row: &Row) -> Result<HistoryLine, StoreError> {
    let damaged = || {
        StoreError::Refused(format!(
            "table {HISTORY_TABLE} contains a row not written by Keygate; restore it"
        ))
    };
    let number = row.try_get(0).map_err(|_| damaged())?;
    let name = row.try_get(1).map_err(|_| damaged())?;
    let checksum = row.try_get(2).map_err(|_| damaged())?;
    match row.try_get(3) {
        Ok(Some(true)) => Ok(HistoryLine { migration: MigrationName { number, name }, checksum }),
        _ => Err(damaged()),
    }
}

async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let silent = |_| Err(StoreError::Unavailable("the database did not answer in time".into()));
    tokio::time::timeout(patience, call).await.unwrap_or_else(silent)
}

// === impl SchemaConnection ===

impl SchemaConnection {
    async fn open(
        url: &PostgresUrl,
        options: &PgOptions,
        statement_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let connector = Connector::new(url, options, statement_timeout)?;
        let opening = async {
            let (client, link) = connector.connect().await.map_err(|error| error::at_start(&error))?;
            Ok(Self { client, driver: tokio::spawn(drive(link)) })
        };
        within(options.connect_timeout * 2, opening).await
    }
}

impl Drop for SchemaConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
