//! The compared processes and their configuration for each scenario.

use super::keygate_target::{self as kg, Setup};
use super::load::SCRIPT;
use keygate::model::key::KeyType;
use keygate::policy::keys::secret::Secret;
use serde_json::json;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A request for a chat completion, as clients send it.
const CHAT: &str =
    r#"{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"What is the answer?"}]}"#;
const METERED: &str = Setup::Metered.name();

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// One key, far from its limits.
    HotKey,
    /// 10 000 keys, drawn by Zipf's law.
    TenThousand,
    /// As many keys as `--keys` says, drawn by Zipf's law.
    Many,
    /// One key, far over its rate.
    Refused,
    /// Well-formed secrets of no key.
    Unknown,
    /// Malformed secrets.
    IllFormed,
    /// Responses of 256 KiB.
    Large,
    /// Responses of fifty events, two milliseconds apart.
    Stream,
    /// The same for chat completions, with and without a meter.
    Metered,
}

impl Scenario {
    pub(crate) const ALL: &[Self] = &[
        Self::HotKey,
        Self::TenThousand,
        Self::Many,
        Self::Refused,
        Self::Unknown,
        Self::IllFormed,
        Self::Large,
        Self::Stream,
        Self::Metered,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::HotKey => "hot-key",
            Self::TenThousand => "10k-keys",
            Self::Many => "many-keys",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::IllFormed => "ill-formed",
            Self::Large => "large",
            Self::Stream => "stream",
            Self::Metered => "metered",
        }
    }

    const fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::Metered)
    }

    const fn refuses(self) -> bool {
        matches!(self, Self::Refused | Self::Unknown | Self::IllFormed)
    }
}

/// A running proxy and the requests for it.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) path: &'static str,
    /// What is posted; empty if nothing is.
    pub(crate) body: &'static str,
    pub(crate) secrets: PathBuf,
    pub(crate) script: PathBuf,
    pub(crate) refuses: bool,
    process: Owned,
}

/// All processes of one scenario, ended when this is dropped.
pub(crate) struct Stage {
    pub(crate) targets: Vec<Target>,
    _origin: Owned,
    _servers: kg::Servers,
}

/// A child process, ended when this is dropped.
pub(crate) struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).unwrap();
        // SIGTERM instead of SIGKILL, so that servers with workers end them too.
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().ok();
        let asked = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            if asked.elapsed() > Duration::from_secs(10) {
                self.0.kill().ok();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Owned {
    pub(crate) const fn new(child: Child) -> Self {
        Self(child)
    }
}

impl Target {
    /// User and system time of the process, its threads and its children so far.
    pub(crate) fn cpu(&self) -> Duration {
        self.family().iter().map(|pid| cpu_of(*pid)).sum()
    }

    /// Resident bytes of the process and its children.
    pub(crate) fn memory(&self) -> u64 {
        let resident = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1_024
        };
        self.family().iter().map(resident).sum()
    }

    fn family(&self) -> Vec<u32> {
        let pid = self.process.0.id();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|p| p.parse().ok())).collect()
    }
}

/// Fields 14 and 15 of `/proc/PID/stat`, in ticks of 10 ms.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|f| f.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Envoy comes as a wheel of its binary.
const ENVOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/follow/bin/envoy");

/// Fails when a program is missing, and says how to get it.
pub(crate) fn require(programs: &[&str]) {
    assert!(Path::new(ENVOY).is_file(), "missing: {ENVOY}; `make bench` installs it");
    let on_path = |name: &str| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var_os("PATH").unwrap_or_default().display());
        path.split(':').any(|folder| Path::new(folder).join(name).is_file())
    };
    let missing: Vec<_> = programs.iter().filter(|name| !on_path(name)).copied().collect();
    assert!(missing.is_empty(), "missing: {}. On Debian or Ubuntu: apt-get install {0}", missing.join(" "));
}

/// The common parts of a scenario's targets.
struct Ground<'p> {
    scenario: Scenario,
    place: &'p Path,
    origin: SocketAddr,
    /// The secrets of known keys.
    known: Vec<String>,
    script: PathBuf,
    /// A file with the secret of each request, one per line.
    draws: PathBuf,
}

/// Starts everything that `scenario` compares, in the folder `place`.
pub(crate) fn prepare(scenario: Scenario, place: &Path, many: usize) -> Stage {
    let (origin_process, origin) = if scenario.streams() { streaming_origin() } else { origin(place) };
    let count = match scenario {
        Scenario::TenThousand => 10_000,
        Scenario::Many => many,
        _ => 1,
    };
    let known: Vec<String> =
        (0..count).map(|_| Secret::generate("sk", KeyType::Service).expose().to_owned()).collect();
    let script = place.join("load.lua");
    std::fs::write(&script, SCRIPT).unwrap();
    let draws = place.join("draws");
    std::fs::write(&draws, drawn(scenario, &known).join("\n") + "\n").unwrap();
    let ground = Ground { scenario, place, origin, known, script, draws };
    let mut targets = vec![bare(&ground)];
    if !matches!(scenario, Scenario::Many | Scenario::Metered) {
        targets.push(nginx(&ground));
        targets.push(haproxy(&ground));
        targets.push(envoy(&ground));
    }
    if scenario == Scenario::HotKey {
        targets.push(plain_nginx(&ground));
        targets.push(plain_haproxy(&ground));
    }
    let mut servers = kg::Servers::default();
    let setups = Setup::ALL.iter().filter(|setup| match setup {
        Setup::Embedded => true,
        Setup::Postgres | Setup::Redis => scenario == Scenario::HotKey,
        Setup::Metered => scenario == Scenario::Metered,
    });
    for setup in setups {
        let rate = if scenario == Scenario::Refused { 1 } else { 1_000_000 };
        let ready = kg::serve(*setup, place, origin, &ground.known, rate, &mut servers);
        targets.push(ground.target(setup.name(), ready.address, ready.process));
    }
    Stage { targets, _origin: origin_process, _servers: servers }
}

/// The secrets of the requests, in order.
fn drawn(scenario: Scenario, known: &[String]) -> Vec<String> {
    /// Enough that a run does not repeat a short sequence.
    const DRAWS: usize = 200_000;
    let mut random = fastrand::Rng::with_seed(1);
    match scenario {
        Scenario::Unknown => {
            (0..DRAWS / 10).map(|_| Secret::generate("sk", KeyType::Service).expose().to_owned()).collect()
        }
        Scenario::IllFormed => {
            (0..DRAWS / 10).map(|_| format!("sk-service-{:032x}", random.u128(..))).collect()
        }
        _ if known.len() == 1 => known.to_vec(),
        _ => {
            // Zipf's law with exponent 1: how often the nth is drawn falls as 1/n, so the rank is uniform in its logarithm.
            let most = known.len() as f64;
            let rank = |random: &mut fastrand::Rng| (most.powf(random.f64()) as usize).clamp(1, known.len());
            (0..DRAWS).map(|_| known[rank(&mut random) - 1].clone()).collect()
        }
    }
}

impl Ground<'_> {
    fn target(&self, name: &'static str, address: SocketAddr, process: Owned) -> Target {
        let path = match (self.scenario, name) {
            (Scenario::Refused | Scenario::Unknown | Scenario::IllFormed, "bare Pingora") => "/refused",
            (Scenario::Large, _) => "/v1/app/large",
            (Scenario::Metered, METERED) => "/v1/metered/chat/completions",
            _ => "/v1/app/x",
        };
        let body = if self.scenario == Scenario::Metered { CHAT } else { "" };
        let refuses = self.scenario.refuses();
        let (secrets, script) = (self.draws.clone(), self.script.clone());
        Target { name, address, path, body, secrets, script, refuses, process }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.place.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

// === the processes ===

/// An address that was free a moment ago.
pub(crate) fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Starts `command` and returns once it accepts connections at `address`.
pub(crate) fn start(command: &mut Command, address: SocketAddr) -> Owned {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
    let mut owned = Owned(child);
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(owned.0.try_wait().unwrap().is_none(), "{command:?} ended");
        assert!(begun.elapsed() < Duration::from_secs(60), "{command:?} does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    owned
}

fn bare(ground: &Ground<'_>) -> Target {
    let address = free();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["bare", &address.to_string(), &ground.origin.to_string()]);
    ground.target("bare Pingora", address, start(&mut command, address))
}

/// Two responses: 42 bytes from memory, and a file of 256 KiB.
fn origin(place: &Path) -> (Owned, SocketAddr) {
    let address = free();
    std::fs::create_dir_all(place.join("files/v1/app")).unwrap();
    std::fs::write(place.join("files/v1/app/large"), vec![b'x'; 256 * 1_024]).unwrap();
    let server = format!(
        "server {{ listen {address}; keepalive_requests 1000000000; root {}/files;\n\
         location /v1/app/large {{ }}\n\
         location / {{ default_type application/json; return 200 '{{\"answer\":\"forty-two bytes of an origin\"}}'; }} }}",
        place.display()
    );
    (start(&mut nginx_command(place, "origin", "", &server), address), address)
}

fn streaming_origin() -> (Owned, SocketAddr) {
    let address = free();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["stream", &address.to_string()]);
    (start(&mut command, address), address)
}

fn nginx_command(place: &Path, name: &str, http: &str, server: &str) -> Command {
    let conf = place.join(format!("{name}.conf"));
    let text = format!(
        "worker_processes 1; user root; daemon off; pid {0}/{name}.pid; error_log {0}/{name}.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; client_body_temp_path {0}/{name}.body; proxy_temp_path {0}/{name}.proxy;\n\
         fastcgi_temp_path {0}/{name}.f; uwsgi_temp_path {0}/{name}.u; scgi_temp_path {0}/{name}.s;\n{http}\n{server}\n}}\n",
        place.display()
    );
    std::fs::write(&conf, text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(conf).arg("-p").arg(place);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stderr(Stdio::null());
    command
}

const NGINX_FORWARD: &str =
    "proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection '';";

fn nginx_upstream(ground: &Ground<'_>) -> String {
    format!("upstream origin {{ server {}; keepalive 2048; keepalive_requests 1000000000; }}", ground.origin)
}

fn plain_nginx(ground: &Ground<'_>) -> Target {
    let address = free();
    let server = format!(
        "server {{ listen {address}; keepalive_requests 1000000000; location / {{ {NGINX_FORWARD} }} }}"
    );
    let mut command = nginx_command(ground.place, "plain", &nginx_upstream(ground), &server);
    ground.target("nginx, plain", address, start(&mut command, address))
}

/// A map of the secrets, a rate per secret and an access log: the closest that nginx offers.
fn nginx(ground: &Ground<'_>) -> Target {
    let address = free();
    let mut map = String::from(
        "map_hash_max_size 65536; map_hash_bucket_size 256;\nmap $http_authorization $known { default 0;",
    );
    for secret in &ground.known {
        write!(map, "\"Bearer {secret}\" 1;\n").unwrap();
    }
    let buffering = if ground.scenario.streams() { "off" } else { "on" };
    let (rate, burst) = if ground.scenario == Scenario::Refused {
        ("1r/s", "")
    } else {
        ("1000000r/s", "burst=100000 nodelay")
    };
    let http = format!(
        "{}\n{map} }}\nlimit_req_zone $http_authorization zone=rate:32m rate={rate}; limit_req_status 429;",
        nginx_upstream(ground)
    );
    let server = format!(
        "server {{ listen {address}; keepalive_requests 1000000000; access_log {}/access.log;\n\
         if ($known = 0) {{ return 401; }}\nlocation / {{ limit_req zone=rate {burst}; proxy_buffering {buffering}; {NGINX_FORWARD} }} }}",
        ground.place.display()
    );
    let mut command = nginx_command(ground.place, "governed", &http, &server);
    ground.target("nginx", address, start(&mut command, address))
}

fn haproxy_command(ground: &Ground<'_>, name: &str, address: SocketAddr, rules: &str) -> Command {
    let text = format!(
        "global\n  nbthread 1\n  maxconn 8192\n\
         defaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 2s\n  http-reuse always\n\
         frontend front\n  bind {address}\n{rules}  default_backend origin\n\
         backend origin\n  server origin {}\n",
        ground.origin
    );
    let conf = ground.file(&format!("{name}.cfg"), &text);
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(conf).env("PATH", "/usr/sbin:/usr/bin").stderr(Stdio::null());
    command
}

fn plain_haproxy(ground: &Ground<'_>) -> Target {
    let address = free();
    let mut command = haproxy_command(ground, "haproxy-plain", address, "");
    ground.target("haproxy, plain", address, start(&mut command, address))
}

/// A list of the secrets and a stick table of their rates.
fn haproxy(ground: &Ground<'_>) -> Target {
    let address = free();
    let lines: Vec<_> = ground.known.iter().map(|secret| format!("Bearer {secret}")).collect();
    let known = ground.file("known", &(lines.join("\n") + "\n"));
    let most = if ground.scenario == Scenario::Refused { 1 } else { 1_000_000 };
    let rules = format!(
        "  stick-table type string len 128 size 100k expire 10s store http_req_rate(1s)\n\
         \x20 http-request deny deny_status 401 unless {{ req.hdr(authorization) -f {} }}\n\
         \x20 http-request track-sc0 req.hdr(authorization)\n\
         \x20 http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {most} }}\n",
        known.display()
    );
    let mut command = haproxy_command(ground, "haproxy", address, &rules);
    ground.target("haproxy", address, start(&mut command, address))
}

/// A list of the secrets, a token bucket per client and an access log, as for nginx.
fn envoy(ground: &Ground<'_>) -> Target {
    let address = free();
    let secrets = ground.known.iter().enumerate();
    let credentials: Vec<_> =
        secrets.map(|(n, secret)| json!({ "key": secret, "client": format!("client-{n}") })).collect();
    let bucket =
        |tokens: u32| json!({ "max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "1s" });
    let most = if ground.scenario == Scenario::Refused { 1 } else { 1_000_000 };
    let always = json!({ "default_value": { "numerator": 100 } });
    let typed = |name: &str, package: &str, mut config: serde_json::Value| {
        config["@type"] = format!("type.googleapis.com/envoy.extensions.{package}").into();
        json!({ "name": name, "typed_config": config })
    };
    let filters = [
        typed(
            "envoy.filters.http.api_key_auth",
            "filters.http.api_key_auth.v3.ApiKeyAuth",
            json!({
                "credentials": credentials, "key_sources": [{ "header": "Authorization" }],
                "forwarding": { "header": "x-client" },
            }),
        ),
        typed(
            "envoy.filters.http.local_ratelimit",
            "filters.http.local_ratelimit.v3.LocalRateLimit",
            json!({
                "stat_prefix": "rate", "token_bucket": bucket(u32::MAX), "filter_enabled": always, "filter_enforced": always,
                "rate_limits": [{ "actions": [{ "request_headers": { "header_name": "x-client", "descriptor_key": "client" } }] }],
                "descriptors": [{ "entries": [{ "key": "client" }], "token_bucket": bucket(most) }],
                "max_dynamic_descriptors": 100_000,
            }),
        ),
        typed("envoy.filters.http.router", "filters.http.router.v3.Router", json!({})),
    ];
    let log = json!({ "path": ground.place.join("envoy-access.log") });
    let log = typed("envoy.access_loggers.file", "access_loggers.file.v3.FileAccessLog", log);
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "origin", "timeout": "60s" } });
    let manager = typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "front", "access_log": [log], "http_filters": filters,
            "route_config": { "virtual_hosts": [{ "name": "app", "domains": ["*"], "routes": [route] }] },
        }),
    );
    let at = |at: SocketAddr| json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
    let most = json!({ "max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096 });
    let endpoint = json!({ "endpoint": { "address": at(ground.origin) } });
    let config = json!({ "static_resources": {
        "listeners": [{ "address": at(address), "filter_chains": [{ "filters": [manager] }] }],
        "clusters": [{
            "name": "origin", "type": "STATIC", "connect_timeout": "2s", "circuit_breakers": { "thresholds": [most] },
            "load_assignment": { "cluster_name": "origin", "endpoints": [{ "lb_endpoints": [endpoint] }] },
        }],
    }});
    let conf = ground.file("envoy.json", &config.to_string());
    let mut command = Command::new(ENVOY);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"]).arg(conf);
    ground.target("envoy", address, start(command.stderr(Stdio::null()), address))
}
