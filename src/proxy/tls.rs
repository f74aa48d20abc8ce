//! TLS with clients: certificates from files, several by the name a client asks for, read again when the files change.
//!
//! Must not know: what is spoken inside, or who writes the files. Files that cannot be used leave the certificates as they
//! were. An authority that asks whether a name is ours (RFC 8737) is shown what somebody else has prepared.

use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How a folder may call the two files, as certbot and Kubernetes do.
const NAMES: [(&str, &str); 2] = [("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key")];

/// What an authority offers that only wants to see that a name is ours.
const ACME: &[u8] = b"acme-tls/1";

/// What it is shown: a certificate and its key.
pub type Proof = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .path.display())]
pub struct TlsError {
    /// Which file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// What TLS is served with.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Files with a chain and its key, or folders with one file for each; the first is for clients that ask for no name.
    pub certificates: Vec<PathBuf>,
    /// The same, of files that somebody else writes: those that are not there, or of no use, are passed over.
    pub ordered: Vec<PathBuf>,
    /// Whose clients' certificates are accepted.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must have one.
    pub client_must: bool,
}

/// The certificates in force.
pub struct Certificates {
    settings: TlsSettings,
    loaded: ArcSwap<Vec<Arc<CertifiedKey>>>,
    /// By name, what an authority is shown that asks for it.
    challenges: Mutex<HashMap<Box<str>, Arc<CertifiedKey>>>,
    metrics: Arc<Metrics>,
}

// === impl Certificates ===

impl Certificates {
    /// Reads them all.
    pub fn load(settings: TlsSettings, metrics: Arc<Metrics>) -> Result<Arc<Self>, TlsError> {
        let loaded = ArcSwap::from_pointee(read_all(&settings, &metrics)?);
        Ok(Arc::new(Self { settings, loaded, challenges: Mutex::default(), metrics }))
    }

    /// What an authority is shown that asks for `name`: a certificate and its key, or nothing any more.
    pub fn show(&self, name: &str, proof: Option<Proof>) -> Result<(), String> {
        let proof = match proof {
            None => None,
            Some((certificate, key)) => {
                // Not looked at further: it has an extension that nobody but authorities understands.
                let key = rustls::crypto::ring::sign::any_supported_type(&key);
                let key = key.map_err(|error| error.to_string())?;
                Some(Arc::new(CertifiedKey::new(vec![certificate], key)))
            }
        };
        let mut challenges = self.challenges();
        match proof {
            None => challenges.remove(name),
            Some(proof) => challenges.insert(name.into(), proof),
        };
        Ok(())
    }

    fn challenges(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<CertifiedKey>>> {
        // A map of whole entries, whatever happened to the thread that held it.
        self.challenges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How TLS is spoken: 1.2 and 1.3, HTTP/2 before HTTP/1.1.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let fail = |path: &Path, why: String| TlsError { path: path.to_owned(), why };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(Path::new("TLS"), error.to_string()))?;
        let builder = match &self.settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in chain(path)? {
                    roots.add(certificate).map_err(|error| fail(path, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier =
                    if self.settings.client_must { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(
                    verifier.build().map_err(|error| fail(path, error.to_string()))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if !self.settings.ordered.is_empty() {
            config.alpn_protocols.push(ACME.to_vec());
        }
        Ok(Arc::new(config))
    }

    /// Reads the files again whenever one of them has changed, until the runtime ends.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = stamps(&self.settings);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = stamps(&self.settings);
            if now == seen {
                continue;
            }
            // A pair of which only one half has been written yet does not fit; the other half changes the stamps again.
            match read_all(&self.settings, &self.metrics) {
                Ok(loaded) => {
                    self.loaded.store(Arc::new(loaded));
                    tracing::info!("certificates were read again");
                }
                Err(error) => tracing::error!(%error, "the certificates stay as they were"),
            }
            seen = now;
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ACME)) {
            return self.challenges().get(hello.server_name()?).cloned();
        }
        let loaded = self.loaded.load();
        let wanted = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let fits = |key: &&Arc<CertifiedKey>| wanted.as_ref().is_some_and(|name| is_for(key, name));
        loaded.iter().find(fits).or_else(|| loaded.first()).cloned()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.settings.certificates).finish_non_exhaustive()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    key.end_entity_cert()
        .ok()
        .and_then(|certificate| webpki::EndEntityCert::try_from(certificate).ok())
        .is_some_and(|certificate| certificate.verify_is_valid_for_subject_name(name).is_ok())
}

fn read_all(settings: &TlsSettings, metrics: &Metrics) -> Result<Vec<Arc<CertifiedKey>>, TlsError> {
    let mut all = Vec::with_capacity(settings.certificates.len() + settings.ordered.len());
    for path in &settings.certificates {
        all.push(Arc::new(read_one(path)?));
        show_expiry(path, &all, metrics);
    }
    for path in settings.ordered.iter().filter(|path| path.exists()) {
        match read_one(path) {
            Ok(certified) => {
                all.push(Arc::new(certified));
                show_expiry(path, &all, metrics);
            }
            // Whoever ordered it finds that out as well, and orders another.
            Err(error) => tracing::error!(%error, "an ordered certificate is passed over"),
        }
    }
    Ok(all)
}

/// Says when the certificate that was read last ends.
fn show_expiry(path: &Path, all: &[Arc<CertifiedKey>], metrics: &Metrics) {
    let first = all.last().and_then(|certified| certified.end_entity_cert().ok());
    if let Some((_, parsed)) = first.and_then(|der| X509Certificate::from_der(der).ok()) {
        let until = parsed.validity().not_after.timestamp();
        metrics.certificate_expiry.with_label_values(&[&*path.to_string_lossy()]).set(until);
    }
}

/// Whether nothing more comes over such a connection: an authority has seen what it asked for.
pub(super) fn was_a_challenge(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ACME)
}

fn read_one(path: &Path) -> Result<CertifiedKey, TlsError> {
    let (chain_file, key_file) = files_of(path);
    let fail = |file: &Path, why: String| TlsError { path: file.to_owned(), why };
    let key = PrivateKeyDer::from_pem_file(&key_file).map_err(|error| fail(&key_file, error.to_string()))?;
    CertifiedKey::from_der(chain(&chain_file)?, key, &rustls::crypto::ring::default_provider())
        .map_err(|error| fail(&chain_file, error.to_string()))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |why: String| TlsError { path: path.to_owned(), why };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| fail(error.to_string()))?;
    if chain.is_empty() { Err(fail("holds no certificate".into())) } else { Ok(chain) }
}

/// The files of the chain and of the key.
fn files_of(path: &Path) -> (PathBuf, PathBuf) {
    let in_folder = NAMES.map(|(chain, key)| (path.join(chain), path.join(key)));
    in_folder
        .into_iter()
        .find(|(chain, _)| chain.is_file())
        .unwrap_or_else(|| (path.to_owned(), path.to_owned()))
}

fn stamps(settings: &TlsSettings) -> Vec<Option<SystemTime>> {
    let paths = settings.certificates.iter().chain(&settings.ordered);
    let stamp = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    paths.map(|path| files_of(path)).flat_map(|(chain, key)| [stamp(&chain), stamp(&key)]).collect()
}
