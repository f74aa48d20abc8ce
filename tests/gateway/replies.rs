//! Keygate's own responses: each line of the contract's table that the data plane can produce, in one envelope.

use crate::support::{
    Gateway, Hold, Origin, Raw, Request, ReservedPort, Response, one_route, route, stand, upstream,
};
use serde_json::json;

/// Sends bytes on a new connection.
fn exchange(gateway: &Gateway, bytes: &[u8]) -> Response {
    let mut client = gateway.connect();
    client.try_send(bytes);
    client.response()
}

/// A head with these lines below the request line, authorised.
fn head(line: &str, fields: &[&str], secret: &str) -> Vec<u8> {
    format!("{line}\r\nAuthorization: Bearer {secret}\r\n{}\r\n\r\n", fields.join("\r\n")).into_bytes()
}

#[test]
fn a_message_that_could_be_read_in_two_ways_is_a_bad_request() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let post = "POST /v1/app/x HTTP/1.1";
    let framing: &[&[&str]] = &[
        &["Host: h", "Content-Length: 2", "Content-Length: 2"],
        &["Host: h", "Content-Length: 02"],
        &["Host: h", "Content-Length: 2, 2"],
        &["Host: h", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    ];
    for fields in framing {
        let response = exchange(&gateway, &[head(post, fields, &secret), b"{}".to_vec()].concat());
        assert_eq!(response.fault(), (400, 1000, "bad_request".into()), "{fields:?}");
        assert_eq!(response.data()["reason"], "framing", "{fields:?}");
    }
    let response = exchange(&gateway, &head("GET /v1/app/x HTTP/1.1", &["X-A: b"], &secret));
    assert_eq!((response.fault().0, response.data()["reason"].clone()), (400, json!("host")), "no Host");
    assert_eq!(origin.count(), 0);
}

#[test]
fn requests_that_cannot_be_parsed_are_refused_and_never_forwarded() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let post = "POST /v1/app/x HTTP/1.1";
    for fields in [
        &["Host: h", "Content-Length: 2", "Content-Length: 3"][..],
        &["Host: h", "Content-Length: +2"],
        &["Host: h", "Content-Length: -1"],
        &["Host: h", "Content-Length: 0x2"],
        &["Host: h", "Content-Length: 99999999999999999999999"],
        &["Host: h", "Transfer-Encoding: identity"],
        &["Host: h", "Transfer-Encoding: chunked, identity"],
        &["Host: h", "Host: other"],
        &["Host: h", "X-Folded: a\r\n b"],
        &["Host: h", "Space : x"],
    ] {
        let mut client = gateway.connect();
        client.try_send(&[head(post, fields, &secret), b"{}".to_vec()].concat());
        let status = client.response().status;
        assert!(matches!(status, 400 | 501), "{fields:?}: {status}");
        assert_eq!(origin.count(), 0, "{fields:?}");
    }
}

#[test]
fn two_lengths_never_reach_a_backend_together() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let fields = ["Host: h", "Content-Length: 5", "Transfer-Encoding: chunked"];
    let response = exchange(
        &gateway,
        &[head("POST /v1/app/x HTTP/1.1", &fields, &secret), b"0\r\n\r\n".to_vec()].concat(),
    );
    assert_eq!(response.fault(), (400, 1000, "bad_request".into()));
    assert_eq!((response.data()["reason"].clone(), origin.count()), (json!("framing"), 0));
}

#[test]
fn unsupported_methods_and_codings_get_501() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    for line in ["TRACE /v1/app/x HTTP/1.1", "POST /v1/app/x HTTP/1.1"] {
        let fields: &[&str] = if line.starts_with("POST") {
            &["Host: h", "Transfer-Encoding: gzip, chunked"]
        } else {
            &["Host: h"]
        };
        let response = exchange(&gateway, &[head(line, fields, &secret), b"0\r\n\r\n".to_vec()].concat());
        assert_eq!(response.fault(), (501, 1000, "not_implemented".into()), "{line}");
    }
    assert_eq!(origin.count(), 0);
}

#[test]
fn too_large_heads_uris_and_bodies_get_their_own_statuses() {
    let sizes = "[proxy]\nmax_header_bytes = \"4KiB\"\nmax_header_fields = 20\nmax_uri_bytes = \"1KiB\"\nmax_body_bytes = \"10KiB\"\n";
    let (origin, gateway) = stand(sizes);
    let secret = gateway.create_key(json!({})).secret;
    let get = |target: &str| Request::get(target).bearer(&secret);
    let long = gateway.call(&get(&format!("/v1/app/{}", "x".repeat(1_100))));
    assert_eq!(long.fault(), (414, 1000, "uri_too_long".into()));
    let long_query = gateway.call(&get(&format!("/v1/app/x?{}", "x".repeat(1_100))));
    assert_eq!(long_query.fault().0, 414);
    let wide = gateway.call(&get("/v1/app/x").header("X-Wide", &"x".repeat(4_100)));
    assert_eq!(wide.fault(), (431, 1000, "request_header_fields_too_large".into()));
    let many = (0..20).fold(get("/v1/app/x"), |request, n| request.header(&format!("X-{n}"), "1"));
    assert_eq!(gateway.call(&many).fault().0, 431);
    let large = gateway.call(&Request::post("/v1/app/x", vec![b'x'; 10 * 1024 + 1]).bearer(&secret));
    assert_eq!(large.fault(), (413, 1000, "payload_too_large".into()));
    assert_eq!(origin.count(), 0);
    let largest = gateway.call(&Request::post("/v1/app/x", vec![b'x'; 10 * 1024]).bearer(&secret));
    assert_eq!((largest.status, origin.last().body.len()), (200, 10 * 1024));
}

#[test]
fn a_route_can_take_larger_or_smaller_bodies_than_others() {
    let origin = Origin::start();
    let routes = route("small", "/v1/small", "app", "max_body_bytes = 10")
        + &route("large", "/v1/large", "app", "max_body_bytes = \"20KiB\"");
    let gateway =
        Gateway::start(&(one_route(origin.address) + &routes + "[proxy]\nmax_body_bytes = \"10KiB\"\n"));
    let secret = gateway.create_key(json!({"quota_limit": 3})).secret;
    let post = |target: &str, n: usize| gateway.call(&Request::post(target, vec![b'x'; n]).bearer(&secret));
    for (target, most) in [("/v1/small", 10), ("/v1/app/x", 10 * 1024), ("/v1/large", 20 * 1024)] {
        let over = post(target, most + 1);
        assert_eq!(over.fault(), (413, 1000, "payload_too_large".into()), "{target}");
        let served = post(target, most);
        assert_eq!(
            (served.status, origin.last().body.len()),
            (200, most),
            "{target}: what was refused cost nothing"
        );
    }
}

#[test]
fn a_chunked_body_that_grows_too_large_is_cut_off() {
    let (origin, gateway) = stand("[proxy]\nmax_body_bytes = \"10KiB\"\n");
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    client.send(
        &Request::new("POST", "/v1/app/x").bearer(&secret).header("Transfer-Encoding", "chunked").head(),
    );
    for _ in 0..11 {
        client.try_send(&[b"400\r\n", vec![b'x'; 1024].as_slice(), b"\r\n"].concat());
    }
    assert_eq!(client.response().fault(), (413, 1000, "payload_too_large".into()));
    assert!(client.is_closed());
    assert_eq!(origin.count(), 0, "no backend took it for a whole request");
}

#[test]
fn a_body_that_stops_coming_is_a_request_timeout() {
    let origin = Origin::start();
    let body = route("body", "/v1/body", "app", "end_user = \"body:user\"");
    let gateway =
        Gateway::start(&(one_route(origin.address) + &body + "[proxy]\nbody_timeout = \"200ms\"\n"));
    let secret = gateway.create_key(json!({})).secret;
    for target in ["/v1/app/x", "/v1/body"] {
        let mut client = gateway.connect();
        let head = Request::post(target, vec![b'x'; 100]).bearer(&secret).head();
        client.send(&[&head, b"only this".as_slice()].concat());
        assert_eq!(client.response().fault(), (408, 1000, "request_timeout".into()), "{target}");
        assert!(client.is_closed());
    }
    assert_eq!(origin.count(), 0);
}

#[test]
fn a_backend_that_fails_has_one_answer_for_each_way() {
    let (origin, nobody) = (Origin::start(), ReservedPort::any());
    let hasty = format!("{}read_timeout = \"200ms\"\n", upstream("hasty", origin.address));
    let gateway = Gateway::start(
        &(one_route(origin.address)
            + &hasty
            + &route("hasty", "/v1/hasty", "hasty", "")
            + &upstream("dead", nobody.address)
            + &route("dead", "/v1/dead", "dead", "")),
    );
    let secret = gateway.create_key(json!({})).secret;
    assert_eq!(gateway.get("/v1/dead", &secret).fault(), (502, 10003, "bad_gateway".into()));
    let hold = Hold::new();
    origin.answer_after(&hold);
    assert_eq!(gateway.get("/v1/hasty", &secret).fault(), (504, 10003, "gateway_timeout".into()));
    hold.release();
    origin.script(|_, _| Err(std::io::ErrorKind::Other.into()));
    let closed = gateway.call(&Request::post("/v1/app/x", "{}").bearer(&secret));
    assert_eq!(closed.fault(), (502, 10003, "bad_gateway".into()), "it hung up instead of an answer");
    origin.script(|_, out| out.write_all(b"this is not HTTP\r\n\r\n"));
    let nonsense = gateway.call(&Request::post("/v1/app/x", "{}").bearer(&secret));
    assert_eq!(nonsense.fault(), (502, 10003, "bad_gateway".into()), "it spoke something else");
    assert!(!nonsense.text().contains("127.0.0.1"), "no internals");
}

#[test]
fn a_backend_that_breaks_off_in_the_middle_is_not_taken_for_complete() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    origin.script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")?;
        Err(std::io::ErrorKind::Other.into())
    });
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/x").bearer(&secret).bytes());
    assert_eq!(client.response_head().status, 200);
    assert_eq!(client.chunk().as_deref(), Some(b"half".as_slice()));
    assert!(client.is_closed(), "no final chunk, so the client knows");
}

#[test]
fn a_second_server_serves_when_the_first_cannot_be_reached() {
    let (origin, nobody) = (Origin::start(), ReservedPort::any());
    let config = format!(
        "[[upstreams]]\nname = \"app\"\nservers = [\"{}\", \"{}\"]\n{}",
        nobody.address,
        origin.address,
        route("app", "/v1/app/{rest*}", "app", "")
    );
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({"quota_limit": 8})).secret;
    let mut client: Raw = gateway.connect();
    for left in (0..8).rev() {
        let response = client.call(&Request::post("/v1/app/x", "{}").bearer(&secret));
        assert_eq!((response.status, response.remaining("quota")), (200, left), "each is charged once");
    }
    assert_eq!(origin.count(), 8);
}

#[test]
fn an_answer_to_head_has_no_body() {
    let (_origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    for (target, status) in [("/nowhere", 404), ("/v1/app/..", 400)] {
        let response = client.call(&Request::new("HEAD", target).bearer(&secret));
        assert_eq!(response.status, status);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert!(response.number("content-length") > 0, "the length that a GET would have");
        let next = client.call(&Request::get(target).bearer(&secret));
        assert_eq!(next.fault().0, status, "the next answer begins where it should");
    }
}

#[test]
fn messages_are_chinese_where_that_is_preferred() {
    let (_origin, gateway) = stand("");
    let spent = gateway.create_key(json!({"quota_limit": 1})).secret;
    assert_eq!(gateway.get("/v1/app/x", &spent).status, 200);
    let says = |request: Request, language: &str| {
        let response = gateway.call(&request.header("Accept-Language", language));
        let (_, _, name) = response.fault();
        (name, response.json()["msg"].as_str().unwrap().to_owned())
    };
    let chinese = |text: &str| text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
    for request in [
        Request::get("/v1/app/x"),
        Request::get("/nowhere"),
        Request::get("/v1/app/.."),
        Request::get("/v1/app/x").bearer("nonsense"),
        Request::get("/v1/app/x").bearer(&spent),
    ] {
        let (name, zh) = says(request.clone(), "zh-CN,zh;q=0.9,en;q=0.8");
        let (same, en) = says(request, "en-US,en;q=0.9,zh;q=0.8");
        assert!(chinese(&zh) && !chinese(&en), "{zh} / {en}");
        assert_eq!(name, same, "the name is for programs and stays");
    }
}
