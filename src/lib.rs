//! Keygate: an API-key gateway.
pub mod admin;
pub mod clock;
pub mod draft;
pub mod keyring;
pub mod metrics;
pub mod policy;
pub mod store;
