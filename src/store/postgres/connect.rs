//! From the configured URL to connections: addresses, TLS, and the limits that every connection is born with.

use super::{PgOptions, StoreError, tls};
use crate::config::{PostgresUrl, SslMode};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use std::time::Duration;
use tokio_postgres::config::{SslMode as Negotiation, TargetSessionAttrs};
use tokio_postgres::{Config, NoTls};

/// How long a transaction may sit and wait for us; a feed's receiver may be slow, but not this slow.
const IDLE_IN_TRANSACTION: Duration = Duration::from_mins(1);
/// How long a silent connection stays unsuspected.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// The pool. Opens no connection yet.
pub(super) fn pool(url: &PostgresUrl, options: &PgOptions) -> Result<Pool, StoreError> {
    let config = config(url, options, options.statement_timeout);
    let how = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = match tls::connector(url)? {
        None => Manager::from_config(config, NoTls, how),
        Some(tls) => Manager::from_config(config, tls, how),
    };
    let patience = Some(options.connect_timeout);
    Pool::builder(manager)
        .max_size(options.connections.max(1))
        .timeouts(Timeouts { wait: patience, create: patience, recycle: patience })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| StoreError::Refused(format!("the pool of connections cannot be made: {error}")))
}

/// What a connection is opened with. `statement_timeout` of zero: statements may take as long as they need.
pub(super) fn config(url: &PostgresUrl, options: &PgOptions, statement_timeout: Duration) -> Config {
    let mut config = Config::new();
    for (host, port) in &url.hosts {
        config.host(host).port(*port);
    }
    config.user(&url.user).dbname(&url.database).application_name("keygate");
    if let Some(password) = url.password() {
        config.password(password);
    }
    if url.hosts.len() > 1 {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    config.ssl_mode(match url.ssl_mode {
        SslMode::Disable => Negotiation::Disable,
        SslMode::Prefer => Negotiation::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Negotiation::Require,
    });
    config.connect_timeout(options.connect_timeout).tcp_user_timeout(options.statement_timeout * 2);
    config.keepalives(true).keepalives_idle(KEEPALIVE_AFTER);
    config.keepalives_interval(KEEPALIVE_EVERY).keepalives_retries(KEEPALIVE_TRIES);
    // Set before the first statement, so that none is without them.
    config.options(format!(
        // No statement of ours is worth being compiled: that alone takes longer than any of them may.
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} -c jit=off",
        statement_timeout.as_millis(),
        statement_timeout.as_millis(),
        IDLE_IN_TRANSACTION.as_millis()
    ));
    config
}
