//! The counters that the config names, and what they rely on: Redis, the ledger, the number of nodes.

use super::{Base, FileError, StartError, read_secret};
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config, CountersConfig, CountersLocation, RedisUrl};
use crate::counter::{
    Counters, Leases, LeasesConfig, LinkError, OnFailure, RedisKind, RedisPlace, RedisTls, SpentSource,
};
use crate::metrics::Metrics;
use crate::policy::id::uuid_v7;
use crate::store::{Ledger, SpentBy, SpentRow};
use async_trait::async_trait;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// The counters that the config names.
pub(super) async fn make(config: &Config, base: &Base, io: &Handle) -> Result<Counters, StartError> {
    let CountersLocation::Redis(url) = &config.counters.location else { return Ok(Counters::default()) };
    let on_failure = match config.counters.on_failure {
        config::OnFailure::Share => OnFailure::Share,
        config::OnFailure::Deny => OnFailure::Deny,
        config::OnFailure::Allow => OnFailure::Allow,
    };
    let leases = Leases::start(LeasesConfig {
        place: place(&config.counters, url)?,
        on_failure,
        // Another name after each start: what was in flight before is not in flight any more.
        node: format!("{}-{}", config.node.name, uuid_v7(base.clock.now().wall)),
        nodes: {
            let live = base.metrics.nodes.clone();
            Box::new(move || usize::try_from(live.get()).unwrap_or(1).max(1))
        },
        ledger: Arc::new(SpentAtRest::new(base)),
        clock: Arc::clone(&base.clock),
        metrics: Arc::clone(&base.metrics),
        io: io.clone(),
    });
    Ok(Counters::shared(leases.await?))
}

fn place(counters: &CountersConfig, url: &RedisUrl) -> Result<RedisPlace, StartError> {
    let kind = match &url.kind {
        config::RedisKind::Server => RedisKind::Server,
        config::RedisKind::Sentinel(name) => RedisKind::Sentinel(name.clone()),
        config::RedisKind::Cluster => RedisKind::Cluster,
    };
    let sentinel_password = match &counters.sentinel_password_file {
        None => None,
        Some(path) => Some(read_secret(path)?.trim().to_owned()),
    };
    Ok(RedisPlace {
        kind,
        servers: url.servers.iter().map(|s| (s.host.clone(), s.port)).collect(),
        tls: if url.tls { Some(certificates(counters)?) } else { None },
        user: url.user.clone(),
        password: url.password.clone(),
        sentinel_password,
        database: url.database,
    })
}

fn certificates(counters: &CountersConfig) -> Result<RedisTls, StartError> {
    let ca = match &counters.tls_ca_file {
        None => None,
        Some(path) => Some(certificate(path)?),
    };
    let client = match (&counters.tls_cert_file, &counters.tls_key_file) {
        (Some(cert), Some(key)) => Some((certificate(cert)?, read_secret(key)?.as_bytes().to_vec())),
        _ => None,
    };
    Ok(RedisTls { ca, client })
}

/// What a certificate in PEM begins with.
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Without a certificate in it, a file of roots would trust nobody, and nobody would know why.
fn certificate(path: &Path) -> Result<Vec<u8>, StartError> {
    let read = std::fs::read(path);
    let bytes = read.map_err(|error| FileError::Io { path: path.to_path_buf(), error })?;
    if bytes.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Ok(bytes);
    }
    Err(LinkError::Unfit(format!("there is no certificate in PEM in {}", path.display())).into())
}

/// The store's ledger, as counters ask it.
struct SpentAtRest {
    store: Arc<dyn Ledger>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    progress: Mutex<Progress>,
}

/// How far the writer is, seen from outside.
struct Progress {
    /// All records made before this are stored, in steady ns.
    stored_until_ns: u64,
    /// When so many records had been made, in steady ns.
    mark_ns: u64,
    mark: u64,
}

impl SpentAtRest {
    fn new(base: &Base) -> Self {
        let now_ns = base.clock.now().steady_ns;
        let progress = Progress { stored_until_ns: now_ns, mark_ns: now_ns, mark: 0 };
        Self {
            store: base.store.clone(),
            metrics: Arc::clone(&base.metrics),
            clock: Arc::clone(&base.clock),
            progress: Mutex::new(progress),
        }
    }
}

#[async_trait]
impl SpentSource for SpentAtRest {
    async fn spent_of(&self, subject: &SpentBy, at: Timestamp) -> Option<SpentRow> {
        match self.store.spent_of(subject, at).await {
            Ok(row) => Some(row),
            Err(error) => {
                tracing::debug!(%error, "the ledger cannot tell what was spent");
                None
            }
        }
    }

    fn behind(&self) -> Duration {
        let now_ns = self.clock.now().steady_ns;
        let done = self.metrics.usage_stored.get() + self.metrics.usage_shed.get();
        // Nothing that runs under this lock can panic half-way, so a poisoned one holds sound values.
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if done >= progress.mark {
            progress.stored_until_ns = progress.mark_ns;
            (progress.mark_ns, progress.mark) = (now_ns, self.metrics.usage_accepted.get());
        }
        Duration::from_nanos(now_ns.saturating_sub(progress.stored_until_ns))
    }
}
