//! What the admin API needs from the rest of the process, and the two waits that every call shares.

use super::auth::Auth;
use super::error::AdminError;
use super::reload::Reload;
use crate::clock::{Clock, Timestamp};
use crate::keyring::Keyring;
use crate::metrics::Metrics;
use crate::model::fault::Fault;
use crate::model::id::{PlanId, WorkspaceId};
use crate::policy::keys::secret::Peppers;
use crate::store::{Actor, Store, StoreError, Version, Written};
use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What the admin API is built from.
pub struct AdminDeps {
    /// Everything at rest.
    pub store: Arc<dyn Store>,
    /// This node's replica, which must have a write before the write is answered.
    pub keyring: Arc<Keyring>,
    /// For the digests of new secrets.
    pub peppers: Arc<Peppers>,
    /// First part of new secrets, `sk` by default.
    pub secret_prefix: Arc<str>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// The numbers behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Whether this node should be sent traffic.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// Puts new configs in force.
    pub reload: Arc<dyn Reload>,
    /// The plan of workspaces that name none.
    pub default_plan: PlanId,
    /// Whether a workspace first seen in a valid token is created.
    pub create_workspaces: bool,
    /// What `/metrics` asks for; none: it is open.
    pub metrics_token: Option<Arc<MetricsToken>>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest wait for the store within one call, however many steps it takes.
    pub write_timeout: Duration,
}

/// Whether this node should be sent traffic, and why.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// The verdict.
    pub ready: bool,
    /// What it was made from.
    pub checks: Vec<ReadinessCheck>,
}

/// One of the things readiness depends on.
#[derive(Clone, Debug)]
pub struct ReadinessCheck {
    /// Which.
    pub name: &'static str,
    /// Whether it is well.
    pub ok: bool,
    /// For people; never a secret.
    pub detail: String,
}

/// The bearer token of `/metrics`; only what it hashes to is kept.
pub struct MetricsToken(ArcSwap<[u8; 32]>);

/// The dependencies as handlers share them.
pub(super) type AdminState = Arc<Admin>;

/// The dependencies, and the workspaces known to exist.
pub(super) struct Admin {
    pub(super) deps: AdminDeps,
    /// The OpenAPI document as JSON.
    pub(super) document: Bytes,
    seen: Cache<WorkspaceId, ()>,
}

/// Most workspaces remembered as existing. A forgotten one costs one read.
const SEEN_MAX: usize = 10_000;

// === impl Admin ===

impl Admin {
    pub(super) fn new(deps: AdminDeps, document: String) -> Self {
        Self { deps, document: document.into(), seen: Cache::new(SEEN_MAX) }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.deps.clock.now().wall
    }

    /// Waits for a store call, no longer than what is left of the write timeout; `missing` is the fault of a thing that is not there.
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

    /// Like [`Admin::ask`] for a write: answers once it is in force on this node.
    ///
    /// A write that was refused for want of time may still have been done if it had begun; asking again shows which.
    pub(super) async fn write<T>(
        &self,
        missing: Fault,
        call: impl Future<Output = Result<Written<T>, StoreError>>,
    ) -> Result<T, AdminError> {
        self.write_versioned(missing, call).await.map(|written| written.value)
    }

    /// Like [`Admin::write`], with the number of the change.
    pub(super) async fn write_versioned<T>(
        &self,
        missing: Fault,
        call: impl Future<Output = Result<Written<T>, StoreError>>,
    ) -> Result<Written<T>, AdminError> {
        let written = self.ask(missing, call).await?;
        self.reach(written.version).await;
        Ok(written)
    }

    /// The caller's own workspace: made if it is new and that is allowed, else refused.
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
        self.seen.insert(id.clone(), ());
        Ok(())
    }

    /// Whether there is such a workspace. Workspaces are never removed, so a yes is remembered.
    pub(super) async fn exists(&self, id: &WorkspaceId) -> Result<bool, AdminError> {
        if self.seen.get(id).is_some() {
            return Ok(true);
        }
        let found = self.ask(Fault::NotFound, self.deps.store.workspace(id)).await?.is_some();
        if found {
            self.seen.insert(id.clone(), ());
        }
        Ok(found)
    }

    /// When this call gives the store up: so long after it first asked.
    fn deadline(&self) -> Instant {
        let from_now = || Instant::now() + self.deps.write_timeout;
        DEADLINE.try_with(|deadline| *deadline.get_or_init(from_now)).unwrap_or_else(|_| from_now())
    }

    async fn reach(&self, version: Version) {
        if !self.deps.keyring.reach(version).await {
            tracing::warn!(%version, "change stored, but not in force on this node within the deadline");
        }
    }
}

tokio::task_local! {
    /// When the call that this task answers gives the store up; set when it first asks.
    static DEADLINE: OnceCell<Instant>;
}

/// Gives each call one deadline for all it asks of the store.
pub(super) async fn with_deadline(request: Request, next: Next) -> Response {
    DEADLINE.scope(OnceCell::new(), next.run(request)).await
}

// === impl MetricsToken ===

impl MetricsToken {
    /// The token whose text is `text`.
    pub fn new(text: &str) -> Self {
        Self(ArcSwap::from_pointee(Sha256::digest(text).into()))
    }

    /// From now on the token is another one.
    pub fn replace(&self, text: &str) {
        self.0.store(Arc::new(Sha256::digest(text).into()));
    }

    /// Whether `text` is the token. Compares hashes, so the time it takes says nothing about the text.
    pub fn admits(&self, text: &str) -> bool {
        <[u8; 32]>::from(Sha256::digest(text)) == **self.0.load()
    }
}

impl fmt::Debug for MetricsToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsToken(…)")
    }
}
