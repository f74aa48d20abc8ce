//! `keygate migrate`

use super::{ConfigArgs, Environment, Failure, load, say};
use crate::config::StoreLocation;
use crate::store::sqlite;
use clap::Args;

/// Arguments of `keygate migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Change nothing; tell what is applied and what would be, and exit with 1 if anything is pending
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &MigrateArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    let StoreLocation::Sqlite(path) = &config.store.location;
    let state =
        if args.check { sqlite::check(path) } else { sqlite::migrate(path) }.map_err(Failure::failed)?;
    for name in &state.applied {
        say(format_args!("applied  {name}"))?;
    }
    for name in &state.pending {
        say(format_args!("pending  {name}"))?;
    }
    if state.pending.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!("{} migrations are pending; run keygate migrate", state.pending.len())))
}
