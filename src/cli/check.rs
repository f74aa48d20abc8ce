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
    let closed: Vec<&str> =
        config.routes.iter().filter(|r| r.resource.is_none() && !r.public).map(|r| r.name.as_str()).collect();
    if !closed.is_empty() {
        eprintln!(
            "warning: keys that are bound to a resource cannot use these routes, which name none: {}. Set resource to \
             \"path:NAME\" or \"header:NAME\", to \"any\" if bound keys may use the route, or to \"none\" if they may not.",
            closed.join(", ")
        );
    }
    say(format_args!("ok: {} routes to {} upstreams", config.routes.len(), config.upstreams.len()))
}
