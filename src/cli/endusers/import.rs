//! `keygate endusers import`: end users of another system.

use crate::admin::input::read_imported_end_user;
use crate::cli::gateway::Gateway;
use crate::cli::keys::import::{ImportRow, rows};
use crate::cli::keys::import_running::{RunningImport, RunningImported};
use crate::cli::keys::{InWorkspace, KeyCommand, told};
use crate::cli::output::Output;
use crate::cli::{Failure, refused_rows, say};
use crate::model::id::WorkspaceId;
use crate::store::{Actor, EndUserRecord};
use clap::Args;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

/// End users stored at a time.
const BATCH: usize = 1_000;

/// Arguments of `keygate endusers import`.
#[derive(Debug, Args)]
pub(super) struct EndUsersImportArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// A .jsonl or .csv file. A row has `other_id`, and may have `id`, `created_at` and `workspace_id`. End users that are
    /// there already, by id or by name, stay as they are. The plan's quota does not hold for imported ones
    file: PathBuf,
    /// Check every row and report its mistakes, but import nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the refused rows to this new file
    #[arg(long, value_name = "FILE")]
    refused: Option<PathBuf>,
}

/// A running import.
struct EndUsersImport<'c> {
    command: &'c KeyCommand,
    args: &'c EndUsersImportArgs,
    /// The workspace of rows without one.
    workspace: WorkspaceId,
    /// End users to store, by workspace.
    users: HashMap<WorkspaceId, Vec<EndUserRecord>>,
    read: u64,
    new: u64,
    refused: BTreeSet<u64>,
}

pub(super) fn run(command: &KeyCommand, args: &EndUsersImportArgs, json: bool) -> Result<(), Failure> {
    let (users, refused) = (HashMap::new(), BTreeSet::new());
    let workspace = args.within.or_default()?;
    let mut import = EndUsersImport { command, args, workspace, users, read: 0, new: 0, refused };
    let done = import.everything();
    let EndUsersImport { read, new, refused, .. } = import;
    let imported = if args.dry_run { read } else { new };
    let so_far = RunningImported { imported, existing: read - imported, refused };
    args.report(&so_far, json, done)
}

/// The same by the admin API of a running gateway.
pub(super) fn run_running(
    gateway: &mut Gateway,
    output: &Output,
    args: &EndUsersImportArgs,
) -> Result<(), Failure> {
    args.within.enter(gateway);
    let workspace = gateway.workspace.clone();
    let (file, dry_run) = (args.file.as_path(), args.dry_run);
    let import = RunningImport { gateway, file, workspace, dry_run, path: "endusers", rows: "end_users" };
    let mut so_far = RunningImported::default();
    let done = import.run(&mut so_far);
    args.report(&so_far, output.json, done)
}

impl EndUsersImportArgs {
    /// Says what became of the rows. What was stored stays stored, also if something failed after it.
    fn report(&self, so_far: &RunningImported, json: bool, done: Result<(), Failure>) -> Result<(), Failure> {
        let RunningImported { imported, existing, refused } = so_far;
        if self.dry_run {
            eprintln!("{imported} could be imported, {} refused", refused.len());
        } else {
            eprintln!("{imported} imported, {existing} there already, {} refused", refused.len());
        }
        if json {
            let report = json!({
                "imported": imported,
                "existing": existing,
                "refused": refused.len(),
                "dry_run": self.dry_run,
            });
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

impl EndUsersImport<'_> {
    fn everything(&mut self) -> Result<(), Failure> {
        for row in rows(&self.args.file)? {
            let (line, row) =
                row.map_err(|error| Failure::Failed(format!("{}: {error}", self.args.file.display())))?;
            match row.and_then(|row| self.user(&row)) {
                Ok(user) => self.add(user)?,
                Err(why) => {
                    self.refused.insert(line);
                    eprintln!("{}:{line}: {why}", self.args.file.display());
                }
            }
        }
        let rest: Vec<WorkspaceId> = self.users.keys().cloned().collect();
        rest.iter().try_for_each(|workspace| self.store(workspace))
    }

    fn user(&self, row: &ImportRow) -> Result<EndUserRecord, String> {
        let workspace = match row.get("workspace_id") {
            None | Some(Value::Null) => self.workspace.clone(),
            Some(id) => {
                let id = id.as_str().ok_or("workspace_id: must be text")?;
                id.parse().map_err(|error| format!("workspace_id: {error}"))?
            }
        };
        read_imported_end_user(row, &workspace, self.command.now).map_err(|errors| told(&errors))
    }

    fn add(&mut self, user: EndUserRecord) -> Result<(), Failure> {
        self.read += 1;
        let workspace = user.workspace_id.clone();
        let waiting = self.users.entry(workspace.clone()).or_default();
        waiting.push(user);
        if waiting.len() == BATCH { self.store(&workspace) } else { Ok(()) }
    }

    fn store(&mut self, workspace: &WorkspaceId) -> Result<(), Failure> {
        let users = self.users.remove(workspace).unwrap_or_default();
        if self.args.dry_run || users.is_empty() {
            return Ok(());
        }
        let KeyCommand { store, config, now, .. } = self.command;
        let by = Actor::cli();
        self.command.wait(store.ensure_workspace(workspace, &config.admin.default_plan, &by, *now))?;
        self.new += self.command.wait(store.restore_end_users(workspace, users, &by, *now))?;
        Ok(())
    }
}
