//! Keygate: an API-key gateway.
pub mod clock;
pub mod config;
pub mod keyring;
pub mod metrics;
pub mod policy;
pub mod store;
