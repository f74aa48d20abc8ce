//! Connects the admin API to an identity provider: keys by URL, the service that is asked about tokens, and sign-in to the console.

use super::watched::WatchedFiles;
use super::{CoreServices, InlineSecrets, StartError, read_secret_value};
use crate::admin::{
    AuthClaims, ClientCredentials, GroupGrant, Introspection, IntrospectionOptions, JwksOptions, Oidc,
    OidcClaims, OidcOptions, RemoteJwks, read_key_set,
};
use crate::clock::Clock;
use crate::config::{ClaimNames, Config, JwtKeys, OidcGroup};
use crate::fileio;
use crate::http_client::{HttpClient, HttpTrust};
use crate::metrics::Metrics;
use crate::model::server::HttpUrl;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

/// The parts that ask an identity provider, as far as the config has them.
#[derive(Default)]
pub(super) struct IdentityProvider {
    pub(super) jwks: Option<Arc<RemoteJwks>>,
    pub(super) introspection: Option<Arc<Introspection>>,
    pub(super) oidc: Option<Arc<Oidc>>,
}

/// Starts reading keys, and makes the client of the service.
pub(super) fn start(
    config: &Config,
    inline: InlineSecrets<'_>,
    core: &CoreServices,
    files: &WatchedFiles,
    io: &Handle,
) -> Result<IdentityProvider, StartError> {
    let (clock, metrics) = (Arc::clone(&core.clock), Arc::clone(&core.metrics));
    let jwks = jwks(config)?.map(|options| {
        let jwks = Arc::new(RemoteJwks::new(options, Arc::clone(&core.auth), clock, metrics));
        io.spawn(Arc::clone(&jwks).keep());
        jwks
    });
    let introspection = introspection(config)?.map(|options| {
        if let (Some(credentials), Some(path)) =
            (&options.credentials, &config.admin.introspection.client_secret_file)
        {
            files.add_client_secret("admin.introspection.client_secret_file", path, credentials);
        }
        let (clock, metrics) = (Arc::clone(&core.clock), Arc::clone(&core.metrics));
        Arc::new(Introspection::new(options, Arc::clone(&core.auth), clock, metrics))
    });
    let oidc = match oidc(config, inline)? {
        None => None,
        Some(options) => {
            if let (None, Some(credentials), Some(path)) =
                (inline.oidc_client, &options.credentials, &config.admin.oidc.client_secret_file)
            {
                files.add_client_secret("admin.oidc.client_secret_file", path, credentials);
            }
            Some(Arc::new(sign_in(options, Arc::clone(&core.clock), Arc::clone(&core.metrics))?))
        }
    };
    Ok(IdentityProvider { jwks, introspection, oidc })
}

/// Checks that the configured files can be used.
pub(super) fn check(config: &Config, inline: InlineSecrets<'_>) -> Vec<Result<(), StartError>> {
    vec![jwks(config).map(drop), introspection(config).map(drop), oidc(config, inline).map(drop)]
}

/// Reads the key set of the identity provider once, if one is configured.
pub(super) async fn check_key_set(config: &Config) -> Result<Option<Result<(), String>>, StartError> {
    let Some(options) = jwks(config)? else { return Ok(None) };
    Ok(Some(read_key_set(&options.client).await.map(drop)))
}

/// Reads the document and the keys of the provider that signs people in once, if one is configured.
pub(super) async fn check_sign_in(
    config: &Config,
    inline: InlineSecrets<'_>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
) -> Result<Option<Result<(), String>>, StartError> {
    let Some(options) = oidc(config, inline)? else { return Ok(None) };
    Ok(Some(sign_in(options, clock, metrics)?.try_provider().await))
}

fn jwks(config: &Config) -> Result<Option<JwksOptions>, StartError> {
    let jwt = &config.admin.jwt;
    let JwtKeys::JwksUrl(url) = &jwt.keys else { return Ok(None) };
    Ok(Some(JwksOptions {
        client: client(url, jwt.jwks_ca_file.as_deref(), ["admin.jwt.jwks_url", "admin.jwt.jwks_ca_file"])?,
        refresh: jwt.jwks_refresh,
        retry: jwt.jwks_retry,
        max_stale: jwt.jwks_max_stale,
    }))
}

fn introspection(config: &Config) -> Result<Option<IntrospectionOptions>, StartError> {
    let asked = &config.admin.introspection;
    let Some(url) = &asked.url else { return Ok(None) };
    let keys = ["admin.introspection.url", "admin.introspection.ca_file"];
    let credentials = match (&asked.client_id, &asked.client_secret_file) {
        (Some(id), Some(path)) => Some(Arc::new(ClientCredentials::new(
            id,
            &client_secret("admin.introspection.client_secret_file", path)?,
        ))),
        _ => None,
    };
    let ClaimNames { subject, workspace, role } = asked.claims.clone();
    Ok(Some(IntrospectionOptions {
        client: client(url, asked.ca_file.as_deref(), keys)?,
        credentials,
        require: asked.require.clone(),
        claims: AuthClaims { subject, workspace, role },
        cache: asked.cache,
        cache_entries: asked.cache_entries,
        timeout: asked.timeout,
        max_concurrent: asked.max_concurrent,
    }))
}

fn client_secret(key: &str, path: &Path) -> Result<Zeroizing<String>, StartError> {
    read_secret_value(path).map_err(|error| StartError::Identity(format!("{key}: {error}")))
}

fn oidc(config: &Config, inline: InlineSecrets<'_>) -> Result<Option<OidcOptions>, StartError> {
    const CA: &str = "admin.oidc.ca_file";
    let of = &config.admin.oidc;
    let (Some(issuer), Some(client_id), Some(public_url)) = (&of.issuer, &of.client_id, &of.public_url)
    else {
        return Ok(None);
    };
    let secret = match (inline.oidc_client, &of.client_secret_file) {
        (Some(secret), _) => Some(Zeroizing::new(secret.to_owned())),
        (None, Some(path)) => Some(client_secret("admin.oidc.client_secret_file", path)?),
        (None, None) => None,
    };
    let trust = HttpTrust::new(certificate(of.ca_file.as_deref(), CA)?.as_deref());
    let grant = |group: &OidcGroup| {
        let OidcGroup { group, role, workspace } = group.clone();
        Some(GroupGrant { group, role: role.parse().ok()?, workspace })
    };
    Ok(Some(OidcOptions {
        issuer: issuer.clone(),
        trust: trust.map_err(|error| StartError::Identity(format!("{CA}: {error}")))?,
        client_id: client_id.clone(),
        credentials: secret.map(|secret| Arc::new(ClientCredentials::new(client_id, &secret))),
        public_url: public_url.clone(),
        scopes: of.scopes.clone(),
        grants: of.groups.iter().filter_map(grant).collect(),
        claims: OidcClaims { groups: of.claims.groups.clone(), name: of.claims.name.clone() },
        timeout: of.timeout,
        leeway: config.admin.jwt.leeway,
    }))
}

fn sign_in(options: OidcOptions, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Result<Oidc, StartError> {
    Oidc::new(options, clock, metrics).map_err(|error| StartError::Identity(format!("admin.oidc: {error}")))
}

/// The content of the CA file that `key` names, if there is one.
fn certificate(path: Option<&Path>, key: &str) -> Result<Option<Vec<u8>>, StartError> {
    let read = path.map(|path| {
        fileio::read(path).map_err(|error| {
            StartError::Identity(format!("{key}: {} cannot be read: {error}", path.display()))
        })
    });
    read.transpose()
}

fn client(url: &HttpUrl, ca: Option<&Path>, [url_key, ca_key]: [&str; 2]) -> Result<HttpClient, StartError> {
    let ca = certificate(ca, ca_key)?;
    let key = if ca.is_some() { ca_key } else { url_key };
    HttpClient::new(url.clone(), ca.as_deref())
        .map_err(|error| StartError::Identity(format!("{key}: {error}")))
}
