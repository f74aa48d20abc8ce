//! Servers of an upstream: load balancing, health, retries.

pub mod balance;
pub mod credential;
pub mod encryption;
pub mod health;
pub mod retry;
