//! Routes and backends of one config, as one value. A request uses the same value from beginning to end.
//!
//! *Invariant:* routes, upstreams and header rules of a request come from one config, even if another is loaded
//! meanwhile.

use super::message::headers::HeaderPolicy;
use super::series::SeriesByRoute;
use super::upstream::Upstream;
use crate::policy::routing::route::RouteTable;
use std::sync::Arc;

/// The routing of requests.
pub struct RoutingSnapshot {
    /// The routes.
    pub routes: RouteTable,
    /// Backends, at the indices that routes use.
    pub upstreams: Box<[Arc<Upstream>]>,
    /// The header rules for requests to backends.
    pub headers: HeaderPolicy,
    /// The metric series of the routes.
    pub series: SeriesByRoute,
}
