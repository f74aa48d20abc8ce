//! A new config in place of the running one: all of it, or nothing and every reason why not.
//!
//! What can change is where requests go: routes, upstreams, and plans that are new. Requests in flight finish as they
//! began; upstreams that have not changed go on with their servers' health and their connections, and of those that have,
//! each server that is still there is known.

use super::upgrade::Succession;
use super::{Base, StartError, create_plans, fixed, parts, upstreams};
use crate::admin::{NotReloaded, Reload, Reloaded};
use crate::config::{Config, UpstreamConfig};
use crate::proxy::Site;
use crate::proxy::upstream::{Settings, Upstream, tend};
use crate::store::{Actor, Store, StoreError};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

/// Where a config comes from.
pub struct ConfigSource {
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    /// The environment, as it was at the start.
    pub variables: Vec<(String, String)>,
    /// The machine's name.
    pub host_name: String,
}

/// Puts new configs in force.
pub struct Reloader {
    /// None: this gateway was not made from a config that could be read again.
    source: Option<ConfigSource>,
    site: Arc<ArcSwap<Site>>,
    /// What is in force. One reload at a time.
    running: Mutex<InForce>,
    metrics: Arc<crate::metrics::Metrics>,
    clock: Arc<dyn crate::clock::Clock>,
    store: Arc<dyn Store>,
    succession: Arc<Succession>,
    io: Handle,
}

/// The config in force and its upstreams.
struct InForce {
    config: Config,
    upstreams: Vec<Tended>,
}

/// An upstream and the task that tends it.
struct Tended {
    config: UpstreamConfig,
    upstream: Arc<Upstream>,
    tending: AbortHandle,
}

impl Reloader {
    /// Puts the first config in force.
    pub(super) async fn start(
        config: &Config,
        source: Option<ConfigSource>,
        base: &Base,
        succession: &Arc<Succession>,
        io: &Handle,
    ) -> Result<Self, StartError> {
        let routes = parts::routes(config).map_err(StartError::Routes)?;
        let settings = upstreams::settings(config).map_err(StartError::Upstreams)?;
        let (metrics, clock) = (Arc::clone(&base.metrics), Arc::clone(&base.clock));
        let made: Vec<_> = settings
            .into_iter()
            .map(|s| Arc::new(Upstream::new(s, Arc::clone(&metrics), Arc::clone(&clock))))
            .collect();
        upstreams::find_servers(&made).await;
        let tended = config.upstreams.iter().zip(made).map(|(c, upstream)| Tended::begin(c, upstream, io));
        let tended: Vec<_> = tended.collect();
        let site = Arc::new(ArcSwap::from_pointee(parts::site(config, routes, all(&tended), &base.metrics)));
        let running = Mutex::new(InForce { config: config.clone(), upstreams: tended });
        let (store, succession) = (Arc::clone(&base.store), Arc::clone(succession));
        Ok(Self { source, site, running, metrics, clock, store, succession, io: io.clone() })
    }

    /// What requests read.
    pub(super) fn site(&self) -> Arc<ArcSwap<Site>> {
        Arc::clone(&self.site)
    }

    /// Reads the config again and puts it in force; says in the log what came of it.
    pub async fn reload_and_tell(&self) {
        match self.reload(&Actor::keygate()).await {
            Ok(Reloaded { routes, upstreams }) => {
                tracing::info!(routes, upstreams, "the config was reloaded");
            }
            Err(NotReloaded::Mistakes(mistakes)) => {
                tracing::error!(
                    "the config was not reloaded, and the one in force stays:\n{}",
                    mistakes.join("\n")
                );
            }
            Err(NotReloaded::Store(why)) => {
                tracing::error!(why, "the config was not reloaded, and the one in force stays");
            }
            Err(NotReloaded::Upgrading) => {
                tracing::error!(
                    "the config was not reloaded: an upgrade is under way; try again when it is done"
                );
            }
        }
    }

    /// The upstreams of `config`: those in force where nothing has changed, else new ones that know the servers of the
    /// one they replace.
    async fn upstreams(
        &self,
        config: &Config,
        settings: Vec<Settings>,
        old: &[Tended],
    ) -> Vec<Arc<Upstream>> {
        let mut next = Vec::with_capacity(settings.len());
        let mut new = Vec::new();
        for (upstream, settings) in config.upstreams.iter().zip(settings) {
            let before = old.iter().find(|t| t.config.name == upstream.name);
            if let Some(same) = before
                .filter(|t| t.config == *upstream && t.upstream.settings.dialect.is_same(&settings.dialect))
            {
                next.push(Arc::clone(&same.upstream));
                continue;
            }
            let made = Upstream::new(settings, Arc::clone(&self.metrics), Arc::clone(&self.clock));
            let made = Arc::new(made);
            new.push(Arc::clone(&made));
            next.push(made);
        }
        upstreams::find_servers(&new).await;
        next
    }
}

#[async_trait]
impl Reload for Reloader {
    async fn reload(&self, by: &Actor) -> Result<Reloaded, NotReloaded> {
        let mut in_force = self.running.lock().await;
        // Before the config is read. What was written before this was asked for, a process that is started later reads as well.
        if self.succession.is_upgrading() {
            return Err(NotReloaded::Upgrading);
        }
        let wrong = NotReloaded::Mistakes;
        let Some(source) = &self.source else {
            return Err(wrong(vec!["this gateway was not started from a config".to_owned()]));
        };
        let config = Config::load(source.path.as_deref(), &source.variables, &source.host_name)
            .map_err(|error| wrong(error.to_string().lines().map(str::to_owned).collect()))?;
        let mut mistakes = fixed::changed(&in_force.config, &config);
        let routes = parts::routes(&config);
        let settings = upstreams::settings(&config);
        if let Err(bad) = &routes {
            mistakes.extend(bad.iter().map(ToString::to_string));
        }
        if let Err(bad) = &settings {
            mistakes.extend(bad.iter().cloned());
        }
        let (Ok(routes), Ok(settings), true) = (routes, settings, mistakes.is_empty()) else {
            return Err(wrong(mistakes));
        };
        // The last things that can fail. A plan that was made and is not used yet does no harm.
        let (at, failed) = (self.clock.now().wall, |error: StoreError| NotReloaded::Store(error.to_string()));
        create_plans(&config, &*self.store, at).await.map_err(failed)?;
        let next = self.upstreams(&config, settings, &in_force.upstreams).await;
        let changes = differences(&in_force.config, &config);
        if let Err(error) = self.store.note_reload(&config.node.name, changes, by, at).await {
            give_up(&next, &in_force.upstreams);
            return Err(failed(error));
        }

        // What the audit trail says is so: nothing is waited for from here on.
        let done = Reloaded { routes: config.routes.len(), upstreams: next.len() };
        for (config, upstream) in config.upstreams.iter().zip(&next) {
            let before = in_force.upstreams.iter().find(|t| t.config.name == config.name);
            if let Some(before) = before.filter(|t| !Arc::ptr_eq(&t.upstream, upstream)) {
                upstream.take_over(&before.upstream);
            }
        }
        let upstreams = next.iter().map(Arc::clone).collect();
        self.site.store(Arc::new(parts::site(&config, routes, upstreams, &self.metrics)));
        let mut old = std::mem::take(&mut in_force.upstreams);
        for (config, upstream) in config.upstreams.iter().zip(next) {
            let kept = old.iter().position(|t| Arc::ptr_eq(&t.upstream, &upstream));
            let tended = match kept {
                Some(at) => old.swap_remove(at),
                None => Tended::begin(config, upstream, &self.io),
            };
            in_force.upstreams.push(tended);
        }
        for gone in old {
            gone.tending.abort();
            let successor = in_force.upstreams.iter().find(|t| t.config.name == gone.config.name);
            gone.upstream.forget(successor.map(|t| &*t.upstream));
        }
        in_force.config = config;
        Ok(done)
    }
}

impl Tended {
    fn begin(config: &UpstreamConfig, upstream: Arc<Upstream>, io: &Handle) -> Self {
        let tending = io.spawn(tend(Arc::clone(&upstream))).abort_handle();
        Self { config: config.clone(), upstream, tending }
    }
}

fn all(tended: &[Tended]) -> Box<[Arc<Upstream>]> {
    tended.iter().map(|t| Arc::clone(&t.upstream)).collect()
}

/// Those of `made` that are not among the `old` ones will not be used.
fn give_up(made: &[Arc<Upstream>], old: &[Tended]) {
    for upstream in made.iter().filter(|made| !old.iter().any(|t| Arc::ptr_eq(&t.upstream, made))) {
        let stays = old.iter().find(|t| *t.config.name == *upstream.settings.name);
        upstream.forget(stays.map(|t| &*t.upstream));
    }
}

/// What a reload changes, for the audit trail: which routes and upstreams there were and are, where that differs.
fn differences(old: &Config, new: &Config) -> Map<String, Value> {
    let routes = |c: &Config| c.routes.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
    let upstreams = |c: &Config| c.upstreams.iter().map(|u| u.name.clone()).collect::<Vec<_>>();
    let mut changes = Map::new();
    for (what, from, to, differs) in [
        ("routes", routes(old), routes(new), old.routes != new.routes),
        ("upstreams", upstreams(old), upstreams(new), old.upstreams != new.upstreams),
    ] {
        if differs {
            changes.insert(what.to_owned(), json!({"from": from, "to": to}));
        }
    }
    changes
}
