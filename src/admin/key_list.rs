//! Lists of keys, by page or by cursor.

use super::apikeys::KeyView;
use super::caller::WorkspaceReader;
use super::context::AdminState;
use super::cursor;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{FromParams, Query, QueryParams};
use super::page::{millis, page_request};
use super::schema::KeyTypeWord;
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::KeyId;
use crate::model::key::KeyType;
use crate::store::{KeyCursor, KeyFilter, KeyRecord, Page, PageRequest};
use axum::extract::State;
use serde::Serialize;
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
    /// Only the key with this id in another system.
    external_id: Option<String>,
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
            external_id: params.text("external_id"),
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

// === handlers ===

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

// === impl ListedKeys ===

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
