//! What a config makes of routes and backends, as one value: a request uses one from its begin to its end.
//!
//! *Invariant:* routes, upstreams and header rules of one request come from one config, whatever is reloaded meanwhile.

use super::message::headers::HeaderPolicy;
use super::upstream::Upstream;
use crate::policy::routing::route::RouteTable;
use std::sync::Arc;

/// Where requests go.
pub struct RoutingSnapshot {
    /// Which requests are known at all.
    pub routes: RouteTable,
    /// Backends, in the order that routes number them.
    pub upstreams: Box<[Arc<Upstream>]>,
    /// What goes to backends.
    pub headers: HeaderPolicy,
}
