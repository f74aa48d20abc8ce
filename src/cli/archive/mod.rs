//! `keygate export` and `keygate import`: all administrative data in one file, to move from one store to another.
//!
//! The file is JSON lines: a header, then [`ArchiveEntry`]s of each kind, then a trailer that counts them, so that an incomplete
//! file is detected. Usage is in the file of `keygate usage export`.

mod entries;
mod export;
mod import;

pub(super) use export::{ArchiveExportArgs, run as export};
pub(super) use import::{ArchiveImportArgs, run as import};

use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The number of the format.
const FORMAT: u64 = 2;
/// The formats that are read. The first had plans, workspaces, keys and end users only.
const READ: RangeInclusive<u64> = 1..=FORMAT;

/// The kind of a line: the one field of its object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ArchiveEntry {
    Plan,
    Workspace,
    Grant,
    DeletedWorkspace,
    Price,
    Credential,
    Key,
    EndUser,
}

/// How many kinds there are.
const KINDS: usize = ArchiveEntry::ALL.len();

impl ArchiveEntry {
    /// In the order of the file: each refers to earlier ones.
    const ALL: [Self; 8] = [
        Self::Plan,
        Self::Workspace,
        Self::Grant,
        Self::DeletedWorkspace,
        Self::Price,
        Self::Credential,
        Self::Key,
        Self::EndUser,
    ];

    /// The kind of a line; none for header and trailer.
    fn of(line: &Map<String, Value>) -> Option<Self> {
        Self::ALL.into_iter().find(|thing| line.contains_key(thing.name()))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Workspace => "workspace",
            Self::Grant => "grant",
            Self::DeletedWorkspace => "deleted_workspace",
            Self::Price => "price",
            Self::Credential => "credential",
            Self::Key => "key",
            Self::EndUser => "end_user",
        }
    }
}
