//! Usage records of all keys ordered by id, in parts: first the end of the part, then its rows.

use super::StoreError;
use super::row;
use crate::clock::Timestamp;
use crate::model::id::{RequestId, WorkspaceId};
use crate::model::usage::usage_columns;
use crate::store::shared::decode::sound_usage;
use crate::store::{RecordFilter, RecordPage};
use rusqlite::{Transaction, params};

pub(super) fn part(
    tx: &Transaction<'_>,
    filter: &RecordFilter,
    first: RequestId,
    looks_at: u32,
) -> Result<RecordPage, StoreError> {
    // A part cannot begin at an invalid id; such a row is skipped with its neighbours.
    let end = "SELECT id FROM usage WHERE id >= ?1 AND length(id) = 16 ORDER BY id LIMIT 1 OFFSET ?2";
    let next = row::one(tx, end, params![first.0.as_bytes(), looks_at], |f| Ok(RequestId(f.uuid("id")?)))?;
    // Without an end: before a value that is longer than any id.
    let rows = concat!(
        "SELECT ",
        usage_columns!(),
        " FROM usage WHERE id >= ?1 AND id < coalesce(?2, x'ffffffffffffffffffffffffffffffffff')
          AND at >= ?3 AND at < ?4 AND (?5 IS NULL OR workspace_id = ?5) AND (?6 IS NULL OR api_key_id = ?6)
          AND at >= coalesce((SELECT w.usage_kept_from FROM workspaces w WHERE w.id = usage.workspace_id), ?3)
          ORDER BY id"
    );
    let values = params![
        first.0.as_bytes(),
        next.as_ref().map(|id| id.0.as_bytes()),
        filter.from.map_or(i64::MIN, Timestamp::as_micros),
        filter.to.map_or(i64::MAX, Timestamp::as_micros),
        filter.workspace.as_ref().map(WorkspaceId::as_str),
        filter.key.as_ref().map(|id| id.0.as_bytes()),
    ];
    Ok(RecordPage::of(row::all(tx, rows, values, sound_usage)?, next))
}
