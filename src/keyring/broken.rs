//! Rows of the store that cannot be served, for as long as they cannot: what is counted, logged once, and tried again.
//!
//! Holds at most as many entries as the store has rows.

use crate::model::digest::Digest;
use crate::model::id::{PlanId, WorkspaceId};
use crate::model::usage::UsageSubject;
use crate::store::Change;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};

/// A change that could not be put in force. The rest of the feed goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unapplied {
    pub(super) what: &'static str,
    pub(super) id: String,
    pub(super) why: String,
    pub(super) lacks: Option<MissingReference>,
    /// Of a key: what opens it.
    pub(super) digests: SmallVec<[Digest; 2]>,
}

/// What a sound row points at and cannot be served without. Once that is there, the row is to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MissingReference {
    Plan(PlanId),
    Workspace(WorkspaceId),
}

/// A row: its table and its id.
pub(super) type RowId = (&'static str, String);

/// All that is broken at the moment.
#[derive(Debug, Default)]
pub(super) struct BrokenRows {
    rows: HashMap<RowId, Unapplied>,
    /// Something came that a row here was waiting for.
    wants_reading: bool,
    /// The digests of all keys in `rows`.
    digests: HashSet<Digest>,
    /// The keys that lack their workspace or its plan since everything was first read.
    since_start: HashSet<RowId>,
}

// === impl BrokenRows ===

impl BrokenRows {
    /// Notes a row. Answers whether that is news.
    pub(super) fn add(&mut self, row: &Unapplied) -> bool {
        let before = self.rows.insert((row.what, row.id.clone()), row.clone());
        for digest in before.iter().flat_map(|row| &row.digests) {
            self.digests.remove(digest);
        }
        self.digests.extend(&row.digests);
        before.as_ref() != Some(row)
    }

    /// Everything has been read for the first time: keys that lack something now are not served here by what was known before.
    pub(super) fn was_filled(&mut self) {
        let lacking = self.rows.iter().filter(|((table, _), row)| *table == "keys" && row.lacks.is_some());
        self.since_start = lacking.map(|(row, _)| row.clone()).collect();
    }

    /// Why keys cannot be served that others may still serve; none: there are no such keys.
    pub(super) fn lacking_since_start(&self) -> Option<String> {
        if self.since_start.is_empty() {
            return None;
        }
        let what = self.rows.values().find(|row| row.what != "keys");
        let what = what.map(|row| format!("; {} {}: {}", row.what, row.id, row.why)).unwrap_or_default();
        Some(format!("{} keys cannot be served{what}", self.since_start.len()))
    }

    /// Whether that digest opens a key whose row is broken.
    pub(super) fn has_digest(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    /// The row that `change` is about, if any row is broken: nearly always none is, and nothing is allocated.
    pub(super) fn watched(&self, change: &Change) -> Option<RowId> {
        if self.rows.is_empty() {
            return None;
        }
        match change {
            Change::Plan(plan) => Some(("plans", plan.id.to_string())),
            Change::PlanRemoved(id) => Some(("plans", id.to_string())),
            Change::Workspace { id, .. } => Some(("workspaces", id.to_string())),
            Change::Key(change) => Some(("keys", change.key.id.to_string())),
            Change::KeyRemoved { id, .. } => Some(("keys", id.to_string())),
            Change::EndUserRemoved { .. } | Change::Broken { .. } => None,
        }
    }

    /// Whether that row is broken.
    pub(super) fn holds(&self, table: &'static str, subject: &UsageSubject) -> bool {
        if self.rows.is_empty() {
            return false;
        }
        let id = match subject {
            UsageSubject::Key(id) => id.to_string(),
            UsageSubject::Workspace(id) => id.to_string(),
        };
        self.rows.contains_key(&(table, id))
    }

    /// A row is sound, or gone.
    pub(super) fn on_repaired(&mut self, row: &RowId) {
        if let Some(mended) = self.rows.remove(row) {
            for digest in &mended.digests {
                self.digests.remove(digest);
            }
        }
        self.since_start.remove(row);
    }

    /// `there` can be pointed at from now on.
    pub(super) fn on_present(&mut self, there: &MissingReference) {
        if self.rows.values().any(|row| row.lacks.as_ref() == Some(there)) {
            self.wants_reading = true;
        }
    }

    /// Whether rows that were passed over should be read again; asked once, forgotten.
    pub(super) fn take_wants_reading(&mut self) -> bool {
        std::mem::take(&mut self.wants_reading)
    }

    /// Undoes [`BrokenRows::take_wants_reading`]: it came to nothing.
    pub(super) fn restore_wants_reading(&mut self) {
        self.wants_reading = true;
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Forgets all, before everything is read anew.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.digests.clear();
    }
}
