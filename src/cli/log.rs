//! Logging, set up once per process, to standard error.

use crate::config::{LogConfig, LogFormat};
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Pingora writes whole request heads, credentials included, at `debug` and below; whatever is asked for, it does not get
/// to. At `error` it reports every client that hangs up half-way, which anybody can make it do as often as they like, so
/// it is heard only by who asks for more than usual. What matters of it is logged where it is handled.
const PINGORA: &[&str] = &["pingora", "pingora_core", "pingora_proxy", "pingora_pool"];

/// These say below `info` what they read and write, and refinery at `info` what is said in our own words.
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
