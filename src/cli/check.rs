//! `keygate check`

use super::{ConfigArgs, Environment, Failure, inline_secrets, load, say};
use crate::config::Config;
use crate::model::key::Measure;
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
    if let Some(unmetered) = unmetered_limits(&config) {
        eprintln!("warning: {unmetered}");
    }
    say(format_args!("ok: {} routes to {} upstreams", config.routes.len(), config.upstreams.len()))
}

/// Limits of plans that never count anything, because no route that takes a key has a meter.
fn unmetered_limits(config: &Config) -> Option<String> {
    if config.routes.iter().any(|route| route.meter.is_some() && !route.public) {
        return None;
    }
    let plans = config.plans.iter().map(|plan| &plan.plan).filter(|plan| {
        let mut measures = plan.limits.iter().map(|limit| limit.count);
        measures.any(|measure| measure != Measure::Requests)
    });
    let names: Vec<&str> = plans.map(|plan| plan.id.as_str()).collect();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        format!(
            "limits on tokens or cost of these plans count nothing, because no route has a meter: {names}"
        )
    })
}
