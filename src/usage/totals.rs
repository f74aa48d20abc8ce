//! What records come to that are in the journal and not yet in the ledger: limits must know them all the same. Pure.

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
    /// Those of workspaces whose calendar is another.
    other_windows: Arc<HashMap<WorkspaceId, Windows>>,
    /// What arrived until then is counted elsewhere.
    after: Option<Timestamp>,
    keys: HashMap<KeyId, UsageTotals>,
    workspaces: HashMap<WorkspaceId, UsageTotals>,
}

impl JournalTotals {
    /// Nothing yet; windows are those that contain `at`, of the workspace's calendar or else of UTC.
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

    /// Only of requests that arrived after that instant, if there is one.
    #[must_use]
    pub fn only_after(self, after: Option<Timestamp>) -> Self {
        Self { after, ..self }
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

    /// Adds what another one has counted in the same windows.
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
        // Nearly always it is known, and looking it up copies nothing.
        if let Some(row) = self.workspaces.get_mut(workspace) {
            return count(row, one);
        }
        let mut row = UsageTotals::nothing(UsageSubject::Workspace(workspace.clone()));
        count(&mut row, one);
        self.workspaces.insert(workspace.clone(), row);
    }

    /// Takes what the subject of `row` has spent, and adds it to that.
    pub fn add_to(&mut self, row: &mut UsageTotals) {
        let more = match &row.subject {
            UsageSubject::Key(id) => self.keys.remove(id),
            UsageSubject::Workspace(id) => self.workspaces.remove(id),
        };
        if let Some(more) = more {
            count(row, more.used);
        }
    }

    /// What has not been taken.
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
