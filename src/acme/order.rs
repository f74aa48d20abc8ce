//! One order: from a name to a certificate and its key.

use super::AcmeOptions;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder,
    Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long an authority may take to validate, and to sign.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_mins(1));

/// Why an order failed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The authority is unreachable, or has an internal failure.
    #[error("unexpected answer from the ACME server: {0}")]
    Unanswered(String),
    /// It refused the order.
    #[error("ACME server refused the order: {0}")]
    Refused(String),
    /// An error on this machine.
    #[error("{0}")]
    Here(String),
}

/// The proof for a name: a certificate for clients that ask for the name with `acme-tls/1`, and its key.
pub struct Challenge {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// Stops serving the proof, however the order ends.
struct ChallengeGuard<'o> {
    options: &'o AcmeOptions,
    domain: &'o str,
}

impl Drop for ChallengeGuard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.options.host.show(self.domain, None) {
            tracing::debug!(error, "cannot remove ACME challenge certificate");
        }
    }
}

/// A certificate chain for `domain`, and its key, in PEM.
pub(super) async fn certificate(
    options: &AcmeOptions,
    domain: &str,
) -> Result<Zeroizing<String>, OrderError> {
    let account = account(options).await?;
    let identifiers = [Identifier::Dns(domain.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let shown = ChallengeGuard { options, domain };
    prove(&mut order, &shown).await?;
    if order.poll_ready(&PATIENCE).await? != OrderStatus::Ready {
        return Err(refusal(&mut order).await);
    }
    drop(shown);
    let key = Zeroizing::new(order.finalize().await?);
    let chain = order.poll_certificate(&PATIENCE).await?;
    Ok(Zeroizing::new(chain + "\n" + &key))
}

/// Serves the proof, and tells the authority.
async fn prove(order: &mut Order, shown: &ChallengeGuard<'_>) -> Result<(), OrderError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
        let mut challenge =
            challenge.ok_or_else(|| OrderError::Refused("it offers no tls-alpn-01 challenge".to_owned()))?;
        let proof = proof(shown.domain, challenge.key_authorization().digest().as_ref());
        let proof = proof.map_err(|error| OrderError::Here(error.to_string()))?;
        shown.options.host.show(shown.domain, Some(proof)).map_err(OrderError::Here)?;
        challenge.set_ready().await?;
    }
    Ok(())
}

fn proof(domain: &str, digest: &[u8]) -> Result<Challenge, rcgen::Error> {
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.custom_extensions.push(CustomExtension::new_acme_identifier(digest));
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Challenge { certificate: certificate.der().clone(), key })
}

/// The reason for the authority's refusal.
async fn refusal(order: &mut Order) -> OrderError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            break;
        }
        if let Some(error) = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return OrderError::Refused(error.to_string());
        }
    }
    OrderError::Refused("the order did not become ready".to_owned())
}

/// The account of this gateway, created if there is none.
async fn account(options: &AcmeOptions) -> Result<Account, OrderError> {
    let file = options.folder.join("account.json");
    let builder = match &options.ca_file {
        None => Account::builder(),
        Some(path) => {
            // Checked first, because it could be a FIFO.
            crate::fileio::open(path)
                .map_err(|error| OrderError::Here(format!("{}: {error}", path.display())))?;
            Account::builder_with_root(path)
        }
    };
    let builder = builder.map_err(|error| OrderError::Here(error.to_string()))?;
    if let Some(text) = options.host.read(&file).map_err(OrderError::Here)? {
        let known: AccountCredentials = serde_json::from_str(&text)
            .map_err(|_| OrderError::Here(format!("{} is no account", file.display())))?;
        return Ok(builder.from_credentials(known).await?);
    }
    let contact = options.contact.as_ref().map(|address| format!("mailto:{address}"));
    let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
    let new = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&new, options.directory.clone(), None).await?;
    let text = serde_json::to_string(&credentials).map_err(|error| OrderError::Here(error.to_string()))?;
    options.host.write(&file, &Zeroizing::new(text)).map_err(OrderError::Here)?;
    Ok(account)
}

/// The error and its causes, of which the last is the most specific.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes.map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text.extend([": ", &cause]);
        }
    }
    text
}

/// Whether an error is temporary and says nothing about the order: RFC 8555, 6.5 and 6.7.
fn passes(kind: &str) -> bool {
    ["urn:ietf:params:acme:error:badNonce", "urn:ietf:params:acme:error:serverInternal"].contains(&kind)
}

// === impl OrderError ===

impl From<Error> for OrderError {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) if problem.r#type.as_deref().is_none_or(|kind| !passes(kind)) => {
                Self::Refused(problem.to_string())
            }
            other => Self::Unanswered(with_causes(&other)),
        }
    }
}
