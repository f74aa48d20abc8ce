//! `keygate keys`: manages keys by the admin API, of the running gateway or, where none runs, of the store in this process.
//! Exports, and imports while no gateway runs, work on the store itself.

mod carried_over;
pub(super) mod export;
pub(super) mod fields;
pub(super) mod import;
pub(super) mod import_running;
pub(super) mod manage;

use super::gateway::{self, Gateway, GatewayArgs};
use super::{Environment, Failure, inline_secrets, load, log};
use crate::admin::input::{FieldError, uncounted};
use crate::app::{self, StartError};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::Config;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Plan;
use crate::policy::keys::secret::Peppers;
use crate::policy::routing::counted::why_uncounted;
use crate::store::{Actor, KeyFilter, KeyRecord, NewKey, PageRequest, Store, StoreError};
use clap::{Args, Subcommand};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Keys per page for commands that process all of them. Each page skips those before it, so few large pages are much
/// faster.
const PAGE: u32 = 10_000;

/// Arguments of `keygate keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(subcommand)]
    command: KeysCommand,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// List the keys of a workspace, newest first
    List(manage::ListArgs),
    /// Show a key, without its secret
    Get(OneKey),
    /// Create a key and print its secret, this once, on standard output
    Create(manage::CreateArgs),
    /// Change a key; what is not named stays
    Update(manage::UpdateArgs),
    /// Enable a disabled key
    Enable(OneKey),
    /// Disable a key
    Disable(OneKey),
    /// Give a key a new secret and print it, this once, on standard output
    Regenerate(manage::RegenerateArgs),
    /// Delete a key; its usage stays, and `restore` undoes it within the plan's `deleted_keys_days`
    Delete(OneKey),
    /// Restore a deleted key with its secret and its spent limits
    Restore(OneKey),
    /// Import keys from a file of JSON lines (.jsonl) or comma-separated values (.csv)
    Import(import::KeysImportArgs),
    /// Write all keys, with the digests of their secrets, as JSON lines that `import` reads. No API shows digests: with SQLite
    /// the gateway must be stopped
    Export(export::KeysExportArgs),
}

/// The workspace.
#[derive(Debug, Args)]
pub(in crate::cli) struct InWorkspace {
    /// The workspace; without this argument that of the token, or `default` if there is no token
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
}

#[derive(Debug, Args)]
struct OneKey {
    #[command(flatten)]
    within: InWorkspace,
    /// The key's id
    id: KeyId,
}

/// The opened store, with everything needed to create keys.
pub(in crate::cli) struct KeyCommand {
    pub(in crate::cli) config: Config,
    pub(in crate::cli) runtime: Runtime,
    pub(in crate::cli) store: Arc<dyn Store>,
    pub(in crate::cli) peppers: Arc<Peppers>,
    pub(in crate::cli) now: Timestamp,
}

pub(super) fn run(args: KeysArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let gateway = &args.gateway;
    match &args.command {
        KeysCommand::Export(args) => {
            return on_store(gateway, environment, |command| export::run(command, args));
        }
        KeysCommand::Import(args) if !gateway.names_running(environment)? => {
            return on_store(gateway, environment, |command| import::run(command, args, gateway.json));
        }
        _ => {}
    }
    gateway::with(gateway, environment, |gateway, output| match args.command {
        KeysCommand::List(args) => manage::list(gateway, output, &args),
        KeysCommand::Get(key) => manage::get(gateway, output, &key),
        KeysCommand::Create(args) => manage::create(gateway, output, args),
        KeysCommand::Update(args) => manage::update(gateway, output, args),
        KeysCommand::Enable(key) => manage::enable(gateway, output, &key, true),
        KeysCommand::Disable(key) => manage::enable(gateway, output, &key, false),
        KeysCommand::Regenerate(args) => manage::regenerate(gateway, output, &args),
        KeysCommand::Delete(key) => manage::delete(gateway, output, &key),
        KeysCommand::Restore(key) => manage::restore(gateway, output, &key),
        KeysCommand::Import(args) => import_running::run(gateway, output, &args),
        KeysCommand::Export(_) => Ok(()),
    })
}

/// Runs a command that works on the store itself.
pub(in crate::cli) fn on_store(
    args: &GatewayArgs,
    environment: Environment<'_>,
    work: impl FnOnce(&KeyCommand) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    log::init(&config.log);
    let command = KeyCommand::open(config, inline_secrets(environment).peppers)?;
    let done = work(&command);
    command.runtime.block_on(command.store.close());
    done
}

impl InWorkspace {
    /// Calls of `gateway` are about this workspace from now on.
    pub(in crate::cli) fn enter(&self, gateway: &mut Gateway) {
        gateway.workspace = self.workspace.as_ref().map(ToString::to_string);
    }

    /// The workspace where there is no token.
    pub(in crate::cli) fn or_default(&self) -> Result<WorkspaceId, Failure> {
        self.workspace.clone().map_or_else(|| "default".parse().map_err(Failure::failed), Ok)
    }
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

    /// The runtime on which the store was opened, and the rest.
    pub(in crate::cli) fn into_parts(self) -> (Runtime, Config, Arc<dyn Store>, Arc<Peppers>) {
        (self.runtime, self.config, self.store, self.peppers)
    }

    pub(in crate::cli) fn wait<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        self.runtime.block_on(call).map_err(Failure::failed)
    }

    /// The mistakes of a key's limits that no configured route would count.
    fn uncounted(&self, key: &NewKey) -> Vec<FieldError> {
        let scopes = Some(&key.key.scopes);
        let why = |measure| why_uncounted(self.config.key_routes(), measure, scopes);
        uncounted(&key.key.ceilings.limits, why)
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
