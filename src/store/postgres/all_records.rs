//! Usage records of all keys ordered by id, in parts: first the end of the part, by the index alone, then its rows.
//!
//! Statements are planned for their values, so that partitions outside the time range are skipped.

use super::StoreError;
use super::tx::Tx;
use crate::clock::Timestamp;
use crate::model::id::{RequestId, WorkspaceId};
use crate::model::usage::usage_columns;
use crate::store::shared::decode::sound_usage;
use crate::store::{RecordFilter, RecordPage};
use tokio_postgres::types::Type;

pub(super) async fn part(
    tx: &Tx<'_>,
    filter: &RecordFilter,
    first: RequestId,
    looks_at: u32,
) -> Result<RecordPage, StoreError> {
    let from = filter.from.map_or(i64::MIN, Timestamp::as_micros);
    let to = filter.to.map_or(i64::MAX, Timestamp::as_micros);
    let end = "SELECT id FROM usage WHERE id >= $1 AND at >= $2 AND at < $3 ORDER BY id LIMIT 1 OFFSET $4";
    let ends = tx
        .all_planned(
            end,
            &[
                (&first.0, Type::UUID),
                (&from, Type::INT8),
                (&to, Type::INT8),
                (&i64::from(looks_at), Type::INT8),
            ],
            |f| Ok(RequestId(f.uuid("id")?)),
        )
        .await?;
    let next = ends.first().copied();
    let rows = concat!(
        "SELECT ",
        usage_columns!(),
        " FROM usage WHERE id >= $1 AND ($2::uuid IS NULL OR id < $2) AND at >= $3 AND at < $4
          AND ($5::text IS NULL OR workspace_id = $5) AND ($6::uuid IS NULL OR api_key_id = $6)
          AND at >= coalesce((SELECT w.usage_kept_from FROM workspaces w WHERE w.id = usage.workspace_id), $3)
          ORDER BY id"
    );
    let found = tx
        .all_planned(
            rows,
            &[
                (&first.0, Type::UUID),
                (&next.map(|id| id.0), Type::UUID),
                (&from, Type::INT8),
                (&to, Type::INT8),
                (&filter.workspace.as_ref().map(WorkspaceId::as_str), Type::TEXT),
                (&filter.key.map(|id| id.0), Type::UUID),
            ],
            sound_usage,
        )
        .await?;
    Ok(RecordPage::of(found, next))
}
