//! `[telemetry]`: export of traces, with every key, its rule and its default.
//!
//! Must not know: how traces are sent. Dependencies between keys of this section are checked here, too.

use super::reader::ConfigReader;
use super::rule::{Flag, Integer, OrEmpty, ParsedText, Text, quote};
use super::section::Section;
use super::texts::{FILE, http_url};
use super::upstream::span_ms;
use crate::model::server::HttpUrl;
use std::path::PathBuf;
use std::time::Duration;

/// The path for OTLP if the URL has none.
const TRACES: &str = "/v1/traces";

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// The URL of the collector; none: no export.
    pub endpoint: Option<HttpUrl>,
    /// A file with header fields to send, one per line.
    pub headers_file: Option<PathBuf>,
    /// CA of the collector; none: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// `service.name` in traces.
    pub service_name: String,
    /// Further resource attributes.
    pub attributes: Vec<(String, String)>,
    /// One in so many traces that begin here is recorded.
    pub sample: u64,
    /// Whether traces that began elsewhere follow their sampled flag.
    pub follow_parent: bool,
    /// Most requests with spans in the queue.
    pub queue_requests: usize,
    /// Most requests in one export. Not more than [`TelemetryConfig::queue_requests`].
    pub batch_requests: usize,
    /// Longest time of a request in the queue before an export.
    pub batch_delay: Duration,
    /// Longest time for an export.
    pub timeout: Duration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            headers_file: None,
            ca_file: None,
            service_name: "keygate".into(),
            attributes: Vec::new(),
            sample: 1,
            follow_parent: true,
            queue_requests: 4_096,
            batch_requests: 512,
            batch_delay: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Reads the section.
pub(super) fn telemetry(s: &mut Section<'_, '_>) -> TelemetryConfig {
    let d = TelemetryConfig::default();
    TelemetryConfig {
        endpoint: s.value("endpoint", &OrEmpty(COLLECTOR), d.endpoint),
        headers_file: s.value("headers_file", &OrEmpty(FILE), d.headers_file),
        ca_file: s.value("ca_file", &OrEmpty(FILE), d.ca_file),
        service_name: s.value("service_name", &Text { min: 1, max: 255 }, d.service_name),
        attributes: s.list("attributes", &ATTRIBUTE, 0..=64, d.attributes),
        sample: s.value("sample", &Integer { min: 1, max: 1_000_000_000 }, d.sample),
        follow_parent: s.value("follow_parent", &Flag, d.follow_parent),
        queue_requests: s.value("queue_requests", &Integer { min: 1, max: 1_000_000 }, d.queue_requests),
        batch_requests: s.value("batch_requests", &Integer { min: 1, max: 10_000 }, d.batch_requests),
        batch_delay: s.value("batch_delay", &span_ms(10, 300_000), d.batch_delay),
        timeout: s.value("timeout", &span_ms(100, 300_000), d.timeout),
    }
}

/// A file that would be ignored is a mistake, because the user relies on it.
pub(super) fn check(config: &TelemetryConfig, reading: &mut ConfigReader<'_>) {
    const ENDPOINT: &str = "telemetry.endpoint";
    let tls = config.endpoint.as_ref().is_some_and(|endpoint| endpoint.tls);
    for (is_ignored, path, message) in [
        (
            config.headers_file.is_some() && config.endpoint.is_none(),
            "telemetry.headers_file",
            "needs telemetry.endpoint",
        ),
        (
            config.ca_file.is_some() && !tls,
            "telemetry.ca_file",
            "needs a telemetry.endpoint that begins with https",
        ),
        (
            config.batch_requests > config.queue_requests,
            "telemetry.batch_requests",
            "must be at most telemetry.queue_requests",
        ),
    ] {
        if is_ignored {
            reading.complain_of_conflict(&[path, ENDPOINT, "telemetry.queue_requests"], message);
        }
    }
}

const COLLECTOR: ParsedText<HttpUrl> = ParsedText {
    must: r#"the URL of a collector, such as "http://127.0.0.1:4318" or "https://otlp.example.org/v1/traces", without a user, a query or a fragment"#,
    read: collector,
    show: quote,
};

const ATTRIBUTE: ParsedText<(String, String)> = ParsedText {
    must: r#"NAME=VALUE, such as "deployment.environment.name=production", each of 1 to 255 characters"#,
    read: |text| {
        let (name, value) = text.split_once('=')?;
        let fits =
            |part: &str| (1..=255).contains(&part.chars().count()) && !part.chars().any(char::is_control);
        (fits(name) && fits(value)).then(|| (name.to_owned(), value.to_owned()))
    },
    show: |(name, value)| quote(&format_args!("{name}={value}")),
};

fn collector(text: &str) -> Option<HttpUrl> {
    let url = http_url(text).filter(|url| !url.target.contains('?'))?;
    let target = if matches!(&*url.target, "" | "/") { TRACES.to_owned() } else { url.target };
    Some(HttpUrl { target, ..url })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_a_url_of_which_nothing_is_secret() {
        for (given, shown) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector/", "http://collector:80/v1/traces"),
            ("https://[::1]:4318/otlp", "https://[::1]:4318/otlp"),
            ("https://otlp.example.org", "https://otlp.example.org:443/v1/traces"),
        ] {
            assert_eq!(collector(given).map(|url| url.to_string()).as_deref(), Some(shown));
        }
        for bad in [
            "",
            "collector:4318",
            "grpc://c:1",
            "http://",
            "http://u:p@c",
            "http://c:0",
            "http://c/a?b",
            "http://c/#a",
            "http://c/a b",
        ] {
            assert_eq!(collector(bad), None, "{bad}");
        }
    }
}
