//! Reloads the config: all of it, or nothing with every reason.
//!
//! Routes, upstreams and new plans can change. Requests in flight finish as they began. Unchanged upstreams keep their
//! servers' health and their connections; changed ones take over what is known of servers that still exist. Changed files
//! that the config names take effect at a reload, or within seconds without one.
//!
//! *Invariant:* files are read on threads for blocking work, by one reader at a time: a mount that hangs blocks only this
//! reader.

use super::upgrade::UpgradeState;
use super::watched::{StartFile, WatchedFiles};
use super::{CoreServices, StartError, apply_plans, components, restart_only, upstreams};
use crate::admin::{Reload, ReloadError, Reloaded};
use crate::config::{Config, CredentialConfig, CredentialSecret, UpstreamConfig};
use crate::model::id::PlanId;
use crate::policy::routing::route::{BadRoute, RouteTable};
use crate::proxy::RoutingSnapshot;
use crate::proxy::upstream::{StoredCredentials, Upstream, UpstreamSettings, maintain};
use crate::store::{Actor, Store, StoreError};
use crate::usage::PricesInForce;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

/// How often files are checked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long reading the config and its files may take before a reload is refused.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// The error after that time.
const NOT_READ: &str = "config: its files cannot be read now, their file system does not answer";

/// The source of a config.
#[derive(Clone)]
pub struct ConfigSource {
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    /// The environment, as at startup.
    pub variables: Vec<(String, String)>,
    /// The host name.
    pub host_name: String,
}

/// Applies new configs.
pub struct Reloader {
    /// None: this gateway has no config that can be read again.
    source: Option<ConfigSource>,
    routing: Arc<ArcSwap<RoutingSnapshot>>,
    /// The active config. One reload at a time.
    running: Mutex<ActiveConfig>,
    /// Held while files are read.
    reading: Arc<Mutex<()>>,
    files: Arc<WatchedFiles>,
    start_files: Arc<[StartFile]>,
    metrics: Arc<crate::metrics::Metrics>,
    clock: Arc<dyn crate::clock::Clock>,
    store: Arc<dyn Store>,
    upgrade_state: Arc<UpgradeState>,
    prices: Arc<PricesInForce>,
    managed_plans: ArcSwap<Vec<PlanId>>,
    credentials: Arc<StoredCredentials>,
    io: Handle,
}

/// The active config and its upstreams.
struct ActiveConfig {
    config: Config,
    upstreams: Vec<ManagedUpstream>,
}

/// A new config, or what is wrong with it or with a file.
struct ReadFiles {
    config: Config,
    routes: Result<RouteTable, Vec<BadRoute>>,
    settings: Result<Vec<UpstreamSettings>, Vec<String>>,
    mistakes: Vec<String>,
}

/// An upstream and the task that maintains it.
struct ManagedUpstream {
    config: UpstreamConfig,
    upstream: Arc<Upstream>,
    maintenance: AbortHandle,
}

impl Reloader {
    /// Applies the first config. `files` are checked at each reload, and periodically.
    pub(super) async fn start(
        config: &Config,
        source: Option<ConfigSource>,
        (files, start_files): (Arc<WatchedFiles>, Vec<StartFile>),
        core: &CoreServices,
        upgrade_state: &Arc<UpgradeState>,
        io: &Handle,
    ) -> Result<Self, StartError> {
        let routes = components::routes(config).map_err(StartError::Routes)?;
        let settings = upstreams::settings(config).map_err(StartError::Upstreams)?;
        let (metrics, clock) = (Arc::clone(&core.metrics), Arc::clone(&core.clock));
        let made: Vec<_> = settings
            .into_iter()
            .map(|s| with_stored(s, &core.credentials))
            .map(|s| Arc::new(Upstream::new(s, Arc::clone(&metrics), Arc::clone(&clock))))
            .collect();
        upstreams::find_servers(&made).await;
        let managed =
            config.upstreams.iter().zip(made).map(|(c, upstream)| ManagedUpstream::begin(c, upstream, io));
        let managed: Vec<_> = managed.collect();
        let routing = Arc::new(ArcSwap::from_pointee(components::routing(
            config,
            routes,
            all(&managed),
            &core.metrics,
        )));
        let running = Mutex::new(ActiveConfig { config: config.clone(), upstreams: managed });
        let (store, upgrade_state) = (Arc::clone(&core.store), Arc::clone(upgrade_state));
        let (reading, start_files) = (Arc::default(), start_files.into());
        let io = io.clone();
        Ok(Self {
            source,
            routing,
            running,
            reading,
            files,
            start_files,
            metrics,
            clock,
            store,
            upgrade_state,
            prices: Arc::clone(&core.prices),
            managed_plans: ArcSwap::from_pointee(managed_plans(config)),
            credentials: Arc::clone(&core.credentials),
            io,
        })
    }

    /// Checks files every few seconds, for the life of the gateway.
    pub(super) async fn follow_files(self: Arc<Self>) {
        let mut told = Vec::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let files = Arc::clone(&self.files);
            let mut wrong = match self.read(move || files.look()).await {
                Some(wrong) => wrong,
                None => vec![NOT_READ.to_owned()],
            };
            if wrong != [NOT_READ] {
                wrong.extend(self.refresh_upstreams().await);
            }
            for why in wrong.iter().filter(|why| !told.contains(*why)) {
                tracing::error!("{why}; the previous content stays in force");
            }
            told = wrong;
        }
    }

    /// Runs `read` on a thread that may block. None: it takes too long, or the previous one still does.
    async fn read<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let within = async {
            let only = Arc::clone(&self.reading).lock_owned().await;
            let reading = self.io.spawn_blocking(move || {
                let read = read();
                drop(only);
                read
            });
            reading.await.inspect_err(|error| tracing::error!(%error, "cannot read watched files")).ok()
        };
        tokio::time::timeout(READ_WITHIN, within).await.ok().flatten()
    }

    /// Replaces upstreams whose certificates or keys have changed. Returns what is wrong with those that cannot be used.
    async fn refresh_upstreams(&self) -> Vec<String> {
        let mut in_force = self.running.lock().await;
        let has_files = |u: &UpstreamConfig| {
            let is_file = |c: &CredentialConfig| matches!(c.secret, CredentialSecret::File(_));
            u.tls.as_ref().is_some_and(|t| t.ca_file.is_some() || t.client.is_some())
                || u.credentials.iter().any(is_file)
        };
        // A process that is being replaced leaves this to the new one, which reads all files itself.
        if self.upgrade_state.is_upgrading() || !in_force.config.upstreams.iter().any(has_files) {
            return Vec::new();
        }
        let config = in_force.config.clone();
        let (config, settings) = match self.read(move || (upstreams::settings(&config), config)).await {
            Some((Ok(settings), config)) => (config, settings),
            Some((Err(wrong), _)) => return wrong,
            None => return vec![NOT_READ.to_owned()],
        };
        let is_same = |(t, s): (&ManagedUpstream, &UpstreamSettings)| has_same_files(&t.upstream.settings, s);
        if in_force.upstreams.iter().zip(&settings).all(is_same) {
            return Vec::new();
        }
        let routes = match components::routes(&config) {
            Ok(routes) => routes,
            Err(bad) => return bad.iter().map(ToString::to_string).collect(),
        };
        let next = self.upstreams(&config, settings, &in_force.upstreams).await;
        self.put_in_force(&mut in_force, config, routes, next);
        tracing::info!("changed files of upstreams reloaded");
        Vec::new()
    }

    /// Reads the config and all files that it names.
    fn read_all(
        source: &ConfigSource,
        old: &Config,
        files: &WatchedFiles,
        start_files: &[StartFile],
    ) -> Result<ReadFiles, Vec<String>> {
        let config = Config::load_again(source.path.as_deref(), &source.variables, &source.host_name)
            .map_err(|error| error.to_string().lines().map(str::to_owned).collect::<Vec<_>>())?;
        let mut mistakes = restart_only::changed(old, &config);
        mistakes.extend(start_files.iter().filter_map(StartFile::change));
        mistakes.extend(files.look());
        let (routes, settings) = (components::routes(&config), upstreams::settings(&config));
        Ok(ReadFiles { config, routes, settings, mistakes })
    }

    /// Applies what was read; nothing here blocks.
    fn put_in_force(
        &self,
        in_force: &mut ActiveConfig,
        config: Config,
        routes: RouteTable,
        next: Vec<Arc<Upstream>>,
    ) {
        for (config, upstream) in config.upstreams.iter().zip(&next) {
            let before = in_force.upstreams.iter().find(|t| t.config.name == config.name);
            if let Some(before) = before.filter(|t| !Arc::ptr_eq(&t.upstream, upstream)) {
                upstream.take_over(&before.upstream);
            }
        }
        let upstreams = next.iter().map(Arc::clone).collect();
        self.routing.store(Arc::new(components::routing(&config, routes, upstreams, &self.metrics)));
        self.prices.set_file(&config.prices);
        self.managed_plans.store(Arc::new(managed_plans(&config)));
        let mut old = std::mem::take(&mut in_force.upstreams);
        for (config, upstream) in config.upstreams.iter().zip(next) {
            let kept = old.iter().position(|t| Arc::ptr_eq(&t.upstream, &upstream));
            let managed = match kept {
                Some(at) => old.swap_remove(at),
                None => ManagedUpstream::begin(config, upstream, &self.io),
            };
            in_force.upstreams.push(managed);
        }
        for gone in old {
            gone.maintenance.abort();
            let successor = in_force.upstreams.iter().find(|t| t.config.name == gone.config.name);
            gone.upstream.forget(successor.map(|t| &*t.upstream));
        }
        in_force.config = config;
    }

    /// Number of requests in flight.
    pub(super) fn requests_in_flight(&self) -> i64 {
        self.metrics.in_flight.get()
    }

    /// The routing snapshot.
    pub(super) fn routing(&self) -> Arc<ArcSwap<RoutingSnapshot>> {
        Arc::clone(&self.routing)
    }

    /// Reloads the config and logs the result.
    pub async fn reload_and_log(&self) {
        match self.reload(&Actor::keygate()).await {
            Ok(Reloaded { routes, upstreams }) => {
                tracing::info!(routes, upstreams, "config reloaded");
            }
            Err(ReloadError::Mistakes(mistakes)) => {
                tracing::error!(
                    "config not reloaded, the running config stays in force:\n{}",
                    mistakes.join("\n")
                );
            }
            Err(ReloadError::Store(why)) => {
                tracing::error!(why, "config not reloaded, the running config stays in force");
            }
            Err(ReloadError::Upgrading) => {
                tracing::error!("config not reloaded: an upgrade is in progress, retry when it has finished");
            }
        }
    }

    /// The upstreams of `config`: existing ones if nothing has changed, otherwise new ones that take over the known
    /// servers.
    async fn upstreams(
        &self,
        config: &Config,
        settings: Vec<UpstreamSettings>,
        old: &[ManagedUpstream],
    ) -> Vec<Arc<Upstream>> {
        let mut next = Vec::with_capacity(settings.len());
        let mut new = Vec::new();
        for (upstream, settings) in config.upstreams.iter().zip(settings) {
            let before = old.iter().find(|t| t.config.name == upstream.name);
            if let Some(same) =
                before.filter(|t| t.config == *upstream && has_same_files(&t.upstream.settings, &settings))
            {
                next.push(Arc::clone(&same.upstream));
                continue;
            }
            let settings = with_stored(settings, &self.credentials);
            let made = Upstream::new(settings, Arc::clone(&self.metrics), Arc::clone(&self.clock));
            let made = Arc::new(made);
            new.push(Arc::clone(&made));
            next.push(made);
        }
        upstreams::find_servers(&new).await;
        next
    }
}

fn with_stored(settings: UpstreamSettings, credentials: &StoredCredentials) -> UpstreamSettings {
    UpstreamSettings { stored: credentials.of(&settings.name), ..settings }
}

/// Whether nothing has changed in the files that the settings of an upstream were made from.
fn has_same_files(one: &UpstreamSettings, other: &UpstreamSettings) -> bool {
    one.protocol.is_same(&other.protocol) && one.credentials == other.credentials
}

#[async_trait]
impl Reload for Reloader {
    async fn reload(&self, by: &Actor) -> Result<Reloaded, ReloadError> {
        let mut in_force = self.running.lock().await;
        // Before the config is read. A process that is started later reads what was written before this call.
        if self.upgrade_state.is_upgrading() {
            return Err(ReloadError::Upgrading);
        }
        let wrong = ReloadError::Mistakes;
        let Some(source) = &self.source else {
            return Err(wrong(vec!["started without a config file".to_owned()]));
        };
        let (source, old) = (source.clone(), in_force.config.clone());
        let (files, start_files) = (Arc::clone(&self.files), Arc::clone(&self.start_files));
        let read = self.read(move || Self::read_all(&source, &old, &files, &start_files)).await;
        let read = read.unwrap_or_else(|| Err(vec![NOT_READ.to_owned()]));
        let ReadFiles { config, routes, settings, mut mistakes } = read.map_err(wrong)?;
        if let Err(bad) = &routes {
            mistakes.extend(bad.iter().map(ToString::to_string));
        }
        if let Err(bad) = &settings {
            mistakes.extend(bad.iter().cloned());
        }
        let (Ok(routes), Ok(settings), true) = (routes, settings, mistakes.is_empty()) else {
            return Err(wrong(mistakes));
        };
        // The last fallible steps. A plan that was created and is not used yet does no harm.
        let (at, failed) = (self.clock.now().wall, |error: StoreError| ReloadError::Store(error.to_string()));
        apply_plans(&config.plans, &*self.store, at).await.map_err(failed)?;
        let next = self.upstreams(&config, settings, &in_force.upstreams).await;
        let changes = differences(&in_force.config, &config);
        if let Err(error) = self.store.note_reload(&config.node.name, changes, by, at).await {
            give_up(&next, &in_force.upstreams);
            return Err(failed(error));
        }

        // From here on, the audit log is right.
        let done = Reloaded { routes: config.routes.len(), upstreams: next.len() };
        self.put_in_force(&mut in_force, config, routes, next);
        Ok(done)
    }

    fn is_managed(&self, plan: &PlanId) -> bool {
        self.managed_plans.load().contains(plan)
    }
}

impl ManagedUpstream {
    fn begin(config: &UpstreamConfig, upstream: Arc<Upstream>, io: &Handle) -> Self {
        let maintenance = io.spawn(maintain(Arc::clone(&upstream))).abort_handle();
        Self { config: config.clone(), upstream, maintenance }
    }
}

fn managed_plans(config: &Config) -> Vec<PlanId> {
    let managed = config.plans.iter().filter(|plan| plan.managed);
    managed.map(|plan| plan.plan.id.clone()).collect()
}

fn all(managed: &[ManagedUpstream]) -> Box<[Arc<Upstream>]> {
    managed.iter().map(|t| Arc::clone(&t.upstream)).collect()
}

/// Drops those of `made` that are not among the `old` ones.
fn give_up(made: &[Arc<Upstream>], old: &[ManagedUpstream]) {
    for upstream in made.iter().filter(|made| !old.iter().any(|t| Arc::ptr_eq(&t.upstream, made))) {
        let stays = old.iter().find(|t| *t.config.name == *upstream.settings.name);
        upstream.forget(stays.map(|t| &*t.upstream));
    }
}

/// The changes of a reload for the audit log: the old and new lists of routes, upstreams and prices, if they differ.
fn differences(old: &Config, new: &Config) -> Map<String, Value> {
    let routes = |c: &Config| c.routes.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
    let prices = |c: &Config| c.prices.iter().map(|price| price.model.to_string()).collect::<Vec<_>>();
    let upstreams = |c: &Config| c.upstreams.iter().map(|u| u.name.clone()).collect::<Vec<_>>();
    let mut changes = Map::new();
    for (what, from, to, differs) in [
        ("routes", routes(old), routes(new), old.routes != new.routes),
        ("upstreams", upstreams(old), upstreams(new), old.upstreams != new.upstreams),
        ("prices", prices(old), prices(new), old.prices != new.prices),
    ] {
        if differs {
            changes.insert(what.to_owned(), json!({"from": from, "to": to}));
        }
    }
    changes
}
