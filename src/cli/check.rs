//! `keygate check`

use super::{ConfigArgs, Environment, Failure, inline_secrets, load, say};
use clap::Args;

/// Arguments of `keygate check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &CheckArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    crate::app::check_files(&config, inline_secrets(environment))
        .map_err(|bad| Failure::Usage(bad.to_string()))?;
    say(format_args!("ok: {} routes to {} upstreams", config.routes.len(), config.upstreams.len()))
}
