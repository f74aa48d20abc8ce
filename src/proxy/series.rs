//! The metric series of each route: looked up once for each route and label, not for each request.
//!
//! *Invariant:* a series is found here or by its labels, and is the same one.

use crate::metrics::Metrics;
use crate::model::usage::Outcome;
use crate::policy::routing::route::{Route, RouteTable};
use prometheus::{Histogram, IntCounter};
use std::sync::{Arc, OnceLock};

/// The classes of statuses: their first digit and an `xx`.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The series of all routes of a config.
pub struct SeriesByRoute(Box<[(usize, RouteSeries)]>);

/// The series of one route.
pub(super) struct RouteSeries {
    /// By outcome and class. Most pairs never occur, so a series is created when it is used.
    pub(super) requests: [[OnceLock<IntCounter>; CLASSES.len()]; Outcome::ALL.len()],
    pub(super) request_seconds: Histogram,
    pub(super) backend_seconds: Histogram,
}

/// What identifies a route within its table: where it is in memory.
fn key_of(route: &Arc<Route>) -> usize {
    Arc::as_ptr(route).addr()
}

/// The class of a status.
pub(super) const fn class_of(status: u16) -> &'static str {
    CLASSES[class_number(status)]
}

pub(super) const fn class_number(status: u16) -> usize {
    match status {
        100..200 => 0,
        200..300 => 1,
        300..400 => 2,
        400..500 => 3,
        _ => 4,
    }
}

impl SeriesByRoute {
    /// The series of these routes.
    pub fn new(metrics: &Metrics, routes: &RouteTable) -> Self {
        let mut all: Vec<_> = routes
            .routes()
            .iter()
            .map(|route| (key_of(route), RouteSeries::new(metrics, &route.name)))
            .collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        Self(all.into())
    }

    /// The series of a route; none if it is in no table.
    pub(super) fn of(&self, route: &Arc<Route>) -> Option<&RouteSeries> {
        let key = key_of(route);
        let found = self.0.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(&self.0[found].1)
    }
}

impl RouteSeries {
    fn new(metrics: &Metrics, name: &str) -> Self {
        Self {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
            request_seconds: metrics.request_seconds.with_label_values(&[name]),
            backend_seconds: metrics.backend_seconds.with_label_values(&[name]),
        }
    }
}
