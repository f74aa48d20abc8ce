//! `keygate export` and `keygate import`: all administrative data in one file, to move from one store to another.
//!
//! The file is JSON lines: a header, then plans, workspaces, keys and end users as [`ArchiveEntry`]s, then a trailer that
//! counts them, so that an incomplete file is detected. Usage is in the file of `keygate usage export`.

mod export;
mod import;

pub(super) use export::{ArchiveExportArgs, run as export};
pub(super) use import::{ArchiveImportArgs, run as import};

use serde_json::{Map, Value};

/// The number of the format; a file with another is refused.
const FORMAT: u64 = 1;

/// The kind of a line: the one field of its object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ArchiveEntry {
    Plan,
    Workspace,
    Key,
    EndUser,
}

impl ArchiveEntry {
    /// In the order of the file: each refers to earlier ones.
    const ALL: [Self; 4] = [Self::Plan, Self::Workspace, Self::Key, Self::EndUser];

    /// The kind of a line; none for header and trailer.
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
