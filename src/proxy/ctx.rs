//! The state of one request, from its head to its record.

use super::connection::kept_body::KeptBody;
use super::connection::{CloseReason, Connection};
use super::meter::{RequestEnd, RequestMeter};
use super::snapshot::RoutingSnapshot;
use super::upstream::attempts::UpstreamAttempts;
use crate::clock::Now;
use crate::gate::{Admission, Denied, KeylessPermit, Permit};
use crate::keyring::Entry;
use crate::model::fault::{Fault, Lang};
use crate::model::id::RequestId;
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::policy::meter::RequestFacts;
use crate::policy::routing::route::Route;
use crate::telemetry::Recording;
use crate::usage::PendingRecord;
use bytes::Bytes;
use http::HeaderValue;
use prometheus::IntGauge;
use std::net::IpAddr;
use std::sync::Arc;

/// The state of one request. Dropping it, for any reason, completes its record and decrements the number in flight.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the request")]
pub struct Ctx {
    /// When its head had arrived.
    pub arrived: Now,
    /// The time at which its limits are charged: its arrival, or later if the body with the end user was read first.
    pub charged_at: Now,
    /// Its id.
    pub id: RequestId,
    /// The request id for the client, the backend, logs and usage records.
    pub request_id: HeaderValue,
    /// The language of messages.
    pub lang: Lang,
    /// The client's address.
    pub address: IpAddr,
    /// Whether the client uses TLS.
    pub secure: bool,
    /// The client's connection, or its stream.
    pub connection: Option<Arc<Connection>>,
    /// The routes and upstreams, the same for the whole request.
    pub routing: Arc<RoutingSnapshot>,
    /// The matched route.
    pub route: Option<Arc<Route>>,
    /// The path for the backend, if the route rewrites it.
    pub rewritten: Option<Box<str>>,
    /// The decision, if it was made before Pingora got the request.
    pub decided: Option<Result<(), Box<Denied>>>,
    /// Proof that the key may make this request; used up by the admission.
    pub permit: Option<Permit>,
    /// Whether the head has been evaluated.
    pub begun: bool,
    /// Proof that the request may be forwarded.
    pub admission: Option<Admission>,
    /// The same for a request without a key.
    pub keyless: Option<KeylessPermit>,
    /// The key that it presented, if there is an access log.
    pub logged_entry: Option<Arc<Entry>>,
    /// Its usage record until it is complete.
    pub record: Option<PendingRecord>,
    /// Meters it, if its route is metered.
    pub meter: Option<Box<RequestMeter>>,
    /// A body that was read ahead; it is sent from here.
    pub body: Option<Bytes>,
    /// What it says about its use, if that was looked for.
    pub facts: Option<Box<RequestFacts>>,
    /// The first part of one that was too long to be read ahead. Pingora sends it before what is still to come.
    pub body_start: BodyStart,
    /// Whether a body was read ahead, or its first part.
    pub is_read_ahead: bool,
    /// The part of the body received so far, kept if a backend may report that it has not processed the request.
    pub kept_body: Option<KeptBody>,
    /// Whether the body that was read ahead has been sent to a backend.
    pub is_body_sent: bool,
    /// Body bytes received from the client so far.
    pub body_bytes: u64,
    /// Bytes of the response body still to be received, if known.
    pub answer_left: Option<u64>,
    /// Whether the response has been received completely.
    pub is_over: bool,
    /// Whether the client had left before the response began.
    pub is_unseen: bool,
    /// Bytes of the response that came after it had left.
    pub drained_bytes: u64,
    /// Its attempts at servers of the upstream.
    pub attempts: UpstreamAttempts,
    /// Whether limits were decided without the shared counters.
    pub degraded: bool,
    /// Nanoseconds from arrival to the decision.
    pub own_ns: u64,
    /// The error that Keygate responded with.
    pub fault: Option<Fault>,
    /// Whether a response of Keygate's own states the failure in `grpc-status` instead of the HTTP status.
    pub is_answered_by_grpc: bool,
    /// Whether it is a load balancer's health check, which is neither counted nor logged.
    pub is_health_check: bool,
    /// Whether it is decided for somebody else, who forwards it.
    pub is_decision: bool,
    /// What an application that asks about it may use.
    pub asked_hold: Option<Box<AskedHold>>,
    /// Its trace spans, if it is traced.
    pub recording: Option<Recording>,
    _in_flight: InFlightGauge,
}

/// The first part of a request body.
#[derive(Default)]
pub struct BodyStart {
    /// The bytes.
    pub bytes: Option<Bytes>,
    /// Whether this attempt has sent them.
    pub is_sent: bool,
}

/// What an application that asks by itself may use.
pub struct AskedHold {
    /// The model; empty: none.
    pub model: Box<str>,
    /// Input tokens.
    pub input: u64,
    /// The most output tokens.
    pub max_output: u64,
}

struct InFlightGauge(IntGauge);

impl Ctx {
    /// The state of a request whose head arrived at `arrived`.
    pub fn new(arrived: Now, routing: Arc<RoutingSnapshot>, in_flight: IntGauge) -> Self {
        in_flight.inc();
        let id = RequestId::new(arrived.wall);
        Self {
            arrived,
            charged_at: arrived,
            id,
            request_id: id_value(id),
            lang: Lang::En,
            address: IpAddr::from([0, 0, 0, 0]),
            secure: false,
            connection: None,
            routing,
            route: None,
            rewritten: None,
            decided: None,
            permit: None,
            begun: false,
            admission: None,
            keyless: None,
            logged_entry: None,
            record: None,
            meter: None,
            body: None,
            facts: None,
            body_start: BodyStart::default(),
            is_read_ahead: false,
            kept_body: None,
            is_body_sent: false,
            body_bytes: 0,
            answer_left: None,
            is_over: false,
            is_unseen: false,
            drained_bytes: 0,
            attempts: UpstreamAttempts::default(),
            degraded: false,
            own_ns: 0,
            fault: None,
            is_answered_by_grpc: false,
            is_health_check: false,
            is_decision: false,
            asked_hold: None,
            recording: None,
            _in_flight: InFlightGauge(in_flight),
        }
    }

    /// The refusal that follows from the close reason of the connection, if that is why reading the request failed.
    pub fn client_fault(&self) -> Option<Denial> {
        self.connection.as_ref()?.close_reason()?.denial()
    }

    /// Puts what its meter found out into its record. `is_abandoned`: the client left, or nobody knows how it ended.
    pub fn settle_meter(&mut self, is_abandoned: bool, request_bytes: u64) {
        let Some(meter) = self.meter.take() else { return };
        if let Some(connection) = self.connection.as_ref().filter(|_| meter.drains()) {
            connection.end_drain(self.is_over);
        }
        let is_abandoned = (is_abandoned || self.was_drained()) && self.attempts.connected;
        if let Some(record) = &mut self.record {
            meter.settle(RequestEnd { is_whole: self.is_over, is_abandoned, request_bytes }, record);
        }
    }

    /// Whether the client has left and its answer was read on.
    pub fn was_drained(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.was_drained())
    }

    /// The route's name for metrics; empty if none matched.
    pub fn route_name(&self) -> &str {
        self.route.as_ref().map_or("", |r| &r.name)
    }
}

impl CloseReason {
    /// The refusal for the client, if it can be sent one.
    pub(super) fn denial(self) -> Option<Denial> {
        match self {
            Self::BadChunks => Some(Denial::BadRequest(BadRequest::Framing)),
            Self::KeyGone => Some(Denial::KeyInvalid),
            Self::KeyInactive => Some(Denial::KeyInactive),
            Self::KeyExpired => Some(Denial::KeyExpired),
            Self::BackendLate => Some(Denial::Plain(Fault::GatewayTimeout)),
            Self::HeldBack => Some(Denial::Plain(Fault::ServiceUnavailable)),
            Self::BodyLate | Self::BodySlow => Some(Denial::Plain(Fault::RequestTimeout)),
            _ => None,
        }
    }
}

/// A request that is dropped, and not ended, is metered all the same.
impl Drop for Ctx {
    fn drop(&mut self) {
        self.settle_meter(true, self.body_bytes);
    }
}

impl Drop for InFlightGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[expect(clippy::expect_used, reason = "a UUID's text is made of characters that every header may carry")]
fn id_value(id: RequestId) -> HeaderValue {
    let mut buffer = [0_u8; uuid::fmt::Hyphenated::LENGTH];
    HeaderValue::from_str(id.0.hyphenated().encode_lower(&mut buffer)).expect("a UUID is a header value")
}
