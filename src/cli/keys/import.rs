//! `keygate keys import`: keys made elsewhere, by their plaintext, or by the digest that `export` wrote.

use super::{Desk, InWorkspace, told};
use crate::cli::Failure;
use crate::draft::{KeyDraft, credential};
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::key::Plan;
use crate::policy::secret::Secret;
use crate::store::{Actor, Digest, IssuedCredential, NewKey};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Columns of a CSV file that hold several words, separated by blanks.
const LISTS: &[&str] = &["scopes", "allowed_ips"];
/// Columns of a CSV file that hold JSON.
const JSON: &[&str] = &["limits", "metadata"];
/// Columns of a CSV file that hold numbers.
const NUMBERS: &[&str] = &[
    "rate_limit",
    "rate_burst",
    "daily_request_limit",
    "quota_limit",
    "concurrency_limit",
    "expires_at",
    "pepper_version",
];

/// Arguments of `keygate keys import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// A .jsonl file with one JSON object per line, or a .csv file with a header line. Fields are those of
    /// `POST /apikeys`, and `api_key` with the plaintext secret (1 to 128 visible ASCII characters). `workspace_id`
    /// overrides --workspace. In CSV, `scopes` and `allowed_ips` are separated by blanks; `limits` and `metadata` are JSON
    file: PathBuf,
    /// Check every row by itself and report its mistakes, but import nothing. Names and secrets that are taken already are
    /// found only by importing
    #[arg(long)]
    dry_run: bool,
}

type Row = Map<String, Value>;

/// Rows with their line numbers; a line may be no row.
type Rows = Box<dyn Iterator<Item = (u64, Result<Row, String>)>>;

/// Rows stored in one step.
const BATCH: usize = 500;

pub(super) fn run(desk: &Desk, args: &ImportArgs) -> Result<(), Failure> {
    let progress = ProgressBar::new_spinner().with_style(style());
    let mut import =
        Import { desk, args, plans: HashMap::new(), batch: Vec::new(), imported: 0, refused: 0, progress };
    for (line, row) in rows(&args.file)? {
        match row.and_then(|row| import.key_of(row)) {
            Ok(key) => import.batch.push((line, key)),
            Err(why) => import.refuse(line, &why),
        }
        if import.batch.len() == BATCH {
            import.store()?;
        }
        import.progress.inc(1);
    }
    import.store()?;
    import.progress.finish_and_clear();
    let verb = if args.dry_run { "could be imported" } else { "imported" };
    eprintln!("{} {verb}, {} refused", import.imported, import.refused);
    match import.refused {
        0 => Ok(()),
        refused => Err(Failure::Failed(format!("{refused} rows were refused"))),
    }
}

/// An import under way.
struct Import<'d> {
    desk: &'d Desk,
    args: &'d ImportArgs,
    plans: HashMap<WorkspaceId, Plan>,
    /// Keys to be stored, with the lines they come from.
    batch: Vec<(u64, NewKey)>,
    imported: u64,
    refused: u64,
    progress: ProgressBar,
}

impl Import<'_> {
    fn key_of(&mut self, mut row: Row) -> Result<NewKey, String> {
        let desk = self.desk;
        let workspace = match text(&mut row, "workspace_id")? {
            Some(id) => id.parse().map_err(|e| format!("workspace_id: {e}"))?,
            None => self.args.within.workspace.clone(),
        };
        let id = match text(&mut row, "id")? {
            Some(id) => id.parse().map_err(|_| "id: must be a UUID")?,
            None => KeyId::new(desk.now),
        };
        let is_active = match row.remove("is_active") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(flag)) => flag,
            Some(Value::String(word)) if word == "true" || word == "false" => word == "true",
            Some(_) => return Err("is_active: must be true or false".into()),
        };
        let issued = issued(desk, &mut row)?;
        let draft = KeyDraft::read(&row, &workspace, desk.now).map_err(|errors| told(&errors))?;
        if !self.plans.contains_key(&workspace) {
            self.plans.insert(workspace.clone(), self.plan_of(&workspace)?);
        }
        let plan = self.plans.get(&workspace).ok_or("workspace_id: its plan is not there")?;
        let mut key = draft.into_new_key(id, workspace.clone(), plan, issued).map_err(|e| e.to_string())?;
        key.key.is_active = is_active;
        Ok(key)
    }

    /// The plan of a workspace. A dry run makes none, so a workspace that is not there has the plan it would get.
    fn plan_of(&self, workspace: &WorkspaceId) -> Result<Plan, String> {
        if !self.args.dry_run {
            return self.desk.plan_of(workspace).map_err(said);
        }
        let known = self.desk.wait(self.desk.store.workspace(workspace)).map_err(said)?;
        let plan = known.map_or_else(|| self.desk.config.admin.default_plan.clone(), |w| w.plan_id);
        let found = self.desk.wait(self.desk.store.plan(&plan)).map_err(said)?;
        found.map(|record| record.plan).ok_or_else(|| format!("workspace_id: there is no plan {plan}"))
    }

    fn store(&mut self) -> Result<(), Failure> {
        let (lines, keys): (Vec<u64>, Vec<NewKey>) = std::mem::take(&mut self.batch).into_iter().unzip();
        if self.args.dry_run {
            self.imported += count(keys.len());
            return Ok(());
        }
        let done = self.desk.wait(self.desk.store.create_keys(keys, &Actor::cli(), self.desk.now))?;
        for (line, created) in lines.into_iter().zip(done) {
            match created {
                Ok(_) => self.imported += 1,
                Err(error) => self.refuse(line, &error.to_string()),
            }
        }
        Ok(())
    }

    fn refuse(&mut self, line: u64, why: &str) {
        self.refused += 1;
        self.progress.suspend(|| eprintln!("{}:{line}: {why}", self.args.file.display()));
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The credential of a row: made from its plaintext, or taken over as `export` wrote it.
fn issued(desk: &Desk, row: &mut Row) -> Result<IssuedCredential, String> {
    let plaintext = text(row, "api_key")?;
    let digest = text(row, "digest")?;
    let hint = text(row, "hint")?;
    let check = text(row, "pepper_check")?;
    let version = row.remove("pepper_version");
    let prefix = &desk.config.secrets.prefix;
    match (plaintext, digest) {
        (Some(plaintext), None) => {
            let secret = Secret::import(plaintext, prefix).ok_or(
                "api_key: must be 1 to 128 visible ASCII characters, and whole if it begins like one of ours",
            )?;
            Ok(credential(&secret, prefix, &desk.peppers))
        }
        (None, Some(digest)) => {
            let mut bytes = [0; 32];
            hex::decode_to_slice(&digest, &mut bytes)
                .map_err(|_| "digest: must be 64 hexadecimal characters")?;
            let version = version.as_ref().and_then(Value::as_u64).and_then(|v| u32::try_from(v).ok());
            let pepper_version =
                version.ok_or("pepper_version: must be the number of the digest's pepper")?;
            let pepper = desk.peppers.iter().find(|p| p.version() == pepper_version);
            if pepper.is_none_or(|p| check.as_deref() != Some(&*hex::encode(p.check()))) {
                let why =
                    "pepper_version: the digest was made with a pepper that this installation does not have";
                return Err(format!("{why} (number {pepper_version} of the other one)"));
            }
            let hint = hint.ok_or("hint: is required beside digest")?.into();
            Ok(IssuedCredential { digest: Digest(bytes), pepper_version, hint })
        }
        (None, None) => Err("api_key: is required (or digest, as keygate keys export writes it)".into()),
        (Some(_), Some(_)) => Err("api_key and digest: only one of them".into()),
    }
}

fn rows(file: &Path) -> Result<Rows, Failure> {
    let opened = File::open(file).map_err(|e| Failure::Failed(format!("{}: {e}", file.display())))?;
    match file.extension().and_then(|e| e.to_str()) {
        Some("jsonl" | "ndjson") => Ok(Box::new(json_rows(BufReader::new(opened)))),
        Some("csv") => csv_rows(opened),
        _ => Err(Failure::Usage(format!("{}: the name must end in .jsonl or .csv", file.display()))),
    }
}

fn json_rows(file: impl BufRead + 'static) -> impl Iterator<Item = (u64, Result<Row, String>)> {
    let parse = |line: std::io::Result<String>| {
        let line = line.map_err(|e| e.to_string())?;
        serde_json::from_str::<Row>(&line).map_err(|_| "is not a JSON object".to_string())
    };
    let wanted = |line: &std::io::Result<String>| !line.as_ref().is_ok_and(|l| l.trim().is_empty());
    (1..).zip(file.lines()).filter(move |(_, line)| wanted(line)).map(move |(n, line)| (n, parse(line)))
}

fn csv_rows(file: File) -> Result<Rows, Failure> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(BufReader::new(file));
    let names = reader.headers().map_err(|_| Failure::Failed("the header line is not CSV".into()))?.clone();
    Ok(Box::new(reader.into_records().zip(2..).map(move |(record, count)| {
        let Ok(record) = record else {
            return (count, Err("is not CSV, or has another number of fields than the header".into()));
        };
        let line = record.position().map_or(count, csv::Position::line);
        (line, names.iter().zip(&record).filter(|(_, v)| !v.is_empty()).map(|(n, v)| cell(n, v)).collect())
    })))
}

fn cell(name: &str, value: &str) -> Result<(String, Value), String> {
    let parsed = if LISTS.contains(&name) {
        json!(value.split_whitespace().collect::<Vec<_>>())
    } else if JSON.contains(&name) {
        serde_json::from_str(value).map_err(|_| format!("{name}: must be JSON"))?
    } else if NUMBERS.contains(&name) {
        // What is no number stays text, and the field's own rule says what it must be.
        value.parse::<i64>().map_or_else(|_| json!(value), |n| json!(n))
    } else {
        json!(value)
    };
    Ok((name.to_owned(), parsed))
}

fn text(row: &mut Row, name: &str) -> Result<Option<String>, String> {
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
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {pos} rows, {per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}
