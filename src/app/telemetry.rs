//! Sets up recording and export of traces from the config.

use super::{CoreServices, InlineSecrets, StartError, read_secret};
use crate::config::Config;
use crate::policy::http::trace::Sampling;
use crate::policy::text::plain_value::lines;
use crate::proxy::Tracing;
use crate::telemetry::{self, Collector, Exporter, TelemetryOptions};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

/// The sampling of requests, and the exporter if there is one.
pub(super) fn start(
    config: &Config,
    inline: InlineSecrets<'_>,
    core: &CoreServices,
    io: &Handle,
) -> Result<(Tracing, Option<Exporter>), StartError> {
    let t = &config.telemetry;
    let sampling = Sampling { one_of: t.sample, follow_parent: t.follow_parent };
    let Some(collector) = collector(config, inline)? else {
        return Ok((Tracing { sampling, queue: None }, None));
    };
    let options = TelemetryOptions {
        collector,
        service_name: t.service_name.clone(),
        node: config.node.name.clone(),
        attributes: t.attributes.clone(),
        queue_requests: t.queue_requests,
        batch_requests: t.batch_requests,
        batch_delay: t.batch_delay,
    };
    let (queue, exporter) = telemetry::start(options, Arc::clone(&core.clock), &core.metrics, io)
        .map_err(|error| StartError::Telemetry(error.to_string()))?;
    Ok((Tracing { sampling, queue: Some(queue) }, Some(exporter)))
}

/// The collector, if there is one, with the content of its files.
pub(super) fn collector(config: &Config, inline: InlineSecrets<'_>) -> Result<Option<Collector>, StartError> {
    let Some(endpoint) = &config.telemetry.endpoint else { return Ok(None) };
    let wrong = |key: &str, why: &dyn std::fmt::Display| StartError::Telemetry(format!("{key}: {why}"));
    let text = match (inline.telemetry_headers, &config.telemetry.headers_file) {
        (Some(text), _) => Zeroizing::new(text.to_owned()),
        (None, Some(path)) => read_secret(path).map_err(|error| wrong("headers_file", &error))?,
        (None, None) => Zeroizing::default(),
    };
    let text = lines(&text).map_err(|bad| wrong("headers_file", &bad))?;
    let headers = headers(text).map_err(|line| {
        wrong(
            "headers_file (or KEYGATE_TELEMETRY_HEADERS)",
            &format_args!("line {line} must be \"name: value\" with a header's name and value"),
        )
    })?;
    let ca = config.telemetry.ca_file.as_deref().map(|path| {
        crate::fileio::read(path)
            .map_err(|error| wrong("ca_file", &format_args!("{} cannot be read: {error}", path.display())))
    });
    Ok(Some(Collector {
        url: endpoint.clone(),
        ca: ca.transpose()?,
        headers,
        timeout: config.telemetry.timeout,
    }))
}

/// The fields in lines of `name: value`, or the number of an invalid line. Nothing of the content is repeated.
fn headers(text: &str) -> Result<HeaderMap, usize> {
    let mut headers = HeaderMap::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':').ok_or(n + 1)?;
        let name: HeaderName = name.trim().parse().map_err(|_| n + 1)?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| n + 1)?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_lines_and_what_is_wrong_is_told_by_its_number() {
        let read = headers("authorization: Bearer a:b\n\n  X-Scope : 1 \r\n").expect("two fields");
        assert_eq!(
            (read.len(), &read["authorization"], &read["x-scope"]),
            (2, &HeaderValue::from_static("Bearer a:b"), &HeaderValue::from_static("1"))
        );
        assert!(read.values().all(HeaderValue::is_sensitive) && !format!("{read:?}").contains("Bearer"));
        assert_eq!(headers("").map(|none| none.len()), Ok(0));
        for (bad, line) in [("nonsense", 1), ("a: b\nc d: e", 2), ("a: \u{1}", 1)] {
            assert_eq!(headers(bad), Err(line), "{bad}");
        }
    }
}
