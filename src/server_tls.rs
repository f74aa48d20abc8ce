//! TLS with clients, on the proxy's listeners and on the admin listener: certificates from files, selected by the server name
//! of the client, and reloaded when the files change.
//!
//! Must not know: who connects, what is said inside TLS, or who writes the files. If files are unusable, the previous certificate
//! stays in use and they are read again later. For the ACME challenge TLS-ALPN-01 (RFC 8737), a certificate prepared
//! elsewhere is presented.

use crate::fileio;
use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject as _};
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
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// Interval at which the files are checked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Names of the two files in a folder, as certbot and Kubernetes write them.
const NAMES: [(&str, &str); 2] = [("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key")];

/// The ALPN protocol of an ACME authority that validates a name.
const ACME: &[u8] = b"acme-tls/1";

/// The certificate for a challenge, and its key.
pub type ChallengeCertificate = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .path.display())]
pub struct TlsError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// Settings of TLS.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Files with a chain and its key, or folders with one file for each. The first is for clients that send no
    /// server name.
    pub certificates: Vec<PathBuf>,
    /// The same, for files that are ordered by ACME and written by another component. Missing or unusable ones are
    /// skipped.
    pub ordered: Vec<PathBuf>,
    /// The authorities that sign clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must present a certificate.
    pub client_must: bool,
    /// Whether clients may choose HTTP/2.
    pub http2: bool,
}

/// The certificates in use.
pub struct Certificates {
    settings: TlsSettings,
    /// The source of each certificate, in the order of the settings.
    sources: Mutex<Vec<CertificateSource>>,
    loaded: ArcSwap<Vec<Arc<CertifiedKey>>>,
    /// Certificates for ACME challenges, by name.
    challenges: Mutex<HashMap<Box<str>, Arc<CertifiedKey>>>,
    metrics: Arc<Metrics>,
}

/// The TLS configuration of listeners: the certificates in use, and the authorities for clients' certificates.
pub struct TlsContext {
    certificates: Arc<Certificates>,
    /// Replaced when the authorities change, which also drops the sessions for resumption.
    config: ArcSwap<ServerConfig>,
    /// The content of the authorities' file when it was read, and the last logged reason why it cannot be read now.
    client_ca: Mutex<(Vec<u8>, Option<String>)>,
}

/// Modification times of the two files of a certificate.
type FileTimes = [Option<SystemTime>; 2];

/// The source of one certificate, and what was read from it.
struct CertificateSource {
    path: PathBuf,
    /// Whether another component writes the files. Until then there is no certificate.
    is_ordered: bool,
    /// The certificate in use, and the modification times of its files.
    read: Option<(FileTimes, Arc<CertifiedKey>)>,
    /// The last logged reason why it cannot be read now.
    told: Option<String>,
}

// === impl Certificates ===

impl Certificates {
    /// Reads all certificates.
    pub fn load(settings: TlsSettings, metrics: Arc<Metrics>) -> Result<Arc<Self>, TlsError> {
        let ours = settings.certificates.iter().map(|path| CertificateSource::new(path, false));
        let mut sources: Vec<_> =
            ours.chain(settings.ordered.iter().map(|p| CertificateSource::new(p, true))).collect();
        for source in &mut sources {
            match source.look() {
                Err(error) if !source.is_ordered => return Err(error),
                Err(error) => source.tell(&error),
                Ok(_) => {}
            }
        }
        let certificates = Self {
            settings,
            sources: Mutex::default(),
            loaded: ArcSwap::default(),
            challenges: Mutex::default(),
            metrics,
        };
        certificates.put_in_force(&sources);
        *certificates.sources() = sources;
        Ok(Arc::new(certificates))
    }

    /// Sets the certificate and key for an ACME challenge for `name`, or removes it.
    pub fn set_challenge(&self, name: &str, proof: Option<ChallengeCertificate>) -> Result<(), String> {
        let proof = match proof {
            None => None,
            Some((certificate, key)) => {
                // Not validated: it has an extension that only ACME authorities understand.
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
        // Entries are valid even if a thread panicked while it held the lock.
        self.challenges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLS configuration: TLS 1.2 and 1.3, HTTP/2, if allowed, preferred to HTTP/1.1. Clients' certificates are accepted from
    /// the authorities in `client_ca`.
    fn server_config(self: &Arc<Self>, client_ca: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let fail = |path: &Path, why: String| TlsError { path: path.to_owned(), why };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(Path::new("TLS"), error.to_string()))?;
        let builder = match &self.settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in chain_in(path, client_ca)? {
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
        if self.settings.http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        if !self.settings.ordered.is_empty() {
            config.alpn_protocols.push(ACME.to_vec());
        }
        Ok(Arc::new(config))
    }

    /// Reads what has changed, or could not be read the last time. Returns the first error of a configured certificate.
    /// A certificate that cannot be read is not replaced.
    pub fn look(&self) -> Result<(), TlsError> {
        let mut sources = self.sources();
        let (mut has_changed, mut looked) = (false, Ok(()));
        for source in sources.iter_mut() {
            match source.look() {
                Ok(changed) => has_changed |= changed,
                Err(error) => {
                    source.tell(&error);
                    if !source.is_ordered && looked.is_ok() {
                        looked = Err(error);
                    }
                }
            }
        }
        if has_changed {
            self.put_in_force(&sources);
            tracing::info!("certificates reloaded");
        }
        looked
    }

    fn put_in_force(&self, sources: &[CertificateSource]) {
        let read = || sources.iter().filter_map(|s| Some((&s.path, &s.read.as_ref()?.1)));
        self.loaded.store(Arc::new(read().map(|(_, certified)| Arc::clone(certified)).collect()));
        // The metric shows when the certificates in use expire.
        for (path, certified) in read() {
            if let Some(until) = end_of(certified) {
                let series = self.metrics.certificate_expiry.with_label_values(&[&*path.to_string_lossy()]);
                series.set(until);
            }
        }
    }

    /// The content of the file with the clients' authorities; empty if there is none.
    fn read_client_ca(&self) -> Result<Vec<u8>, TlsError> {
        self.settings.client_ca.as_deref().map_or(Ok(Vec::new()), read_file)
    }

    fn sources(&self) -> MutexGuard<'_, Vec<CertificateSource>> {
        // Sources are valid even if a thread panicked while it held the lock.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl TlsContext ===

impl TlsContext {
    /// Reads all files.
    pub fn load(settings: TlsSettings, metrics: Arc<Metrics>) -> Result<Arc<Self>, TlsError> {
        let certificates = Certificates::load(settings, metrics)?;
        let client_ca = certificates.read_client_ca()?;
        let config = ArcSwap::new(certificates.server_config(&client_ca)?);
        Ok(Arc::new(Self { certificates, config, client_ca: Mutex::new((client_ca, None)) }))
    }

    /// The certificates in use.
    pub const fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// The acceptor for the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Checks the files every few seconds until the runtime ends. Runs on a blocking thread, because they may be on a
    /// mount that hangs.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let context = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                // Errors have been logged.
                context.certificates.look().ok();
                context.look_at_client_ca().ok();
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "cannot check certificate files for changes");
            }
        }
    }

    /// Reads the file with the clients' authorities if it has changed or could not be read the last time. If it is
    /// unusable, the previous authorities stay in use.
    pub fn look_at_client_ca(&self) -> Result<(), TlsError> {
        // The pair is valid even if a thread panicked while it held the lock.
        let mut known = self.client_ca.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = self.certificates.read_client_ca().and_then(|found| {
            if found != known.0 {
                self.config.store(self.certificates.server_config(&found)?);
                known.0 = found;
                tracing::info!("proxy.client_ca_file reloaded");
            }
            Ok(())
        });
        let why = looked.as_ref().err().map(ToString::to_string);
        if let Some(why) = why.as_ref().filter(|why| known.1.as_ref() != Some(*why)) {
            tracing::error!(why, "cannot reload proxy.client_ca_file, the previous one stays in use");
        }
        known.1 = why;
        looked
    }
}

// === impl CertificateSource ===

impl CertificateSource {
    fn new(path: &Path, is_ordered: bool) -> Self {
        Self { path: path.to_owned(), is_ordered, read: None, told: None }
    }

    /// Reads the files unless they are unchanged since the last read. Returns whether there is a new certificate.
    fn look(&mut self) -> Result<bool, TlsError> {
        // Before the files are read: a change during the read is found the next time.
        let stamps = stamps(&self.path);
        let is_known = self.read.as_ref().is_some_and(|(seen, _)| *seen == stamps);
        let is_missing = self.is_ordered && !self.path.exists();
        if !is_known && !is_missing {
            self.read = Some((stamps, Arc::new(read_one(&self.path)?)));
        }
        self.told = None;
        Ok(!is_known && !is_missing)
    }

    /// Logs why the files cannot be read, once per reason.
    fn tell(&mut self, error: &TlsError) {
        let why = error.to_string();
        if self.told.as_ref() == Some(&why) {
            return;
        }
        if self.read.is_some() {
            // Also if only one file of the pair has been written yet, so that they do not match.
            tracing::error!(why, "cannot reload certificate, the previous one stays in use");
        } else {
            // The component that ordered it notices as well, and orders another.
            tracing::error!(why, "cannot load ordered certificate, skipped");
        }
        self.told = Some(why);
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

/// When a certificate expires, in seconds since 1970.
fn end_of(certified: &CertifiedKey) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certified.end_entity_cert().ok()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Whether the connection was an ACME challenge, which carries no requests.
pub fn was_a_challenge(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ACME)
}

fn read_one(path: &Path) -> Result<CertifiedKey, TlsError> {
    let (chain_file, key_file) = files_of(path);
    let fail = |file: &Path, why: String| TlsError { path: file.to_owned(), why };
    let key = Zeroizing::new(read_file(&key_file)?);
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| match error {
        pem::Error::NoItemsFound => fail(&key_file, "holds no private key".into()),
        error => fail(&key_file, error.to_string()),
    })?;
    CertifiedKey::from_der(
        chain_in(&chain_file, &read_file(&chain_file)?)?,
        key,
        &rustls::crypto::ring::default_provider(),
    )
    .map_err(|error| fail(&chain_file, error.to_string()))
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    fileio::read(path).map_err(|error| TlsError { path: path.to_owned(), why: error.to_string() })
}

/// The certificates in `pem`, the content of the file at `path`.
fn chain_in(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |why: String| TlsError { path: path.to_owned(), why };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| fail(error.to_string()))?;
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

fn stamps(path: &Path) -> FileTimes {
    let (chain, key) = files_of(path);
    [chain, key].map(|file| std::fs::metadata(file).and_then(|meta| meta.modified()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::fs::File;

    /// A chain and its key in one file; the certificate expires in `year`.
    fn certificate(year: i32) -> String {
        let (mut params, key) = (CertificateParams::new(["a.test".to_owned()]), KeyPair::generate());
        let key = key.as_ref().expect("a key");
        let params = params.as_mut().expect("a name");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(key).expect("signed").pem() + &key.serialize_pem()
    }

    /// Writes a file with this modification time.
    fn write(path: &Path, text: &str, second: u64) {
        std::fs::write(path, text).expect("written");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        File::options().append(true).open(path).and_then(|file| file.set_modified(at)).expect("dated");
    }

    /// The years in which the certificates in use expire, and those shown by the metric.
    fn ends(certificates: &Certificates, paths: &[PathBuf]) -> [Vec<i64>; 2] {
        let year = |seconds: i64| 1970 + seconds / 31_556_952;
        let in_force = certificates.loaded.load();
        let told = paths.iter().map(|path| {
            let metric = &certificates.metrics.certificate_expiry;
            metric.with_label_values(&[&*path.to_string_lossy()]).get()
        });
        let in_force = in_force.iter().filter_map(|certified| end_of(certified));
        [in_force.map(|s| year(s + 86_400)).collect(), told.map(|s| year(s + 86_400)).collect()]
    }

    #[test]
    fn each_certificate_is_read_again_until_it_can_be_and_the_metric_tells_of_those_in_force() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = ["a.pem", "b.pem", "c.pem"].map(|name| folder.path().join(name));
        write(&paths[0], &certificate(2031), 1);
        write(&paths[1], &certificate(2032), 1);
        let settings = TlsSettings {
            certificates: paths[..2].to_vec(),
            ordered: paths[2..].to_vec(),
            client_ca: None,
            client_must: false,
            http2: true,
        };
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let certificates = Certificates::load(settings, metrics).expect("loaded");
        let ends = |n: usize| ends(&certificates, &paths[..n]);
        assert_eq!(ends(2), [[2031, 2032], [2031, 2032]]);

        // An unreadable file does not prevent the reload of others.
        write(&paths[0], "nonsense", 2);
        write(&paths[1], &certificate(2042), 2);
        write(&paths[2], &certificate(2033), 2);
        certificates.look().ok();
        assert_eq!(ends(3), [[2031, 2042, 2033], [2031, 2042, 2033]]);

        // The cause is gone, although the modification time is the same as before.
        write(&paths[0], &certificate(2041), 2);
        certificates.look().ok();
        assert_eq!(ends(3), [[2041, 2042, 2033], [2041, 2042, 2033]]);

        // If files are missing or unusable, the previous certificate stays in use.
        std::fs::remove_file(&paths[1]).expect("removed");
        std::fs::remove_file(&paths[2]).expect("removed");
        certificates.look().ok();
        assert_eq!(ends(3), [[2041, 2042, 2033], [2041, 2042, 2033]]);
        let before = certificates.loaded.load_full();
        certificates.look().ok();
        assert!(Arc::ptr_eq(&before, &certificates.loaded.load()), "nothing is read without reason");
    }

    #[test]
    fn why_a_certificate_cannot_be_read_is_told_once_for_each_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.pem");
        let mut source = CertificateSource::new(&path, false);
        let mut told = Vec::new();
        for (second, text) in ["nonsense", "nonsense", "", &certificate(2031), "nonsense"].iter().enumerate()
        {
            write(&path, text, second as u64);
            let before = source.told.clone();
            if let Err(error) = source.look() {
                source.tell(&error);
            }
            told.push(source.told.is_some() && source.told != before);
        }
        assert_eq!(told, [true, false, false, false, true]);
    }
}
