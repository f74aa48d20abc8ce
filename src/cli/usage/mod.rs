//! `keygate usage export` and `keygate usage import`: the ledger's records in a file, for keeping or for another store.
//!
//! The file is JSON lines, one [`line`] per record in the order of their ids, and nothing else: any part of it is a file too.

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

/// What to do with usage records.
#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Write usage records, those of deleted keys too, as lines that `import` takes, in the order of their ids
    Export(export::UsageExportArgs),
    /// Take usage records from a file that `export` wrote. Those that are there already stay as they are, so an import that was
    /// broken off can be repeated. Statistics and what limits have spent follow; move keys first, with `keygate export` and
    /// `keygate import`
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

/// Counts records on a terminal.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} records, {per_sec}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
