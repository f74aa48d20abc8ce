//! Records that the ledger rejects: one line of JSON each, for a person to look at.

use crate::durable;
use crate::model::usage::UsageRecord;
use crate::policy::text::record_line::RecordLine;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of the file.
const BYTES_MAX: u64 = 64 << 20;

/// The file of records that were set aside.
#[derive(Clone, Debug)]
pub struct RejectedRecords {
    path: PathBuf,
}

impl RejectedRecords {
    /// The file in `folder`.
    pub fn of(folder: &Path) -> Self {
        Self { path: folder.join("set-aside.ndjson") }
    }

    /// Adds a record with the reason, and syncs the file. Also fails when the file is full.
    pub fn add(&self, record: &UsageRecord, why: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        // During an upgrade two processes may write; the lock ends with `file`.
        file.lock()?;
        let mut line = line(record, why)?;
        line.push('\n');
        let before = file.metadata()?.len();
        if before.saturating_add(line.len() as u64) > BYTES_MAX {
            return Err(io::Error::other(format!("{} is full", self.path.display())));
        }
        let mut written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        if before == 0 {
            // The journal releases the record, so the file's name must be on disk as well.
            written = written.and_then(|()| durable::sync_folder_of(&self.path));
        }
        if written.is_err() {
            // A partial line would damage the next one.
            file.set_len(before)?;
        }
        written
    }
}

fn line(record: &UsageRecord, why: &str) -> io::Result<String> {
    let mut line = serde_json::to_value(RecordLine::json(record))?;
    line["refused_because"] = why.into();
    Ok(line.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::model::id::KeyId;

    #[test]
    fn a_record_is_one_line_of_json_with_every_field_and_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = RejectedRecords::of(folder.path());
        for record in [UsageRecord::full_sample(), UsageRecord::bare_sample()] {
            file.add(&record, "a \"value\"").unwrap();
        }
        let written = std::fs::read_to_string(folder.path().join("set-aside.ndjson")).unwrap();
        insta::assert_snapshot!(written);
    }

    #[test]
    fn records_added_by_two_processes_at_once_stay_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let at = Timestamp::from_secs(1);
        let record = |n: usize| UsageRecord {
            endpoint: "/long".repeat(400 * n).into(),
            ..UsageRecord::sample(KeyId::new(at), "w".parse().unwrap(), at)
        };
        std::thread::scope(|scope| {
            for n in 1..=4 {
                let (file, record) = (RejectedRecords::of(folder.path()), &record);
                scope.spawn(move || (0..50).for_each(|_| file.add(&record(n), "a value").unwrap()));
            }
        });
        let all = std::fs::read_to_string(folder.path().join("set-aside.ndjson")).unwrap();
        let is_whole = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        assert_eq!((all.lines().count(), all.lines().all(is_whole)), (200, true));
    }
}
