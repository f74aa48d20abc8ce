//! `keygate keys import` while a gateway runs: the same file, by the admin API. A row of another workspace is imported there,
//! if the caller may.

use super::carried_over;
use super::import::{ImportRow, KeysImportArgs, cannot_read, rows, style};
use crate::cli::Failure;
use crate::cli::gateway::{ApiPath, Gateway};
use crate::cli::output::Output;
use http::Method;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Rows sent at a time.
const BATCH: usize = 500;

/// Rows of one workspace, with their lines.
type Waiting = Vec<(u64, ImportRow)>;

/// An import of rows of some kind.
pub(in crate::cli) struct RunningImport<'i> {
    pub(in crate::cli) gateway: &'i mut Gateway,
    pub(in crate::cli) file: &'i Path,
    /// Where rows without a workspace go; none: to that of the token.
    pub(in crate::cli) workspace: Option<String>,
    pub(in crate::cli) dry_run: bool,
    /// `apikeys` or `endusers`.
    pub(in crate::cli) path: &'static str,
    /// The field of the body with the rows.
    pub(in crate::cli) rows: &'static str,
}

/// What became of the rows.
#[derive(Default)]
pub(in crate::cli) struct RunningImported {
    pub(in crate::cli) imported: u64,
    pub(in crate::cli) existing: u64,
    /// The lines of refused rows.
    pub(in crate::cli) refused: BTreeSet<u64>,
}

pub(super) fn run(gateway: &mut Gateway, output: &Output, args: &KeysImportArgs) -> Result<(), Failure> {
    args.within.enter(gateway);
    let workspace = gateway.workspace.clone();
    let import = RunningImport {
        gateway,
        file: &args.file,
        workspace,
        dry_run: args.dry_run,
        path: "apikeys",
        rows: "keys",
    };
    let mut so_far = RunningImported::default();
    let done = import.run(&mut so_far);
    args.report(so_far.imported, &so_far.refused, output.json, done)
}

impl RunningImport<'_> {
    pub(in crate::cli) fn run(mut self, so_far: &mut RunningImported) -> Result<(), Failure> {
        let progress = ProgressBar::new_spinner().with_style(style());
        let done = self.everything(so_far, &progress);
        progress.finish_and_clear();
        done
    }

    fn everything(&mut self, so_far: &mut RunningImported, progress: &ProgressBar) -> Result<(), Failure> {
        let mut waiting: HashMap<Option<String>, Waiting> = HashMap::new();
        for row in rows(self.file)? {
            let (line, row) = row.map_err(|error| cannot_read(self.file, &error))?;
            progress.inc(1);
            match row.and_then(|row| self.of_workspace(row)) {
                Ok((workspace, row)) => {
                    let same = waiting.entry(workspace.clone()).or_default();
                    same.push((line, row));
                    if same.len() == BATCH {
                        let batch = std::mem::take(same);
                        self.send(workspace, batch, so_far, progress)?;
                    }
                }
                Err(why) => {
                    so_far.refused.insert(line);
                    self.tell(progress, line, &why);
                }
            }
        }
        for (workspace, batch) in waiting {
            self.send(workspace, batch, so_far, progress)?;
        }
        Ok(())
    }

    /// A row and its workspace.
    fn of_workspace(&self, mut row: ImportRow) -> Result<(Option<String>, ImportRow), String> {
        if row.get("digest").is_some_and(|digest| !digest.is_null()) {
            return Err(
                "digest: keys from `keygate keys export` can be imported only while no gateway runs".into()
            );
        }
        // A spreadsheet made from an export may have empty columns.
        row.retain(|name, _| !carried_over::COLUMNS.contains(&name.as_str()));
        match row.remove("workspace_id") {
            None | Some(Value::Null) => Ok((self.workspace.clone(), row)),
            Some(Value::String(id)) => Ok((Some(id), row)),
            Some(_) => Err("workspace_id: must be text".into()),
        }
    }

    fn send(
        &mut self,
        workspace: Option<String>,
        batch: Waiting,
        so_far: &mut RunningImported,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        self.gateway.workspace = workspace;
        let (lines, rows): (Vec<u64>, Vec<ImportRow>) = batch.into_iter().unzip();
        let body = json!({self.rows: rows, "dry_run": self.dry_run});
        let report = self.gateway.call(&Method::POST, &ApiPath::of(&[self.path, "import"]), Some(&body))?;
        so_far.imported += report["imported"].as_u64().unwrap_or_default();
        so_far.existing += report["existing"].as_u64().unwrap_or_default();
        for row in report["rows"].as_array().into_iter().flatten() {
            let at = row["row"].as_u64().and_then(|at| usize::try_from(at).ok());
            let Some(line) = at.and_then(|at| lines.get(at)) else { continue };
            for note in row["notes"].as_array().into_iter().flatten() {
                self.tell(progress, *line, &format!("note: {}", note.as_str().unwrap_or_default()));
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let errors = row["errors"].as_array().into_iter().flatten();
            let errors: Vec<_> =
                errors.map(|e| format!("{}: {}", text(&e["field"]), text(&e["message"]))).collect();
            if !errors.is_empty() {
                so_far.refused.insert(*line);
                self.tell(progress, *line, &errors.join("; "));
            }
        }
        Ok(())
    }

    fn tell(&self, progress: &ProgressBar, line: u64, what: &str) {
        progress.suspend(|| eprintln!("{}:{line}: {what}", self.file.display()));
    }
}
