//! Counters shared over Redis: several nodes in one process, each with its own connections, and a Redis with injected
//! faults. Most of these tests run in real time: limits are per second, and waiting is bounded.

#![expect(clippy::expect_used, clippy::panic, reason = "a test that cannot go on must say so")]

#[expect(dead_code, reason = "the tests of several nodes use more of it")]
mod chaos;
mod cluster;
mod exact;
mod failing;
mod forgotten;
mod node;
mod patience;
mod redis;
mod sentinel;
mod share;
#[path = "../gateway/support/spare.rs"]
mod spare;
mod start;
mod tls;
mod tokens;
mod workspace;
