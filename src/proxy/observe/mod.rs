//! What is told about requests: the access log and traces.

pub mod access;
pub(super) mod traces;
