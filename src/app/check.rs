//! Checks of what a config names, before anything is started.

use super::{InlineSecrets, StartError, identity, telemetry, tls, upstreams};
use crate::config::Config;

/// Checks that the configured files for backends, the collector, the identity provider and TLS can be used. Returns every
/// mistake: the key, and what is wrong.
pub fn check_files(config: &Config, inline: InlineSecrets<'_>) -> Result<(), Vec<(String, String)>> {
    let mut all = upstreams::settings(config).err().unwrap_or_default();
    let of_keys = |error: StartError| match error {
        StartError::File(error) => format!("secrets.encryption_key_file: {error}"),
        error => error.to_string(),
    };
    all.extend(upstreams::encryption_keys(config, inline).err().map(of_keys));
    let more = [
        vec![telemetry::collector(config, inline).map(drop)],
        identity::check(config, inline),
        tls::check(config),
    ];
    all.extend(more.into_iter().flatten().filter_map(|checked| checked.err().map(|error| error.to_string())));
    let parts = |text: String| match text.split_once(": ") {
        Some((key, why)) => (key.to_owned(), why.to_owned()),
        None => (String::new(), text),
    };
    if all.is_empty() { Ok(()) } else { Err(all.into_iter().map(parts).collect()) }
}
