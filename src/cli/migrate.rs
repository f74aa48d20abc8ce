//! `keygate migrate`

use super::{ConfigArgs, Environment, Failure, load, say};
use crate::app;
use clap::Args;

/// Arguments of `keygate migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Change nothing; list applied and pending migrations, and exit with 1 if anything is pending
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &MigrateArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let state = runtime.block_on(app::schema(&config, !args.check)).map_err(Failure::failed)?;
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
