//! Keys: create, list, read, change, delete, regenerate.

use super::caller::{WorkspaceReader, WorkspaceWriter};
use super::context::{Admin, AdminState};
use super::cursor;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Object, OptionalObject, PathSegment, Query, QueryParams};
use super::input::{CreateKeyInput, STATISTICS, UpdateKeyInput, credential, read_grace_period};
use super::page::{millis, page_request};
use super::propagation::{Spread, WaitParams, WaitQuery, spread};
use super::schema::{CountWord, KeyCreate, KeyRegenerate, KeyTypeWord, KeyUpdate, OwnerWord, PerWord};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::grant::raised;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::{Ceiling, Ceilings, Key, KeyType, Plan};
use crate::policy::keys::secret::{Pepper, Secret};
use crate::store::{IssuedCredential, KeyCursor, KeyFilter, KeyRecord, Page, PageRequest};
use axum::extract::State;
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

// === requests ===

/// The filter of a list of keys.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `KeyQuery` reads")]
pub(super) struct KeyParams {
    /// Only this type.
    r#type: Option<KeyTypeWord>,
    /// `true` (default), `false`, or `any`.
    #[param(default = "true")]
    is_active: Option<String>,
    /// `true`: deleted keys that can be restored, instead of existing ones. `is_active` then defaults to `any`.
    #[param(default = "false")]
    is_deleted: Option<String>,
    /// Only keys of this resource.
    resource_id: Option<String>,
    /// Only keys whose name, description or hint contains this, ignoring case.
    search: Option<String>,
    /// Number of the page, from 1. Not together with `cursor`.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 100, default = 10)]
    pagesize: Option<u32>,
    /// The `page.next_cursor` of the previous response.
    cursor: Option<String>,
}

/// [`KeyParams`], parsed.
pub(super) struct KeyQuery {
    filter: KeyFilter,
    page: PageRequest,
    /// Whether disabled keys are left out although nobody asked for that.
    hides_disabled: bool,
}

impl FromParams for KeyQuery {
    fn from_params(params: &mut QueryParams) -> Self {
        let active = params.read("is_active", |text| match text {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            "any" => Ok(None),
            _ => Err("must be one of: true, false, any".into()),
        });
        let is_deleted = params.flag("is_deleted").unwrap_or(false);
        let filter = KeyFilter {
            kind: params.word::<KeyType>("type"),
            is_active: active.unwrap_or((!is_deleted).then_some(true)),
            is_deleted,
            resource_id: params.text("resource_id"),
            search: params.text("search").filter(|text| !text.is_empty()),
            after: params.read("cursor", |text| {
                let place = cursor::decode(text).map(|(at, id)| KeyCursor { created_at: at, id: KeyId(id) });
                place.ok_or_else(|| "must be the page.next_cursor of an answer".to_owned())
            }),
        };
        let page = page_request(params);
        if filter.after.is_some() && page.page != 1 {
            params.refuse("cursor", "cannot be given together with page");
        }
        let hides_disabled = active.is_none() && !is_deleted && filter.after.is_none();
        Self { filter, page, hides_disabled }
    }
}

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

/// A key in a list.
#[derive(Serialize, ToSchema)]
pub(super) struct ListedKey {
    #[serde(flatten)]
    key: KeyView,
    /// Epoch milliseconds; only of deleted keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<i64>,
}

/// A part of the keys of a workspace, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct ListedKeys {
    page: KeyPageView,
    items: Vec<ListedKey>,
    /// How many disabled keys meet the other conditions and are left out. Only without `is_active`, `is_deleted` and `cursor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled: Option<u64>,
}

/// The position of this part.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyPageView {
    /// Number of the page; null with a cursor.
    page: Option<u32>,
    /// Items on a full page.
    pagesize: u32,
    /// Keys on all pages; null with a cursor.
    total: Option<u64>,
    hasnext: bool,
    /// The `cursor` of the next part; null at the end.
    next_cursor: Option<String>,
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
    /// The secret. It is not stored and cannot be shown again.
    api_key: String,
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
/// Role `admin`. The response contains the secret as `api_key`, only this once.
#[utoipa::path(post, path = "/apikeys", tag = "API keys", request_body = KeyCreate, responses(
    (status = 200, description = "The key and its secret", body = Envelope<IssuedKey>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn create_key(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<IssuedKey>, AdminError> {
    let at = admin.now();
    let input = CreateKeyInput::read(&body, &workspace, at).map_err(AdminError::fields)?;
    admin.check_counted(&input.limits, Some(&input.scopes))?;
    let plan = plan_of(&admin, &workspace).await?;
    let (secret, credential) = issue(&admin, input.kind);
    let key = input
        .into_new_key(KeyId::new(at), workspace, &plan, credential)
        .map_err(|error| AdminError::of_store(error, Fault::NotFound))?;
    let made = admin.write(Fault::NotFound, admin.deps.store.create_key(key, &actor, at)).await?;
    Ok(ApiResponse::ok(IssuedKey::new(made, &secret, at)))
}

/// List keys
///
/// Role `viewer`. Newest first, by page or by cursor; only a cursor skips and repeats nothing while keys are created, and costs
/// the same however many keys come before it. Disabled keys are listed only with `is_active=false` or `any`, deleted ones only
/// with `is_deleted=true`.
#[utoipa::path(get, path = "/apikeys", tag = "API keys", params(KeyParams), responses(
    (status = 200, description = "A page of keys", body = Envelope<ListedKeys>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_keys(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    Query(KeyQuery { filter, page, hides_disabled }): Query<KeyQuery>,
) -> Result<ApiResponse<ListedKeys>, AdminError> {
    let at = admin.now();
    let keys = admin.ask(Fault::NotFound, admin.deps.store.keys(&workspace, &filter, page)).await?;
    admin.deps.metrics.store_rows_passed_over.inc_by(keys.passed_over);
    let mut listed = ListedKeys::new(page, filter.after.is_some(), keys, at);
    if hides_disabled {
        let (filter, one) =
            (KeyFilter { is_active: Some(false), ..filter }, PageRequest { page: 1, pagesize: 1 });
        let disabled = admin.ask(Fault::NotFound, admin.deps.store.keys(&workspace, &filter, one)).await?;
        listed.disabled = Some(disabled.total);
    }
    Ok(ApiResponse::ok(listed))
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

impl ListedKeys {
    fn new(asked: PageRequest, has_cursor: bool, found: Page<KeyRecord>, at: Timestamp) -> Self {
        let PageRequest { page, pagesize } = asked;
        let read = (found.items.len() as u64).saturating_add(found.passed_over);
        let hasnext = if has_cursor {
            read == u64::from(pagesize)
        } else {
            asked.offset().saturating_add(u64::from(pagesize)) < found.total
        };
        let last = found.items.last().filter(|_| hasnext);
        let next_cursor = last.map(|key| cursor::encode(key.created_at, key.key.id.0));
        let page = KeyPageView {
            page: (!has_cursor).then_some(page),
            pagesize,
            total: (!has_cursor).then_some(found.total),
            hasnext: hasnext && (next_cursor.is_some() || !has_cursor),
            next_cursor,
        };
        let items = found.items.into_iter().map(|key| ListedKey::new(key, at)).collect();
        Self { page, items, disabled: None }
    }
}

impl ListedKey {
    fn new(record: KeyRecord, at: Timestamp) -> Self {
        Self { deleted_at: record.deleted_at.map(millis), key: KeyView::new(record, at) }
    }
}

impl IssuedKey {
    fn new(record: KeyRecord, secret: &Secret, at: Timestamp) -> Self {
        Self { key: KeyView::new(record, at), api_key: secret.expose().to_owned() }
    }
}

impl Deleted {
    /// The response after deleting the record with this id.
    pub(super) fn new(id: &impl ToString) -> Self {
        Self { id: id.to_string(), deleted: true }
    }
}
