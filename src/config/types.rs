//! The configuration as the rest of Keygate sees it: typed, complete, checked.
//!
//! Must not know: files, variables, or how a value is written. `None` means "switched off", never "not set".

use super::acme::AcmeConfig;
use super::introspection::IntrospectionConfig;
use super::oidc::OidcConfig;
use super::telemetry::TelemetryConfig;
use super::upstream::UpstreamConfig;
use crate::model::fault::{ErrorForm, ErrorText};
use crate::model::id::PlanId;
use crate::model::key::{Plan, words};
use crate::model::outage::{OnFailure, WhenFull, WhenStoreUnavailable};
use crate::model::scope::Scopes;
use crate::model::server::{HttpUrl, RedisKind, ServerAddr};
use crate::policy::http::cors::Cors;
use crate::policy::keys::credential::SecretPlace;
use crate::policy::meter::MeterRule;
use crate::policy::prices::ModelPrice;
use crate::policy::routing::forward::ForwardRules;
use crate::policy::routing::route::{EndUserFrom, ResourceFrom};
use crate::store::postgres::PostgresUrl;
use http::{HeaderName, Method};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The listeners for clients.
    pub proxy: ProxyConfig,
    /// Certificates by ACME.
    pub acme: AcmeConfig,
    /// The listener of the admin API.
    pub admin: AdminConfig,
    /// The listener for proxies that ask for decisions.
    pub decide: DecideConfig,
    /// The form and hashing of secrets.
    pub secrets: SecretsConfig,
    /// The store for keys and usage.
    pub store: StoreConfig,
    /// The counters of limits.
    pub counters: CountersConfig,
    /// The replica of the keys in memory.
    pub keyring: KeyringConfig,
    /// Usage records on their way to the ledger.
    pub usage: UsageConfig,
    /// The cache of known end users.
    pub end_users: EndUsersConfig,
    /// Logging.
    pub log: LogConfig,
    /// Export of traces.
    pub telemetry: TelemetryConfig,
    /// This process.
    pub node: NodeConfig,
    /// Plans to create if they do not exist yet. One of them is [`AdminConfig::default_plan`].
    pub plans: Vec<PlanConfig>,
    /// Groups of backend servers.
    pub upstreams: Vec<UpstreamConfig>,
    /// Routes.
    pub routes: Vec<RouteConfig>,
    /// What tokens cost; these replace prices of the store with the same pattern.
    pub prices: Vec<ModelPrice>,
}

/// `[proxy]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Addresses for HTTP/1.1; port 0 picks a free one.
    pub listen: Vec<SocketAddr>,
    /// Addresses for TLS.
    pub listen_tls: Vec<SocketAddr>,
    /// Addresses for HTTP/2 without TLS.
    pub listen_h2c: Vec<SocketAddr>,
    /// Certificate chains and keys, in files or folders; the first is for clients that send no server name.
    pub certificates: Vec<PathBuf>,
    /// CA of client certificates; none: clients are not asked for one.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client must have one.
    pub client_certificates: ClientCertificates,
    /// Proxies whose information about the client is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether these use the PROXY protocol.
    pub proxy_protocol: bool,
    /// Concurrent streams of one HTTP/2 connection.
    pub max_http2_streams: u32,
    /// Invalid secrets per second from one address; 0: no limit.
    pub max_invalid_keys: u32,
    /// Preflights to backends per second from one address; 0: no limit.
    pub max_preflights: u32,
    /// Requests on public routes per second from one address; 0: no limit.
    pub max_public_requests: u32,
    /// How often the keys of open requests are checked again.
    pub revocation_check: Duration,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Largest block of request headers, in bytes.
    pub max_header_bytes: usize,
    /// Most header fields of a request.
    pub max_header_fields: usize,
    /// Longest request URI, in bytes.
    pub max_uri_bytes: usize,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// Longest time until the first byte of a new connection.
    pub first_byte_timeout: Duration,
    /// Longest time for a request head.
    pub header_timeout: Duration,
    /// Longest time between two requests of a connection.
    pub idle_timeout: Duration,
    /// Longest pause between two parts of a request body.
    pub body_timeout: Duration,
    /// Longest time in which a client reads nothing of what is written to it.
    pub write_timeout: Duration,
    /// Lowest average rate of a request body, in bytes per second; 0: none.
    pub min_body_rate: u64,
    /// Most client connections.
    pub max_connections: usize,
    /// Most client connections from one address; 0: no limit.
    pub max_connections_per_address: usize,
    /// Most requests of one connection.
    pub max_requests_per_connection: u64,
    /// Most bytes of bodies in memory, of all connections together.
    pub max_bytes_in_flight: u64,
    /// Most answers that are read on at once after their client has left.
    pub max_answers_drained: usize,
    /// Longest time for each of them.
    pub answer_drain_timeout: Duration,
    /// Headers that may carry the secret, each once, in order of preference; in `authorization` it is a Bearer token.
    pub secret_headers: Vec<HeaderName>,
    /// The header that names the end user, unless a route says otherwise.
    pub end_user_header: HeaderName,
    /// Most bytes of a body that are buffered to find the end user in it.
    pub end_user_body_bytes: usize,
    /// Whether a client's `X-Request-Id` is kept.
    pub trust_request_id: bool,
    /// Families of rate-limit headers in responses.
    pub rate_limit_headers: Vec<HeaderFamily>,
    /// The path of health checks on these listeners; none: there is none.
    pub health_path: Option<String>,
    /// Whether requests without TLS are redirected to HTTPS.
    pub redirect_to_https: bool,
    /// The form of error responses, where the route has none of its own.
    pub errors: ErrorForm,
    /// How long everything but readiness goes on after SIGTERM.
    pub drain_delay: Duration,
    /// How long an idle connection may still send a request after that.
    pub drain_idle: Duration,
    /// Longest time for all of that and the last requests.
    pub drain_timeout: Duration,
    /// Longest time until a new binary serves.
    pub upgrade_timeout: Duration,
}

/// `[decide]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecideConfig {
    /// Where proxies and applications ask for decisions; empty: nowhere. Port 0 picks a free one.
    pub listen: Vec<SocketAddr>,
    /// The file with the token that applications present.
    pub token_file: Option<PathBuf>,
    /// How long what an application holds may remain unsettled.
    pub hold_timeout: Duration,
    /// Most holds at the same time.
    pub max_holds: usize,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where to accept admin requests; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Files with a certificate and its key for that listener; empty: it speaks plain HTTP.
    pub certificates: Vec<PathBuf>,
    /// The Unix socket of the admin API; none: no socket.
    pub socket: Option<AdminSocket>,
    /// Who may connect to it.
    pub socket_mode: AdminSocketMode,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Most connections to the admin listener.
    pub max_connections: usize,
    /// Most of them from one address.
    pub max_connections_per_address: usize,
    /// Whether a workspace is created when a valid token first names it.
    pub create_workspaces: bool,
    /// The plan of workspaces created this way; one of [`Config::plans`].
    pub default_plan: PlanId,
    /// A further path of the API, such as `/api`; empty: only the root.
    pub base_path: String,
    /// The contents of the field `error` in error responses.
    pub error_text: ErrorText,
    /// The origins whose pages may use the API.
    pub cors_origins: Vec<String>,
    /// Whether these pages may send cookies and other credentials.
    pub cors_credentials: bool,
    /// A file with the token that `/metrics` requires; none: no token.
    pub metrics_token_file: Option<PathBuf>,
    /// How admin tokens are checked.
    pub jwt: JwtConfig,
    /// The identity service that is asked about them.
    pub introspection: IntrospectionConfig,
    /// The identity provider that signs people in to the console.
    pub oidc: OidcConfig,
}

/// The place of the Unix socket of the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminSocket {
    /// Beside the SQLite file, with the ending `.sock`; none with PostgreSQL.
    BesideStore,
    /// At this path.
    At(PathBuf),
}

words!(
    /// The mode of the Unix socket's file.
    AdminSocketMode {
        /// Only the user of the gateway and root may connect.
        Owner = "0600",
        /// The group of the gateway, too.
        Group = "0660",
    }
);

impl AdminConfig {
    /// Whether the listener speaks TLS.
    pub const fn has_tls(&self) -> bool {
        !self.certificates.is_empty()
    }
}

impl AdminSocketMode {
    /// The bits.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o660,
        }
    }
}

impl Config {
    /// The path of the admin API's Unix socket, if there is one.
    pub fn admin_socket(&self) -> Option<PathBuf> {
        match (self.admin.socket.as_ref()?, &self.store.location) {
            (AdminSocket::At(path), _) => Some(path.clone()),
            (AdminSocket::BesideStore, StoreLocation::Sqlite(file)) => Some(file.with_extension("sock")),
            (AdminSocket::BesideStore, StoreLocation::Postgres(_)) => None,
        }
    }
}

/// `[admin.jwt]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// The keys of tokens.
    pub keys: JwtKeys,
    /// CA of the JWKS URL; none: the system's roots.
    pub jwks_ca_file: Option<PathBuf>,
    /// How often the JWKS URL is read.
    pub jwks_refresh: Duration,
    /// The shortest time between two reads of the JWKS URL.
    pub jwks_retry: Duration,
    /// How old its keys may be.
    pub jwks_max_stale: Duration,
    /// The accepted algorithms, all matching [`JwtConfig::keys`]. Never empty.
    pub algorithms: Vec<JwtAlgorithm>,
    /// The required `iss`; none: not checked.
    pub issuer: Option<String>,
    /// What `aud` must contain; none: not checked.
    pub audience: Option<String>,
    /// Further claims and the values they must have.
    pub require: Vec<(String, String)>,
    /// The role for each value of the claim; empty: the values are the roles' names.
    pub roles: Vec<(String, String)>,
    /// The role of tokens without a known one: a word, or none.
    pub default_role: Option<String>,
    /// Subjects whose tokens name their workspace in `X-Workspace-Id`; `*` is every subject.
    pub workspace_header_subjects: Vec<String>,
    /// Allowed clock difference to the issuer.
    pub leeway: Duration,
    /// The names of claims.
    pub claims: ClaimNames,
}

/// The keys of admin tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtKeys {
    /// A file with a secret of 32 bytes or more.
    SharedSecretFile(PathBuf),
    /// A file with a JWKS of public keys.
    JwksFile(PathBuf),
    /// The URL of a JWKS of public keys.
    JwksUrl(HttpUrl),
}

/// `[admin.jwt.claims]`: three different names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimNames {
    /// The user's id.
    pub subject: String,
    /// The workspace.
    pub workspace: String,
    /// The role.
    pub role: String,
}

/// `[secrets]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretsConfig {
    /// The prefix of new secrets.
    pub prefix: String,
    /// A file with lines of `version:hex`. Not read if `KEYGATE_SECRETS_PEPPERS` is set.
    pub pepper_file: PathBuf,
    /// A file with lines of `version:hex`, the keys of stored credentials for backends; none: they cannot be stored. Not read
    /// if `KEYGATE_SECRETS_ENCRYPTION_KEYS` is set.
    pub encryption_key_file: Option<PathBuf>,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Which store.
    pub location: StoreLocation,
    /// Longest wait for a lock of another statement on the SQLite file.
    pub busy_timeout: Duration,
    /// Read connections to SQLite.
    pub readers: usize,
    /// Connections to PostgreSQL in the pool; up to four more follow changes.
    pub pool: usize,
    /// Longest time to open a connection to PostgreSQL, and longest wait for a free one.
    pub connect_timeout: Duration,
    /// Longest time for a statement in PostgreSQL.
    pub statement_timeout: Duration,
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// A SQLite database in this file.
    Sqlite(PathBuf),
    /// A database on a PostgreSQL server.
    Postgres(PostgresUrl),
}

/// `[counters]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountersConfig {
    /// Which counters.
    pub location: CountersLocation,
    /// What to do while shared counters are unreachable; not used for counters in memory.
    pub on_failure: OnFailure,
    /// With [`OnFailure::Share`]: whether limits of keys that this node has not used lately are divided by the number of
    /// nodes while Redis is unreachable, at the risk of exceeding them; otherwise these keys are refused.
    pub share_unknown: bool,
    /// CA of Redis; none: the system's roots.
    pub tls_ca_file: Option<PathBuf>,
    /// Client certificate for a Redis that requires one; together with [`CountersConfig::tls_key_file`].
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key.
    pub tls_key_file: Option<PathBuf>,
    /// A file with the password of the Sentinels; that of the servers is in the URL.
    pub sentinel_password_file: Option<PathBuf>,
}

/// Which counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CountersLocation {
    /// Counters in this process.
    Memory,
    /// Counters in Redis, shared by several nodes.
    Redis(RedisUrl),
}

/// The address of Redis, with credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Server, Sentinel or cluster.
    pub kind: RedisKind,
    /// The server, the Sentinels, or some nodes of the cluster.
    pub servers: Vec<ServerAddr>,
    /// Whether TLS is used.
    pub tls: bool,
    /// The user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The number of the database; 0 in a cluster.
    pub database: u16,
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&super::redis_url::show(self))
    }
}

/// `[keyring]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringConfig {
    /// Longest time without the store before the node is not ready.
    pub max_stale: Duration,
    /// How often the change feed is read without a notification. Shorter than [`KeyringConfig::max_stale`].
    pub poll_interval: Duration,
}

/// `[usage]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageConfig {
    /// The folder for records that are not stored yet.
    pub journal_dir: PathBuf,
    /// Most bytes of the journal.
    pub journal_max_bytes: u64,
    /// Bytes of one of its segments.
    pub journal_segment_bytes: usize,
    /// How often the journal is synced to disk.
    pub journal_sync_interval: Duration,
    /// Most records in one transaction.
    pub batch_records: usize,
    /// How long a batch waits for more records at low load.
    pub batch_delay: Duration,
    /// What to do when the journal is full.
    pub when_full: WhenFull,
}

/// `[end_users]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndUsersConfig {
    /// Most end users in the cache.
    pub cache_entries: usize,
    /// What to do with a new end user while the store is unreachable.
    pub when_store_is_gone: WhenStoreUnavailable,
    /// Most end users that are admitted and not stored yet.
    pub unsettled_entries: usize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The lowest level that is logged.
    pub level: LogLevel,
    /// The format of a line.
    pub format: LogFormat,
    /// Whether each request is logged.
    pub access: bool,
    /// One in so many requests is logged, and every failed one.
    pub access_sample: u64,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The name of this process in records and metrics: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    pub name: String,
}

/// `[plans.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// What the plan allows.
    pub plan: Plan,
    /// A description.
    pub description: String,
    /// How many days usage records are kept; none: for ever.
    pub usage_retention_days: Option<u32>,
    /// For how many days after its deletion a key can be restored.
    pub deleted_keys_days: u32,
    /// Whether the file owns the plan: the store follows it, and the admin API cannot change it.
    pub managed: bool,
}

/// `[[routes]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The name in records and metrics; unique.
    pub name: String,
    /// The pattern, beginning with `/`. The route table checks the rest of its syntax.
    pub path: String,
    /// The methods; none: every method.
    pub methods: Vec<Method>,
    /// The upstream, as an index into [`Config::upstreams`].
    pub upstream: usize,
    /// Whether it needs no key.
    pub public: bool,
    /// The scopes that a key must grant.
    pub scopes: Scopes,
    /// Where a request may present its secret, in order.
    pub secret_from: Vec<SecretPlace>,
    /// Where the request names its resource; none: not set, which means nowhere.
    pub resource: Option<ResourceFrom>,
    /// Where the request names its end user; the first that names one counts.
    pub end_user: Vec<EndUserFrom>,
    /// Whether the secret is forwarded to the backend.
    pub keep_credential: bool,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// What to do with an escaped slash in the path.
    pub encoded_slash: EncodedSlash,
    /// The form of its error responses.
    pub errors: ErrorForm,
    /// What it changes about messages.
    pub forward: ForwardRules,
    /// How its answers are metered; none: not at all.
    pub meter: Option<MeterRule>,
    /// CORS rules; none: the backend decides.
    pub cors: Option<Cors>,
}

words!(
    /// What to do with an escaped slash in the path.
    EncodedSlash {
        /// Refuse the request.
        Refuse = "refuse",
        /// Forward it unchanged: the backend, too, treats it as part of its segment.
        Keep = "keep",
    }
);

words!(
    /// A family of rate-limit headers.
    HeaderFamily {
        /// `X-RateLimit-…`
        XRateLimit = "x-ratelimit",
        /// `RateLimit` and `RateLimit-Policy`, as in the IETF draft.
        RateLimit = "ratelimit",
    }
);

words!(
    /// Whether clients must present a certificate.
    ClientCertificates {
        /// Clients without one are served as well.
        Optional = "optional",
        /// Clients without one are not served.
        Required = "required",
    }
);

words!(
    /// A signature algorithm.
    JwtAlgorithm {
        /// HMAC with SHA-256.
        Hs256 = "HS256",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        Rs256 = "RS256",
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
        /// Ed25519.
        EdDsa = "EdDSA",
    }
);

words!(
    /// The severity of an event.
    LogLevel {
        /// Something was lost, or needs a person.
        Error = "error",
        /// Something is wrong, nothing was lost.
        Warn = "warn",
        /// Of interest to operators.
        Info = "info",
        /// Of interest to developers.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
);

words!(
    /// The format of a log line.
    LogFormat {
        /// For people.
        Text = "text",
        /// For programs.
        Json = "json",
    }
);

/// A known key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    /// Its path, such as `proxy.listen`, `plans.NAME.limits[].per` or `routes[].path`.
    pub path: String,
    /// The variable that overrides it; none inside plans, upstreams, routes and prices.
    pub variable: Option<String>,
    /// Its default as TOML; empty if the key is required.
    pub default: String,
}
