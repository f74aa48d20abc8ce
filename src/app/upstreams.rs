//! From the config to groups of backends.

use crate::clock::Clock;
use crate::config::{Config, HealthCheck, HealthConfig, UpstreamConfig};
use crate::metrics::Metrics;
use crate::policy::health::{EjectRule, ProbeRule};
use crate::proxy::upstream::{HttpProbe, Named, Probe, Settings, Timeouts, Upstream, tend};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The upstreams of the config, their servers looked up. They are tended on `io` from now on.
pub(super) fn start(
    config: &Config,
    metrics: &Arc<Metrics>,
    clock: &Arc<dyn Clock>,
    io: &Runtime,
) -> Box<[Arc<Upstream>]> {
    let upstream =
        |u: &UpstreamConfig| Arc::new(Upstream::new(settings(u), Arc::clone(metrics), Arc::clone(clock)));
    let upstreams: Box<[_]> = config.upstreams.iter().map(upstream).collect();
    io.block_on(find_servers(&upstreams));
    for upstream in &upstreams {
        io.spawn(tend(Arc::clone(upstream)));
    }
    upstreams
}

/// Looks the names of all servers up, before the first request.
async fn find_servers(upstreams: &[Arc<Upstream>]) {
    let mut all = JoinSet::new();
    for upstream in upstreams.iter().map(Arc::clone) {
        all.spawn(async move { upstream.resolve().await });
    }
    all.join_all().await;
}

fn settings(u: &UpstreamConfig) -> Settings {
    let named = |s: &crate::config::ServerConfig| Named {
        host: s.address.host.as_str().into(),
        port: s.address.port,
        weight: s.weight,
    };
    Settings {
        name: u.name.as_str().into(),
        names: u.servers.iter().map(named).collect(),
        balancing: u.balance.clone(),
        hash_load_percent: u.hash_load_percent,
        resolve_every: u.resolve_interval,
        timeouts: Timeouts {
            connect: u.connect_timeout,
            read: u.read_timeout,
            write: u.write_timeout,
            idle: u.idle_timeout,
        },
        probe: probe(&u.health),
        eject: EjectRule {
            after: u.eject.after,
            first: u.eject.first,
            longest: u.eject.longest,
            share_percent: u.eject.share_percent,
        },
    }
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
