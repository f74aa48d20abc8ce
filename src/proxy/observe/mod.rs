//! The access log, traces, and the metrics of requests.

pub mod access;
pub mod series;
pub(super) mod traces;
