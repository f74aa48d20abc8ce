//! Totals of a workspace and of groups.

use super::StoreError;
use super::row;
use crate::model::id::WorkspaceId;
use crate::store::shared::decode::{read_usage_group, read_usage_total};
use crate::store::shared::rollup::{total_width, whole_days};
use crate::store::shared::totals::{Dialect, GroupQuery};
use crate::store::{Page, PageRequest, UsageGroup, UsageGroupTotal, UsageTotal, UsageTotalsFilter};
use rusqlite::types::Value;
use rusqlite::{Transaction, params, params_from_iter};

const SQL: Dialect = Dialect {
    mark: "?",
    sum: ("CAST(total(", ") AS INTEGER)"),
    key_bytes: "k.id",
    workspace_bytes: "CAST(?1 AS BLOB)",
    end_user_id: "g.name",
};

/// The total.
pub(super) fn all(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
) -> Result<UsageTotal, StoreError> {
    let (from, to) = whole_days(filter.days);
    let width = total_width(filter.days).seconds();
    let sql = SQL.total(filter.resource_id.is_some());
    let total = match &filter.resource_id {
        Some(resource) => {
            row::one(tx, &sql, params![workspace.as_str(), width, from, to, resource], read_usage_total)
        }
        None => row::one(tx, &sql, params![workspace.as_str(), width, from, to], read_usage_total),
    };
    Ok(total?.unwrap_or_default())
}

/// In groups, those with the most requests first.
pub(super) fn groups(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
    by: UsageGroup,
    page: PageRequest,
) -> Result<Page<UsageGroupTotal>, StoreError> {
    let (from, to) = whole_days(filter.days);
    let which = match Dialect::kind(by) {
        Some(kind) => kind.into(),
        None => filter.resource_id.clone().map_or(Value::Null, Value::Text),
    };
    let values: [Value; 5] = [
        workspace.as_str().to_owned().into(),
        total_width(filter.days).seconds().into(),
        from.into(),
        to.into(),
        which,
    ];
    let page: [Value; 2] = [page.pagesize.into(), row::int(page.offset()).into()];
    let GroupQuery { count, select } = SQL.groups(by);
    let total = row::count(tx, &count, params_from_iter(&values))?;
    let values = params_from_iter(values.iter().chain(&page));
    let items = row::all(tx, &select, values, |f| read_usage_group(by, f))?;
    Ok(Page::complete(items, total))
}
