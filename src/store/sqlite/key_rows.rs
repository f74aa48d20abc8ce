//! Selecting keys.

use super::StoreError;
use super::row;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::KeyType;
use crate::store::shared::decode::{key_columns, key_record_columns, read_key_record, sound_key_record};
use crate::store::shared::rules;
use crate::store::{KeyCursor, KeyFilter, KeyRecord, Page, PageRequest};
use rusqlite::{Transaction, named_params, params};

/// Keys, with the roll-up of their whole life.
macro_rules! select_keys {
    () => {
        " FROM keys k LEFT JOIN usage_rollups t
           ON t.subject_kind = 1 AND t.subject_id = k.id AND t.width = 0 AND t.start = 0 "
    };
}
pub(super) use select_keys;

/// The columns for [`read_key_record`]: the key, what is shown of it, and its usage so far.
macro_rules! select_records {
    () => {
        concat!("SELECT ", key_columns!(), ", ", key_record_columns!(), select_keys!())
    };
}

/// The filter of a list; `k` is the table.
macro_rules! listed {
    () => {
        "WHERE k.workspace_id = :workspace AND (k.deleted_at IS NOT NULL) = :deleted AND (k.deleted_at IS NULL OR k.digest IS NOT NULL)
           AND (:kind IS NULL OR k.kind = :kind) AND (:active IS NULL OR k.is_active = :active)
           AND (:resource IS NULL OR k.resource_id = :resource)
           AND (:external IS NULL OR k.external_id = :external)
           AND (:search IS NULL OR instr(k.search_text, :search) > 0)
           AND (k.created_at, k.id) < (:at, :id) "
    };
}

/// One key that is not deleted.
pub(super) fn live_record(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
) -> Result<Option<KeyRecord>, StoreError> {
    let sql = concat!(select_records!(), "WHERE k.id = ?1 AND k.workspace_id = ?2 AND k.deleted_at IS NULL");
    row::one(tx, sql, params![id.0.as_bytes(), workspace.as_str()], read_key_record)
}

/// One page of the matching keys.
pub(super) fn list(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    filter: &KeyFilter,
    page: PageRequest,
) -> Result<Page<KeyRecord>, StoreError> {
    let search = filter.search.as_deref().map(rules::fold_case);
    // The position is always a bound, so that the index leads to it: the rows before it are not read.
    let after = filter.after.unwrap_or(KeyCursor::START);
    let (at, id) = (after.created_at.as_micros(), after.id.0);
    let count = || {
        row::count(
            tx,
            concat!("SELECT count(*) FROM keys k ", listed!()),
            named_params! {
                ":workspace": workspace.as_str(),
                ":kind": filter.kind.map(KeyType::as_str),
                ":active": filter.is_active,
                ":resource": filter.resource_id,
            ":external": filter.external_id,
                ":search": search,
                ":deleted": filter.is_deleted,
                ":at": at,
                ":id": id.as_bytes(),
            },
        )
    };
    let total = if filter.after.is_none() { Some(count()?) } else { None };
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
        ":external": filter.external_id,
            ":search": search,
            ":deleted": filter.is_deleted,
            ":at": at,
            ":id": id.as_bytes(),
            ":limit": page.pagesize,
            ":offset": row::int(page.offset()),
        },
        sound_key_record,
    )?;
    let total = total.unwrap_or(items.len() as u64);
    Ok(Page::of_readable(items, total))
}
