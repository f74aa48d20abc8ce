//! A request's record while the request lives.

use super::{Place, Recorder};
use crate::clock::{Clock, Now};
use crate::policy::fault::Fault;
use crate::policy::id::{EndUserId, KeyId, RequestId, WorkspaceId};
use crate::store::{Outcome, UsageRecord};
use std::net::IpAddr;
use std::sync::Arc;

/// Longest client name that is kept, in bytes.
const USER_AGENT_MAX: usize = 256;
/// Longest path that is kept, in bytes.
const ENDPOINT_MAX: usize = 2_048;

/// What is known when the key has been found.
#[derive(Debug)]
pub struct Start<'r> {
    /// Identity of the record.
    pub id: RequestId,
    /// What the client and the logs know the request by.
    pub request_id: &'r str,
    /// Whose secret was presented.
    pub api_key_id: KeyId,
    /// The tenant of that key.
    pub workspace_id: WorkspaceId,
    /// When the request had arrived.
    pub arrived: Now,
    /// HTTP method.
    pub method: &'r str,
    /// Canonical path.
    pub endpoint: &'r str,
    /// The route's name.
    pub route: &'r str,
    /// The client's address.
    pub ip_address: IpAddr,
    /// The client's name for itself.
    pub user_agent: &'r [u8],
    /// This node.
    pub node: &'r str,
}

/// A record that will be in the ledger however the request ends: dropping it records what is known, as interrupted.
pub struct Pending {
    record: Option<(UsageRecord, Place)>,
    arrived: Now,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
}

impl Pending {
    /// Begins the record of a request.
    pub fn begin(start: Start<'_>, place: Place, recorder: Recorder, clock: Arc<dyn Clock>) -> Self {
        let user_agent = String::from_utf8_lossy(start.user_agent);
        let record = UsageRecord {
            id: start.id,
            request_id: start.request_id.into(),
            api_key_id: start.api_key_id,
            workspace_id: start.workspace_id,
            at: start.arrived.wall,
            method: start.method.into(),
            endpoint: cut(start.endpoint, ENDPOINT_MAX).into(),
            route: start.route.into(),
            status_code: 0,
            outcome: Outcome::Interrupted,
            denial: None,
            charged: false,
            degraded: false,
            response_time_us: 0,
            ttfb_us: None,
            bytes_in: 0,
            bytes_out: 0,
            tokens_used: 0,
            ip_address: Some(start.ip_address.to_canonical()),
            user_agent: cut(&user_agent, USER_AGENT_MAX).into(),
            end_user_id: None,
            upstream: Box::default(),
            node: start.node.into(),
        };
        Self { record: Some((record, place)), arrived: start.arrived, recorder, clock }
    }

    /// The request was charged: it counts against its key's limits.
    pub fn charged(&mut self) {
        self.set(|r| r.charged = true);
    }

    /// The charge was given back.
    pub fn given_back(&mut self) {
        self.set(|r| r.charged = false);
    }

    /// Its limits were decided without the shared counters.
    pub fn degraded(&mut self) {
        self.set(|r| r.degraded = true);
    }

    /// Whom the request is for.
    pub fn end_user(&mut self, id: EndUserId) {
        self.set(|r| r.end_user_id = Some(id));
    }

    /// The backend server that is asked.
    pub fn upstream(&mut self, server: &str) {
        self.set(|r| r.upstream = server.into());
    }

    /// The first byte of the answer is on its way.
    pub fn first_byte(&mut self, status: u16) {
        let elapsed = self.elapsed_us();
        self.set(|r| {
            r.status_code = status;
            r.ttfb_us.get_or_insert(elapsed);
        });
    }

    /// Body bytes so far.
    pub fn bytes(&mut self, bytes_in: u64, bytes_out: u64) {
        self.set(|r| (r.bytes_in, r.bytes_out) = (bytes_in, bytes_out));
    }

    /// Ends the record: the request was refused.
    pub fn denied(mut self, fault: Fault) {
        self.set(|r| r.denial = Some(fault));
        self.finish(Outcome::Denied, fault.status());
    }

    /// Ends the record.
    pub fn complete(mut self, outcome: Outcome, status: u16) {
        self.finish(outcome, status);
    }

    fn finish(&mut self, outcome: Outcome, status: u16) {
        let elapsed = self.elapsed_us();
        if let Some((mut record, place)) = self.record.take() {
            record.outcome = outcome;
            record.status_code = status;
            record.response_time_us = elapsed;
            self.recorder.record(record, place);
        }
    }

    fn set(&mut self, change: impl FnOnce(&mut UsageRecord)) {
        if let Some((record, _)) = &mut self.record {
            change(record);
        }
    }

    fn elapsed_us(&self) -> u64 {
        self.clock.now().steady_ns.saturating_sub(self.arrived.steady_ns) / 1_000
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let status = self.record.as_ref().map_or(0, |(r, _)| r.status_code);
        self.finish(Outcome::Interrupted, status);
    }
}

/// The longest start of `text` of at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max.min(text.len()))]
}
