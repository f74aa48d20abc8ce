//! The record of a request while the request is running.

use super::journal::codec::{Admit, Complete, FrameKind, Reading, encode_whole, interrupted};
use super::{JournalFull, Recorder, WhenFull};
use crate::clock::{Clock, Now};
use crate::model::amounts::Amounts;
use crate::model::fault::Fault;
use crate::model::id::{EndUserId, KeyId, RequestId, WorkspaceId};
use crate::model::tokens::MeterReading;
use crate::model::usage::Outcome;
use std::net::IpAddr;
use std::sync::Arc;

/// What is known when a request has been decided.
#[derive(Clone, Copy, Debug)]
pub struct RecordStart<'r> {
    /// Id of the record.
    pub id: RequestId,
    /// The request id that the client and the logs have.
    pub request_id: &'r str,
    /// The key that was presented.
    pub api_key_id: KeyId,
    /// The workspace of the key.
    pub workspace_id: &'r WorkspaceId,
    /// When the request arrived.
    pub arrived: Now,
    /// HTTP method.
    pub method: &'r str,
    /// Canonical path.
    pub endpoint: &'r str,
    /// The route's name.
    pub route: &'r str,
    /// The client's address.
    pub ip_address: IpAddr,
    /// The client's `User-Agent`.
    pub user_agent: &'r [u8],
    /// This node.
    pub node: &'r str,
    /// The end user.
    pub end_user_id: Option<EndUserId>,
    /// Whether it is charged to the key's limits.
    pub charged: bool,
    /// Whether its limits were decided without the shared counters.
    pub degraded: bool,
}

/// A record that reaches the ledger however the request ends: dropping it records what is known, as interrupted.
pub struct PendingRecord {
    id: RequestId,
    arrived: Now,
    /// The start, if the journal had no room for it.
    unwritten: Option<Box<[u8]>>,
    ended: bool,
    facts: RecordOutcome,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
}

/// What becomes known while the request is served.
struct RecordOutcome {
    charged: bool,
    status_code: u16,
    ttfb_us: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    upstream: Option<Arc<str>>,
    metered: Option<Box<MeterReading>>,
}

impl PendingRecord {
    /// Starts the record of a refused request. A full journal does not stop it.
    pub fn refused(start: RecordStart<'_>, recorder: &Recorder, clock: &Arc<dyn Clock>) -> Self {
        Self::new(&start, recorder, clock)
    }

    /// Starts the record of a request that is about to be forwarded. Fails, without side effects, if the request cannot be
    /// recorded and the config says to refuse it then.
    pub fn admitted(
        start: RecordStart<'_>,
        recorder: &Recorder,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, JournalFull> {
        let mut pending = Self::new(&start, recorder, clock);
        if pending.unwritten.is_some() && recorder.when_full == WhenFull::Refuse {
            pending.ended = true;
            return Err(JournalFull);
        }
        Ok(pending)
    }

    fn new(start: &RecordStart<'_>, recorder: &Recorder, clock: &Arc<dyn Clock>) -> Self {
        let user_agent = String::from_utf8_lossy(start.user_agent);
        let admit = Admit {
            id: start.id,
            api_key_id: start.api_key_id,
            workspace_id: start.workspace_id.as_str(),
            at: start.arrived.wall,
            request_id: start.request_id,
            method: start.method,
            endpoint: start.endpoint,
            route: start.route,
            ip_address: Some(start.ip_address.to_canonical()),
            user_agent: &user_agent,
            end_user_id: start.end_user_id,
            charged: start.charged,
            degraded: start.degraded,
            node: start.node,
        };
        let written = recorder.journal.append(FrameKind::Admit, |out| admit.encode(out));
        let unwritten = written.is_err().then(|| {
            let mut payload = Vec::new();
            admit.encode(&mut payload);
            payload.into()
        });
        let facts = RecordOutcome {
            charged: start.charged,
            status_code: 0,
            ttfb_us: None,
            bytes_in: 0,
            bytes_out: 0,
            upstream: None,
            metered: None,
        };
        Self {
            id: start.id,
            arrived: start.arrived,
            unwritten,
            ended: false,
            facts,
            recorder: recorder.clone(),
            clock: Arc::clone(clock),
        }
    }

    /// The charge was given back.
    pub const fn given_back(&mut self) {
        self.facts.charged = false;
    }

    /// Sets the backend server.
    pub fn upstream(&mut self, server: &Arc<str>) {
        self.facts.upstream = Some(Arc::clone(server));
    }

    /// The backend server that was tried last.
    pub const fn server(&self) -> Option<&Arc<str>> {
        self.facts.upstream.as_ref()
    }

    /// The first byte of the response is being sent.
    pub fn first_byte(&mut self, status: u16) {
        self.facts.status_code = status;
        if self.facts.ttfb_us.is_none() {
            self.facts.ttfb_us = Some(self.elapsed_us());
        }
    }

    /// Body bytes so far.
    pub const fn bytes(&mut self, bytes_in: u64, bytes_out: u64) {
        (self.facts.bytes_in, self.facts.bytes_out) = (bytes_in, bytes_out);
    }

    /// What the meter of the route with this name has found out at the end, with its cost by the prices in force now. Returns
    /// what that is of each measure.
    pub fn metered(&mut self, route: &str, mut reading: MeterReading) -> Amounts {
        self.set_cost(route, &mut reading);
        let used = Amounts::of(&reading);
        self.facts.metered = Some(Box::new(reading));
        used
    }

    /// Ends the record: the request was refused.
    pub fn denied(mut self, fault: Fault) {
        self.finish(Outcome::Denied, fault.status(), Some(fault));
    }

    /// Ends the record.
    pub fn complete(mut self, outcome: Outcome, status: u16) {
        self.finish(outcome, status, None);
    }

    fn finish(&mut self, outcome: Outcome, status_code: u16, denial: Option<Fault>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let facts = &self.facts;
        let complete = Complete {
            outcome,
            denial,
            status_code,
            response_time_us: self.elapsed_us(),
            ttfb_us: facts.ttfb_us,
            bytes_in: facts.bytes_in,
            bytes_out: facts.bytes_out,
            tokens_used: facts.metered.as_ref().map_or(0, |reading| reading.tokens.total),
            upstream: facts.upstream.as_deref().unwrap_or_default(),
            reading: facts.metered.as_deref().map(Reading::from),
            ..interrupted(self.id, facts.charged)
        };
        let Recorder { journal, metrics, .. } = &self.recorder;
        metrics.usage_accepted.inc();
        journal.on_record_pending();
        match &self.unwritten {
            None => {
                if journal.append(FrameKind::Complete, |out| complete.encode(out)).is_err() {
                    // Its start is written; the writer pairs it with this end.
                    let mut payload = Vec::new();
                    complete.encode(&mut payload);
                    journal.keep_late(payload.into());
                }
            }
            Some(admit) => {
                if journal.append(FrameKind::Whole, |out| encode_whole(out, admit, &complete)).is_err() {
                    journal.on_records_settled(1);
                    metrics.usage_shed.inc();
                }
            }
        }
    }

    /// Computes the cost by the prices in force now, once and for ever, and counts it and the tokens.
    fn set_cost(&self, route: &str, reading: &mut MeterReading) {
        let (prices, metrics) = (self.recorder.prices.table(), &self.recorder.metrics);
        let model = prices.label(&reading.model_served, &reading.model_requested);
        reading.cost_nano = prices.cost(reading);
        match reading.cost_nano {
            Some(cost) => metrics.cost_nano.with_label_values(&[route, model]).inc_by(cost),
            None => metrics.unpriced.with_label_values(&[route]).inc(),
        }
        for (kind, count) in reading.tokens.kinds().into_iter().filter(|(_, count)| *count > 0) {
            metrics.tokens.with_label_values(&[route, model, kind]).inc_by(count);
        }
    }

    fn elapsed_us(&self) -> u64 {
        self.clock.steady_ns().saturating_sub(self.arrived.steady_ns) / 1_000
    }
}

impl Drop for PendingRecord {
    fn drop(&mut self) {
        self.finish(Outcome::Interrupted, self.facts.status_code, None);
    }
}
