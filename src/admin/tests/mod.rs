//! The admin API as callers see it, with the embedded store in a temporary folder and a clock controlled by tests.

mod calls;
mod credentials;
mod document;
mod envelopes;
mod isolation;
mod others;
mod propagation;
mod tokens;
mod usage;

use super::*;
use super::{Reload, ReloadError, Reloaded};
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::keyring::{FeedFollower, FeedOptions, Keyring};
use crate::metrics::Metrics;
use crate::model::fault::ErrorText;
use crate::model::id::{CredentialId, WorkspaceId};
use crate::model::key::Measure;
use crate::model::scope::Scopes;
use crate::policy::keys::secret::Peppers;
use crate::policy::upstream::encryption::EncryptionKeys;
use crate::store::sqlite::{SqliteOptions, SqliteStore};
use crate::store::{Actor, Feed, Store, Tenants};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tower::ServiceExt;

/// The initial time of these tests.
pub(super) const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);
pub(super) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A complete admin API.
pub(super) struct Api {
    pub(super) router: Router,
    pub(super) store: Arc<SqliteStore>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) auth: Arc<Auth>,
    pub(super) keyring: Arc<Keyring>,
    _folder: tempfile::TempDir,
}

/// A complete answer.
pub(super) struct ApiReply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

pub(super) fn auth_config() -> AuthConfig {
    AuthConfig {
        keys: AuthKeys::Hs256(SECRET.to_vec().into()),
        algorithms: vec![Algorithm::HS256],
        issuer: Some("https://issuer.test".into()),
        audience: Some("keygate-admin".into()),
        require: Vec::new(),
        roles: Vec::new(),
        default_role: None,
        workspace_header_subjects: Vec::new(),
        leeway: Duration::from_secs(5),
        claims: AuthClaims::default(),
    }
}

pub(super) fn workspace(id: &str) -> WorkspaceId {
    id.parse().expect("a workspace id")
}

impl Api {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// An API whose dependencies were changed by `adjust`.
    pub(super) async fn start_with(adjust: impl FnOnce(&mut AdminDeps)) -> Self {
        let (mut deps, store, clock, folder) = dependencies().await;
        adjust(&mut deps);
        let (auth, keyring) = (Arc::clone(&deps.auth), Arc::clone(&deps.keyring));
        Self { router: router(deps), store, clock, auth, keyring, _folder: folder }
    }

    /// A token for `role` in the workspace `id`; `-` means none.
    pub(super) fn token(&self, id: &str, role: Role) -> String {
        let workspace = (id != "-").then(|| workspace(id));
        let hour = Duration::from_hours(1);
        let minted = self.auth.mint("user-1", workspace.as_ref(), role, hour, self.clock.now().wall);
        minted.expect("a token")
    }

    pub(super) async fn send(&self, request: Request<Body>) -> ApiReply {
        send(&self.router, request).await
    }

    /// A call with a token, and a body unless it is null.
    pub(super) async fn call(&self, token: &str, method: &str, uri: &str, body: Value) -> ApiReply {
        self.send(request(token, method, uri, &body)).await
    }

    /// A key in the workspace of `token`.
    pub(super) async fn key(&self, token: &str, name: &str) -> Value {
        let body = json!({"name": name, "type": "app", "resource_id": "app-1"});
        let reply = self.call(token, "POST", "/apikeys", body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.data()
    }
}

/// The dependencies of an API, with a new store that has the plan `default`.
pub(super) async fn dependencies() -> (AdminDeps, Arc<SqliteStore>, Arc<ManualClock>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(&folder.path().join("keygate.db"), &SqliteOptions::default());
    let store = Arc::new(store.expect("a new store"));
    let plan = json!({"id": "default", "api_ops_rate_limit": 100, "end_user_quota": 10});
    let plan =
        super::input::CreatePlanInput::read(plan.as_object().expect("an object")).expect("a right plan");
    store.create_plan(plan.into_record(NOW), &Actor::keygate(), NOW).await.expect("a stored plan");
    let clock = Arc::new(ManualClock::at(NOW));
    let keyring = follow(&store, &clock);
    let deps = AdminDeps {
        store: Arc::clone(&store) as Arc<dyn Store>,
        keyring,
        peppers: Arc::new(Peppers::new(vec![(1, vec![7; 32])]).expect("a pepper")),
        secret_prefix: "sk".into(),
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        auth: Arc::new(Auth::new(auth_config()).expect("a right configuration")),
        jwks: None,
        introspection: None,
        oidc: None,
        metrics: Arc::new(Metrics::new().expect("metrics of different names")),
        readiness: Arc::new(|| Readiness { ready: true, checks: Vec::new() }),
        reload: Arc::new(SameConfig),
        held: Arc::new(|_, _| Default::default()),
        backends: Arc::new(OneUpstream(Some(encryption_keys()))),
        default_plan: "default".parse().expect("a plan id"),
        create_workspaces: true,
        metrics_token: None,
        max_body_bytes: 64 * 1_024,
        base_path: String::new(),
        error_text: ErrorText::Name,
        cors: None,
        sign_in_codes: None,
        // A slow machine must not matter where time is not the subject.
        write_timeout: Duration::from_secs(60),
    };
    (deps, store, clock, folder)
}

/// A config that never changes.
struct SameConfig;

#[async_trait::async_trait]
impl Reload for SameConfig {
    async fn reload(&self, _: &Actor) -> Result<Reloaded, ReloadError> {
        Ok(Reloaded { routes: 1, upstreams: 1 })
    }

    fn is_managed(&self, plan: &crate::model::id::PlanId) -> bool {
        plan.as_str() == "managed"
    }
}

/// A config with the upstream `app`, and keys for its credentials or none.
pub(super) struct OneUpstream(pub(super) Option<EncryptionKeys>);

impl Backends for OneUpstream {
    fn has_upstream(&self, name: &str) -> bool {
        name == "app"
    }

    fn why_uncounted(&self, measure: Measure, granted: Option<&Scopes>) -> Option<String> {
        let counts = granted.is_none_or(|granted| granted.grants("llm"));
        (measure != Measure::Requests && !counts).then(|| "would count nothing".to_owned())
    }

    fn encryption_keys(&self) -> Option<&EncryptionKeys> {
        self.0.as_ref()
    }

    fn is_usable(&self, _: CredentialId) -> bool {
        self.0.is_some()
    }
}

pub(super) fn encryption_keys() -> EncryptionKeys {
    EncryptionKeys::parse(&format!("7:{}", "07".repeat(32))).expect("a key")
}

/// A keyring that follows `store` for the life of the test.
fn follow(store: &Arc<SqliteStore>, clock: &Arc<ManualClock>) -> Arc<Keyring> {
    let keyring = Arc::new(Keyring::new());
    let follower = FeedFollower::new(
        Arc::clone(&keyring),
        Arc::clone(store) as Arc<dyn Feed>,
        Arc::clone(clock) as Arc<dyn Clock>,
        FeedOptions { poll_interval: Duration::from_hours(1) },
        Box::new(|_| {}),
    );
    let (keep_going, stop) = watch::channel(false);
    tokio::spawn(async move {
        follower.run(stop).await;
        drop(keep_going);
    });
    keyring
}

pub(super) async fn send(router: &Router, request: Request<Body>) -> ApiReply {
    let response = router.clone().oneshot(request).await.expect("routers do not fail");
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    ApiReply { status: parts.status, headers: parts.headers, text }
}

pub(super) fn request(token: &str, method: &str, uri: &str, body: &Value) -> Request<Body> {
    let builder = Request::builder().method(method).uri(uri);
    let builder =
        if token.is_empty() { builder } else { builder.header("authorization", format!("Bearer {token}")) };
    if body.is_null() {
        return builder.body(Body::empty()).expect("a request");
    }
    let builder = builder.header("content-type", "application/json");
    builder.body(Body::from(body.to_string())).expect("a request")
}

impl ApiReply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(super) fn data(&self) -> Value {
        self.json()["data"].clone()
    }

    /// Status, code and name of the envelope.
    pub(super) fn verdict(&self) -> (u16, u64, String) {
        let json = self.json();
        let name = json["error"].as_str().expect("an error name").to_owned();
        (self.status.as_u16(), json["code"].as_u64().expect("a code"), name)
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().expect("a text header")).unwrap_or_default()
    }
}
