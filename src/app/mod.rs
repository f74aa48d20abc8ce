//! The composition root: the only place that names concrete backends. It builds the parts, connects them, and starts and
//! stops them in order.
//!
//! Runtimes: one for I/O, one for the admin API, one for the proxy. I/O outlives the proxy, to write the last records.

mod acme;
mod admin_tokens;
mod agreement;
mod check;
mod components;
mod connections;
mod counters;
mod deleted_keys;
mod files;
mod gauges;
mod identity;
mod late;
mod live_nodes;
mod patience;
mod proxy_server;
mod reload;
mod restart_only;
mod sd_notify;
mod series;
mod signals;
mod snapshots;
mod stop;
mod stores;
mod telemetry;
mod tls;
mod upgrade;
mod upstreams;
mod usage;
mod watched;

pub use admin_tokens::{auth, signer};
pub use agreement::agreed_peppers;
pub use check::check_files;
pub use files::{
    FileError, LoadedSecret, peppers, read_secret, read_secret_value, signing_secret, write_private,
};

pub use components::routes;
pub use connections::{ConnectionCheck, check_connections};
pub use reload::{ConfigSource, Reloader};
pub use signals::Signals;
pub use stop::StopReason;
pub use stores::{apply_plans, open_store, schema};
pub use upgrade::{NotUpgraded, Predecessor, Successor};

use crate::admin::{self, Auth, ServerState, SignInCodes};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, CountersLocation};
use crate::counter::Counters;
use crate::enduser::EndUserCache;
use crate::gate::{RehashQueue, rehash_queue};
use crate::keyring::{FeedFollower, Keyring};
use crate::metrics::Metrics;
use crate::model::id::uuid_v7;
use crate::policy::keys::secret::{BadPeppers, Peppers};
use crate::policy::routing::route::BadRoute;
use crate::policy::upstream::encryption::BadEncryptionKeys;
use crate::proxy::upstream::StoredCredentials;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};
use crate::usage::journal::{JournalFlusher, OpenError};
use crate::usage::{PricesInForce, Recorder};
use agreement::{OwnPeppers, agree, own_peppers};
use late::{LateStart, Loading, StoreState};
use live_nodes::LiveNodes;
use patience::Patience;
use sd_notify::ServiceNotifier;
use signals::Steps;
use snapshots::Snapshots;
use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use stores::prepare_store;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Mutex, watch};
use upgrade::{LeavingPredecessor, ListenerKind, Program, UpgradeState, Upgrader};
use uuid::Uuid;
use watched::{StartFile, WatchedFiles};

/// Longest wait of a request for the store.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait of an admin call for the store; the rest of its two seconds is for everything else.
const ADMIN_PATIENCE: Duration = Duration::from_millis(1_800);
/// How long admin calls in flight may take after the last request of the proxy.
const LAST_CALLS_WITHIN: Duration = Duration::from_secs(5);
/// How long writing the last records may take after the last request.
const LAST_RECORDS_WITHIN: Duration = Duration::from_secs(10);
/// How long sending the last traces may take.
const LAST_TRACES_WITHIN: Duration = Duration::from_secs(2);
/// Most keys that wait to be re-hashed.
const REHASH_QUEUE: usize = 1_024;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store failed.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The peppers in the environment are invalid.
    #[error("KEYGATE_SECRETS_PEPPERS: {0}")]
    Peppers(#[from] BadPeppers),
    /// The encryption keys in the environment are invalid.
    #[error("KEYGATE_SECRETS_ENCRYPTION_KEYS: {0}")]
    EncryptionKeys(#[from] BadEncryptionKeys),
    /// The peppers that the store's digests were made with are missing.
    #[error("pepper file {path} is missing, and the keys of this database cannot be checked without it; restore it from a backup", path = path.display())]
    PeppersGone {
        /// Where they should be.
        path: PathBuf,
    },
    /// The keys for admin tokens are invalid.
    #[error("admin.jwt: {0}")]
    Auth(#[from] admin::BadAuth),
    /// The secret for admin tokens in the environment is invalid.
    #[error("KEYGATE_ADMIN_JWT_HS256_SECRET: {0}")]
    SigningSecret(admin::BadAuth),
    /// A secret in the environment and public keys exclude each other.
    #[error(
        "KEYGATE_ADMIN_JWT_HS256_SECRET excludes admin.jwt.jwks_file and admin.jwt.jwks_url; set only one"
    )]
    TwoSigningKeys,
    /// TLS to clients cannot be set up.
    #[error("{key}: {error}")]
    Tls {
        /// The config key.
        key: String,
        /// The error.
        error: crate::server_tls::TlsError,
    },
    /// Shared counters cannot be set up.
    #[error("counters: {0}")]
    Counters(#[from] crate::counter::LinkError),
    /// The export of traces cannot be set up.
    #[error("telemetry.{0}")]
    Telemetry(String),
    /// The identity provider cannot be asked.
    #[error("{0}")]
    Identity(String),
    /// Routes are invalid.
    #[error("{}", .0.iter().map(|b| format!("routes[{}].{}: {}", b.index, b.field, b.message)).collect::<Vec<_>>().join("\n"))]
    Routes(Vec<BadRoute>),
    /// Files of upstreams cannot be used.
    #[error("{}", .0.join("\n"))]
    Upstreams(Vec<String>),
    /// An address cannot be listened on.
    #[error("{what} cannot listen on {address}: {error}")]
    Listen {
        /// The listener.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The error.
        error: std::io::Error,
    },
    /// The Unix socket of the admin API cannot be opened.
    #[error("admin.socket: {}: {error}", path.display())]
    AdminSocket {
        /// Its path.
        path: PathBuf,
        /// The error.
        error: std::io::Error,
    },
    /// The usage journal cannot be opened.
    #[error("usage.journal_dir: {0}")]
    Journal(#[from] OpenError),
    /// Taking over from another process failed.
    #[error("--take-over: {0}")]
    Predecessor(String),
    /// The process was asked to stop while it started.
    #[error("stopped before it served, as asked")]
    Stopped,
    /// The operating system refused threads or similar.
    #[error("cannot start: {0}")]
    System(String),
}

/// A running gateway.
pub struct Running {
    /// The addresses of the proxy.
    pub proxy: Vec<SocketAddr>,
    /// Its addresses for TLS.
    pub proxy_tls: Vec<SocketAddr>,
    /// Its addresses for HTTP/2 without TLS.
    pub proxy_h2c: Vec<SocketAddr>,
    /// Where proxies and applications ask for decisions.
    pub decide: Vec<SocketAddr>,
    /// The address of the admin API.
    pub admin: SocketAddr,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The keyring.
    pub keyring: Arc<Keyring>,
    /// The peppers.
    pub peppers: Arc<Peppers>,
    /// Checks and mints admin tokens.
    pub auth: Arc<Auth>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Applies new configs.
    pub reloader: Arc<Reloader>,
    upgrader: Arc<Upgrader>,
    /// The process that this one replaces, until that is told to stop.
    leaving: Option<LeavingPredecessor>,
    writing: usage::UsageWriting,
    stopping: stop::Shutdown,
}

/// The surroundings of the process.
#[derive(Default)]
pub struct ProcessContext<'s> {
    /// The program and its arguments. None: it cannot be started again.
    pub called: Option<&'s [OsString]>,
    /// The socket of the service manager: the value of `NOTIFY_SOCKET`.
    pub notify_socket: Option<&'s str>,
    /// The process that this one replaces.
    pub predecessor: Option<Predecessor>,
    /// Codes that sign in to the console once; none: there are no such links.
    pub sign_in_codes: Option<Arc<SignInCodes>>,
    /// Signals that may stop it while it starts.
    pub signals: Option<&'s mut Signals>,
}

/// What stays the same from opening the store to the end.
struct CoreServices {
    /// The id of this process; new at each start.
    boot: Uuid,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    store: Arc<dyn Store>,
    /// The same, if it is the embedded one.
    sqlite: Option<Arc<SqliteStore>>,
    peppers: Arc<Peppers>,
    auth: Arc<Auth>,
    live_nodes: LiveNodes,
    /// Why the store is not open yet.
    store_state: StoreState,
    prices: Arc<PricesInForce>,
    /// Credentials for backends that the store keeps.
    credentials: Arc<StoredCredentials>,
}

/// Secrets from the environment, which override those in files.
#[derive(Clone, Copy, Default)]
pub struct InlineSecrets<'e> {
    /// Lines of `version:hexadecimal`.
    pub peppers: Option<&'e str>,
    /// Lines of `version:hexadecimal`, for credentials of backends in the store.
    pub encryption_keys: Option<&'e str>,
    /// The secret for admin tokens.
    pub signing: Option<&'e str>,
    /// The secret of the console at its identity provider.
    pub oidc_client: Option<&'e str>,
    /// Lines of `name: value` for the collector of traces.
    pub telemetry_headers: Option<&'e str>,
}

/// Builds and starts everything. `source` is where the config came from, if it can be read again.
#[expect(clippy::too_many_lines, reason = "one step after the other, in the order that matters")]
pub fn start(
    config: &Config,
    source: Option<ConfigSource>,
    inline: InlineSecrets<'_>,
    mut around: ProcessContext<'_>,
) -> Result<Running, StartError> {
    components::raise_file_limit();
    let io = components::runtime("keygate-io", 2)?;
    let mut steps = Steps::on(&io, around.signals.take());
    let lock = around.predecessor.as_mut().and_then(Predecessor::lock);
    let may_wait = around.predecessor.is_none();
    // As long as the process that is being replaced waits for this one.
    let patience = Patience::within(config.proxy.upgrade_timeout);
    let of_open = if may_wait { Patience::none() } else { patience };
    let (core, own_peppers) = steps.wait(open(config, inline, io.handle(), lock, may_wait, of_open))?;
    let keyring = Arc::new(Keyring::new());
    let (give_up, deadline) = watch::channel(None);
    let (writing, rest) = usage::writing(config, &core, io.handle(), deadline);
    let mut writers = writing.begin(around.predecessor.is_none())?;
    let journal = Arc::clone(writers.own.journal());
    let counters = Arc::new(steps.wait(counters::make(config, &core, writers.tell(), io.handle()))?);
    let end_users = Arc::new(components::end_users(config, &core, io.handle()));
    let admin_at = Arc::new(OnceLock::new());
    let follower = components::follower(config, &core, &keyring, &counters, &end_users, &admin_at);
    let snapshots = Snapshots::of_node(config, &core);
    let has_predecessor_counts = around.predecessor.as_ref().is_some_and(Predecessor::counts);
    let loading = Loading {
        config,
        core: &core,
        keyring: &keyring,
        counters: &counters,
        follower: &follower,
        snapshots: snapshots.as_ref(),
        has_predecessor_counts,
        patience,
    };
    let late = steps.wait(loading.load(own_peppers, &mut writers))?;

    let (stop, stopped) = watch::channel(false);
    let (admin_state, state) = watch::channel(ServerState::Open);
    let (stop_feed, feed_stopped) = watch::channel(false);
    let recorder = Recorder::new(Arc::clone(&journal), config.usage.when_full, Arc::clone(&core.metrics))
        .pricing(Arc::clone(&core.prices));
    let keeper =
        JournalFlusher::start(Arc::clone(&journal)).map_err(|e| StartError::System(e.to_string()))?;
    let writer = writing.write(writers.own);
    writers.left.into_iter().for_each(|left| drop(writing.write_leftovers(left)));
    let upkeep = Upkeep {
        snapshots,
        late,
        follower,
        keyring: Arc::clone(&keyring),
        counters: Arc::clone(&counters),
        end_users: Arc::clone(&end_users),
        clock: Arc::clone(&core.clock),
    };
    let follower = io.spawn(upkeep.run(feed_stopped));
    let upgrade_state = UpgradeState::after(around.predecessor.as_mut());
    gauges::start(config, &core, &keyring, &upgrade_state, io.handle());
    let rehash = start_rehashing(&core, &keyring, io.handle());
    let files = Arc::new(WatchedFiles::new(config, inline, &core.auth, &counters));
    let all_files = (Arc::clone(&files), StartFile::all(config, inline));
    let reloader = Reloader::start(config, source, all_files, &core, &upgrade_state, io.handle());
    let reloader = Arc::new(steps.wait(reloader)?);
    let gate = components::gate(config, &core, &keyring, &counters, end_users, rehash);
    let (tracing, exporter) = telemetry::start(config, inline, &core, io.handle())?;
    let accepting = Arc::new(AtomicBool::new(true));
    let readiness = components::readiness_of(config, &core, &keyring, &accepting, journal);
    let recording = (recorder, tracing);
    let applications = components::applications(config, &files)?;
    let routing = reloader.routing();
    let proxy = components::proxy(config, &core, gate, routing, recording, &readiness, applications);
    let mut proxy_server =
        proxy_server::open(config, &core, proxy, &keyring, &upgrade_state.listener_fds, &files, stopped)?;

    let admin_runtime = components::runtime("keygate-admin", components::threads(config.admin.threads))?;
    let (listener, admin_address) = listen_admin(config, &upgrade_state, &admin_runtime, &admin_at)?;
    let takes_over = around.predecessor.is_some();
    let socket = components::admin_socket(config, takes_over, &admin_runtime)?;
    let identity = identity::start(config, inline, &core, &files, io.handle())?;
    let reloading = (Arc::clone(&reloader), &*files);
    let counts = (&keyring, Arc::clone(&counters));
    let server = components::admin_server(
        config,
        &core,
        counts,
        state,
        reloading,
        (readiness, identity, around.sign_in_codes),
    )?;
    upgrade_state.listener_fds.close_unused();
    let leaving = steps.wait(take_over(around.predecessor, &core, &counters))?;
    // No step from here on can fail.
    acme::start(config, &core, proxy_server.accept());
    io.spawn(Arc::clone(&reloader).follow_files());
    let socket = socket.filter(components::published);
    let admin_served = admin_runtime.spawn(server.serve(listener, socket));
    let upgrader =
        Arc::new(upgrader(config, (around.called, around.notify_socket), &core, &counters, &upgrade_state));

    Ok(Running {
        proxy: proxy_server.addresses,
        proxy_tls: proxy_server.addresses_tls,
        proxy_h2c: proxy_server.addresses_h2c,
        decide: proxy_server.addresses_decide,
        admin: admin_address,
        store: core.store.clone(),
        keyring,
        peppers: core.peppers,
        auth: core.auth,
        clock: Arc::clone(&core.clock),
        reloader,
        upgrader,
        leaving,
        writing,
        stopping: stop::Shutdown {
            stop,
            admin_state,
            stop_feed,
            give_up,
            accepting,
            all_closed: proxy_server.all_closed,
            admin_served,
            drain: stop::DrainOptions { delay: config.proxy.drain_delay, within: config.proxy.drain_timeout },
            last_calls_within: LAST_CALLS_WITHIN,
            last_records_within: LAST_RECORDS_WITHIN,
            last_traces_within: LAST_TRACES_WITHIN,
            follower,
            writer,
            rest,
            exporter,
            keeper,
            upgrade_state,
            clock: core.clock,
            counters,
            store: core.store,
            proxy: proxy_server.runtime,
            admin: admin_runtime,
            io,
        },
    })
}

/// Background work for the life of the gateway: the change feed, pending end users, snapshots.
struct Upkeep {
    snapshots: Option<Snapshots>,
    late: Option<LateStart>,
    follower: FeedFollower,
    keyring: Arc<Keyring>,
    counters: Arc<Counters>,
    end_users: Arc<EndUserCache>,
    clock: Arc<dyn Clock>,
}

impl Upkeep {
    async fn run(self, stopped: watch::Receiver<bool>) {
        let Self { snapshots, late, follower, keyring, counters, end_users, clock } = self;
        let keep = async {
            if let Some(snapshots) = snapshots {
                snapshots.keep(keyring, counters, clock, stopped.clone()).await;
            }
        };
        let follow = async {
            if let Some(late) = late {
                late.finish(&follower, stopped.clone()).await;
            }
            follower.run(stopped.clone()).await;
        };
        tokio::join!(follow, end_users.settle(stopped.clone()), keep);
    }
}

/// Re-hashes keys under a new pepper as they are used.
fn start_rehashing(core: &CoreServices, keyring: &Arc<Keyring>, io: &Handle) -> RehashQueue {
    let (queue, jobs) = rehash_queue(REHASH_QUEUE);
    io.spawn(components::rehash_keys(jobs, core.store.clone(), Arc::clone(keyring), Arc::clone(&core.clock)));
    queue
}

/// Opens the admin listener; its address is recorded before anybody can ask for it.
fn listen_admin(
    config: &Config,
    upgrade_state: &UpgradeState,
    runtime: &Runtime,
    noted: &OnceLock<SocketAddr>,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let fds = &upgrade_state.listener_fds;
    let listener = fds.listen(ListenerKind::Admin, config.admin.listen, runtime.handle())?;
    let address = listener.local_addr().unwrap_or(config.admin.listen);
    Ok((listener, *noted.get_or_init(|| address)))
}

impl Running {
    /// Runs `work` on a runtime where store calls are possible.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.stopping.io.block_on(work)
    }

    /// Reports that all listeners accept: to the process that this one replaces, which then stops, or to the service
    /// manager.
    pub fn mark_serving(&mut self) -> Result<(), StartError> {
        let io = &self.stopping.io;
        let Some(mut leaving) = self.leaving.take() else {
            self.upgrader.notify.ready();
            return Ok(());
        };
        io.block_on(leaving.serving()).map_err(|error| StartError::Predecessor(error.to_string()))?;
        let Upgrader { counters, clock, upgrade_state, .. } = &*self.upgrader;
        io.spawn(leaving.follow(Arc::clone(counters), Arc::clone(clock), Arc::clone(upgrade_state)));
        io.spawn(self.writing.clone().adopt_slots());
        Ok(())
    }

    /// Stops accepting, lets requests in flight finish, writes the last records, closes the store.
    pub fn stop(self, why: StopReason) {
        let Self { store, upgrader, writing, stopping, .. } = self;
        drop((store, writing));
        if matches!(why, StopReason::Asked) {
            upgrader.notify.stopping();
        }
        drop(upgrader);
        stopping.run(why);
    }
}

/// The upgrader, which replaces this process by another binary.
fn upgrader(
    config: &Config,
    (called, notify_socket): (Option<&[OsString]>, Option<&str>),
    core: &CoreServices,
    counters: &Arc<Counters>,
    upgrade_state: &Arc<UpgradeState>,
) -> Upgrader {
    Upgrader {
        program: called.and_then(Program::called),
        within: config.proxy.upgrade_timeout,
        upgrade_state: Arc::clone(upgrade_state),
        sqlite: core.sqlite.clone(),
        counters: Arc::clone(counters),
        counts: config.counters.location == CountersLocation::Memory,
        clock: Arc::clone(&core.clock),
        notify: ServiceNotifier::to(notify_socket),
        busy: Mutex::default(),
    }
}

/// Takes over from another process, if there is one.
async fn take_over(
    predecessor: Option<Predecessor>,
    core: &CoreServices,
    counters: &Counters,
) -> Result<Option<LeavingPredecessor>, StartError> {
    let Some(predecessor) = predecessor else { return Ok(None) };
    predecessor.take_over(core.boot, counters, &*core.clock).await.map(Some)
}

/// Opens the store and checks the peppers; creates what a first start needs.
async fn open(
    config: &Config,
    inline: InlineSecrets<'_>,
    io: &Handle,
    lock: Option<File>,
    may_wait: bool,
    patience: Patience,
) -> Result<(CoreServices, OwnPeppers), StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let metrics = Arc::new(Metrics::new().map_err(|e| StartError::System(e.to_string()))?);
    series::show(&metrics);
    let (store, sqlite) = prepare_store(config, io, lock)?;
    let may_wait = |error: &StoreError| may_wait && error.is_transient();
    let brought_up = match patience.wait(StoreError::is_transient, async || store.bring_up().await).await {
        Err(error) if !may_wait(&error) => return Err(error.into()),
        other => other,
    };
    let own = own_peppers(config, inline.peppers)?;
    let auth = auth(config, inline.signing, &clock)?;
    let is_transient = |error: &StartError| matches!(error, StartError::Store(error) if error.is_transient());
    let with_store = async {
        brought_up?;
        let agreed = patience.wait(is_transient, async || {
            agree(&own, &*store).await?;
            Ok(apply_plans(&config.plans, &*store, clock.now().wall).await?)
        });
        agreed.await
    };
    let store_state = StoreState::default();
    match with_store.await {
        Ok(()) => {}
        Err(StartError::Store(error)) if may_wait(&error) => {
            let why = StartError::from(error).to_string();
            tracing::error!(why, "the store cannot be opened; it is tried each second");
            store_state.note(&why);
        }
        Err(error) => return Err(error),
    }
    let boot = uuid_v7(clock.now().wall);
    let (peppers, auth, live_nodes) = (Arc::clone(&own.peppers), Arc::new(auth), LiveNodes::default());
    let prices = Arc::new(PricesInForce::default());
    prices.set_file(&config.prices);
    let credentials = Arc::new(StoredCredentials::new(upstreams::encryption_keys(config, inline)?));
    let core = CoreServices {
        boot,
        clock,
        metrics,
        store,
        sqlite,
        peppers,
        auth,
        live_nodes,
        store_state,
        prices,
        credentials,
    };
    Ok((core, own))
}
