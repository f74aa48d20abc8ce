//! Connects the admin API to an identity provider: keys by URL, and the service that is asked about tokens.

use super::watched::WatchedFiles;
use super::{CoreServices, StartError, read_secret_value};
use crate::admin::{
    AuthClaims, ClientCredentials, Introspection, IntrospectionOptions, JwksOptions, RemoteJwks, read_key_set,
};
use crate::config::{ClaimNames, Config, JwtKeys};
use crate::fileio;
use crate::http_client::HttpClient;
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
}

/// Starts reading keys, and makes the client of the service.
pub(super) fn start(
    config: &Config,
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
            files.add_client_secret(path, credentials);
        }
        let (clock, metrics) = (Arc::clone(&core.clock), Arc::clone(&core.metrics));
        Arc::new(Introspection::new(options, Arc::clone(&core.auth), clock, metrics))
    });
    Ok(IdentityProvider { jwks, introspection })
}

/// Checks that the configured files can be used.
pub(super) fn check(config: &Config) -> Vec<Result<(), StartError>> {
    vec![jwks(config).map(drop), introspection(config).map(drop)]
}

/// Reads the key set of the identity provider once, if one is configured.
pub(super) async fn check_key_set(config: &Config) -> Result<Option<Result<(), String>>, StartError> {
    let Some(options) = jwks(config)? else { return Ok(None) };
    Ok(Some(read_key_set(&options.client).await.map(drop)))
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
        (Some(id), Some(path)) => Some(Arc::new(ClientCredentials::new(id, &client_secret(path)?))),
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

fn client_secret(path: &Path) -> Result<Zeroizing<String>, StartError> {
    let key = "admin.introspection.client_secret_file";
    read_secret_value(path).map_err(|error| StartError::Identity(format!("{key}: {error}")))
}

fn client(url: &HttpUrl, ca: Option<&Path>, [url_key, ca_key]: [&str; 2]) -> Result<HttpClient, StartError> {
    let ca = ca.map(|path| {
        fileio::read(path).map_err(|error| {
            StartError::Identity(format!("{ca_key}: {} cannot be read: {error}", path.display()))
        })
    });
    let ca = ca.transpose()?;
    let key = if ca.is_some() { ca_key } else { url_key };
    HttpClient::new(url.clone(), ca.as_deref())
        .map_err(|error| StartError::Identity(format!("{key}: {error}")))
}
