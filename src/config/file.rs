//! Every key of the configuration with its rule, one function per section.
//!
//! Must not know: dependencies between keys, which `validate` checks. A wrong value is noted and replaced by its default,
//! so that one mistake does not hide others.

use super::acme::acme;
use super::end_user::{EndUserChoice, EndUserSources};
use super::forward::{ForwardFile, forward};
use super::introspection::introspection;
use super::meter::{MeterFile, meter};
use super::oidc::oidc;
use super::prices::{PriceFile, price};
use super::rule::{ByteSize, Flag, Integer, OrEmpty, ParsedText, Text, Word, quote};
use super::section::Section;
use super::telemetry::telemetry;
use super::texts::{
    CountersUrl, FILE, HEADER, IDENTITY_URL, LISTEN, METHOD, NAME, NETWORK, ROUTE_PATH, SECRET_PREFIX,
    SOCKET, StoreUrl, header, is_name,
};
use super::types::{
    AdminConfig, ClaimNames, Config, CountersConfig, DecideConfig, EncodedSlash, EndUsersConfig,
    JwtAlgorithm, JwtConfig, JwtKeys, KeyringConfig, LogConfig, PlanConfig, ProxyConfig, SecretsConfig,
    StoreConfig, UsageConfig,
};
use super::upstream::{UpstreamFile, span_ms, upstream};
use crate::model::calendar::{self, Calendar, MONTH_DAY_MAX};
use crate::model::fault::ErrorForm;
use crate::model::id::PlanId;
use crate::model::key::{
    CEILING_MAX, CEILINGS_MAX, Ceiling, DELETED_KEYS_DAYS_MAX, Owner, RATE_MAX, RETENTION_DAYS_MAX,
};
use crate::model::scope::{SCOPES_MAX, check_required};
use crate::model::server::HttpUrl;
use crate::policy::http::cors::OriginRule;
use crate::policy::http::head::TARGET_MAX;
use crate::policy::http::path::canonical;
use crate::policy::keys::credential::SecretPlace;
use crate::policy::prices::PRICES_MAX;
use crate::policy::routing::route::ResourceFrom;
use http::Method;
use std::path::PathBuf;

/// Most plans in the file.
const PLANS_MAX: usize = 1_000;
/// Most upstreams.
const UPSTREAMS_MAX: usize = 1_000;
/// Most routes.
const ROUTES_MAX: usize = 10_000;

/// The parsed file, before dependencies are checked.
pub(super) struct ConfigFile {
    /// The sections, without plans, upstreams, routes and the name of the node.
    pub(super) sections: Config,
    pub(super) jwt_keys: JwtKeyFiles,
    /// The name of the node, if one is given.
    pub(super) node_name: Option<String>,
    /// Plans with the names they have in the file.
    pub(super) plans: Vec<(String, PlanFile)>,
    pub(super) upstreams: Vec<Option<UpstreamFile>>,
    pub(super) routes: Vec<Option<RouteFile>>,
    pub(super) prices: Vec<Option<PriceFile>>,
}

/// The possible sources of token keys.
pub(super) struct JwtKeyFiles {
    pub(super) hs256_secret: Option<PathBuf>,
    pub(super) jwks: Option<PathBuf>,
    pub(super) jwks_url: Option<HttpUrl>,
}

/// A parsed plan.
pub(super) struct PlanFile {
    pub(super) api_ops_rate_limit: u32,
    pub(super) end_user_quota: u64,
    pub(super) default_daily_request_limit: u64,
    pub(super) description: String,
    pub(super) usage_retention_days: u32,
    pub(super) deleted_keys_days: u32,
    pub(super) managed: bool,
    pub(super) limits: Vec<Option<Ceiling>>,
    pub(super) calendar: Calendar,
}

/// A parsed route; empty parts were missing or wrong.
pub(super) struct RouteFile {
    pub(super) name: Option<String>,
    pub(super) path: Option<String>,
    pub(super) methods: Vec<Method>,
    pub(super) upstream: Option<String>,
    pub(super) public: bool,
    pub(super) scopes: Vec<String>,
    pub(super) secret_from: Vec<SecretPlace>,
    pub(super) resource: Option<ResourceFrom>,
    pub(super) end_user: Vec<EndUserChoice>,
    pub(super) keep_credential: bool,
    pub(super) max_body_bytes: Option<u64>,
    pub(super) encoded_slash: EncodedSlash,
    pub(super) meter: MeterFile,
    pub(super) errors: Option<ErrorForm>,
    pub(super) forward: ForwardFile,
}

/// Reads the whole file.
pub(super) fn read(root: &mut Section<'_, '_>) -> ConfigFile {
    let proxy = root.table("proxy", proxy);
    let (admin, jwt_keys) = root.table("admin", admin);
    let decide = root.table("decide", decide);
    let acme = root.table("acme", acme);
    let secrets = root.table("secrets", secrets);
    let store = root.table("store", store);
    let counters = root.table("counters", counters);
    let keyring = root.table("keyring", keyring);
    let usage = root.table("usage", usage);
    let end_users = root.table("end_users", end_users);
    let log = root.table("log", log);
    let telemetry = root.table("telemetry", telemetry);
    let node_name = root.table("node", |s| s.value("name", &OrEmpty(NAME), None));
    let plans = root.named_tables("plans", PLANS_MAX, plan);
    ConfigFile {
        sections: Config {
            proxy,
            acme,
            admin,
            decide,
            secrets,
            store,
            counters,
            keyring,
            usage,
            end_users,
            log,
            telemetry,
            ..Config::default()
        },
        jwt_keys,
        node_name,
        plans: plans.into_iter().map(|(name, plan)| (name.to_owned(), plan)).collect(),
        upstreams: root.tables("upstreams", UPSTREAMS_MAX, upstream),
        routes: root.tables("routes", ROUTES_MAX, route),
        prices: root.tables("prices", PRICES_MAX, price),
    }
}

fn proxy(s: &mut Section<'_, '_>) -> ProxyConfig {
    let d = ProxyConfig::default();
    ProxyConfig {
        listen: s.list("listen", &LISTEN, 0..=16, d.listen),
        listen_tls: s.list("listen_tls", &LISTEN, 0..=16, d.listen_tls),
        listen_h2c: s.list("listen_h2c", &LISTEN, 0..=16, d.listen_h2c),
        certificates: s.list("certificates", &FILE, 0..=1_000, d.certificates),
        client_ca_file: s.value("client_ca_file", &OrEmpty(FILE), d.client_ca_file),
        client_certificates: s.value("client_certificates", &Word::new(), d.client_certificates),
        trusted_proxies: s.list("trusted_proxies", &NETWORK, 0..=1_000, d.trusted_proxies),
        proxy_protocol: s.value("proxy_protocol", &Flag, d.proxy_protocol),
        max_http2_streams: s.value(
            "max_http2_streams",
            &Integer { min: 1, max: 10_000 },
            d.max_http2_streams,
        ),
        max_invalid_keys: s.value(
            "max_invalid_keys",
            &Integer { min: 0, max: 1_000_000 },
            d.max_invalid_keys,
        ),
        max_preflights: s.value("max_preflights", &Integer { min: 0, max: 1_000_000 }, d.max_preflights),
        max_public_requests: s.value(
            "max_public_requests",
            &Integer { min: 0, max: 1_000_000 },
            d.max_public_requests,
        ),
        revocation_check: s.value("revocation_check", &span_ms(100, 3_600_000), d.revocation_check),
        threads: s.value("threads", &THREADS, d.threads),
        // Pingora itself fails at 1 MiB and at 256 fields, with an answer that is not ours.
        max_header_bytes: s.value("max_header_bytes", &size(1 << 10, 512 << 10), d.max_header_bytes),
        max_header_fields: s.value("max_header_fields", &Integer { min: 1, max: 250 }, d.max_header_fields),
        max_uri_bytes: s.value("max_uri_bytes", &size(64, TARGET_MAX), d.max_uri_bytes),
        max_body_bytes: s.value("max_body_bytes", &ByteSize { min: 0, max: 1 << 40 }, d.max_body_bytes),
        first_byte_timeout: s.value("first_byte_timeout", &span_ms(100, 600_000), d.first_byte_timeout),
        header_timeout: s.value("header_timeout", &span_ms(100, 600_000), d.header_timeout),
        idle_timeout: s.value("idle_timeout", &span_ms(1_000, 3_600_000), d.idle_timeout),
        body_timeout: s.value("body_timeout", &span_ms(100, 3_600_000), d.body_timeout),
        write_timeout: s.value("write_timeout", &span_ms(100, 3_600_000), d.write_timeout),
        min_body_rate: s.value("min_body_rate", &ByteSize { min: 0, max: 1 << 30 }, d.min_body_rate),
        max_connections: s.value("max_connections", &Integer { min: 1, max: 10_000_000 }, d.max_connections),
        max_connections_per_address: s.value(
            "max_connections_per_address",
            &Integer { min: 0, max: 10_000_000 },
            d.max_connections_per_address,
        ),
        max_requests_per_connection: s.value(
            "max_requests_per_connection",
            &Integer { min: 1, max: 1_000_000_000 },
            d.max_requests_per_connection,
        ),
        max_bytes_in_flight: s.value(
            "max_bytes_in_flight",
            &ByteSize { min: 1 << 20, max: 1 << 40 },
            d.max_bytes_in_flight,
        ),
        secret_headers: s.list("secret_headers", &HEADER, 1..=8, d.secret_headers),
        max_answers_drained: s.value(
            "max_answers_drained",
            &Integer { min: 0, max: 1_000_000 },
            d.max_answers_drained,
        ),
        answer_drain_timeout: s.value(
            "answer_drain_timeout",
            &span_ms(100, 3_600_000),
            d.answer_drain_timeout,
        ),
        end_user_header: s.value("end_user_header", &HEADER, d.end_user_header),
        end_user_body_bytes: s.value("end_user_body_bytes", &size(1 << 10, 64 << 20), d.end_user_body_bytes),
        trust_request_id: s.value("trust_request_id", &Flag, d.trust_request_id),
        rate_limit_headers: s.list("rate_limit_headers", &Word::new(), 0..=2, d.rate_limit_headers),
        health_path: s.value("health_path", &OrEmpty(HEALTH_PATH), None),
        redirect_to_https: s.value("redirect_to_https", &Flag, d.redirect_to_https),
        errors: s.value("errors", &Word::new(), d.errors),
        drain_delay: s.value("drain_delay", &span_ms(0, 600_000), d.drain_delay),
        drain_idle: s.value("drain_idle", &span_ms(0, 600_000), d.drain_idle),
        drain_timeout: s.value("drain_timeout", &span_ms(0, 3_600_000), d.drain_timeout),
        upgrade_timeout: s.value("upgrade_timeout", &span_ms(1, 3_600_000), d.upgrade_timeout),
    }
}

fn admin(s: &mut Section<'_, '_>) -> (AdminConfig, JwtKeyFiles) {
    let d = AdminConfig::default();
    let (jwt, jwt_keys) = s.table("jwt", jwt);
    let introspection = s.table("introspection", introspection);
    let oidc = s.table("oidc", oidc);
    let admin = AdminConfig {
        listen: s.value("listen", &LISTEN, d.listen),
        certificates: s.list("certificates", &FILE, 0..=1_000, d.certificates),
        socket: s.value("socket", &OrEmpty(SOCKET), d.socket),
        socket_mode: s.value("socket_mode", &Word::new(), d.socket_mode),
        threads: s.value("threads", &THREADS, d.threads),
        max_body_bytes: s.value("max_body_bytes", &size(1 << 10, 64 << 20), d.max_body_bytes),
        max_connections: s.value("max_connections", &Integer { min: 1, max: 100_000 }, d.max_connections),
        max_connections_per_address: s.value(
            "max_connections_per_address",
            &Integer { min: 1, max: 100_000 },
            d.max_connections_per_address,
        ),
        create_workspaces: s.value("create_workspaces", &Flag, d.create_workspaces),
        default_plan: s.value("default_plan", &PLAN_ID, d.default_plan),
        base_path: s.value("base_path", &BASE_PATH, d.base_path),
        error_text: s.value("error_text", &Word::new(), d.error_text),
        cors_origins: s.list("cors_origins", &ADMIN_ORIGIN, 0..=64, d.cors_origins),
        cors_credentials: s.value("cors_credentials", &Flag, d.cors_credentials),
        metrics_token_file: s.value("metrics_token_file", &OrEmpty(FILE), d.metrics_token_file),
        jwt,
        introspection,
        oidc,
    };
    (admin, jwt_keys)
}

fn decide(s: &mut Section<'_, '_>) -> DecideConfig {
    let d = DecideConfig::default();
    DecideConfig {
        listen: s.list("listen", &LISTEN, 0..=16, d.listen),
        token_file: s.value("token_file", &OrEmpty(FILE), d.token_file),
        hold_timeout: s.value("hold_timeout", &span_ms(1_000, 86_400_000), d.hold_timeout),
        max_holds: s.value("max_holds", &Integer { min: 1, max: 1_000_000 }, d.max_holds),
    }
}

fn jwt(s: &mut Section<'_, '_>) -> (JwtConfig, JwtKeyFiles) {
    let d = JwtConfig::default();
    let hs256 = match &d.keys {
        JwtKeys::SharedSecretFile(path) => Some(path.clone()),
        JwtKeys::JwksFile(_) | JwtKeys::JwksUrl(_) => None,
    };
    let keys = JwtKeyFiles {
        hs256_secret: s.value("hs256_secret_file", &OrEmpty(FILE), hs256),
        jwks: s.value("jwks_file", &OrEmpty(FILE), None),
        jwks_url: s.value("jwks_url", &OrEmpty(IDENTITY_URL), None),
    };
    let jwt = JwtConfig {
        keys: d.keys,
        jwks_ca_file: s.value("jwks_ca_file", &OrEmpty(FILE), d.jwks_ca_file),
        jwks_refresh: s.value("jwks_refresh", &span_ms(1_000, 86_400_000), d.jwks_refresh),
        jwks_retry: s.value("jwks_retry", &span_ms(100, 3_600_000), d.jwks_retry),
        jwks_max_stale: s.value("jwks_max_stale", &span_ms(1_000, 30 * 86_400_000), d.jwks_max_stale),
        algorithms: s.list("algorithms", &Word::new(), 1..=JwtAlgorithm::ALL.len(), d.algorithms),
        issuer: s.value("issuer", &OrEmpty(NAMED_BY_OTHERS), d.issuer),
        audience: s.value("audience", &OrEmpty(NAMED_BY_OTHERS), d.audience),
        require: s.list("require", &CLAIM_VALUE, 0..=16, d.require),
        roles: s.list("roles", &ROLE_OF, 0..=64, d.roles),
        default_role: s.value("default_role", &OrEmpty(ROLE), d.default_role),
        workspace_header_subjects: s.list(
            "workspace_header_subjects",
            &NAMED_BY_OTHERS,
            0..=64,
            d.workspace_header_subjects,
        ),
        leeway: s.value("leeway", &span_ms(0, 300_000), d.leeway),
        claims: s.table("claims", claims),
    };
    (jwt, keys)
}

pub(super) fn claims(s: &mut Section<'_, '_>) -> ClaimNames {
    let d = ClaimNames::default();
    ClaimNames {
        subject: s.value("subject", &NAMED_BY_OTHERS, d.subject),
        workspace: s.value("workspace", &NAMED_BY_OTHERS, d.workspace),
        role: s.value("role", &NAMED_BY_OTHERS, d.role),
    }
}

fn secrets(s: &mut Section<'_, '_>) -> SecretsConfig {
    let d = SecretsConfig::default();
    SecretsConfig {
        prefix: s.value("prefix", &SECRET_PREFIX, d.prefix),
        pepper_file: s.value("pepper_file", &FILE, d.pepper_file),
        encryption_key_file: s.value("encryption_key_file", &OrEmpty(FILE), d.encryption_key_file),
    }
}

fn store(s: &mut Section<'_, '_>) -> StoreConfig {
    let d = StoreConfig::default();
    StoreConfig {
        location: s.value("url", &StoreUrl, d.location),
        busy_timeout: s.value("busy_timeout", &span_ms(0, 60_000), d.busy_timeout),
        readers: s.value("readers", &Integer { min: 1, max: 64 }, d.readers),
        pool: s.value("pool", &Integer { min: 1, max: 1_000 }, d.pool),
        connect_timeout: s.value("connect_timeout", &span_ms(100, 60_000), d.connect_timeout),
        statement_timeout: s.value("statement_timeout", &span_ms(100, 600_000), d.statement_timeout),
    }
}

fn counters(s: &mut Section<'_, '_>) -> CountersConfig {
    let d = CountersConfig::default();
    CountersConfig {
        location: s.value("url", &CountersUrl, d.location),
        on_failure: s.value("on_failure", &Word::new(), d.on_failure),
        share_unknown: s.value("share_unknown", &Flag, d.share_unknown),
        tls_ca_file: s.value("tls_ca_file", &OrEmpty(FILE), d.tls_ca_file),
        tls_cert_file: s.value("tls_cert_file", &OrEmpty(FILE), d.tls_cert_file),
        tls_key_file: s.value("tls_key_file", &OrEmpty(FILE), d.tls_key_file),
        sentinel_password_file: s.value("sentinel_password_file", &OrEmpty(FILE), d.sentinel_password_file),
    }
}

fn keyring(s: &mut Section<'_, '_>) -> KeyringConfig {
    let d = KeyringConfig::default();
    KeyringConfig {
        max_stale: s.value("max_stale", &span_ms(1_000, 7 * 86_400_000), d.max_stale),
        poll_interval: s.value("poll_interval", &span_ms(10, 60_000), d.poll_interval),
    }
}

fn usage(s: &mut Section<'_, '_>) -> UsageConfig {
    let d = UsageConfig::default();
    UsageConfig {
        journal_dir: s.value("journal_dir", &FILE, d.journal_dir),
        journal_max_bytes: s.value(
            "journal_max_bytes",
            &ByteSize { min: 1 << 18, max: 1 << 40 },
            d.journal_max_bytes,
        ),
        journal_segment_bytes: s.value(
            "journal_segment_bytes",
            &size(64 << 10, 256 << 20),
            d.journal_segment_bytes,
        ),
        journal_sync_interval: s.value("journal_sync_interval", &span_ms(1, 10_000), d.journal_sync_interval),
        batch_records: s.value("batch_records", &Integer { min: 1, max: 100_000 }, d.batch_records),
        batch_delay: s.value("batch_delay", &span_ms(1, 10_000), d.batch_delay),
        when_full: s.value("when_full", &Word::new(), d.when_full),
    }
}

fn end_users(s: &mut Section<'_, '_>) -> EndUsersConfig {
    let d = Config::default().end_users;
    EndUsersConfig {
        cache_entries: s.value("cache_entries", &Integer { min: 1_000, max: 100_000_000 }, d.cache_entries),
        when_store_is_gone: s.value("when_store_is_gone", &Word::new(), d.when_store_is_gone),
        unsettled_entries: s.value(
            "unsettled_entries",
            &Integer { min: 1, max: 10_000_000 },
            d.unsettled_entries,
        ),
    }
}

fn log(s: &mut Section<'_, '_>) -> LogConfig {
    let d = Config::default().log;
    LogConfig {
        level: s.value("level", &Word::new(), d.level),
        format: s.value("format", &Word::new(), d.format),
        access: s.value("access", &Flag, d.access),
        access_sample: s.value("access_sample", &Integer { min: 1, max: 1_000_000_000 }, d.access_sample),
    }
}

fn plan(s: &mut Section<'_, '_>) -> PlanFile {
    let d = PlanConfig::new(AdminConfig::default().default_plan);
    PlanFile {
        api_ops_rate_limit: s.value(
            "api_ops_rate_limit",
            &Integer { min: 1, max: RATE_MAX },
            d.plan.api_ops_rate_limit,
        ),
        end_user_quota: s.value(
            "end_user_quota",
            &Integer { min: 0, max: CEILING_MAX },
            d.plan.end_user_quota,
        ),
        default_daily_request_limit: s.value(
            "default_daily_request_limit",
            &Integer { min: 0, max: CEILING_MAX },
            d.plan.default_daily_request_limit.unwrap_or(0),
        ),
        description: s.value("description", &Text { min: 0, max: 2_000 }, d.description),
        usage_retention_days: s.value(
            "usage_retention_days",
            &Integer { min: 0, max: RETENTION_DAYS_MAX },
            d.usage_retention_days.unwrap_or(0),
        ),
        deleted_keys_days: s.value(
            "deleted_keys_days",
            &Integer { min: 0, max: DELETED_KEYS_DAYS_MAX },
            d.deleted_keys_days,
        ),
        managed: s.value("managed", &Flag, d.managed),
        limits: s.tables("limits", CEILINGS_MAX, ceiling).into_iter().map(Option::flatten).collect(),
        calendar: s.table("calendar", plan_calendar),
    }
}

fn plan_calendar(s: &mut Section<'_, '_>) -> Calendar {
    let usual = Calendar::UTC;
    Calendar {
        zone: s.value(
            "zone",
            &ParsedText {
                must: "the name of a time zone, as in \"Asia/Shanghai\" or \"UTC\"",
                read: |name| calendar::zone(name).ok(),
                show: |zone| format!("{:?}", zone.name()),
            },
            usual.zone,
        ),
        month_day: s.value("month_day", &Integer { min: 1, max: MONTH_DAY_MAX }, usual.month_day),
        week_day: s.value("week_day", &Word::new(), usual.week_day),
    }
}

fn ceiling(s: &mut Section<'_, '_>) -> Option<Ceiling> {
    let of = s.value("of", &Word::new(), Owner::Workspace);
    let count = s.required("count", &Word::new());
    let per = s.required("per", &Word::new());
    let max = s.required("max", &Integer { min: 1, max: CEILING_MAX });
    Some(Ceiling { of, count: count?, per: per?, max: max? })
}

fn route(s: &mut Section<'_, '_>) -> RouteFile {
    RouteFile {
        name: s.value("name", &OrEmpty(Text { min: 1, max: 128 }), None),
        path: s.required("path", &ROUTE_PATH),
        methods: s.list("methods", &METHOD, 0..=32, Vec::new()),
        upstream: s.required("upstream", &NAME),
        public: s.value("public", &Flag, false),
        scopes: s.list("scopes", &SCOPE, 0..=SCOPES_MAX, Vec::new()),
        secret_from: s.list("secret_from", &SECRET_PLACE, 0..=8, Vec::new()),
        resource: s.value("resource", &OrEmpty(RESOURCE), None),
        end_user: s.value("end_user", &EndUserSources, vec![EndUserChoice::AsProxy]),
        keep_credential: s.value("keep_credential", &Flag, false),
        max_body_bytes: s.value("max_body_bytes", &OrEmpty(ByteSize { min: 0, max: 1 << 40 }), None),
        encoded_slash: s.value("encoded_slash", &Word::new(), EncodedSlash::Refuse),
        meter: meter(s),
        errors: s.value("errors", &OrEmpty(Word::new()), None),
        forward: forward(s),
    }
}

// === rules that only these sections have ===

const THREADS: Integer<usize> = Integer { min: 0, max: 1_024 };

/// Free text that the issuer of tokens chooses.
pub(super) const NAMED_BY_OTHERS: Text = Text { min: 1, max: 255 };

const HEALTH_PATH: ParsedText<String> = ParsedText {
    must: "a path in its canonical form, such as \"/healthz\"",
    read: |text| {
        let is_canonical = canonical(text.as_bytes()).is_ok_and(|path| path.as_str() == text);
        is_canonical.then(|| text.to_owned())
    },
    show: quote,
};

const BASE_PATH: ParsedText<String> = ParsedText {
    must: "empty, or segments of A-Z a-z 0-9 . _ - with a / before each, such as \"/api\"",
    read: |text| {
        let is_segment = |part: &str| is_name(part) && part != "." && part != "..";
        let fits =
            text.is_empty() || text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_segment));
        (fits && text.len() <= 255).then(|| text.to_owned())
    },
    show: quote,
};

const ADMIN_ORIGIN: ParsedText<String> = ParsedText {
    must: "an origin such as \"https://console.example\" or \"https://*.example:8443\"",
    read: |text| OriginRule::parse(text).map(|_| text.to_owned()),
    show: quote,
};

pub(super) const CLAIM_VALUE: ParsedText<(String, String)> =
    ParsedText { must: "\"CLAIM=VALUE\", such as \"type=access\"", read: pair, show: show_pair };

const ROLE_OF: ParsedText<(String, String)> = ParsedText {
    must: "\"VALUE=ROLE\" with a role of viewer, admin, platform, such as \"owner=admin\"",
    read: |text| pair(text).filter(|(_, role)| ROLES.contains(&role.as_str())),
    show: show_pair,
};

const ROLE: ParsedText<String> = ParsedText {
    must: "one of: viewer, admin, platform",
    read: |text| ROLES.contains(&text).then(|| text.to_owned()),
    show: quote,
};

/// The roles of the admin API.
pub(super) const ROLES: [&str; 3] = ["viewer", "admin", "platform"];

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let fits = |part: &str| (1..=255).contains(&part.chars().count()) && !part.chars().any(char::is_control);
    (fits(name) && fits(value)).then(|| (name.to_owned(), value.to_owned()))
}

fn show_pair((name, value): &(String, String)) -> String {
    quote(&format!("{name}={value}"))
}

const PLAN_ID: ParsedText<PlanId> = ParsedText {
    must: "the name of a plan: 1 to 128 characters of A-Z a-z 0-9 . _ : @ -",
    read: |text| text.parse().ok(),
    show: quote,
};

const SCOPE: ParsedText<String> = ParsedText {
    must: "a scope: 1 to 64 characters of A-Z a-z 0-9 . _ : / -",
    read: |text| check_required(text).is_ok().then(|| text.to_owned()),
    show: |scope| quote(scope),
};

const SECRET_PLACE: ParsedText<SecretPlace> = ParsedText {
    must: r#""header:NAME" (header:authorization means Bearer), "basic:user", "basic:password", or "subprotocol:PREFIX" for an entry PREFIX.SECRET of Sec-WebSocket-Protocol"#,
    read: |text| match text.split_once(':')? {
        ("header", name) => header(name).map(SecretPlace::Header),
        ("basic", "user") => Some(SecretPlace::BasicUser),
        ("basic", "password") => Some(SecretPlace::BasicPassword),
        ("subprotocol", prefix) if is_name(prefix) => {
            Some(SecretPlace::Subprotocol { prefix: format!("{prefix}.").into() })
        }
        _ => None,
    },
    show: |place| match place {
        SecretPlace::Header(name) => quote(&format_args!("header:{name}")),
        SecretPlace::BasicUser => quote(&"basic:user"),
        SecretPlace::BasicPassword => quote(&"basic:password"),
        SecretPlace::Subprotocol { prefix } => {
            quote(&format_args!("subprotocol:{}", prefix.trim_end_matches('.')))
        }
    },
};

const RESOURCE: ParsedText<ResourceFrom> = ParsedText {
    must: r#""path:NAME" with the name of a path parameter, "header:NAME", "any" (bound keys may use the route) or "none""#,
    read: |text| match text.split_once(':') {
        None if text == "any" => Some(ResourceFrom::Any),
        None if text == "none" => Some(ResourceFrom::Nowhere),
        Some(("path", name)) if is_name(name) => Some(ResourceFrom::PathParam(name.into())),
        Some(("header", name)) => header(name).map(ResourceFrom::Header),
        _ => None,
    },
    show: |source| match source {
        ResourceFrom::Any => quote(&"any"),
        ResourceFrom::Nowhere => quote(&"none"),
        ResourceFrom::PathParam(name) => quote(&format_args!("path:{name}")),
        ResourceFrom::Header(name) => quote(&format_args!("header:{name}")),
    },
};

const fn size(min: usize, max: usize) -> ByteSize<usize> {
    ByteSize { min, max }
}
