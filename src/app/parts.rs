//! From the config to the parts: each function builds one, or runs one for as long as the gateway lives.

use super::{Base, STORE_PATIENCE, StartError};
use crate::admin::{AdminDeps, Check, MetricsToken, Readiness};
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config, CountersLocation, EndUserSource, HeaderFamily, ResourceSource};
use crate::counter::{Counters, Leases, LeasesConfig, OnFailure, RedisKind, RedisPlace, SpentSource};
use crate::enduser::EndUsers;
use crate::gate::{Gate, Rehash};
use crate::keyring::{FeedOptions, Follower, Keyring, Reporter};
use crate::metrics::{Metrics, UsageCount};
use crate::policy::id::uuid_v7;
use crate::policy::route::{BadRoute, EndUserFrom, ResourceFrom, Route, RouteTable};
use crate::proxy::upstream::Upstream;
use crate::proxy::{Families, HeaderPolicy, Proxy, ProxyLimits};
use crate::store::{Change, Keys, Ledger, Nodes, SpentBy, SpentRow, StoreError};
use crate::usage::journal::JournalOptions;
use crate::usage::journal::disk::RealDisk;
use crate::usage::{Flush, Journal, Recorder, WhenFull, Writer, WriterOptions};
use async_trait::async_trait;
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

/// How often the gauges of the keyring are set.
const GAUGES_EVERY: Duration = Duration::from_secs(1);
/// How often the store is asked who else runs on it.
const LOOK_FOR_NODES_EVERY: Duration = Duration::from_secs(5);
/// Idle connections to backends that are kept, per worker thread of the proxy.
const IDLE_UPSTREAM_CONNECTIONS: usize = 2_048;
/// How long a start may take to store what an earlier run left in the journal. The rest is counted from there.
const REPLAY_WITHIN: Duration = Duration::from_secs(2);
/// How far the ledger may lag behind what ended here: counters know by themselves what is younger.
const LEDGER_LAG: Duration = Duration::from_secs(1);
/// How long counters wait for a ledger that lags further behind.
const FLUSHED_WITHIN: Duration = Duration::from_secs(2);
/// Rows of spending on their way from the ledger.
const SPENT_BATCHES: usize = 4;

/// The routes of the config, as the gate wants them.
pub fn routes(config: &Config) -> Result<RouteTable, Vec<BadRoute>> {
    let routes = config.routes.iter().map(|r| Route {
        name: r.name.as_str().into(),
        path: r.path.as_str().into(),
        methods: r.methods.clone().into(),
        upstream: r.upstream,
        scopes: r.scopes,
        resource: r.resource.as_ref().map(|source| match source {
            ResourceSource::Path(param) => ResourceFrom::PathParam(param.as_str().into()),
            ResourceSource::Header(name) => ResourceFrom::Header(name.clone()),
        }),
        end_user: match &r.end_user {
            EndUserSource::Nowhere => EndUserFrom::Nowhere,
            EndUserSource::Header(name) => EndUserFrom::Header(name.clone()),
            EndUserSource::Body(field) => EndUserFrom::JsonField(field.as_str().into()),
        },
        keep_credential: r.keep_credential,
    });
    RouteTable::new(routes.collect())
}

/// The follower of the change feed, which also makes the other parts forget what is gone.
pub(super) fn follower(
    config: &Config,
    base: &Base,
    keyring: &Arc<Keyring>,
    counters: &Arc<Counters>,
    end_users: &Arc<EndUsers>,
    admin_at: &Arc<OnceLock<SocketAddr>>,
    boot: Uuid,
) -> Follower {
    let (counters, end_users) = (Arc::clone(counters), Arc::clone(end_users));
    let forget = move |removed: &Change| match removed {
        Change::KeyRemoved { id, .. } => counters.forget(*id),
        Change::EndUserRemoved { workspace_id, other_id } => end_users.forget(workspace_id, other_id),
        _ => {}
    };
    let options = FeedOptions { poll_interval: config.keyring.poll_interval };
    let reporter = Reporter::new(base.store.clone(), &config.node.name, boot, Arc::clone(admin_at));
    Follower::new(Arc::clone(keyring), base.store.clone(), Arc::clone(&base.clock), options, Box::new(forget))
        .reporting(reporter)
}

/// The counters that the config names.
pub(super) async fn counters(
    config: &Config,
    base: &Base,
    flush: Flush,
    io: &Handle,
) -> Result<Counters, StartError> {
    let CountersLocation::Redis(url) = &config.counters.location else { return Ok(Counters::default()) };
    let kind = match &url.kind {
        config::RedisKind::Server => RedisKind::Server,
        config::RedisKind::Sentinel(name) => RedisKind::Sentinel(name.clone()),
        config::RedisKind::Cluster => RedisKind::Cluster,
    };
    let place = RedisPlace {
        kind,
        servers: url.servers.iter().map(|s| (s.host.clone(), s.port)).collect(),
        tls: url.tls,
        user: url.user.clone(),
        password: url.password.clone(),
        database: url.database,
    };
    let on_failure = match config.counters.on_failure {
        config::OnFailure::Share => OnFailure::Share,
        config::OnFailure::Deny => OnFailure::Deny,
        config::OnFailure::Allow => OnFailure::Allow,
    };
    let leases = Leases::start(LeasesConfig {
        place,
        on_failure,
        // Another name after each start: what was in flight before is not in flight any more.
        node: format!("{}-{}", config.node.name, uuid_v7(base.clock.now().wall)),
        nodes: {
            let live = base.metrics.nodes.clone();
            Box::new(move || usize::try_from(live.get()).unwrap_or(1).max(1))
        },
        ledger: Arc::new(SpentAtRest { ledger: base.store.clone(), flush }),
        clock: Arc::clone(&base.clock),
        metrics: Arc::clone(&base.metrics),
        io: io.clone(),
    });
    Ok(Counters::shared(leases.await?))
}

/// The store's ledger, as counters ask it: after what this node still has in its journal has got there.
struct SpentAtRest {
    ledger: Arc<dyn Ledger>,
    flush: Flush,
}

#[async_trait]
impl SpentSource for SpentAtRest {
    async fn spent_of(&self, subject: &SpentBy, at: Timestamp) -> Option<SpentRow> {
        if !self.flush.is_current(LEDGER_LAG, FLUSHED_WITHIN).await {
            tracing::debug!("the ledger does not have yet what the journal holds");
            return None;
        }
        match self.ledger.spent_of(subject, at).await {
            Ok(row) => Some(row),
            Err(error) => {
                tracing::debug!(%error, "the ledger cannot tell what was spent");
                None
            }
        }
    }
}

/// The journal, and the writer that empties it, which has stored what an earlier run left, or as much as there was time
/// for; what the rest has spent is told.
pub(super) fn writer(
    config: &Config,
    base: &Base,
    boot: Uuid,
    deadline: watch::Receiver<Option<Instant>>,
) -> Result<Writer, StartError> {
    let options = JournalOptions {
        folder: config.usage.journal_dir.clone(),
        max_bytes: config.usage.journal_max_bytes,
        segment_bytes: config.usage.journal_segment_bytes,
        sync_interval: config.usage.journal_sync_interval,
        threads: threads(config.proxy.threads),
        node: config.node.name.as_str().into(),
        boot,
    };
    let (_, reader) = Journal::open(options, Arc::new(RealDisk), Arc::clone(&base.metrics))?;
    let options =
        WriterOptions { batch_records: config.usage.batch_records, batch_delay: config.usage.batch_delay };
    Ok(Writer::new(reader, base.store.clone(), Arc::clone(&base.metrics), options, deadline))
}

/// Runs the writer on a thread of its own: unpacking many records must not keep I/O waiting.
pub(super) fn write(writer: Writer, io: &Handle) -> JoinHandle<()> {
    let handle = io.clone();
    io.spawn_blocking(move || handle.block_on(writer.run()))
}

/// Sets the counters to what the ledger knows and to what the journal has spent beyond that, before the first request.
pub(super) async fn restore(base: &Base, counters: &Counters, writer: &mut Writer) -> Result<(), StoreError> {
    let at = base.clock.now().wall;
    let mut unstored = writer.replay(REPLAY_WITHIN, at).await;
    let (to, mut rows) = mpsc::channel::<Vec<SpentRow>>(SPENT_BATCHES);
    let read = base.store.spent(at, to);
    let put = async {
        while let Some(batch) = rows.recv().await {
            for mut row in batch {
                unstored.add_to(&mut row);
                counters.restore(&row, at);
            }
        }
        unstored
    };
    let (read, unstored) = tokio::join!(read, put);
    unstored.into_rows().for_each(|row| counters.restore(&row, at));
    read
}

pub(super) const fn when_full(config: &Config) -> WhenFull {
    match config.usage.when_full {
        crate::config::WhenFull::Shed => WhenFull::Shed,
        crate::config::WhenFull::Refuse => WhenFull::Refuse,
    }
}

pub(super) fn proxy(
    config: &Config,
    base: &Base,
    gate: Gate,
    upstreams: Box<[Arc<Upstream>]>,
    recorder: Recorder,
) -> Proxy {
    let named = gate.routes.routes().iter().flat_map(|r| {
        let resource = match &r.resource {
            Some(ResourceFrom::Header(name)) => Some(name.clone()),
            _ => None,
        };
        let end_user = match &r.end_user {
            EndUserFrom::Header(name) => Some(name.clone()),
            _ => None,
        };
        resource.into_iter().chain(end_user)
    });
    let headers = HeaderPolicy::new(&config.proxy.secret_headers, named);
    let has = |family| config.proxy.rate_limit_headers.contains(&family);
    let limits = ProxyLimits {
        header_bytes: config.proxy.max_header_bytes,
        header_fields: config.proxy.max_header_fields,
        uri_bytes: config.proxy.max_uri_bytes,
        body_bytes: config.proxy.max_body_bytes,
        end_user_body_bytes: u64::try_from(config.proxy.end_user_body_bytes).unwrap_or(u64::MAX),
        body_timeout: config.proxy.body_timeout,
        idle_timeout: config.proxy.idle_timeout,
        trust_request_id: config.proxy.trust_request_id,
        families: Families {
            x_ratelimit: has(HeaderFamily::XRateLimit),
            ratelimit: has(HeaderFamily::RateLimit),
        },
        access_log: config.log.access,
    };
    Proxy {
        gate: Arc::new(gate),
        upstreams,
        recorder,
        metrics: Arc::clone(&base.metrics),
        clock: Arc::clone(&base.clock),
        headers,
        limits,
        node: config.node.name.as_str().into(),
    }
}

pub(super) fn server_conf(config: &Config) -> ServerConf {
    let threads = threads(config.proxy.threads);
    ServerConf {
        threads,
        upstream_keepalive_pool_size: IDLE_UPSTREAM_CONNECTIONS * threads,
        ..ServerConf::default()
    }
}

/// Each connection is a file descriptor, twice when it is forwarded; the usual soft limit of 1024 would be the first
/// limit that a gateway meets.
pub(super) fn raise_file_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

/// 0 means one per core.
pub(super) fn threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

pub(super) fn runtime(name: &str, threads: usize) -> Result<Runtime, StartError> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| StartError::System(e.to_string()))
}

pub(super) async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Listen { what, address, error })
}

pub(super) fn admin_deps(
    config: &Config,
    base: &Base,
    keyring: &Arc<Keyring>,
    accepting: Arc<AtomicBool>,
    journal: Arc<Journal>,
) -> Result<AdminDeps, StartError> {
    let metrics_token = match &config.admin.metrics_token_file {
        None => None,
        Some(path) => Some(MetricsToken::new(super::read_secret(path)?.trim())),
    };
    let (ring, clock, max_stale) = (Arc::clone(keyring), Arc::clone(&base.clock), config.keyring.max_stale);
    let metrics = Arc::clone(&base.metrics);
    let refuses_when_full = when_full(config) == WhenFull::Refuse;
    let readiness = move || {
        let accepting = accepting.load(Ordering::Acquire);
        let mut all = readiness(&ring, &*clock, max_stale, accepting);
        let usage = usage_checks(&metrics, &journal, refuses_when_full);
        all.ready &= usage.iter().all(|check| check.ok);
        all.checks.extend(usage);
        all
    };
    Ok(AdminDeps {
        store: base.store.clone(),
        keyring: Arc::clone(keyring),
        peppers: Arc::clone(&base.peppers),
        secret_prefix: config.secrets.prefix.as_str().into(),
        clock: Arc::clone(&base.clock),
        auth: Arc::clone(&base.auth),
        metrics: Arc::clone(&base.metrics),
        readiness: Arc::new(readiness),
        default_plan: config.admin.default_plan.clone(),
        create_workspaces: config.admin.create_workspaces,
        metrics_token,
        max_body_bytes: config.admin.max_body_bytes,
        write_timeout: STORE_PATIENCE,
    })
}

fn readiness(keyring: &Keyring, clock: &dyn Clock, max_stale: Duration, accepting: bool) -> Readiness {
    let age = keyring.age(clock.now());
    let fresh = age.is_some_and(|a| a <= max_stale);
    let heard = age.map_or_else(|| "never".into(), |a| format!("{} ms ago", a.as_millis()));
    let checks = vec![
        Check { name: "accepting", ok: accepting, detail: if accepting { "yes" } else { "stopping" }.into() },
        Check { name: "change_feed", ok: fresh, detail: format!("last answered {heard}") },
    ];
    Readiness { ready: accepting && fresh, checks }
}

/// How usage is doing. Only a node that refuses requests because its journal is full is not ready.
fn usage_checks(metrics: &Metrics, journal: &Journal, refuses_when_full: bool) -> [Check; 2] {
    let UsageCount { accepted, stored, in_journal, shed, set_aside } = metrics.usage();
    let is_full = journal.is_full();
    let room = if is_full { "full" } else { "has room" };
    let journal_now = format!("{room}; {} bytes, {} records wait", journal.bytes(), journal.waiting());
    let identity = format!(
        "accepted {accepted} = stored {stored} + in journal {in_journal} + shed {shed} + set aside {set_aside}"
    );
    [
        Check { name: "usage_journal", ok: !(is_full && refuses_when_full), detail: journal_now },
        Check { name: "usage", ok: true, detail: identity },
    ]
}

pub(super) async fn gauges(keyring: Arc<Keyring>, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) {
    let number = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
    loop {
        metrics.keyring_keys.set(number(keyring.len() as u128));
        metrics.keyring_version.set(number(keyring.version().0.into()));
        metrics.keyring_lag_ms.set(number(keyring.age(clock.now()).map_or(0, |a| a.as_millis())));
        tokio::time::sleep(GAUGES_EVERY).await;
    }
}

/// Looks who else runs on the store. As long as each node counts by itself, whoever runs several must know it.
pub(super) async fn watch_nodes(store: Arc<dyn Nodes>, metrics: Arc<Metrics>, counts_alone: bool) {
    let mut told = 1;
    loop {
        match store.nodes().await {
            Ok(nodes) => {
                let live = nodes.iter().filter(|n| n.is_live()).count();
                metrics.nodes.set(i64::try_from(live).unwrap_or(i64::MAX));
                if counts_alone && live > told {
                    tracing::warn!(
                        nodes = live,
                        "several gateways run on this store and each counts limits by itself"
                    );
                }
                told = live.max(1);
            }
            Err(error) => tracing::debug!(%error, "who else runs on the store is not known"),
        }
        tokio::time::sleep(LOOK_FOR_NODES_EVERY).await;
    }
}

/// Stores digests made anew under the current pepper, one after the other, for as long as there is a gate.
pub(super) async fn rehash_keys(
    mut wanted: mpsc::Receiver<Rehash>,
    store: Arc<dyn Keys>,
    keyring: Arc<Keyring>,
) {
    while let Some(Rehash { key, old, new, pepper_version }) = wanted.recv().await {
        match store.rehash_key(key, old, new, pepper_version).await {
            Ok(Some(version)) => {
                keyring.reach(version).await;
            }
            Ok(None) => {}
            // The key is found by its old digest as long as that pepper is configured.
            Err(error) => tracing::warn!(%key, %error, "a key keeps its old pepper for now"),
        }
    }
}

pub(super) async fn serve_admin(
    listener: TcpListener,
    router: axum::Router,
    mut stop: watch::Receiver<bool>,
) {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let stopped = async move {
        // A sender that is gone means the same.
        let waited = stop.wait_for(|stop| *stop).await;
        drop(waited);
    };
    if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "the admin listener ended");
    }
}
