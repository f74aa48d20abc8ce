//! The vocabulary: what keys, plans, identifiers, faults and usage records are. Plain data that every part may name.
//!
//! Must not know: rules, requests, any store or server.

pub mod digest;
pub mod fault;
pub mod id;
pub mod key;
pub mod scope;
pub mod usage;
