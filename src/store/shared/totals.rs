//! The queries for totals of a workspace and of groups. Those of keys and resources are summed up from the roll-ups of keys;
//! end users, routes and models have their own totals.
//!
//! Every query has the same first parameters: the workspace, the width, the first start, the start after the last, and
//! fifth the resource (NULL: all) or the kind of group.

use super::groups::GroupKind;
use super::sums;
use crate::store::UsageGroup;

/// Where the backends differ.
pub(in crate::store) struct Dialect {
    /// What a parameter's number follows.
    pub(in crate::store) mark: &'static str,
    /// Around a column of `t`: its sum, which saturates.
    pub(in crate::store) sum: (&'static str, &'static str),
    /// The bytes of `k.id`.
    pub(in crate::store) key_bytes: &'static str,
    /// The bytes of the workspace.
    pub(in crate::store) workspace_bytes: &'static str,
    /// The end user's id in the bytes of `g.name`.
    pub(in crate::store) end_user_id: &'static str,
}

/// A query for groups.
pub(in crate::store) struct GroupQuery {
    /// How many groups there are.
    pub(in crate::store) count: String,
    /// The groups of a page; two more parameters are its size and how many groups are before it.
    pub(in crate::store) select: String,
}

// === impl Dialect ===

impl Dialect {
    /// The query for the total of a workspace's keys, or of those of one resource. The workspace's own roll-ups have the sum of all
    /// its keys, so that only the few rows of a time are read.
    pub(in crate::store) fn total(&self, is_of_resource: bool) -> String {
        let sums = self.sums();
        if is_of_resource {
            return format!("SELECT {sums} {}", self.of_keys());
        }
        format!(
            "SELECT {sums} FROM usage_rollups t WHERE t.subject_kind = 2 AND t.subject_id = {} AND {}",
            self.workspace_bytes,
            self.in_time()
        )
    }

    /// The query for groups, those with the most requests first.
    pub(in crate::store) fn groups(&self, by: UsageGroup) -> GroupQuery {
        let (from, group, order) = match by {
            UsageGroup::Key => (self.of_keys(), "k.id, k.name, k.resource_id", "k.name, k.id"),
            UsageGroup::Resource => (self.of_keys(), "k.resource_id", "k.resource_id"),
            UsageGroup::Route | UsageGroup::Model | UsageGroup::EndUser => {
                (self.of_groups(), "t.name", "t.name")
            }
        };
        let (sums, mark) = (self.sums(), self.mark);
        let groups = format!(
            "SELECT {group}, {sums} {from} GROUP BY {group} ORDER BY {} DESC, {order} LIMIT {mark}6 OFFSET {mark}7",
            self.sum("requests")
        );
        let select = match by {
            // The names are looked up for the groups of the page only.
            UsageGroup::EndUser => format!(
                "SELECT (SELECT e.other_id FROM end_users e WHERE e.id = {} AND e.workspace_id = {mark}1), g.*
                 FROM ({groups}) AS g",
                self.end_user_id
            ),
            _ => groups,
        };
        let (count, select) = match by {
            UsageGroup::Key => (self.count_of_keys(), self.busiest_keys()),
            _ => (format!("SELECT count(*) FROM (SELECT 1 {from} GROUP BY {group}) AS g"), select),
        };
        GroupQuery { count, select }
    }

    /// The keys of a page by their requests alone, and only then everything else of these few: a workspace may have very many.
    fn busiest_keys(&self) -> String {
        let (mark, requests) = (self.mark, self.sum("requests"));
        let order = format!("ORDER BY {requests} DESC, k.name, k.id");
        let page = format!(
            "SELECT k.id, k.name, k.resource_id {} GROUP BY k.id, k.name, k.resource_id {order} LIMIT {mark}6 OFFSET {mark}7",
            self.of_keys()
        );
        format!(
            "SELECT k.id, k.name, k.resource_id, {} FROM ({page}) AS k JOIN usage_rollups t ON {}
             GROUP BY k.id, k.name, k.resource_id {order}",
            self.sums(),
            self.of_key()
        )
    }

    fn count_of_keys(&self) -> String {
        let mark = self.mark;
        format!(
            "SELECT count(*) FROM keys k WHERE k.workspace_id = {mark}1 AND (k.resource_id = {mark}5 OR {mark}5 IS NULL)
                 AND EXISTS (SELECT 1 FROM usage_rollups t WHERE {})",
            self.of_key()
        )
    }

    /// Whether `t` is a roll-up of the key `k` within the time.
    fn of_key(&self) -> String {
        format!("t.subject_kind = 1 AND t.subject_id = {} AND {}", self.key_bytes, self.in_time())
    }

    fn in_time(&self) -> String {
        let mark = self.mark;
        format!("t.width = {mark}2 AND t.start >= {mark}3 AND t.start < {mark}4")
    }

    /// The number for the fifth parameter of [`Dialect::groups`]; none: it is the resource.
    pub(in crate::store) fn kind(by: UsageGroup) -> Option<i64> {
        GroupKind::of(by).map(GroupKind::number)
    }

    fn sums(&self) -> String {
        sums::totals(|name| self.sum(name))
    }

    fn sum(&self, name: &str) -> String {
        format!("{}t.{name}{}", self.sum.0, self.sum.1)
    }

    fn of_keys(&self) -> String {
        let (mark, of_key) = (self.mark, self.of_key());
        format!(
            "FROM keys k JOIN usage_rollups t ON {of_key}
             WHERE k.workspace_id = {mark}1 AND (k.resource_id = {mark}5 OR {mark}5 IS NULL)"
        )
    }

    fn of_groups(&self) -> String {
        let mark = self.mark;
        format!(
            "FROM usage_groups t WHERE t.workspace_id = {mark}1 AND t.kind = {mark}5 AND t.width = {mark}2
                 AND t.start >= {mark}3 AND t.start < {mark}4"
        )
    }
}
