//! Totals of a workspace by route, by model and by end user, of each UTC day and of all time.
//!
//! Pure; must not know where they are stored. Unlike roll-ups they have no quantiles, so that a backend adds to them
//! without reading them: an end user may be in every batch.

use super::rollup::WindowWidth;
use super::sums::UsageSums;
use crate::clock::Timestamp;
use crate::model::id::WorkspaceId;
use crate::model::usage::UsageRecord;
use crate::store::UsageGroup;
use std::collections::{BTreeMap, HashMap};

/// What a group is of. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKind {
    /// A route, by its name.
    Route = 1,
    /// A model: the one that answered, or else the one that was asked for.
    Model = 2,
    /// An end user, by the 16 bytes of its id.
    EndUser = 3,
}

/// Identifies a group in a window. The order is the one in which backends must lock them, so that two writers cannot
/// deadlock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupWindow {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// What it is of.
    pub kind: GroupKind,
    /// The width of the window: [`WindowWidth::Day`] or [`WindowWidth::Total`].
    pub width: WindowWidth,
    /// The start of the window.
    pub start: Timestamp,
    /// The route, the model or the end user.
    pub name: Vec<u8>,
}

/// The totals of `records` by group. A record that has no route, no model or no end user is in no such group, and one
/// without a key in none.
pub fn tally_groups<'a>(
    records: impl IntoIterator<Item = &'a UsageRecord>,
) -> BTreeMap<GroupWindow, UsageSums> {
    let mut days = HashMap::<_, UsageSums>::new();
    for record in records.into_iter().filter(|record| record.workspace_id != *WorkspaceId::none()) {
        let day = WindowWidth::Day.start(record.at);
        for (kind, name) in groups_of(record) {
            days.entry((&record.workspace_id, kind, name, day)).or_default().add(record);
        }
    }
    let mut windows = BTreeMap::new();
    for ((workspace, kind, name, day), sums) in days {
        for width in [WindowWidth::Day, WindowWidth::Total] {
            let (workspace, name) = (workspace.clone(), name.to_vec());
            let window = GroupWindow { workspace, kind, width, start: width.start(day), name };
            windows.entry(window).or_insert_with(UsageSums::default).merge(&sums);
        }
    }
    windows
}

fn groups_of(record: &UsageRecord) -> impl Iterator<Item = (GroupKind, &[u8])> {
    let model = record.model.as_deref().or(record.model_requested.as_deref());
    let groups = [
        (GroupKind::Route, Some(record.route.as_bytes())),
        (GroupKind::Model, model.map(str::as_bytes)),
        (GroupKind::EndUser, record.end_user_id.as_ref().map(|id| id.0.as_bytes().as_slice())),
    ];
    groups.into_iter().filter_map(|(kind, name)| Some((kind, name.filter(|name| !name.is_empty())?)))
}

impl GroupKind {
    /// Of a grouping that has its own totals; keys and resources are summed up from the roll-ups of keys.
    pub(in crate::store) fn of(by: UsageGroup) -> Option<Self> {
        match by {
            UsageGroup::Key | UsageGroup::Resource => None,
            UsageGroup::Route => Some(Self::Route),
            UsageGroup::Model => Some(Self::Model),
            UsageGroup::EndUser => Some(Self::EndUser),
        }
    }

    /// As stored.
    pub(in crate::store) fn number(self) -> i64 {
        self as i64
    }
}
