//! All metrics that Keygate exports: one struct, one field per metric; the doc comment is the help text.
//!
//! *Invariant:* no label has a value that a client can choose.

use prometheus::core::Collector;
use prometheus::proto::{Counter, Gauge, MetricFamily, MetricType};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Upper bounds of the latency buckets, in seconds.
const LATENCY: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds of the buckets of waiting for shared counters, in seconds; no wait may exceed 0.02.
const WAIT: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0];
/// Upper bounds of the buckets of Keygate's own time, in seconds.
const OWN: &[f64] =
    &[0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 1.0];

/// The results of an attempt at a server.
const UPSTREAM_RESULTS: [&str; 10] = [
    "answered",
    "connect_failed",
    "connect_timed_out",
    "tls_timed_out",
    "write_timed_out",
    "first_byte_timed_out",
    "read_timed_out",
    "request_timed_out",
    "broke_off",
    "error_status",
];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal $(, labels $labels:expr)? $(, buckets $buckets:expr)?;)+) => {
        /// The metrics of one process.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// Registers every metric. Fails only if two have the same name.
            pub fn new() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $(let $field = register(&registry, metrics!(@make $kind, $name, concat!($($help),+).trim(), [$($labels)?], [$($buckets)?]))?;)+
                Ok(Self { registry, $($field,)+ })
            }
        }
    };
    (@make IntCounter, $name:literal, $help:expr, [], []) => { IntCounter::with_opts(Opts::new($name, $help))? };
    (@make IntGauge, $name:literal, $help:expr, [], []) => { IntGauge::with_opts(Opts::new($name, $help))? };
    (@make IntGaugeVec, $name:literal, $help:expr, [$labels:expr], []) => { IntGaugeVec::new(Opts::new($name, $help), $labels)? };
    (@make IntCounterVec, $name:literal, $help:expr, [$labels:expr], []) => { IntCounterVec::new(Opts::new($name, $help), $labels)? };
    (@make Histogram, $name:literal, $help:expr, [], [$buckets:expr]) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets.to_vec()))?
    };
    (@make HistogramVec, $name:literal, $help:expr, [$labels:expr], [$buckets:expr]) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), $labels)?
    };
}

metrics! {
    /// Requests answered, by route (empty: none matched), status class and outcome.
    requests: IntCounterVec = "keygate_requests_total", labels &["route", "status", "outcome"];
    /// Requests refused, by the error name of the contract.
    denials: IntCounterVec = "keygate_denials_total", labels &["error"];
    /// Seconds from a request's arrival to the end of its answer, by route.
    request_seconds: HistogramVec = "keygate_request_duration_seconds", labels &["route"], buckets LATENCY;
    /// Seconds of that which Keygate itself took to decide, without waiting for the client's body.
    own_seconds: Histogram = "keygate_own_duration_seconds", buckets OWN;
    /// Seconds from the decision to the first byte of the backend's answer, by route.
    backend_seconds: HistogramVec = "keygate_backend_first_byte_seconds", labels &["route"], buckets LATENCY;
    /// Requests in flight.
    in_flight: IntGauge = "keygate_requests_in_flight";
    /// Client connections open.
    connections: IntGauge = "keygate_connections";
    /// Client connections that Keygate closed, by reason.
    connections_cut: IntCounterVec = "keygate_connections_cut_total", labels &["reason"];
    /// Client connections that were refused because of a limit on connections, by reason.
    connections_refused: IntCounterVec = "keygate_connections_refused_total", labels &["reason"];
    /// Open connections to the admin listener.
    admin_connections: IntGauge = "keygate_admin_connections";
    /// Connections to the admin listener that Keygate closed, by reason.
    admin_connections_closed: IntCounterVec = "keygate_admin_connections_closed_total", labels &["reason"];
    /// Reads of the key set for admin tokens by its URL, by result: read or failed.
    admin_jwks_reads: IntCounterVec = "keygate_admin_jwks_reads_total", labels &["result"];
    /// Calls to the identity service about admin tokens, by what it said: valid, refused, or failed if there was no usable answer.
    admin_introspections: IntCounterVec = "keygate_admin_introspections_total", labels &["result"];
    /// Sign-ins to the console that came back from the identity provider, by result: done, refused, or failed if it could not be used.
    admin_oidc_sign_ins: IntCounterVec = "keygate_admin_oidc_sign_ins_total", labels &["result"];
    /// Approximate bytes of bodies in memory that clients or backends have not read yet.
    bytes_in_flight: IntGauge = "keygate_bytes_in_flight";
    /// Attempts to reach a backend that failed.
    upstream_failures: IntCounter = "keygate_upstream_failures_total";
    /// Attempts at a server, by result: a response, an error status (500 and above), no connection, a broken connection, or the timeout.
    upstream_results: IntCounterVec = "keygate_upstream_results_total", labels &["upstream", "server", "result"];
    /// Requests in flight at a server.
    upstream_in_flight: IntGaugeVec = "keygate_upstream_requests_in_flight", labels &["upstream", "server"];
    /// Whether a server may get requests: 1, or 0 while probes fail or it is ejected.
    upstream_up: IntGaugeVec = "keygate_upstream_up", labels &["upstream", "server"];
    /// Times a server was ejected because requests to it failed in a row.
    upstream_ejections: IntCounterVec = "keygate_upstream_ejections_total", labels &["upstream", "server"];
    /// Requests without a server: all servers were down or tried, or a limit on requests in flight was reached.
    upstream_unavailable: IntCounterVec = "keygate_upstream_unavailable_total", labels &["upstream", "reason"];
    /// Failed requests that were retried, or were not because the retry budget was used up.
    upstream_retries: IntCounterVec = "keygate_upstream_retries_total", labels &["upstream", "outcome"];
    /// Keys held in memory.
    keyring_keys: IntGauge = "keygate_keyring_keys";
    /// Number of the newest change in force.
    keyring_version: IntGauge = "keygate_keyring_version";
    /// Milliseconds since the change feed last answered.
    keyring_lag_ms: IntGauge = "keygate_keyring_lag_milliseconds";
    /// Gateways that use the store, this one included.
    nodes: IntGauge = "keygate_nodes";
    /// Rows of the store that cannot be read, so that the keys that depend on them are refused.
    keyring_broken: IntGauge = "keygate_keyring_broken_rows";
    /// Rows of the store that could not be read and were left out of a list.
    store_rows_passed_over: IntCounter = "keygate_store_rows_passed_over_total";
    /// End users admitted while the store could not confirm that the quota has room for them.
    end_users_unseen: IntCounter = "keygate_end_users_unseen_total";
    /// Those of them that are not stored yet.
    end_users_unsettled: IntGauge = "keygate_end_users_unsettled";
    /// Those of them that turned out to be over the quota.
    end_users_over_quota: IntCounter = "keygate_end_users_over_quota_total";
    /// Calls to Redis about limits that nodes share.
    counter_calls: IntCounter = "keygate_counter_calls_total";
    /// 1 while Redis answers in time, 0 while nodes decide without it; 0 where counters are not shared.
    counter_up: IntGauge = "keygate_counter_up";
    /// Attempts to connect to Redis.
    counter_connects: IntCounter = "keygate_counter_connects_total";
    /// Calls to Redis that were not answered within 15 ms.
    counter_late: IntCounter = "keygate_counter_late_total";
    /// Workspaces with a call to Redis in flight.
    counter_asking: IntGauge = "keygate_counter_asking";
    /// Seconds that requests waited for shared counters; requests served from granted units do not wait and are not counted.
    counter_wait_seconds: Histogram = "keygate_counter_wait_seconds", buckets WAIT;
    /// Units of limits that Redis debited for this node in advance or on demand.
    counter_units_granted: IntCounter = "keygate_counter_units_granted_total";
    /// Units of those that were returned unspent.
    counter_units_returned: IntCounter = "keygate_counter_units_returned_total";
    /// Requests decided without Redis because it was unreachable or late.
    counters_degraded: IntCounter = "keygate_counters_degraded_total";
    /// When each certificate of the TLS listeners expires, in seconds since 1970, by the file or folder in the config.
    certificate_expiry: IntGaugeVec = "keygate_certificate_expiry_timestamp_seconds", labels &["certificate"];
    /// Certificates ordered, by result: issued or failed.
    acme_orders: IntCounterVec = "keygate_acme_orders_total", labels &["result"];
    /// Spans of traces, by result: sent, rejected by the collector, failed (the collector did not take the batch), or queue full.
    telemetry_spans: IntCounterVec = "keygate_telemetry_spans_total", labels &["result"];
    /// Tokens that requests used, by route, entry of the price table (`other`: no entry) and kind. Cached and written input is part of the input, reasoning part of the output.
    tokens: IntCounterVec = "keygate_tokens_total", labels &["route", "model", "kind"];
    /// Answers of metered routes that did not say what they used, by reason; and damaged events, with the reason event.
    meter_unreadable: IntCounterVec = "keygate_meter_unreadable_total", labels &["reason"];
    /// Requests whose client has left and whose answer is read to its end, because their route has `on_disconnect = "drain"`.
    answers_draining: IntGauge = "keygate_answers_draining";
    /// Clients that left such a request, by what became of its answer: complete, or cut: full (too many at once), timeout, key (deleted, deactivated or expired), shutdown, backend (it failed or was late).
    answers_drained: IntCounterVec = "keygate_answers_drained_total", labels &["result"];
    /// Units that requests in flight hold, by measure.
    held_units: IntGaugeVec = "keygate_held_units", labels &["measure"];
    /// Units by which requests that used more than they held have passed a limit, by measure.
    limit_overshoot: IntCounterVec = "keygate_limit_overshoot_total", labels &["measure"];
    /// What metered requests cost, in billionths of the currency unit, by route and by the entry of the price table (`other`: no entry).
    cost_nano: IntCounterVec = "keygate_cost_nano_total", labels &["route", "model"];
    /// Metered requests whose model has no price, by route.
    unpriced: IntCounterVec = "keygate_unpriced_total", labels &["route"];
    /// Usage records of finished requests, and those an earlier run left in the journal. Always the sum of stored, in the journal, shed and set aside.
    usage_accepted: IntCounter = "keygate_usage_accepted_total";
    /// Usage records in the ledger.
    usage_stored: IntCounter = "keygate_usage_stored_total";
    /// Usage records that were dropped because the journal was full.
    usage_shed: IntCounter = "keygate_usage_shed_total";
    /// Usage records that the ledger rejects; they are in set-aside.ndjson of the journal folder.
    usage_set_aside: IntCounter = "keygate_usage_set_aside_total";
    /// Usage records in the journal that are not stored yet.
    usage_in_journal: IntGauge = "keygate_usage_in_journal";
    /// Bytes of the usage journal on disk.
    usage_journal_bytes: IntGauge = "keygate_usage_journal_bytes";
    /// Damaged places of the usage journal.
    usage_journal_damage: IntCounter = "keygate_usage_journal_damage_total";
    /// Attempts to sync the usage journal to disk that failed.
    usage_sync_failures: IntCounter = "keygate_usage_sync_failures_total";
    /// Attempts to store usage records that failed; they are repeated.
    usage_store_failures: IntCounter = "keygate_usage_store_failures_total";
}

/// The counts of usage records: `accepted = stored + in_journal + shed + set_aside`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageCount {
    /// Records of finished requests.
    pub accepted: u64,
    /// In the ledger.
    pub stored: u64,
    /// In the journal, not stored yet.
    pub in_journal: u64,
    /// Dropped.
    pub shed: u64,
    /// Rejected by the ledger and kept in a file.
    pub set_aside: u64,
}

impl Metrics {
    /// The counts of usage records.
    pub fn usage(&self) -> UsageCount {
        // In this order, so that whatever is stored meanwhile was counted as accepted before.
        let (stored, shed) = (self.usage_stored.get(), self.usage_shed.get());
        let set_aside = self.usage_set_aside.get();
        let accepted = self.usage_accepted.get();
        let in_journal = accepted.saturating_sub(stored + shed + set_aside);
        UsageCount { accepted, stored, in_journal, shed, set_aside }
    }

    /// Exports the usage counts of one moment, so that the identity always holds in the output.
    fn balance(&self, families: &mut [MetricFamily]) {
        let usage = self.usage();
        for family in families {
            let value = match family.name() {
                "keygate_usage_accepted_total" => usage.accepted,
                "keygate_usage_stored_total" => usage.stored,
                "keygate_usage_shed_total" => usage.shed,
                "keygate_usage_set_aside_total" => usage.set_aside,
                "keygate_usage_in_journal" => usage.in_journal,
                _ => continue,
            };
            let is_gauge = family.get_field_type() == MetricType::GAUGE;
            for metric in family.mut_metric() {
                #[expect(clippy::cast_precision_loss, reason = "as every counter of that size")]
                let value = value as f64;
                if is_gauge {
                    let mut gauge = Gauge::default();
                    gauge.set_value(value);
                    metric.set_gauge(gauge);
                } else {
                    let mut counter = Counter::default();
                    counter.set_value(value);
                    metric.set_counter(counter);
                }
            }
        }
    }

    /// Creates the series of a server, before anything is known about it.
    pub fn show_server(&self, upstream: &str, server: &str) {
        self.upstream_ejections.with_label_values(&[upstream, server]);
        for result in UPSTREAM_RESULTS {
            self.upstream_results.with_label_values(&[upstream, server, result]);
        }
    }

    /// Removes the series of a server that is no longer in the upstream.
    pub fn forget_server(&self, upstream: &str, server: &str) {
        let labels = [upstream, server];
        // A series that never existed needs no removal.
        self.upstream_in_flight.remove_label_values(&labels).ok();
        self.upstream_up.remove_label_values(&labels).ok();
        self.upstream_ejections.remove_label_values(&labels).ok();
        for result in UPSTREAM_RESULTS {
            self.upstream_results.remove_label_values(&[upstream, server, result]).ok();
        }
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        self.balance(&mut families);
        let mut out = Vec::new();
        match TextEncoder::new().encode(&families, &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(error) => {
                tracing::error!(%error, "cannot encode metrics");
                String::new()
            }
        }
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
