//! The access log: a line for one in so many requests, and for every one that failed in Keygate or at the backend.
//!
//! Must not know: how requests are served. A line contains the path without its query, which may contain secrets.

use crate::model::usage::Outcome;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::fmt::Simple;

/// The log.
#[derive(Debug)]
pub struct AccessLog {
    /// One in so many requests is logged; 0: off.
    sample: u64,
    /// Requests so far, logged or not.
    seen: AtomicU64,
}

/// The content of a line.
pub(in crate::proxy) struct AccessLogLine<'r> {
    pub(in crate::proxy) request_id: &'r str,
    pub(in crate::proxy) trace_id: Simple,
    pub(in crate::proxy) method: &'r str,
    pub(in crate::proxy) path: &'r str,
    pub(in crate::proxy) route: &'r str,
    pub(in crate::proxy) status: u16,
    pub(in crate::proxy) outcome: Outcome,
    pub(in crate::proxy) address: IpAddr,
    /// Why the last failed attempt at a backend failed; empty: none did.
    pub(in crate::proxy) backend_failure: &'r str,
    pub(in crate::proxy) elapsed: Duration,
}

impl AccessLog {
    /// Logs one in `sample` requests, if enabled.
    pub fn new(is_kept: bool, sample: u64) -> Self {
        Self { sample: if is_kept { sample } else { 0 }, seen: AtomicU64::new(0) }
    }

    /// Whether a request that was answered with `status` is logged. Call once per request.
    pub(in crate::proxy) fn wants(&self, status: u16) -> bool {
        let is_failure = status >= 500;
        self.sample != 0
            && (is_failure || self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.sample))
    }
}

impl AccessLogLine<'_> {
    pub(in crate::proxy) fn write(&self) {
        tracing::info!(
            target: "keygate::access",
            request_id = self.request_id,
            trace_id = %self.trace_id,
            method = self.method,
            path = self.path,
            route = self.route,
            status = self.status,
            outcome = self.outcome.as_str(),
            address = %self.address,
            backend_failure = self.backend_failure,
            duration_us = u64::try_from(self.elapsed.as_micros()).unwrap_or(u64::MAX),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_one_of_so_many_and_every_failure() {
        let log = AccessLog::new(true, 3);
        let wanted: Vec<bool> = [200, 200, 500, 404, 503, 200].map(|status| log.wants(status)).into();
        assert_eq!(wanted, [true, false, true, false, true, true]);
        let none = AccessLog::new(false, 1);
        assert!(!none.wants(200) && !none.wants(500));
    }
}
