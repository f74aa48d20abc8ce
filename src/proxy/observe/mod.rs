//! The access log, traces, and the metrics of requests.

pub mod access;
mod counts;
pub(super) mod traces;
