//! A store of its own for each test, and short names for what tests put into it.

use crate::private_postgres::Server;
use keygate::clock::Timestamp;
use keygate::model::calendar::Calendar;
use keygate::model::digest::Digest;
use keygate::model::id::{KeyId, PlanId, RequestId, WorkspaceId};
use keygate::model::key::{Ceilings, Key, KeyType, Plan};
use keygate::model::scope::Scopes;
use keygate::model::usage::Outcome;
use keygate::model::usage::UsageRecord;
use keygate::store::postgres::{PgOptions, PgStore};
use keygate::store::sqlite::{SqliteOptions, SqliteStore};
use keygate::store::{Actor, Change, IssuedCredential, KeyRecord, NewKey, PageRequest, SecretId};
use keygate::store::{PlanRecord, Store, Version};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// An instant with odd microseconds: 2025-06-15T15:06:40.123457Z.
pub(crate) const T0: Timestamp = Timestamp::from_micros(1_750_000_000_123_457);

/// The plan's highest rate in [`Place::tenant`].
pub(crate) const PLAN_RATE: u32 = 100;
/// The plan's end users in [`Place::tenant`].
pub(crate) const PLAN_END_USERS: u64 = 100;

/// A new, empty store.
pub(crate) struct Place {
    pub(crate) store: Arc<dyn Store>,
    backend: Backend,
}

enum Backend {
    Sqlite { folder: tempfile::TempDir },
    Postgres { url: String },
}

// === impl Place ===

impl Place {
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(open_sqlite(&folder.path().join("keygate.db")));
        Self { store, backend: Backend::Sqlite { folder } }
    }

    pub(crate) async fn postgres() -> Self {
        let url = Server::shared().database().await;
        Self { store: Arc::new(open_postgres(&url).await), backend: Backend::Postgres { url } }
    }

    /// Closes the store and opens it again.
    pub(crate) async fn reopen(self) -> Self {
        self.store.close().await;
        let store: Arc<dyn Store> = match &self.backend {
            Backend::Sqlite { folder } => Arc::new(open_sqlite(&folder.path().join("keygate.db"))),
            Backend::Postgres { url } => Arc::new(open_postgres(url).await),
        };
        Self { store, backend: self.backend }
    }

    /// The path of the embedded store's file.
    pub(crate) fn path(&self) -> PathBuf {
        match &self.backend {
            Backend::Sqlite { folder } => folder.path().join("keygate.db"),
            Backend::Postgres { .. } => panic!("it has no file"),
        }
    }

    /// The database's URL.
    pub(crate) fn url(&self) -> &str {
        match &self.backend {
            Backend::Sqlite { .. } => panic!("it has no URL"),
            Backend::Postgres { url } => url,
        }
    }

    /// A workspace on a new plan `basic`.
    pub(crate) async fn tenant(&self, id: &str) -> WorkspaceId {
        if self.plan(&plan_id("basic")).await.unwrap().is_none() {
            self.create_plan(plan("basic"), &someone(), T0).await.unwrap();
        }
        self.ensure_workspace(&workspace_id(id), &plan_id("basic"), &someone(), T0).await.unwrap().value.id
    }

    /// A key in an existing workspace.
    pub(crate) async fn key_in(&self, workspace: &WorkspaceId, name: &str) -> KeyRecord {
        self.create_key(new_key(workspace, name), &someone(), T0).await.unwrap().value
    }

    /// The whole feed above `after`.
    pub(crate) async fn all_changes(&self, after: Version) -> (Version, Vec<Change>) {
        let (to, mut from) = mpsc::channel(1);
        let collect = async {
            let mut all = Vec::new();
            while let Some(batch) = from.recv().await {
                all.extend(batch);
            }
            all
        };
        let (reached, all) = tokio::join!(self.changes(after, to), collect);
        (reached.unwrap(), all)
    }

    /// The feed above `after`, each change in a word or two.
    pub(crate) async fn feed(&self, after: Version) -> Vec<String> {
        self.all_changes(after).await.1.iter().map(describe).collect()
    }
}

impl Deref for Place {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

fn open_sqlite(path: &std::path::Path) -> SqliteStore {
    SqliteStore::open(path, &SqliteOptions::default()).unwrap()
}

/// A store on the database at `url`, as another node would open it.
pub(crate) async fn open_postgres(url: &str) -> PgStore {
    let runtime = tokio::runtime::Handle::current();
    PgStore::open(&url.parse().unwrap(), &patient(), runtime).await.unwrap()
}

/// Long timeouts, for a server that answers, however slow the machine is.
pub(crate) fn patient() -> PgOptions {
    let timeout = Duration::from_secs(60);
    PgOptions { connect_timeout: timeout, statement_timeout: timeout, ..PgOptions::default() }
}

fn describe(change: &Change) -> String {
    match change {
        Change::Plan(plan) => format!("plan {}", plan.id),
        Change::PlanRemoved(id) => format!("plan {id} removed"),
        Change::WorkspaceRemoved(id) => format!("workspace {id} removed"),
        Change::Workspace { id, plan_id, grants } if grants.is_empty() => {
            format!("workspace {id} on {plan_id}")
        }
        Change::Workspace { id, plan_id, grants } => {
            format!("workspace {id} on {plan_id} with {} grants", grants.len())
        }
        Change::Key(key) => format!("key {}", key.key.id),
        Change::KeyRemoved { id, .. } => format!("key {id} removed"),
        Change::EndUserRemoved { workspace_id, other_id } => {
            format!("end user {workspace_id}/{other_id} removed")
        }
        Change::Prices(prices) => format!("{} prices", prices.len()),
        Change::Credential(credential) => format!("credential {}", credential.id),
        Change::CredentialRemoved(id) => format!("credential {id} removed"),
        Change::Broken { table, id, .. } => format!("broken {table} {id}"),
    }
}

// === short names ===

pub(crate) fn after(seconds: u64) -> Timestamp {
    T0.plus(Duration::from_secs(seconds))
}

pub(crate) fn someone() -> Actor {
    Actor { subject: "ada".into(), role: "admin", address: None, request_id: None }
}

pub(crate) fn workspace_id(id: &str) -> WorkspaceId {
    id.parse().unwrap()
}

pub(crate) fn plan_id(id: &str) -> PlanId {
    id.parse().unwrap()
}

pub(crate) fn page(page: u32, pagesize: u32) -> PageRequest {
    PageRequest { page, pagesize }
}

/// One page that is large enough for any test.
pub(crate) fn everything() -> PageRequest {
    page(1, 10_000)
}

pub(crate) fn plan(id: &str) -> PlanRecord {
    let plan = Plan {
        id: plan_id(id),
        api_ops_rate_limit: PLAN_RATE,
        end_user_quota: PLAN_END_USERS,
        default_daily_request_limit: Some(77),
        limits: [].into(),
        calendar: Calendar::UTC,
    };
    PlanRecord {
        plan,
        description: String::new(),
        usage_retention_days: None,
        deleted_keys_days: 30,
        created_at: T0,
        updated_at: T0,
    }
}

/// A unique credential.
pub(crate) fn credential(pepper_version: u32) -> IssuedCredential {
    let random = KeyId::new(T0).0.into_bytes();
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(&random);
    let (digest, secret) = (Digest(digest), SecretId::random());
    IssuedCredential { digest, pepper_version, secret, hint: "sk-app-Ab3d…9fQz".into() }
}

/// A set of scopes from the form that tables store.
pub(crate) fn scopes(joined: &str) -> Scopes {
    joined.parse().expect("scopes")
}

/// An app key of the resource `r1`.
pub(crate) fn new_key(workspace: &WorkspaceId, name: &str) -> NewKey {
    let key = Key {
        id: KeyId::new(T0),
        workspace_id: workspace.clone(),
        kind: KeyType::App,
        scopes: scopes("app"),
        resource_id: "r1".into(),
        ceilings: Ceilings {
            rate_limit: 50,
            rate_burst: None,
            daily_request_limit: Some(1_000),
            quota_limit: None,
            concurrency_limit: None,
            limits: [].into(),
        },
        allowed_ips: [].into(),
        is_active: true,
        expires_at: None,
        end_user: None,
    };
    NewKey {
        key,
        name: name.into(),
        description: String::new(),
        external_id: None,
        metadata: serde_json::Map::new(),
        credential: credential(1),
        past: None,
        once: None,
    }
}

/// A charged request that was answered with 200 after 1 ms.
pub(crate) fn record(key: &KeyRecord, at: Timestamp) -> UsageRecord {
    UsageRecord {
        id: RequestId::new(at),
        request_id: "req".into(),
        api_key_id: key.key.id,
        workspace_id: key.key.workspace_id.clone(),
        at,
        method: "GET".into(),
        endpoint: "/v1/app/chat".into(),
        route: "/v1/app/{rest*}".into(),
        status_code: 200,
        outcome: Outcome::Served,
        denial: None,
        charged: true,
        degraded: false,
        response_time_us: 1_000,
        ttfb_us: None,
        bytes_in: 10,
        bytes_out: 100,
        tokens_used: 0,
        ip_address: None,
        user_agent: "".into(),
        end_user_id: None,
        upstream: "".into(),
        node: "n1".into(),
        model: None,
        model_requested: None,
        input_tokens: None,
        cached_tokens: None,
        cache_write_tokens: None,
        output_tokens: None,
        reasoning_tokens: None,
        audio_tokens: None,
        cost_nano: None,
        usage_source: None,
        provider_request_id: None,
    }
}
