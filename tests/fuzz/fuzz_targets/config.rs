//! Any bytes as a config file: `cargo +nightly fuzz run --fuzz-dir tests/fuzz config`.

#![no_main]

use keygate::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    let Ok(text) = std::str::from_utf8(raw) else { return };
    match Config::parse(text, "fuzz.toml", &[], "node") {
        // An accepted config has an upstream for every route, and valid plans.
        Ok(config) => {
            assert!(config.routes.iter().all(|r| r.upstream < config.upstreams.len()));
            assert!(config.plans.iter().all(|p| p.plan.api_ops_rate_limit > 0));
        }
        Err(error) => assert!(!error.mistakes.is_empty() && !error.to_string().is_empty()),
    }
});
