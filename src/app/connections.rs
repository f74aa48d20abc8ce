//! `keygate check --connect`: opens a connection to everything outside that the config names.
//!
//! Must not know: how results are printed.

use super::{InlineSecrets, StartError, counters, identity, stores, upstreams};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, CountersLocation, StoreLocation};
use crate::counter::check_redis;
use crate::metrics::Metrics;
use crate::proxy::upstream::{Upstream, try_servers};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Longest time for the database, Redis, and the servers of one upstream.
const WITHIN: Duration = Duration::from_secs(15);

/// The result for one service.
pub struct ConnectionCheck {
    /// The service.
    pub what: String,
    /// A remark if it can be used, else why it cannot.
    pub result: Result<Option<String>, String>,
}

/// Tries the database, Redis, the identity providers, and every server of every upstream. Nothing is changed.
pub async fn check_connections(
    config: &Config,
    inline: InlineSecrets<'_>,
) -> Result<Vec<ConnectionCheck>, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let metrics = Arc::new(Metrics::new().map_err(|error| StartError::System(error.to_string()))?);
    let mut checks = vec![store(config).await];
    if let CountersLocation::Redis(url) = &config.counters.location {
        let place = counters::place(&config.counters, url)?;
        let result = timeout(WITHIN, check_redis(&place)).await;
        let result = result.map_or_else(|_| Err(no_answer()), |done| done.map_err(|error| error.to_string()));
        checks.push(ConnectionCheck { what: "counters".into(), result: result.map(|()| None) });
    }
    if let Some(result) = identity::check_key_set(config).await? {
        checks.push(ConnectionCheck { what: "admin.jwt.jwks_url".into(), result: result.map(|()| None) });
    }
    let sign_in = identity::check_sign_in(config, inline, Arc::clone(&clock), Arc::clone(&metrics));
    if let Some(result) = sign_in.await? {
        checks.push(ConnectionCheck { what: "admin.oidc.issuer".into(), result: result.map(|()| None) });
    }
    upstreams::encryption_keys(config, inline)?;
    for settings in upstreams::settings(config).map_err(StartError::Upstreams)? {
        let name = settings.name.clone();
        let upstream = Arc::new(Upstream::new(settings, Arc::clone(&metrics), Arc::clone(&clock)));
        for trial in try_servers(&upstream, WITHIN).await {
            let what = format!("upstream {name}, server {}", trial.server);
            checks.push(ConnectionCheck { what, result: trial.result.map(|()| None) });
        }
    }
    Ok(checks)
}

async fn store(config: &Config) -> ConnectionCheck {
    let what = match &config.store.location {
        StoreLocation::Sqlite(path) => format!("store {}", path.display()),
        StoreLocation::Postgres(_) => "store".to_owned(),
    };
    let result = match timeout(WITHIN, stores::schema(config, false)).await {
        Err(_) => Err(no_answer()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(state)) if state.pending.is_empty() => Ok(None),
        Ok(Ok(state)) => Ok(Some(format!("{} migrations pending", state.pending.len()))),
    };
    ConnectionCheck { what, result }
}

fn no_answer() -> String {
    format!("no answer within {WITHIN:?}")
}
