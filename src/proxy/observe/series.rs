//! The metric series of each route: looked up once for each route and label, not for each request.
//!
//! *Invariant:* a series is found here or by its labels, and is the same one.

use crate::metrics::Metrics;
use crate::model::usage::Outcome;
use crate::policy::routing::route::{Route, RouteTable};
use crate::proxy::ctx::Ctx;
use prometheus::{Histogram, IntCounter};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The classes of statuses: their first digit and an `xx`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The series of all routes of a config.
pub struct SeriesByRoute(Box<[(usize, RouteSeries)]>);

/// The series of one route.
struct RouteSeries {
    /// By outcome and class. Most pairs never occur, so a series is created when it is used.
    requests: [[OnceLock<IntCounter>; CLASSES.len()]; Outcome::ALL.len()],
    request_seconds: Histogram,
    backend_seconds: Histogram,
}

/// What identifies a route within its table: where it is in memory.
fn key_of(route: &Arc<Route>) -> usize {
    Arc::as_ptr(route).addr()
}

/// The class of a status.
pub(in crate::proxy) const fn class_of(status: u16) -> &'static str {
    CLASSES[class_number(status)]
}

const fn class_number(status: u16) -> usize {
    match status {
        100..200 => 0,
        200..300 => 1,
        300..400 => 2,
        400..500 => 3,
        _ => 4,
    }
}

impl Metrics {
    /// Counts a request that has ended.
    pub(in crate::proxy) fn count_request(
        &self,
        ctx: &Ctx,
        (outcome, status): (Outcome, u16),
        elapsed: Duration,
    ) {
        let (class, route) = (class_number(status), ctx.route_name());
        let find = || self.requests.with_label_values(&[route, CLASSES[class], outcome.as_str()]);
        let seconds = elapsed.as_secs_f64();
        if let Some(series) = ctx.routing.series.of(ctx) {
            series.requests[outcome as usize][class].get_or_init(find).inc();
            series.request_seconds.observe(seconds);
        } else {
            find().inc();
            self.request_seconds.with_label_values(&[route]).observe(seconds);
        }
    }

    /// Counts the time that a backend took to its first byte.
    pub(in crate::proxy) fn count_first_byte(&self, ctx: &Ctx, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        match ctx.routing.series.of(ctx) {
            Some(series) => series.backend_seconds.observe(seconds),
            None => self.backend_seconds.with_label_values(&[ctx.route_name()]).observe(seconds),
        }
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

    /// The series of a request's route; none if it has none, or one that is in no table.
    fn of(&self, ctx: &Ctx) -> Option<&RouteSeries> {
        let key = key_of(ctx.route.as_ref()?);
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
