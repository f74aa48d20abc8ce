//! `keygate export` and `keygate import`: everything administrative in one file, for moving from one store to another.
//!
//! The file is JSON lines: a head, then plans, workspaces, keys and end users as [`ArchiveEntry`]s, then an end that counts them, so
//! that half a file is never taken for a whole one. Usage is not in it, but in that of `keygate usage export`.

mod export;
mod import;

pub(super) use export::{ArchiveExportArgs, run as export};
pub(super) use import::{ArchiveImportArgs, run as import};

use serde_json::{Map, Value};

/// The number of the format; a file with another is refused.
const FORMAT: u64 = 1;

/// What a line is about: the one field of its object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ArchiveEntry {
    Plan,
    Workspace,
    Key,
    EndUser,
}

impl ArchiveEntry {
    /// In the order of the file: each refers to those before it.
    const ALL: [Self; 4] = [Self::Plan, Self::Workspace, Self::Key, Self::EndUser];

    /// What a line is about; none of the head and the end.
    fn of(line: &Map<String, Value>) -> Option<Self> {
        Self::ALL.into_iter().find(|thing| line.contains_key(thing.name()))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Workspace => "workspace",
            Self::Key => "key",
            Self::EndUser => "end_user",
        }
    }
}
