//! Totals of a workspace and of groups, from the roll-ups of its keys.

use super::StoreError;
use super::tx::Tx;
use crate::model::id::WorkspaceId;
use crate::store::shared::decode::{read_usage_group, read_usage_total};
use crate::store::shared::fields::int;
use crate::store::shared::rollup::{total_width, whole_days};
use crate::store::{Page, PageRequest, UsageGroup, UsageGroupTotal, UsageTotal, UsageTotalsFilter};
use tokio_postgres::types::ToSql;

/// A sum that is too large saturates.
macro_rules! sum {
    ($column:literal) => {
        concat!("least(coalesce(sum(t.", $column, "), 0), 9223372036854775807)::bigint")
    };
}

/// The figures that [`read_usage_total`] reads, summed up.
macro_rules! sums {
    () => {
        concat!(
            "count(*), ",
            sum!("requests"),
            ", ",
            sum!("denied"),
            ", ",
            sum!("unreached"),
            ", ",
            sum!("errors"),
            ", ",
            sum!("charged"),
            ", ",
            sum!("tokens"),
            ", ",
            sum!("bytes_in"),
            ", ",
            sum!("bytes_out"),
            ", max(t.last_at), ",
            sum!("response_count"),
            ", ",
            sum!("response_us_sum")
        )
    };
}

/// The roll-ups of a workspace's keys in a range.
macro_rules! of_keys {
    () => {
        " FROM keys k JOIN usage_rollups t ON t.subject_kind = 1 AND t.subject_id = uuid_send(k.id) AND t.width = $1
              AND t.start >= $2 AND t.start < $3
          WHERE k.workspace_id = $4 AND ($5::text IS NULL OR k.resource_id = $5) "
    };
}

/// The total.
pub(super) async fn all(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
) -> Result<UsageTotal, StoreError> {
    let (from, to) = whole_days(filter.days);
    let values: &[&(dyn ToSql + Sync)] =
        &[&total_width(filter.days).seconds(), &from, &to, &workspace.as_str(), &filter.resource_id];
    let found = tx.one(concat!("SELECT ", sums!(), of_keys!()), values, read_usage_total).await?;
    Ok(found.unwrap_or_default())
}

/// In groups, those with the most requests first.
pub(super) async fn groups(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
    by: UsageGroup,
    page: PageRequest,
) -> Result<Page<UsageGroupTotal>, StoreError> {
    let (count, select) = match by {
        UsageGroup::Key => (
            concat!("SELECT count(DISTINCT k.id)", of_keys!()),
            concat!(
                "SELECT k.id, k.name, k.resource_id, ",
                sums!(),
                of_keys!(),
                "GROUP BY k.id, k.name, k.resource_id ORDER BY sum(t.requests) DESC, k.name, k.id LIMIT $6 OFFSET $7"
            ),
        ),
        UsageGroup::Resource => (
            concat!("SELECT count(DISTINCT k.resource_id)", of_keys!()),
            concat!(
                "SELECT NULL::uuid, NULL::text, k.resource_id, ",
                sums!(),
                of_keys!(),
                "GROUP BY k.resource_id ORDER BY sum(t.requests) DESC, k.resource_id LIMIT $6 OFFSET $7"
            ),
        ),
    };
    let (from, to) = whole_days(filter.days);
    let width = total_width(filter.days).seconds();
    let total = tx.count(count, &[&width, &from, &to, &workspace.as_str(), &filter.resource_id]).await?;
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let values: &[&(dyn ToSql + Sync)] =
        &[&width, &from, &to, &workspace.as_str(), &filter.resource_id, &limit, &offset];
    let items = tx.all(select, values, read_usage_group).await?;
    Ok(Page::complete(items, total))
}
