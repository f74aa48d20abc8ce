//! `keygate keys import`: keys from elsewhere, by their plaintext, or by the digest that `export` wrote.

use super::{InWorkspace, KeyCommand, carried_over, told};
use crate::admin::input::json::{self, BadJson};
use crate::admin::input::{CreateKeyInput, FieldError, ImportKeyInput, ImportedKey};
use crate::cli::{Failure, refused_rows, say, text_file};
use crate::clock::Timestamp;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Plan;
use crate::policy::text::csv_cell::plain;
use crate::store::{Actor, NewKey};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::io::{self, BufRead, ErrorKind};
use std::path::{Path, PathBuf};

/// CSV columns with several words, separated by blanks.
const LISTS: &[&str] = &["scopes", "allowed_ips"];
/// CSV columns with JSON.
const JSON: &[&str] = &["limits", "metadata"];
/// CSV columns with numbers.
const NUMBERS: &[&str] = &[
    "rate_limit",
    "rate_burst",
    "daily_request_limit",
    "quota_limit",
    "concurrency_limit",
    "expires_at",
    "pepper_version",
    "secret_id",
    "created_at",
    "updated_at",
    "last_used_at",
    "quota_used",
    "usage_count",
];

/// Arguments of `keygate keys import`.
#[derive(Debug, Args)]
pub(super) struct KeysImportArgs {
    #[command(flatten)]
    pub(super) within: InWorkspace,
    /// A .jsonl file with one JSON object per line, or a .csv file with a header line. The fields are those of `POST
    /// /apikeys`, and `api_key` with the plaintext secret or `sha256` with its SHA-256 digest in hexadecimal. A row may also
    /// say what the key was: `id`, `is_active`, `created_by`, `created_at`, `updated_at`, `quota_used`, `usage_count`,
    /// `last_used_at`, `hint`. `workspace_id` overrides --workspace. In CSV, `scopes` and `allowed_ips` are separated by
    /// blanks; `limits` and `metadata` are JSON
    pub(super) file: PathBuf,
    /// Check every row and report its mistakes, but import nothing. Names and secrets that are taken already are found only
    /// by importing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Write the refused rows to this new file, which only you may read
    #[arg(long, value_name = "FILE")]
    refused: Option<PathBuf>,
}

pub(in crate::cli) type ImportRow = Map<String, Value>;

/// Rows with their line numbers; a line may be invalid. If the file cannot be read further, that error is the last item.
pub(in crate::cli) type ImportRows = Box<dyn Iterator<Item = io::Result<(u64, Result<ImportRow, String>)>>>;

/// Rows stored at a time.
const BATCH: usize = 500;

pub(super) fn run(command: &KeyCommand, args: &KeysImportArgs, json: bool) -> Result<(), Failure> {
    let mut import = KeysImport::new(command, &args.file, Some(args.within.or_default()?));
    import.dry_run = args.dry_run;
    let done = import.everything();
    import.progress.finish_and_clear();
    args.report(import.imported, &import.refused, json, done)
}

impl KeysImportArgs {
    /// Says what became of the rows. What was stored stays stored, also if something failed after it.
    pub(super) fn report(
        &self,
        imported: u64,
        refused: &BTreeSet<u64>,
        json: bool,
        done: Result<(), Failure>,
    ) -> Result<(), Failure> {
        let verb = if self.dry_run { "could be imported" } else { "imported" };
        eprintln!("{imported} {verb}, {} refused", refused.len());
        if json {
            let report = json!({"imported": imported, "refused": refused.len(), "dry_run": self.dry_run});
            say(format_args!("{report}"))?;
        }
        if let Some(to) = self.refused.as_deref().filter(|_| !refused.is_empty()) {
            refused_rows::write(&self.file, refused, to)?;
        }
        done?;
        match refused.len() {
            0 => Ok(()),
            refused => Err(Failure::Failed(format!("{refused} rows were refused"))),
        }
    }
}

/// A running import.
pub(in crate::cli) struct KeysImport<'d> {
    command: &'d KeyCommand,
    file: &'d Path,
    /// The workspace of rows without one; without it these are refused.
    workspace: Option<WorkspaceId>,
    dry_run: bool,
    /// Whether existing keys are skipped instead of refused.
    pub(in crate::cli) again: bool,
    plans: HashMap<WorkspaceId, Plan>,
    /// Keys to be stored, with their line numbers.
    batch: Vec<(u64, NewKey)>,
    pub(in crate::cli) imported: u64,
    pub(in crate::cli) there_already: u64,
    /// The lines of refused rows.
    pub(in crate::cli) refused: BTreeSet<u64>,
    pub(in crate::cli) progress: ProgressBar,
}

impl<'d> KeysImport<'d> {
    pub(in crate::cli) fn new(
        command: &'d KeyCommand,
        file: &'d Path,
        workspace: Option<WorkspaceId>,
    ) -> Self {
        Self {
            command,
            file,
            workspace,
            dry_run: false,
            again: false,
            plans: HashMap::new(),
            batch: Vec::new(),
            imported: 0,
            there_already: 0,
            refused: BTreeSet::new(),
            progress: ProgressBar::new_spinner().with_style(style()),
        }
    }

    fn everything(&mut self) -> Result<(), Failure> {
        for row in rows(self.file)? {
            let (line, row) = row.map_err(|e| cannot_read(self.file, &e))?;
            self.add(line, row)?;
            self.progress.inc(1);
        }
        self.store()
    }

    /// Adds a row, and stores a batch when there are enough.
    pub(in crate::cli) fn add(&mut self, line: u64, row: Result<ImportRow, String>) -> Result<(), Failure> {
        match row.and_then(|row| self.key_of(line, row)) {
            Ok(key) => self.batch.push((line, key)),
            Err(why) => self.refuse(line, &why),
        }
        if self.batch.len() == BATCH { self.store() } else { Ok(()) }
    }

    fn key_of(&mut self, line: u64, mut row: ImportRow) -> Result<NewKey, String> {
        let command = self.command;
        let workspace = match text(&mut row, "workspace_id")? {
            Some(id) => id.parse().map_err(|e| format!("workspace_id: {e}"))?,
            None => self.workspace.clone().ok_or("workspace_id: is required")?,
        };
        if row.get("digest").is_some_and(|digest| !digest.is_null()) {
            return self.moved_key(line, workspace, row);
        }
        // A spreadsheet made from an export may have empty columns.
        row.retain(|name, _| !carried_over::COLUMNS.contains(&name.as_str()));
        let prefix = &command.config.secrets.prefix;
        let input = ImportKeyInput::read(&row, &workspace, prefix, "cli", command.now);
        let input = input.map_err(|errors| told(&errors))?;
        let plan = self.known_plan(&workspace)?;
        let ImportedKey { key, notes } = input.into_key(workspace.clone(), plan, prefix, &command.peppers);
        let uncounted = command.uncounted(&key);
        if !uncounted.is_empty() {
            return Err(told(&uncounted));
        }
        for note in notes {
            self.tell(line, &format!("note: {note}"));
        }
        Ok(key)
    }

    /// A key that `export` wrote.
    fn moved_key(&mut self, line: u64, workspace: WorkspaceId, mut row: ImportRow) -> Result<NewKey, String> {
        let command = self.command;
        let id = match text(&mut row, "id")? {
            Some(id) => id.parse().map_err(|_| "id: must be a UUID")?,
            None => KeyId::new(command.now),
        };
        let is_active = match row.remove("is_active") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(flag)) => flag,
            Some(Value::String(word)) if word == "true" || word == "false" => word == "true",
            Some(_) => return Err("is_active: must be true or false".into()),
        };
        let (credential, past) = carried_over::take(command, &mut row)?;
        // It may have expired in the other store, and keeps that expiry.
        let input = CreateKeyInput::read(&row, &workspace, Timestamp::default()).map_err(|e| told(&e))?;
        self.known_plan(&workspace)?;
        let mut key = input.into_moved_key(id, workspace, credential, past);
        key.key.is_active = is_active;
        // It is what it was, also where the routes are others.
        for FieldError { field, message } in command.uncounted(&key) {
            self.tell(line, &format!("note: {field} {message}"));
        }
        Ok(key)
    }

    fn known_plan(&mut self, workspace: &WorkspaceId) -> Result<&Plan, String> {
        if !self.plans.contains_key(workspace) {
            self.plans.insert(workspace.clone(), self.plan_of(workspace)?);
        }
        self.plans.get(workspace).ok_or_else(|| "workspace_id: its plan is not there".into())
    }

    /// The plan of a workspace. A dry run does not create one, so a new workspace has the plan it would get.
    fn plan_of(&self, workspace: &WorkspaceId) -> Result<Plan, String> {
        if !self.dry_run {
            return self.command.plan_of(workspace).map_err(said);
        }
        let known = self.command.wait(self.command.store.workspace(workspace)).map_err(said)?;
        let plan = known.map_or_else(|| self.command.config.admin.default_plan.clone(), |w| w.plan_id);
        let found = self.command.wait(self.command.store.plan(&plan)).map_err(said)?;
        found.map(|record| record.plan).ok_or_else(|| format!("workspace_id: there is no plan {plan}"))
    }

    /// Stores the current batch.
    pub(in crate::cli) fn store(&mut self) -> Result<(), Failure> {
        let (lines, keys): (Vec<u64>, Vec<NewKey>) = std::mem::take(&mut self.batch).into_iter().unzip();
        if self.dry_run {
            self.imported += count(keys.len());
            return Ok(());
        }
        let names: Vec<_> = keys.iter().map(|new| (new.key.workspace_id.clone(), new.key.id)).collect();
        let done =
            self.command.wait(self.command.store.create_keys(keys, &Actor::cli(), self.command.now))?;
        for ((line, (workspace, id)), created) in lines.into_iter().zip(names).zip(done) {
            match created {
                Ok(_) => self.imported += 1,
                Err(_) if self.again && self.is_there(&workspace, id)? => self.there_already += 1,
                Err(error) => self.refuse(line, &error.to_string()),
            }
        }
        Ok(())
    }

    fn is_there(&self, workspace: &WorkspaceId, id: KeyId) -> Result<bool, Failure> {
        self.command.wait(self.command.store.key_version(workspace, id)).map(|version| version.is_some())
    }

    pub(in crate::cli) fn refuse(&mut self, line: u64, why: &str) {
        self.refused.insert(line);
        self.tell(line, why);
    }

    fn tell(&self, line: u64, what: &str) {
        self.progress.suspend(|| eprintln!("{}:{line}: {what}", self.file.display()));
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The rows of a file, by its extension.
pub(in crate::cli) fn rows(file: &Path) -> Result<ImportRows, Failure> {
    let opened = text_file(file).map_err(|e| cannot_read(file, &e))?;
    match file.extension().and_then(|e| e.to_str()) {
        Some("jsonl" | "ndjson") => Ok(Box::new(json_rows(opened))),
        Some("csv") => csv_rows(file, opened),
        _ => Err(Failure::Usage(format!("{}: the name must end in .jsonl or .csv", file.display()))),
    }
}

pub(in crate::cli) fn cannot_read(file: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", file.display()))
}

fn json_rows(
    file: impl BufRead + 'static,
) -> impl Iterator<Item = io::Result<(u64, Result<ImportRow, String>)>> {
    (1..).zip(file.lines()).filter_map(|(n, line)| match line {
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => Some(Ok((n, json::line(&line)))),
        Err(error) if error.kind() == ErrorKind::InvalidData => Some(Ok((n, Err("is not UTF-8".into())))),
        Err(error) => Some(Err(error)),
    })
}

fn csv_rows(path: &Path, file: impl BufRead + 'static) -> Result<ImportRows, Failure> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
    let names = match reader.headers() {
        Ok(names) => names.clone(),
        Err(error) => match error.into_kind() {
            csv::ErrorKind::Io(error) => return Err(cannot_read(path, &error)),
            _ => return Err(Failure::Failed("the header line is not CSV".into())),
        },
    };
    no_column_twice(&names).map_err(Failure::Failed)?;
    Ok(Box::new(reader.into_records().zip(2..).map(move |(record, count)| {
        let record = match record.map_err(csv::Error::into_kind) {
            Ok(record) => record,
            Err(csv::ErrorKind::Io(error)) => return Err(error),
            Err(_) => {
                let why = "is not CSV, or has another number of fields than the header";
                return Ok((count, Err(why.into())));
            }
        };
        let line = record.position().map_or(count, csv::Position::line);
        let cells = names.iter().zip(&record).filter(|(_, v)| !v.is_empty());
        Ok((line, cells.map(|(n, v)| cell(n, v)).collect()))
    })))
}

/// Refuses a header that names a column twice, because one of the two would be lost.
pub(in crate::cli) fn no_column_twice(names: &csv::StringRecord) -> Result<(), String> {
    let mut all = names.iter().enumerate();
    match all.find(|(n, name)| names.iter().take(*n).any(|other| other == *name)) {
        Some((_, name)) => Err(format!("the header line has the column {name:?} twice")),
        None => Ok(()),
    }
}

/// CSV columns with secrets: they are used verbatim, whatever they begin with.
const VERBATIM: &[&str] = &["api_key", "digest", "sha256", "other_id"];

fn cell(name: &str, cell: &str) -> Result<(String, Value), String> {
    let value = if VERBATIM.contains(&name) { cell } else { plain(cell) };
    let parsed = if LISTS.contains(&name) {
        json!(value.split_whitespace().collect::<Vec<_>>())
    } else if JSON.contains(&name) {
        json::value(value.as_bytes()).map_err(|bad| match bad {
            BadJson::Twice(path) => format!("{name}.{path}: is there twice"),
            BadJson::Syntax { .. } | BadJson::NoObject => format!("{name}: must be JSON"),
        })?
    } else if NUMBERS.contains(&name) {
        // What is not a number stays text, and the field's own rule reports what is allowed.
        value.parse::<i64>().map_or_else(|_| json!(value), |n| json!(n))
    } else {
        json!(value)
    };
    Ok((name.to_owned(), parsed))
}

pub(super) fn text(row: &mut ImportRow, name: &str) -> Result<Option<String>, String> {
    match row.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{name}: must be text")),
    }
}

fn said(failure: Failure) -> String {
    match failure {
        Failure::Usage(message) | Failure::Failed(message) => message,
        Failure::Config(error) => error.to_string(),
        Failure::Differs => String::new(),
    }
}

pub(in crate::cli) fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {pos} rows, {per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}
