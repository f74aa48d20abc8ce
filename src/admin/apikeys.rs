//! Keys: create, read, change, delete, regenerate.

use super::caller::{WorkspaceReader, WorkspaceWriter};
use super::context::{Admin, AdminState};
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{Object, OptionalObject, PathSegment, Query};
use super::idempotency;
use super::input::{CreateKeyInput, STATISTICS, UpdateKeyInput, credential, read_grace_period};
use super::page::millis;
use super::propagation::{Spread, WaitParams, WaitQuery, spread};
use super::schema::{CountWord, KeyCreate, KeyRegenerate, KeyTypeWord, KeyUpdate, OwnerWord, PerWord};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::grant::raised;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::{Ceiling, Ceilings, Key, KeyType, Plan};
use crate::policy::keys::secret::{Pepper, Secret};
use crate::store::{IssuedCredential, KeyRecord, StoreError};
use axum::extract::State;
use axum::http::HeaderMap;
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

// === answers ===

/// A key, without its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyView {
    /// UUIDv7.
    id: String,
    name: String,
    description: String,
    /// First and last characters of the secret.
    #[schema(example = "sk-service-Ab3d…9fQz")]
    hint: String,
    #[schema(value_type = KeyTypeWord)]
    r#type: &'static str,
    /// In alphabetical order.
    scopes: Vec<String>,
    resource_id: String,
    workspace_id: String,
    /// Requests per second.
    rate_limit: u32,
    /// Requests that may come at once; null: `rate_limit`.
    rate_burst: Option<u32>,
    /// Requests per day; null: no limit.
    daily_request_limit: Option<u64>,
    /// Requests in the key's life; null: no limit.
    quota_limit: Option<u64>,
    /// How many of them are spent, according to the ledger.
    quota_used: u64,
    /// Requests in flight; null: no limit.
    concurrency_limit: Option<u32>,
    limits: Vec<CeilingView>,
    /// Addresses and networks from which it may be used; empty: any.
    allowed_ips: Vec<String>,
    /// The end user it is bound to, by your own id; null: none.
    end_user: Option<String>,
    /// Its id in another system; null: none.
    external_id: Option<String>,
    metadata: Map<String, Value>,
    is_active: bool,
    is_expired: bool,
    /// Epoch milliseconds; null: never.
    expires_at: Option<i64>,
    /// Epoch milliseconds; null: not yet.
    last_used_at: Option<i64>,
    /// Requests that reached a backend, according to the ledger.
    usage_count: u64,
    created_by: String,
    /// Epoch milliseconds.
    created_at: i64,
    /// Epoch milliseconds.
    updated_at: i64,
}

/// A further limit.
#[derive(Serialize, ToSchema)]
pub(super) struct CeilingView {
    /// Whose usage it counts; only of a plan's limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<OwnerWord>)]
    of: Option<&'static str>,
    #[schema(value_type = CountWord)]
    count: &'static str,
    #[schema(value_type = PerWord)]
    per: &'static str,
    max: u64,
}

/// A key with its secret, which is shown only this once.
#[derive(Serialize, ToSchema)]
pub(super) struct IssuedKey {
    #[serde(flatten)]
    key: KeyView,
    /// The secret. It is not stored and cannot be shown again: null in the answer to a repeated request.
    api_key: Option<String>,
}

/// The current state of a key.
#[derive(Serialize, ToSchema)]
pub(super) struct ChangedKey {
    #[serde(flatten)]
    key: KeyView,
    #[serde(skip_serializing_if = "Option::is_none")]
    propagation: Option<Spread>,
}

/// A deleted key.
#[derive(Serialize, ToSchema)]
pub(super) struct DeletedKey {
    #[serde(flatten)]
    deleted: Deleted,
    #[serde(skip_serializing_if = "Option::is_none")]
    propagation: Option<Spread>,
}

/// What was deleted.
#[derive(Serialize, ToSchema)]
pub(super) struct Deleted {
    id: String,
    deleted: bool,
}

// === handlers ===

/// Create a key
///
/// Role `admin`. The response contains the secret as `api_key`, only this once. With an `Idempotency-Key` the request may be
/// repeated for 24 hours, on any node, and makes one key only: a repetition gets the key as it is now, with `api_key` null,
/// because the secret is not stored; `POST /apikeys/{id}/regenerate` makes a new one. The same `Idempotency-Key` with another
/// body is refused (422), and so is a repetition while this node still processes the request (409).
#[utoipa::path(post, path = "/apikeys", tag = "API keys",
params(("Idempotency-Key" = Option<String>, Header, pattern = r"^[!#-~]{1,255}$", description = "A name for the request, new for each key: 1 to 255 visible ASCII characters, with or without quotes")),
request_body = KeyCreate, responses(
    (status = 200, description = "The key and its secret", body = Envelope<IssuedKey>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn create_key(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    headers: HeaderMap,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<IssuedKey>, AdminError> {
    let at = admin.now();
    let claim = idempotency::claim(&headers, &actor, &workspace, &body)?;
    let in_flight = claim.map(|claim| admin.in_flight.enter(claim.id)).transpose()?;
    let input = CreateKeyInput::read(&body, &workspace, at).map_err(AdminError::fields)?;
    admin.check_counted(&input.limits, Some(&input.scopes))?;
    let plan = plan_of(&admin, &workspace).await?;
    let (secret, credential) = issue(&admin, input.kind);
    let mut key = input
        .into_new_key(KeyId::new(at), workspace.clone(), &plan, credential)
        .map_err(|error| AdminError::of_store(error, Fault::NotFound))?;
    key.once = claim;
    let call = async {
        match admin.deps.store.create_key(key, &actor, at).await {
            Err(StoreError::Repeated(id)) => Ok(Err(id)),
            made => made.map(Ok),
        }
    };
    let made = admin.ask(Fault::NotFound, call).await?;
    let answer = match made {
        Ok(made) => {
            admin.reach(made.version).await;
            IssuedKey::new(made.value, &secret, at)
        }
        Err(id) => IssuedKey::repeated(find(&admin, &workspace, id).await?, at),
    };
    drop(in_flight);
    Ok(ApiResponse::ok(answer))
}

/// Read a key
///
/// Role `viewer`.
#[utoipa::path(get, path = "/apikeys/{id}", tag = "API keys", params(("id" = String, Path, description = "Which key")), responses(
    (status = 200, description = "The key", body = Envelope<KeyView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn get_key(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<KeyView>, AdminError> {
    let key = find(&admin, &workspace, id.key_id()?).await?;
    Ok(ApiResponse::ok(KeyView::new(key, admin.now())))
}

/// Change a key
///
/// Role `admin`. Absent fields stay as they are; null clears those that can be empty. What `GET` shows may be sent back: a
/// field with its current value is no change, and a read-only field is refused only if it differs. The change applies on
/// this node when the response arrives.
#[utoipa::path(put, path = "/apikeys/{id}", tag = "API keys",
params(("id" = String, Path, description = "Which key"), WaitParams), request_body = KeyUpdate, responses(
    (status = 200, description = "The key as it is now", body = Envelope<ChangedKey>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn update_key(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    id: PathSegment,
    Query(wait): Query<WaitQuery>,
    Object(body): Object,
) -> Result<ApiResponse<ChangedKey>, AdminError> {
    let at = admin.now();
    let id = id.key_id()?;
    let key = find(&admin, &workspace, id).await?;
    let (kind, expires_at, scopes) = (key.key.kind, key.key.expires_at, key.key.scopes.clone());
    let view = KeyView::new(key, at);
    let edits = view.changes(body);
    let input = UpdateKeyInput::read(&edits, expires_at, at).map_err(AdminError::fields)?;
    if input.is_empty() {
        return Ok(ApiResponse::ok(ChangedKey { key: view, propagation: None }));
    }
    // A key's type never changes, so what was checked against it is still valid when the store writes.
    let patch = input.into_patch(kind).map_err(AdminError::fields)?;
    if let Some(limits) = &patch.limits {
        admin.check_counted(limits, Some(patch.scopes.as_ref().unwrap_or(&scopes)))?;
    }
    let call = admin.deps.store.update_key(&workspace, id, patch, &actor, at);
    let changed = admin.write_versioned(Fault::KeyNotFound, call).await?;
    let propagation = spread(&admin, &wait, changed.version).await;
    Ok(ApiResponse::ok(ChangedKey { key: KeyView::new(changed.value, at), propagation }))
}

/// Change a key
///
/// The same as `PUT`.
#[utoipa::path(patch, path = "/apikeys/{id}", tag = "API keys",
params(("id" = String, Path, description = "Which key"), WaitParams), request_body = KeyUpdate, responses(
    (status = 200, description = "The key as it is now", body = Envelope<ChangedKey>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn patch_key(
    admin: State<AdminState>,
    writer: WorkspaceWriter,
    id: PathSegment,
    wait: Query<WaitQuery>,
    body: Object,
) -> Result<ApiResponse<ChangedKey>, AdminError> {
    update_key(admin, writer, id, wait, body).await
}

/// Delete a key
///
/// Role `admin`. The secret is refused from now on, statistics and logs stay, the name is free. Within the plan's
/// `deleted_keys_days`, `POST /apikeys/{id}/restore` undoes it; after that the deletion is final.
#[utoipa::path(delete, path = "/apikeys/{id}", tag = "API keys",
params(("id" = String, Path, description = "Which key"), WaitParams), responses(
    (status = 200, description = "It is gone", body = Envelope<DeletedKey>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn delete_key(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    id: PathSegment,
    Query(wait): Query<WaitQuery>,
) -> Result<ApiResponse<DeletedKey>, AdminError> {
    let id = id.key_id()?;
    let call = admin.deps.store.delete_key(&workspace, id, &actor, admin.now());
    let deleted = admin.write_versioned(Fault::KeyNotFound, call).await?;
    let propagation = spread(&admin, &wait, deleted.version).await;
    Ok(ApiResponse::ok(DeletedKey { deleted: Deleted::new(&id), propagation }))
}

/// Restore a deleted key
///
/// Role `admin`. Within the plan's `deleted_keys_days` the key comes back as it was: its secret is valid again, and its
/// spent limits stay spent. Refused if its name is taken (409), if its rate is above the plan (400), or if another key has
/// got its secret meanwhile (409).
#[utoipa::path(post, path = "/apikeys/{id}/restore", tag = "API keys",
params(("id" = String, Path, description = "Which key"), WaitParams), responses(
    (status = 200, description = "The key, which is there again", body = Envelope<ChangedKey>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn restore_key(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    id: PathSegment,
    Query(wait): Query<WaitQuery>,
) -> Result<ApiResponse<ChangedKey>, AdminError> {
    let at = admin.now();
    let id = id.key_id()?;
    let peppers: Vec<u32> = admin.deps.peppers.iter().map(Pepper::version).collect();
    let call = admin.deps.store.restore_key(&workspace, id, &peppers, &actor, at);
    let restored = admin.write_versioned(Fault::KeyNotFound, call).await?;
    let propagation = spread(&admin, &wait, restored.version).await;
    Ok(ApiResponse::ok(ChangedKey { key: KeyView::new(restored.value, at), propagation }))
}

/// Give a key a new secret
///
/// Role `admin`. Id, limits, spent quota and statistics stay. The previous secret ends at once, or after the grace period;
/// older ones end in any case.
#[utoipa::path(post, path = "/apikeys/{id}/regenerate", tag = "API keys", params(("id" = String, Path, description = "Which key")),
request_body = Option<KeyRegenerate>, responses(
    (status = 200, description = "The key and its new secret", body = Envelope<IssuedKey>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn regenerate_key(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    id: PathSegment,
    Query(()): Query<()>,
    OptionalObject(body): OptionalObject,
) -> Result<ApiResponse<IssuedKey>, AdminError> {
    let at = admin.now();
    let id = id.key_id()?;
    let grace = read_grace_period(&body).map_err(AdminError::fields)?;
    let old_until = grace.map(|grace| at.plus(grace));
    let (secret, credential) = issue(&admin, find(&admin, &workspace, id).await?.key.kind);
    let call = admin.deps.store.regenerate_key(&workspace, id, credential, old_until, &actor, at);
    let key = admin.write(Fault::KeyNotFound, call).await?;
    Ok(ApiResponse::ok(IssuedKey::new(key, &secret, at)))
}

// === helpers ===

/// A key that is not deleted.
pub(super) async fn find(admin: &Admin, workspace: &WorkspaceId, id: KeyId) -> Result<KeyRecord, AdminError> {
    let found = admin.ask(Fault::KeyNotFound, admin.deps.store.key(workspace, id)).await?;
    found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))
}

/// The plan that a workspace is on, raised by its grants.
pub(super) async fn plan_of(admin: &Admin, workspace: &WorkspaceId) -> Result<Plan, AdminError> {
    let store = &admin.deps.store;
    let tenant = admin.ask(Fault::NotFound, store.workspace(workspace)).await?;
    let tenant = tenant.ok_or_else(|| AdminError::of(Fault::NotFound))?;
    let plan = admin.ask(Fault::NotFound, store.plan(&tenant.plan_id)).await?;
    let plan = plan.ok_or_else(|| AdminError::of(Fault::NotFound))?.plan;
    Ok(raised(&plan, &tenant.grants, admin.now()))
}

fn issue(admin: &Admin, kind: KeyType) -> (Secret, IssuedCredential) {
    let prefix = &admin.deps.secret_prefix;
    let secret = Secret::generate(prefix, kind);
    let stored = credential(&secret, prefix, &admin.deps.peppers);
    (secret, stored)
}

// === impl KeyView ===

/// Fields that change by themselves: clients may send them back with any value.
const COUNTED: &[&str] = &["quota_used", "usage_count", "last_used_at", "is_expired", "updated_at"];

impl KeyView {
    /// The fields of `body` that differ from what this view shows.
    fn changes(&self, mut body: Map<String, Value>) -> Map<String, Value> {
        let shown = serde_json::to_value(self).unwrap_or_default();
        let says_nothing = |name: &str| COUNTED.contains(&name) || STATISTICS.contains(&name);
        body.retain(|name, value| !says_nothing(name) && shown.get(name) != Some(value));
        body
    }

    /// The view of `record` at the instant `at`.
    pub(super) fn new(record: KeyRecord, at: Timestamp) -> Self {
        let KeyRecord {
            key,
            name,
            description,
            external_id,
            metadata,
            hint,
            quota_used,
            usage_count,
            last_used_at,
            created_by,
            created_at,
            updated_at,
            deleted_at: _,
        } = record;
        let Key {
            id,
            workspace_id,
            kind,
            scopes,
            resource_id,
            ceilings,
            allowed_ips,
            is_active,
            expires_at,
            end_user,
        } = key;
        let Ceilings { rate_limit, rate_burst, daily_request_limit, quota_limit, concurrency_limit, limits } =
            ceilings;
        Self {
            id: id.to_string(),
            name,
            description,
            hint: hint.into(),
            r#type: kind.as_str(),
            scopes: scopes.iter().map(ToOwned::to_owned).collect(),
            resource_id: resource_id.into(),
            workspace_id: workspace_id.to_string(),
            rate_limit,
            rate_burst,
            daily_request_limit,
            quota_limit,
            quota_used,
            concurrency_limit,
            limits: limits.iter().map(CeilingView::new).collect(),
            allowed_ips: allowed_ips.iter().map(network).collect(),
            end_user: end_user.map(Into::into),
            external_id,
            metadata,
            is_active,
            is_expired: expires_at.is_some_and(|end| end <= at),
            expires_at: expires_at.map(millis),
            last_used_at: last_used_at.map(millis),
            usage_count,
            created_by,
            created_at: millis(created_at),
            updated_at: millis(updated_at),
        }
    }
}

/// A network in the usual notation: a single address without its prefix length.
fn network(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

impl CeilingView {
    /// The view of a limit.
    pub(super) fn new(ceiling: &Ceiling) -> Self {
        let Ceiling { of: _, count, per, max } = *ceiling;
        Self { of: None, count: count.as_str(), per: per.as_str(), max }
    }

    /// The view of a limit of a plan.
    pub(super) fn of_plan(ceiling: &Ceiling) -> Self {
        Self { of: Some(ceiling.of.as_str()), ..Self::new(ceiling) }
    }
}

impl IssuedKey {
    fn new(record: KeyRecord, secret: &Secret, at: Timestamp) -> Self {
        Self { key: KeyView::new(record, at), api_key: Some(secret.expose().to_owned()) }
    }

    /// A key whose secret another answer had.
    fn repeated(record: KeyRecord, at: Timestamp) -> Self {
        Self { key: KeyView::new(record, at), api_key: None }
    }
}

impl Deleted {
    /// The response after deleting the record with this id.
    pub(super) fn new(id: &impl ToString) -> Self {
        Self { id: id.to_string(), deleted: true }
    }
}
