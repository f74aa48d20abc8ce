//! Creates the metric series of closed label sets before their first event: a series that appears with 1 shows no increase
//! to Prometheus.

use crate::metrics::Metrics;
use crate::model::fault::Fault;
use crate::model::key::Measure;
use crate::model::tokens::TokenCounts;
use crate::model::usage::Outcome;
use crate::policy::meter::Unreadable;
use crate::policy::prices::OTHER;
use crate::policy::routing::route::{RouteTable, VERIFY};
use crate::proxy::connection::{CloseReason, DRAIN_RESULTS};
use crate::proxy::server::listen::REFUSED;

/// Outcomes of a request that matched a route, and of one that did not.
const OUTCOMES: [Outcome; 4] = [Outcome::Served, Outcome::Denied, Outcome::UpstreamFailed, Outcome::Aborted];
/// The classes of statuses.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Creates the series that do not depend on the config.
pub(super) fn show(metrics: &Metrics) {
    for fault in Fault::ALL {
        metrics.denials.with_label_values(&[fault.name()]);
    }
    for reason in CloseReason::reasons() {
        metrics.connections_cut.with_label_values(&[reason]);
    }
    for reason in REFUSED {
        metrics.connections_refused.with_label_values(&[reason]);
    }
    for result in ["issued", "failed"] {
        metrics.acme_orders.with_label_values(&[result]);
    }
    for result in ["sent", "rejected", "failed", "queue_full"] {
        metrics.telemetry_spans.with_label_values(&[result]);
    }
    for reason in Unreadable::ALL {
        metrics.meter_unreadable.with_label_values(&[reason.as_str()]);
    }
    for result in DRAIN_RESULTS {
        metrics.answers_drained.with_label_values(&[result]);
    }
    for measure in Measure::METERED {
        metrics.held_units.with_label_values(&[measure.as_str()]);
        metrics.limit_overshoot.with_label_values(&[measure.as_str()]);
    }
    // A request without a route is denied.
    metrics.request_seconds.with_label_values(&[""]);
    for class in ["4xx", "5xx"] {
        metrics.requests.with_label_values(&["", class, Outcome::Denied.as_str()]);
    }
}

/// Creates the series of routes. `decides`: whether proxies may ask about requests, and applications by themselves.
pub(super) fn show_routes(metrics: &Metrics, routes: &RouteTable, decides: bool) {
    if decides {
        show_requests(metrics, VERIFY, &[Outcome::Decided, Outcome::Denied]);
        metrics.request_seconds.with_label_values(&[VERIFY]);
    }
    for route in routes.routes() {
        metrics.request_seconds.with_label_values(&[&route.name]);
        metrics.backend_seconds.with_label_values(&[&route.name]);
        if route.meter.is_some() {
            metrics.cost_nano.with_label_values(&[&*route.name, OTHER]);
            metrics.unpriced.with_label_values(&[&*route.name]);
            for (kind, _) in TokenCounts::default().kinds() {
                metrics.tokens.with_label_values(&[&*route.name, OTHER, kind]);
            }
        }
        show_requests(metrics, &route.name, &OUTCOMES);
        if decides {
            show_requests(metrics, &route.name, &[Outcome::Decided]);
        }
    }
}

/// Creates the series of requests with these outcomes, in the classes of statuses that they have.
fn show_requests(metrics: &Metrics, route: &str, outcomes: &[Outcome]) {
    for outcome in outcomes {
        let classes = match outcome {
            Outcome::Denied => &CLASSES[3..],
            Outcome::Decided => &CLASSES[1..2],
            _ => &CLASSES[..],
        };
        for class in classes {
            metrics.requests.with_label_values(&[route, class, outcome.as_str()]);
        }
    }
}
