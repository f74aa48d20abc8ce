//! Keygate's promises about backends: which server gets a request, which does not, and what happens when none is left.
//!
//! Tested from outside: the real binary and origins that record what they receive.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and tests live in real time"
)]

mod attempts;
mod balance;
mod cors;
mod differential;
mod forward;
mod group;
mod health;
mod moved;
mod protocols;
mod reload;
mod retry;
mod speaker;
mod streams;
#[expect(dead_code, unused_imports, reason = "what other crates of tests use of it")]
#[path = "../gateway/support/mod.rs"]
mod support;
mod timeouts;
mod traces;
mod tunnels;
