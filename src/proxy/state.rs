//! State shared by all requests: the gate, the current routes, the journal, limits and metrics.
//!
//! The steps of a request are methods of [`Proxy`], each in the module of its step.

use crate::clock::Clock;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::model::fault::ErrorForm;
use crate::policy::http::fields::HeaderFields;
use crate::policy::http::source::TrustedProxies;
use crate::policy::keys::bearer::BearerToken;
use crate::policy::routing::route::Route;
use crate::proxy::connection::AnswerDrains;
use crate::proxy::connection::address_limiter::AddressLimiter;
use crate::proxy::holds::UsualOutput;
use crate::proxy::message::ratelimit::RateLimitFamilies;
use crate::proxy::observe::access::AccessLog;
use crate::proxy::observe::traces::Tracing;
use crate::proxy::snapshot::RoutingSnapshot;
use crate::proxy::verified::VerifiedHolds;
use crate::usage::Recorder;
use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use std::sync::Arc;
use std::time::Duration;

/// The proxy.
pub struct Proxy {
    /// Decides about requests.
    pub gate: Arc<Gate>,
    /// The current routes and upstreams.
    pub routing: Arc<ArcSwap<RoutingSnapshot>>,
    /// Receives usage records.
    pub recorder: Recorder,
    /// What answers of metered routes usually use.
    pub usual: Arc<UsualOutput>,
    /// Answers read on after their client has left.
    pub drains: Arc<AnswerDrains>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Sizes and timeouts.
    pub limits: ProxyLimits,
    /// Limits invalid keys per address; none: no limit.
    pub invalid_keys: Option<AddressLimiter>,
    /// Limits preflights forwarded to backends, per address; none: no limit.
    pub preflights: Option<AddressLimiter>,
    /// Limits requests on public routes, per address; none: no limit.
    pub public_requests: Option<AddressLimiter>,
    /// Where load balancers check this node; none: nowhere.
    pub health: Option<HealthPath>,
    /// The access log.
    pub access: AccessLog,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted: TrustedProxies,
    /// Selects the requests that are traced.
    pub tracing: Tracing,
    /// What applications that ask by themselves need.
    pub applications: Applications,
    /// The name of this node.
    pub node: Box<str>,
}

/// For calls of applications that ask by themselves.
pub struct Applications {
    /// What stands for such a call in records and metrics.
    pub route: Arc<Route>,
    /// The token that they must present; none: none.
    pub token: Option<Arc<BearerToken>>,
    /// What they hold.
    pub holds: VerifiedHolds,
}

/// The path at which load balancers ask whether this node is ready.
pub struct HealthPath {
    /// The path, in canonical form.
    pub path: Box<str>,
    /// Whether it is ready.
    pub is_ready: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Limits for requests, and settings for responses.
#[derive(Clone, Copy, Debug)]
pub struct ProxyLimits {
    /// Bytes of all header fields.
    pub header_bytes: usize,
    /// Number of header fields.
    pub header_fields: usize,
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// Longest time a client may accept nothing of a stream's response.
    pub write_timeout: Duration,
    /// Maximum size of a body that is read ahead, in bytes.
    pub end_user_body_bytes: u64,
    /// Whether the client's `X-Request-Id` is used.
    pub trust_request_id: bool,
    /// The families of rate limit header fields in responses.
    pub families: RateLimitFamilies,
    /// The form of errors of requests that no route matches.
    pub errors: ErrorForm,
    /// Whether requests without TLS are redirected to HTTPS.
    pub redirect_to_https: bool,
}

impl Applications {
    /// Whether a call presents the token, if there is one.
    pub(in crate::proxy) fn admits(&self, fields: HeaderFields<'_>) -> bool {
        let Some(token) = &self.token else { return true };
        let mut values = fields.all(&AUTHORIZATION);
        let presented = values.next().and_then(|value| std::str::from_utf8(value).ok()?.split_once(' '));
        let is_alone = values.next().is_none();
        presented.is_some_and(|(scheme, given)| {
            is_alone && scheme.eq_ignore_ascii_case("bearer") && token.admits(given.trim())
        })
    }
}
