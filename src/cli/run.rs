//! `keygate run`

use super::{ConfigArgs, Environment, Failure, inline_secrets, load_with_files, log, ready, warnings};
use crate::app::{self, ConfigSource, Predecessor, ProcessContext, Signals, StartError};
use clap::Args;
use serde_json::Map;
use std::net::SocketAddr;
use std::path::Path;

/// Arguments of `keygate run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one line of JSON on standard output once every listener accepts
    #[arg(long)]
    ready_json: bool,
    /// Set by a gateway that this one replaces: standard input is the channel to it
    #[arg(long, hide = true)]
    take_over: bool,
}

/// Addresses, for a log line.
fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The config file, for a log line.
fn source_name(path: Option<&Path>) -> String {
    path.map_or_else(|| "none".to_owned(), |path| path.display().to_string())
}

pub(super) fn run(args: &RunArgs, environment: Environment<'_>) -> Result<(), Failure> {
    // First of all: an early signal waits, and does not kill the process silently.
    let mut signals = Signals::catch().map_err(Failure::failed)?;
    let config = load_with_files(&args.config, environment)?;
    log::init(&config.log);
    if config.routes.is_empty() {
        tracing::warn!(
            config = source_name(args.config.path(environment)?.as_deref()),
            "no routes are configured: every request gets 404; add [[upstreams]] and [[routes]] to the config file"
        );
    }
    for warning in warnings::of_listeners(&config) {
        tracing::warn!("{warning}");
    }
    let source = ConfigSource {
        path: args.config.path(environment)?,
        variables: environment.variables.to_vec(),
        host_name: environment.host_name.to_owned(),
    };
    let predecessor = args.take_over.then(Predecessor::connect).transpose();
    let around = ProcessContext {
        called: Some(environment.called),
        notify_socket: environment.variable("NOTIFY_SOCKET"),
        predecessor: predecessor.map_err(|error| Failure::Failed(format!("--take-over: {error}")))?,
        signals: Some(&mut signals),
        sign_in_codes: None,
    };
    let mut running = match app::start(&config, Some(source), inline_secrets(environment), around) {
        Ok(running) => running,
        Err(stopped @ StartError::Stopped) => {
            tracing::info!("{stopped}");
            return Ok(());
        }
        Err(error) => return Err(Failure::failed(error)),
    };
    tracing::info!(proxy = list(&running.proxy), proxy_tls = list(&running.proxy_tls), proxy_h2c = list(&running.proxy_h2c), decide = list(&running.decide), admin = %running.admin, keys = running.keyring.len(), "serving");
    if args.ready_json {
        ready::print(&running, Map::new())?;
    }
    running.mark_serving().map_err(Failure::failed)?;
    let why = running.block_on(signals.asked_to_stop(Some(&running)));
    running.stop(why);
    Ok(())
}
