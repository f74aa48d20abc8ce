//! The address of Redis, how to connect, and the checks whether it is safe for limits.
//!
//! Must not know: limits, or what a connection is used for. Credentials are never repeated.

use super::transport::{self, ClusterPart};
use crate::model::server::RedisKind;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use redis::{AsyncConnectionConfig, ClientTlsConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo};
use redis::{RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates, TlsMode, Value};
use rustls::AlertDescription;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;

/// Longest time to connect.
pub(in crate::counter) const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// Longest wait for an answer, although no request waits that long: what it grants is returned. Shorter than the time in
/// which an unreachable Redis may stay unnoticed; otherwise hanging calls would block new ones.
pub(in crate::counter) const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Delay between two attempts of one call to a cluster that moves a slot, in ms: minimum and maximum.
const RETRY_WAIT_MS: (u64, u64) = (1, 5);
/// How often one call to a cluster is retried: it may be redirected once, and then again.
const CLUSTER_RETRIES: u32 = 3;
/// How long Redis keeps an unused mark.
const MARK_MS: i64 = 60_000;
/// The rights that Keygate's user needs in Redis.
const RIGHTS: &str = "~kg:* +evalsha +eval +time +hmget +hgetall +hset +hsetnx +hdel +pexpire +ping +info +select +cluster|slots";

/// The address of Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisEndpoint {
    /// Server, Sentinel or cluster.
    pub kind: RedisKind,
    /// Hosts and ports: of the server, of the Sentinels, or of some servers of the cluster.
    pub servers: Vec<(String, u16)>,
    /// TLS settings; none: no TLS.
    pub tls: Option<RedisTls>,
    /// The user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The password for Sentinels, which have their own users.
    pub sentinel_password: Option<String>,
    /// The number of the database; 0 in a cluster.
    pub database: u16,
}

/// Certificates in PEM. The certificate of a server and the name in it are always verified.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// CA of the servers; none: the system's roots.
    pub ca: Option<Vec<u8>>,
    /// Client certificate and private key, for servers that require one.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It may evict counters, rejects the credentials, or is not a suitable server: a configuration error.
    #[error("{0}")]
    Unfit(String),
    /// It is unreachable, or gives no valid answer.
    #[error("Redis: {0}")]
    Gone(String),
}

/// Why a call failed.
#[derive(Debug)]
pub(in crate::counter) enum CallFailure {
    /// Because of one key; Redis itself works.
    Key(String),
    /// Because of Redis or the connection.
    Link(String),
}

/// An open connection.
#[derive(Clone)]
pub(in crate::counter) enum RedisConnection {
    One(MultiplexedConnection),
    Cluster(Box<ClusterConnection<ClusterPart>>),
}

/// Connects once, and checks that limits can be counted there.
pub async fn check_redis(endpoint: &RedisEndpoint) -> Result<(), LinkError> {
    endpoint.connect().await?.vet().await.map(drop)
}

impl RedisEndpoint {
    /// Opens a connection.
    pub(in crate::counter) async fn connect(&self) -> Result<RedisConnection, LinkError> {
        if self.tls.is_some() {
            // If several providers are compiled in, the first one installed is used, so install ours.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        match tokio::time::timeout(CONNECT_WITHIN * 2, self.open()).await {
            Ok(connected) => connected.map_err(|error| LinkError::of(&error)),
            Err(_) => Err(LinkError::Gone("does not answer".into())),
        }
    }

    async fn open(&self) -> Result<RedisConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let connector = self.tls.as_ref().map(transport::connector).transpose()?;
        match &self.kind {
            RedisKind::Server => {
                let server = self.servers.first();
                let server = server.ok_or((ErrorKind::InvalidClientConfig, "no server is named"))?;
                self.server(server, connector.as_ref(), &config).await
            }
            RedisKind::Sentinel(name) => {
                let master = self.master(name, connector.as_ref(), &config).await?;
                self.server(&master, connector.as_ref(), &config).await
            }
            RedisKind::Cluster => {
                let cluster = self.cluster()?;
                Ok(RedisConnection::Cluster(Box::new(cluster.get_async_generic_connection().await?)))
            }
        }
    }

    async fn server(
        &self,
        server: &(String, u16),
        connector: Option<&TlsConnector>,
        config: &AsyncConnectionConfig,
    ) -> Result<RedisConnection, RedisError> {
        transport::connect(server, connector, &self.settings(), config).await.map(RedisConnection::One)
    }

    /// The master of this name, which the first Sentinel says that knows one. A probe finds out whether it accepts writes.
    async fn master(
        &self,
        name: &str,
        connector: Option<&TlsConnector>,
        config: &AsyncConnectionConfig,
    ) -> Result<(String, u16), RedisError> {
        let mut settings = RedisConnectionInfo::default();
        if let Some(password) = &self.sentinel_password {
            settings = settings.set_password(password);
        }
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(name);
        let mut failed = None;
        for sentinel in &self.servers {
            let told = async {
                let mut connection = transport::connect(sentinel, connector, &settings, config).await?;
                command.query_async::<Option<(String, u16)>>(&mut connection).await
            };
            match told.await {
                Ok(Some(master)) => return Ok(master),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        let unknown = (ErrorKind::MasterNameNotFoundBySentinel, "no Sentinel knows a master of this name");
        Err(failed.unwrap_or_else(|| unknown.into()))
    }

    fn cluster(&self) -> Result<ClusterClient, RedisError> {
        let nodes = self.addresses().into_iter().map(IntoConnectionInfo::into_connection_info);
        let mut builder = ClusterClient::builder(nodes.collect::<Result<Vec<_>, _>>()?)
            .connection_timeout(CONNECT_WITHIN)
            .response_timeout(ANSWER_WITHIN)
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(RETRY_WAIT_MS.0)
            .max_retry_wait(RETRY_WAIT_MS.1);
        if let Some(certificates) = self.certificates() {
            builder = builder.tls(TlsMode::Secure).certs(certificates);
        }
        if let Some(user) = &self.user {
            builder = builder.username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.password(password);
        }
        builder.build()
    }

    fn addresses(&self) -> Vec<ConnectionAddr> {
        let address = |(host, port): &(String, u16)| {
            let (host, port) = (host.clone(), *port);
            if self.tls.is_some() {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            }
        };
        self.servers.iter().map(address).collect()
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let tls = self.tls.as_ref()?;
        let client = tls.client.clone();
        Some(TlsCertificates {
            client_tls: client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: tls.ca.clone(),
        })
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

impl std::fmt::Debug for RedisEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // User and password stay out of logs.
        f.debug_struct("RedisEndpoint")
            .field("kind", &self.kind)
            .field("servers", &self.servers)
            .field("tls", &self.tls.is_some())
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

// === impl RedisConnection ===

impl RedisConnection {
    /// Sends a command.
    pub(in crate::counter) async fn run(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        let value = match self {
            Self::One(connection) => connection.req_packed_command(command).await?,
            Self::Cluster(connection) => connection.req_packed_command(command).await?,
        };
        // Errors of a script or server arrive as a value.
        value.extract_error()
    }

    /// Whether the servers behind it fail independently.
    pub(in crate::counter) const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Checks that Redis answers and accepts a write: a replica or a full server would still answer a read. In a cluster,
    /// checks that any server answers; a failure of a single server shows when keys are counted.
    ///
    /// Writes `mark`, unless a mark of this node is there already. Returns the mark that is there then; none in a cluster,
    /// where each server would need its own.
    pub(in crate::counter) async fn probe(
        &mut self,
        node: &str,
        mark: u64,
    ) -> Result<Option<u64>, LinkError> {
        match self {
            Self::One(connection) => {
                let key = format!("kg:{{probe}}:{node}");
                let mut commands = redis::pipe();
                commands.cmd("HSETNX").arg(&key).arg("mark").arg(mark).ignore();
                commands.cmd("PEXPIRE").arg(&key).arg(MARK_MS).ignore();
                commands.cmd("HMGET").arg(&key).arg("mark");
                let found = commands.query_async::<Vec<Vec<u64>>>(connection).await;
                let found = found.map_err(|error| LinkError::of(&error))?;
                found.into_iter().flatten().next().map(Some).ok_or(LinkError::Gone("is not Redis".into()))
            }
            Self::Cluster(connection) => {
                let anyone = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::OneSucceeded));
                match connection.route_command(redis::cmd("PING"), RoutingInfo::MultiNode(anyone)).await {
                    Ok(Value::SimpleString(pong)) if pong == "PONG" => Ok(None),
                    Ok(_) => Err(LinkError::Gone("is not Redis".into())),
                    Err(error) => Err(LinkError::of(&error)),
                }
            }
        }
    }

    /// Refuses a Redis that could evict counters. Returns the run id of the server; empty in a cluster, where each server
    /// has its own, and if the user may not read it.
    pub(in crate::counter) async fn vet(&mut self) -> Result<String, LinkError> {
        let answer = tokio::time::timeout(CONNECT_WITHIN, self.run(&redis::cmd("INFO"))).await;
        let value = match answer.map_err(|_| LinkError::Gone("response timeout".into()))? {
            Ok(value) => value,
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => {
                tracing::warn!(
                    "counters: Redis user lacks permission for INFO, cannot check maxmemory-policy"
                );
                return Ok(String::new());
            }
            // One server of a cluster is unreachable; the check of the others is not essential.
            Err(error) if self.is_cluster() && error.kind() != ErrorKind::AuthenticationFailed => {
                tracing::warn!(
                    why = outline(&error),
                    "counters: Redis cluster incomplete, some servers do not answer"
                );
                return Ok(String::new());
            }
            Err(error) => return Err(LinkError::of(&error)),
        };
        let mut texts = Vec::new();
        collect_texts(&value, &mut texts);
        texts.iter().try_for_each(|text| vet_memory(text))?;
        let name = |text: &String| field(text, "run_id").map(str::to_owned);
        Ok(if self.is_cluster() { None } else { texts.first().and_then(name) }.unwrap_or_default())
    }
}

fn field<'t>(info: &'t str, name: &str) -> Option<&'t str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Checks what `INFO` says about memory.
fn vet_memory(info: &str) -> Result<(), LinkError> {
    let limited = field(info, "maxmemory").is_some_and(|n| n != "0");
    match field(info, "maxmemory_policy") {
        Some(policy) if limited && policy != "noeviction" => Err(LinkError::Unfit(format!(
            "Redis may throw limits away when its memory is full: its maxmemory-policy is {policy}; set it with \
             `CONFIG SET maxmemory-policy noeviction` and in redis.conf, or give the counters a Redis of their own"
        ))),
        _ => Ok(()),
    }
}

/// A cluster answers with one text per server.
fn collect_texts(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => out.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => out.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|v| collect_texts(v, out)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, v)| collect_texts(v, out)),
        _ => {}
    }
}

// === impl LinkError, Trouble ===

impl LinkError {
    /// Distinguishes configuration errors from failures that may heal.
    fn of(error: &RedisError) -> Self {
        let unfit = |text: String| Self::Unfit(text);
        match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
                unfit("Redis rejects the user or password of this URL".into())
            }
            (ErrorKind::Server(ServerErrorKind::NoPerm), _) => {
                unfit(format!("Redis does not let this user do what Keygate needs; it must have: {RIGHTS}"))
            }
            (ErrorKind::InvalidClientConfig, _) => {
                unfit(format!("this connection cannot be made: {}", error.category()))
            }
            (ErrorKind::MasterNameNotFoundBySentinel, _) => {
                unfit("no Sentinel knows a master of this name".into())
            }
            _ => untrusted(error).map_or_else(|| Self::Gone(outline(error)), Self::Unfit),
        }
    }
}

/// Which certificate was not trusted and what to do about it, if that was the cause.
fn untrusted(error: &RedisError) -> Option<String> {
    let cause = error.source()?;
    let cause: &(dyn Error + 'static) = match cause.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        Some(shared) => &**shared,
        None => cause,
    };
    let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
    match inner.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(why) => Some(format!(
            "the certificate of Redis is not trusted ({why:?}); counters.tls_ca_file names who vouches for it"
        )),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA,
        ) => Some("Redis does not accept our certificate, or asks for one: counters.tls_cert_file".into()),
        _ => None,
    }
}

impl CallFailure {
    pub(in crate::counter) fn of(error: &RedisError) -> Self {
        let text = error.to_string();
        // Older servers put the inner error of a script into the text.
        let ours = ["READONLY", "OOM", "MISCONF", "NOREPLICAS"].iter().any(|word| text.contains(word));
        match error.kind() {
            ErrorKind::Extension if error.code() == Some("KEYGATE") => Self::Key(
                "it was written by another version of Keygate, in a layout that this one does not know"
                    .into(),
            ),
            ErrorKind::Extension if error.code() == Some("WRONGTYPE") => Self::Key(outline(error)),
            ErrorKind::Server(ServerErrorKind::ResponseError) if !ours => Self::Key(outline(error)),
            _ => Self::Link(outline(error)),
        }
    }

    /// Whether the server does not have the script.
    pub(in crate::counter) fn is_no_script(&self) -> bool {
        matches!(self, Self::Link(code) if code == "NOSCRIPT")
    }
}

/// What may be logged: kind and code, never the command or an address with a password.
fn outline(error: &RedisError) -> String {
    match error.code() {
        Some(code) => code.to_owned(),
        None => error.category().to_owned(),
    }
}
