//! The configuration as the rest of Keygate sees it: typed, complete, checked.
//!
//! Must not know: files, variables, or how a value is written. An `Option` means "switched off", never "not said".

use super::acme::AcmeConfig;
use super::telemetry::TelemetryConfig;
use super::upstream::UpstreamConfig;
use crate::model::id::PlanId;
use crate::model::key::{Plan, words};
use crate::model::scope::Scopes;
use crate::policy::http::cors::Cors;
use crate::policy::routing::forward::ForwardRules;
use crate::policy::routing::route::ResourceFrom;
use crate::store::postgres::PostgresUrl;
use http::{HeaderName, Method};
use ipnet::IpNet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The listener of the data plane.
    pub proxy: ProxyConfig,
    /// Certificates that are ordered.
    pub acme: AcmeConfig,
    /// The listener of the admin API.
    pub admin: AdminConfig,
    /// How secrets are made and hashed.
    pub secrets: SecretsConfig,
    /// Where keys and usage are kept.
    pub store: StoreConfig,
    /// Where what has been spent is counted.
    pub counters: CountersConfig,
    /// The replica of the keys in memory.
    pub keyring: KeyringConfig,
    /// The way of usage records to the ledger.
    pub usage: UsageConfig,
    /// The memory of known end users.
    pub end_users: EndUsersConfig,
    /// What Keygate says about itself.
    pub log: LogConfig,
    /// Where traces go.
    pub telemetry: TelemetryConfig,
    /// This process.
    pub node: NodeConfig,
    /// Plans to create where they do not exist yet. One of them is [`AdminConfig::default_plan`].
    pub plans: Vec<PlanConfig>,
    /// Groups of backend servers.
    pub upstreams: Vec<UpstreamConfig>,
    /// Which request goes where.
    pub routes: Vec<RouteConfig>,
}

/// `[proxy]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where to accept requests; port 0 picks a free one.
    pub listen: Vec<SocketAddr>,
    /// Where to accept requests over TLS.
    pub listen_tls: Vec<SocketAddr>,
    /// Where to accept requests over HTTP/2 without TLS.
    pub listen_h2c: Vec<SocketAddr>,
    /// Chains and keys, in files or folders; the first is for clients that ask for no name.
    pub certificates: Vec<PathBuf>,
    /// Whose clients' certificates are accepted; none asks for none.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client must have one.
    pub client_certificates: ClientCertificates,
    /// Whose word on a client's address counts.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether those give it with the PROXY protocol.
    pub proxy_protocol: bool,
    /// Streams of one HTTP/2 connection at a time.
    pub max_http2_streams: u32,
    /// Invalid secrets a second that one address may present; 0 is any number.
    pub max_invalid_keys: u32,
    /// Preflights that backends answer, in a second and of one address; 0: any number.
    pub max_preflights: u32,
    /// How often it is looked whether the keys of open requests still stand.
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
    /// How long a new connection may wait before its first byte.
    pub first_byte_timeout: Duration,
    /// How long the headers of a request may take to arrive.
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// Longest pause between two parts of a request body.
    pub body_timeout: Duration,
    /// How long a client may take none of what is written to it.
    pub write_timeout: Duration,
    /// Bytes a second that a client must send of a body, on average; 0 is any.
    pub min_body_rate: u64,
    /// Most client connections.
    pub max_connections: usize,
    /// Most client connections from one address; 0 is any number.
    pub max_connections_per_address: usize,
    /// Most requests of one connection.
    pub max_requests_per_connection: u64,
    /// Most bytes of bodies in memory, of all connections together.
    pub max_bytes_in_flight: u64,
    /// Headers that may carry the secret; in `authorization` it is a Bearer token. Each once, in order of preference.
    pub secret_headers: Vec<HeaderName>,
    /// The header that names the end user where a route does not say otherwise.
    pub end_user_header: HeaderName,
    /// Most bytes of a body that are read ahead to find an end user in it.
    pub end_user_body_bytes: usize,
    /// Whether a client's `X-Request-Id` is kept.
    pub trust_request_id: bool,
    /// Families of rate-limit headers in responses.
    pub rate_limit_headers: Vec<HeaderFamily>,
    /// How long a gateway that stops goes on as if it did not, but for its readiness.
    pub drain_delay: Duration,
    /// How long after that a connection that waits for its next request may wait.
    pub drain_idle: Duration,
    /// How long all of that and the last requests may take.
    pub drain_timeout: Duration,
    /// How long a new binary may take until it serves in the place of this one.
    pub upgrade_timeout: Duration,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where to accept admin requests; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Most connections to the admin listener.
    pub max_connections: usize,
    /// Most of them from one address.
    pub max_connections_per_address: usize,
    /// Whether a workspace first seen in a valid token is created.
    pub create_workspaces: bool,
    /// The plan of workspaces created so; one of [`Config::plans`].
    pub default_plan: PlanId,
    /// A file with the token that `/metrics` asks for; none leaves it open.
    pub metrics_token_file: Option<PathBuf>,
    /// How admin tokens are checked.
    pub jwt: JwtConfig,
}

/// `[admin.jwt]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// What tokens are signed with.
    pub keys: JwtKeys,
    /// Algorithms that are accepted, all of them of the kind of [`JwtConfig::keys`]. Never empty.
    pub algorithms: Vec<JwtAlgorithm>,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must hold.
    pub audience: String,
    /// How far the issuer's clock may be off.
    pub leeway: Duration,
    /// What the claims are called.
    pub claims: ClaimNames,
}

/// What admin tokens are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtKeys {
    /// A file that holds a secret of 32 bytes or more.
    SharedSecretFile(PathBuf),
    /// A file that holds a JWKS of public keys.
    JwksFile(PathBuf),
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
    /// The first part of every secret.
    pub prefix: String,
    /// A file with lines of `version:hex`. Not read when the program finds peppers in `KEYGATE_SECRETS_PEPPERS`.
    pub pepper_file: PathBuf,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Which store.
    pub location: StoreLocation,
    /// How long a statement waits for another's lock on the SQLite file.
    pub busy_timeout: Duration,
    /// Connections that read from SQLite.
    pub readers: usize,
    /// Most connections to PostgreSQL, not counting the one that listens for changes.
    pub pool: usize,
    /// How long a connection to PostgreSQL may take to open, and how long a call waits for a free one.
    pub connect_timeout: Duration,
    /// How long PostgreSQL may take for a statement.
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
    /// What to do while shared counters cannot be reached; without meaning for those in memory.
    pub on_failure: OnFailure,
    /// With [`OnFailure::Share`]: whether keys that this node has not used lately get their limits divided by the number of
    /// nodes while Redis is gone, at the risk of passing them; else they are refused.
    pub share_unknown: bool,
    /// Who vouches for the certificates of Redis; none: the roots of this machine.
    pub tls_ca_file: Option<PathBuf>,
    /// Our certificate, for a Redis that asks for one; together with [`CountersConfig::tls_key_file`].
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key.
    pub tls_key_file: Option<PathBuf>,
    /// Where the password of the Sentinels is; that of the servers is in the URL.
    pub sentinel_password_file: Option<PathBuf>,
}

/// Which counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CountersLocation {
    /// Those in this process.
    Memory,
    /// Those in Redis, shared by several nodes.
    Redis(RedisUrl),
}

/// Where Redis is and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// What is there.
    pub kind: RedisUrlKind,
    /// The server, the Sentinels, or some nodes of the cluster.
    pub servers: Vec<ServerAddr>,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// Who we are.
    pub user: Option<String>,
    /// How we prove it.
    pub password: Option<String>,
    /// The number of the database; 0 in a cluster.
    pub database: u16,
}

/// What kind of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisUrlKind {
    /// One server.
    Server,
    /// The master that Sentinels know by this name.
    Sentinel(String),
    /// A cluster.
    Cluster,
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&super::redis_url::show(self))
    }
}

/// `[keyring]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringConfig {
    /// How old the replica may become before the node is no longer ready.
    pub max_stale: Duration,
    /// How often the change feed is read where nothing wakes it. Shorter than [`KeyringConfig::max_stale`].
    pub poll_interval: Duration,
}

/// `[usage]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageConfig {
    /// The folder of records that the ledger has not taken yet.
    pub journal_dir: PathBuf,
    /// Most bytes of the journal.
    pub journal_max_bytes: u64,
    /// Bytes of one of its segments.
    pub journal_segment_bytes: usize,
    /// How often what was written to it is brought to disk.
    pub journal_sync_interval: Duration,
    /// Most records in one write to the ledger.
    pub batch_records: usize,
    /// How long a batch waits for more records, where few come.
    pub batch_delay: Duration,
    /// What to do when no more records can be kept.
    pub when_full: WhenFull,
}

/// `[end_users]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndUsersConfig {
    /// Most end users that are remembered without asking the store.
    pub cache_entries: usize,
    /// What becomes of a new one while the store is gone.
    pub when_store_is_gone: WhenStoreIsGone,
    /// Most that are admitted without the store before it has heard of them.
    pub unsettled_entries: usize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least important events that are logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether each request gets a line.
    pub access: bool,
    /// Of so many requests one is written, and every failed one.
    pub access_sample: u64,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// What this process is called in records and metrics: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    pub name: String,
}

/// `[plans.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// What it allows.
    pub plan: Plan,
    /// What it is for.
    pub description: String,
    /// How many days usage records are kept for; none: for ever.
    pub usage_retention_days: Option<u32>,
    /// For how many days after its deletion a key can be restored.
    pub deleted_keys_days: u32,
}

/// A backend server. Displayed as it is written: `host:port`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerAddr {
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

/// `[[routes]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// What records and metrics call it; no two have the same name.
    pub name: String,
    /// The pattern, beginning with `/`. The rest of its syntax is the table of routes' matter.
    pub path: String,
    /// The methods it is for; none means every method.
    pub methods: Vec<Method>,
    /// Where it leads: an index into [`Config::upstreams`].
    pub upstream: usize,
    /// What a key must grant.
    pub scopes: Scopes,
    /// Where the request names the resource it wants; none: the file does not say, which means nowhere.
    pub resource: Option<ResourceFrom>,
    /// Where the request names its end user.
    pub end_user: EndUserSource,
    /// Whether the secret is left in the request that is forwarded.
    pub keep_credential: bool,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// What becomes of an escaped slash in the path.
    pub encoded_slash: EncodedSlash,
    /// What it changes about messages.
    pub forward: ForwardRules,
    /// Which pages of other origins may use it; none: the backend decides.
    pub cors: Option<Cors>,
}

words!(
    /// What becomes of a path with an escaped slash.
    EncodedSlash {
        /// It is refused.
        Refuse = "refuse",
        /// It goes on as it is: the backend, too, takes it for a part of its segment.
        Keep = "keep",
    }
);

/// Where a request names its end user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndUserSource {
    /// Nowhere.
    Nowhere,
    /// In that header.
    Header(HeaderName),
    /// In that field of a JSON body.
    Body(String),
}

words!(
    /// A family of rate-limit headers.
    HeaderFamily {
        /// `X-RateLimit-…`
        XRateLimit = "x-ratelimit",
        /// `RateLimit` and `RateLimit-Policy`, as the IETF writes them.
        RateLimit = "ratelimit",
    }
);

words!(
    /// Whether clients must have certificates, where they are asked for one.
    ClientCertificates {
        /// Those without are served as well.
        Optional = "optional",
        /// Those without are not served.
        Required = "required",
    }
);

words!(
    /// An algorithm of signatures.
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
    /// What to do while shared counters cannot be reached.
    OnFailure {
        /// Each node enforces its share of each limit.
        Share = "share",
        /// Refuse requests.
        Deny = "deny",
        /// Admit requests without counting.
        Allow = "allow",
    }
);

words!(
    /// What becomes of a new end user while the store is gone.
    WhenStoreIsGone {
        /// Refused, because nobody can tell whether there is room.
        Refuse = "refuse",
        /// Admitted, and settled when the store is back.
        Admit = "admit",
    }
);

words!(
    /// What to do when no more usage records can be kept.
    WhenFull {
        /// Serve, and count the records that are lost.
        Shed = "shed",
        /// Refuse requests that cannot be recorded.
        Refuse = "refuse",
    }
);

words!(
    /// How important an event is.
    LogLevel {
        /// Something was lost or needs a person.
        Error = "error",
        /// Something is wrong, nothing was lost.
        Warn = "warn",
        /// What an operator wants to know.
        Info = "info",
        /// What a developer wants to know.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
);

words!(
    /// How a line of the log looks.
    LogFormat {
        /// For people.
        Text = "text",
        /// For programs.
        Json = "json",
    }
);

/// A key that the configuration knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    /// Its path, such as `proxy.listen`, `plans.NAME.limits[].per` or `routes[].path`.
    pub path: String,
    /// The variable that overrides it; none inside plans, upstreams and routes.
    pub variable: Option<String>,
    /// Its default as TOML; empty where it has none and must be given.
    pub default: String,
}

// === impl ServerAddr ===

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
