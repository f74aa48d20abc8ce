//! Dependencies of the admin API, and the two waits that every call shares.

use super::auth::{Auth, Identity, NotVerified};
use super::codes::SignInCodes;
use super::error::AdminError;
use super::idempotency::RequestsInFlight;
use super::input::{FieldError, uncounted};
use super::introspection::Introspection;
use super::jwks::RemoteJwks;
use super::oidc::Oidc;
use crate::clock::{Clock, Timestamp};
use crate::keyring::Keyring;
use crate::metrics::Metrics;
use crate::model::fault::{ErrorText, Fault};
use crate::model::id::{CredentialId, PlanId, WorkspaceId};
use crate::model::key::{Ceiling, Measure, Per};
use crate::model::scope::Scopes;
use crate::model::usage::UsageSubject;
use crate::policy::http::cors::Cors;
use crate::policy::keys::bearer::BearerToken;
use crate::policy::keys::limit::MeteredUnits;
use crate::policy::keys::secret::Peppers;
use crate::policy::upstream::encryption::EncryptionKeys;
use crate::store::{Actor, Store, StoreError, Version, Written};
use async_trait::async_trait;
use axum::body::Bytes;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use quick_cache::sync::Cache;
use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What requests in flight of a subject hold on this node, in each of the windows that contain an instant.
pub type HeldUnits =
    Arc<dyn Fn(&UsageSubject, Timestamp) -> [MeteredUnits; Per::WINDOWS.len()] + Send + Sync>;

/// Dependencies of the admin API.
pub struct AdminDeps {
    /// The store.
    pub store: Arc<dyn Store>,
    /// This node's keyring, which must have applied a write before the response.
    pub keyring: Arc<Keyring>,
    /// The peppers for digests of new secrets.
    pub peppers: Arc<Peppers>,
    /// The prefix of new secrets, `sk` by default.
    pub secret_prefix: Arc<str>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The verifier of admin tokens.
    pub auth: Arc<Auth>,
    /// Its keys, if they are read from a URL.
    pub jwks: Option<Arc<RemoteJwks>>,
    /// The identity service that is asked about tokens; none: only the keys decide.
    pub introspection: Option<Arc<Introspection>>,
    /// The identity provider that signs people in to the console; none: they need tokens.
    pub oidc: Option<Arc<Oidc>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether this node is ready.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// Reloads the config.
    pub reload: Arc<dyn Reload>,
    /// What requests in flight on this node hold.
    pub held: HeldUnits,
    /// The upstreams of this node, and its credentials for them.
    pub backends: Arc<dyn Backends>,
    /// The default plan of new workspaces.
    pub default_plan: PlanId,
    /// Whether a workspace is created when a valid token first names it.
    pub create_workspaces: bool,
    /// The token for `/metrics`; none: it is open.
    pub metrics_token: Option<Arc<MetricsToken>>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest wait for the store within one call, however many steps it takes.
    pub write_timeout: Duration,
    /// A further path of the API, such as `/api`; empty: only the root.
    pub base_path: String,
    /// The contents of the field `error` in error responses.
    pub error_text: ErrorText,
    /// Codes that sign in to the console once; none: there are no such links.
    pub sign_in_codes: Option<Arc<SignInCodes>>,
    /// CORS settings for pages of other origins; none: no such page may use the API.
    pub cors: Option<Cors>,
}

/// Whether this node is ready, and why.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// The verdict.
    pub ready: bool,
    /// The checks behind it.
    pub checks: Vec<ReadinessCheck>,
}

/// One check of readiness.
#[derive(Clone, Debug)]
pub struct ReadinessCheck {
    /// Its name.
    pub name: &'static str,
    /// Whether it passed.
    pub ok: bool,
    /// For people; never a secret.
    pub detail: String,
}

/// The upstreams of this node, and its credentials for them.
pub trait Backends: Send + Sync {
    /// Whether the config in force has this upstream.
    fn has_upstream(&self, name: &str) -> bool;
    /// The keys that encrypt credentials; none: this node has none.
    fn encryption_keys(&self) -> Option<&EncryptionKeys>;
    /// Why a limit on this measure would count nothing, for a key with these scopes, or for any key; none if it counts.
    fn why_uncounted(&self, measure: Measure, granted: Option<&Scopes>) -> Option<String>;
    /// Whether this node can decrypt a credential.
    fn is_usable(&self, id: CredentialId) -> bool;
}

/// Applies a new config completely or not at all.
#[async_trait]
pub trait Reload: Send + Sync {
    /// Reads the config again and applies it. The audit log names `by` as the author. The caller must not drop this future
    /// before it ends.
    async fn reload(&self, by: &Actor) -> Result<Reloaded, ReloadError>;

    /// Whether the config file owns this plan.
    fn is_managed(&self, plan: &PlanId) -> bool;
}

/// The active config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// Routes.
    pub routes: usize,
    /// Upstreams.
    pub upstreams: usize,
}

/// Why the active config remains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadError {
    /// The new config has these errors, each as `position: message`.
    Mistakes(Vec<String>),
    /// The store refused a plan or the audit entry.
    Store(String),
    /// Another process is about to replace this one, with the config that it has read.
    Upgrading,
}

/// The bearer token of `/metrics`.
pub type MetricsToken = BearerToken;

/// The shared dependencies of handlers.
pub(super) type AdminState = Arc<Admin>;

/// The dependencies, and the workspaces known to exist.
pub(super) struct Admin {
    pub(super) deps: AdminDeps,
    /// The OpenAPI document as JSON.
    pub(super) document: Bytes,
    /// When each workspace was last found in the store, on the steady clock, in nanoseconds.
    seen: Cache<WorkspaceId, u64>,
    /// Requests with an `Idempotency-Key` that are being processed.
    pub(super) in_flight: RequestsInFlight,
}

/// Most workspaces cached as existing. A dropped one costs one read.
const SEEN_MAX: usize = 10_000;
/// How long a workspace is taken to exist after it was found: another node may delete it.
const SEEN_FOR: Duration = Duration::from_secs(1);

// === impl Admin ===

impl Admin {
    pub(super) fn new(deps: AdminDeps, document: String) -> Self {
        Self {
            deps,
            document: document.into(),
            seen: Cache::new(SEEN_MAX),
            in_flight: RequestsInFlight::default(),
        }
    }

    /// Refuses limits that would count nothing; `granted` as for [`Backends::why_uncounted`].
    pub(super) fn check_counted(
        &self,
        limits: &[Ceiling],
        granted: Option<&Scopes>,
    ) -> Result<(), AdminError> {
        let errors = self.uncounted(limits, granted);
        if errors.is_empty() { Ok(()) } else { Err(AdminError::fields(errors)) }
    }

    /// The mistakes of such limits.
    pub(super) fn uncounted(&self, limits: &[Ceiling], granted: Option<&Scopes>) -> Vec<FieldError> {
        uncounted(limits, |measure| self.deps.backends.why_uncounted(measure, granted))
    }

    pub(super) fn now(&self) -> Timestamp {
        self.deps.clock.now().wall
    }

    /// Waits for a store call within the rest of the write timeout; `missing` is the fault if something does not exist.
    pub(super) async fn ask<T>(
        &self,
        missing: Fault,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, AdminError> {
        let answer = match tokio::time::timeout_at(self.deadline(), call).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unavailable("no answer within the write timeout".into())),
        };
        answer.map_err(|error| AdminError::of_store(error, missing))
    }

    /// Like [`Admin::ask`] for a write: returns when it applies on this node.
    ///
    /// A write that timed out may still happen if it had begun; reading shows whether it did.
    pub(super) async fn write<T>(
        &self,
        missing: Fault,
        call: impl Future<Output = Result<Written<T>, StoreError>>,
    ) -> Result<T, AdminError> {
        self.write_versioned(missing, call).await.map(|written| written.value)
    }

    /// Like [`Admin::write`], with the version of the change.
    pub(super) async fn write_versioned<T>(
        &self,
        missing: Fault,
        call: impl Future<Output = Result<Written<T>, StoreError>>,
    ) -> Result<Written<T>, AdminError> {
        let written = self.ask(missing, call).await?;
        self.reach(written.version).await;
        Ok(written)
    }

    /// Who holds `token`. A token that no key in force has signed, and the workspace that a signed one lacks, are asked from
    /// the identity service, if there is one.
    pub(super) async fn identify(&self, token: &str) -> Result<Identity, AdminError> {
        let AdminDeps { auth, jwks, introspection, .. } = &self.deps;
        let verified = match jwks {
            Some(jwks) => jwks.verify(token, self.now()).await,
            None => auth.verify(token, self.now()),
        };
        let claimed = match (verified, introspection) {
            (Ok(mut claimed), Some(service)) if auth.lacks_workspace(&claimed) => {
                let asked = service.caller(token).await?;
                claimed.workspace = asked.workspace;
                claimed.role = claimed.role.or(asked.role);
                claimed
            }
            (Ok(claimed), _) => claimed,
            (Err(NotVerified::Refused(error)), _) => return Err(error),
            (Err(NotVerified::UnknownKey | NotVerified::Foreign), Some(service)) => {
                service.caller(token).await?
            }
            (Err(NotVerified::UnknownKey | NotVerified::Foreign), None) => {
                return Err(AdminError::of(Fault::TokenInvalid));
            }
        };
        auth.identity(claimed)
    }

    /// The caller's own workspace: created if it is new and that is allowed, otherwise refused.
    pub(super) async fn enter(&self, id: &WorkspaceId, by: &Actor) -> Result<(), AdminError> {
        if self.exists(id).await? {
            return Ok(());
        }
        if !self.deps.create_workspaces {
            return Err(AdminError::of(Fault::WorkspaceNoAccess));
        }
        let plan = &self.deps.default_plan;
        let made =
            self.write(Fault::Internal, self.deps.store.ensure_workspace(id, plan, by, self.now())).await;
        made.inspect_err(|failure| {
            if failure.fault() == Fault::Internal {
                tracing::error!(%plan, workspace = %id, "cannot create workspace: no such plan");
            }
        })?;
        self.see(id);
        Ok(())
    }

    /// Whether the workspace exists. A positive answer is cached for a moment.
    pub(super) async fn exists(&self, id: &WorkspaceId) -> Result<bool, AdminError> {
        let now = self.deps.clock.now().steady_ns;
        let is_recent = |at| Duration::from_nanos(now.saturating_sub(at)) < SEEN_FOR;
        if self.seen.get(id).is_some_and(is_recent) {
            return Ok(true);
        }
        let found = self.ask(Fault::NotFound, self.deps.store.workspace(id)).await?.is_some();
        if found {
            self.see(id);
        }
        Ok(found)
    }

    /// Whether the workspace existed and was deleted. Its records can still be read.
    pub(super) async fn existed(&self, id: &WorkspaceId) -> Result<bool, AdminError> {
        self.ask(Fault::NotFound, self.deps.store.was_workspace(id)).await
    }

    fn see(&self, id: &WorkspaceId) {
        self.seen.insert(id.clone(), self.deps.clock.now().steady_ns);
    }

    /// The workspace was deleted.
    pub(super) fn forget(&self, id: &WorkspaceId) {
        self.seen.remove(id);
    }

    /// The deadline of this call for the store; it starts with its first use.
    fn deadline(&self) -> Instant {
        let from_now = || Instant::now() + self.deps.write_timeout;
        DEADLINE.try_with(|deadline| *deadline.get_or_init(from_now)).unwrap_or_else(|_| from_now())
    }

    /// Waits until this node has applied that change.
    pub(super) async fn reach(&self, version: Version) {
        if !self.deps.keyring.reach(version).await {
            tracing::warn!(%version, "change stored, but not in force on this node within the deadline");
        }
    }
}

tokio::task_local! {
    /// The deadline of the current call for the store; set at its first use.
    static DEADLINE: OnceCell<Instant>;
}

/// Gives each call one deadline for all its store calls.
pub(super) async fn with_deadline(request: Request, next: Next) -> Response {
    DEADLINE.scope(OnceCell::new(), next.run(request)).await
}
