//! `keygate import`

use super::entries::{self, instant, word};
use super::{ArchiveEntry, FORMAT, KINDS, READ};
use crate::admin::input::json;
use crate::admin::input::{CreatePlanInput, UpdatePlanInput, UpdateWorkspaceInput};
use crate::cli::keys::import::{ImportRow, KeysImport as KeyImport};
use crate::cli::keys::{KeyCommand, told};
use crate::cli::{ConfigArgs, Environment, Failure, inline_secrets, load, log, text_file};
use crate::policy::prices::json::{PriceMistake, from_json as prices_from_json};
use crate::store::{Actor, EndUserRecord, StoreError};
use clap::Args;
use serde_json::Value;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};

/// What is counted beside plans, workspaces, keys and end users.
const FURTHER: [ArchiveEntry; 4] =
    [ArchiveEntry::Grant, ArchiveEntry::DeletedWorkspace, ArchiveEntry::Price, ArchiveEntry::Credential];
/// End users stored at a time.
const BATCH: usize = 1_000;

/// Arguments of `keygate import`.
#[derive(Debug, Args)]
pub struct ArchiveImportArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A file written by `keygate export`. Plans, workspaces, prices and credentials are overwritten; existing keys, end users
    /// and grants are not changed, so an interrupted import can be repeated
    file: PathBuf,
}

pub(in crate::cli) fn run(args: &ArchiveImportArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    log::init(&config.log);
    // The whole file is checked before any of it is used.
    let whole = check_complete(&args.file)?;
    let command = KeyCommand::open(config, inline_secrets(environment).peppers)?;
    let mut keys = KeyImport::new(&command, &args.file, None);
    keys.again = true;
    keys.progress.set_length(whole);
    let mut import = ArchiveImport {
        command: &command,
        keys,
        users: Vec::new(),
        prices: Vec::new(),
        others: [0; KINDS],
        plans: 0,
        workspaces: 0,
        end_users: (0, 0),
    };
    let done = import.everything(&args.file);
    command.runtime.block_on(command.store.close());
    done?;
    import.keys.progress.finish_and_clear();
    let ArchiveImport { keys, others, plans, workspaces, end_users: (new, known), .. } = import;
    let further = FURTHER
        .map(|thing| format!(", {} {}s", others[thing as usize], thing.name()))
        .concat()
        .replace('_', " ");
    eprintln!(
        "imported {plans} plans, {workspaces} workspaces{further}, {} keys, {new} end users",
        keys.imported
    );
    eprintln!(
        "there already: {} keys, {known} end users; refused: {}",
        keys.there_already,
        keys.refused.len()
    );
    match keys.refused.len() {
        0 => Ok(()),
        refused => Err(Failure::Failed(format!("{refused} lines were refused"))),
    }
}

/// Checks that the file is complete, from its header to its trailer. Returns its number of lines.
fn check_complete(file: &Path) -> Result<u64, Failure> {
    let refused = |why: &str| Failure::Failed(format!("{}: {why}", file.display()));
    let mut counts = [0_u64; KINDS];
    let (mut number, mut end) = (0, None);
    for line in lines(file)? {
        let (n, row) = line?;
        number = n;
        if n == 1 {
            let format = row.get("keygate").and_then(|head| head.get("format")).and_then(Value::as_u64);
            match format {
                Some(format) if READ.contains(&format) => continue,
                Some(other) => {
                    return Err(refused(&format!("is of format {other}; this binary reads up to {FORMAT}")));
                }
                None => return Err(refused("was not written by keygate export")),
            }
        }
        if end.is_some() {
            return Err(refused("goes on after its end"));
        }
        match ArchiveEntry::of(&row) {
            Some(thing) => counts[thing as usize] += 1,
            None => end = row.get("end").cloned(),
        }
    }
    let counted = |(thing, n): (&ArchiveEntry, u64)| {
        // A kind that the format did not have yet has no lines.
        end.as_ref().is_some_and(|end| end.get(thing.name()).map_or(Some(0), Value::as_u64) == Some(n))
    };
    let is_whole = ArchiveEntry::ALL.iter().zip(counts).all(counted);
    if is_whole { Ok(number) } else { Err(refused("is not whole: lines are missing")) }
}

type ArchiveLine = Result<(u64, ImportRow), Failure>;

/// The lines with their numbers, each an object.
fn lines(file: &Path) -> Result<impl Iterator<Item = ArchiveLine> + use<>, Failure> {
    let name = file.display().to_string();
    let opened = text_file(file).map_err(|e| Failure::Failed(format!("{name}: {e}")))?;
    Ok((1..).zip(opened.lines()).map(move |(n, line)| {
        let line = line.map_err(|e| Failure::Failed(format!("{name}:{n}: {e}")))?;
        let row = json::line(&line);
        row.map(|row| (n, row)).map_err(|why| Failure::Failed(format!("{name}:{n}: {why}")))
    }))
}

/// A running import.
struct ArchiveImport<'d> {
    command: &'d KeyCommand,
    keys: KeyImport<'d>,
    /// End users of one workspace, to be stored.
    users: Vec<EndUserRecord>,
    /// Prices, which are stored as a whole.
    prices: Vec<Value>,
    /// How many of [`FURTHER`].
    others: [u64; KINDS],
    plans: u64,
    workspaces: u64,
    /// New ones, and existing ones.
    end_users: (u64, u64),
}

impl ArchiveImport<'_> {
    fn everything(&mut self, file: &Path) -> Result<(), Failure> {
        for line in lines(file)? {
            let (n, mut row) = line?;
            self.keys.progress.inc(1);
            // Header and trailer have been read already.
            let Some(thing) = ArchiveEntry::of(&row) else { continue };
            let Some(Value::Object(fields)) = row.remove(thing.name()) else {
                self.keys.refuse(n, &format!("{}: must be an object", thing.name()));
                continue;
            };
            match thing {
                ArchiveEntry::Plan => self.plan(fields).map_err(|why| at(file, n, &why))?,
                ArchiveEntry::Workspace => self.workspace(fields).map_err(|why| at(file, n, &why))?,
                ArchiveEntry::Grant | ArchiveEntry::DeletedWorkspace | ArchiveEntry::Credential => {
                    match self.other(thing, &fields) {
                        Ok(()) => self.others[thing as usize] += 1,
                        Err(why) => self.keys.refuse(n, &why),
                    }
                }
                ArchiveEntry::Price => self.prices.push(Value::Object(fields)),
                ArchiveEntry::Key => self.keys.add(n, Ok(fields))?,
                ArchiveEntry::EndUser => match end_user(&fields) {
                    Ok(user) => self.end_user(user)?,
                    Err(why) => self.keys.refuse(n, &why),
                },
            }
        }
        self.keys.store()?;
        self.store_users()?;
        self.store_prices().map_err(|why| Failure::Failed(format!("{}: {why}", file.display())))
    }

    fn plan(&mut self, mut fields: ImportRow) -> Result<(), String> {
        let KeyCommand { store, now, .. } = self.command;
        let input = CreatePlanInput::read(&fields).map_err(|errors| told(&errors))?;
        let record = input.into_record(*now);
        let id = record.plan.id.clone();
        let by = Actor::cli();
        let made = self.command.runtime.block_on(store.create_plan(record, &by, *now));
        if let Err(StoreError::AlreadyExists(_)) = made {
            fields.remove("id");
            let patch = UpdatePlanInput::read(&fields).map_err(|errors| told(&errors))?.into_patch();
            let changed = self.command.runtime.block_on(store.update_plan(&id, patch, &by, *now));
            changed.map_err(|e| e.to_string())?;
        } else {
            made.map_err(|e| e.to_string())?;
        }
        self.plans += 1;
        Ok(())
    }

    fn workspace(&mut self, mut fields: ImportRow) -> Result<(), String> {
        let KeyCommand { store, now, config, .. } = self.command;
        let id = word(&fields, "id")?.parse().map_err(|e| format!("id: {e}"))?;
        fields.remove("id");
        let patch = UpdateWorkspaceInput::read(&fields).map_err(|errors| told(&errors))?.into_patch();
        let by = Actor::cli();
        let put = store.put_workspace(&id, patch, &config.admin.default_plan, &by, *now);
        self.command.runtime.block_on(put).map_err(|e| e.to_string())?;
        self.workspaces += 1;
        Ok(())
    }

    /// A grant or a deleted workspace, unless it is there already, or a credential, which replaces the one for the same requests.
    fn other(&self, thing: ArchiveEntry, fields: &ImportRow) -> Result<(), String> {
        let KeyCommand { store, now, config, runtime, .. } = self.command;
        let (by, now) = (Actor::cli(), *now);
        let failed = |error: StoreError| error.to_string();
        match thing {
            ArchiveEntry::Grant => {
                let (workspace, grant) = entries::grant(fields)?;
                let known = runtime.block_on(store.workspace(&workspace)).map_err(failed)?;
                if known.is_some_and(|known| known.grants.iter().any(|there| there.id == grant.id)) {
                    return Ok(());
                }
                runtime.block_on(store.create_grant(&workspace, grant, &by, now)).map_err(failed)?;
            }
            ArchiveEntry::DeletedWorkspace => {
                let id = word(fields, "id")?.parse().map_err(|e| format!("id: {e}"))?;
                if runtime.block_on(store.was_workspace(&id)).map_err(failed)? {
                    return Ok(());
                }
                // A workspace of this id that is in use here stays.
                let plan = &config.admin.default_plan;
                runtime.block_on(store.ensure_workspace(&id, plan, &by, now)).map_err(failed)?;
                runtime.block_on(store.delete_workspace(&id, false, &by, now)).map_err(failed)?;
            }
            _ => {
                let credential = entries::credential(fields, now)?;
                runtime.block_on(store.put_credential(credential, &by, now)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Replaces the prices, if the file has any.
    fn store_prices(&mut self) -> Result<(), String> {
        let prices = std::mem::take(&mut self.prices);
        if prices.is_empty() {
            return Ok(());
        }
        let told = |mistakes: Vec<PriceMistake>| {
            let first = mistakes.into_iter().next();
            first.map_or_else(String::new, |mistake| format!("price{}: {}", mistake.place, mistake.message))
        };
        let prices = prices_from_json(&Value::Array(prices)).map_err(told)?;
        self.others[ArchiveEntry::Price as usize] = prices.len() as u64;
        let KeyCommand { store, now, runtime, .. } = self.command;
        let by = Actor::cli();
        runtime.block_on(store.put_price_list(prices, &by, *now)).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn end_user(&mut self, user: EndUserRecord) -> Result<(), Failure> {
        let is_next_workspace = self.users.last().is_some_and(|last| last.workspace_id != user.workspace_id);
        if is_next_workspace || self.users.len() == BATCH {
            self.store_users()?;
        }
        self.users.push(user);
        Ok(())
    }

    fn store_users(&mut self) -> Result<(), Failure> {
        let users = std::mem::take(&mut self.users);
        let Some(workspace) = users.first().map(|user| user.workspace_id.clone()) else { return Ok(()) };
        let count = users.len() as u64;
        let new = self.command.wait(self.command.store.restore_end_users(
            &workspace,
            users,
            &Actor::cli(),
            self.command.now,
        ))?;
        self.end_users.0 += new;
        self.end_users.1 += count.saturating_sub(new);
        Ok(())
    }
}

fn end_user(fields: &ImportRow) -> Result<EndUserRecord, String> {
    Ok(EndUserRecord {
        id: word(fields, "id")?.parse().map_err(|_| "id: must be a UUID")?,
        workspace_id: entries::workspace(fields)?,
        other_id: word(fields, "other_id")?.to_owned(),
        created_at: instant(fields, "created_at")?,
    })
}

fn at(file: &Path, line: u64, why: &str) -> Failure {
    Failure::Failed(format!("{}:{line}: {why}", file.display()))
}
