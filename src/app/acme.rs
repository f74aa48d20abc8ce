//! Starts ACME from the config.

use super::{CoreServices, FileError, read_secret, write_private};
use crate::acme::{AcmeHost, AcmeOptions, CertRenewer, Challenge, file_of, folder};
use crate::config::Config;
use crate::server_tls::Certificates;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Builder;
use zeroize::Zeroizing;

/// The certificate files of the configured domains, whether they exist yet or not.
pub(super) fn files(config: &Config) -> Vec<PathBuf> {
    let folder = folder(&config.acme.folder, &config.acme.directory);
    config.acme.domains.iter().map(|domain| file_of(&folder, domain)).collect()
}

/// Orders and renews certificates, if any domain is configured; `certificates` serves the challenges. On its own thread,
/// which may block on files.
pub(super) fn start(config: &Config, core: &CoreServices, certificates: Option<Arc<Certificates>>) {
    let acme = &config.acme;
    let Some(certificates) = certificates.filter(|_| !acme.domains.is_empty()) else { return };
    let options = AcmeOptions {
        domains: acme.domains.clone(),
        directory: acme.directory.clone(),
        ca_file: acme.ca_file.clone(),
        contact: acme.contact.clone(),
        folder: folder(&acme.folder, &acme.directory),
        host: Box::new(AcmeFiles(certificates)),
    };
    let keeper = CertRenewer::new(options, Arc::clone(&core.clock), Arc::clone(&core.metrics));
    let started = Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        std::thread::Builder::new().name("keygate-acme".into()).spawn(move || runtime.block_on(keeper.run()))
    });
    if let Err(error) = started {
        tracing::error!(%error, "cannot order certificates");
    }
}

/// Private files like all others of Keygate, and the existing TLS listeners.
struct AcmeFiles(Arc<Certificates>);

impl AcmeHost for AcmeFiles {
    fn read(&self, path: &Path) -> Result<Option<Zeroizing<String>>, String> {
        match read_secret(path) {
            Ok(text) => Ok(Some(text)),
            Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), String> {
        write_private(path, text).map_err(|error| error.to_string())
    }

    fn show(&self, name: &str, proof: Option<Challenge>) -> Result<(), String> {
        self.0.set_challenge(name, proof.map(|Challenge { certificate, key }| (certificate, key)))
    }
}
