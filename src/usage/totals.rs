//! Totals of records in the journal that are not in the ledger yet, which limits must count as well. Pure.

use super::journal::codec;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Per;
use crate::model::usage::{UsageRecord, UsageSubject, UsageTotals};
use crate::policy::keys::calendar::{window_end, window_start};
use std::collections::HashMap;
use std::ops::Range;

/// What every key and workspace has spent, in the windows that contain one instant.
#[derive(Debug)]
pub struct JournalTotals {
    windows: Windows,
    /// Requests that arrived until then are counted elsewhere.
    after: Option<Timestamp>,
    keys: HashMap<KeyId, UsageTotals>,
    workspaces: HashMap<WorkspaceId, UsageTotals>,
}

impl JournalTotals {
    /// Empty totals for the windows that contain `at`.
    pub fn new(at: Timestamp) -> Self {
        Self { windows: Windows::of(at), after: None, keys: HashMap::new(), workspaces: HashMap::new() }
    }

    /// Counts only requests that arrived after this instant, if there is one.
    #[must_use]
    pub fn only_after(self, after: Option<Timestamp>) -> Self {
        Self { after, ..self }
    }

    /// Adds a record from its two payloads. One that cannot be read counts as nothing.
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

    /// Adds totals of the same windows.
    pub fn absorb(&mut self, other: Self) {
        for mut row in other.into_rows() {
            self.add_to(&mut row);
            match row.subject.clone() {
                UsageSubject::Key(id) => drop(self.keys.insert(id, row)),
                UsageSubject::Workspace(id) => drop(self.workspaces.insert(id, row)),
            }
        }
    }

    fn charge(&mut self, id: KeyId, workspace: &WorkspaceId, arrived: Timestamp) {
        if self.after.is_some_and(|after| arrived <= after) {
            return;
        }
        let one = self.windows.one(arrived);
        let key = self.keys.entry(id).or_insert_with(|| UsageTotals::nothing(UsageSubject::Key(id)));
        count(key, one);
        // Nearly always it exists, and looking it up copies nothing.
        if let Some(row) = self.workspaces.get_mut(workspace) {
            return count(row, one);
        }
        let mut row = UsageTotals::nothing(UsageSubject::Workspace(workspace.clone()));
        count(&mut row, one);
        self.workspaces.insert(workspace.clone(), row);
    }

    /// Removes the totals of the subject of `row`, and adds them to `row`.
    pub fn add_to(&mut self, row: &mut UsageTotals) {
        let more = match &row.subject {
            UsageSubject::Key(id) => self.keys.remove(id),
            UsageSubject::Workspace(id) => self.workspaces.remove(id),
        };
        if let Some(more) = more {
            row.minute += more.minute;
            row.hour += more.hour;
            row.day += more.day;
            row.month += more.month;
            row.total += more.total;
        }
    }

    /// The remaining totals.
    pub fn into_rows(self) -> impl Iterator<Item = UsageTotals> {
        self.keys.into_values().chain(self.workspaces.into_values())
    }
}

/// The minute, hour, day and month that contain one instant.
#[derive(Debug)]
struct Windows([Range<Timestamp>; 4]);

impl Windows {
    fn of(at: Timestamp) -> Self {
        let end = |per| window_end(per, at).unwrap_or(Timestamp::MAX);
        Self([Per::Minute, Per::Hour, Per::Day, Per::Month].map(|per| window_start(per, at)..end(per)))
    }

    /// What a request that arrived then counts in each window.
    fn one(&self, arrived: Timestamp) -> [u64; 4] {
        self.0.each_ref().map(|window| u64::from(window.contains(&arrived)))
    }
}

fn count(row: &mut UsageTotals, [minute, hour, day, month]: [u64; 4]) {
    row.minute += minute;
    row.hour += hour;
    row.day += day;
    row.month += month;
    row.total += 1;
}
