//! The configured counters, and what they depend on: Redis, the ledger, the number of nodes.

use super::{CoreServices, FileError, StartError, read_secret, read_secret_value};
use crate::clock::Timestamp;
use crate::config::{Config, CountersConfig, CountersLocation, RedisUrl};
use crate::counter::{Counters, Leases, LeasesConfig, LinkError, RedisEndpoint, RedisTls, TotalsSource};
use crate::fileio;
use crate::model::calendar::Calendar;
use crate::model::id::uuid_v7;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::store::Ledger;
use crate::usage::{PendingReplays, WriterProgress};
use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// The counters that the config names.
pub(super) async fn make(
    config: &Config,
    core: &CoreServices,
    (flush, replays): (WriterProgress, PendingReplays),
    io: &Handle,
) -> Result<Counters, StartError> {
    let CountersLocation::Redis(url) = &config.counters.location else { return Ok(Counters::default()) };
    let leases = Leases::start(LeasesConfig {
        place: place(&config.counters, url)?,
        on_failure: config.counters.on_failure,
        share_unknown: config.counters.share_unknown,
        // A new name at each start: requests in flight of the previous process have ended.
        node: format!("{}-{}", config.node.name, uuid_v7(core.clock.now().wall)),
        nodes: {
            let live_nodes = core.live_nodes.clone();
            Box::new(move || live_nodes.count())
        },
        ledger: Arc::new(LedgerTotalsSource { store: core.store.clone(), flush, replays }),
        clock: Arc::clone(&core.clock),
        metrics: Arc::clone(&core.metrics),
        io: io.clone(),
    });
    Ok(Counters::shared(leases.await?))
}

/// The address of Redis, with the current content of its files.
pub(super) fn place(counters: &CountersConfig, url: &RedisUrl) -> Result<RedisEndpoint, StartError> {
    let sentinel_password = match &counters.sentinel_password_file {
        None => None,
        Some(path) => Some(read_secret_value(path)?.to_string()),
    };
    Ok(RedisEndpoint {
        kind: url.kind.clone(),
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

/// The first line of a PEM certificate.
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// A file without a certificate would trust nobody, without an obvious reason.
fn certificate(path: &Path) -> Result<Vec<u8>, StartError> {
    let read = fileio::read(path);
    let bytes = read.map_err(|error| FileError::Io { path: path.to_path_buf(), error })?;
    if bytes.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Ok(bytes);
    }
    Err(LinkError::Unfit(format!("no PEM certificate found in {}", path.display())).into())
}

/// How long counters wait at a time until the ledger has the records of an earlier run.
const REPLAYED_WITHIN: Duration = Duration::from_secs(2);

/// The store's ledger as a source for counters.
struct LedgerTotalsSource {
    store: Arc<dyn Ledger>,
    flush: WriterProgress,
    /// Records that other processes of this node left in their slots.
    replays: PendingReplays,
}

#[async_trait]
impl TotalsSource for LedgerTotalsSource {
    async fn totals_of(
        &self,
        subject: &UsageSubject,
        at: Timestamp,
        calendar: Calendar,
    ) -> Option<UsageTotals> {
        // Counters know what this run has not stored yet; only the ledger knows what an earlier run left.
        let own = self.flush.has_replayed(REPLAYED_WITHIN);
        let (own, others) = tokio::join!(own, self.replays.are_done(REPLAYED_WITHIN));
        if !(own && others) {
            tracing::debug!(
                "records of an earlier run not stored within the time for starting, continuing in the background"
            );
            return None;
        }
        match self.store.totals_of(subject, at, calendar).await {
            Ok(row) => Some(row),
            Err(error) => {
                tracing::debug!(%error, "cannot read usage totals from the ledger");
                None
            }
        }
    }

    fn behind(&self) -> Duration {
        self.flush.behind()
    }
}
