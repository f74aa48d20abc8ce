//! `keygate usage`: totals by the admin API, and the ledger's records in a file, for archives or for another store.
//!
//! Such a file is JSON lines, one [`line`] per record, ordered by id, and nothing else: any part of it is a valid file.

mod export;
mod import;
mod line;
mod show;

use super::gateway::{self, GatewayArgs};
use super::keys::on_store;
use super::{Environment, Failure};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `keygate usage`.
#[derive(Debug, Args)]
pub struct UsageArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(subcommand)]
    command: UsageCommand,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Show the totals of a workspace
    Show(show::UsageShowArgs),
    /// Write usage records, those of deleted keys included, as lines that `import` reads, ordered by id
    Export(export::UsageExportArgs),
    /// Import usage records from a file that `export` wrote. Existing records are not changed, so an interrupted import can
    /// be repeated. Statistics and spent limits follow; move keys first, with `keygate export` and `keygate import`
    Import(import::UsageImportArgs),
}

pub(super) fn run(args: &UsageArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let gateway = &args.gateway;
    match &args.command {
        UsageCommand::Show(args) => {
            gateway::with(gateway, environment, |gateway, output| show::run(gateway, output, args))
        }
        UsageCommand::Export(args) => on_store(gateway, environment, |command| export::run(command, args)),
        UsageCommand::Import(args) => on_store(gateway, environment, |command| import::run(command, args)),
    }
}

/// Shows the number of records on a terminal.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} records, {per_sec}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
