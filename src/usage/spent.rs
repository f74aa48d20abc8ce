//! What records come to that are in the journal and not yet in the ledger: limits must know them all the same. Pure.

use super::journal::codec;
use crate::clock::Timestamp;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::key::Per;
use crate::policy::limit::window_start;
use crate::store::{SpentBy, SpentRow, UsageRecord};
use std::collections::HashMap;

/// What every key and workspace has spent, in the windows that contain one instant.
#[derive(Debug)]
pub struct Spent {
    at: Timestamp,
    keys: HashMap<KeyId, SpentRow>,
    workspaces: HashMap<WorkspaceId, SpentRow>,
}

impl Spent {
    /// Nothing yet; windows are those that contain `at`.
    pub fn new(at: Timestamp) -> Self {
        Self { at, keys: HashMap::new(), workspaces: HashMap::new() }
    }

    /// Adds a record by its two payloads. One that cannot be read has spent nothing.
    pub fn add(&mut self, admit: &[u8], complete: Option<&[u8]>) {
        let mut own = [0; uuid::fmt::Hyphenated::LENGTH];
        let Ok(begun) = codec::admit(admit, &mut own) else { return };
        let charged =
            complete.map_or(Some(begun.charged), |end| codec::complete(end).ok().map(|c| c.charged));
        if charged != Some(true) {
            return;
        }
        if let Ok(workspace) = begun.workspace_id.parse() {
            self.charge(begun.api_key_id, &workspace, begun.at);
        }
    }

    /// Adds a record.
    pub fn add_record(&mut self, record: &UsageRecord) {
        if record.charged {
            self.charge(record.api_key_id, &record.workspace_id, record.at);
        }
    }

    fn charge(&mut self, id: KeyId, workspace: &WorkspaceId, arrived: Timestamp) {
        let key = self.keys.entry(id).or_insert_with(|| SpentRow::nothing(SpentBy::Key(id)));
        count(key, arrived, self.at);
        let nothing = || SpentRow::nothing(SpentBy::Workspace(workspace.clone()));
        count(self.workspaces.entry(workspace.clone()).or_insert_with(nothing), arrived, self.at);
    }

    /// Takes what the subject of `row` has spent, and adds it to that.
    pub fn add_to(&mut self, row: &mut SpentRow) {
        let more = match &row.subject {
            SpentBy::Key(id) => self.keys.remove(id),
            SpentBy::Workspace(id) => self.workspaces.remove(id),
        };
        if let Some(more) = more {
            row.minute += more.minute;
            row.hour += more.hour;
            row.day += more.day;
            row.month += more.month;
            row.total += more.total;
        }
    }

    /// What has not been taken.
    pub fn into_rows(self) -> impl Iterator<Item = SpentRow> {
        self.keys.into_values().chain(self.workspaces.into_values())
    }
}

fn count(row: &mut SpentRow, arrived: Timestamp, at: Timestamp) {
    let is_in = |per| u64::from(window_start(per, arrived) == window_start(per, at));
    row.minute += is_in(Per::Minute);
    row.hour += is_in(Per::Hour);
    row.day += is_in(Per::Day);
    row.month += is_in(Per::Month);
    row.total += 1;
}
