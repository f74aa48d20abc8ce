//! Totals of a workspace and of groups, from the roll-ups of its keys.

use super::StoreError;
use super::row;
use crate::model::id::WorkspaceId;
use crate::store::shared::decode::{read_usage_group, read_usage_total};
use crate::store::shared::rollup::{total_width, whole_days};
use crate::store::{Page, PageRequest, UsageGroup, UsageGroupTotal, UsageTotal, UsageTotalsFilter};
use rusqlite::{Transaction, named_params};

/// The sums for [`read_usage_total`]. A sum that is too large saturates.
macro_rules! sums {
    () => {
        "count(*), CAST(total(t.requests) AS INTEGER), CAST(total(t.denied) AS INTEGER),
         CAST(total(t.unreached) AS INTEGER), CAST(total(t.errors) AS INTEGER), CAST(total(t.charged) AS INTEGER),
         CAST(total(t.tokens) AS INTEGER), CAST(total(t.bytes_in) AS INTEGER), CAST(total(t.bytes_out) AS INTEGER),
         max(t.last_at), CAST(total(t.response_count) AS INTEGER), CAST(total(t.response_us_sum) AS INTEGER)"
    };
}

/// The roll-ups of a workspace's keys in a range.
macro_rules! of_keys {
    () => {
        " FROM keys k JOIN usage_rollups t ON t.subject_kind = 1 AND t.subject_id = k.id AND t.width = :width
              AND t.start >= :from AND t.start < :to
          WHERE k.workspace_id = :workspace AND (:resource IS NULL OR k.resource_id = :resource) "
    };
}

/// The total.
pub(super) fn all(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
) -> Result<UsageTotal, StoreError> {
    let (from, to) = whole_days(filter.days);
    let found = row::one(
        tx,
        concat!("SELECT ", sums!(), of_keys!()),
        named_params! {
            ":width": total_width(filter.days).seconds(),
            ":from": from,
            ":to": to,
            ":workspace": workspace.as_str(),
            ":resource": filter.resource_id,
        },
        read_usage_total,
    )?;
    Ok(found.unwrap_or_default())
}

/// In groups, those with the most requests first.
pub(super) fn groups(
    tx: &Transaction<'_>,
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
                "GROUP BY k.id ORDER BY total(t.requests) DESC, k.name, k.id LIMIT :limit OFFSET :offset"
            ),
        ),
        UsageGroup::Resource => (
            concat!("SELECT count(DISTINCT k.resource_id)", of_keys!()),
            concat!(
                "SELECT NULL, NULL, k.resource_id, ",
                sums!(),
                of_keys!(),
                "GROUP BY k.resource_id ORDER BY total(t.requests) DESC, k.resource_id LIMIT :limit OFFSET :offset"
            ),
        ),
    };
    let (from, to) = whole_days(filter.days);
    let width = total_width(filter.days).seconds();
    let total = row::count(
        tx,
        count,
        named_params! {
            ":width": width,
            ":from": from,
            ":to": to,
            ":workspace": workspace.as_str(),
            ":resource": filter.resource_id,
        },
    )?;
    let items = row::all(
        tx,
        select,
        named_params! {
            ":width": width,
            ":from": from,
            ":to": to,
            ":workspace": workspace.as_str(),
            ":resource": filter.resource_id,
            ":limit": page.pagesize,
            ":offset": row::int(page.offset()),
        },
        read_usage_group,
    )?;
    Ok(Page::complete(items, total))
}
