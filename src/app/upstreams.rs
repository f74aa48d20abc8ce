//! Sets up upstreams from the config.

use super::{InlineSecrets, StartError, files, read_secret_value};
use crate::config::{
    Config, CredentialConfig, CredentialSecret, HealthCheck, HealthConfig, ServerConfig, TlsConfig,
    UpstreamConfig,
};
use crate::fileio;
use crate::policy::upstream::credential::{UpstreamCredential, field_value};
use crate::policy::upstream::encryption::EncryptionKeys;
use crate::policy::upstream::health::ProbeRule;
use crate::policy::upstream::retry::RetryBudgetRule;
use crate::proxy::upstream::{
    ConcurrencyLimits, HttpProbe, Probe, ServerSpec, StoredCredentials, Timeouts, Upstream, UpstreamProtocol,
    UpstreamSettings, UpstreamTls, UpstreamTlsFiles,
};
use crate::store::Change;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

/// Resolves the names of all their servers, before the first request.
pub(super) async fn find_servers(upstreams: &[Arc<Upstream>]) {
    let mut all = JoinSet::new();
    for upstream in upstreams.iter().map(Arc::clone) {
        all.spawn(async move { upstream.resolve().await });
    }
    all.join_all().await;
}

/// The keys of stored credentials, from the environment or their file; none: this node has none.
pub(super) fn encryption_keys(
    config: &Config,
    inline: InlineSecrets<'_>,
) -> Result<Option<EncryptionKeys>, StartError> {
    match (inline.encryption_keys, &config.secrets.encryption_key_file) {
        (Some(text), _) => Ok(Some(EncryptionKeys::parse(text)?)),
        (None, Some(path)) => Ok(Some(files::encryption_keys(path)?)),
        (None, None) => Ok(None),
    }
}

/// Applies a change of a stored credential.
pub(super) fn apply_credential(credentials: &StoredCredentials, change: &Change) {
    match change {
        Change::Credential(sealed) => {
            if let Err(why) = credentials.put(sealed) {
                let selector = &sealed.selector;
                tracing::error!(
                    upstream = &*selector.upstream,
                    workspace = selector.workspace_text(),
                    metadata = selector.metadata_text(),
                    why,
                    "stored upstream credential cannot be decrypted, its requests are answered with 503"
                );
            }
        }
        Change::CredentialRemoved(id) => credentials.remove(*id),
        _ => {}
    }
}

/// The settings of each upstream, or everything that is wrong with its files.
pub(super) fn settings(config: &Config) -> Result<Vec<UpstreamSettings>, Vec<String>> {
    let mut all = Vec::with_capacity(config.upstreams.len());
    let mut mistakes = Vec::new();
    for (n, upstream) in config.upstreams.iter().enumerate() {
        let tls = upstream.tls.as_ref().map(|t| tls(n, t, &mut mistakes));
        let credentials = credentials(n, &upstream.credentials, &mut mistakes);
        all.push(UpstreamSettings { credentials, ..settings_of(upstream, tls.flatten()) });
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
        credentials: Box::default(),
        stored: Arc::default(),
    }
}

/// The credentials of the `n`-th upstream, without those that cannot be used, which are mistakes.
fn credentials(
    n: usize,
    configured: &[CredentialConfig],
    mistakes: &mut Vec<String>,
) -> Box<[UpstreamCredential]> {
    let mut all = Vec::with_capacity(configured.len());
    for (place, config) in configured.iter().enumerate() {
        let value = match &config.secret {
            CredentialSecret::File(path) => read_secret_value(path).map_err(|error| error.to_string()),
            CredentialSecret::Variable { text: Some(text), .. } => Ok(Zeroizing::new(text.clone())),
            CredentialSecret::Variable { name, text: None } => Err(format!("the variable {name} is not set")),
        };
        let value = value.and_then(|secret| {
            let value = field_value(config.scheme.as_deref(), &secret);
            value.ok_or_else(|| "the secret must be visible ASCII characters".into())
        });
        match value {
            Ok(value) => all.push(UpstreamCredential {
                workspace: config.workspace.clone(),
                metadata: config.metadata.clone(),
                header: config.header.clone(),
                value: Some(value),
            }),
            Err(why) => mistakes.push(format!("upstreams[{n}].credentials[{place}]: {why}")),
        }
    }
    all.into()
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
