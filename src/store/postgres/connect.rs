//! From the configured URL to connections, with credentials and the limits set on every connection.

use super::link::Connector;
use super::{PgOptions, StoreError};
use super::{PostgresUrl, SslMode};
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode as Negotiation;

/// How long a transaction may be idle; the receiver of a feed may be slow, but not this slow.
const IDLE_IN_TRANSACTION: Duration = Duration::from_mins(1);
/// Commits must be on the server's disk, because the journal releases the records. Stricter settings stay as they are.
const WAIT_FOR_THE_DISK: &str = "SELECT set_config('synchronous_commit', 'on', false)
                                 WHERE current_setting('synchronous_commit') = 'off'";

/// The pool. Opens no connection yet.
pub(super) fn pool(url: &PostgresUrl, options: &PgOptions) -> Result<Pool, StoreError> {
    let how = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let connector = Connector::new(url, options, options.statement_timeout)?;
    let manager = Manager::from_connect(config(url, options.statement_timeout), connector, how);
    let patience = Some(options.connect_timeout);
    Pool::builder(manager)
        .max_size(options.connections.max(1))
        .timeouts(Timeouts { wait: patience, create: patience, recycle: patience })
        .runtime(Runtime::Tokio1)
        .post_create(Hook::async_fn(|client, _| {
            Box::pin(async move { client.batch_execute(WAIT_FOR_THE_DISK).await.map_err(HookError::Backend) })
        }))
        .build()
        .map_err(|error| StoreError::Refused(format!("cannot create connection pool: {error}")))
}

/// The settings of a connection. A `statement_timeout` of zero: no limit.
pub(super) fn config(url: &PostgresUrl, statement_timeout: Duration) -> Config {
    let mut config = Config::new();
    config.user(&url.user).dbname(&url.database).application_name("keygate");
    if let Some(password) = url.password() {
        config.password(password);
    }
    config.ssl_mode(match url.ssl_mode {
        SslMode::Disable => Negotiation::Disable,
        SslMode::Prefer => Negotiation::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Negotiation::Require,
    });
    // Set at connect, so that they apply to every statement.
    config.options(format!(
        // JIT compilation alone would take longer than any of our statements may.
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} -c jit=off",
        statement_timeout.as_millis(),
        statement_timeout.as_millis(),
        IDLE_IN_TRANSACTION.as_millis()
    ));
    config
}
