//! `keygate usage import`

use super::{count, line, progress};
use crate::cli::keys::KeyCommand;
use crate::cli::keys::import::no_column_twice;
use crate::cli::{Failure, text_file};
use crate::clock::Timestamp;
use crate::model::id::WorkspaceId;
use crate::model::usage::UsageRecord;
use crate::store::StoreError;
use crate::store::shared::rollup::WindowWidth;
use clap::Args;
use indicatif::ProgressBar;
use std::collections::HashMap;
use std::io::{BufRead, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Records stored in one transaction.
const BATCH: usize = 2_000;

/// Arguments of `keygate usage import`.
#[derive(Debug, Args)]
pub(super) struct UsageImportArgs {
    /// A file written by `keygate usage export` (with the extension .csv if it is one), or a journal's `set-aside.ndjson`.
    /// Lines that are not usage records are reported, and the others are imported
    file: PathBuf,
}

/// A running import.
struct UsageImport<'d> {
    command: &'d KeyCommand,
    file: &'d Path,
    progress: ProgressBar,
    /// The time from which a workspace's plan keeps records.
    kept_from: HashMap<WorkspaceId, Timestamp>,
    /// Records to be stored, with their line numbers.
    batch: Vec<(u64, UsageRecord)>,
    new: u64,
    there_already: u64,
    too_old: u64,
    refused: u64,
}

pub(super) fn run(command: &KeyCommand, args: &UsageImportArgs) -> Result<(), Failure> {
    let file = args.file.as_path();
    let mut import = UsageImport {
        command,
        file,
        progress: progress(),
        kept_from: HashMap::new(),
        batch: Vec::with_capacity(BATCH),
        new: 0,
        there_already: 0,
        too_old: 0,
        refused: 0,
    };
    let done = import.everything();
    import.progress.finish_and_clear();
    let UsageImport { new, there_already, too_old, refused, .. } = import;
    // What was stored stays stored, also if something failed after it.
    eprintln!("imported {new} usage records; there already: {there_already}; refused: {refused}");
    if too_old > 0 {
        eprintln!("passed over, as their plan does not keep them so long: {too_old}");
    }
    done?;
    if refused == 0 { Ok(()) } else { Err(Failure::Failed(format!("{refused} lines were refused"))) }
}

// === impl UsageImport ===

impl UsageImport<'_> {
    fn everything(&mut self) -> Result<(), Failure> {
        let opened = text_file(self.file).map_err(|e| self.at(None, &e.to_string()))?;
        if self.file.extension().is_some_and(|ending| ending == "csv") {
            return self.rows(opened);
        }
        for (n, text) in (1..).zip(opened.lines()) {
            match text {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => match line::read(&text) {
                    Ok(record) => self.add(n, record)?,
                    Err(why) => self.refuse(n, &why),
                },
                Err(error) if error.kind() == ErrorKind::InvalidData => self.refuse(n, "is not UTF-8"),
                Err(error) => return Err(self.at(Some(n), &error.to_string())),
            }
            self.progress.inc(1);
        }
        self.store()
    }

    /// The records of a CSV file.
    fn rows(&mut self, file: impl BufRead) -> Result<(), Failure> {
        let mut reader = csv::Reader::from_reader(file);
        let names = reader.headers().map_err(|e| self.at(Some(1), &e.to_string()))?.clone();
        no_column_twice(&names).map_err(|why| self.at(Some(1), &why))?;
        for (count, row) in (2..).zip(reader.records()) {
            let row = match row.map_err(csv::Error::into_kind) {
                Ok(row) => row,
                Err(csv::ErrorKind::Io(error)) => return Err(self.at(Some(count), &error.to_string())),
                Err(_) => {
                    self.refuse(count, "is not CSV in UTF-8, or has another number of fields than the head");
                    continue;
                }
            };
            let n = row.position().map_or(count, csv::Position::line);
            match line::read_cells(names.iter(), row.iter()) {
                Ok(record) => self.add(n, record)?,
                Err(why) => self.refuse(n, &why),
            }
            self.progress.inc(1);
        }
        self.store()
    }

    fn add(&mut self, n: u64, record: UsageRecord) -> Result<(), Failure> {
        if record.at < self.kept_from(&record.workspace_id)? {
            self.too_old += 1;
            return Ok(());
        }
        self.batch.push((n, record));
        if self.batch.len() == BATCH { self.store() } else { Ok(()) }
    }

    /// Older records are not imported: nobody would see them, and after retention deletes them, another import would count
    /// them again.
    fn kept_from(&mut self, id: &WorkspaceId) -> Result<Timestamp, Failure> {
        if let Some(known) = self.kept_from.get(id) {
            return Ok(*known);
        }
        let KeyCommand { store, now, .. } = self.command;
        let plan = match self.command.wait(store.workspace(id))? {
            Some(workspace) => self.command.wait(store.plan(&workspace.plan_id))?,
            None => None,
        };
        let days = plan.and_then(|plan| plan.usage_retention_days);
        let from = days.map_or_else(Timestamp::default, |days| {
            WindowWidth::Day.start(*now).minus(Duration::from_hours(24) * days)
        });
        self.kept_from.insert(id.clone(), from);
        Ok(from)
    }

    /// Stores the current batch. Records that the ledger rejects are found individually.
    fn store(&mut self) -> Result<(), Failure> {
        let (lines, records): (Vec<u64>, Vec<UsageRecord>) =
            std::mem::take(&mut self.batch).into_iter().unzip();
        match self.append(&records) {
            Err(error) if error.is_content() => {}
            appended => return appended.map_err(Failure::failed),
        }
        for (n, record) in lines.into_iter().zip(&records) {
            match self.append(std::slice::from_ref(record)) {
                Err(why) if why.is_content() => self.refuse(n, &why.to_string()),
                appended => appended.map_err(Failure::failed)?,
            }
        }
        Ok(())
    }

    fn append(&mut self, records: &[UsageRecord]) -> Result<(), StoreError> {
        let new = self.command.runtime.block_on(self.command.store.append(records))?;
        self.new += new;
        self.there_already += count(records.len()).saturating_sub(new);
        Ok(())
    }

    fn refuse(&mut self, n: u64, why: &str) {
        self.refused += 1;
        self.progress.suspend(|| eprintln!("{}:{n}: {why}", self.file.display()));
    }

    fn at(&self, n: Option<u64>, why: &str) -> Failure {
        let file = self.file.display();
        Failure::Failed(n.map_or_else(|| format!("{file}: {why}"), |n| format!("{file}:{n}: {why}")))
    }
}
