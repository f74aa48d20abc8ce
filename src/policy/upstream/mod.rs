//! Servers of an upstream: which one is chosen, which are healthy, whether a request is sent again.

pub mod balance;
pub mod health;
pub mod retry;
