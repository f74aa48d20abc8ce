//! `keygate check`

use super::{ConfigArgs, Environment, Failure, inline_secrets, load_with_files, say, warnings};
use crate::app::{self, ConnectionCheck};
use crate::config::Config;
use clap::Args;

/// Arguments of `keygate check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Also connect to the database, Redis, the identity provider and every server of every upstream; exit with 1 if one of them cannot be used
    #[arg(long)]
    connect: bool,
}

pub(super) fn run(args: &CheckArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load_with_files(&args.config, environment)?;
    for warning in warnings::of_listeners(&config) {
        eprintln!("warning: {warning}");
    }
    let closed: Vec<&str> =
        config.routes.iter().filter(|r| r.resource.is_none() && !r.public).map(|r| r.name.as_str()).collect();
    if !closed.is_empty() {
        eprintln!(
            "warning: keys that are bound to a resource cannot use these routes, which name none: {}. Set resource to \
             \"path:NAME\" or \"header:NAME\", to \"any\" if bound keys may use the route, or to \"none\" if they may not.",
            closed.join(", ")
        );
    }
    if args.connect {
        connect(&config, environment)?;
    }
    say(format_args!("ok: {} routes to {} upstreams", config.routes.len(), config.upstreams.len()))
}

/// Connects to everything that the config names, and prints each result.
fn connect(config: &Config, environment: Environment<'_>) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let checks = runtime.block_on(app::check_connections(config, inline_secrets(environment)));
    let checks = checks.map_err(|bad| Failure::Usage(bad.to_string()))?;
    for ConnectionCheck { what, result } in &checks {
        match result {
            Ok(None) => say(format_args!("connected  {what}"))?,
            Ok(Some(remark)) => say(format_args!("connected  {what}: {remark}"))?,
            Err(why) => say(format_args!("failed     {what}: {why}"))?,
        }
    }
    match checks.iter().filter(|check| check.result.is_err()).count() {
        0 => Ok(()),
        failed => Err(Failure::Failed(format!("{failed} of {} connections failed", checks.len()))),
    }
}
