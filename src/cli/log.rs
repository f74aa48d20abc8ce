//! Sets up logging, once per process, to standard error.

use crate::config::{LogConfig, LogFormat};
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Pingora logs whole request heads, credentials included, at `debug` and below, so it is always capped. At `error` it
/// reports every client that disconnects, which clients can provoke as often as they like, so it is logged only at more
/// verbose levels. What matters of it is logged where it is handled.
const PINGORA: &[&str] = &["pingora", "pingora_core", "pingora_proxy", "pingora_pool"];

/// These log what they read and write below `info`, and refinery logs at `info` what we log in our own words.
const CAPPED: &[&str] = &["h2=info", "hyper=info", "refinery_core=warn"];

/// Starts logging.
pub(super) fn init(config: &LogConfig) {
    let level: LevelFilter = config.level.as_str().parse().unwrap_or(LevelFilter::INFO);
    let pingora = if level > LevelFilter::INFO { LevelFilter::INFO } else { LevelFilter::OFF };
    let mut filter = EnvFilter::default().add_directive(level.into());
    let pingora = PINGORA.iter().map(|target| format!("{target}={pingora}"));
    for directive in pingora.chain(CAPPED.iter().map(ToString::to_string)) {
        match directive.parse() {
            Ok(directive) => filter = filter.add_directive(directive),
            Err(error) => eprintln!("keygate: {directive}: {error}"),
        }
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let set = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
    };
    if let Err(error) = set {
        eprintln!("keygate: logging is set up already: {error}");
    }
}
