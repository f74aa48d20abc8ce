//! Encodes finished requests as one OTLP message, with the attributes of OpenTelemetry's conventions for HTTP.

use super::TelemetryOptions;
use super::span::{AttemptSpan, RequestTrace, SpanEnd};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

/// Flags of a span: it is sampled; whether its parent is remote is known; it is.
const SAMPLED: u32 = 0x001;
const PARENT_KNOWN: u32 = 0x100;
const PARENT_REMOTE: u32 = 0x200;

/// The methods in the conventions. Others would let clients create any number of span names.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

/// The resource, which all spans of a process share.
pub(super) fn resource(options: &TelemetryOptions) -> Resource {
    let mut attributes = vec![
        text("service.name", &options.service_name),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", &options.node),
    ];
    attributes.extend(options.attributes.iter().map(|(name, value)| text(name, value)));
    Resource { attributes, ..Resource::default() }
}

/// One message.
pub(super) fn message(resource: &Resource, batch: &[Box<RequestTrace>]) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    let mut spans = Vec::with_capacity(batch.len() * 2);
    for trace in batch {
        spans.push(server_span(trace));
        spans.extend(trace.attempts.iter().enumerate().map(|(n, attempt)| client_span(trace, n, attempt)));
    }
    let spans = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
    let of_resource = ResourceSpans {
        resource: Some(resource.clone()),
        scope_spans: vec![spans],
        ..ResourceSpans::default()
    };
    ExportTraceServiceRequest { resource_spans: vec![of_resource] }
}

fn server_span(trace: &RequestTrace) -> Span {
    let (method, other) = method(trace);
    let mut attributes = vec![
        text("http.request.method", method),
        text("url.scheme", if trace.secure { "https" } else { "http" }),
        text("url.path", &trace.path),
        text("network.protocol.version", trace.version),
        text("client.address", &trace.client.to_canonical().to_string()),
        text("keygate.request_id", &trace.request_id),
        text("keygate.outcome", trace.ended.outcome),
    ];
    attributes.extend(other.map(|other| text("http.request.method_original", other)));
    if !trace.host.is_empty() {
        attributes.push(text("server.address", &trace.host));
    }
    if !trace.user_agent.is_empty() {
        attributes.push(text("user_agent.original", &trace.user_agent));
    }
    if let Some((key, workspace)) = &trace.key {
        attributes.push(text("keygate.key_id", &key.to_string()));
        attributes.push(text("keygate.workspace_id", workspace.as_str()));
    }
    let mut name = method.to_owned();
    if let Some(route) = &trace.route {
        name.extend([" ", &route.path]);
        attributes.push(text("http.route", &route.path));
        attributes.push(text("keygate.route", &route.name));
    }
    let SpanEnd { status, fault, outcome } = trace.ended;
    if status > 0 {
        attributes.push(number("http.response.status_code", status));
    }
    let failed = status >= 500 || status == 0;
    let error = fault.or_else(|| failed.then_some(outcome));
    attributes.extend(error.map(|error| text("error.type", error)));
    let remote = if trace.parent.is_some() { PARENT_REMOTE } else { 0 };
    Span {
        parent_span_id: trace.parent.map(Vec::from).unwrap_or_default(),
        flags: SAMPLED | PARENT_KNOWN | remote,
        status: failed.then(error_status),
        ..span(
            trace,
            trace.span_id,
            name,
            SpanKind::Server,
            (trace.arrived.steady_ns, trace.ended_ns),
            attributes,
        )
    }
}

fn client_span(trace: &RequestTrace, n: usize, attempt: &AttemptSpan) -> Span {
    let (method, _) = method(trace);
    let mut attributes = vec![
        text("http.request.method", method),
        text("server.address", &attempt.host),
        number("server.port", attempt.address.port()),
        text("network.peer.address", &attempt.address.ip().to_string()),
        number("network.peer.port", attempt.address.port()),
        text("keygate.upstream", &attempt.upstream),
    ];
    if n > 0 {
        attributes.push(number("http.request.resend_count", u16::try_from(n).unwrap_or(u16::MAX)));
    }
    attributes.extend(attempt.status.map(|status| number("http.response.status_code", status)));
    // An attempt that was not ended before the request ended with it; without a response it failed.
    let unanswered = attempt.status.is_none().then_some(trace.ended.outcome);
    let status = attempt.status.filter(|status| *status >= 400).map(|status| status.to_string());
    let error = attempt.error.or(unanswered).or(status.as_deref());
    attributes.extend(error.map(|error| text("error.type", error)));
    let ended_ns = attempt.ended_ns.unwrap_or(trace.ended_ns);
    Span {
        parent_span_id: trace.span_id.into(),
        flags: SAMPLED | PARENT_KNOWN,
        status: error.map(|_| error_status()),
        ..span(
            trace,
            trace.attempt_id(n),
            method.to_owned(),
            SpanKind::Client,
            (attempt.begun_ns, ended_ns),
            attributes,
        )
    }
}

fn span(
    trace: &RequestTrace,
    id: [u8; 8],
    name: String,
    kind: SpanKind,
    (begun_ns, ended_ns): (u64, u64),
    attributes: Vec<KeyValue>,
) -> Span {
    // The calendar says when the request arrived, the steady clock how long after that everything else happened.
    let arrived = u64::try_from(trace.arrived.wall.as_micros()).unwrap_or(0).saturating_mul(1_000);
    let at = |steady_ns: u64| arrived + steady_ns.saturating_sub(trace.arrived.steady_ns);
    Span {
        trace_id: trace.id.into(),
        span_id: id.into(),
        trace_state: trace.tracestate.clone().into(),
        name,
        kind: kind.into(),
        start_time_unix_nano: at(begun_ns),
        end_time_unix_nano: at(ended_ns),
        attributes,
        ..Span::default()
    }
}

fn error_status() -> Status {
    Status { code: StatusCode::Error.into(), message: String::new() }
}

/// The method according to the conventions, and the original one if they do not have it.
fn method(trace: &RequestTrace) -> (&str, Option<&str>) {
    if METHODS.contains(&&*trace.method) { (&trace.method, None) } else { ("_OTHER", Some(&trace.method)) }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u16) -> KeyValue {
    attribute(key, Value::IntValue(value.into()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
