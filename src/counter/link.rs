//! The one connection to Redis: there while Redis answers in time, gone at the first sign that it does not.
//!
//! Must not know: limits. When Redis is gone, one task looks for it; everybody else is told at once that it is gone.
//!
//! *Invariant:* a connection is handed out only after Redis has taken a write and answered within [`PROBE_WITHIN`].

use crate::clock::Clock;
use arc_swap::ArcSwapOption;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
};
use redis::{RedisError, ServerErrorKind, TlsMode, Value};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Longest time to make a connection.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// Slower than this and Redis is no use: no request waits longer.
const PROBE_WITHIN: Duration = Duration::from_millis(15);
/// How often a connection that nobody uses is tried.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks for Redis: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Answers in a row that may be late before Redis counts as gone.
const LATE_MAX: u32 = 3;
/// The longest that an answer is waited for, though nobody waits for it any more.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);

/// Where Redis is.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisPlace {
    /// What is there.
    pub kind: RedisKind,
    /// Hosts and ports: of the server, of the Sentinels, or of some nodes of the cluster.
    pub servers: Vec<(String, u16)>,
    /// Whether connections are encrypted and the server's certificate is checked.
    pub tls: bool,
    /// Who we are.
    pub user: Option<String>,
    /// How we prove it.
    pub password: Option<String>,
    /// The database's number; 0 in a cluster.
    pub database: u16,
}

/// What kind of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisKind {
    /// One server.
    Server,
    /// The master that Sentinels know by this name.
    Sentinel(String),
    /// A cluster.
    Cluster,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It may throw counters away.
    #[error("{0}")]
    Unfit(String),
    /// It cannot be reached, or does not answer as it must.
    #[error("Redis: {0}")]
    Gone(String),
}

/// What went wrong with a question.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Something at that key; Redis as such is well.
    Key(String),
    /// Redis.
    Link(String),
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(Box<ClusterConnection>),
}

/// The connection, if there is one.
pub(super) struct Link {
    place: RedisPlace,
    node: String,
    clock: Arc<dyn Clock>,
    current: ArcSwapOption<Connection>,
    lost: Notify,
    late: AtomicU32,
    /// When it last answered in time, in steady ns.
    well_ns: AtomicU64,
}

impl Link {
    pub(super) fn new(place: RedisPlace, node: &str, clock: Arc<dyn Clock>) -> Self {
        let well_ns = AtomicU64::new(clock.now().steady_ns);
        Self {
            place,
            node: node.to_owned(),
            clock,
            current: ArcSwapOption::empty(),
            lost: Notify::new(),
            late: AtomicU32::new(0),
            well_ns,
        }
    }

    /// Looks for Redis once.
    pub(super) async fn look(&self) -> Result<(), LinkError> {
        let mut connection = match tokio::time::timeout(CONNECT_WITHIN * 2, self.connect()).await {
            Ok(connected) => connected.map_err(|e| LinkError::Gone(outline(&e)))?,
            Err(_) => return Err(LinkError::Gone("does not answer".into())),
        };
        vet(&mut connection).await?;
        self.probe(&mut connection).await?;
        self.current.store(Some(Arc::new(connection)));
        Ok(())
    }

    /// Looks for Redis whenever it is gone, for as long as somebody needs it.
    pub(super) async fn keep<T>(self: Arc<Self>, needed: Weak<T>) {
        let mut pause = LOOK_AGAIN.0;
        let mut told = false;
        while needed.strong_count() > 0 {
            if self.is_up() {
                (pause, told) = (LOOK_AGAIN.0, false);
                tokio::select! {
                    () = self.lost.notified() => {}
                    () = tokio::time::sleep(PROBE_EVERY) => self.check().await,
                }
                continue;
            }
            match self.look().await {
                Ok(()) => {
                    tracing::info!("counters: Redis answers");
                    continue;
                }
                Err(error @ LinkError::Unfit(_)) if !told => {
                    tracing::error!(%error, "counters: Redis is not used");
                }
                Err(error) if !told => tracing::warn!(%error, "counters: Redis is gone"),
                Err(error) => tracing::debug!(%error, "counters: Redis is still gone"),
            }
            told = true;
            tokio::time::sleep(pause + self.jitter(pause)).await;
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.current.load().is_some()
    }

    /// When Redis last answered in time, in steady ns.
    pub(super) fn last_well_ns(&self) -> u64 {
        self.well_ns.load(Ordering::Relaxed)
    }

    fn is_well(&self) {
        self.late.store(0, Ordering::Relaxed);
        self.well_ns.store(self.clock.now().steady_ns, Ordering::Relaxed);
    }

    /// Asks. An answer later than `patience` counts against Redis, though it is still taken in.
    pub(super) async fn ask(&self, command: &Cmd, patience: Duration) -> Result<Value, Trouble> {
        let Some(connection) = self.current.load_full() else {
            return Err(Trouble::Link("gone".into()));
        };
        let mut connection = Connection::clone(&connection);
        let mut answer = std::pin::pin!(connection.run(command));
        if let Ok(answered) = tokio::time::timeout(patience, &mut answer).await {
            if answered.is_ok() {
                self.is_well();
            }
            return answered.map_err(|e| trouble(&e));
        }
        if self.late.fetch_add(1, Ordering::Relaxed) + 1 >= LATE_MAX {
            self.lose("answers too late");
        }
        match tokio::time::timeout(ANSWER_WITHIN, &mut answer).await {
            Ok(answered) => answered.map_err(|e| trouble(&e)),
            Err(_) => Err(Trouble::Link("no answer".into())),
        }
    }

    /// Gives the connection up; a new one is looked for.
    pub(super) fn lose(&self, why: &str) {
        if self.current.swap(None).is_some() {
            tracing::warn!(why, "counters: Redis is gone");
            self.lost.notify_one();
        }
    }

    async fn check(&self) {
        let Some(connection) = self.current.load_full() else { return };
        // Twice, because one pause of the other side is no outage.
        let mut connection = Connection::clone(&connection);
        if self.probe(&mut connection).await.is_err()
            && let Err(error) = self.probe(&mut connection).await
        {
            self.lose(&error.to_string());
        }
    }

    /// A write, because a replica or a full server would still answer a read.
    async fn probe(&self, connection: &mut Connection) -> Result<(), LinkError> {
        let mut command = redis::cmd("SET");
        command.arg(format!("kg1:{{probe}}:{}", self.node)).arg(1).arg("PX").arg(10_000);
        match tokio::time::timeout(PROBE_WITHIN, connection.run(&command)).await {
            Ok(Ok(Value::Okay)) => {
                self.is_well();
                Ok(())
            }
            Ok(Ok(_)) => Err(LinkError::Gone("is not Redis".into())),
            Ok(Err(error)) => Err(LinkError::Gone(outline(&error))),
            Err(_) => Err(LinkError::Gone("answers too late".into())),
        }
    }

    async fn connect(&self) -> Result<Connection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        match &self.place.kind {
            RedisKind::Server => {
                let address = self.place.addresses().into_iter().next();
                let address = address.ok_or((ErrorKind::InvalidClientConfig, "no server is named"))?;
                let info = address.into_connection_info()?.set_redis_settings(self.place.settings());
                let connection =
                    Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?;
                Ok(Connection::One(connection))
            }
            RedisKind::Sentinel(name) => {
                let connection = self.sentinel(name)?.get_async_connection_with_config(&config).await?;
                Ok(Connection::One(connection))
            }
            RedisKind::Cluster => {
                let nodes = self.place.addresses().into_iter().map(IntoConnectionInfo::into_connection_info);
                let mut builder = ClusterClient::builder(nodes.collect::<Result<Vec<_>, _>>()?)
                    .connection_timeout(CONNECT_WITHIN)
                    .response_timeout(ANSWER_WITHIN)
                    .retries(1);
                if self.place.tls {
                    builder = builder.tls(TlsMode::Secure);
                }
                if let Some(user) = &self.place.user {
                    builder = builder.username(user);
                }
                if let Some(password) = &self.place.password {
                    builder = builder.password(password);
                }
                Ok(Connection::Cluster(Box::new(builder.build()?.get_async_connection().await?)))
            }
        }
    }

    fn sentinel(&self, name: &str) -> Result<SentinelClient, RedisError> {
        let place = &self.place;
        let mut builder = SentinelClientBuilder::new(place.addresses(), name, SentinelServerType::Master)?;
        builder = builder.set_client_to_redis_db(place.database.into());
        if place.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(user) = &place.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &place.password {
            builder = builder.set_client_to_redis_password(password);
        }
        builder.build()
    }

    /// Nodes that lost Redis together do not look for it together.
    fn jitter(&self, pause: Duration) -> Duration {
        let spread = u64::try_from(pause.as_nanos() / 2).unwrap_or(0).max(1);
        Duration::from_nanos(self.clock.now().steady_ns % spread)
    }
}

/// Refuses a Redis that could drop counters to make room.
async fn vet(connection: &mut Connection) -> Result<(), LinkError> {
    let gone = |e: RedisError| LinkError::Gone(outline(&e));
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let answer = tokio::time::timeout(CONNECT_WITHIN, connection.run(&command)).await;
    let answer = answer.map_err(|_| LinkError::Gone("answers too late".into()))?;
    let value = match answer {
        Ok(value) => value,
        Err(error) if error.code() == Some("NOPERM") => {
            tracing::warn!(
                "counters: this user may not read INFO memory, so nobody knows whether Redis may evict"
            );
            return Ok(());
        }
        Err(error) => return Err(gone(error)),
    };
    let mut texts = Vec::new();
    collect_texts(&value, &mut texts);
    texts.iter().try_for_each(|text| vet_memory(text))
}

/// Looks at what `INFO memory` tells.
fn vet_memory(info: &str) -> Result<(), LinkError> {
    let field =
        |name: &str| info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let limited = field("maxmemory").is_some_and(|n| n != "0");
    match field("maxmemory_policy") {
        Some(policy) if limited && policy != "noeviction" => Err(LinkError::Unfit(format!(
            "Redis may throw limits away when its memory is full: its maxmemory-policy is {policy}; set it with \
             `CONFIG SET maxmemory-policy noeviction` and in redis.conf, or give the counters a Redis of their own"
        ))),
        _ => Ok(()),
    }
}

/// A cluster answers with one text for each node.
fn collect_texts(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => out.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => out.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|v| collect_texts(v, out)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, v)| collect_texts(v, out)),
        _ => {}
    }
}

fn trouble(error: &RedisError) -> Trouble {
    let text = error.to_string();
    // A script's error carries the inner one in its text on older servers.
    let ours = ["READONLY", "OOM", "MISCONF", "NOREPLICAS"].iter().any(|word| text.contains(word));
    match error.kind() {
        ErrorKind::Extension if error.code() == Some("WRONGTYPE") => Trouble::Key(outline(error)),
        ErrorKind::Server(ServerErrorKind::ResponseError) if !ours => Trouble::Key(outline(error)),
        _ => Trouble::Link(outline(error)),
    }
}

/// What may be logged: kind and code, never the command or an address with a password.
fn outline(error: &RedisError) -> String {
    match error.code() {
        Some(code) => code.to_owned(),
        None => error.category().to_owned(),
    }
}

/// Whether the server has forgotten the script.
pub(super) fn is_no_script(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Link(code) if code == "NOSCRIPT")
}

// === impl RedisPlace, Connection ===

impl RedisPlace {
    fn addresses(&self) -> Vec<ConnectionAddr> {
        let address = |(host, port): &(String, u16)| {
            let (host, port) = (host.clone(), *port);
            if self.tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            }
        };
        self.servers.iter().map(address).collect()
    }

    fn settings(&self) -> RedisConnectionInfo {
        let mut settings = RedisConnectionInfo::default().set_db(self.database.into());
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        settings
    }
}

impl std::fmt::Debug for RedisPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Who connects and how it proves that stay out of logs.
        f.debug_struct("RedisPlace")
            .field("kind", &self.kind)
            .field("servers", &self.servers)
            .field("tls", &self.tls)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl Connection {
    async fn run(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        let value = match self {
            Self::One(connection) => connection.req_packed_command(command).await?,
            Self::Cluster(connection) => connection.req_packed_command(command).await?,
        };
        // What a script or a server says no with arrives as a value.
        value.extract_error()
    }
}
