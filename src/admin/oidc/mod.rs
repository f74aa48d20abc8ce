//! Signs people in with an identity provider: `OpenID` Connect, the code flow with PKCE (RFC 7636).
//!
//! Must not know: cookies, pages, or what a role may do. Nothing is kept about those who sign in; what must last from the first
//! step to the second is a [`Flow`], which the caller keeps.
//!
//! *Invariant:* nobody is somebody before the signature, the issuer, the audience, the end and the nonce of their ID token are verified.
//! *Invariant:* a code, a token and the client's secret are in no log and no error.
//! *Invariant:* the provider's document is read at most once per [`RETRY`], whatever browsers send.

mod access;
mod provider;

pub use access::GroupGrant;

pub(super) use access::Access;

use super::auth::{Algorithm, Auth, AuthClaims, AuthConfig, AuthKeys, BadAuth, NotVerified, claim, seconds};
use super::client_credentials::{ClientCredentials, sensitive};
use crate::clock::{Clock, Timestamp};
use crate::http_client::HttpTrust;
use crate::metrics::Metrics;
use crate::model::id::fill_random;
use crate::policy::text::form::percent_encoded;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use provider::Provider;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// How people are signed in.
pub struct OidcOptions {
    /// The issuer, as it is in its tokens.
    pub issuer: String,
    /// Which servers of the provider are trusted.
    pub trust: HttpTrust,
    /// The console's name at the provider.
    pub client_id: String,
    /// The same with its secret; none: a public client.
    pub credentials: Option<Arc<ClientCredentials>>,
    /// The origin under which browsers reach the console, without a slash at its end.
    pub public_url: String,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// What the members of groups may do.
    pub grants: Vec<GroupGrant>,
    /// The names of claims.
    pub claims: OidcClaims,
    /// Longest time for one answer of the provider.
    pub timeout: Duration,
    /// Allowed clock difference.
    pub leeway: Duration,
}

/// The names of claims that are not the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcClaims {
    /// The groups.
    pub groups: String,
    /// What people are called.
    pub name: String,
}

/// The sign-in with one provider.
pub struct Oidc {
    options: OidcOptions,
    /// Verifies ID tokens, with the provider's keys of the last read.
    auth: Auth,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    current: ArcSwapOption<(Provider, u64)>,
    /// When the last read ended, on the steady clock in nanoseconds, and why it failed.
    last_read: Mutex<Option<(u64, Option<String>)>>,
}

/// What lasts from the first step of a sign-in to the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// Names the sign-in in the provider's answer.
    pub(super) state: String,
    /// Binds the ID token to it.
    pub(super) nonce: String,
    /// Binds the code to it.
    pub(super) verifier: String,
    /// The page to go to afterwards.
    pub(super) next: String,
}

/// Somebody whom the provider has identified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person {
    /// Who they are, for ever.
    pub(super) subject: String,
    /// What they are called.
    pub(super) name: String,
    /// Those of their groups that grant something.
    pub(super) groups: Vec<String>,
    /// When the ID token ends.
    pub(super) until: Timestamp,
    /// The ID token, which the provider wants to see at the end.
    pub(super) id_token: String,
}

/// Why nobody is signed in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotSignedIn {
    /// The provider cannot be used now; why, for the log.
    Away(String),
    /// The provider has refused, or what it says cannot be believed; why, in words of the audit log.
    Refused(String),
}

/// How a sign-in ended, in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignInEnd {
    /// There is a session.
    Done,
    /// There is none.
    Refused,
    /// The provider could not be used.
    Failed,
}

/// How long the provider's document and keys are used before they are read again.
const FRESH: Duration = Duration::from_hours(1);
/// How old they may be while they cannot be read.
const MAX_STALE: Duration = Duration::from_hours(24);
/// The shortest time between two reads.
const RETRY: Duration = Duration::from_secs(5);
/// Longest subject or name, in characters.
const NAME_MAX: usize = 255;
/// Where the provider sends people back to.
const CALLBACK: &str = "/console/oidc/callback";
/// Where it sends those who have signed out.
const SIGNED_OUT: &str = "/console/sign-in";

// === impl Oidc ===

impl Oidc {
    /// The sign-in with the provider, which is not asked before somebody signs in.
    pub fn new(options: OidcOptions, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Result<Self, BadAuth> {
        for ended in [SignInEnd::Done, SignInEnd::Refused, SignInEnd::Failed] {
            metrics.admin_oidc_sign_ins.with_label_values(&[ended.name()]);
        }
        let auth = Auth::new(AuthConfig {
            keys: AuthKeys::Unread,
            algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA],
            issuer: Some(options.issuer.clone()),
            audience: Some(options.client_id.clone()),
            require: Vec::new(),
            roles: Vec::new(),
            default_role: None,
            workspace_header_subjects: Vec::new(),
            leeway: options.leeway,
            claims: AuthClaims::default(),
        })?;
        let (current, last_read) = (ArcSwapOption::empty(), Mutex::new(None));
        Ok(Self { options, auth, clock, metrics, current, last_read })
    }

    /// Reads the provider's document and keys once.
    pub async fn try_provider(&self) -> Result<(), String> {
        let (_, keys) = Provider::read(&self.options).await?;
        self.auth.replace_keys(AuthKeys::Jwks(keys)).map_err(|error| error.to_string())
    }

    /// Where pages of the console are for browsers.
    pub(super) fn public_url(&self) -> &str {
        &self.options.public_url
    }

    /// Which server people sign in at.
    pub(super) fn host(&self) -> &str {
        let (_, rest) = self.options.issuer.split_once("://").unwrap_or_default();
        rest.split('/').next().unwrap_or_default()
    }

    /// What the sessions of these settings are bound to: with another issuer or client, none of them is valid.
    pub(super) fn binding(&self) -> String {
        format!("{} {}", self.options.issuer, self.options.client_id)
    }

    /// What somebody may do now; none: nothing.
    pub(super) fn access(&self, person: &Person) -> Option<Access> {
        Access::of(&self.options.grants, &person.groups)
    }

    /// Where the browser goes to begin a sign-in. `again`: also somebody whom the provider knows types their password.
    pub(super) async fn authorization_url(&self, flow: &Flow, again: bool) -> Result<String, NotSignedIn> {
        let known = self.provider().await?;
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&flow.verifier));
        let (scopes, callback) = (self.options.scopes.join(" "), self.callback());
        let mut fields = vec![
            ("response_type", "code"),
            ("client_id", &*self.options.client_id),
            ("redirect_uri", &*callback),
            ("scope", &*scopes),
            ("state", &*flow.state),
            ("nonce", &*flow.nonce),
            ("code_challenge", &*challenge),
            ("code_challenge_method", "S256"),
        ];
        if again {
            fields.push(("prompt", "login"));
        }
        Ok(with_query(known.0.authorization.location(), &fields))
    }

    /// Where the browser goes so that the provider forgets somebody, too; none if it has no such place, or is away.
    pub(super) async fn end_session_url(&self, person: &Person) -> Option<String> {
        let known = self.provider().await.ok()?;
        let place = known.0.end_session.as_ref()?.location();
        let back = format!("{}{SIGNED_OUT}", self.options.public_url);
        let mut fields = vec![("client_id", &*self.options.client_id), ("post_logout_redirect_uri", &*back)];
        if !person.id_token.is_empty() {
            fields.push(("id_token_hint", &*person.id_token));
        }
        Some(with_query(place, &fields))
    }

    /// Whether an answer that names this issuer is the provider's (RFC 9207).
    pub(super) fn is_issuer(&self, named: &str) -> bool {
        named == self.options.issuer
    }

    /// Counts an answer of the provider that ended so.
    pub(super) fn count(&self, ended: SignInEnd) {
        self.metrics.admin_oidc_sign_ins.with_label_values(&[ended.name()]).inc();
    }

    /// Who has signed in, by the code of the provider's answer.
    pub(super) async fn redeem(&self, code: &str, flow: &Flow) -> Result<Person, NotSignedIn> {
        let known = self.provider().await?;
        let tokens = self.exchange(&known.0, code, flow).await?;
        let text = |name: &str| tokens.get(name).and_then(Value::as_str);
        let id_token = text("id_token").ok_or_else(|| refused("no_id_token"))?;
        let now = self.clock.now().wall;
        let claims = self.verified(id_token, now).await?;
        is_of_flow(&claims, &self.options.client_id, &flow.nonce).map_err(refused)?;
        let subject = claims.get("sub").and_then(Value::as_str).filter(|subject| is_name(subject));
        let subject = subject.ok_or_else(|| refused("id_token_subject"))?.to_owned();
        let until =
            claims.get("exp").and_then(seconds).map(Timestamp::from_secs).filter(|until| *until > now);
        let until = until.ok_or_else(|| refused("id_token_expired"))?;
        // Many providers keep groups out of their ID tokens.
        let more = match (&known.0.userinfo, text("access_token")) {
            (Some(userinfo), Some(access)) if claim(&claims, &self.options.claims.groups).is_none() => {
                let bearer = Zeroizing::new(format!("Bearer {access}"));
                let bearer = sensitive(&bearer).ok_or_else(|| refused("access_token"))?;
                let said = provider::userinfo(userinfo, bearer, self.options.timeout);
                said.await.map_err(NotSignedIn::Away)?
            }
            _ => Map::new(),
        };
        // OpenID Connect Core, 5.3.2: otherwise it may be about somebody else.
        if !more.is_empty() && more.get("sub").and_then(Value::as_str) != Some(&subject) {
            return Err(refused("userinfo_subject"));
        }
        let find = |name: &str| claim(&claims, name).or_else(|| claim(&more, name));
        let name = find(&self.options.claims.name).and_then(Value::as_str).filter(|name| is_name(name));
        let name = name.unwrap_or(&subject).to_owned();
        let groups = self.granting(find(&self.options.claims.groups));
        Ok(Person { subject, name, groups, until, id_token: id_token.to_owned() })
    }

    /// Exchanges a code for tokens.
    async fn exchange(
        &self,
        provider: &Provider,
        code: &str,
        flow: &Flow,
    ) -> Result<Map<String, Value>, NotSignedIn> {
        let mut form = Zeroizing::new(format!(
            "grant_type=authorization_code&code={}&redirect_uri={}&code_verifier={}&client_id={}",
            percent_encoded(code),
            percent_encoded(&self.callback()),
            percent_encoded(&flow.verifier),
            percent_encoded(&self.options.client_id),
        ));
        let authorization = match &self.options.credentials {
            Some(credentials) if provider.secret_in_body => {
                form.push('&');
                form.push_str(&credentials.form_field());
                None
            }
            Some(credentials) => Some(credentials.basic()),
            None => None,
        };
        let form = form.as_bytes().to_vec().into();
        let answer = provider::post(&provider.token, authorization, form, self.options.timeout).await;
        let answer = answer.map_err(NotSignedIn::Away)?;
        let (status, body) = (answer.status(), provider::object(answer.body()));
        if status == StatusCode::OK {
            return body.map_err(NotSignedIn::Away);
        }
        let error = body.ok().and_then(|body| body.get("error").and_then(Value::as_str).map(error_code));
        match error {
            // Only this one is about the person; all others are about the settings of the client.
            Some("invalid_grant") => Err(refused("code")),
            other => Err(NotSignedIn::Away(format!(
                "{}: the answer is {} {}",
                provider.token,
                status.as_u16(),
                other.unwrap_or_default()
            ))),
        }
    }

    /// The claims of an ID token. One that names an unknown key has the keys read again: providers change them.
    async fn verified(&self, token: &str, now: Timestamp) -> Result<Map<String, Value>, NotSignedIn> {
        let mut verified = self.auth.verified_claims(token, now);
        if let Err(NotVerified::UnknownKey) = verified {
            self.read_again().await?;
            verified = self.auth.verified_claims(token, now);
        }
        verified.map_err(|why| match why {
            NotVerified::UnknownKey => refused("id_token_key"),
            NotVerified::Foreign => refused("id_token_signature"),
            NotVerified::Refused(error) => NotSignedIn::Refused(format!("id_{}", error.fault().name())),
        })
    }

    /// Those groups in the value of a claim that grant something.
    fn granting(&self, value: Option<&Value>) -> Vec<String> {
        let listed = match value {
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            Some(one) => one.as_str().into_iter().collect::<Vec<_>>(),
            None => Vec::new(),
        };
        let mut groups: Vec<String> = Vec::new();
        for grant in &self.options.grants {
            if listed.contains(&&*grant.group) && !groups.contains(&grant.group) {
                groups.push(grant.group.clone());
            }
        }
        groups
    }

    fn callback(&self) -> String {
        format!("{}{CALLBACK}", self.options.public_url)
    }

    // === what is known of the provider ===

    /// The provider, read a short time ago.
    async fn provider(&self) -> Result<Arc<(Provider, u64)>, NotSignedIn> {
        match self.current.load_full() {
            Some(known) if self.age_of(known.1) < FRESH => Ok(known),
            _ => self.read_again().await,
        }
    }

    /// Reads the provider, unless that was done a moment ago, also by somebody for whose read this waits.
    async fn read_again(&self) -> Result<Arc<(Provider, u64)>, NotSignedIn> {
        let mut last = self.last_read.lock().await;
        let is_recent = last.as_ref().is_some_and(|(ended, _)| self.age_of(*ended) < RETRY);
        if !is_recent {
            let read = Provider::read(&self.options).await.and_then(|(provider, keys)| {
                self.auth.replace_keys(AuthKeys::Jwks(keys)).map_err(|error| error.to_string())?;
                Ok(provider)
            });
            let ended = self.clock.now().steady_ns;
            let failed_before = last.as_ref().is_some_and(|(_, why)| why.is_some());
            let why = match read {
                Ok(provider) => {
                    self.current.store(Some(Arc::new((provider, ended))));
                    None
                }
                Err(why) => Some(why),
            };
            match &why {
                None if failed_before => tracing::info!("admin.oidc.issuer is read again"),
                Some(why) if !failed_before => tracing::warn!(%why, "cannot read admin.oidc.issuer"),
                _ => {}
            }
            *last = Some((ended, why));
        }
        let why = last.as_ref().and_then(|(_, why)| why.clone());
        match self.current.load_full().filter(|known| self.age_of(known.1) < MAX_STALE) {
            Some(known) => Ok(known),
            None => Err(NotSignedIn::Away(why.unwrap_or_default())),
        }
    }

    fn age_of(&self, then: u64) -> Duration {
        Duration::from_nanos(self.clock.now().steady_ns.saturating_sub(then))
    }
}

impl fmt::Debug for Oidc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oidc").field("issuer", &self.options.issuer).finish_non_exhaustive()
    }
}

// === impl SignInEnd, Flow ===

impl SignInEnd {
    const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Flow {
    /// A sign-in that leads to the page `next`.
    pub(super) fn new(next: &str) -> Self {
        Self { state: random(), nonce: random(), verifier: random(), next: next.to_owned() }
    }
}

/// 256 random bits.
fn random() -> String {
    let mut bytes = [0; 32];
    fill_random(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

// === helpers ===

fn refused(why: &str) -> NotSignedIn {
    NotSignedIn::Refused(why.to_owned())
}

/// Whether the ID token was made for this client and this sign-in (`OpenID` Connect Core, 3.1.3.7).
fn is_of_flow(claims: &Map<String, Value>, client: &str, nonce: &str) -> Result<(), &'static str> {
    if claims.get("nonce").and_then(Value::as_str) != Some(nonce) {
        return Err("id_token_nonce");
    }
    let has_several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    match claims.get("azp") {
        None if !has_several => Ok(()),
        Some(Value::String(party)) if party == client => Ok(()),
        _ => Err("id_token_party"),
    }
}

/// An error of OAuth 2.0, which is of a closed list; anything else is a text of somebody's.
pub(super) fn error_code(text: &str) -> &'static str {
    const KNOWN: [&str; 15] = [
        "access_denied",
        "account_selection_required",
        "consent_required",
        "interaction_required",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "login_required",
        "server_error",
        "temporarily_unavailable",
        "unauthorized_client",
        "unmet_authentication_requirements",
        "unsupported_grant_type",
        "unsupported_response_type",
    ];
    KNOWN.into_iter().find(|known| *known == text).unwrap_or("other")
}

fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// A URL with these fields in its query, after those that it has.
fn with_query(mut url: String, fields: &[(&str, &str)]) -> String {
    let mut before = if url.contains('?') { '&' } else { '?' };
    for (name, value) in fields {
        url.push(before);
        url.push_str(name);
        url.push('=');
        url.push_str(&percent_encoded(value));
        before = '&';
    }
    url
}
