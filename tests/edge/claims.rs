//! Forwarded header fields that backends trust: no client can forge them, a trusted proxy may set its own, and a route
//! passes those it names.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Origin, Request, route, stand, upstream};
use keygate::policy::keys::claims::CLAIMS;
use serde_json::json;

/// Fields that proxies, frameworks and authenticating gateways are known to read, besides those in the documentation.
const KNOWN: [&str; 62] = [
    "X-Forwarded",
    "X-Forwarded-By",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Email",
    "X-Forwarded-For-Original",
    "X-Forwarded-Groups",
    "X-Forwarded-Host",
    "X-Forwarded-Method",
    "X-Forwarded-Path",
    "X-Forwarded-Port",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Forwarded-Protocol",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarded-Tls-Client-Cert",
    "X-Forwarded-Uri",
    "X-Forwarded-Url",
    "X-Forwarded-User",
    "X-Forwarded-Access-Token",
    "X-Forward-For",
    "Forwarded",
    "Forwarded-For",
    "Forwarded-Proto",
    "X-Real-IP",
    "X-Original-URL",
    "X-Original-URI",
    "X-Original-Host",
    "X-Original-Forwarded-For",
    "X-Rewrite-URL",
    "X-Client-IP",
    "Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "Fastly-Client-IP",
    "Fly-Client-IP",
    "X-Cluster-Client-IP",
    "X-Envoy-External-Address",
    "X-Envoy-Original-Path",
    "X-Envoy-Internal",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Addr",
    "Remote-User",
    "Remote-Groups",
    "X-Auth-Request-User",
    "X-Auth-Request-Email",
    "X-Auth-Request-Access-Token",
    "X-WebAuth-User",
    "X-Consumer-Username",
    "X-Authenticated-Userid",
    "X-Goog-Authenticated-User-Email",
    "SSL-Client-Verify",
    "X-Client-Cert",
    "X-SSL-Client-S-DN",
    "Front-End-Https",
    "X-Url-Scheme",
    "X-Scheme",
    "X-Host",
    "Proxy",
];

/// The names in spellings that servers treat as the same name.
fn spellings() -> Vec<Vec<String>> {
    let listed = CLAIMS.iter().map(|claim| match claim.strip_suffix('*') {
        Some(front) => format!("{front}any"),
        None => (*claim).to_owned(),
    });
    let names: Vec<String> = KNOWN.iter().map(ToString::to_string).chain(listed).collect();
    let spell = |of: fn(&str) -> String| names.iter().map(|name| of(name)).collect::<Vec<_>>();
    let all = [
        spell(str::to_owned),
        spell(str::to_uppercase),
        spell(|name| name.replace('-', "_")),
        spell(|name| name.replacen('-', "_", 1)),
        spell(|name| name.replace('-', ".").to_lowercase()),
    ];
    // So many fields fit into one request.
    all.iter().flat_map(|names| names.chunks(70).map(<[String]>::to_vec)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_it_passes_from_a_client_in_any_spelling_over_either_http() {
    let (origin, gateway) = stand(H2C);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for names in spellings() {
        let mut first = Request::get("/v1/app/x").bearer(&secret).header("X-Kept", "kept");
        let mut second = request("GET", "/v1/app/x", &secret);
        second.headers_mut().insert("x-kept", "kept".parse().unwrap());
        for name in &names {
            first = first.header(name, "spoofed");
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            second.headers_mut().append(name, "spoofed".parse().unwrap());
        }
        let over_http1 = gateway.call(&first);
        assert_eq!(over_http1.status, 200, "{over_http1:?}");
        assert!(!origin.last().head.contains("spoofed"), "{}", origin.last().head);
        assert_eq!(client.call(second).await.unwrap().status, 200);
        let seen = origin.last();
        assert!(!seen.head.contains("spoofed"), "{}", seen.head);
        assert_eq!(seen.header("x-kept"), Some("kept"));
        for (name, value) in [
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "gateway.test"),
        ] {
            assert_eq!((seen.header(name), seen.times(name)), (Some(value), 1), "{name}");
        }
        assert_eq!(seen.times("x-forwarded-prefix"), 0);
    }
}

#[test]
fn the_documentation_lists_all_that_is_removed() {
    let docs =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/edge.md")).unwrap();
    let section = docs.split_once("## Header fields that backends trust").expect("the section").1;
    let section = section.split_once("\n## ").expect("its end").0;
    let lines = section.lines().skip_while(|line| !line.starts_with('|'));
    let table: String = lines.take_while(|line| line.starts_with('|')).collect();
    let mut listed: Vec<String> =
        table.split('`').skip(1).step_by(2).map(|name| name.to_lowercase().replace('…', "*")).collect();
    listed.sort();
    assert_eq!(listed, CLAIMS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_passes_what_it_names_and_nothing_else() {
    let origin = Origin::start();
    let pass = "end_user = \"header:X-Remote-User\"\n[routes.request_headers]\n\
                pass = [\"X-Forwarded-Port\", \"X-Original-URL\"]\nset = [\"X-Env: prod\"]\n";
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", "")
        + &route("pass", "/v1/pass/{rest*}", "app", pass)
        + H2C;
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let sent = [
        ("x-forwarded-port", "8443"),
        ("x_forwarded_port", "1"),
        ("x-original-url", "/o"),
        ("x-original-uri", "/u"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-remote-user", "ann"),
    ];
    for (target, passes) in [("/v1/app/x", false), ("/v1/pass/x", true)] {
        let mut first = Request::get(target).bearer(&secret);
        let mut second = request("GET", target, &secret);
        for (name, value) in sent {
            first = first.header(name, value);
            second.headers_mut().insert(name, value.parse().unwrap());
        }
        assert_eq!(gateway.call(&first).status, 200);
        assert_eq!(client.call(second).await.unwrap().status, 200);
        for seen in &origin.requests()[origin.count() - 2..] {
            let there = |name| seen.header(name).map(str::to_owned);
            let if_passed = |value: &str| passes.then(|| value.to_owned());
            assert_eq!(there("x-forwarded-port"), if_passed("8443"), "{}", seen.head);
            assert_eq!(there("x-original-url"), if_passed("/o"));
            // The route matches on it, so its backend gets the value that was matched.
            assert_eq!(there("x-remote-user"), if_passed("ann"));
            assert_eq!((there("x_forwarded_port"), there("x-original-uri")), (None, None));
            assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_says_what_else_was_forwarded_and_no_more() {
    let origin = Origin::start();
    let config = upstream("app", origin.address)
        + &route("app", "/v1/app/{rest*}", "app", "rewrite = \"/{rest}\"")
        + &route("plain", "/v1/plain/{rest*}", "app", "")
        + H2C
        + "trusted_proxies = [\"127.0.0.1\"]\n";
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({"rate_limit": 1000, "type": "service", "scopes": ["app"]})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for (target, prefix) in [("/v1/plain/x", "/outer/"), ("/v1/app/x", "/outer/v1/app")] {
        let sent = [
            ("x-forwarded-port", "8443"),
            ("x-forwarded-prefix", "/outer/"),
            ("x_forwarded_prefix", "/under"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-host", "other.test"),
            ("x-real-ip", "192.0.2.9"),
            ("forwarded", "for=192.0.2.9"),
            ("x-keygate-scopes", "all"),
        ];
        let mut first = Request::get(target).bearer(&secret);
        let mut second = request("GET", target, &secret);
        for (name, value) in sent {
            first = first.header(name, value);
            second.headers_mut().insert(name, value.parse().unwrap());
        }
        assert_eq!(gateway.call(&first).status, 200);
        assert_eq!(client.call(second).await.unwrap().status, 200);
        for seen in &origin.requests()[origin.count() - 2..] {
            for (name, value) in [
                ("x-forwarded-port", "8443"),
                ("x-forwarded-prefix", prefix),
                ("x-forwarded-for", "192.0.2.7"),
                ("x-forwarded-host", "gateway.test"),
                ("x-keygate-scopes", "app"),
            ] {
                assert_eq!((seen.header(name), seen.times(name)), (Some(value), 1), "{name}: {}", seen.head);
            }
            assert!(!seen.head.contains("/under") && !seen.head.contains("192.0.2.9"), "{}", seen.head);
        }
    }
}

#[test]
fn the_scheme_is_the_one_that_the_client_used() {
    let (origin, gateway) = stand("[proxy]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    for (hops, schemes, told) in [
        (None, &["https, http"][..], "https"),
        (None, &["https", "http"], "https"),
        (None, &["http, https"], "http"),
        (None, &["wss"], "https"),
        (None, &["WSS"], "https"),
        (None, &["ws"], "http"),
        (None, &["https"], "https"),
        (None, &["nonsense"], "http"),
        (Some("192.0.2.7"), &["https, http"], "https"),
        (Some("192.0.2.7, 10.1.1.1"), &["https, http"], "https"),
        // The first entry of each list was written by the client itself.
        (Some("203.0.113.1, 192.0.2.7, 10.1.1.1"), &["https, http, https"], "http"),
    ] {
        let mut request = Request::get("/v1/app/x").bearer(&secret);
        for value in schemes {
            request = request.header("X-Forwarded-Proto", value);
        }
        if let Some(hops) = hops {
            request = request.header("X-Forwarded-For", hops);
        }
        assert_eq!(gateway.call(&request).status, 200);
        let seen = origin.last();
        assert_eq!(
            (seen.header("x-forwarded-proto"), seen.times("x-forwarded-proto")),
            (Some(told), 1),
            "{hops:?} {schemes:?}"
        );
    }
}
