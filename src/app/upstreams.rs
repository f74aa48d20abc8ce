//! Sets up upstreams from the config.

use crate::config::{Config, HealthCheck, HealthConfig, ServerConfig, TlsConfig, UpstreamConfig};
use crate::fileio;
use crate::policy::upstream::health::ProbeRule;
use crate::policy::upstream::retry::RetryBudgetRule;
use crate::proxy::upstream::{
    ConcurrencyLimits, HttpProbe, Probe, ServerSpec, Timeouts, Upstream, UpstreamProtocol, UpstreamSettings,
    UpstreamTls, UpstreamTlsFiles,
};
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Resolves the names of all their servers, before the first request.
pub(super) async fn find_servers(upstreams: &[Arc<Upstream>]) {
    let mut all = JoinSet::new();
    for upstream in upstreams.iter().map(Arc::clone) {
        all.spawn(async move { upstream.resolve().await });
    }
    all.join_all().await;
}

/// The settings of each upstream, or everything that is wrong with its files.
pub(super) fn settings(config: &Config) -> Result<Vec<UpstreamSettings>, Vec<String>> {
    let mut all = Vec::with_capacity(config.upstreams.len());
    let mut mistakes = Vec::new();
    for (n, upstream) in config.upstreams.iter().enumerate() {
        let tls = upstream.tls.as_ref().map(|t| tls(n, t, &mut mistakes));
        all.push(settings_of(upstream, tls.flatten()));
    }
    if mistakes.is_empty() { Ok(all) } else { Err(mistakes) }
}

fn settings_of(u: &UpstreamConfig, tls: Option<UpstreamTls>) -> UpstreamSettings {
    let named = |s: &ServerConfig| ServerSpec {
        host: s.address.host.as_str().into(),
        port: s.address.port,
        weight: s.weight,
    };
    UpstreamSettings {
        name: u.name.as_str().into(),
        names: u.servers.iter().map(named).collect(),
        balancing: u.balance.clone(),
        hash_load_percent: u.hash_load_percent,
        resolve_every: u.resolve_interval,
        timeouts: Timeouts {
            connect: u.connect_timeout,
            first_byte: (!u.first_byte_timeout.is_zero()).then_some(u.first_byte_timeout),
            read: u.read_timeout,
            write: u.write_timeout,
            idle: u.idle_timeout,
            request: (!u.request_timeout.is_zero()).then_some(u.request_timeout),
            tunnel: u.tunnel_idle_timeout,
        },
        protocol: UpstreamProtocol::new(u.protocol, tls),
        most: ConcurrencyLimits {
            requests: at_most(u.max_requests),
            pending: at_most(u.max_pending),
            per_server: at_most(u.max_requests_per_server),
        },
        attempts: u.retry.attempts,
        budget: RetryBudgetRule { percent: u.retry.budget_percent, per_second: u.retry.budget_per_second },
        probe: probe(&u.health),
        eject: u.eject,
    }
}

/// 0: no limit.
fn at_most(configured: u32) -> usize {
    if configured == 0 { usize::MAX } else { usize::try_from(configured).unwrap_or(usize::MAX) }
}

fn probe(health: &HealthConfig) -> Option<Probe> {
    let http = match health.check {
        HealthCheck::Off => return None,
        HealthCheck::Tcp => None,
        HealthCheck::Http => Some(HttpProbe {
            target: health.path.as_str().into(),
            host: health.host.as_deref().map(Into::into),
            status: health.status.clone(),
        }),
    };
    let rule = ProbeRule { up_after: health.up_after, down_after: health.down_after };
    Some(Probe { http, every: health.interval, within: health.timeout, rule })
}

/// The TLS settings of the `n`-th upstream; none if a file cannot be used, which is then a mistake.
fn tls(n: usize, config: &TlsConfig, mistakes: &mut Vec<String>) -> Option<UpstreamTls> {
    let mut read = |key: &str, path: &Path| match fileio::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            mistakes.push(format!("upstreams[{n}].tls.{key}: {} cannot be read: {error}", path.display()));
            None
        }
    };
    let ca = config.ca_file.as_deref().map(|path| read("ca_file", path));
    let client = config.client.as_ref().map(|c| {
        let (chain, key) = (read("client_cert_file", &c.cert_file), read("client_key_file", &c.key_file));
        Some((chain?, key?))
    });
    // A named file must exist; its content is checked elsewhere.
    let (ca, client) = (ca.map_or(Some(None), |b| b.map(Some))?, client.map_or(Some(None), |c| c.map(Some))?);
    let server_name = config.server_name.as_deref().map(Into::into);
    let parts = UpstreamTlsFiles { server_name, ca, client, any_certificate: config.any_certificate };
    UpstreamTls::new(&parts)
        .map_err(|bad| {
            mistakes.push(format!("upstreams[{n}].tls.{}: it cannot be used: {}", bad.key(), bad.reason()));
        })
        .ok()
}
