//! `keygate keys`: manages keys without the admin API. A running gateway owns its SQLite file, so with SQLite the gateway
//! must be stopped; with PostgreSQL gateways may run meanwhile.

mod carried_over;
mod create;
pub(super) mod export;
pub(super) mod import;

use super::{ConfigArgs, Environment, Failure, inline_secrets, load, log, say};
use crate::admin::input::{FieldError, credential};
use crate::app::{self, StartError};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::Config;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Plan;
use crate::policy::keys::secret::{Pepper, Peppers, Secret};
use crate::store::{Actor, KeyFilter, KeyPatch, KeyRecord, PageRequest, Store, StoreError};
use clap::{Args, Subcommand};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Keys per page for commands that process all of them. Each page skips those before it, so few large pages are much
/// faster.
const PAGE: u32 = 10_000;

/// Arguments of `keygate keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: KeysCommand,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Create a key and print its secret, this once, on standard output
    Create(create::CreateArgs),
    /// List the keys of a workspace, newest first
    List(ListArgs),
    /// Disable a key; `PUT /apikeys/{id}` with `"is_active": true` enables it again
    Disable(OneKey),
    /// Give a key a new secret and print it, this once, on standard output
    Regenerate(RegenerateArgs),
    /// Delete a key; its usage stays, and `restore` undoes it within the plan's `deleted_keys_days`
    Delete(OneKey),
    /// Restore a deleted key with its secret and its spent limits
    Restore(OneKey),
    /// Import keys from a file of JSON lines (.jsonl) or comma-separated values (.csv)
    Import(import::KeysImportArgs),
    /// Write all keys, with the digests of their secrets, as JSON lines that `import` reads
    Export(export::KeysExportArgs),
}

/// The workspace.
#[derive(Debug, Args)]
struct InWorkspace {
    /// The workspace
    #[arg(long, value_name = "ID", default_value = "default")]
    workspace: WorkspaceId,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// Include disabled keys
    #[arg(long)]
    all: bool,
    /// List deleted keys that can be restored instead
    #[arg(long)]
    deleted: bool,
}

#[derive(Debug, Args)]
struct OneKey {
    #[command(flatten)]
    within: InWorkspace,
    /// The key's id
    id: KeyId,
}

#[derive(Debug, Args)]
struct RegenerateArgs {
    #[command(flatten)]
    key: OneKey,
    /// How long the old secret stays valid, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=2_592_000))]
    grace_period_seconds: u32,
}

/// The opened store, with everything needed to create keys.
pub(in crate::cli) struct KeyCommand {
    pub(in crate::cli) config: Config,
    pub(in crate::cli) runtime: Runtime,
    pub(in crate::cli) store: Arc<dyn Store>,
    peppers: Arc<Peppers>,
    pub(in crate::cli) now: Timestamp,
}

pub(super) fn run(args: KeysArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    log::init(&config.log);
    let command = KeyCommand::open(config, inline_secrets(environment).peppers)?;
    let done = match args.command {
        KeysCommand::Create(args) => create::run(&command, args),
        KeysCommand::List(args) => list(&command, &args),
        KeysCommand::Disable(key) => disable(&command, &key),
        KeysCommand::Regenerate(args) => regenerate(&command, &args),
        KeysCommand::Delete(key) => delete(&command, &key),
        KeysCommand::Restore(key) => restore(&command, &key),
        KeysCommand::Import(args) => import::run(&command, &args),
        KeysCommand::Export(args) => export::run(&command, &args),
    };
    command.runtime.block_on(command.store.close());
    done
}

fn list(command: &KeyCommand, args: &ListArgs) -> Result<(), Failure> {
    let is_active = (!args.all && !args.deleted).then_some(true);
    let filter = KeyFilter { is_active, is_deleted: args.deleted, ..KeyFilter::default() };
    command.each_key(&args.within.workspace, &filter, |record| {
        let state = match (record.deleted_at, record.key.is_active) {
            (Some(_), _) => "deleted",
            (None, true) => "active",
            (None, false) => "disabled",
        };
        let KeyRecord { key, name, hint, .. } = record;
        say(format_args!("{}  {:<9}{:<14}{:<32}{}", key.id, state, key.kind.as_str(), hint, name))
    })
}

fn disable(command: &KeyCommand, key: &OneKey) -> Result<(), Failure> {
    let patch = KeyPatch { is_active: Some(false), ..KeyPatch::default() };
    let by = Actor::cli();
    command
        .wait(command.store.update_key(&key.within.workspace, key.id, patch, &by, command.now))
        .map(|written| eprintln!("{} is disabled", written.value.key.id))
}

fn delete(command: &KeyCommand, key: &OneKey) -> Result<(), Failure> {
    let by = Actor::cli();
    command
        .wait(command.store.delete_key(&key.within.workspace, key.id, &by, command.now))
        .map(|_| eprintln!("{} is deleted", key.id))
}

fn restore(command: &KeyCommand, key: &OneKey) -> Result<(), Failure> {
    let (workspace, by) = (&key.within.workspace, Actor::cli());
    let peppers: Vec<u32> = command.peppers.iter().map(Pepper::version).collect();
    command
        .wait(command.store.restore_key(workspace, key.id, &peppers, &by, command.now))
        .map(|_| eprintln!("{} is restored", key.id))
}

fn regenerate(command: &KeyCommand, args: &RegenerateArgs) -> Result<(), Failure> {
    let (workspace, id) = (&args.key.within.workspace, args.key.id);
    let record = command.wait(command.store.key(workspace, id))?;
    let kind = record.ok_or_else(|| Failure::failed(StoreError::NotFound("key")))?.key.kind;
    let prefix = &command.config.secrets.prefix;
    let secret = Secret::generate(prefix, kind);
    let issued = credential(&secret, prefix, &command.peppers);
    let grace = Duration::from_secs(args.grace_period_seconds.into());
    let old_until = (!grace.is_zero()).then(|| command.now.plus(grace));
    command.wait(command.store.regenerate_key(
        workspace,
        id,
        issued,
        old_until,
        &Actor::cli(),
        command.now,
    ))?;
    say(format_args!("{}", secret.expose()))
}

// === impl KeyCommand ===

impl KeyCommand {
    pub(in crate::cli) fn open(config: Config, inline: Option<&str>) -> Result<Self, Failure> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
        let opened = runtime.block_on(app::open_store(&config, runtime.handle()));
        let store = opened.map_err(|e| Failure::failed(StartError::from(e)))?;
        let peppers =
            runtime.block_on(app::agreed_peppers(&config, inline, &*store)).map_err(Failure::failed)?;
        runtime
            .block_on(app::apply_plans(&config.plans, &*store, SystemClock::new().now().wall))
            .map_err(Failure::failed)?;
        let now = SystemClock::new().now().wall;
        Ok(Self { config, runtime, store, peppers, now })
    }

    pub(in crate::cli) fn wait<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        self.runtime.block_on(call).map_err(Failure::failed)
    }

    /// The plan of a workspace, which is created with the default plan if it does not exist.
    fn plan_of(&self, workspace: &WorkspaceId) -> Result<Plan, Failure> {
        let default = &self.config.admin.default_plan;
        let ensured = self.wait(self.store.ensure_workspace(workspace, default, &Actor::cli(), self.now))?;
        let plan = self.wait(self.store.plan(&ensured.value.plan_id))?;
        plan.map(|record| record.plan).ok_or_else(|| Failure::failed(StoreError::NotFound("plan")))
    }

    /// Calls `each` with every key of a workspace, oldest page last. Keys that are created meanwhile may appear twice.
    fn each_key(
        &self,
        workspace: &WorkspaceId,
        filter: &KeyFilter,
        mut each: impl FnMut(KeyRecord) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for page in 1.. {
            let keys = self.wait(self.store.keys(workspace, filter, PageRequest { page, pagesize: PAGE }))?;
            if keys.items.is_empty() {
                break;
            }
            keys.items.into_iter().try_for_each(&mut each)?;
        }
        Ok(())
    }
}

/// Field errors as one line.
pub(in crate::cli) fn told(errors: &[FieldError]) -> String {
    errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect::<Vec<_>>().join("; ")
}
