//! `keygate endusers`: import of end users from another system.

use super::keys::import::{ImportRow, rows};
use super::keys::{KeyCommand, told};
use super::{ConfigArgs, Environment, Failure, inline_secrets, load, log, refused_rows};
use crate::admin::input::read_imported_end_user;
use crate::model::id::WorkspaceId;
use crate::store::{Actor, EndUserRecord};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

/// End users stored at a time.
const BATCH: usize = 1_000;

/// Arguments of `keygate endusers`.
#[derive(Debug, Args)]
pub struct EndUsersArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: EndUsersCommand,
}

/// What to do with end users.
#[derive(Debug, Subcommand)]
enum EndUsersCommand {
    /// Import end users from a file of JSON lines (.jsonl) or comma-separated values (.csv)
    Import(EndUsersImportArgs),
}

/// Arguments of `keygate endusers import`.
#[derive(Debug, Args)]
struct EndUsersImportArgs {
    /// The workspace of rows without `workspace_id`
    #[arg(long, value_name = "ID", default_value = "default")]
    workspace: WorkspaceId,
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

pub(super) fn run(args: EndUsersArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    log::init(&config.log);
    let command = KeyCommand::open(config, inline_secrets(environment).peppers)?;
    let EndUsersCommand::Import(args) = args.command;
    let done = import(&command, &args);
    command.runtime.block_on(command.store.close());
    done
}

/// A running import.
struct EndUsersImport<'c> {
    command: &'c KeyCommand,
    args: &'c EndUsersImportArgs,
    /// End users to store, by workspace.
    users: HashMap<WorkspaceId, Vec<EndUserRecord>>,
    read: u64,
    new: u64,
    refused: BTreeSet<u64>,
}

fn import(command: &KeyCommand, args: &EndUsersImportArgs) -> Result<(), Failure> {
    let (users, refused) = (HashMap::new(), BTreeSet::new());
    let mut import = EndUsersImport { command, args, users, read: 0, new: 0, refused };
    let done = import.everything();
    let EndUsersImport { read, new, refused, .. } = import;
    if args.dry_run {
        eprintln!("{read} could be imported, {} refused", refused.len());
    } else {
        eprintln!("{new} imported, {} there already, {} refused", read - new, refused.len());
    }
    if let Some(to) = args.refused.as_deref().filter(|_| !refused.is_empty()) {
        refused_rows::write(&args.file, &refused, to)?;
    }
    done?;
    match refused.len() {
        0 => Ok(()),
        refused => Err(Failure::Failed(format!("{refused} rows were refused"))),
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
            None | Some(Value::Null) => self.args.workspace.clone(),
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
