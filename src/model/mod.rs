//! The vocabulary: keys, plans, identifiers, faults and usage records. Plain data that every module may use.
//!
//! Must not know: rules, requests, any store or server.

pub mod digest;
pub mod fault;
pub mod id;
pub mod key;
pub mod scope;
pub mod usage;
