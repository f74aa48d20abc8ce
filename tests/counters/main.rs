//! Counters shared over Redis: several nodes in one process, each with its own connections, and a Redis that fails in
//! every way it can. Real time is the subject of most of these tests: limits are per second, and waiting is bounded.

mod chaos;
mod exact;
mod failing;
mod node;
mod redis;
mod start;
