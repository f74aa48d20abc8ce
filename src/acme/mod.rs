//! Orders certificates by ACME (RFC 8555) and renews them before they expire.
//!
//! One background task: its failures cost requests nothing. Control of a name is proved inside TLS (`tls-alpn-01`, RFC
//! 8737), on the existing listener.
//!
//! Must not know: the proxy, which serves the challenges and reads the certificates from files written here.
//!
//! *Invariant:* a certificate and its key are one file, which is replaced atomically.

mod order;

pub use order::{Challenge, OrderError};

use crate::clock::{Clock, Timestamp};
use crate::metrics::Metrics;
use crate::model::id::fill_random;
use crate::policy::tls::renewal::{Validity, wait_after};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// How often to check for due certificates at least: others may add or remove files.
const LOOK_EVERY: Duration = Duration::from_hours(1);
/// First delay after an authority did not answer, and after it refused: only a few refusals per hour are allowed.
const UNANSWERED: Duration = Duration::from_secs(5);
const REFUSED: Duration = Duration::from_mins(2);
/// How often to check whether another process has finished its order.
const BUSY: Duration = Duration::from_secs(5);
/// Longest time for one order.
const ORDER_WITHIN: Duration = Duration::from_mins(5);

/// Options and dependencies.
pub struct AcmeOptions {
    /// The names; each gets its own certificate.
    pub domains: Vec<String>,
    /// The authority's directory.
    pub directory: String,
    /// CA of the authority's server; none: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// E-mail address for the authority.
    pub contact: Option<String>,
    /// The folder for the account and certificates of this authority: see [`folder`].
    pub folder: PathBuf,
    /// The environment of the orders.
    pub host: Box<dyn AcmeHost>,
}

/// The environment of the orders. Errors are for people.
pub trait AcmeHost: Send + Sync {
    /// Reads a private file; none if there is no such file.
    fn read(&self, path: &Path) -> Result<Option<Zeroizing<String>>, String>;

    /// Writes a private file atomically.
    fn write(&self, path: &Path, text: &str) -> Result<(), String>;

    /// Serves the proof for the name when the authority asks; none: stops serving it.
    fn show(&self, name: &str, proof: Option<Challenge>) -> Result<(), String>;
}

/// Orders and renews certificates.
pub struct CertRenewer {
    options: AcmeOptions,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// One name and its state.
struct ManagedDomain {
    domain: String,
    file: PathBuf,
    /// The random part of its renewal time: drawn again for each certificate.
    spread: u16,
    /// Nothing is done before this time. Not by the calendar, which may be set back.
    rests_until: Instant,
    failures: u32,
}

/// The folder for the authority of `directory`, inside `all`: nothing of one authority is valid for another.
pub fn folder(all: &Path, directory: &str) -> PathBuf {
    let authority = directory.split('/').nth(2).unwrap_or_default();
    all.join(authority.replace(':', "_"))
}

/// The certificate file of a name, inside the folder of its authority.
pub fn file_of(folder: &Path, domain: &str) -> PathBuf {
    folder.join(format!("{domain}.pem"))
}

impl CertRenewer {
    /// A renewer that is not running yet.
    pub fn new(options: AcmeOptions, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { options, clock, metrics }
    }

    /// Orders missing certificates and renews due ones, until the runtime ends.
    pub async fn run(self) {
        let mut names: Vec<ManagedDomain> =
            self.options.domains.iter().map(|domain| self.name(domain)).collect();
        loop {
            for name in &mut names {
                if self.wait(name).is_zero() {
                    self.renew(name).await;
                }
            }
            let next = names.iter().map(|name| self.wait(name)).min().unwrap_or(LOOK_EVERY);
            tokio::time::sleep(next.min(LOOK_EVERY)).await;
        }
    }

    fn name(&self, domain: &str) -> ManagedDomain {
        let file = file_of(&self.options.folder, domain);
        ManagedDomain {
            domain: domain.to_owned(),
            file,
            spread: random(),
            rests_until: Instant::now(),
            failures: 0,
        }
    }

    /// The time until its next step, according to its file, which may have been removed.
    fn wait(&self, name: &ManagedDomain) -> Duration {
        let due = self.due(name).unwrap_or_default();
        due.since(self.now()).max(name.rests_until.duration_since(Instant::now()))
    }

    async fn renew(&self, name: &mut ManagedDomain) {
        let lock = match self.lock() {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                tracing::debug!(name = name.domain, "another process is ordering certificates, skipped");
                name.rests_until = Instant::now() + BUSY;
                return;
            }
            Err(error) => return self.failed(name, &OrderError::Here(error)),
        };
        // Another process may have renewed it.
        if self.due(name).is_some_and(|due| due > self.now()) {
            return;
        }
        let ordered =
            tokio::time::timeout(ORDER_WITHIN, order::certificate(&self.options, &name.domain)).await;
        let kept = match ordered {
            Ok(Ok(pem)) => self.options.host.write(&name.file, &pem).map_err(OrderError::Here),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(OrderError::Unanswered(format!("ACME order timed out after {ORDER_WITHIN:?}"))),
        };
        drop(lock);
        match kept {
            Ok(()) => self.issued(name),
            Err(error) => self.failed(name, &error),
        }
    }

    fn issued(&self, name: &mut ManagedDomain) {
        name.failures = 0;
        name.spread = random();
        let due = self.due(name);
        // If it is due again at once (unreadable, or this machine's clock is ahead), it is ordered again later: authorities
        // limit the number of orders.
        let rest = due.map(|due| due.since(self.now())).filter(|rest| !rest.is_zero());
        name.rests_until = Instant::now() + rest.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        self.metrics.acme_orders.with_label_values(&["issued"]).inc();
        tracing::info!(
            name = name.domain,
            renewal_in_hours = due.map(|due| due.since(self.now()).as_secs() / 3_600),
            "certificate issued"
        );
    }

    fn failed(&self, name: &mut ManagedDomain, error: &OrderError) {
        name.failures = name.failures.saturating_add(1);
        let first = if matches!(error, OrderError::Refused(_)) { REFUSED } else { UNANSWERED };
        let wait = wait_after(name.failures, first, random());
        name.rests_until = Instant::now() + wait;
        self.metrics.acme_orders.with_label_values(&["failed"]).inc();
        let (domain, seconds) = (&*name.domain, wait.as_secs());
        // The existing certificate is served until it expires.
        if validity(&name.file).is_none_or(|validity| validity.is_ending(self.now())) {
            tracing::error!(name = domain, %error, again_in_seconds = seconds, "cannot obtain certificate, clients of this name are refused until it succeeds");
        } else {
            tracing::warn!(name = domain, %error, again_in_seconds = seconds, "cannot renew certificate, the current one stays in use");
        }
    }

    /// When its certificate is to be renewed; none: there is no usable certificate.
    fn due(&self, name: &ManagedDomain) -> Option<Timestamp> {
        let validity = validity(&name.file)?;
        Some(validity.renew_at(name.spread)).filter(|_| validity.until > self.now())
    }

    /// Held during an order, so that several processes with one folder do not order the same.
    fn lock(&self) -> Result<Option<File>, String> {
        let path = self.options.folder.join("lock");
        if !path.exists() {
            self.options.host.write(&path, "")?;
        }
        let file = File::open(&path).map_err(|error| error.to_string())?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now().wall
    }
}

/// The validity period of the first certificate in `file`; none if it cannot be read.
fn validity(file: &Path) -> Option<Validity> {
    let first = CertificateDer::pem_slice_iter(&crate::fileio::read(file).ok()?).next()?.ok()?;
    let (_, certificate) = X509Certificate::from_der(&first).ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_secs(time.timestamp());
    let validity = certificate.validity();
    Some(Validity { from: at(validity.not_before), until: at(validity.not_after) })
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    fill_random(&mut bytes);
    u16::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    struct NoHands;

    impl AcmeHost for NoHands {
        fn read(&self, _: &Path) -> Result<Option<Zeroizing<String>>, String> {
            Err("nothing is ordered here".to_owned())
        }

        fn write(&self, _: &Path, _: &str) -> Result<(), String> {
            Err("nothing is ordered here".to_owned())
        }

        fn show(&self, _: &str, _: Option<Challenge>) -> Result<(), String> {
            Ok(())
        }
    }

    const DAY: Duration = Duration::from_hours(24);

    /// Noon of 2031-01-01, plus so many days.
    fn day(n: u32) -> Timestamp {
        Timestamp::from_secs(1_925_035_200).plus(DAY * n)
    }

    /// A renewer of one name with a certificate from 2031-01-01 until 2031-04-01.
    fn stand(now: Timestamp) -> (TempDir, Arc<ManualClock>, CertRenewer, ManagedDomain) {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Arc::new(ManualClock::at(now)));
        let options = AcmeOptions {
            domains: vec!["a.test".to_owned()],
            directory: String::new(),
            ca_file: None,
            contact: None,
            folder: folder.path().to_owned(),
            host: Box::new(NoHands),
        };
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let renewer = CertRenewer::new(options, Arc::<ManualClock>::clone(&clock), metrics);
        let name = renewer.name("a.test");
        let mut params = CertificateParams::new(["a.test".to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (date_time_ymd(2031, 1, 1), date_time_ymd(2031, 4, 1));
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("signed");
        std::fs::write(&name.file, certificate.pem()).expect("written");
        (folder, clock, renewer, name)
    }

    #[tokio::test(start_paused = true)]
    async fn lost_or_broken_certificates_are_ordered_again_at_the_next_check() {
        let (_folder, _clock, renewer, mut name) = stand(day(0));
        renewer.issued(&mut name);
        assert!(renewer.wait(&name) > DAY * 58, "{:?}", renewer.wait(&name));
        let kept = std::fs::read(&name.file).expect("read");
        tokio::time::advance(LOOK_EVERY).await;
        std::fs::write(&name.file, "nonsense").expect("written");
        assert_eq!(renewer.wait(&name), Duration::ZERO);
        std::fs::remove_file(&name.file).expect("removed");
        assert_eq!(renewer.wait(&name), Duration::ZERO);
        std::fs::write(&name.file, kept).expect("written");
        assert!(renewer.wait(&name) > DAY * 58, "somebody has put it back");
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_whose_certificate_is_due_at_once_is_not_repeated_before_the_next_look() {
        // The clock of this machine is ahead of the authority's.
        let (_folder, clock, renewer, mut name) = stand(day(70));
        assert_eq!(renewer.wait(&name), Duration::ZERO);
        renewer.issued(&mut name);
        assert_eq!(renewer.wait(&name), LOOK_EVERY);
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(renewer.wait(&name), Duration::ZERO);
        // After it is set right, nothing that is due by then is delayed.
        renewer.failed(&mut name, &OrderError::Here("no space".to_owned()));
        clock.set_wall(day(0));
        assert!(renewer.wait(&name) > DAY * 58);
        clock.set_wall(day(64));
        assert!(renewer.wait(&name) < UNANSWERED * 2);
    }
}
