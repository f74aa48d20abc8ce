//! Unescaped characters and escaped slashes in request targets.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Origin, Request, route, stand, upstream};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unescaped_bytes_of_an_unambiguous_target_are_forwarded_escaped() {
    let (origin, gateway) = stand(H2C);
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let mut client = Client::connect(h2c(&gateway)).await;
    for (sent, got, over_http2) in [
        ("/v1/app/a|b", "/v1/app/a%7Cb", true),
        ("/v1/app/[x]^", "/v1/app/%5Bx%5D%5E", true),
        ("/v1/app/{x}\"", "/v1/app/%7Bx%7D%22", true),
        ("/v1/app/文/é", "/v1/app/%E6%96%87/%C3%A9", true),
        ("/v1/app/x?q=文&f[a]={|}^", "/v1/app/x?q=%E6%96%87&f[a]={|}^", true),
        ("/v1/%61pp/a|b?c", "/v1/app/a%7Cb?c", true),
        // HTTP/2's own parser rejects these as malformed.
        ("/v1/app/`<x>", "/v1/app/%60%3Cx%3E", false),
        ("/v1/app/x?<\">", "/v1/app/x?%3C%22%3E", false),
        ("http://gateway.test/v1/app/a|b", "/v1/app/a%7Cb", false),
    ] {
        assert_eq!(gateway.get(sent, &key.secret).status, 200, "{sent}");
        assert_eq!(origin.last().target, got, "{sent}");
        if over_http2 {
            origin.forget();
            assert_eq!(client.call(request("GET", sent, &key.secret)).await.unwrap().status, 200, "{sent}");
            assert_eq!(origin.last().target, got, "{sent} over HTTP/2");
        }
    }
    let rows = gateway.wait_for_logs(&key, 15);
    assert_eq!(rows[14]["endpoint"], "/v1/app/a%7Cb", "records have the canonical path");
    // The admin listener accepts them as well.
    let listed = gateway.admin("GET", "/apikeys?search=é\"<文>", None);
    assert_eq!((listed.status, listed.data()["page"]["total"].as_u64()), (200, Some(0)), "{listed:?}");
    // The body stays as it is.
    let post = Request::post("/v1/app/文", "body").bearer(&key.secret);
    assert_eq!(gateway.call(&post).status, 200);
    assert_eq!(origin.last().body, b"body");
}

#[test]
fn an_ambiguous_target_is_refused_with_its_character() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    for (target, told) in [
        (b"/v1/app/a\\b".as_slice(), "the path has the character `\\`, which some servers take for a slash"),
        (b"/v1/app/a#b", "the path has the character `#`, which must be percent-encoded"),
        (b"/v1/app/x?a#b", "the query has the character `#`, which must be percent-encoded"),
        (b"/v1/app/\xe9", "the path has the character 0xE9, which is not UTF-8; it must be percent-encoded"),
        (b"/v1/app/\x01", "the path has the character 0x01, which is a control character"),
        (b"/v1/app/|%00", "the path has the escape %00, of a backslash or control character"),
        (b"/v1/app/|/../x", "the path has a . or .. segment"),
        (b"/v1/app/a%2Fb", "the path has an encoded slash (%2F), which its route does not take"),
    ] {
        let mut client = gateway.connect();
        let head = [b"GET ".as_slice(), target, b" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer "].concat();
        client.send(&[head.as_slice(), secret.as_bytes(), b"\r\n\r\n"].concat());
        let answer = client.response();
        assert_eq!(answer.fault(), (400, 1000, "bad_request".into()), "{told}");
        assert_eq!(answer.json()["msg"], told);
    }
    assert_eq!(origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_escaped_slash_is_kept_where_the_route_says_so() {
    let origin = Origin::start();
    let keep = "encoded_slash = \"keep\"\nresource = \"path:id\"";
    let config = upstream("app", origin.address)
        + &route("keep", "/v1/projects/{id}/{rest*}", "app", keep)
        + &route("refuse", "/v1/app/{rest*}", "app", "")
        + H2C;
    let gateway = Gateway::start(&config);
    let secret =
        gateway.create_key(json!({"type": "app", "resource_id": "group/project", "rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    for (target, status) in [
        ("/v1/projects/group%2Fproject/x", 200),
        ("/v1/projects/group%2fproject/a%2F%2Fb", 200),
        ("/v1/projects/group%2Fother/x", 403),
        ("/v1/projects/..%2Fproject/x", 400),
        ("/v1/projects/group%2F..%2Fproject/x", 400),
        ("/v1/projects/group%252Fproject/x", 400),
        ("/v1/projects/%2Fproject/x", 400),
        ("/v1/app/a%2Fb", 400),
        ("/v1/nowhere%2Fb", 400),
    ] {
        assert_eq!(gateway.get(target, &secret).status, status, "{target}");
        let answer = client.call(request("GET", target, &secret)).await.unwrap();
        assert_eq!(answer.status, status, "{target} over HTTP/2");
        if status == 200 {
            assert_eq!(origin.last().target, target.replace("%2f", "%2F"));
        }
    }
    assert_eq!(origin.count(), 4);
}
