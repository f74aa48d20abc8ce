//! The edge that faces the internet, tested with raw bytes: what the client received and what the origin parsed.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and tests live in real time"
)]

mod abuse;
mod acme;
mod admin;
mod ahead;
mod asking;
mod budgets;
mod buffered;
mod claims;
mod clamped;
mod clients;
mod closing;
mod coded;
mod credentials;
mod decide;
mod drained;
mod end_users;
mod error_forms;
mod ext_authz;
mod frames;
mod hops;
mod http2;
mod interim;
mod leaving;
mod limits;
mod listener;
mod metering;
mod places;
mod probes;
mod public;
mod refusals;
mod slow;
mod source;
mod speaks2;
mod stored_credentials;
mod streams;
#[path = "../gateway/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the gateway's own tests use more of it")]
mod support;
mod targets;
mod told;
mod unframed;
mod unpriced;
mod uploads;
mod verdicts;
mod verify;
