//! Settings of a route that change requests, and CORS settings: accepted and rejected values.

use super::{parse, told};
use keygate::config::RouteConfig;
use keygate::policy::http::cors::Origins;
use keygate::policy::routing::forward::HostRule;

/// One route with these further lines, of which the first is the eighth of the file.
fn route(more: &str) -> String {
    let upstream = "[[upstreams]]\nname = \"a\"\nservers = [\"h:1\"]\n";
    format!("{upstream}[[routes]]\npath = \"/v1/{{id}}/{{rest*}}\"\nupstream = \"a\"\nscopes = []\n{more}\n")
}

fn read(more: &str) -> RouteConfig {
    parse(&route(more)).expect("it loads").routes.remove(0)
}

#[test]
fn a_route_says_what_it_changes() {
    let plain = read("");
    assert_eq!(
        (plain.forward, plain.cors),
        (keygate::policy::routing::forward::ForwardRules::default(), None)
    );
    let route = read(
        "rewrite = \"/in/{id}/{rest}\"\nhost = \"name:[::1]:80\"\n\
         [routes.request_headers]\npass = [\"X-Forwarded-Port\"]\nset = [\"Authorization:  Bearer x \", \"X-Empty:\"]\n\
         [routes.response_headers]\nremove = [\"server\"]\n\
         [routes.cors]\norigins = [\"https://*.a.example\"]\ncredentials = true\nexpose = [\"X-Mine\"]\n",
    );
    assert!(route.forward.rewrite.is_some());
    assert_eq!(
        *read("forward_metadata = [\"Max_Tokens\"]").forward.metadata,
        [("Max_Tokens".into(), "x-keygate-metadata-max-tokens".parse().expect("a name"))]
    );
    assert!(matches!(&route.forward.host, HostRule::Fixed(host) if host == "[::1]:80"));
    let set: Vec<_> = route.forward.request.set.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
    assert_eq!(set, [("authorization", &b"Bearer x"[..]), ("x-empty", b"")]);
    assert!(!format!("{:?}", route.forward).contains("Bearer"), "a backend's credential is not shown");
    assert_eq!(route.forward.response.remove[0], "server");
    assert_eq!(*route.forward.pass, ["x-forwarded-port"]);
    let cors = route.cors.expect("rules");
    assert!(matches!(cors.origins, Origins::Listed(rules) if rules.len() == 1));
    assert!(cors.credentials && cors.expose.to_str().is_ok_and(|e| e.ends_with(", x-mine")));
}

#[test]
fn each_mistake_of_what_a_route_changes_is_told() {
    let name = "must be the name of a header that is not about framing, the connection or the trace, and that Keygate does not set by itself";
    let field = "must be \"NAME: VALUE\" with a header that is not about framing, the connection or the trace, and that Keygate does not set by itself";
    let answer = "must be \"NAME: VALUE\" with a header that is not about framing or the connection, and that Keygate does not set by itself";
    let claim = "must be the name of a header that is removed otherwise and that Keygate does not set, such as \"X-Forwarded-Port\" (docs/reference/edge.md has all)";
    let origin = "must be an origin in lower case such as \"https://app.example\" or \"https://*.example:8443\", or \"*\"";
    let in_request = |key: &str, item: &str| format!("[routes.request_headers]\n{key} = [\"{item}\"]");
    for (more, expected) in [
        (
            "rewrite = \"/a/../{rest}\"".to_owned(),
            "8:11 routes[0].rewrite: must be a path such as \"/internal/{id}/{rest}\": whole segments, each canonical or a parameter of the route's path, or \"\" for none".to_owned(),
        ),
        (
            "host = \"backend\"".to_owned(),
            "8:8 routes[0].host: must be \"client\", \"server\", or \"name:HOST\" with a host and perhaps a port".to_owned(),
        ),
        (in_request("remove", "X_Forwarded_For"), format!("9:11 routes[0].request_headers.remove[0]: {name}")),
        (in_request("set", "X-Keygate-Key-Id: 1"), format!("9:8 routes[0].request_headers.set[0]: {field}")),
        (in_request("set", "Transfer-Encoding: chunked"), format!("9:8 routes[0].request_headers.set[0]: {field}")),
        (in_request("set", "traceparent: 0"), format!("9:8 routes[0].request_headers.set[0]: {field}")),
        (in_request("add", "X-A"), format!("9:8 routes[0].request_headers.add[0]: {field}")),
        (in_request("add", "X-A: a\\r\\nX-B: b"), format!("9:8 routes[0].request_headers.add[0]: {field}")),
        (in_request("pass", "X-Api"), format!("9:9 routes[0].request_headers.pass[0]: {claim}")),
        (in_request("pass", "X-Forwarded-For"), format!("9:9 routes[0].request_headers.pass[0]: {claim}")),
        (in_request("pass", "X_Forwarded_Port"), format!("9:9 routes[0].request_headers.pass[0]: {claim}")),
        (
            "encoded_slash = \"yes\"".to_owned(),
            "8:17 routes[0].encoded_slash: must be one of: refuse, keep".to_owned(),
        ),
        (
            "[routes.response_headers]\nset = [\"X-RateLimit-Limit-QPS: 9\"]".to_owned(),
            format!("9:8 routes[0].response_headers.set[0]: {answer}"),
        ),
        ("[routes.cors]\norigins = [\"https://A.example\"]".to_owned(), format!("9:12 routes[0].cors.origins[0]: {origin}")),
        ("[routes.cors]\norigins = [\"null\"]".to_owned(), format!("9:12 routes[0].cors.origins[0]: {origin}")),
        (
            "[routes.cors]\norigins = [\"*\", \"https://a.example\"]".to_owned(),
            "9:11 routes[0].cors.origins: must be \"*\" alone, or without it".to_owned(),
        ),
        (
            "[routes.cors]\norigins = [\"*\"]\ncredentials = true".to_owned(),
            "10:15 routes[0].cors.credentials: must be false while origins is \"*\": name the origins".to_owned(),
        ),
    ] {
        assert_eq!(told(parse(&route(&more))), [expected], "{more}");
    }
}
