//! Counts of requests, in the series of their routes.

use crate::metrics::Metrics;
use crate::model::usage::Outcome;
use crate::proxy::ctx::Ctx;
use crate::proxy::series::{CLASSES, RouteSeries, class_number};
use std::time::Duration;

/// The series of a request's route; none if it has none.
fn series_of(ctx: &Ctx) -> Option<&RouteSeries> {
    ctx.routing.series.of(ctx.route.as_ref()?)
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
        if let Some(series) = series_of(ctx) {
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
        match series_of(ctx) {
            Some(series) => series.backend_seconds.observe(seconds),
            None => self.backend_seconds.with_label_values(&[ctx.route_name()]).observe(seconds),
        }
    }
}
