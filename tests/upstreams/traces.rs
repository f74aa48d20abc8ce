//! Traces: what a collector and a backend receive, and that a request waits for neither.

use crate::speaker::Authority;
use crate::support::{
    Gateway, Hold, Origin, PATIENCE, Raw, Request, ReservedPort, Spare, eventually, eventually_true,
    one_route, route, write_config,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// Sent at once, so that a test need not wait.
const AT_ONCE: &str = "batch_delay = \"10ms\"\n";

/// `[telemetry]` with a collector there, before everything in `config`.
fn to_collector(address: SocketAddr, more: &str, config: &str) -> String {
    format!("[telemetry]\nendpoint = \"http://{address}\"\n{more}\n{config}")
}

/// A collector, a backend, a gateway between them, and a key's secret.
fn traced(more: &str) -> (Origin, Origin, Gateway, String) {
    let (collector, backend) = (Origin::start(), Origin::start());
    let gateway = Gateway::start(&to_collector(collector.address, more, &one_route(backend.address)));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    (collector, backend, gateway, secret)
}

fn messages(collector: &Origin) -> Vec<ExportTraceServiceRequest> {
    let decode = |body: &[u8]| ExportTraceServiceRequest::decode(body).expect("a message of OTLP");
    collector.requests().iter().map(|received| decode(&received.body)).collect()
}

fn spans(collector: &Origin) -> Vec<Span> {
    let resources = messages(collector).into_iter().flat_map(|message| message.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

/// Waits for `n` spans.
#[track_caller]
fn wait_for_spans(collector: &Origin, n: usize) -> Vec<Span> {
    let spans = eventually("the collector has the spans", || {
        let so_far = spans(collector);
        (so_far.len() >= n).then_some(so_far)
    });
    assert_eq!(spans.len(), n, "{spans:#?}");
    spans
}

/// An attribute as text.
fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found: Vec<_> = attributes.iter().filter(|attribute| attribute.key == key).collect();
    assert!(found.len() <= 1, "{key} is there once: {found:?}");
    match found.first()?.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}

#[track_caller]
fn has(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(attribute(&span.attributes, key).as_deref(), Some(*value), "{key}");
    }
}

fn lacks(span: &Span, keys: &[&str]) {
    assert!(keys.iter().all(|key| attribute(&span.attributes, key).is_none()), "{span:#?}");
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == 2)
}

/// Spans by result.
fn count(gateway: &Gateway, result: &str) -> u64 {
    let text = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    let series = format!("keygate_telemetry_spans_total{{result=\"{result}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.expect("it is shown from the start").parse().expect("a number")
}

// === what is in them ===

#[test]
fn a_request_is_a_span_and_each_attempt_at_a_backend_one_below_it() {
    let (collector, backends) = (Origin::start(), [Origin::start(), Origin::start()]);
    backends[0].script(|_, _| Err(io::Error::other("gone")));
    let config = format!(
        "[[upstreams]]\nname = \"app\"\nservers = [\"{}\", \"localhost:{}\"]\n",
        backends[0].address,
        backends[1].address.port()
    ) + &route("chat", "/v1/app/{rest*}", "app", "");
    let resource = "service_name = \"edge\"\nattributes = [\"deployment.environment.name=test\"]\n";
    let node = "[node]\nname = \"n1\"\n";
    let gateway =
        Gateway::start(&to_collector(collector.address, &format!("{AT_ONCE}{resource}{node}"), &config));
    let key = gateway.create_key(json!({}));
    let request = Request::get("/v1/app/x?token=hidden")
        .bearer(&key.secret)
        .header("traceparent", PARENT)
        .header("tracestate", "vendor=1")
        .header("User-Agent", "tester/1");
    let response = gateway.call(&request);
    assert_eq!(response.status, 200);

    let spans = wait_for_spans(&collector, 3);
    let [server, first, second] = &spans[..] else { panic!("three spans") };
    assert!(spans.iter().all(|span| hex::encode(&span.trace_id) == TRACE && span.trace_state == "vendor=1"));
    assert_eq!((server.kind, first.kind, second.kind), (2, 3, 3), "one is the server's, two are a client's");
    assert_eq!(hex::encode(&server.parent_span_id), "00f067aa0ba902b7");
    assert!(first.parent_span_id == server.span_id && second.parent_span_id == server.span_id);
    assert!(first.span_id != second.span_id && spans.iter().all(|span| span.span_id.len() == 8));
    assert_eq!((server.flags, first.flags), (0x301, 0x101), "sampled; the parent is elsewhere, or here");
    // Each backend's span is a child of the attempt that reached it.
    for (backend, attempt) in backends.iter().zip([first, second]) {
        let told = backend.last();
        let expected = format!("00-{TRACE}-{}-01", hex::encode(&attempt.span_id));
        assert_eq!(
            (told.header("traceparent"), told.header("tracestate")),
            (Some(&*expected), Some("vendor=1"))
        );
    }

    assert_eq!((&*server.name, &*first.name), ("GET /v1/app/{rest*}", "GET"));
    let id = response.header("x-request-id").expect("an id");
    has(
        server,
        &[
            ("http.request.method", "GET"),
            ("http.route", "/v1/app/{rest*}"),
            ("http.response.status_code", "200"),
            ("url.path", "/v1/app/x"),
            ("url.scheme", "http"),
            ("server.address", "gateway.test"),
            ("client.address", "127.0.0.1"),
            ("user_agent.original", "tester/1"),
            ("network.protocol.version", "1.1"),
            ("keygate.key_id", &key.id),
            ("keygate.workspace_id", "default"),
            ("keygate.outcome", "served"),
            ("keygate.route", "chat"),
            ("keygate.request_id", id),
        ],
    );
    lacks(server, &["error.type", "url.query", "url.full"]);
    let port = backends[1].address.port().to_string();
    has(first, &[("error.type", "broke_off"), ("server.address", "127.0.0.1"), ("keygate.upstream", "app")]);
    has(
        second,
        &[
            ("http.request.resend_count", "1"),
            ("http.response.status_code", "200"),
            ("server.address", "localhost"),
            ("server.port", &port),
            ("network.peer.address", "127.0.0.1"),
            ("network.peer.port", &port),
        ],
    );
    lacks(first, &["http.response.status_code", "http.request.resend_count"]);
    lacks(second, &["error.type"]);
    assert!(is_error(first) && !is_error(second) && !is_error(server));
    let inside = |span: &Span| {
        server.start_time_unix_nano <= span.start_time_unix_nano
            && span.start_time_unix_nano <= span.end_time_unix_nano
            && span.end_time_unix_nano <= server.end_time_unix_nano
    };
    assert!(inside(first) && inside(second) && first.end_time_unix_nano <= second.start_time_unix_nano);

    let message = messages(&collector).remove(0);
    let resource = message.resource_spans[0].resource.clone().expect("a resource");
    for (key, value) in [
        ("service.name", "edge"),
        ("service.instance.id", "n1"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "test"),
    ] {
        assert_eq!(attribute(&resource.attributes, key).as_deref(), Some(value));
    }
    let sent = collector.last();
    assert_eq!((&*sent.method, &*sent.target), ("POST", "/v1/traces"));
    assert_eq!(sent.header("content-type"), Some("application/x-protobuf"));
    let body = String::from_utf8_lossy(&sent.body);
    assert!(!body.contains("hidden") && !body.contains(&key.secret) && !body.contains("Bearer"));
}

#[test]
fn a_refusal_is_a_span_without_one_below_it() {
    let (collector, backend, gateway, secret) = traced(AT_ONCE);
    let key = gateway.create_key(json!({"quota_limit": 1}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    wait_for_spans(&collector, 2);
    collector.forget();
    let busy = gateway.get("/v1/app/x", &key.secret);
    assert_eq!(busy.status, 429);
    let spans = wait_for_spans(&collector, 1);
    let expected =
        [("error.type", "quota_exceeded"), ("keygate.outcome", "denied"), ("keygate.key_id", &*key.id)];
    has(&spans[0], &expected);
    // The client is at fault, so the server span has no error.
    assert!(!is_error(&spans[0]) && spans[0].parent_span_id.is_empty());
    let id = busy.header("x-request-id").expect("an id").replace('-', "");
    assert_eq!(hex::encode(&spans[0].trace_id), id, "a trace that begins here has the id of its request");

    collector.forget();
    assert_eq!(gateway.call(&Request::new("BREW", "/nowhere").bearer("nonsense")).status, 404);
    let spans = wait_for_spans(&collector, 1);
    has(&spans[0], &[("http.request.method", "_OTHER"), ("http.request.method_original", "BREW")]);
    assert_eq!(spans[0].name, "_OTHER", "a client cannot make up names of spans");
    lacks(&spans[0], &["keygate.key_id", "http.route"]);

    collector.forget();
    backend.script(|_, _| Err(io::Error::other("gone")));
    assert_eq!(gateway.call(&Request::post("/v1/app/x", "once").bearer(&secret)).status, 502);
    let spans = wait_for_spans(&collector, 2);
    assert!(spans.iter().all(is_error));
    has(&spans[0], &[("error.type", "bad_gateway"), ("keygate.outcome", "upstream_failed")]);
}

// === which are recorded ===

#[test]
fn a_parent_decides_whether_a_request_is_recorded_unless_clients_are_not_to() {
    let unsampled = PARENT.replace("-01", "-00");
    for (more, given, told, recorded) in [
        ("", PARENT, None, true),
        ("", &*unsampled, Some(&*unsampled), false),
        ("sample = 1000000000\n", PARENT, None, true),
        ("sample = 1000000000\nfollow_parent = false\n", PARENT, Some(&*unsampled), false),
        ("follow_parent = false\n", &unsampled, None, true),
    ] {
        let (collector, backend, mut gateway, secret) = traced(&format!("{AT_ONCE}{more}"));
        let request = Request::get("/v1/app/x")
            .bearer(&secret)
            .header("traceparent", given)
            .header("tracestate", "a=1");
        assert_eq!(gateway.call(&request).status, 200);
        let seen = backend.last();
        let line = seen.header("traceparent").expect("a trace");
        assert_eq!(seen.header("tracestate"), Some("a=1"));
        assert!(line.contains(TRACE) && told.is_none_or(|told| told == line), "{more}{given}: {line}");
        // Recorded spans have been sent when the gateway has ended.
        gateway.stop();
        assert_eq!(spans(&collector).len(), if recorded { 2 } else { 0 }, "{more}{given}");
        assert_eq!(line.ends_with("-01"), recorded);
    }
}

#[test]
fn a_trace_that_begins_here_is_recorded_once_in_so_many_and_backends_are_told() {
    let (collector, backend, mut gateway, secret) = traced("sample = 4\n");
    for unsound in [None, Some("nonsense"), Some("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01")] {
        for _ in 0..200 {
            let request = Request::get("/v1/app/x").bearer(&secret).header("tracestate", "a=1");
            let request = unsound.map_or(request.clone(), |line| request.header("traceparent", line));
            assert_eq!(gateway.call(&request).status, 200);
        }
    }
    let told = |flag: &str| {
        let lines = backend.requests().into_iter().filter_map(|r| r.header("traceparent").map(str::to_owned));
        lines.filter(|line| line.ends_with(flag)).count()
    };
    assert!(backend.requests().iter().all(|r| r.header("tracestate").is_none()), "it belonged to no trace");
    gateway.stop();
    assert_eq!(spans(&collector).len(), 2 * told("-01"));
    assert_eq!(told("-01") + told("-00"), 600);
    assert!((100..=200).contains(&told("-01")), "a quarter of 600, about: {}", told("-01"));
}

#[test]
fn without_a_collector_backends_are_told_of_traces_all_the_same() {
    let backend = Origin::start();
    let gateway =
        Gateway::start(&format!("[telemetry]\nsample = 1000000000\n{}", one_route(backend.address)));
    let secret = gateway.create_key(json!({})).secret;
    gateway.get("/v1/app/x", &secret);
    assert!(backend.last().header("traceparent").expect("a trace").ends_with("-00"));
    gateway.call(&Request::get("/v1/app/x").bearer(&secret).header("traceparent", PARENT));
    assert_eq!(backend.last().header("traceparent"), Some(PARENT), "nobody is in between");
}

#[test]
fn a_line_of_the_access_log_names_the_request_and_its_trace() {
    let backend = Origin::start();
    let gateway =
        Gateway::start(&format!("[log]\naccess = true\nformat = \"json\"\n{}", one_route(backend.address)));
    let secret = gateway.create_key(json!({})).secret;
    let request = Request::get("/v1/app/x").bearer(&secret);
    let ids = [gateway.call(&request), gateway.call(&request.header("traceparent", PARENT))]
        .map(|response| response.header("x-request-id").expect("an id").to_owned());
    for (id, trace) in [(&ids[0], ids[0].replace('-', "")), (&ids[1], TRACE.to_owned())] {
        let line = eventually("the line", || {
            gateway.stderr().lines().find(|l| l.contains(&**id)).map(str::to_owned)
        });
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((line["request_id"].as_str(), line["trace_id"].as_str()), (Some(&**id), Some(&*trace)));
    }
}

// === nobody waits for a collector ===

#[test]
fn spans_beyond_the_queue_are_dropped_and_counted_without_delaying_requests() {
    let (collector, _backend, mut gateway, secret) =
        traced("queue_requests = 2\nbatch_requests = 1\nbatch_delay = \"10ms\"\n");
    let hold = Hold::new();
    collector.answer_after(&hold);
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    eventually_true("the collector is busy with the first", || collector.count() == 1);
    // While this export is in flight, so that no request waited for it.
    for _ in 0..5 {
        assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    }
    assert_eq!(collector.count(), 1);
    // A response ends a moment before its span.
    eventually_true("two of five wait, and three are dropped", || count(&gateway, "queue_full") == 3 * 2);
    hold.release();
    eventually_true("the others are sent", || count(&gateway, "sent") == 3 * 2);
    gateway.stop();
    assert_eq!(spans(&collector).len(), 3 * 2);
}

#[test]
fn an_unreachable_collector_affects_nobody_and_is_logged_once() {
    let (port, backend) = (ReservedPort::any(), Origin::start());
    let more = "batch_requests = 1\nbatch_delay = \"10ms\"\n";
    let mut gateway = Gateway::start(&to_collector(port.address, more, &one_route(backend.address)));
    let secret = gateway.create_key(json!({})).secret;
    for _ in 0..10 {
        assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    }
    eventually_true("it is told", || gateway.stderr().contains("OTLP export failed"));
    let begun = Spare::begin();
    assert!(gateway.stop().success());
    assert!(begun.elapsed() < PATIENCE / 4, "the end does not wait for it either");
    assert_eq!(gateway.stderr().matches("OTLP export failed").count(), 1);
}

#[test]
fn only_repeatable_requests_are_retried() {
    let (collector, _backend, gateway, secret) = traced(AT_ONCE);
    // Long enough that the collector accepts before the last try.
    collector.answer(503, &[("Retry-After", "1")], b"");
    gateway.get("/v1/app/x", &secret);
    eventually_true("it is sent again", || collector.count() >= 2);
    collector.answer(200, &[], b"");
    eventually_true("it is taken at last", || count(&gateway, "sent") == 2);
    assert_eq!(count(&gateway, "failed"), 0);
    eventually_true("both are told", || gateway.stderr().contains("OTLP export works again"));

    collector.forget();
    collector.answer(400, &[], b"");
    gateway.get("/v1/app/x", &secret);
    eventually_true("it is given up", || count(&gateway, "failed") == 2);
    assert_eq!(collector.count(), 1, "what a collector does not understand it will not understand later");

    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "no".into() };
    let answer = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    collector.answer(200, &[], answer.leak());
    gateway.get("/v1/app/x", &secret);
    eventually_true("one of two is taken", || count(&gateway, "rejected") == 1);
    assert_eq!(count(&gateway, "sent"), 3);
}

#[test]
fn the_last_spans_are_sent_at_the_end_those_of_requests_cut_off_too() {
    let (collector, backend, mut gateway, secret) =
        traced("batch_delay = \"300s\"\n[proxy]\ndrain_timeout = \"0s\"\n");
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    let hold = Hold::new();
    backend.answer_after(&hold);
    let mut cut = gateway.connect();
    cut.send(&Request::get("/v1/app/slow").bearer(&secret).bytes());
    eventually_true("it is at the backend", || backend.count() == 2);
    assert_eq!(spans(&collector).len(), 0, "they wait for others");
    assert!(gateway.stop().success());
    let spans = spans(&collector);
    assert_eq!(spans.len(), 4);
    let slow = spans.iter().find(|s| attribute(&s.attributes, "url.path").as_deref() == Some("/v1/app/slow"));
    has(
        slow.expect("the one that was cut off"),
        &[("keygate.outcome", "interrupted"), ("error.type", "interrupted")],
    );
    hold.release();
}

// === the collector's side ===

#[test]
fn headers_are_sent_inside_tls_and_are_nowhere_else() {
    // The collector is behind another gateway, which requires one of its keys.
    let (collector, backend, authority) = (Origin::start(), Origin::start(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let certified = authority.certify(&["localhost"]);
    std::fs::write(folder.path().join("front.pem"), certified.chain + &certified.key).unwrap();
    let front = format!(
        "[proxy]\nlisten_tls = [\"127.0.0.1:0\"]\ncertificates = [\"front.pem\"]\n\
         [[upstreams]]\nname = \"collector\"\nservers = [\"{}\"]\n{}",
        collector.address,
        route("otlp", "/v1/traces", "collector", "")
    );
    write_config(folder.path(), &front);
    let front = Gateway::run(folder).unwrap();
    let secret_of_collector = front.create_key(json!({"rate_limit": 1000})).secret;
    let port = front.ready["proxy_tls"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();

    let folder = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let config = format!(
        "[log]\nlevel = \"trace\"\n[telemetry]\nendpoint = \"https://localhost:{port}\"\nca_file = \"ca.pem\"\n{AT_ONCE}{}",
        one_route(backend.address)
    );
    write_config(folder.path(), &config);
    let headers = format!("X-Other: 1\nAuthorization: Bearer {secret_of_collector}\n");
    let variables = [("KEYGATE_TELEMETRY_HEADERS", headers.as_str())];
    let mut gateway = Gateway::run_with(Arc::clone(&folder), &variables).unwrap();
    let secret = gateway.create_key(json!({})).secret;
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    wait_for_spans(&collector, 2);
    assert_eq!(collector.last().header("x-other"), Some("1"));
    let metrics = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    gateway.stop();
    for (place, text) in [("the log", gateway.stderr()), ("the metrics", metrics)] {
        assert!(!text.contains(&secret_of_collector), "a secret is in {place}");
    }

    // The same from a file, which only its owner may read.
    let file = folder.path().join("headers");
    std::fs::write(&file, &headers).unwrap();
    write_config(folder.path(), &config.replace("ca_file", "headers_file = \"headers\"\nca_file"));
    let mode =
        |mode| std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o644);
    let refused = Gateway::run(Arc::clone(&folder)).err().expect("others can read it");
    assert!(refused.contains("chmod 600") && !refused.contains(&secret_of_collector), "{refused}");
    mode(0o600);
    std::fs::write(&file, "Authorization Bearer-hunter2").unwrap();
    let refused = Gateway::run(Arc::clone(&folder)).err().expect("it is no header");
    assert!(refused.contains("telemetry.headers_file") && refused.contains("line 1"), "{refused}");
    assert!(!refused.contains("hunter2"));
    std::fs::write(&file, &headers).unwrap();
    collector.forget();
    let gateway = Gateway::run(folder).unwrap();
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    wait_for_spans(&collector, 2);
}
