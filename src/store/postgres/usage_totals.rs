//! Totals of a workspace and of groups.

use super::StoreError;
use super::tx::Tx;
use crate::model::id::WorkspaceId;
use crate::store::shared::decode::{read_usage_group, read_usage_total};
use crate::store::shared::fields::int;
use crate::store::shared::rollup::{total_width, whole_days};
use crate::store::shared::totals::{Dialect, GroupQuery};
use crate::store::{Page, PageRequest, UsageGroup, UsageGroupTotal, UsageTotal, UsageTotalsFilter};
use tokio_postgres::types::ToSql;

const SQL: Dialect = Dialect {
    mark: "$",
    sum: ("least(coalesce(sum(", "), 0), 9223372036854775807)::bigint"),
    key_bytes: "uuid_send(k.id)",
    workspace_bytes: "convert_to($1, 'UTF8')",
    end_user_id: "encode(g.name, 'hex')::uuid",
};

/// The total.
pub(super) async fn all(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
) -> Result<UsageTotal, StoreError> {
    let (from, to) = whole_days(filter.days);
    let values: &[&(dyn ToSql + Sync)] =
        &[&workspace.as_str(), &total_width(filter.days).seconds(), &from, &to, &filter.resource_id];
    let is_of_resource = filter.resource_id.is_some();
    let values = if is_of_resource { values } else { &values[..4] };
    Ok(tx.one(&SQL.total(is_of_resource), values, read_usage_total).await?.unwrap_or_default())
}

/// In groups, those with the most requests first.
pub(super) async fn groups(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
    by: UsageGroup,
    page: PageRequest,
) -> Result<Page<UsageGroupTotal>, StoreError> {
    let (from, to) = whole_days(filter.days);
    let (workspace, width) = (workspace.as_str(), total_width(filter.days).seconds());
    let kind = Dialect::kind(by);
    let which: &(dyn ToSql + Sync) = if kind.is_some() { &kind } else { &filter.resource_id };
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let values: [&(dyn ToSql + Sync); 7] = [&workspace, &width, &from, &to, which, &limit, &offset];
    let GroupQuery { count, select } = SQL.groups(by);
    let total = tx.count(&count, &values[..5]).await?;
    let items = tx.all(&select, &values, |f| read_usage_group(by, f)).await?;
    Ok(Page::complete(items, total))
}
