//! The recording of a request: one span for the client's side, and one for each attempt at a backend.

use super::SpanQueue;
use crate::clock::Now;
use crate::model::id::{KeyId, RequestId, WorkspaceId};
use crate::policy::http::trace::{TraceContext, span_id_of};
use crate::policy::routing::route::Route;
use smallvec::SmallVec;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Most bytes of a client's text.
const TEXT_MAX: usize = 1_024;

/// A sampled request. Dropping it puts it into the queue, as interrupted if its end was not recorded.
pub struct Recording {
    /// None: it is in the queue.
    trace: Option<Box<RequestTrace>>,
    queue: Arc<SpanQueue>,
}

/// The start of a request.
#[derive(Clone, Copy)]
pub struct SpanRequest<'r> {
    /// Id of the request.
    pub id: RequestId,
    /// The request id that the client and the logs have.
    pub request_id: &'r str,
    /// The trace context from the client.
    pub parent: Option<TraceContext>,
    /// The `tracestate` from the client.
    pub tracestate: &'r str,
    /// When its head arrived.
    pub arrived: Now,
    /// HTTP method.
    pub method: &'r str,
    /// Path, without the query.
    pub path: &'r str,
    /// The client's `Host`.
    pub host: &'r str,
    /// Whether the client's connection is encrypted.
    pub secure: bool,
    /// The HTTP version.
    pub version: &'static str,
    /// The client's address.
    pub client: IpAddr,
    /// The client's `User-Agent`.
    pub user_agent: &'r str,
}

/// The end of a request.
#[derive(Clone, Copy)]
pub struct SpanEnd {
    /// The outcome, as in the ledger.
    pub outcome: &'static str,
    /// The status of the response.
    pub status: u16,
    /// The name of the fault, if Keygate answered.
    pub fault: Option<&'static str>,
}

/// A request and its attempts.
pub(super) struct RequestTrace {
    pub(super) id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) parent: Option<[u8; 8]>,
    pub(super) tracestate: Box<str>,
    pub(super) arrived: Now,
    pub(super) ended_ns: u64,
    pub(super) request_id: Box<str>,
    pub(super) method: Box<str>,
    pub(super) path: Box<str>,
    pub(super) host: Box<str>,
    pub(super) secure: bool,
    pub(super) version: &'static str,
    pub(super) client: IpAddr,
    pub(super) user_agent: Box<str>,
    pub(super) route: Option<Arc<Route>>,
    pub(super) key: Option<(KeyId, WorkspaceId)>,
    pub(super) ended: SpanEnd,
    pub(super) attempts: SmallVec<[AttemptSpan; 1]>,
}

/// One attempt at a server.
pub(super) struct AttemptSpan {
    pub(super) begun_ns: u64,
    pub(super) ended_ns: Option<u64>,
    pub(super) upstream: Arc<str>,
    pub(super) host: Box<str>,
    pub(super) address: SocketAddr,
    pub(super) status: Option<u16>,
    pub(super) error: Option<&'static str>,
}

// === impl Recording ===

impl Recording {
    /// Starts the recording.
    pub fn begin(queue: &Arc<SpanQueue>, asked: &SpanRequest<'_>) -> Self {
        let own = TraceContext::begun_by(asked.id, true);
        let trace = RequestTrace {
            id: asked.parent.map_or(own.trace_id, |parent| parent.trace_id),
            span_id: span_id_of(asked.id),
            parent: asked.parent.map(|parent| parent.span_id),
            tracestate: short(asked.tracestate),
            arrived: asked.arrived,
            ended_ns: 0,
            request_id: asked.request_id.into(),
            method: short(asked.method),
            path: short(asked.path),
            host: short(asked.host),
            secure: asked.secure,
            version: asked.version,
            client: asked.client,
            user_agent: short(asked.user_agent),
            route: None,
            key: None,
            ended: SpanEnd { outcome: "interrupted", status: 0, fault: None },
            attempts: SmallVec::new(),
        };
        Self { trace: Some(Box::new(trace)), queue: Arc::clone(queue) }
    }

    /// The trace context for the backend: a child of the current attempt.
    pub fn context(&self) -> Option<TraceContext> {
        let trace = self.trace.as_ref()?;
        let span_id = trace.attempts.len().checked_sub(1).map_or(trace.span_id, |n| trace.attempt_id(n));
        Some(TraceContext { trace_id: trace.id, span_id, sampled: true })
    }

    /// It presented this key.
    pub fn presents(&mut self, key: KeyId, workspace: &WorkspaceId) {
        if let Some(trace) = &mut self.trace {
            trace.key = Some((key, workspace.clone()));
        }
    }

    /// Starts an attempt at a server of `upstream`. A previous attempt that is still open ends now.
    pub fn attempts(&mut self, upstream: &Arc<str>, host: &str, address: SocketAddr) {
        self.failed("connection_closed");
        let begun_ns = self.queue.clock.now().steady_ns;
        if let Some(trace) = &mut self.trace {
            trace.attempts.push(AttemptSpan {
                begun_ns,
                ended_ns: None,
                upstream: Arc::clone(upstream),
                host: host.into(),
                address,
                status: None,
                error: None,
            });
        }
    }

    /// The server has started to respond.
    pub fn answered(&mut self, status: u16) {
        if let Some(attempt) = self.attempt() {
            attempt.status = Some(status);
        }
    }

    /// The attempt failed.
    pub fn failed(&mut self, error: &'static str) {
        let now_ns = self.queue.clock.now().steady_ns;
        if let Some(attempt) = self.attempt().filter(|attempt| attempt.ended_ns.is_none()) {
            attempt.ended_ns = Some(now_ns);
            attempt.error = Some(error);
        }
    }

    /// Ends the recording.
    pub fn ends(mut self, ended: SpanEnd, route: Option<&Arc<Route>>) {
        if let Some(trace) = &mut self.trace {
            trace.ended = ended;
            trace.route = route.map(Arc::clone);
        }
    }

    fn attempt(&mut self) -> Option<&mut AttemptSpan> {
        self.trace.as_mut()?.attempts.last_mut()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(mut trace) = self.trace.take() {
            trace.ended_ns = self.queue.clock.now().steady_ns;
            self.queue.put(trace);
        }
    }
}

// === impl RequestTrace ===

impl RequestTrace {
    /// The id of the `n`-th attempt: the request's own, with the number of the attempt in it.
    pub(super) fn attempt_id(&self, n: usize) -> [u8; 8] {
        let mut id = self.span_id;
        // Below the two bits that keep it from being zero; there are at most ten attempts.
        id[0] ^= u8::try_from(n + 1).unwrap_or(u8::MAX) & 0x3f;
        id
    }

    /// The number of its spans.
    pub(super) fn spans(&self) -> u64 {
        1 + self.attempts.len() as u64
    }
}

/// The start of a long text.
fn short(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(TEXT_MAX)].into()
}
