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
    /// The query for the total of a workspace's keys.
    pub(in crate::store) fn total(&self) -> String {
        format!("SELECT {} {}", self.sums(), self.of_keys())
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
        GroupQuery { count: format!("SELECT count(*) FROM (SELECT 1 {from} GROUP BY {group}) AS g"), select }
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
        let Self { mark, key_bytes, .. } = self;
        format!(
            "FROM keys k JOIN usage_rollups t ON t.subject_kind = 1 AND t.subject_id = {key_bytes}
                 AND t.width = {mark}2 AND t.start >= {mark}3 AND t.start < {mark}4
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
