//! `keygate usage export` and `keygate usage import`: the ledger's records in a file, for archives or for another store.
//!
//! The file is JSON lines, one [`line`] per record, ordered by id, and nothing else: any part of it is a valid file.

mod export;
mod import;
mod line;

use super::keys::KeyCommand;
use super::{ConfigArgs, Environment, Failure, inline_secrets, load, log};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `keygate usage`.
#[derive(Debug, Args)]
pub struct UsageArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: UsageCommand,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Write usage records, those of deleted keys included, as lines that `import` reads, ordered by id
    Export(export::UsageExportArgs),
    /// Import usage records from a file that `export` wrote. Existing records are not changed, so an interrupted import can
    /// be repeated. Statistics and spent limits follow; move keys first, with `keygate export` and `keygate import`
    Import(import::UsageImportArgs),
}

pub(super) fn run(args: &UsageArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    log::init(&config.log);
    let command = KeyCommand::open(config, inline_secrets(environment).peppers)?;
    let done = match &args.command {
        UsageCommand::Export(args) => export::run(&command, args),
        UsageCommand::Import(args) => import::run(&command, args),
    };
    command.runtime.block_on(command.store.close());
    done
}

/// Shows the number of records on a terminal.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} records, {per_sec}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
