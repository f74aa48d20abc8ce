//! What a route changes in a request: the path, the `Host`, header fields, and what it cannot change.

use crate::support::{Gateway, Origin, Request, route, upstream};
use serde_json::json;

fn stand(path: &str, more: &str) -> (Origin, Gateway, String) {
    let origin = Origin::start();
    let gateway = Gateway::start(&(upstream("app", origin.address) + &route("app", path, "app", more)));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    (origin, gateway, secret)
}

#[test]
fn the_backend_gets_the_path_that_the_route_makes() {
    let (origin, gateway, secret) =
        stand("/v1/app/{app_id}/{rest*}", "rewrite = \"/internal/{app_id}/api/{rest}\"");
    for (sent, got) in [
        ("/v1/app/a1/chat/x?q=%61&r", "/internal/a1/api/chat/x?q=%61&r"),
        ("/v1/app/a1/", "/internal/a1/api/"),
        ("/v1/app/%61%201/x%2Bb", "/internal/a%201/api/x%2Bb"),
        ("/v1/app/a1/x?", "/internal/a1/api/x?"),
    ] {
        assert_eq!(gateway.get(sent, &secret).status, 200, "{sent}");
        assert_eq!(origin.last().target.trim_end_matches('?'), got.trim_end_matches('?'), "{sent}");
    }
    assert_eq!(gateway.get("/v1/app/a1/..%2Fx", &secret).status, 400);
    // The record has the path that the client requested.
    let key = gateway.create_key(json!({}));
    gateway.get("/v1/app/a1/x", &key.secret);
    assert_eq!(gateway.wait_for_logs(&key, 1)[0]["endpoint"], "/v1/app/a1/x");
}

#[test]
fn the_backend_gets_the_host_that_the_route_says() {
    for (rule, own) in
        [("client", None), ("server", Some("")), ("name:backend.internal:81", Some("backend.internal:81"))]
    {
        let (origin, gateway, secret) = stand("/v1/app/{rest*}", &format!("host = \"{rule}\""));
        assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
        let server = origin.address.to_string();
        let expected = own.map_or("gateway.test", |own| if own.is_empty() { &server } else { own });
        assert_eq!(origin.last().header("host"), Some(expected), "{rule}");
        assert_eq!(origin.last().times("host"), 1);
        assert_eq!(origin.last().header("x-forwarded-host"), Some("gateway.test"), "{rule}");
    }
}

#[test]
fn fields_are_removed_then_set_then_added() {
    let rules = "[routes.request_headers]\nremove = [\"X-Debug\", \"X-Both\"]\n\
                 set = [\"X-Env: prod\", \"Authorization: Bearer of-the-backend\", \"X-Both: new\"]\nadd = [\"X-Env: eu\"]\n\
                 [routes.response_headers]\nremove = [\"Server\"]\nset = [\"Cache-Control: no-store\"]\nadd = [\"X-Seen: 2\"]\n";
    let (origin, gateway, secret) = stand("/v1/app/{rest*}", rules);
    origin.answer(200, &[("Server", "secret/1.0"), ("Cache-Control", "public"), ("X-Seen", "1")], b"");
    let request = Request::get("/v1/app/x").bearer(&secret);
    let request = request.header("X-Debug", "1").header("X-Env", "client").header("X-Both", "old");
    let response = gateway.call(&request);
    let got = origin.last();
    let all = |name: &str| -> Vec<String> {
        got.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone()).collect()
    };
    assert_eq!(all("x-debug"), Vec::<String>::new());
    assert_eq!(all("x-env"), ["prod", "eu"]);
    assert_eq!(all("x-both"), ["new"]);
    assert_eq!(all("authorization"), ["Bearer of-the-backend"], "the client's secret is not it");
    assert_eq!(response.header("server"), None);
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let seen: Vec<_> = response.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("x-seen")).collect();
    assert_eq!(seen.len(), 2);
    assert!(response.header("x-request-id").is_some() && response.header("x-ratelimit-limit-qps").is_some());
}

#[test]
fn a_path_that_the_route_cannot_make_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = upstream("app", "127.0.0.1:1".parse().unwrap())
        + &route("app", "/v1/{id}/{rest*}", "app", "rewrite = \"/{rest}/{other}\"");
    std::fs::write(folder.path().join("keygate.toml"), config).unwrap();
    let checked = crate::support::keygate(folder.path(), &["check", "--config", "keygate.toml"]);
    assert_eq!(checked.code, Some(64), "{checked:?}");
    for expected in [
        "routes[0].rewrite: `rest` stands for any rest, so it must come last",
        "routes[0].rewrite: `other` is not a parameter of `/v1/{id}/{rest*}`",
    ] {
        assert!(checked.stderr.contains(expected), "{}", checked.stderr);
    }
}
