//! Certificates ordered from an authority (ACME, RFC 8555) and renewed before they end.
//!
//! One task, beside everything else: what it does not get done costs no request anything. That a name is ours it proves
//! inside TLS (`tls-alpn-01`, RFC 8737), on the listener that is there anyway. Must not know: the proxy, which shows what
//! it is told to, and reads certificates from the files that this writes.
//!
//! *Invariant:* a certificate and its key are one file, written whole or not at all.

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

/// How often it is looked whether something is due, at least: files may be put there or taken away by others.
const LOOK_EVERY: Duration = Duration::from_hours(1);
/// The first wait after an authority did not answer, and after it said no: of those only a few an hour are allowed.
const UNANSWERED: Duration = Duration::from_secs(5);
const REFUSED: Duration = Duration::from_mins(2);
/// How often it is looked whether another process that orders is done.
const BUSY: Duration = Duration::from_secs(5);
/// Longest time for one order.
const ORDER_WITHIN: Duration = Duration::from_mins(5);

/// What is ordered, and what surrounds it.
pub struct AcmeOptions {
    /// The names that get a certificate each.
    pub domains: Vec<String>,
    /// The authority's directory.
    pub directory: String,
    /// Who vouches for the authority's server; none: the roots of this machine.
    pub ca_file: Option<PathBuf>,
    /// Whom it may write to.
    pub contact: Option<String>,
    /// Where the account and the certificates of this authority are: see [`folder`].
    pub folder: PathBuf,
    /// What it is done with.
    pub host: Box<dyn AcmeHost>,
}

/// What surrounds the orders. Errors are for people.
pub trait AcmeHost: Send + Sync {
    /// Reads a private file; none if there is no such file.
    fn read(&self, path: &Path) -> Result<Option<Zeroizing<String>>, String>;

    /// Writes one, whole or not at all.
    fn write(&self, path: &Path, text: &str) -> Result<(), String>;

    /// Shows the authority, when it asks for the name, what proves that it is ours; none: nothing any more.
    fn show(&self, name: &str, proof: Option<Challenge>) -> Result<(), String>;
}

/// Orders and renews.
pub struct CertRenewer {
    options: AcmeOptions,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// One name and what came of it so far.
struct ManagedDomain {
    domain: String,
    file: PathBuf,
    /// Where in the time for it the certificate is renewed: drawn anew for each.
    spread: u16,
    /// Before that nothing is done for it. Not by the calendar, which may be set back.
    rests_until: Instant,
    failures: u32,
}

/// Where what belongs to the authority of `directory` is, inside `all`: of another one nothing of it can be used.
pub fn folder(all: &Path, directory: &str) -> PathBuf {
    let authority = directory.split('/').nth(2).unwrap_or_default();
    all.join(authority.replace(':', "_"))
}

/// The file of a name's certificate, inside the folder of its authority.
pub fn file_of(folder: &Path, domain: &str) -> PathBuf {
    folder.join(format!("{domain}.pem"))
}

impl CertRenewer {
    /// One that has not begun.
    pub fn new(options: AcmeOptions, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { options, clock, metrics }
    }

    /// Orders what is missing and renews what is due, until the runtime ends.
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

    /// How long until something is to be done for it, by its file as that is now: it may have been lost.
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
        // It may be another process that has renewed it.
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
        // What is due again at once (it cannot be read, or this machine's calendar is ahead) is ordered again, but not at
        // once: authorities allow only so many orders.
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
        // Until it ends, what is there goes on being shown.
        if validity(&name.file).is_none_or(|validity| validity.is_ending(self.now())) {
            tracing::error!(name = domain, %error, again_in_seconds = seconds, "cannot obtain certificate, clients of this name are refused until it succeeds");
        } else {
            tracing::warn!(name = domain, %error, again_in_seconds = seconds, "cannot renew certificate, the current one stays in use");
        }
    }

    /// When its certificate is to be renewed; none: there is none that can be used.
    fn due(&self, name: &ManagedDomain) -> Option<Timestamp> {
        let validity = validity(&name.file)?;
        Some(validity.renew_at(name.spread)).filter(|_| validity.until > self.now())
    }

    /// Held while one orders, so that several on one folder do not order the same.
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

/// From when until when the first certificate in `file` holds; none where there is none that can be read.
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

    /// Noon of 2031-01-01, and so many days later.
    fn day(n: u32) -> Timestamp {
        Timestamp::from_secs(1_925_035_200).plus(DAY * n)
    }

    /// A renewer of one name, whose certificate is written to its file, from 2031-01-01 until 2031-04-01.
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
    async fn what_is_lost_or_broken_is_ordered_again_at_the_next_look() {
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
        // The calendar of this machine is ahead of the authority's.
        let (_folder, clock, renewer, mut name) = stand(day(70));
        assert_eq!(renewer.wait(&name), Duration::ZERO);
        renewer.issued(&mut name);
        assert_eq!(renewer.wait(&name), LOOK_EVERY);
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(renewer.wait(&name), Duration::ZERO);
        // Set right, it holds up nothing that is due by then.
        renewer.failed(&mut name, &OrderError::Here("no space".to_owned()));
        clock.set_wall(day(0));
        assert!(renewer.wait(&name) > DAY * 58);
        clock.set_wall(day(64));
        assert!(renewer.wait(&name) < UNANSWERED * 2);
    }
}
