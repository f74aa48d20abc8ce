//! Active health checks: does a server accept connections, and does it respond as expected?
//!
//! A probe opens its own connection with the settings of requests (TLS, HTTP version), so that it tests what they need.
//!
//! Must not know: what the verdict is used for.

use super::connection::cause_of;
use super::maintain::look_up;
use super::{ServerMember, Upstream};
use crate::policy::upstream::health::ProbeRule;
use crate::proxy::connection::socket;
use http::{Method, header};
use pingora::ErrorType;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Most concurrent probes of one upstream.
const AT_ONCE: usize = 64;

/// The settings of probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The request; none: only opens a connection.
    pub http: Option<HttpProbe>,
    /// Time from the start of one probe of a server to the next.
    pub every: Duration,
    /// Longest time for a probe.
    pub within: Duration,
    /// How many in a row change the verdict.
    pub rule: ProbeRule,
}

/// The request of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Path and query.
    pub target: Box<str>,
    /// The `Host`; none: the server's own, as configured.
    pub host: Option<Box<str>>,
    /// The statuses that count as success.
    pub status: RangeInclusive<u16>,
}

/// Why a probe failed.
enum ProbeFailure {
    /// Because of the server.
    Server(String),
    /// Because of this machine, which lacks a resource.
    Here(String),
}

/// Whether a connection could not be tried because this machine lacks a resource. Pingora calls this an internal error.
pub(in crate::proxy) const fn is_local_shortage(error: &ErrorType) -> bool {
    matches!(error, ErrorType::InternalError | ErrorType::SocketError | ErrorType::BindError)
}

/// The result of trying one server.
pub struct ServerTrial {
    /// Its name or address as configured, with the address that was tried where it has several.
    pub server: String,
    /// Why it cannot be used.
    pub result: Result<(), String>,
}

/// Tries every server of `upstream` once: by its health check, or else by opening a connection as requests do.
pub async fn try_servers(upstream: &Arc<Upstream>, within: Duration) -> Vec<ServerTrial> {
    let mut trials = Vec::new();
    for named in &upstream.settings.names {
        if let Err(why) = look_up(&named.host, named.port).await {
            let server = format!("{}:{}", named.host, named.port);
            trials.push(ServerTrial { server, result: Err(format!("DNS lookup failed: {why}")) });
        }
    }
    upstream.resolve().await;
    let connector = Arc::new(Connector::new(None));
    let mut tries = JoinSet::new();
    for member in upstream.all_members() {
        let (upstream, connector) = (Arc::clone(upstream), Arc::clone(&connector));
        tries.spawn(async move {
            let outcome = timeout(within, try_as_requests_do(&upstream, &member, &connector)).await;
            let result = outcome.unwrap_or_else(|_| Err(format!("no answer within {within:?}")));
            ServerTrial { server: member.server.text.to_string(), result }
        });
    }
    trials.extend(tries.join_all().await);
    trials.sort_by(|a, b| a.server.cmp(&b.server));
    trials
}

async fn try_as_requests_do(
    upstream: &Upstream,
    member: &ServerMember,
    connector: &Connector,
) -> Result<(), String> {
    let Some(probe) = upstream.settings.probe.as_ref().filter(|probe| probe.http.is_some()) else {
        let opened = connector.get_http_session(&*upstream.peer(&member.server)).await;
        return opened.map(drop).map_err(|error| cause_of(&error));
    };
    try_once(upstream, member, probe, connector).await.map_err(|failure| match failure {
        ProbeFailure::Server(why) | ProbeFailure::Here(why) => format!("health check failed: {why}"),
    })
}

/// Probes every server of `upstream` periodically.
pub(super) async fn probe_loop(upstream: &Arc<Upstream>, probe: &Probe) {
    let connector = Arc::new(Connector::new(None));
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut ticks = interval(probe.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Dropped with this future, which aborts its tasks.
    let mut round = JoinSet::new();
    loop {
        ticks.tick().await;
        for member in upstream.all_members() {
            let (upstream, probe) = (Arc::clone(upstream), probe.clone());
            let (connector, places) = (Arc::clone(&connector), Arc::clone(&places));
            round.spawn(async move {
                let place = places.acquire().await;
                let found =
                    match timeout(probe.within, try_once(&upstream, &member, &probe, &connector)).await {
                        Ok(found) => found,
                        Err(_) => Err(ProbeFailure::Server(format!("no answer within {:?}", probe.within))),
                    };
                drop(place);
                match found {
                    Ok(()) => upstream.probed(&member.server, true, probe.rule, ""),
                    Err(ProbeFailure::Server(detail)) => {
                        upstream.probed(&member.server, false, probe.rule, &detail);
                    }
                    Err(ProbeFailure::Here(error)) => {
                        let (upstream, server) = (&*upstream.settings.name, &*member.server.text);
                        tracing::warn!(
                            upstream,
                            server,
                            error,
                            "cannot run health check: local resources exhausted"
                        );
                    }
                }
            });
        }
        // A round ends before the next begins, so that probes of one server cannot overtake each other.
        while round.join_next().await.is_some() {}
    }
}

async fn try_once(
    upstream: &Upstream,
    member: &ServerMember,
    probe: &Probe,
    connector: &Connector,
) -> Result<(), ProbeFailure> {
    let Some(request) = &probe.http else {
        let opened = TcpStream::connect(member.server.address).await;
        return opened.map(drop).map_err(|error| {
            let bad =
                if socket::is_local_shortage(&error) { ProbeFailure::Here } else { ProbeFailure::Server };
            bad(error.to_string())
        });
    };
    let host = request.host.as_deref().unwrap_or(&member.server.authority);
    match ask(upstream, member, request, host, connector).await {
        Ok(status) if request.status.contains(&status) => Ok(()),
        Ok(status) => Err(ProbeFailure::Server(format!("it answered {status}"))),
        Err(error) if is_local_shortage(&error.etype) => {
            Err(ProbeFailure::Here(error.etype.as_str().to_owned()))
        }
        Err(error) => Err(ProbeFailure::Server(error.etype.as_str().to_owned())),
    }
}

async fn ask(
    upstream: &Upstream,
    member: &ServerMember,
    request: &HttpProbe,
    host: &str,
    connector: &Connector,
) -> pingora::Result<u16> {
    let mut peer = upstream.peer(&member.server);
    // No other request uses a probe's connection, which ends with it.
    peer.options.max_h2_streams = 1;
    let (mut session, _) = connector.get_http_session(&*peer).await?;
    let mut head = RequestHeader::build(Method::GET, request.target.as_bytes(), Some(3))?;
    head.insert_header(header::HOST, host)?;
    head.insert_header(header::USER_AGENT, "keygate-health-check")?;
    if session.as_http1().is_some() {
        head.insert_header(header::CONNECTION, "close")?;
    }
    session.write_request_header(Box::new(head)).await?;
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        let status = session.response_header().map_or(0, |h| h.status.as_u16());
        // Interim responses come before the final one.
        if status >= 200 {
            session.shutdown().await;
            return Ok(status);
        }
    }
}
