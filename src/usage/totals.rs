//! Totals of records in the journal that are not in the ledger yet, which limits must count as well. Pure.

use super::journal::codec;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Per;
use crate::model::usage::{UsageRecord, UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use std::collections::HashMap;
use std::sync::Arc;

/// What every key and workspace has spent, in the windows that contain one instant.
#[derive(Debug)]
pub struct JournalTotals {
    windows: Windows,
    /// The windows of workspaces with another calendar.
    other_windows: Arc<HashMap<WorkspaceId, Windows>>,
    /// Requests that arrived until then are counted elsewhere.
    after: Option<Timestamp>,
    keys: HashMap<KeyId, UsageTotals>,
    workspaces: HashMap<WorkspaceId, UsageTotals>,
}

impl JournalTotals {
    /// Empty totals for the windows that contain `at`, by the workspace's calendar or else in UTC.
    pub fn new(at: Timestamp, calendars: &HashMap<WorkspaceId, Calendar>) -> Self {
        let others = calendars.iter().map(|(id, calendar)| (id.clone(), Window::all(*calendar, at)));
        Self {
            windows: Window::all(Calendar::UTC, at),
            other_windows: Arc::new(others.collect()),
            after: None,
            keys: HashMap::new(),
            workspaces: HashMap::new(),
        }
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
        let windows = self.other_windows.get(workspace).unwrap_or(&self.windows);
        let one = windows.map(|window| u64::from(window.contains(arrived)));
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
            count(row, more.used);
        }
    }

    /// The remaining totals.
    pub fn into_rows(self) -> impl Iterator<Item = UsageTotals> {
        self.keys.into_values().chain(self.workspaces.into_values())
    }
}

type Windows = [Window; Per::WINDOWS.len()];

fn count(row: &mut UsageTotals, more: [u64; Per::WINDOWS.len()]) {
    for (used, more) in row.used.iter_mut().zip(more) {
        *used += more;
    }
}
