//! Dependencies between parts: makes one consistent configuration from the parsed parts.
//!
//! Must not know: how a value is written. Parts that are wrong themselves have been reported already; nothing is concluded
//! from them.

use super::acme;
use super::end_user::EndUserChoice;
use super::file::{ConfigFile, JwtKeyFiles, PlanFile, RouteFile};
use super::forward::checked_cors;
use super::introspection;
use super::listeners;
use super::meter::checked_meter;
use super::oidc;
use super::prices;
use super::reader::{ConfigReader, quoted};
use super::telemetry;
use super::texts::is_name;
use super::types::{
    ClaimNames, Config, CountersConfig, CountersLocation, JwtAlgorithm, JwtConfig, JwtKeys, PlanConfig,
    ProxyConfig, RouteConfig,
};
use super::upstream::{self, UpstreamConfig, UpstreamFile};
use crate::model::id::PlanId;
use crate::model::key::{Ceiling, Per, RATE_MAX};
use crate::model::scope::{Scopes, check_required};
use crate::model::server::RedisKind;
use crate::policy::keys::credential::SecretPlace;
use crate::policy::routing::counted::why_uncounted;
use crate::policy::routing::route::{EndUserFrom, ResourceFrom};
use http::HeaderName;
use std::collections::BTreeMap;

/// Fewest segments that must fit into the usage journal: one to write, one to read, and two ready.
const JOURNAL_SEGMENTS_MIN: u64 = 4;
/// Most segments: each is an open file and a mapping until its records are stored.
const JOURNAL_SEGMENTS_MAX: u64 = 10_000;

/// The configuration from `file` on the machine `host_name`. Use it only if there were no mistakes.
pub(super) fn validate(file: ConfigFile, host_name: &str, reading: &mut ConfigReader<'_>) -> Config {
    let mut config = file.sections;
    listeners::check(&config, reading);
    headers_differ(&config.proxy, reading);
    config.admin.jwt = jwt(config.admin.jwt, file.jwt_keys, reading);
    introspection::check(&config.admin.introspection, reading);
    oidc::check(&config.admin.oidc, reading);
    acme::check(&config.acme, &config.proxy, reading);
    pepper_is_not_the_token_secret(&config, reading);
    intervals_and_sizes(&config, reading);
    counters_fit(&config.counters, reading);
    telemetry::check(&config.telemetry, reading);
    config.node.name = node_name(file.node_name, host_name, config.node.name, reading);
    config.plans = plans(file.plans, reading);
    default_plan_exists(&config, reading);
    let names: Vec<Option<String>> =
        file.upstreams.iter().map(|upstream| upstream.as_ref()?.name.clone()).collect();
    names_differ(&names, "upstreams", reading);
    config.upstreams = upstreams(file.upstreams, &config.proxy, reading);
    listeners::check_route_names(&file.routes, &config.decide, reading);
    config.routes = routes(file.routes, &names, &config.proxy, reading);
    limits_are_counted(&config, reading);
    config.prices = prices::checked(file.prices, reading);
    config
}

fn headers_differ(proxy: &ProxyConfig, reading: &mut ConfigReader<'_>) {
    for (n, name) in proxy.secret_headers.iter().enumerate() {
        if proxy.secret_headers[..n].contains(name) {
            let path = format!("proxy.secret_headers[{n}]");
            reading.complain_of_conflict(&[&path, "proxy.secret_headers"], format!("{name} is there twice"));
        }
    }
    for (n, family) in proxy.rate_limit_headers.iter().enumerate() {
        if proxy.rate_limit_headers[..n].contains(family) {
            let path = format!("proxy.rate_limit_headers[{n}]");
            reading.complain_of_conflict(
                &[&path, "proxy.rate_limit_headers"],
                format!("{family} is there twice"),
            );
        }
    }
    not_a_secret_header(&proxy.end_user_header, "proxy.end_user_header", proxy, reading);
}

/// A header that carries the secret is removed from the request, and must never be shown or stored as anything else.
fn not_a_secret_header(name: &HeaderName, path: &str, proxy: &ProxyConfig, reading: &mut ConfigReader<'_>) {
    if proxy.secret_headers.contains(name) {
        let message = format!("must not be {name}, which carries the secret (proxy.secret_headers)");
        reading.complain_of_conflict(&[path, "proxy.secret_headers"], message);
    }
}

fn jwt(read: JwtConfig, files: JwtKeyFiles, reading: &mut ConfigReader<'_>) -> JwtConfig {
    const SECRET: &str = "admin.jwt.hs256_secret_file";
    const JWKS: &str = "admin.jwt.jwks_file";
    const JWKS_URL: &str = "admin.jwt.jwks_url";
    const ALGORITHMS: &str = "admin.jwt.algorithms";
    claims_differ("admin.jwt.claims", &read.claims, reading);
    let url_key = if files.jwks_url.is_some() { JWKS_URL } else { JWKS };
    if files.jwks.is_some() && files.jwks_url.is_some() {
        let message = format!("must be \"\" while {JWKS} is set; only one of them counts");
        reading.complain_of_conflict(&[JWKS_URL, JWKS], message);
    }
    if read.jwks_ca_file.is_some() && !files.jwks_url.as_ref().is_some_and(|url| url.tls) {
        let message = "needs an admin.jwt.jwks_url that begins with https";
        reading.complain_of_conflict(&["admin.jwt.jwks_ca_file", JWKS_URL], message);
    }
    if read.jwks_max_stale < read.jwks_refresh {
        let paths = ["admin.jwt.jwks_max_stale", "admin.jwt.jwks_refresh"];
        reading.complain_of_conflict(&paths, "must not be shorter than admin.jwt.jwks_refresh");
    }
    let jwks = files.jwks_url.map(JwtKeys::JwksUrl).or(files.jwks.map(JwtKeys::JwksFile));
    // Naming a JWKS replaces the default secret; only a secret that was set explicitly conflicts with it.
    let keys = match (jwks, files.hs256_secret) {
        (Some(_), Some(_)) if reading.is_given(SECRET) => {
            let message = format!("must be \"\" while {SECRET} is set; only one of them counts");
            reading.complain_of_conflict(&[url_key, SECRET], message);
            return read;
        }
        (None, None) => {
            reading.complain_of_conflict(
                &[SECRET, JWKS],
                format!("must be set, unless {JWKS} or {JWKS_URL} is"),
            );
            return read;
        }
        (Some(jwks), _) => jwks,
        (None, Some(secret)) => JwtKeys::SharedSecretFile(secret),
    };
    for (n, algorithm) in read.algorithms.iter().enumerate() {
        let is_shared = *algorithm == JwtAlgorithm::Hs256;
        let message = if read.algorithms[..n].contains(algorithm) {
            format!("{algorithm} is there twice")
        } else if is_shared && !matches!(keys, JwtKeys::SharedSecretFile(_)) {
            format!("{algorithm} does not go with {url_key}; allowed: RS256, ES256, EdDSA")
        } else if !is_shared && matches!(keys, JwtKeys::SharedSecretFile(_)) {
            format!("{algorithm} needs {JWKS} or {JWKS_URL}; allowed: HS256")
        } else {
            continue;
        };
        reading.complain_of_conflict(&[&format!("{ALGORITHMS}[{n}]"), ALGORITHMS, SECRET, url_key], message);
    }
    JwtConfig { keys, ..read }
}

/// Checks the claim names in the table at `path`.
pub(super) fn claims_differ(path: &str, claims: &ClaimNames, reading: &mut ConfigReader<'_>) {
    let [subject, workspace, role] = ["subject", "workspace", "role"].map(|name| format!("{path}.{name}"));
    for (path, name, other, other_name) in [
        (&workspace, &claims.workspace, &subject, &claims.subject),
        (&role, &claims.role, &subject, &claims.subject),
        (&role, &claims.role, &workspace, &claims.workspace),
    ] {
        if name == other_name {
            reading.complain_of_conflict(&[path, other], format!("must not be the same claim as {other}"));
        }
    }
}

fn pepper_is_not_the_token_secret(config: &Config, reading: &mut ConfigReader<'_>) {
    let JwtKeys::SharedSecretFile(secret) = &config.admin.jwt.keys else { return };
    if *secret == config.secrets.pepper_file {
        reading.complain_of_conflict(
            &["secrets.pepper_file", "admin.jwt.hs256_secret_file"],
            "must be another file than admin.jwt.hs256_secret_file",
        );
    }
}

fn intervals_and_sizes(config: &Config, reading: &mut ConfigReader<'_>) {
    if config.proxy.drain_delay > config.proxy.drain_timeout {
        reading.complain_of_conflict(
            &["proxy.drain_delay", "proxy.drain_timeout"],
            "must not be longer than proxy.drain_timeout, of which it is a part",
        );
    }
    if config.keyring.poll_interval >= config.keyring.max_stale {
        reading.complain_of_conflict(
            &["keyring.poll_interval", "keyring.max_stale"],
            "must be shorter than keyring.max_stale",
        );
    }
    let segment_bytes = config.usage.journal_segment_bytes as u64;
    let segments = config.usage.journal_max_bytes / segment_bytes;
    if segments > JOURNAL_SEGMENTS_MAX {
        reading.complain_of_conflict(
            &["usage.journal_max_bytes", "usage.journal_segment_bytes"],
            format!("must be at most {JOURNAL_SEGMENTS_MAX} segments of {segment_bytes} bytes (usage.journal_segment_bytes)"),
        );
    }
    if segments < JOURNAL_SEGMENTS_MIN {
        reading.complain_of_conflict(
            &["usage.journal_max_bytes", "usage.journal_segment_bytes"],
            format!("must have room for {JOURNAL_SEGMENTS_MIN} segments of {segment_bytes} bytes (usage.journal_segment_bytes)"),
        );
    }
}

/// Files that would be ignored are mistakes, because the user relies on them.
fn counters_fit(counters: &CountersConfig, reading: &mut ConfigReader<'_>) {
    const URL: &str = "counters.url";
    let url = if let CountersLocation::Redis(url) = &counters.location { Some(url) } else { None };
    let tls = [
        ("counters.tls_ca_file", &counters.tls_ca_file),
        ("counters.tls_cert_file", &counters.tls_cert_file),
        ("counters.tls_key_file", &counters.tls_key_file),
    ];
    if !url.is_some_and(|url| url.tls) {
        for (path, _) in tls.iter().filter(|(_, file)| file.is_some()) {
            reading.complain_of_conflict(&[path, URL], "needs a counters.url that begins with rediss");
        }
    }
    if counters.tls_cert_file.is_some() != counters.tls_key_file.is_some() {
        let (cert, key) = ("counters.tls_cert_file", "counters.tls_key_file");
        let (given, missing) = if counters.tls_cert_file.is_some() { (cert, key) } else { (key, cert) };
        reading.complain_of_conflict(&[given], format!("needs {missing} beside it"));
    }
    let sentinels = url.is_some_and(|url| matches!(url.kind, RedisKind::Sentinel(_)));
    if counters.sentinel_password_file.is_some() && !sentinels {
        let uses = ["counters.sentinel_password_file", URL];
        reading.complain_of_conflict(&uses, "needs a counters.url of Sentinels, as in redis+sentinel://…");
    }
}

fn node_name(
    given: Option<String>,
    host_name: &str,
    default: String,
    reading: &mut ConfigReader<'_>,
) -> String {
    if let Some(name) = given {
        return name;
    }
    if host_name.is_empty() {
        return default;
    }
    if !is_name(host_name) {
        reading.complain_of_conflict(
            &["node.name"],
            "must be set, for the machine's host name is not 1 to 64 characters of A-Z a-z 0-9 . _ -",
        );
    }
    host_name.to_owned()
}

// === plans ===

fn plans(files: Vec<(String, PlanFile)>, reading: &mut ConfigReader<'_>) -> Vec<PlanConfig> {
    let mut plans: BTreeMap<PlanId, PlanConfig> =
        Config::default().plans.into_iter().map(|plan| (plan.plan.id.clone(), plan)).collect();
    for (name, file) in files {
        let path = format!("plans.{}", quoted(&name));
        match name.parse::<PlanId>() {
            Ok(id) => {
                limits_differ(&file.limits, &path, reading);
                let mut plan = PlanConfig::new(id.clone());
                plan.plan.api_ops_rate_limit = file.api_ops_rate_limit;
                plan.plan.end_user_quota = file.end_user_quota;
                plan.plan.default_daily_request_limit =
                    Some(file.default_daily_request_limit).filter(|limit| *limit > 0);
                plan.plan.limits = file.limits.into_iter().flatten().collect();
                plan.plan.calendar = file.calendar;
                plan.description = file.description;
                plan.usage_retention_days = Some(file.usage_retention_days).filter(|days| *days > 0);
                plan.deleted_keys_days = file.deleted_keys_days;
                plan.managed = file.managed;
                plans.insert(id, plan);
            }
            Err(bad) => reading.complain(&path, bad.to_string()),
        }
    }
    plans.into_values().collect()
}

/// A limit that nothing can count would look like one that holds. Applications may say that they used of any measure.
fn limits_are_counted(config: &Config, reading: &mut ConfigReader<'_>) {
    if !config.decide.listen.is_empty() {
        return;
    }
    for PlanConfig { plan, .. } in &config.plans {
        for (n, limit) in plan.limits.iter().enumerate() {
            if let Some(why) = why_uncounted(config.key_routes(), limit.count, None) {
                let count = format!("plans.{}.limits[{n}].count", quoted(plan.id.as_str()));
                reading.complain_of_conflict(&[&count, "routes"], why);
            }
        }
    }
}

fn limits_differ(limits: &[Option<Ceiling>], plan: &str, reading: &mut ConfigReader<'_>) {
    for (n, limit) in limits.iter().enumerate() {
        let Some(limit) = limit else { continue };
        let path = format!("{plan}.limits[{n}]");
        if limit.per == Per::Second && limit.max > u64::from(RATE_MAX) {
            let max = format!("{path}.max");
            reading.complain_of_conflict(&[&max], format!("must be at most {RATE_MAX} per second"));
        }
        if let Err(why) = limit.check() {
            let per = format!("{path}.per");
            reading.complain_of_conflict(&[&per], why);
        }
        if limits[..n].iter().flatten().any(|other| other.is_like(limit)) {
            let message = format!("there is a limit of {} per {} already", limit.count, limit.per);
            reading.complain_of_conflict(&[&path], message);
        }
    }
}

fn default_plan_exists(config: &Config, reading: &mut ConfigReader<'_>) {
    // If the plans could not be read at all, it may be among them.
    if reading.is_wrong("plans") {
        return;
    }
    let wanted = &config.admin.default_plan;
    if !config.plans.iter().any(|plan| plan.plan.id == *wanted) {
        let known: Vec<&str> = config.plans.iter().map(|plan| plan.plan.id.as_str()).collect();
        reading.complain_of_conflict(
            &["admin.default_plan"],
            format!("there is no plan {:?}; known: {}", wanted.as_str(), known.join(", ")),
        );
    }
}

// === upstreams and routes ===

fn names_differ(names: &[Option<String>], list: &str, reading: &mut ConfigReader<'_>) {
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    for (n, name) in names.iter().enumerate() {
        let Some(name) = name else { continue };
        match first.get(name.as_str()) {
            Some(other) => {
                let message = format!("{list}[{other}] has the name {name:?} already; names must differ");
                reading.complain_of_conflict(&[&format!("{list}[{n}].name")], message);
            }
            None => {
                first.insert(name, n);
            }
        }
    }
}

fn upstreams(
    files: Vec<Option<UpstreamFile>>,
    proxy: &ProxyConfig,
    reading: &mut ConfigReader<'_>,
) -> Vec<UpstreamConfig> {
    let mut upstreams = Vec::with_capacity(files.len());
    for (n, file) in files.into_iter().enumerate() {
        let Some(file) = file else { continue };
        let upstream = upstream::checked(n, file, reading);
        if let Some(name) = upstream::hash_header(&upstream) {
            not_a_secret_header(name, &format!("upstreams[{n}].balance"), proxy, reading);
        }
        upstreams.push(upstream);
    }
    upstreams
}

fn routes(
    files: Vec<Option<RouteFile>>,
    upstreams: &[Option<String>],
    proxy: &ProxyConfig,
    reading: &mut ConfigReader<'_>,
) -> Vec<RouteConfig> {
    let mut names = Vec::with_capacity(files.len());
    let mut routes = Vec::with_capacity(files.len());
    for (n, file) in files.into_iter().enumerate() {
        names.push(file.as_ref().and_then(|read| read.name.clone().or_else(|| read.path.clone())));
        routes.extend(file.and_then(|route_file| route(n, route_file, upstreams, proxy, reading)));
    }
    names_differ(&names, "routes", reading);
    routes
}

fn route(
    n: usize,
    file: RouteFile,
    upstreams: &[Option<String>],
    proxy: &ProxyConfig,
    reading: &mut ConfigReader<'_>,
) -> Option<RouteConfig> {
    if file.public {
        asks_for_no_key(n, reading);
    }
    let secret_from = secret_places(n, file.secret_from, proxy, reading);
    if let Some(ResourceFrom::Header(name)) = &file.resource {
        not_where_the_secret_is(name, n, "resource", &secret_from, proxy, reading);
    }
    let source_of = |choice| match choice {
        EndUserChoice::AsProxy => EndUserFrom::Header(proxy.end_user_header.clone()),
        EndUserChoice::Own(source) => source,
    };
    let end_user: Vec<EndUserFrom> = file.end_user.into_iter().map(source_of).collect();
    for name in end_user.iter().filter_map(EndUserFrom::header) {
        not_where_the_secret_is(name, n, "end_user", &secret_from, proxy, reading);
    }
    let upstream = file.upstream.and_then(|name| upstream_index(&name, n, upstreams, reading));
    let meter = checked_meter(n, file.meter, reading);
    let (forward, cors) = checked_cors(n, file.forward, reading);
    metadata_differs(n, &forward.metadata, reading);
    let path = file.path?;
    Some(RouteConfig {
        name: file.name.unwrap_or_else(|| path.clone()),
        path,
        methods: file.methods,
        upstream: upstream?,
        public: file.public,
        scopes: required_scopes(n, &file.scopes, reading)?,
        secret_from,
        resource: file.resource,
        end_user,
        keep_credential: file.keep_credential,
        max_body_bytes: file.max_body_bytes.unwrap_or(proxy.max_body_bytes),
        encoded_slash: file.encoded_slash,
        errors: file.errors.unwrap_or(proxy.errors),
        meter,
        forward,
        cors,
    })
}

/// A public route must not set what only a key can fulfil: whoever wrote it relies on it.
fn asks_for_no_key(n: usize, reading: &mut ConfigReader<'_>) {
    for key in ["scopes", "resource", "end_user", "forward_metadata", "unpriced"] {
        let path = format!("routes[{n}].{key}");
        if reading.is_given(&path) {
            reading.complain_of_conflict(
                &[&path],
                "must not be set on a route with public = true, which has no key",
            );
        }
    }
}

/// Two entries of metadata would share a header.
fn metadata_differs(n: usize, metadata: &[(Box<str>, HeaderName)], reading: &mut ConfigReader<'_>) {
    for (place, (_, name)) in metadata.iter().enumerate() {
        if let Some((other, _)) = metadata[..place].iter().find(|(_, earlier)| earlier == name) {
            let message = format!("has the same header as {other}: {name}");
            reading.complain_of_conflict(&[&format!("routes[{n}].forward_metadata[{place}]")], message);
        }
    }
}

/// The places of a route: its own, or the headers of `[proxy]`.
fn secret_places(
    n: usize,
    own: Vec<SecretPlace>,
    proxy: &ProxyConfig,
    reading: &mut ConfigReader<'_>,
) -> Vec<SecretPlace> {
    for (place, wanted) in own.iter().enumerate() {
        if own[..place].contains(wanted) {
            let path = format!("routes[{n}].secret_from[{place}]");
            reading.complain_of_conflict(&[&path], "is in the list twice");
        }
    }
    if own.is_empty() {
        return proxy.secret_headers.iter().cloned().map(SecretPlace::Header).collect();
    }
    own
}

/// A header of a route is neither one that carries the secret on this route nor one of `[proxy]`.
fn not_where_the_secret_is(
    name: &HeaderName,
    n: usize,
    key: &str,
    places: &[SecretPlace],
    proxy: &ProxyConfig,
    reading: &mut ConfigReader<'_>,
) {
    let path = format!("routes[{n}].{key}");
    if proxy.secret_headers.contains(name) {
        not_a_secret_header(name, &path, proxy, reading);
    } else if places.iter().any(|place| place.header() == name) {
        let message = format!("must not be {name}, which carries the secret (secret_from)");
        reading.complain_of_conflict(&[&path], message);
    }
}

fn required_scopes(n: usize, words: &[String], reading: &mut ConfigReader<'_>) -> Option<Scopes> {
    Scopes::of(words.iter().map(String::as_str), check_required)
        .map_err(|(place, bad)| {
            reading.complain_of_conflict(&[&format!("routes[{n}].scopes[{place}]")], bad.to_string());
        })
        .ok()
}

fn upstream_index(
    name: &str,
    route: usize,
    upstreams: &[Option<String>],
    reading: &mut ConfigReader<'_>,
) -> Option<usize> {
    let found = upstreams.iter().position(|upstream| upstream.as_deref() == Some(name));
    // If the name of some upstream could not be read, it may be the one that is meant.
    if found.is_none() && upstreams.iter().all(Option::is_some) {
        let known: Vec<&str> = upstreams.iter().flatten().map(String::as_str).collect();
        let message = if known.is_empty() {
            format!("there is no upstream {name:?}; none is defined under [[upstreams]]")
        } else {
            format!("there is no upstream {name:?}; known: {}", known.join(", "))
        };
        reading.complain_of_conflict(&[&format!("routes[{route}].upstream")], message);
    }
    found
}
