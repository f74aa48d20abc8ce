//! Decisions for Envoy over gRPC: the same verdicts, charges, records and refusals as over HTTP/1.1, and a status of gRPC for
//! whatever states no request.

use crate::decide::{comparable, decide_at};
use crate::http2::Client;
use crate::limits::metric;
use crate::support::{Gateway, Key, Origin, Raw, Request, Response, eventually_true, one_route, route};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use serde_json::json;

const DECIDE: &str = "[decide]\nlisten = [\"127.0.0.1:0\"]\n";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const CLIENT: &str = "192.0.2.7";

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    denied: Option<Denied>,
    #[prost(message, optional, tag = "3")]
    ok: Option<Passed>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<Header>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, Message)]
struct Passed {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<Header>,
    #[prost(string, repeated, tag = "5")]
    remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    to_client: Vec<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(message, optional, tag = "1")]
    line: Option<Line>,
    #[prost(message, optional, tag = "2")]
    append: Option<Append>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Append {
    #[prost(bool, tag = "1")]
    value: bool,
}

/// A field of a message, which is text or a message.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut bytes).unwrap();
    bytes.extend_from_slice(content);
    bytes
}

/// A message that asks about a request.
struct Ask {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    source: &'static str,
    body: &'static str,
    is_raw: bool,
}

impl Ask {
    fn about(method: &'static str, path: &str) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), source: CLIENT, body: "", is_raw: false }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn bearer(self, secret: &str) -> Self {
        self.header("authorization", &format!("Bearer {secret}"))
    }

    fn message(&self) -> Vec<u8> {
        let mut http = [field(2, self.method.as_bytes()), field(4, self.path.as_bytes())].concat();
        http.extend(field(5, b"api.test"));
        let line = |(name, value): &(String, String)| {
            [field(1, name.as_bytes()), field(if self.is_raw { 3 } else { 2 }, value.as_bytes())].concat()
        };
        if self.is_raw {
            let lines: Vec<u8> = self.headers.iter().flat_map(|header| field(1, &line(header))).collect();
            http.extend(field(13, &lines));
        } else {
            http.extend(self.headers.iter().flat_map(|header| field(3, &line(header))));
        }
        http.extend(field(11, self.body.as_bytes()));
        let address = field(1, &field(1, &field(2, self.source.as_bytes())));
        field(1, &[field(1, &address), field(4, &field(2, &http))].concat())
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// Status, head and trailers together, and body of the answer to a call.
async fn call(gateway: &Gateway, path: &str, body: Vec<u8>) -> (u16, HeaderMap, Vec<u8>) {
    let mut client = Client::connect(decide_at(gateway)).await;
    let request = http::Request::post(format!("http://keygate.test{path}"))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (response, mut stream) = client.begin(request.body(()).unwrap(), false).await;
    // In two parts, as a slow proxy would send it. One that is refused before its end may be reset.
    let (first, rest) = body.split_at(body.len() / 2);
    stream.send_data(Bytes::copy_from_slice(first), false).ok();
    stream.send_data(Bytes::copy_from_slice(rest), true).ok();
    let (head, mut stream) = response.await.expect("an answer").into_parts();
    let mut fields = head.headers;
    let mut body = Vec::new();
    while let Some(part) = stream.data().await {
        body.extend_from_slice(&part.expect("a part"));
    }
    if let Some(trailers) = stream.trailers().await.expect("trailers") {
        fields.extend(trailers);
    }
    (head.status.as_u16(), fields, body)
}

async fn ask(gateway: &Gateway, ask: &Ask) -> CheckResponse {
    let (status, fields, body) = call(gateway, CHECK, framed(&ask.message())).await;
    assert_eq!((status, &fields["grpc-status"]), (200, &"0".parse().unwrap()), "{fields:?}");
    assert_eq!(fields["content-type"], "application/grpc");
    assert_eq!(&body[..5], &framed(&body[5..])[..5]);
    CheckResponse::decode(&body[5..]).expect("a message")
}

fn lines(headers: &[Header]) -> Vec<(String, String)> {
    let mut lines: Vec<_> =
        headers.iter().map(|h| h.line.clone().expect("a line")).map(|l| (l.key, l.value)).collect();
    lines.sort();
    lines
}

fn started(more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let gateway = Gateway::start(&(one_route(origin.address) + more + DECIDE));
    (origin, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_over_grpc_is_the_one_that_the_client_would_get_from_the_proxy() {
    let more = route("deep", "/deep/{id}", "app", "resource = \"path:id\"\nerrors = \"openai\"");
    let (origin, gateway) = started(&more);
    let key = gateway.create_key(json!({}));
    let bound = gateway.create_key(json!({"type": "rag", "resource_id": "r"}));
    let spent = gateway.create_key(json!({"quota_limit": 1}));
    assert_eq!(gateway.get("/v1/app/x", &spent.secret).status, 200);
    let requests = [
        ("GET", "/nowhere", &key),
        ("GET", "/v1/app/%2e%2e/admin", &key),
        ("GET", "/v1/app//x", &key),
        ("GET", "/v1/app/a%2Fb", &key),
        ("TRACE", "/v1/app/x", &key),
        ("HEAD", "/nowhere", &key),
        ("GET", "/v1/app/x", &bound),
        ("GET", "/deep/other", &bound),
        ("GET", "/v1/app/x", &spent),
        ("GET", "/v1/app/x", &Key { id: String::new(), secret: "nonsense".into() }),
    ];
    for (method, target, key) in requests {
        let forwarded = gateway.call(&Request::new(method, target).bearer(&key.secret));
        assert!(forwarded.status >= 400, "{method} {target}: {forwarded:?}");
        let decided = ask(&gateway, &Ask::about(method, target).bearer(&key.secret)).await;
        let status = decided.status.expect("a status").code;
        assert!(status != 0 && decided.ok.is_none(), "{method} {target}: {status}");
        let denied = decided.denied.expect("a refusal");
        let decided = Response {
            status: denied.status.expect("a status").code.try_into().unwrap(),
            headers: lines(&denied.headers),
            body: denied.body.into_bytes(),
        };
        assert_eq!(comparable(&forwarded), comparable(&decided), "{method} {target}");
    }
    assert_eq!(origin.requests().len(), 1, "decisions forward nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_passes_is_changed_to_what_a_backend_of_keygate_gets() {
    let (origin, gateway) = started("");
    let key = gateway.create_key(json!({"daily_request_limit": 10}));
    let claims = [("x-keygate-key-id", "me"), ("x-keygate-scopes", "all"), ("X_Keygate-Fake", "x")];
    let mut request = Request::get("/v1/app/x").bearer(&key.secret).header("X-API-Key", &key.secret);
    for (name, value) in claims {
        request = request.header(name, value);
    }
    let forwarded = gateway.call(&request);
    let told = origin.last();
    for (n, is_raw) in (1..).zip([false, true]) {
        let mut asked = Ask::about("POST", "/v1/app/x?y=z").bearer(&key.secret);
        asked = asked.header("x-api-key", &key.secret).header(":authority", "api.test");
        for (name, value) in claims {
            asked = asked.header(&name.to_lowercase(), value);
        }
        asked.is_raw = is_raw;
        let decided = ask(&gateway, &asked).await;
        assert_eq!((decided.status, decided.denied), (Some(Status { code: 0 }), None));
        let passed = decided.ok.expect("it passes");
        assert!(passed.headers.iter().all(|h| h.append == Some(Append { value: false })), "they replace");
        let identity = |lines: Vec<(String, String)>| {
            let lines = lines.into_iter().map(|(name, value)| (name.to_lowercase(), value));
            let mut lines: Vec<_> = lines.filter(|(name, _)| name.starts_with("x-keygate-")).collect();
            lines.sort();
            lines
        };
        assert_eq!(identity(lines(&passed.headers)), identity(told.headers.clone()));
        let mut remove = passed.remove.clone();
        remove.sort();
        // Nobody is named as the end user, and no client may name one where Envoy does not tell what it has sent.
        let end_user = ["x-keygate-end-user-id", "x-keygate-end-user-other-id"];
        let wanted = ["authorization", "x-api-key", end_user[0], end_user[1], "x_keygate-fake"];
        assert_eq!(remove, wanted);
        let left = lines(&passed.to_client);
        let is_ours = |name: &str| name == "x-request-id" || name.contains("ratelimit");
        assert!(left.iter().all(|(name, _)| is_ours(name)), "the response is the backend's: {left:?}");
        let left = left.iter().find(|(name, _)| name == "x-ratelimit-remaining-day").expect("what is left");
        assert_eq!(left.1, (forwarded.number("x-ratelimit-remaining-day") - n).to_string());
    }
    let rows = gateway.wait_for_logs(&key, 3);
    let decided: Vec<_> = rows.iter().filter(|row| row["outcome"] == "decided").collect();
    assert_eq!(decided.len(), 2, "{rows:?}");
    for row in decided {
        for (field, value) in [
            ("method", json!("POST")),
            ("endpoint", json!("/v1/app/x")),
            ("route", json!("app")),
            ("status_code", json!(200)),
            ("ip_address", json!(CLIENT)),
        ] {
            assert_eq!(row[field], value, "{field}: {row}");
        }
    }
    eventually_true("nothing is in flight", || metric(&gateway, "keygate_requests_in_flight") == 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_the_source_or_whom_a_trusted_proxy_before_envoy_names() {
    let (_origin, gateway) = started("[proxy]\ntrusted_proxies = [\"198.51.100.0/24\"]\n");
    let key = gateway.create_key(json!({"allowed_ips": ["192.0.2.0/24"]}));
    for (source, forwarded_for, passes) in [
        ("192.0.2.7", "203.0.113.9", true),
        ("203.0.113.9", "192.0.2.7", false),
        ("198.51.100.1", "192.0.2.7", true),
        ("198.51.100.1", "203.0.113.9, 192.0.2.7, 198.51.100.1", true),
        ("198.51.100.1", "192.0.2.7, 203.0.113.9", false),
        ("@pipe", "192.0.2.7", true),
        ("@pipe", "203.0.113.9", false),
    ] {
        let mut asked = Ask::about("GET", "/v1/app/x").bearer(&key.secret);
        asked = asked.header("x-forwarded-for", forwarded_for);
        asked.source = source;
        let decided = ask(&gateway, &asked).await;
        assert_eq!(decided.ok.is_some(), passes, "{source} {forwarded_for}: {decided:?}");
    }
    let mut asked = Ask::about("GET", "/v1/app/x").bearer(&key.secret);
    asked.source = "@pipe";
    let (_, fields, body) = call(&gateway, CHECK, framed(&asked.message())).await;
    assert_eq!((&fields["grpc-status"], body.len()), (&"3".parse().unwrap(), 0), "{fields:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_user_in_the_body_is_found_in_the_body_that_was_sent_along() {
    let origin = Origin::start();
    let more = "end_user = \"body:user\"\n";
    let gateway = Gateway::start(
        &(crate::support::upstream("app", origin.address)
            + &route("app", "/v1/{rest*}", "app", more)
            + DECIDE),
    );
    let key = gateway.create_key(json!({}));
    let asked = |body, length: &str| {
        let mut asked = Ask::about("POST", "/v1/x").bearer(&key.secret);
        asked = asked.header("content-type", "application/json").header("content-length", length);
        asked.body = body;
        asked
    };
    let whole = ask(&gateway, &asked("{\"user\": \"u\"}", "13")).await.ok.expect("it passes");
    let user = lines(&whole.headers).into_iter().find(|(name, _)| name == "x-keygate-end-user-other-id");
    assert_eq!(user.expect("an end user").1, "u");
    let part = ask(&gateway, &asked("{\"user\": \"u\"", "13")).await.denied.expect("a refusal");
    assert_eq!(part.status.expect("a status").code, 413);
    // Where no length tells, Envoy says that it has cut the body off.
    let mut cut = Ask::about("POST", "/v1/x").bearer(&key.secret).header("content-type", "application/json");
    cut = cut.header("transfer-encoding", "chunked").header("x-envoy-auth-partial-body", "true");
    cut.body = "{\"user\": \"u\"}";
    let cut = ask(&gateway, &cut).await.denied.expect("a refusal");
    assert_eq!(cut.status.expect("a status").code, 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_states_no_request_gets_a_status_of_grpc_and_no_decision() {
    let (origin, gateway) = started("[proxy]\nend_user_body_bytes = \"1KiB\"\nmax_header_bytes = \"1KiB\"\n");
    let whole = framed(&Ask::about("GET", "/v1/app/x").message());
    let empty_request = field(1, &field(4, &[]));
    let mut compressed = whole.clone();
    compressed[0] = 1;
    let injected = Ask::about("GET", "/v1/app/x").header("a", "b\r\nx-api-key: k");
    let deep = (0..200).fold(Vec::new(), |inner: Vec<u8>, _| field(1, &inner));
    for (what, path, body, status) in [
        ("another method", "/grpc.health.v1.Health/Check", whole.clone(), "12"),
        ("a compressed message", CHECK, compressed, "12"),
        ("nothing", CHECK, Vec::new(), "3"),
        ("half a prefix", CHECK, vec![0, 0], "3"),
        ("half a message", CHECK, whole[..whole.len() - 1].to_vec(), "3"),
        ("two messages", CHECK, [&whole[..], &whole].concat(), "3"),
        ("garbage", CHECK, framed(&[0xff; 64]), "3"),
        ("a deep message", CHECK, framed(&deep), "3"),
        ("no attributes", CHECK, framed(&[]), "3"),
        ("no request", CHECK, framed(&empty_request), "3"),
        ("no method", CHECK, framed(&Ask::about("", "/v1/app/x").message()), "3"),
        ("no path", CHECK, framed(&Ask::about("GET", "").message()), "3"),
        ("a field that ends its line", CHECK, framed(&injected.message()), "3"),
        ("too much", CHECK, framed(&vec![0; 200_000]), "8"),
    ] {
        let (http, fields, body) = call(&gateway, path, body).await;
        assert_eq!((http, &fields["grpc-status"]), (200, &status.parse().unwrap()), "{what}: {fields:?}");
        assert!(fields.contains_key("grpc-message") && body.is_empty(), "{what}");
    }
    let mut client = Client::connect(decide_at(&gateway)).await;
    let answer = client.call(crate::http2::request("GET", "/decide/request/x", "k")).await.unwrap();
    assert_eq!(answer.status, 415, "{answer:?}");
    // HTTP/1.1 is served at the same address as before, and what only begins like HTTP/2 is not taken for it.
    let asked = Request::get("/decide/request/v1/app/x").header("X-Forwarded-For", CLIENT);
    assert_eq!(Raw::connect(decide_at(&gateway)).call(&asked).status, 401);
    let mut raw = Raw::connect(decide_at(&gateway));
    raw.send(b"PRI * HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(raw.response().status, 400);
    assert_eq!(origin.requests().len(), 0);
}
