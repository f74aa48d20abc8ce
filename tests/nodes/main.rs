//! Several nodes on one PostgreSQL database: each node learns the changes of the others, none needs the database to serve,
//! and whatever happens to it, every write is complete or absent.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and tests live in real time"
)]

mod budgets;
#[path = "../counters/chaos.rs"]
#[expect(dead_code, reason = "the tests of counters use more of it")]
mod chaos;
mod cluster;
mod disk;
mod end_users;
mod feed;
mod late_start;
mod live_nodes;
mod ordinary;
#[expect(dead_code, reason = "the store's own tests use more of it")]
#[path = "../store_behaviours/private_postgres.rs"]
mod private_postgres;
#[path = "../counters/redis.rs"]
#[expect(dead_code, reason = "the counters' own tests use more of it")]
mod redis;
mod rows;
mod schema;
#[path = "../gateway/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the gateway's own tests use more of it")]
mod support;
mod trouble;
