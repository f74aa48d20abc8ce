//! Keygate: an API-key gateway.
pub mod app;
pub mod cli;
pub mod clock;
pub mod counter;
pub mod enduser;
pub mod envelope;
pub mod gate;
pub mod config;
pub mod keyring;
pub mod metrics;
pub mod policy;
pub mod proxy;
pub mod store;
pub mod usage;
