//! What all requests share: the gate, the routes in force, the journal, limits and metrics.
//!
//! The steps of a request are methods of [`Proxy`], each in the file of its step.

use crate::clock::Clock;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::policy::http::source::TrustedProxies;
use crate::proxy::connection::address_limiter::AddressLimiter;
use crate::proxy::message::ratelimit::RateLimitFamilies;
use crate::proxy::observe::access::AccessLog;
use crate::proxy::observe::traces::Tracing;
use crate::proxy::snapshot::RoutingSnapshot;
use crate::usage::Recorder;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::Duration;

/// The proxy.
pub struct Proxy {
    /// Decides.
    pub gate: Arc<Gate>,
    /// Where requests go, as the newest config says.
    pub routing: Arc<ArcSwap<RoutingSnapshot>>,
    /// Takes the records.
    pub recorder: Recorder,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Sizes and times.
    pub limits: ProxyLimits,
    /// Wrong secrets, by address; none: any number is answered.
    pub invalid_keys: Option<AddressLimiter>,
    /// Preflights that backends answer, by address; none: any number.
    pub preflights: Option<AddressLimiter>,
    /// The access log.
    pub access: AccessLog,
    /// Whose `X-Forwarded-For` counts.
    pub trusted: TrustedProxies,
    /// Which requests are traced.
    pub tracing: Tracing,
    /// This node's name.
    pub node: Box<str>,
}

/// What a request may be, and how it is answered.
#[derive(Clone, Copy, Debug)]
pub struct ProxyLimits {
    /// Bytes of all header fields.
    pub header_bytes: usize,
    /// Number of header fields.
    pub header_fields: usize,
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// How long a client may take none of what is written to one of its streams.
    pub write_timeout: Duration,
    /// Bytes of a body that is read ahead.
    pub end_user_body_bytes: u64,
    /// Whether the client's `X-Request-Id` is used.
    pub trust_request_id: bool,
    /// Which header families tell what is left.
    pub families: RateLimitFamilies,
}
