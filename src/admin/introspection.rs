//! Asks an identity service about tokens: an endpoint of RFC 7662 with client credentials, or any JSON endpoint that is called
//! with the caller's token.
//!
//! Must not know: tokens that the keys in force can verify, or what callers may do.
//!
//! *Invariant:* a token is in no log, no error and no cache; answers are found by its SHA-256 digest.
//! *Invariant:* an answer that did not come, or cannot be understood, is 503 and never 401.

use super::auth::{Auth, AuthClaims, Claimed, has_or_lists_all, seconds};
use super::client_credentials::{ClientCredentials, sensitive};
use super::error::AdminError;
use super::input::{FieldError, json};
use crate::clock::{Clock, Timestamp};
use crate::http_client::HttpClient;
use crate::metrics::Metrics;
use crate::model::fault::Fault;
use crate::policy::text::form::percent_encoded;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{Request, StatusCode};
use quick_cache::sync::Cache;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// How the service is asked.
pub struct IntrospectionOptions {
    /// The client of the endpoint.
    pub client: HttpClient,
    /// The client's credentials; none: the endpoint is called with the caller's token.
    pub credentials: Option<Arc<ClientCredentials>>,
    /// Claims of an answer and the values they must have.
    pub require: Vec<(String, String)>,
    /// The names of claims in answers.
    pub claims: AuthClaims,
    /// How long an answer is used.
    pub cache: Duration,
    /// Most answers in the cache.
    pub cache_entries: usize,
    /// Longest time for an answer, with the wait for a free call.
    pub timeout: Duration,
    /// Most calls at once.
    pub max_concurrent: usize,
}

/// The service.
pub struct Introspection {
    options: IntrospectionOptions,
    auth: Arc<Auth>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    answers: Cache<TokenDigest, Answer>,
    calls: Semaphore,
    /// Whether the last call failed. Only changes of this are logged.
    is_failing: AtomicBool,
}

type TokenDigest = [u8; 32];

/// What the service says about a token.
#[derive(Clone)]
struct Answer {
    caller: Result<Claimed, AdminError>,
    /// The token's end.
    expires: Option<i64>,
    /// Until when the answer is used, on the steady clock, in nanoseconds.
    until: u64,
}

/// Largest answer that is read, in bytes.
const ANSWER_BYTES: usize = 64 * 1024;

// === impl Introspection ===

impl Introspection {
    /// The service, whose answers `auth` understands.
    pub fn new(
        options: IntrospectionOptions,
        auth: Arc<Auth>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        for result in ["valid", "refused", "failed"] {
            metrics.admin_introspections.with_label_values(&[result]);
        }
        Self {
            answers: Cache::new(options.cache_entries),
            calls: Semaphore::new(options.max_concurrent),
            is_failing: AtomicBool::new(false),
            options,
            auth,
            clock,
            metrics,
        }
    }

    /// Whom the service says `token` identifies.
    pub(super) async fn caller(&self, token: &str) -> Result<Claimed, AdminError> {
        let digest = Sha256::digest(token).into();
        let answer = match self.known(&digest) {
            Some(answer) => answer,
            None => self.asked(token, digest).await?,
        };
        // A token may end before its answer does.
        let now = self.clock.now().wall.as_secs();
        if answer.expires.is_some_and(|end| end <= now) {
            return Err(AdminError::of(Fault::TokenExpired));
        }
        answer.caller
    }

    /// The answer of a few seconds ago.
    fn known(&self, digest: &TokenDigest) -> Option<Answer> {
        self.answers.get(digest).filter(|answer| self.clock.now().steady_ns < answer.until)
    }

    async fn asked(&self, token: &str, digest: TokenDigest) -> Result<Answer, AdminError> {
        let asked = async {
            let _call = self.calls.acquire().await.map_err(|error| error.to_string())?;
            // Another call may have asked meanwhile.
            match self.known(&digest) {
                Some(answer) => Ok(answer),
                None => self.ask(token, digest).await,
            }
        };
        let within = self.options.timeout;
        let answer = match timeout(within, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {within:?}")),
        };
        match answer {
            Ok(answer) => {
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("admin.introspection answers again");
                }
                Ok(answer)
            }
            Err(why) => {
                self.metrics.admin_introspections.with_label_values(&["failed"]).inc();
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%why, "admin.introspection failed, its tokens are answered with 503");
                }
                Err(AdminError::of(Fault::ServiceUnavailable))
            }
        }
    }

    async fn ask(&self, token: &str, digest: TokenDigest) -> Result<Answer, String> {
        let request = self.request(token)?;
        let call = self.options.client.call(request, ANSWER_BYTES);
        let response = call.await.map_err(|error| error.to_string())?;
        let now = self.clock.now();
        let (caller, expires) = match response.status() {
            StatusCode::OK => {
                let claims = json::object(response.body()).map_err(|error| error.to_string())?;
                (self.judge(&claims, now.wall), claims.get("exp").and_then(seconds))
            }
            // The endpoint refuses the caller's token. With credentials, it refuses these.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.options.credentials.is_none() => {
                (Err(AdminError::of(Fault::TokenInvalid)), None)
            }
            other => return Err(format!("the answer is {}", other.as_u16())),
        };
        let result = if caller.is_ok() { "valid" } else { "refused" };
        self.metrics.admin_introspections.with_label_values(&[result]).inc();
        let lasts = u64::try_from(self.options.cache.as_nanos()).unwrap_or(u64::MAX);
        let answer = Answer { caller, expires, until: now.steady_ns.saturating_add(lasts) };
        self.answers.insert(digest, answer.clone());
        Ok(answer)
    }

    /// Whom these claims identify.
    fn judge(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Claimed, AdminError> {
        let is_active = match claims.get("active") {
            Some(active) => active == &Value::Bool(true),
            // RFC 7662 requires it; other endpoints answer only for valid tokens.
            None => self.options.credentials.is_none(),
        };
        if !is_active || !has_or_lists_all(claims, &self.options.require) {
            return Err(AdminError::of(Fault::TokenInvalid));
        }
        self.auth.check_times(claims, now)?;
        let names = &self.options.claims;
        self.auth.claimed(claims, names).map_err(|_| {
            let message =
                format!("or {} cannot be used in the answer of the identity service", names.workspace);
            AdminError::listing(
                Fault::TokenInvalid,
                vec![FieldError { field: names.subject.clone(), message }],
            )
        })
    }

    fn request(&self, token: &str) -> Result<Request<Bytes>, String> {
        let target = self.options.client.target();
        let request = if let Some(credentials) = &self.options.credentials {
            let form = format!("token={}&token_type_hint=access_token", percent_encoded(token));
            Request::post(target)
                .header(AUTHORIZATION, credentials.basic())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header(ACCEPT, "application/json")
                .body(form.into())
        } else {
            let bearer = Zeroizing::new(format!("Bearer {token}"));
            let bearer = sensitive(&bearer).ok_or("the token is no header value")?;
            let request = Request::get(target).header(AUTHORIZATION, bearer);
            request.header(ACCEPT, "application/json").body(Bytes::new())
        };
        request.map_err(|error| error.to_string())
    }
}

impl fmt::Debug for Introspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspection").field("client", &self.options.client).finish_non_exhaustive()
    }
}
