//! Permissions of a key: its scopes, the resource it is bound to, the addresses it may be used from.

use crate::support::{Gateway, Origin, Request, one_route, route, stand};
use serde_json::json;

#[test]
fn a_route_asks_for_scopes_and_a_key_grants_them() {
    let origin = Origin::start();
    let config = one_route(origin.address)
        + &route("rag", "/v1/rag", "app", "scopes = [\"rag\"]")
        + &route("both", "/v1/both", "app", "scopes = [\"app\", \"memory\"]")
        + &route("any", "/v1/any", "app", "scopes = []");
    let gateway = Gateway::start(&config);
    let key = |fields| gateway.create_key(fields).secret;
    let app = key(json!({"type": "app", "resource_id": "a"}));
    let rag = key(json!({"type": "rag", "resource_id": "a"}));
    let agent = key(json!({"type": "agent", "resource_id": "a"}));
    let service = key(json!({}));
    let narrow = key(json!({"scopes": ["memory"]}));
    let wild = key(json!({"scopes": ["a*", "mem*"]}));
    let none = key(json!({"scopes": []}));
    let rows = [
        ("app", &app, [200, 403, 403, 200]),
        ("rag", &rag, [403, 200, 403, 200]),
        ("agent", &agent, [200, 403, 403, 200]),
        ("service", &service, [200, 200, 200, 200]),
        ("service with one scope", &narrow, [403, 403, 403, 200]),
        ("service with wildcards", &wild, [200, 403, 200, 200]),
        ("service without a scope", &none, [403, 403, 403, 200]),
    ];
    for (what, secret, expected) in rows {
        let got = ["/v1/app/x", "/v1/rag", "/v1/both", "/v1/any"].map(|t| gateway.get(t, secret).status);
        assert_eq!(got, expected, "{what}");
    }
    let refused = gateway.get("/v1/both", &narrow);
    assert_eq!(refused.fault(), (403, 3012, "api_key_invalid_scope".into()));
    assert_eq!(refused.data()["missing_scopes"], json!(["app"]));
}

#[test]
fn a_bound_key_reaches_its_own_resource_named_in_the_path_and_a_service_key_every_one() {
    let origin = Origin::start();
    let bound = route("bound", "/v1/of/{id}/{rest*}", "app", "resource = \"path:id\"");
    let gateway = Gateway::start(&(one_route(origin.address) + &bound));
    let own = gateway.create_key(json!({"type": "app", "resource_id": "r 文/1"})).secret;
    let plain = gateway.create_key(json!({"type": "workflow", "resource_id": "r1"})).secret;
    let service = gateway.create_key(json!({})).secret;
    for (target, secret, status) in [
        ("/v1/of/r1/chat", &plain, 200),
        ("/v1/of/%721/chat", &plain, 200),
        ("/v1/of/r2/chat", &plain, 403),
        ("/v1/of/R1/chat", &plain, 403),
        ("/v1/of/r1%20/chat", &plain, 403),
        ("/v1/of/r1;x/chat", &plain, 403),
        ("/v1/of/r2/chat", &service, 200),
        ("/v1/app/anything", &plain, 200),
        // A slash cannot be inside one segment, so this resource cannot be reached by a path.
        ("/v1/of/r%20%E6%96%87/1", &own, 403),
    ] {
        let response = gateway.get(target, secret);
        assert_eq!(response.status, status, "{target}");
        if status == 403 {
            assert_eq!(response.fault(), (403, 3013, "api_key_invalid_resource".into()), "{target}");
        }
    }
}

#[test]
fn scopes_are_words_of_the_operators_own() {
    let origin = Origin::start();
    let config = one_route(origin.address)
        + &route("read", "/orders/{rest*}", "app", "methods = [\"GET\"]\nscopes = [\"orders:read\"]")
        + &route("write", "/orders/{rest*}", "app", "methods = [\"POST\"]\nscopes = [\"orders:write\"]");
    let gateway = Gateway::start(&config);
    for (scopes, read, write) in [
        (json!(["orders:read"]), 200, 403),
        (json!(["orders:read", "orders:write"]), 200, 200),
        (json!(["orders:*"]), 200, 200),
        (json!(["orders"]), 403, 403),
    ] {
        let secret = gateway.create_key(json!({"scopes": scopes})).secret;
        let ask = |method| gateway.call(&Request::new(method, "/orders/1").bearer(&secret)).status;
        assert_eq!((ask("GET"), ask("POST")), (read, write), "{scopes}");
    }
    let secret = gateway.create_key(json!({"scopes": ["orders:*", "a.b/c"]})).secret;
    assert_eq!(gateway.get("/orders/1", &secret).status, 200);
    assert_eq!(origin.last().header("x-keygate-scopes"), Some("a.b/c,orders:*"));
}

#[test]
fn a_bound_key_has_nothing_to_do_on_a_route_that_names_no_resource() {
    let origin = Origin::start();
    let config = one_route(origin.address) + &route("none", "/v1/none", "app", "resource = \"none\"");
    let gateway = Gateway::start(&config);
    let bound = gateway.create_key(json!({"type": "app", "resource_id": "r1"})).secret;
    let service = gateway.create_key(json!({})).secret;
    assert_eq!(gateway.get("/v1/none", &bound).fault(), (403, 3013, "api_key_invalid_resource".into()));
    assert_eq!(gateway.get("/v1/none", &service).status, 200);
    assert_eq!(gateway.get("/v1/app/x", &bound).status, 200, "this one says resource = any");
}

#[test]
fn an_escaped_resource_in_the_path_is_compared_as_the_text_it_stands_for() {
    let origin = Origin::start();
    let bound = route("bound", "/v1/of/{id}", "app", "resource = \"path:id\"");
    let gateway = Gateway::start(&(one_route(origin.address) + &bound));
    let key = gateway.create_key(json!({"type": "app", "resource_id": "知识库 1%"})).secret;
    let escaped = "/v1/of/%E7%9F%A5%E8%AF%86%E5%BA%93%201%25";
    assert_eq!(gateway.get(escaped, &key).status, 200);
    assert_eq!(gateway.get(&escaped.to_lowercase(), &key).status, 200, "in whatever case the escapes are");
    assert_eq!(gateway.get("/v1/of/%E7%9F%A5", &key).status, 403);
    assert_eq!(
        origin.last().header("x-keygate-resource-id"),
        Some("%E7%9F%A5%E8%AF%86%E5%BA%93%201%25"),
        "a header carries it escaped"
    );
}

#[test]
fn a_bound_key_reaches_its_own_resource_named_in_a_header() {
    let origin = Origin::start();
    let bound = route("bound", "/v1/of", "app", "resource = \"header:X-App-Id\"");
    let gateway = Gateway::start(&(one_route(origin.address) + &bound));
    let key = gateway.create_key(json!({"type": "app", "resource_id": "r1"})).secret;
    let service = gateway.create_key(json!({})).secret;
    let ask = |secret: &str, ids: &[&str]| {
        let request = Request::get("/v1/of").bearer(secret);
        gateway.call(&ids.iter().fold(request, |request, id| request.header("X-App-Id", id))).status
    };
    assert_eq!(ask(&key, &["r1"]), 200);
    assert_eq!(ask(&key, &["r2"]), 403);
    assert_eq!(ask(&key, &[]), 403, "not naming it is not a way around");
    assert_eq!(ask(&key, &["r1", "r2"]), 403, "nor is naming two");
    assert_eq!(ask(&service, &["r2"]), 200);
    assert_eq!(ask(&service, &[]), 200);
    let other_spelling =
        Request::get("/v1/of").bearer(&key).header("X-App-Id", "r1").header("X_App_Id", "r2");
    assert_eq!(gateway.call(&other_spelling).status, 200);
    let seen = origin.last();
    assert_eq!((seen.header("x-app-id"), seen.header("x_app_id")), (Some("r1"), None));
}

#[test]
fn a_key_is_used_from_its_addresses_only() {
    let (origin, gateway) = stand("");
    for (allowed, status) in [
        (json!([]), 200),
        (json!(["127.0.0.0/8"]), 200),
        (json!(["127.0.0.1"]), 200),
        (json!(["192.0.2.0/24", "127.0.0.0/30"]), 200),
        (json!(["127.0.0.2"]), 403),
        (json!(["10.0.0.0/8", "::1"]), 403),
    ] {
        let key = gateway.create_key(json!({"allowed_ips": allowed}));
        let before = origin.count();
        // A header field does not set the client's address.
        let request = Request::get("/v1/app/x").bearer(&key.secret).header("X-Forwarded-For", "192.0.2.1");
        let response = gateway.call(&request);
        assert_eq!(response.status, status, "{allowed}");
        if status == 403 {
            assert_eq!(response.fault(), (403, 3020, "address_not_allowed".into()));
            assert_eq!(response.data()["address"], "127.0.0.1");
            assert_eq!(origin.count(), before);
        }
    }
}
