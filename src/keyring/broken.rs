//! Rows of the store that cannot be used at the moment. They are counted, logged once, and read again later.
//!
//! Holds at most as many entries as the store has rows.

use crate::model::digest::Digest;
use crate::model::id::{PlanId, WorkspaceId};
use crate::model::usage::UsageSubject;
use crate::store::Change;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};

/// A change that could not be applied. The rest of the feed goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unapplied {
    pub(super) what: &'static str,
    pub(super) id: String,
    pub(super) why: String,
    pub(super) lacks: Option<MissingReference>,
    /// The digests, if it is a key.
    pub(super) digests: SmallVec<[Digest; 2]>,
}

/// A row that another row refers to and that is missing. When it arrives, the referring row has to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MissingReference {
    Plan(PlanId),
    Workspace(WorkspaceId),
}

/// A row: its table and its id.
pub(super) type RowId = (&'static str, String);

/// All rows that are broken at the moment.
#[derive(Debug, Default)]
pub(super) struct BrokenRows {
    rows: HashMap<RowId, Unapplied>,
    /// A row arrived that one of these was waiting for.
    wants_reading: bool,
    /// The digests of all keys in `rows`.
    digests: HashSet<Digest>,
    /// Keys that have lacked their workspace or its plan since the first complete read.
    since_start: HashSet<RowId>,
}

// === impl BrokenRows ===

impl BrokenRows {
    /// Adds a row. Returns whether it is new.
    pub(super) fn add(&mut self, row: &Unapplied) -> bool {
        let before = self.rows.insert((row.what, row.id.clone()), row.clone());
        for digest in before.iter().flat_map(|row| &row.digests) {
            self.digests.remove(digest);
        }
        self.digests.extend(&row.digests);
        before.as_ref() != Some(row)
    }

    /// The first complete read is done: keys that lack something now were never usable in this process.
    pub(super) fn was_filled(&mut self) {
        let lacking = self.rows.iter().filter(|((table, _), row)| *table == "keys" && row.lacks.is_some());
        self.since_start = lacking.map(|(row, _)| row.clone()).collect();
    }

    /// Why keys cannot be served here that other nodes may still serve; none: there are no such keys.
    pub(super) fn lacking_since_start(&self) -> Option<String> {
        if self.since_start.is_empty() {
            return None;
        }
        let what = self.rows.values().find(|row| row.what != "keys");
        let what = what.map(|row| format!("; {} {}: {}", row.what, row.id, row.why)).unwrap_or_default();
        Some(format!("{} keys cannot be served{what}", self.since_start.len()))
    }

    /// Whether this digest belongs to a key whose row is broken.
    pub(super) fn has_digest(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    /// The row of `change`, if any row is broken. Nearly always none is, and nothing is allocated.
    pub(super) fn watched(&self, change: &Change) -> Option<RowId> {
        if self.rows.is_empty() {
            return None;
        }
        match change {
            Change::Plan(plan) => Some(("plans", plan.id.to_string())),
            Change::PlanRemoved(id) => Some(("plans", id.to_string())),
            Change::Workspace { id, .. } | Change::WorkspaceRemoved(id) => {
                Some(("workspaces", id.to_string()))
            }
            Change::Key(change) => Some(("keys", change.key.id.to_string())),
            Change::KeyRemoved { id, .. } => Some(("keys", id.to_string())),
            Change::Prices(_) => Some(("prices", "1".to_owned())),
            Change::Credential(credential) => Some(("upstream_credentials", credential.id.to_string())),
            Change::CredentialRemoved(id) => Some(("upstream_credentials", id.to_string())),
            Change::EndUserRemoved { .. } | Change::Broken { .. } => None,
        }
    }

    /// Whether this row is broken.
    pub(super) fn holds(&self, table: &'static str, subject: &UsageSubject) -> bool {
        if self.rows.is_empty() {
            return false;
        }
        let id = match subject {
            UsageSubject::Key(id) => id.to_string(),
            UsageSubject::Workspace(id) | UsageSubject::EndUser(id, _) => id.to_string(),
        };
        self.rows.contains_key(&(table, id))
    }

    /// A row is valid again, or deleted.
    pub(super) fn on_repaired(&mut self, row: &RowId) {
        if let Some(mended) = self.rows.remove(row) {
            for digest in &mended.digests {
                self.digests.remove(digest);
            }
        }
        self.since_start.remove(row);
    }

    /// The row `there` exists from now on.
    pub(super) fn on_present(&mut self, there: &MissingReference) {
        if self.rows.values().any(|row| row.lacks.as_ref() == Some(there)) {
            self.wants_reading = true;
        }
    }

    /// Whether skipped rows should be read again. Resets the flag.
    pub(super) fn take_wants_reading(&mut self) -> bool {
        std::mem::take(&mut self.wants_reading)
    }

    /// Undoes [`BrokenRows::take_wants_reading`] after a failed read.
    pub(super) fn restore_wants_reading(&mut self) {
        self.wants_reading = true;
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Removes everything, before a complete read.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.digests.clear();
    }
}
