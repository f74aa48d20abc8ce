//! The vocabulary: keys, plans, identifiers, faults, usage records and meter readings. Plain data that every module may use.
//!
//! Must not know: rules, requests, any store or server.

pub mod amounts;
pub mod calendar;
pub mod credential;
pub mod digest;
pub mod fault;
pub mod grant;
pub mod id;
pub mod key;
pub mod outage;
pub mod scope;
pub mod server;
pub mod tokens;
pub mod usage;
