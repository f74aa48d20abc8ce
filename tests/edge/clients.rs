//! Rare but valid clients: fields named in `Connection`, HTTP/1.0, and cookies as HTTP/2 splits them.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Origin, Raw, Request, route, stand, upstream};
use serde_json::json;

/// The same with these lines of a head.
fn ask(gateway: &Gateway, version: &str, secret: &str, lines: &str) -> Raw {
    let mut connection = gateway.connect();
    let head = format!("GET /v1/app/x HTTP/{version}\r\nAuthorization: Bearer {secret}\r\n{lines}\r\n");
    connection.send(head.as_bytes());
    connection
}

#[test]
fn connection_names_nothing_that_is_decided_by_and_nothing_odd() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({"quota_limit": 2}));
    for bad in ["host", "X-Forwarded-For", "close, x y", "\"x\"", "a,b,c,d,e,f,g,h,i,j", ":path"] {
        let mut connection = ask(&gateway, "1.1", &key.secret, &format!("Host: h\r\nConnection: {bad}\r\n"));
        let response = connection.response();
        assert_eq!(response.fault(), (400, 1000, "bad_request".into()), "{bad}");
        assert_eq!(response.json()["data"]["reason"], "connection", "{bad}");
    }
    // Fields named in `Connection` are not forwarded.
    let lines = "Host: h\r\nX-Hop: 1\r\nX-End: 2\r\nConnection: keep-alive, x-hop\r\n";
    assert_eq!(ask(&gateway, "1.1", &key.secret, lines).response().status, 200);
    let seen = origin.last();
    assert_eq!((seen.header("x-hop"), seen.header("x-end")), (None, Some("2")));
    assert_eq!(origin.count(), 1);
    assert_eq!(ask(&gateway, "1.1", &key.secret, "Host: h\r\n").response().status, 200);
    assert_eq!(
        ask(&gateway, "1.1", &key.secret, "Host: h\r\n").response().status,
        429,
        "a refusal costs nothing"
    );
}

#[test]
fn fields_that_a_route_decides_by_are_forwarded_or_the_request_is_refused() {
    let origin = Origin::start();
    let by_header = "resource = \"header:x-app-id\"\nend_user = \"header:x-end-user-id\"\n";
    let gateway = Gateway::start(
        &(upstream("app", origin.address) + &route("app", "/v1/app/{rest*}", "app", by_header)),
    );
    let key = gateway.create_key(json!({"type": "app", "resource_id": "one"}));
    for (name, status) in [("x-app-id", 400), ("X-End-User-Id", 400), ("x-other", 200)] {
        let lines = format!("Host: h\r\nX-App-Id: one\r\nX-End-User-Id: ann\r\nConnection: {name}\r\n");
        assert_eq!(ask(&gateway, "1.1", &key.secret, &lines).response().status, status, "{name}");
    }
    assert_eq!(origin.count(), 1);
}

#[test]
fn close_in_any_connection_field_is_obeyed() {
    let (_origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    for lines in ["Connection: keep-alive\r\nConnection: close\r\n", "Connection: keep-alive, close\r\n"] {
        let mut connection = ask(&gateway, "1.1", &secret, &format!("Host: h\r\n{lines}"));
        let response = connection.response();
        assert_eq!((response.status, response.header("connection")), (200, Some("close")), "{lines}");
        assert!(connection.is_closed());
    }
}

#[test]
fn a_client_of_http_1_0_gets_what_it_can_read() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let old = |lines: &str| ask(&gateway, "1.0", &secret, lines);
    // HTTP/1.0 does not require a Host, but we must send one over HTTP/1.1.
    assert_eq!(old("").response().status, 200);
    assert_eq!(origin.last().header("host"), Some(origin.address.to_string().as_str()));
    origin.script(|_, out| {
        out.write_all(
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        out.write_all(b"4\r\nokay\r\n0\r\n\r\n")
    });
    let mut connection = old("Connection: keep-alive\r\nExpect: 100-continue\r\n");
    let response = connection.response();
    assert_eq!((response.status, response.header("transfer-encoding")), (200, None));
    assert_eq!((response.header("connection"), response.body.as_slice()), (Some("close"), &b"okay"[..]));
    // When the length is known, the connection may stay open.
    origin.answer(200, &[], b"okay");
    let mut connection = old("Connection: keep-alive\r\n");
    assert_eq!(connection.response().body, b"okay");
    assert_eq!(connection.call(&Request::get("/v1/app/x").bearer(&secret)).status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_of_http2_are_one_field_again() {
    let (origin, gateway) = stand(H2C);
    let secret = gateway.create_key(json!({})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let mut request = request("GET", "/v1/app/x", &secret);
    for cookie in ["a=b", "c=d; e=f", "g=h"] {
        request.headers_mut().append("cookie", cookie.parse().unwrap());
    }
    assert_eq!(client.call(request).await.unwrap().status, 200);
    let cookies: Vec<_> =
        origin.last().headers.into_iter().filter(|(name, _)| name.eq_ignore_ascii_case("cookie")).collect();
    assert_eq!(cookies.len(), 1);
    assert_eq!(cookies[0].1, "a=b; c=d; e=f; g=h");
}

#[test]
fn a_target_that_no_uri_can_keep_is_refused_before_anything_is_charged() {
    let origin = Origin::start();
    let config = "[proxy]\nmax_uri_bytes = 65534\n".to_owned() + &upstream("app", origin.address);
    let gateway = Gateway::start(
        &(config + &route("app", "/v1/app/{rest*}", "app", "rewrite = \"/in/side/{rest}\"\n")),
    );
    let key = gateway.create_key(json!({"quota_limit": 2}));
    let of = |length: usize| format!("/v1/app/{}", "x".repeat(length - "/v1/app/".len()));
    assert_eq!(gateway.get(&of(65_533), &key.secret).status, 200);
    assert_eq!(origin.last().target.len(), 65_534);
    assert_eq!(gateway.get(&of(65_534), &key.secret).status, 414);
    assert_eq!(gateway.get(&of(65_535), &key.secret).status, 414);
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 429, "a refusal costs nothing");
}
