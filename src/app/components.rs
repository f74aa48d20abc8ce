//! Builds the parts from the config: each function builds one, or runs one for the life of the gateway.

use super::deleted_keys::SpendingOfDeletedKeys;
use super::identity::IdentityProvider;
use super::upstreams::apply_credential;
use super::watched::WatchedFiles;
use super::{ADMIN_PATIENCE, CoreServices, Reloader, STORE_PATIENCE, StartError, series, tls, usage};
use crate::admin::{
    AdminDeps, AdminServer, AdminSocketListener, Backends, MetricsToken, Readiness, ReadinessCheck,
    ServerLimits, ServerState, SignInCodes, router,
};
use crate::clock::Clock;
use crate::config::{AdminSocket, Config, EncodedSlash, HeaderFamily, RouteConfig};
use crate::counter::Counters;
use crate::enduser::{self, EndUserCache};
use crate::gate::{Gate, Rehash, RehashJobs, RehashQueue};
use crate::keyring::{FeedFollower, FeedOptions, Keyring, NodeReporter};
use crate::metrics::Metrics;
use crate::model::id::CredentialId;
use crate::model::key::Measure;
use crate::model::scope::Scopes;
use crate::policy::http::cors::{Cors, OriginRule, Origins};
use crate::policy::http::source::TrustedProxies;
use crate::policy::keys::bearer::BearerToken;
use crate::policy::keys::claims::is_claim;
use crate::policy::keys::credential::SecretPlace;
use crate::policy::routing::counted::why_uncounted;
use crate::policy::routing::forward::ForwardRules;
use crate::policy::routing::route::{BadRoute, EndUserFrom, ResourceFrom, Route, RouteTable, VERIFY};
use crate::policy::upstream::encryption::EncryptionKeys;
use crate::proxy::connection::AnswerDrains;
use crate::proxy::connection::address_limiter::AddressLimiter;
use crate::proxy::observe::access::AccessLog;
use crate::proxy::series::SeriesByRoute;
use crate::proxy::upstream::{StoredCredentials, Upstream};
use crate::proxy::{
    Applications, HeaderPolicy, HealthPath, Proxy, ProxyLimits, RateLimitFamilies, RoutingSnapshot, Tracing,
    VerifiedHolds,
};
use crate::store::{Change, Keys};
use crate::usage::{Journal, Recorder, WhenFull};
use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue, Method};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

/// Descriptors for everything but connections: store, journal, listeners, name servers.
const FILES_BESIDE: u64 = 256;
/// One in so many descriptors may be an admin connection.
const ADMIN_SHARE: u64 = 8;

/// The configured routes, as the gate needs them.
pub fn routes(config: &Config) -> Result<RouteTable, Vec<BadRoute>> {
    let routes = config.routes.iter().map(|r| Route {
        name: r.name.as_str().into(),
        path: r.path.as_str().into(),
        methods: r.methods.clone().into(),
        upstream: r.upstream,
        public: r.public,
        scopes: r.scopes.clone(),
        secret_from: r.secret_from.clone().into(),
        resource: r.resource.clone().unwrap_or(ResourceFrom::Nowhere),
        end_user: r.end_user.clone().into(),
        keep_credential: r.keep_credential,
        max_body_bytes: r.max_body_bytes,
        encoded_slash: r.encoded_slash == EncodedSlash::Keep,
        errors: r.errors,
        forward: ForwardRules { pass: passed(r), ..r.forward.clone() },
        meter: r.meter.clone(),
        cors: r.cors.clone(),
    });
    RouteTable::new(routes.collect())
}

/// Fields that backends trust and that a route passes on: those it lists, and those it reads.
fn passed(route: &RouteConfig) -> Box<[HeaderName]> {
    let resource = match &route.resource {
        Some(ResourceFrom::Header(name)) => Some(name),
        _ => None,
    };
    let end_user = route.end_user.iter().filter_map(EndUserFrom::header);
    let secrets = route.secret_from.iter().filter(|_| route.keep_credential).map(SecretPlace::header);
    let decided_by = resource.into_iter().chain(end_user).chain(secrets).filter(|n| is_claim(n.as_str()));
    route.forward.pass.iter().chain(decided_by).cloned().collect()
}

/// The end users known to this node.
pub(super) fn end_users(config: &Config, core: &CoreServices, io: &Handle) -> EndUserCache {
    EndUserCache::new(enduser::EndUserParts {
        store: core.store.clone(),
        clock: Arc::clone(&core.clock),
        metrics: Arc::clone(&core.metrics),
        io: io.clone(),
        options: enduser::EndUserOptions {
            entries: config.end_users.cache_entries,
            patience: STORE_PATIENCE,
            when_unavailable: config.end_users.when_store_is_gone,
            pending_entries: config.end_users.unsettled_entries,
        },
    })
}

/// The follower of the change feed, which also tells other parts of deleted records, prices and credentials.
pub(super) fn follower(
    config: &Config,
    core: &CoreServices,
    keyring: &Arc<Keyring>,
    counters: &Arc<Counters>,
    end_users: &Arc<EndUserCache>,
    admin_at: &Arc<OnceLock<SocketAddr>>,
) -> FeedFollower {
    let spending = Arc::new(SpendingOfDeletedKeys::new(core, keyring, counters));
    let (before_return, end_users) = (Arc::clone(&spending), Arc::clone(end_users));
    let all_end_users = Arc::clone(&end_users);
    let (prices, credentials) = (Arc::clone(&core.prices), Arc::clone(&core.credentials));
    let forward = move |change: &Change| match change {
        Change::KeyRemoved { id, .. } => spending.on_removed(*id),
        Change::EndUserRemoved { workspace_id, other_id } => end_users.forget(workspace_id, other_id),
        Change::Prices(stored) => prices.set_stored(Arc::clone(stored)),
        change => apply_credential(&credentials, change),
    };
    let options = FeedOptions { poll_interval: config.keyring.poll_interval };
    let reporter = NodeReporter::new(core.store.clone(), &config.node.name, core.boot, Arc::clone(admin_at));
    FeedFollower::new(
        Arc::clone(keyring),
        core.store.clone(),
        Arc::clone(&core.clock),
        options,
        Box::new(forward),
    )
    .reporting(reporter)
    .preparing_returns(before_return)
    .telling_when_gone_back(Box::new(move || all_end_users.forget_all()))
}

/// Routes and upstreams.
pub(super) fn routing(
    config: &Config,
    routes: RouteTable,
    upstreams: Box<[Arc<Upstream>]>,
    metrics: &Metrics,
) -> RoutingSnapshot {
    series::show_routes(metrics, &routes, !config.decide.listen.is_empty());
    let named = routes.routes().iter().flat_map(|r| {
        let resource = match &r.resource {
            ResourceFrom::Header(name) => Some(name.clone()),
            _ => None,
        };
        let end_user = r.end_user.iter().filter_map(EndUserFrom::header).cloned();
        resource.into_iter().chain(end_user).chain(r.secret_from.iter().map(|place| place.header().clone()))
    });
    let headers = HeaderPolicy::new(&config.proxy.secret_headers, named);
    let series = SeriesByRoute::new(metrics, &routes);
    RoutingSnapshot { routes, upstreams, headers, series }
}

pub(super) fn gate(
    config: &Config,
    core: &CoreServices,
    keyring: &Arc<Keyring>,
    counters: &Arc<Counters>,
    end_users: Arc<EndUserCache>,
    rehash: RehashQueue,
) -> Gate {
    Gate {
        keyring: Arc::clone(keyring),
        counters: Arc::clone(counters),
        end_users,
        peppers: Arc::clone(&core.peppers),
        secret_prefix: config.secrets.prefix.as_str().into(),
        rehash,
    }
}

pub(super) fn proxy(
    config: &Config,
    core: &CoreServices,
    gate: Gate,
    routing: Arc<ArcSwap<RoutingSnapshot>>,
    (recorder, tracing): (Recorder, Tracing),
    readiness: &ReadinessProbe,
    applications: Applications,
) -> Proxy {
    let has = |family| config.proxy.rate_limit_headers.contains(&family);
    let limits = ProxyLimits {
        header_bytes: config.proxy.max_header_bytes,
        header_fields: config.proxy.max_header_fields,
        uri_bytes: config.proxy.max_uri_bytes,
        end_user_body_bytes: u64::try_from(config.proxy.end_user_body_bytes).unwrap_or(u64::MAX),
        write_timeout: config.proxy.write_timeout,
        trust_request_id: config.proxy.trust_request_id,
        families: RateLimitFamilies {
            x_ratelimit: has(HeaderFamily::XRateLimit),
            ratelimit: has(HeaderFamily::RateLimit),
        },
        errors: config.proxy.errors,
        redirect_to_https: config.proxy.redirect_to_https,
    };
    Proxy {
        invalid_keys: AddressLimiter::new(config.proxy.max_invalid_keys, "invalid API keys"),
        preflights: AddressLimiter::new(config.proxy.max_preflights, "preflight requests"),
        public_requests: AddressLimiter::new(config.proxy.max_public_requests, "requests without a key"),
        health: health_path(config, readiness),
        access: AccessLog::new(config.log.access, config.log.access_sample),
        trusted: TrustedProxies::new(&config.proxy.trusted_proxies),
        gate: Arc::new(gate),
        routing,
        recorder,
        usual: Arc::default(),
        drains: AnswerDrains::new(
            config.proxy.max_answers_drained,
            config.proxy.answer_drain_timeout,
            Arc::clone(&core.metrics),
        ),
        metrics: Arc::clone(&core.metrics),
        clock: Arc::clone(&core.clock),
        limits,
        tracing,
        applications,
        node: config.node.name.as_str().into(),
    }
}

/// What applications that ask by themselves need.
pub(super) fn applications(config: &Config, files: &WatchedFiles) -> Result<Applications, StartError> {
    let decide = &config.decide;
    let token = match &decide.token_file {
        None => None,
        Some(path) => {
            let token = Arc::new(BearerToken::new(&super::read_secret_value(path)?));
            files.add_bearer_token("decide.token_file", path, &token);
            Some(token)
        }
    };
    let route = Route {
        name: VERIFY.into(),
        path: "/verify".into(),
        methods: Box::default(),
        // Nothing is forwarded.
        upstream: usize::MAX,
        public: false,
        scopes: Scopes::default(),
        secret_from: Box::default(),
        resource: ResourceFrom::Nowhere,
        end_user: Box::default(),
        keep_credential: false,
        max_body_bytes: 0,
        encoded_slash: false,
        errors: config.proxy.errors,
        forward: ForwardRules::default(),
        meter: None,
        cors: None,
    };
    let holds = VerifiedHolds::new(decide.max_holds, decide.hold_timeout);
    Ok(Applications { route: Arc::new(route), token, holds })
}

/// The usual soft limit of 1024 would be too low for a gateway.
pub(super) fn raise_file_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "cannot raise limit of open files"),
    }
}

/// Limits for clients of the admin listener: deadlines and sizes of the proxy, and its own number of connections.
fn admin_limits(config: &Config) -> ServerLimits {
    let proxy = &config.proxy;
    ServerLimits {
        connections: admin_connections(config, open_files()),
        connections_per_address: config.admin.max_connections_per_address,
        first_byte: proxy.first_byte_timeout,
        head: proxy.header_timeout,
        idle: proxy.idle_timeout,
        write: proxy.write_timeout,
        uri_bytes: proxy.max_uri_bytes,
        header_bytes: proxy.max_header_bytes,
        header_fields: proxy.max_header_fields,
    }
}

/// The limit of open files; none: unknown.
fn open_files() -> Option<u64> {
    rlimit::getrlimit(rlimit::Resource::NOFILE).ok().map(|(files, _)| files)
}

/// Most admin connections: whoever connects there leaves enough descriptors for everything else.
fn admin_connections(config: &Config, files: Option<u64>) -> usize {
    let configured = config.admin.max_connections;
    let fit = files.map_or(configured, |files| usize::try_from(files / ADMIN_SHARE).unwrap_or(usize::MAX));
    configured.min(fit).max(1)
}

/// Most client connections: no more than there are descriptors for, so that idle connections are closed before a request
/// finds none for its backend.
pub(super) fn max_connections(config: &Config) -> usize {
    let configured = config.proxy.max_connections;
    let Some(files) = open_files() else { return configured };
    let admin = admin_connections(config, Some(files)) as u64;
    let fit = connections_with(files, admin);
    if configured > fit {
        let needed = 2 * configured as u64 + admin + FILES_BESIDE;
        tracing::info!(
            "at most {fit} client connections, because {files} open files are allowed: proxy.max_connections = {configured} \
             takes {needed} (LimitNOFILE, ulimits, ulimit -Hn)"
        );
    }
    configured.min(fit)
}

/// A connection needs a descriptor, and another one while a request is forwarded. If there are few, half are reserved for
/// everything else.
fn connections_with(files: u64, admin: u64) -> usize {
    let connections = (files - (FILES_BESIDE + admin).min(files / 2)) / 2;
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}

/// 0: one per core.
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

/// Whether this node is ready, and why, at the time of the call.
pub(super) type ReadinessProbe = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// The readiness of this node.
pub(super) fn readiness_of(
    config: &Config,
    core: &CoreServices,
    keyring: &Arc<Keyring>,
    accepting: &Arc<AtomicBool>,
    journal: Arc<Journal>,
) -> ReadinessProbe {
    let (ring, clock, max_stale) = (Arc::clone(keyring), Arc::clone(&core.clock), config.keyring.max_stale);
    let (metrics, store_state) = (Arc::clone(&core.metrics), core.store_state.clone());
    let refuses_when_full = config.usage.when_full == WhenFull::Refuse;
    let accepting = Arc::clone(accepting);
    Arc::new(move || {
        let accepting = accepting.load(Ordering::Acquire);
        let mut all = readiness(&ring, &*clock, max_stale, accepting);
        all.checks.extend(store_state.why_closed().map(|why| ReadinessCheck {
            name: "store",
            ok: ring.is_open(),
            detail: why.to_string(),
        }));
        let more = usage::checks(&metrics, &journal, refuses_when_full);
        all.ready &= more.iter().all(|check| check.ok);
        all.checks.extend(more);
        all
    })
}

/// The health check on the proxy's listeners, if there is one.
pub(super) fn health_path(config: &Config, readiness: &ReadinessProbe) -> Option<HealthPath> {
    let (path, readiness) = (config.proxy.health_path.as_deref()?, Arc::clone(readiness));
    Some(HealthPath { path: path.into(), is_ready: Box::new(move || readiness().ready) })
}

/// The admin API, up to its listener.
pub(super) fn admin_server(
    config: &Config,
    core: &CoreServices,
    (keyring, counters): (&Arc<Keyring>, Arc<Counters>),
    state: watch::Receiver<ServerState>,
    (reload, files): (Arc<Reloader>, &WatchedFiles),
    (readiness, identity, sign_in_codes): (ReadinessProbe, IdentityProvider, Option<Arc<SignInCodes>>),
) -> Result<AdminServer, StartError> {
    let metrics_token = match &config.admin.metrics_token_file {
        None => None,
        Some(path) => {
            let token = Arc::new(MetricsToken::new(&super::read_secret_value(path)?));
            files.add_bearer_token("admin.metrics_token_file", path, &token);
            Some(token)
        }
    };
    let backends = Arc::new(KnownBackends {
        serves_applications: !config.decide.listen.is_empty(),
        routing: reload.routing(),
        credentials: Arc::clone(&core.credentials),
    });
    let deps = AdminDeps {
        store: core.store.clone(),
        keyring: Arc::clone(keyring),
        peppers: Arc::clone(&core.peppers),
        secret_prefix: config.secrets.prefix.as_str().into(),
        clock: Arc::clone(&core.clock),
        auth: Arc::clone(&core.auth),
        jwks: identity.jwks,
        introspection: identity.introspection,
        oidc: identity.oidc,
        metrics: Arc::clone(&core.metrics),
        readiness,
        reload,
        held: Arc::new(move |subject, at| counters.held(subject, at)),
        backends,
        default_plan: config.admin.default_plan.clone(),
        create_workspaces: config.admin.create_workspaces,
        metrics_token,
        max_body_bytes: config.admin.max_body_bytes,
        base_path: config.admin.base_path.clone(),
        error_text: config.admin.error_text,
        cors: admin_cors(config),
        sign_in_codes,
        write_timeout: ADMIN_PATIENCE,
    };
    let (clock, metrics) = (Arc::clone(&core.clock), Arc::clone(&core.metrics));
    let tls = tls::of_admin(config, &metrics)?;
    if let Some(tls) = &tls {
        tls::watch("admin.certificates", tls, files);
    }
    Ok(AdminServer { router: router(deps), tls, limits: admin_limits(config), clock, metrics, state })
}

/// The Unix socket of the admin API. One that the config does not name is optional: a gateway must start in every folder.
pub(super) fn admin_socket(
    config: &Config,
    takes_over: bool,
    runtime: &Runtime,
) -> Result<Option<AdminSocketListener>, StartError> {
    let Some(path) = config.admin_socket() else { return Ok(None) };
    let _within = runtime.enter();
    match AdminSocketListener::open(&path, config.admin.socket_mode.bits(), takes_over) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if config.admin.socket == Some(AdminSocket::BesideStore) => {
            tracing::warn!(path = %path.display(), %error, "cannot open the admin socket, commands need --admin");
            Ok(None)
        }
        Err(error) => Err(StartError::AdminSocket { path, error }),
    }
}

/// Lets clients find the socket. Its folder could be written to a moment ago.
pub(super) fn published(socket: &AdminSocketListener) -> bool {
    let done = socket.publish();
    if let Err(error) = &done {
        tracing::error!(%error, "cannot open the admin socket, commands need --admin");
    }
    done.is_ok()
}

/// What the admin API asks about upstreams.
struct KnownBackends {
    /// Whether applications may say what they use, of any measure.
    serves_applications: bool,
    routing: Arc<ArcSwap<RoutingSnapshot>>,
    credentials: Arc<StoredCredentials>,
}

impl Backends for KnownBackends {
    fn has_upstream(&self, name: &str) -> bool {
        self.routing.load().upstreams.iter().any(|upstream| *upstream.settings.name == *name)
    }

    fn why_uncounted(&self, measure: Measure, granted: Option<&Scopes>) -> Option<String> {
        if self.serves_applications {
            return None;
        }
        why_uncounted(self.routing.load().routes.key_routes(), measure, granted)
    }

    fn encryption_keys(&self) -> Option<&EncryptionKeys> {
        self.credentials.keys()
    }

    fn is_usable(&self, id: CredentialId) -> bool {
        self.credentials.is_usable(id)
    }
}

/// Which pages of other origins may use the admin API.
fn admin_cors(config: &Config) -> Option<Cors> {
    let rules: Vec<_> = config.admin.cors_origins.iter().filter_map(|text| OriginRule::parse(text)).collect();
    (!rules.is_empty()).then(|| Cors {
        origins: Origins::Listed(rules.into()),
        methods: [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE].into(),
        headers: Box::default(),
        expose: HeaderValue::from_static("X-Request-Id, Content-Language, Retry-After"),
        credentials: config.admin.cors_credentials,
        max_age: Duration::from_mins(10),
    })
}

fn readiness(keyring: &Keyring, clock: &dyn Clock, max_stale: Duration, accepting: bool) -> Readiness {
    let age = keyring.age(clock.now());
    let fresh = age.is_some_and(|a| a <= max_stale);
    let heard = age.map_or_else(|| "never".into(), |a| format!("{} ms ago", a.as_millis()));
    let mut checks = vec![
        ReadinessCheck {
            name: "accepting",
            ok: accepting,
            detail: if accepting { "yes" } else { "stopping" }.into(),
        },
        ReadinessCheck { name: "change_feed", ok: fresh, detail: format!("last answered {heard}") },
    ];
    let lacking = keyring.lacking_since_start();
    let is_whole = lacking.is_none();
    checks.push(ReadinessCheck {
        name: "keyring",
        ok: is_whole,
        detail: lacking.unwrap_or_else(|| "whole".into()),
    });
    Readiness { ready: accepting && fresh && is_whole && keyring.is_open(), checks }
}

/// Pause of re-hashing after a failure of the store.
const REHASH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Stores re-hashed digests one after the other, as long as the gate exists.
pub(super) async fn rehash_keys(
    mut wanted: RehashJobs,
    store: Arc<dyn Keys>,
    keyring: Arc<Keyring>,
    clock: Arc<dyn Clock>,
) {
    let mut failing = false;
    while let Some(job) = wanted.next().await {
        let Rehash { key, old, new, pepper_version } = job;
        // Another node may have done it meanwhile.
        let outcome = match keyring.find(&old, clock.now().wall) {
            Some(_) => store.rehash_key(key, old, new, pepper_version).await,
            None => Ok(None),
        };
        match outcome {
            Ok(version) => {
                failing = false;
                if let Some(version) = version {
                    keyring.reach(version).await;
                }
            }
            // The key is found by its old digest as long as that pepper is configured.
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%key, %error, "keys keep their old pepper for now");
                }
                tokio::time::sleep(REHASH_AGAIN_AFTER).await;
            }
        }
        wanted.finished(&job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_connections_fit_as_there_are_pairs_of_descriptors() {
        let config = Config::default();
        let fit = [0, 1, 100, 512, 1_024, 4_096, 1 << 20].map(|files| {
            let admin = admin_connections(&config, Some(files));
            (admin, connections_with(files, admin as u64))
        });
        let expected = [(1, 1), (1, 1), (12, 25), (64, 128), (128, 320), (256, 1_792), (256, 524_032)];
        assert_eq!(fit, expected);
    }
}
