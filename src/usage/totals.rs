//! Totals of records in the journal that are not in the ledger yet, which limits must count as well. Pure.

use super::journal::codec;
use crate::clock::Timestamp;
use crate::model::amounts::Amounts;
use crate::model::calendar::Calendar;
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::key::{Measure, Per};
use crate::model::usage::{UsageRecord, UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use std::collections::HashMap;
use std::sync::Arc;

/// What every key, workspace and end user has spent, in the windows that contain one instant.
#[derive(Debug)]
pub struct JournalTotals {
    windows: Windows,
    /// The windows of workspaces with another calendar.
    other_windows: Arc<HashMap<WorkspaceId, Windows>>,
    /// Requests that arrived until then are counted elsewhere.
    after: Option<Timestamp>,
    keys: HashMap<KeyId, UsageTotals>,
    workspaces: HashMap<WorkspaceId, UsageTotals>,
    end_users: HashMap<EndUserId, UsageTotals>,
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
            end_users: HashMap::new(),
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
        let (charged, used) = match complete.map(codec::complete) {
            None => (begun.charged, Amounts::default()),
            Some(Err(_)) => return,
            Some(Ok(end)) => (end.charged, end.amounts()),
        };
        if !charged {
            return;
        }
        if let Ok(workspace) = begun.workspace_id.parse() {
            self.charge((begun.api_key_id, &workspace, begun.end_user_id), begun.at, &used);
        }
    }

    /// Adds a record.
    pub fn add_record(&mut self, record: &UsageRecord) {
        if record.charged {
            let subjects = (record.api_key_id, &record.workspace_id, record.end_user_id);
            self.charge(subjects, record.at, &record.amounts());
        }
    }

    /// Adds totals of the same windows.
    pub fn absorb(&mut self, other: Self) {
        for mut row in other.into_rows() {
            self.add_to(&mut row);
            match row.subject.clone() {
                UsageSubject::Key(id) => drop(self.keys.insert(id, row)),
                UsageSubject::Workspace(id) => drop(self.workspaces.insert(id, row)),
                UsageSubject::EndUser(_, id) => drop(self.end_users.insert(id, row)),
            }
        }
    }

    fn charge(
        &mut self,
        (id, workspace, end_user): (KeyId, &WorkspaceId, Option<EndUserId>),
        arrived: Timestamp,
        used: &Amounts,
    ) {
        if self.after.is_some_and(|after| arrived <= after) {
            return;
        }
        let windows = self.other_windows.get(workspace).unwrap_or(&self.windows);
        let (one, units) = (windows.map(|window| u64::from(window.contains(arrived))), used.metered());
        let metered = one.map(|counts| units.map(|units| units * counts));
        let key = self.keys.entry(id).or_insert_with(|| UsageTotals::nothing(UsageSubject::Key(id)));
        count(key, one, metered);
        if let Some(end_user) = end_user {
            let nothing = || UsageTotals::nothing(UsageSubject::EndUser(workspace.clone(), end_user));
            count(self.end_users.entry(end_user).or_insert_with(nothing), one, metered);
        }
        // Nearly always it exists, and looking it up copies nothing.
        if let Some(row) = self.workspaces.get_mut(workspace) {
            return count(row, one, metered);
        }
        let mut row = UsageTotals::nothing(UsageSubject::Workspace(workspace.clone()));
        count(&mut row, one, metered);
        self.workspaces.insert(workspace.clone(), row);
    }

    /// Removes the totals of the subject of `row`, and adds them to `row`.
    pub fn add_to(&mut self, row: &mut UsageTotals) {
        let more = match &row.subject {
            UsageSubject::Key(id) => self.keys.remove(id),
            UsageSubject::Workspace(id) => self.workspaces.remove(id),
            UsageSubject::EndUser(_, id) => self.end_users.remove(id),
        };
        if let Some(more) = more {
            count(row, more.used, more.metered);
        }
    }

    /// The remaining totals.
    pub fn into_rows(self) -> impl Iterator<Item = UsageTotals> {
        self.keys.into_values().chain(self.workspaces.into_values()).chain(self.end_users.into_values())
    }
}

type Windows = [Window; Per::WINDOWS.len()];
type Metered = [[u64; Measure::METERED.len()]; Per::WINDOWS.len()];

fn count(row: &mut UsageTotals, more: [u64; Per::WINDOWS.len()], metered: Metered) {
    for (used, more) in row.used.iter_mut().zip(more) {
        *used += more;
    }
    for (used, more) in row.metered.iter_mut().flatten().zip(metered.into_iter().flatten()) {
        *used = used.saturating_add(more);
    }
}
