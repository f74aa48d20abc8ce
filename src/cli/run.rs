//! `keygate run`

use super::{ConfigArgs, Environment, Failure, inline_secrets, load, log, ready};
use crate::app::{self, ConfigSource, Signals};
use clap::Args;
use serde_json::Map;

/// Arguments of `keygate run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one line of JSON on standard output once every listener accepts
    #[arg(long)]
    ready_json: bool,
}

pub(super) fn run(args: &RunArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    app::check_files(&config, inline_secrets(environment)).map_err(|bad| Failure::Usage(bad.to_string()))?;
    log::init(&config.log);
    let source = ConfigSource {
        path: args.config.config.clone(),
        variables: environment.variables.to_vec(),
        host_name: environment.host_name.to_owned(),
    };
    let running = app::start(&config, Some(source), inline_secrets(environment)).map_err(Failure::failed)?;
    let signals = running.block_on(async { Signals::catch() }).map_err(Failure::failed)?;
    tracing::info!(proxy = ?running.proxy, admin = %running.admin, keys = running.keyring.len(), "serving");
    if args.ready_json {
        ready::print(&running, Map::new())?;
    }
    running.block_on(signals.asked_to_stop(Some(&running.reloader)));
    running.stop();
    Ok(())
}
