//! Keygate's promises tested from outside: the real binary, real sockets, an origin that records what it receives.
//!
//! One module per promise; `support` has the gateway, the origin and the raw client that they share.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and tests live in real time"
)]

mod access_log;
mod admin_flow;
mod admin_socket;
mod admin_tls;
mod apply;
mod authorization;
mod commands;
mod connections;
mod crash;
mod drain;
mod end_users;
mod files;
mod from_memorybear;
mod headers;
mod identity;
mod installation;
mod late_start;
mod lifecycle;
mod limits;
mod order;
mod power_cut;
mod prices;
#[path = "../counters/redis.rs"]
#[expect(dead_code, reason = "the counters' own tests use more of it")]
mod redis;
mod replies;
mod routing;
mod secrets;
mod starting;
mod streaming;
#[expect(dead_code, reason = "the edge's own tests use more of it")]
mod support;
#[path = "../journal/tiny_disk.rs"]
mod tiny_disk;
mod upgrade;
mod usage;
