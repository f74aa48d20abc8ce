//! The access log: a line for one in so many requests, and for every one that failed in Keygate or at the backend.
//!
//! Must not know: how requests are served. A line contains the path without its query, which may contain secrets.

use crate::keyring::Entry;
use crate::model::fault::Fault;
use crate::model::usage::Outcome;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::observe::traces::trace_of;
use crate::proxy::upstream::ServerFailure;
use http::Version;
use http::header::USER_AGENT;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::fmt::Simple;

/// As in usage records.
const USER_AGENT_MAX: usize = 256;

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
    /// Why Keygate refused it or could not complete it.
    pub(in crate::proxy) fault: Option<Fault>,
    pub(in crate::proxy) address: IpAddr,
    /// The key that it presented.
    pub(in crate::proxy) entry: Option<&'r Entry>,
    /// The server that was tried last; empty: none.
    pub(in crate::proxy) server: &'r str,
    /// Body bytes from the client and to the client.
    pub(in crate::proxy) bytes: (u64, u64),
    pub(in crate::proxy) user_agent: &'r [u8],
    /// Of HTTP, if it is known.
    pub(in crate::proxy) version: Option<Version>,
    /// Whether the client uses TLS.
    pub(in crate::proxy) is_secure: bool,
    /// Why the last failed attempt at a backend failed; empty: none did.
    pub(in crate::proxy) backend_failure: &'r str,
    pub(in crate::proxy) elapsed: Duration,
}

/// How a request ended.
pub(in crate::proxy) struct LoggedEnd {
    pub(in crate::proxy) outcome: Outcome,
    pub(in crate::proxy) status: u16,
    pub(in crate::proxy) server: Option<Arc<str>>,
    pub(in crate::proxy) bytes: (u64, u64),
    pub(in crate::proxy) elapsed: Duration,
}

impl AccessLog {
    /// Logs one in `sample` requests, if enabled.
    pub fn new(is_kept: bool, sample: u64) -> Self {
        Self { sample: if is_kept { sample } else { 0 }, seen: AtomicU64::new(0) }
    }

    /// Whether any request is logged.
    pub(in crate::proxy) const fn is_on(&self) -> bool {
        self.sample != 0
    }

    /// Whether a request that was answered with `status` is logged. Call once per request.
    pub(in crate::proxy) fn wants(&self, status: u16) -> bool {
        let is_failure = status >= 500;
        self.sample != 0
            && (is_failure || self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.sample))
    }
}

impl<'r> AccessLogLine<'r> {
    /// The line of a request that has ended.
    pub(in crate::proxy) fn of(message: &RequestMessage<'r>, ctx: &'r Ctx, ended: &'r LoggedEnd) -> Self {
        Self {
            request_id: ctx.request_id.to_str().unwrap_or(""),
            trace_id: trace_of(message.fields, ctx).trace_id_text(),
            method: message.method.as_str(),
            path: message.path,
            route: ctx.route_name(),
            status: ended.status,
            outcome: ended.outcome,
            fault: ctx.fault,
            address: ctx.address,
            entry: ctx.logged_entry.as_deref(),
            server: ended.server.as_deref().unwrap_or_default(),
            bytes: ended.bytes,
            user_agent: message.fields.first(&USER_AGENT).unwrap_or_default(),
            version: Some(message.version),
            is_secure: ctx.secure,
            backend_failure: ctx.attempts.failure().map_or("", ServerFailure::as_str),
            elapsed: ended.elapsed,
        }
    }

    pub(in crate::proxy) fn write(&self) {
        let key = self.entry.map(|entry| entry.key.id.0.as_hyphenated().to_string());
        let user_agent = &self.user_agent[..self.user_agent.len().min(USER_AGENT_MAX)];
        let user_agent = String::from_utf8_lossy(user_agent);
        tracing::info!(
            target: "keygate::access",
            request_id = self.request_id,
            trace_id = %self.trace_id,
            method = self.method,
            path = self.path,
            route = self.route,
            status = self.status,
            outcome = self.outcome.as_str(),
            error = self.fault.map_or("", Fault::name),
            address = %self.address,
            key = key.as_deref().unwrap_or(""),
            workspace = self.entry.map_or("", |entry| entry.key.workspace_id.as_str()),
            server = self.server,
            bytes_in = self.bytes.0,
            bytes_out = self.bytes.1,
            user_agent = &*user_agent,
            protocol = self.version.map_or("", protocol),
            tls = self.is_secure,
            backend_failure = self.backend_failure,
            duration_us = u64::try_from(self.elapsed.as_micros()).unwrap_or(u64::MAX),
        );
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
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
