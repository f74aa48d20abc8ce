//! What is known of one request while it passes through Pingora's phases.

use super::connection::kept_body::KeptBody;
use super::connection::{CloseReason, Connection};
use super::snapshot::RoutingSnapshot;
use super::upstream::attempts::UpstreamAttempts;
use crate::clock::Now;
use crate::gate::{Admission, Denied, Permit, Preflight};
use crate::model::fault::{Fault, Lang};
use crate::model::id::RequestId;
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::policy::routing::route::Route;
use crate::telemetry::Recording;
use crate::usage::PendingRecord;
use bytes::Bytes;
use http::HeaderValue;
use prometheus::IntGauge;
use std::net::IpAddr;
use std::sync::Arc;

/// One request. Dropping it, however that comes about, ends its record and its count in flight.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the request")]
pub struct Ctx {
    /// When its head had arrived.
    pub arrived: Now,
    /// When its limits are charged: then, or once the body that names its end user is there.
    pub charged_at: Now,
    /// Its identity.
    pub id: RequestId,
    /// What client, backend, logs and ledger know it by.
    pub request_id: HeaderValue,
    /// The language for messages.
    pub lang: Lang,
    /// The client's address.
    pub address: IpAddr,
    /// Whether the client's side of it is encrypted.
    pub secure: bool,
    /// Where it came over.
    pub connection: Option<Arc<Connection>>,
    /// The routes and upstreams it uses from begin to end.
    pub routing: Arc<RoutingSnapshot>,
    /// The route that matched.
    pub route: Option<Arc<Route>>,
    /// The path that the backend gets, where that is another than the client's.
    pub rewritten: Option<Box<str>>,
    /// What was decided before Pingora saw it; none: nothing yet.
    pub decided: Option<Result<(), Box<Denied>>>,
    /// Proof that its key may do what it asks, on its way to be admitted.
    pub permit: Option<Permit>,
    /// Whether its head has been looked at.
    pub begun: bool,
    /// Proof that it may be forwarded.
    pub admission: Option<Admission>,
    /// The same of a preflight that its backend answers.
    pub preflight: Option<Preflight>,
    /// Its record to be.
    pub record: Option<PendingRecord>,
    /// A body read ahead to find the end user in it; sent on from here.
    pub body: Option<Bytes>,
    /// What of a body has come, where a backend may say that it has not acted on it.
    pub kept_body: Option<KeptBody>,
    /// Whether that has been sent on.
    pub is_body_sent: bool,
    /// Body bytes taken from the client so far.
    pub body_bytes: u64,
    /// Bytes of the answer's body that are still to come, where that is known.
    pub answer_left: Option<u64>,
    /// Whether all of the answer has come.
    pub is_over: bool,
    /// Its way through the servers of its upstream.
    pub attempts: UpstreamAttempts,
    /// Whether limits were decided without the shared counters.
    pub degraded: bool,
    /// Nanoseconds until it was decided.
    pub own_ns: u64,
    /// What Keygate answered by itself.
    pub fault: Option<Fault>,
    /// Its spans, where it is recorded.
    pub recording: Option<Recording>,
    _in_flight: InFlightGauge,
}

struct InFlightGauge(IntGauge);

impl Ctx {
    /// A request whose head arrived at `arrived`.
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
            preflight: None,
            record: None,
            body: None,
            kept_body: None,
            is_body_sent: false,
            body_bytes: 0,
            answer_left: None,
            is_over: false,
            attempts: UpstreamAttempts::default(),
            degraded: false,
            own_ns: 0,
            fault: None,
            recording: None,
            _in_flight: InFlightGauge(in_flight),
        }
    }

    /// What the client's connection made of its message, where that is why reading it failed.
    pub fn client_fault(&self) -> Option<Denial> {
        self.connection.as_ref()?.close_reason()?.denial()
    }

    /// The route's name for metrics; empty when none matched.
    pub fn route_name(&self) -> &str {
        self.route.as_ref().map_or("", |r| &r.name)
    }
}

impl CloseReason {
    /// What the client is told, where it can be.
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
