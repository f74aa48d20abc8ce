//! The trace context of a request, for backends and for the collector.
//!
//! Must not know: how spans are exported. Without export, or if this request is not sampled, nothing is recorded.

use crate::keyring::Entry;
use crate::model::usage::Outcome;
use crate::policy::http::fields::HeaderFields;
use crate::policy::http::trace::{Sampling, TraceContext};
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::TRACESTATE;
use crate::proxy::upstream::{Server, Upstream};
use crate::telemetry::{Recording, SpanEnd, SpanQueue, SpanRequest};
use http::Version;
use http::header::{HOST, USER_AGENT};
use std::sync::Arc;

/// Sampling, and the target of recordings.
pub struct Tracing {
    /// The sampling.
    pub sampling: Sampling,
    /// The queue of the exporter; none: no export, and only backends record traces, according to `traceparent`.
    pub queue: Option<Arc<SpanQueue>>,
}

impl Tracing {
    /// Starts the recording of a request whose head has arrived, if it is sampled.
    pub(in crate::proxy) fn begin(&self, message: &RequestMessage<'_>, ctx: &mut Ctx) {
        let Some(queue) = &self.queue else { return };
        let fields = message.fields;
        let parent = TraceContext::of(fields);
        if !self.sampling.records(parent, ctx.id) {
            return;
        }
        ctx.recording = Some(Recording::begin(
            queue,
            &SpanRequest {
                id: ctx.id,
                request_id: ctx.request_id.to_str().unwrap_or(""),
                parent,
                tracestate: parent.and_then(|_| fields.text(&TRACESTATE)).unwrap_or(""),
                arrived: ctx.arrived,
                method: message.method.as_str(),
                path: message.path,
                host: message.authority.or_else(|| fields.text(&HOST)).unwrap_or(""),
                secure: ctx.secure,
                version: if message.version == Version::HTTP_2 { "2" } else { "1.1" },
                client: ctx.address,
                user_agent: fields.text(&USER_AGENT).unwrap_or(""),
            },
        ));
    }

    /// The trace context for the backend; none: the client's.
    pub(in crate::proxy) fn forwarded_context(
        &self,
        fields: HeaderFields<'_>,
        ctx: &Ctx,
    ) -> Option<TraceContext> {
        if let Some(recording) = &ctx.recording {
            return recording.context();
        }
        let parent = TraceContext::of(fields);
        let sampled = self.queue.is_none() && self.sampling.records(parent, ctx.id);
        match parent {
            // Nothing between the client and the backend is recorded: one is the other's parent.
            Some(parent) if parent.sampled == sampled || self.sampling.follow_parent => None,
            Some(parent) => Some(TraceContext { sampled, ..parent }),
            None => Some(TraceContext::begun_by(ctx.id, sampled)),
        }
    }
}

/// The trace id of a request, for the log.
pub(in crate::proxy) fn trace_of(fields: HeaderFields<'_>, ctx: &Ctx) -> TraceContext {
    let recorded = ctx.recording.as_ref().and_then(Recording::context);
    let given = || TraceContext::of(fields);
    recorded.or_else(given).unwrap_or_else(|| TraceContext::begun_by(ctx.id, false))
}

impl Ctx {
    /// It presented this key.
    pub(in crate::proxy) fn note_key(&mut self, entry: &Entry) {
        if let Some(recording) = &mut self.recording {
            recording.presents(entry.key.id, &entry.key.workspace_id);
        }
    }

    /// It is about to be sent to `server`.
    pub(in crate::proxy) fn note_attempt(&mut self, upstream: &Upstream, server: &Server) {
        if let Some(recording) = &mut self.recording {
            recording.attempts(&upstream.settings.name, &server.host, server.address);
        }
    }

    /// It has ended.
    pub(in crate::proxy) fn note_end(&mut self, outcome: Outcome, status: u16) {
        if let Some(recording) = self.recording.take() {
            let fault = self.fault.map(crate::model::fault::Fault::name);
            recording.ends(SpanEnd { outcome: outcome.as_str(), status, fault }, self.route.as_ref());
        }
    }
}
