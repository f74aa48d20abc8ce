//! TLS of the listeners, from the config: the proxy's and the admin listener's, by the same rules.

use super::watched::WatchedFiles;
use super::{StartError, acme};
use crate::config::{ClientCertificates, Config};
use crate::metrics::Metrics;
use crate::server_tls::{TlsContext, TlsSettings};
use std::sync::Arc;

/// TLS of the proxy's listeners; none: no listener has it.
pub(super) fn of_proxy(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<TlsContext>>, StartError> {
    let proxy = &config.proxy;
    if proxy.listen_tls.is_empty() {
        return Ok(None);
    }
    let settings = TlsSettings {
        certificates: proxy.certificates.clone(),
        ordered: acme::files(config),
        client_ca: proxy.client_ca_file.clone(),
        client_must: proxy.client_certificates == ClientCertificates::Required,
        http2: true,
    };
    load("proxy", settings, metrics).map(Some)
}

/// TLS of the admin listener; none: it speaks plain HTTP.
pub(super) fn of_admin(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<TlsContext>>, StartError> {
    if !config.admin.has_tls() {
        return Ok(None);
    }
    let settings = TlsSettings {
        certificates: config.admin.certificates.clone(),
        ordered: Vec::new(),
        client_ca: None,
        client_must: false,
        http2: false,
    };
    load("admin", settings, metrics).map(Some)
}

/// Lets the certificates of `key` be read again at each reload.
pub(super) fn watch(key: &'static str, tls: &TlsContext, files: &WatchedFiles) {
    let certificates = Arc::clone(tls.certificates());
    files.add(key, move || certificates.look().map_err(|error| error.to_string()));
}

/// Checks that all files can be used.
pub(super) fn check(config: &Config) -> Vec<Result<(), StartError>> {
    match Metrics::new().map(Arc::new) {
        Ok(metrics) => vec![of_proxy(config, &metrics).map(drop), of_admin(config, &metrics).map(drop)],
        Err(error) => vec![Err(StartError::System(error.to_string()))],
    }
}

fn load(
    section: &'static str,
    settings: TlsSettings,
    metrics: &Arc<Metrics>,
) -> Result<Arc<TlsContext>, StartError> {
    let certificates = settings.certificates.clone();
    TlsContext::load(settings, Arc::clone(metrics)).map_err(|error| {
        // Of a folder, the error names the file in it.
        let key = match certificates.iter().position(|path| error.path.starts_with(path)) {
            Some(n) => format!("{section}.certificates[{n}]"),
            None => format!("{section}.client_ca_file"),
        };
        StartError::Tls { key, error }
    })
}
