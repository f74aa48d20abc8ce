//! The access log and traces.

pub mod access;
pub(super) mod traces;
