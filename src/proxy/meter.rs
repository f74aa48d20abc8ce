//! The meter of one request: which model it names, what the backend's answer used, and the record of both.
//!
//! Must not know: how messages arrive. It is shown a copy of each part, in order; parts go on unchanged.
//!
//! *Invariant:* an answer is metered once, however many attempts it took.

use super::holds::{HeldUnits, UsualOutput};
use crate::counter::Hold;
use crate::metrics::Metrics;
use crate::model::id::KeyId;
use crate::model::tokens::{ReadingSource, TokenCounts};
use crate::policy::http::field_lines::EditFields;
use crate::policy::meter::{
    Meter, MeterEnd, Metered, MeteredRequest, OnDisconnect, RequestReader, Unreadable, UsageEventFilter,
    held_tokens, model_in_path,
};
use crate::policy::routing::route::Route;
use crate::usage::PendingRecord;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use std::sync::Arc;

/// The meter of one request on a metered route.
pub struct RequestMeter {
    route: Arc<Route>,
    metrics: Arc<Metrics>,
    /// Reads the request's body.
    pub request: RequestReader,
    /// The model that the path names.
    model_in_path: Option<Box<str>>,
    answer: Option<Meter>,
    /// What the request holds of its key's and workspace's limits.
    hold: Option<HeldUnits>,
    /// The tokens of that, if a limit counts them.
    held: Option<TokenCounts>,
    /// What answers usually use.
    usual: Arc<UsualOutput>,
    /// Whether the client gets this answer.
    is_answered: bool,
    /// Whether Keygate has made the request ask for its usage, which the client did not.
    pub asks_usage: bool,
    /// Hides the usage from the client then.
    filter: Option<UsageEventFilter>,
}

/// How a metered request ended.
#[derive(Clone, Copy, Debug)]
pub struct RequestEnd {
    /// Whether the whole answer has come.
    pub is_whole: bool,
    /// Whether the client left while the backend had the request.
    pub is_abandoned: bool,
    /// The size of the request's body.
    pub request_bytes: u64,
}

// === impl RequestMeter ===

impl RequestMeter {
    /// A meter for a request on this route; none if the route is not metered.
    pub fn of(
        route: &Arc<Route>,
        path: &str,
        metrics: &Arc<Metrics>,
        usual: &Arc<UsualOutput>,
    ) -> Option<Box<Self>> {
        route.meter.as_ref()?;
        Some(Box::new(Self {
            route: Arc::clone(route),
            metrics: Arc::clone(metrics),
            request: RequestReader::default(),
            model_in_path: model_in_path(path),
            answer: None,
            hold: None,
            held: None,
            usual: Arc::clone(usual),
            is_answered: false,
            asks_usage: false,
            filter: None,
        }))
    }

    /// What the request of this key holds, to be settled with its use. `is_limited`: a limit counts that use.
    pub fn set_hold(&mut self, key: KeyId, hold: Option<Hold>, is_limited: bool) {
        self.held = hold.as_ref().filter(|_| is_limited).map(|hold| held_tokens(hold.amounts()));
        self.hold = hold.map(|hold| HeldUnits::new(key, hold, Arc::clone(&self.metrics)));
    }

    /// Whether its answer is to be read to its end even if the client leaves.
    pub fn drains(&self) -> bool {
        self.route.meter.as_ref().is_some_and(|rule| rule.on_disconnect == OnDisconnect::Drain)
    }

    /// The head of an answer.
    pub fn answer_head(
        &mut self,
        method: &Method,
        request_id: &HeaderValue,
        status: StatusCode,
        fields: &impl EditFields,
    ) {
        if let Some(rule) = &self.route.meter {
            let request = MeteredRequest { method, request_id: request_id.as_bytes() };
            self.answer = Some(Meter::new(rule, &request, status, fields));
            self.filter = self.asks_usage.then(|| UsageEventFilter::of(status, fields)).flatten();
        }
    }

    /// Whether a part of the answer is hidden from the client, so that its length is unknown.
    pub const fn hides_usage(&self) -> bool {
        self.filter.is_some()
    }

    /// What hides it, for whoever passes the answer on.
    pub const fn take_filter(&mut self) -> Option<UsageEventFilter> {
        self.filter.take()
    }

    /// What the client gets of a part of the answer's body; none: all of it.
    pub fn shown(&mut self, part: &[u8], is_last: bool) -> Option<Bytes> {
        let filter = self.filter.as_mut()?;
        let mut shown = Vec::with_capacity(part.len());
        filter.push(part, &mut shown);
        if is_last {
            filter.finish(&mut shown);
        }
        Some(shown.into())
    }

    /// The client gets the answer.
    pub const fn answer_begins(&mut self) {
        self.is_answered = true;
    }

    /// A part of the answer's body.
    pub fn answer_part(&mut self, part: &[u8]) {
        if let Some(answer) = &mut self.answer {
            answer.push(part);
        }
    }

    /// The request has ended: what was found out goes into its record and the metrics.
    pub fn settle(mut self, end: RequestEnd, record: &mut PendingRecord) {
        let Some(rule) = &self.route.meter else { return };
        let answer = match self.answer.take().filter(|_| self.is_answered) {
            Some(answer) => answer,
            None if end.is_abandoned => Meter::unanswered(),
            // No backend has answered, so nothing was used.
            None => return,
        };
        let model = self.request.model().or(self.model_in_path.as_deref()).unwrap_or_default();
        let metered = answer.finish(&MeterEnd {
            missing: rule.missing(end.is_abandoned),
            is_whole: end.is_whole,
            request_bytes: end.request_bytes,
            model_requested: &model.into(),
            held: self.held,
        });
        self.count(&metered);
        let key = self.hold.as_ref().map(HeldUnits::key);
        if let (Some(key), Some(reading)) = (key, &metered.reading)
            && reading.source == ReadingSource::Reported
        {
            self.usual.add(key, &reading.model_requested, reading.tokens.output);
        }
        let used = metered.reading.map(|reading| record.metered(&self.route.name, reading));
        if let Some(hold) = self.hold.take() {
            hold.settle(&used.unwrap_or_default());
        }
    }

    fn count(&self, metered: &Metered) {
        let unreadable =
            |reason: Unreadable| self.metrics.meter_unreadable.with_label_values(&[reason.as_str()]);
        if let Some(reason) = metered.unreadable {
            unreadable(reason).inc();
        }
        if metered.malformed_events > 0 {
            unreadable(Unreadable::Event).inc_by(metered.malformed_events);
        }
    }
}
