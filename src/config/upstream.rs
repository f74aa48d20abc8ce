//! `[[upstreams]]`: groups of backend servers, with every key, its rule and its default.
//!
//! Must not know: routes. Dependencies between keys of a group are checked here, too.

use super::credential::{self, CredentialConfig, CredentialFile, credential};
use super::reader::ConfigReader;
use super::rule::{DurationRange, Flag, Integer, OrEmpty, OrZero, ParsedText, Word, quote};
use super::section::Section;
use super::texts::{FILE, NAME, header, server};
use crate::model::key::words;
use crate::model::server::{HttpVersion, ServerAddr};
use crate::policy::http::path::{canonical, check_query, split_target};
use crate::policy::upstream::balance::{Balancing, HashBy, WEIGHT_MAX};
use crate::policy::upstream::health::EjectRule;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// When servers are ejected, unless an upstream says otherwise.
const EJECT_DEFAULT: EjectRule = EjectRule {
    after: 5,
    first: Duration::from_secs(10),
    longest: Duration::from_mins(5),
    share_percent: 50,
};
/// Most credentials of an upstream.
const CREDENTIALS_MAX: usize = 1_000;
/// Most servers of an upstream.
const SERVERS_MAX: usize = 256;

/// `[[upstreams]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The name that routes use; unique.
    pub name: String,
    /// The servers, at least one, each once.
    pub servers: Vec<ServerConfig>,
    /// The load balancing rule.
    pub balance: Balancing,
    /// With a hash, the highest load of a server in percent of the mean; 0: no bound.
    pub hash_load_percent: u32,
    /// How often the names of servers are resolved again.
    pub resolve_interval: Duration,
    /// The HTTP version.
    pub protocol: HttpVersion,
    /// Longest time to open a connection.
    pub connect_timeout: Duration,
    /// Longest time until the first byte of a response; zero: as [`UpstreamConfig::read_timeout`].
    pub first_byte_timeout: Duration,
    /// Longest pause before or within a response.
    pub read_timeout: Duration,
    /// Longest pause while the backend reads the request.
    pub write_timeout: Duration,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Longest time for a request in all; zero: no limit.
    pub request_timeout: Duration,
    /// Longest time of a WebSocket without a byte in either direction.
    pub tunnel_idle_timeout: Duration,
    /// Most requests in flight; 0: no limit.
    pub max_requests: u32,
    /// Most requests that wait for a connection; 0: no limit.
    pub max_pending: u32,
    /// Most requests in flight at one server; 0: no limit.
    pub max_requests_per_server: u32,
    /// TLS settings, if TLS is used.
    pub tls: Option<TlsConfig>,
    /// Retries of failed requests.
    pub retry: RetryConfig,
    /// Active health checks.
    pub health: HealthConfig,
    /// Ejection of servers that fail requests.
    pub eject: EjectRule,
    /// Credentials for the backend, in the order in which they are tried.
    pub credentials: Vec<CredentialConfig>,
}

/// One entry of `servers`. Displayed as written: `host:port`, or `host:port weight=3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its address.
    pub address: ServerAddr,
    /// Its share of the requests, from 1 to [`WEIGHT_MAX`].
    pub weight: u16,
}

/// `[upstreams.tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server name to request and verify; none: the host of the server.
    pub server_name: Option<String>,
    /// CA to trust instead of the system's roots.
    pub ca_file: Option<PathBuf>,
    /// The client certificate and its key.
    pub client: Option<ClientCertificate>,
    /// Whether certificates are not verified.
    pub any_certificate: bool,
}

/// The two files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate chain.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// `[upstreams.retry]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// Most attempts per request, the first included.
    pub attempts: u32,
    /// Retries per hundred requests.
    pub budget_percent: u32,
    /// Plus so many per second.
    pub budget_per_second: u32,
}

/// `[upstreams.health]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// The kind of probe.
    pub check: HealthCheck,
    /// The path of an HTTP probe.
    pub path: String,
    /// The `Host` of an HTTP probe; none: the host of the server.
    pub host: Option<String>,
    /// The statuses that count as success.
    pub status: RangeInclusive<u16>,
    /// Time from the start of one probe of a server to the next.
    pub interval: Duration,
    /// Longest time for a probe.
    pub timeout: Duration,
    /// Successful probes in a row until a server that was down is up.
    pub up_after: u32,
    /// Failed probes in a row until a server that was up is down.
    pub down_after: u32,
}

words!(
    /// How a server is probed.
    HealthCheck {
        /// No probes.
        Off = "off",
        /// Opens a connection.
        Tcp = "tcp",
        /// Sends a request.
        Http = "http",
    }
);

/// A parsed upstream; empty parts were missing or wrong.
pub(super) struct UpstreamFile {
    pub(super) name: Option<String>,
    pub(super) config: UpstreamConfig,
    tls: TlsFile,
    credentials: Vec<Option<CredentialFile>>,
}

/// `[upstreams.tls]`, parsed.
struct TlsFile {
    enabled: bool,
    config: TlsConfig,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

/// Reads one table.
pub(super) fn upstream(s: &mut Section<'_, '_>) -> UpstreamFile {
    let d = UpstreamConfig::new(String::new(), Vec::new());
    let name = s.required("name", &NAME);
    let config = UpstreamConfig {
        name: name.clone().unwrap_or_default(),
        servers: s.required_list("servers", &SERVER, 1..=SERVERS_MAX),
        balance: s.value("balance", &BALANCE, d.balance),
        hash_load_percent: s.value("hash_load_percent", &LOAD_PERCENT, d.hash_load_percent),
        resolve_interval: s.value("resolve_interval", &span_ms(100, 86_400_000), d.resolve_interval),
        protocol: s.value("protocol", &Word::new(), d.protocol),
        connect_timeout: s.value("connect_timeout", &span_ms(10, 60_000), d.connect_timeout),
        first_byte_timeout: s.value("first_byte_timeout", &span_ms(0, 86_400_000), d.first_byte_timeout),
        read_timeout: s.value("read_timeout", &span_ms(10, 86_400_000), d.read_timeout),
        write_timeout: s.value("write_timeout", &span_ms(10, 86_400_000), d.write_timeout),
        idle_timeout: s.value("idle_timeout", &span_ms(0, 3_600_000), d.idle_timeout),
        request_timeout: s.value("request_timeout", &span_ms(0, 7 * 86_400_000), d.request_timeout),
        tunnel_idle_timeout: s.value(
            "tunnel_idle_timeout",
            &span_ms(100, 7 * 86_400_000),
            d.tunnel_idle_timeout,
        ),
        max_requests: s.value("max_requests", &AT_MOST, d.max_requests),
        max_pending: s.value("max_pending", &AT_MOST, d.max_pending),
        max_requests_per_server: s.value("max_requests_per_server", &AT_MOST, d.max_requests_per_server),
        tls: None,
        retry: s.table("retry", retry),
        health: s.table("health", health),
        eject: s.table("eject", eject),
        credentials: Vec::new(),
    };
    let tls = s.table("tls", tls);
    let credentials = s.tables("credentials", CREDENTIALS_MAX, credential);
    UpstreamFile { name, config, tls, credentials }
}

fn tls(s: &mut Section<'_, '_>) -> TlsFile {
    TlsFile {
        enabled: s.value("enabled", &Flag, false),
        config: TlsConfig {
            server_name: s.value("server_name", &OrEmpty(SERVER_NAME), None),
            ca_file: s.value("ca_file", &OrEmpty(FILE), None),
            client: None,
            any_certificate: s.value("danger_accept_any_certificate", &Flag, false),
        },
        cert_file: s.value("client_cert_file", &OrEmpty(FILE), None),
        key_file: s.value("client_key_file", &OrEmpty(FILE), None),
    }
}

fn retry(s: &mut Section<'_, '_>) -> RetryConfig {
    let d = RetryConfig::default();
    RetryConfig {
        attempts: s.value("attempts", &Integer { min: 1, max: 10 }, d.attempts),
        budget_percent: s.value("budget_percent", &Integer { min: 0, max: 100 }, d.budget_percent),
        budget_per_second: s.value(
            "budget_per_second",
            &Integer { min: 0, max: 10_000 },
            d.budget_per_second,
        ),
    }
}

fn health(s: &mut Section<'_, '_>) -> HealthConfig {
    let d = HealthConfig::default();
    HealthConfig {
        check: s.value("check", &Word::new(), d.check),
        path: s.value("path", &PROBE_PATH, d.path),
        host: s.value("host", &OrEmpty(HOST), d.host),
        status: s.value("status", &STATUSES, d.status),
        interval: s.value("interval", &span_ms(50, 3_600_000), d.interval),
        timeout: s.value("timeout", &span_ms(10, 60_000), d.timeout),
        up_after: s.value("up_after", &Integer { min: 1, max: 100 }, d.up_after),
        down_after: s.value("down_after", &Integer { min: 1, max: 100 }, d.down_after),
    }
}

fn eject(s: &mut Section<'_, '_>) -> EjectRule {
    let d = EJECT_DEFAULT;
    EjectRule {
        after: s.value("after", &Integer { min: 0, max: 10_000 }, d.after),
        first: s.value("first", &span_ms(10, 3_600_000), d.first),
        longest: s.value("longest", &span_ms(10, 86_400_000), d.longest),
        share_percent: s.value("share_percent", &Integer { min: 0, max: 100 }, d.share_percent),
    }
}

/// The `n`-th upstream, after checking the dependencies inside it.
pub(super) fn checked(n: usize, file: UpstreamFile, reading: &mut ConfigReader<'_>) -> UpstreamConfig {
    let mut upstream = file.config;
    upstream.tls = checked_tls(n, file.tls, reading);
    upstream.credentials = credential::checked(n, file.credentials, reading);
    check(n, &upstream, reading);
    upstream
}

fn checked_tls(n: usize, file: TlsFile, reading: &mut ConfigReader<'_>) -> Option<TlsConfig> {
    let path = |key: &str| format!("upstreams[{n}].tls.{key}");
    let TlsFile { enabled, mut config, cert_file, key_file } = file;
    let cert_key = ["client_cert_file", "client_key_file"].map(path);
    config.client = match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
        (None, None) => None,
        (given, _) => {
            let missing = &cert_key[usize::from(given.is_some())];
            reading.complain_of_conflict(&[missing, &path("enabled")], "must be set, as its other half is");
            None
        }
    };
    if config.any_certificate && config.ca_file.is_some() {
        let (danger, ca) = (path("danger_accept_any_certificate"), path("ca_file"));
        reading.complain_of_conflict(
            &[&danger, &ca],
            "must be false while ca_file is set: nothing would be checked",
        );
    }
    if enabled {
        return Some(config);
    }
    if config != TlsConfig::default() {
        reading
            .complain_of_conflict(&[&path("enabled")], "must be true, as other keys of this table are set");
    }
    None
}

fn check(n: usize, upstream: &UpstreamConfig, reading: &mut ConfigReader<'_>) {
    if upstream.protocol == HttpVersion::Auto && upstream.tls.is_none() {
        let protocol = format!("upstreams[{n}].protocol");
        let message = "must be http1 or http2: without TLS nobody tells which HTTP a server speaks";
        reading.complain_of_conflict(&[&protocol], message);
    }
    for (k, server) in upstream.servers.iter().enumerate() {
        if upstream.servers[..k].iter().any(|other| other.address == server.address) {
            let list = format!("upstreams[{n}].servers");
            let path = format!("{list}[{k}]");
            reading.complain_of_conflict(&[&path, &list], format!("{} is there twice", server.address));
        }
    }
    if upstream.first_byte_timeout > upstream.read_timeout {
        let [first, read] = ["first_byte_timeout", "read_timeout"].map(|key| format!("upstreams[{n}].{key}"));
        reading.complain_of_conflict(&[&first, &read], "must not be longer than read_timeout");
    }
    if upstream.eject.longest < upstream.eject.first {
        let [longest, first] = ["longest", "first"].map(|key| format!("upstreams[{n}].eject.{key}"));
        reading.complain_of_conflict(&[&longest, &first], "must not be shorter than first");
    }
    let is_hash = matches!(upstream.balance, Balancing::Hash(_));
    if upstream.hash_load_percent > 0 && !is_hash {
        let path = format!("upstreams[{n}].hash_load_percent");
        reading.complain_of_conflict(&[&path], "must be 0 unless balance is one of hash:…");
    }
}

/// The header that the upstream's hash reads, if any.
pub(super) const fn hash_header(upstream: &UpstreamConfig) -> Option<&http::HeaderName> {
    match &upstream.balance {
        Balancing::Hash(HashBy::Header(name)) => Some(name),
        _ => None,
    }
}

// === rules ===

/// A backend server and its weight.
const SERVER: ParsedText<ServerConfig> = ParsedText {
    must: r#"host:port, such as "backend.internal:9000" or "[::1]:9000", without a scheme or a path, and perhaps a weight from 1 to 100, as in "h:9000 weight=3""#,
    read: |text| {
        let (address, weight) = match text.split_once(' ') {
            None => (text, 1),
            Some((address, rest)) => {
                let digits = rest.trim().strip_prefix("weight=")?;
                let plain = digits.bytes().all(|b| b.is_ascii_digit());
                (address, digits.parse().ok().filter(|w| plain && (1..=WEIGHT_MAX).contains(w))?)
            }
        };
        Some(ServerConfig { address: server(address)?, weight })
    },
    show: quote,
};

/// 0: no limit.
const AT_MOST: Integer<u32> = Integer { min: 0, max: 1_000_000 };

const SERVER_NAME: ParsedText<String> = ParsedText {
    must: "a host name or an IP address",
    read: |text| {
        let bracketed = if text.contains(':') { format!("[{text}]:1") } else { format!("{text}:1") };
        server(&bracketed).map(|_| text.to_owned())
    },
    show: quote,
};

const BALANCE: ParsedText<Balancing> = ParsedText {
    must: "one of: round-robin, least-connections, hash:key, hash:end-user, hash:header:NAME",
    read: |text| match text.parse().ok()? {
        Balancing::Hash(HashBy::Header(name)) => {
            header(name.as_str()).map(|name| Balancing::Hash(HashBy::Header(name)))
        }
        other => Some(other),
    },
    show: quote,
};

/// With 100 percent or more, some server is always below its share.
const LOAD_PERCENT: OrZero<u32> = OrZero(Integer { min: 100, max: 10_000 });

const PROBE_PATH: ParsedText<String> = ParsedText {
    must: r#"a path that begins with "/", without ambiguous spellings, perhaps with a query"#,
    read: |text| {
        let (path, query) = split_target(text.as_bytes()).ok()?;
        let fits = canonical(path).is_ok_and(|p| !p.was_respelled()) && check_query(query).is_ok();
        (fits && text.starts_with('/') && text.len() <= 1024).then(|| text.to_owned())
    },
    show: quote,
};

const HOST: ParsedText<String> = ParsedText {
    must: "a host name or address, perhaps with a port",
    read: |text| is_host_and_port(text).then(|| text.to_owned()),
    show: quote,
};

const STATUSES: ParsedText<RangeInclusive<u16>> = ParsedText {
    must: r#"a status or a range of statuses from 100 to 599, such as "200" or "200-399""#,
    read: |text| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u16>().ok().filter(|s| digits && (100..=599).contains(s))
        };
        let (first, last) = (status(first)?, status(last)?);
        (first <= last).then_some(first..=last)
    },
    show: |range| quote(&format_args!("{}-{}", range.start(), range.end())),
};

/// Whether `text` is a valid `Host`: a name or an address, optionally with a port.
pub(super) fn is_host_and_port(text: &str) -> bool {
    server(text).or_else(|| server(&format!("{text}:1"))).is_some()
}

pub(super) const fn span_ms(min: u64, max: u64) -> DurationRange {
    DurationRange { min: Duration::from_millis(min), max: Duration::from_millis(max) }
}

// === defaults ===

impl UpstreamConfig {
    /// An upstream with only a name and servers.
    pub(super) fn new(name: String, servers: Vec<ServerConfig>) -> Self {
        Self {
            name,
            servers,
            balance: Balancing::RoundRobin,
            hash_load_percent: 0,
            resolve_interval: Duration::from_secs(30),
            protocol: HttpVersion::Http1,
            connect_timeout: Duration::from_secs(2),
            first_byte_timeout: Duration::ZERO,
            read_timeout: Duration::from_mins(1),
            write_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_secs(30),
            request_timeout: Duration::ZERO,
            tunnel_idle_timeout: Duration::from_mins(10),
            max_requests: 0,
            max_pending: 0,
            max_requests_per_server: 0,
            tls: None,
            retry: RetryConfig::default(),
            health: HealthConfig::default(),
            eject: EJECT_DEFAULT,
            credentials: Vec::new(),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts: 3, budget_percent: 20, budget_per_second: 10 }
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            check: HealthCheck::Off,
            path: "/".into(),
            host: None,
            status: 200..=399,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            up_after: 2,
            down_after: 3,
        }
    }
}

// === impl ServerConfig ===

impl fmt::Display for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if self.weight == 1 { Ok(()) } else { write!(f, " weight={}", self.weight) }
    }
}
