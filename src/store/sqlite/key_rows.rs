//! Keys as rows: which columns there are and how they are read.

use super::StoreError;
use super::row::{self, Fields};
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::key::{Ceilings, Key, KeyType};
use crate::store::{KeyFilter, KeyRecord, Page, PageRequest, rules};
use rusqlite::{Transaction, named_params, params};

/// The columns that [`read_key`] reads; `k` is the table.
macro_rules! key_columns {
    () => {
        "k.id, k.workspace_id, k.kind, k.scopes, k.resource_id, k.rate_limit, k.rate_burst, k.daily_request_limit,
         k.quota_limit, k.concurrency_limit, k.limits, k.allowed_ips, k.is_active, k.expires_at"
    };
}
pub(super) use key_columns;

/// What [`read_record`] reads: the key, what people see of it, and its usage so far.
macro_rules! select_records {
    () => {
        concat!(
            "SELECT ",
            key_columns!(),
            ", k.name, k.description, k.metadata, k.hint, coalesce(t.charged, 0),
               coalesce(t.requests - t.denied, 0), t.last_at, k.created_by, k.created_at, k.updated_at
             FROM keys k LEFT JOIN usage_rollups t
               ON t.subject_kind = 1 AND t.subject_id = k.id AND t.width = 0 AND t.start = 0 "
        )
    };
}

/// Which keys a list shows; `k` is the table.
macro_rules! listed {
    () => {
        "WHERE k.workspace_id = :workspace AND k.deleted_at IS NULL
           AND (:kind IS NULL OR k.kind = :kind) AND (:active IS NULL OR k.is_active = :active)
           AND (:resource IS NULL OR k.resource_id = :resource)
           AND (:search IS NULL OR instr(k.search_text, :search) > 0) "
    };
}

/// One key that is not deleted.
pub(super) fn live_record(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
) -> Result<Option<KeyRecord>, StoreError> {
    let sql = concat!(select_records!(), "WHERE k.id = ?1 AND k.workspace_id = ?2 AND k.deleted_at IS NULL");
    row::one(tx, sql, params![id.0.as_bytes(), workspace.as_str()], read_record)
}

/// One page of the keys that fit.
pub(super) fn list(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    filter: &KeyFilter,
    page: PageRequest,
) -> Result<Page<KeyRecord>, StoreError> {
    let search = filter.search.as_deref().map(rules::fold_case);
    let total = row::count(
        tx,
        concat!("SELECT count(*) FROM keys k ", listed!()),
        named_params! {
            ":workspace": workspace.as_str(),
            ":kind": filter.kind.map(KeyType::as_str),
            ":active": filter.is_active,
            ":resource": filter.resource_id,
            ":search": search,
        },
    )?;
    let items = row::all(
        tx,
        concat!(
            select_records!(),
            listed!(),
            "ORDER BY k.created_at DESC, k.id DESC LIMIT :limit OFFSET :offset"
        ),
        named_params! {
            ":workspace": workspace.as_str(),
            ":kind": filter.kind.map(KeyType::as_str),
            ":active": filter.is_active,
            ":resource": filter.resource_id,
            ":search": search,
            ":limit": page.pagesize,
            ":offset": row::int(page.offset()),
        },
        read_record,
    )?;
    Ok(Page { items, total })
}

pub(super) fn read_key(f: &mut Fields<'_>) -> Result<Key, StoreError> {
    Ok(Key {
        id: KeyId(f.uuid("id")?),
        workspace_id: f.parsed("workspace_id")?,
        kind: f.parsed("kind")?,
        scopes: f.parsed("scopes")?,
        resource_id: f.text("resource_id")?.into(),
        ceilings: Ceilings {
            rate_limit: f.int("rate_limit")?,
            rate_burst: f.maybe_int("rate_burst")?,
            daily_request_limit: f.int("daily_request_limit")?,
            quota_limit: f.maybe_int("quota_limit")?,
            concurrency_limit: f.maybe_int("concurrency_limit")?,
            limits: f.read("limits", rules::limits_from_json)?,
        },
        allowed_ips: f.read("allowed_ips", rules::ips_from_json)?,
        is_active: f.bool("is_active")?,
        expires_at: f.maybe_instant("expires_at")?,
    })
}

fn read_record(f: &mut Fields<'_>) -> Result<KeyRecord, StoreError> {
    Ok(KeyRecord {
        key: read_key(f)?,
        name: f.text("name")?.to_owned(),
        description: f.text("description")?.to_owned(),
        metadata: f.read("metadata", serde_json::from_str)?,
        hint: f.text("hint")?.into(),
        quota_used: f.int("quota_used")?,
        usage_count: f.int("usage_count")?,
        last_used_at: f.maybe_instant("last_used_at")?,
        created_by: f.text("created_by")?.to_owned(),
        created_at: f.instant("created_at")?,
        updated_at: f.instant("updated_at")?,
    })
}
