//! Where a route reads the secret: it opens from there and from no other place, over either HTTP, and the backend gets only
//! what is meant for it.

use crate::http2::{Client, H2C, h2c};
use crate::support::{Gateway, Origin, Request, route, upstream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::io::Write as _;

/// The same request over HTTP/1.1 and over HTTP/2: the status, the error's `data`, and what the backend received.
async fn ask(
    (origin, gateway): (&Origin, &Gateway),
    client: &mut Client,
    target: &str,
    fields: &[(&str, &str)],
) -> Vec<(u16, serde_json::Value, Option<Vec<(String, String)>>)> {
    let mut first = Request::get(target);
    let mut second = http::Request::get(format!("http://gateway.test{target}")).body(()).unwrap();
    for (name, value) in fields {
        first = first.header(name, value);
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        second.headers_mut().append(name, value.parse().unwrap());
    }
    let mut asked = Vec::new();
    let before = origin.count();
    let response = gateway.call(&first);
    let seen = || (origin.count() > before).then(|| origin.last().headers);
    let data = |body: &[u8]| serde_json::from_slice::<serde_json::Value>(body).unwrap()["data"].clone();
    asked.push((response.status, data(&response.body), seen()));
    let before = origin.count();
    let answer = client.call(second).await.unwrap();
    let seen = (origin.count() > before).then(|| origin.last().headers);
    asked.push((answer.status.as_u16(), data(&answer.body), seen));
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_opens_where_the_route_reads_it_and_the_backend_gets_the_rest() {
    let origin = Origin::start();
    let own = |places: &str| format!("secret_from = [{places}]\n");
    let config = upstream("app", origin.address)
        + &route("usual", "/usual", "app", "")
        + &route("one", "/one", "app", &own("\"header:x-api-key\""))
        + &route("basic", "/basic", "app", &own("\"basic:user\", \"basic:password\""))
        + &route("kept", "/kept", "app", &(own("\"basic:user\"") + "keep_credential = true\n"))
        + &route("socket", "/socket", "app", &own("\"subprotocol:openai-insecure-api-key\""))
        + H2C;
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let bearer = format!("Bearer {secret}");
    let basic = |text: String| format!("Basic {}", STANDARD.encode(text));
    let (user, password) = (basic(format!("{secret}:")), basic(format!(":{secret}")));
    let offered = format!("realtime, openai-insecure-api-key.{secret}, v1");
    let alone = format!("openai-insecure-api-key.{secret}");
    let (auth, api_key, offer) = ("authorization", "x-api-key", "sec-websocket-protocol");
    let mut client = Client::connect(h2c(&gateway)).await;
    // What is sent, the status, and what the backend gets.
    type Row<'r> = (&'r str, &'r [(&'r str, &'r str)], u16, &'r [(&'r str, &'r str)]);
    let rows: &[Row<'_>] = &[
        ("/usual", &[(auth, &bearer)], 200, &[]),
        ("/usual", &[(auth, &user)], 401, &[]),
        ("/usual", &[(offer, &offered)], 401, &[]),
        ("/one", &[(api_key, &secret)], 200, &[]),
        ("/one", &[(auth, &bearer)], 401, &[]),
        (
            "/one",
            &[(api_key, &secret), (auth, "Bearer of-the-backend")],
            200,
            &[(auth, "Bearer of-the-backend")],
        ),
        ("/one", &[(api_key, &secret), (auth, &bearer)], 200, &[]),
        ("/basic", &[(auth, &user)], 200, &[]),
        ("/basic", &[(auth, &password)], 200, &[]),
        ("/basic", &[(auth, &bearer)], 401, &[]),
        ("/basic", &[(auth, "Basic !")], 401, &[]),
        ("/kept", &[(auth, &user)], 200, &[(auth, &user)]),
        ("/socket", &[(offer, &offered)], 200, &[(offer, "realtime, v1")]),
        ("/socket", &[(offer, &alone)], 200, &[]),
        ("/socket", &[(offer, "realtime")], 401, &[]),
    ];
    for (target, fields, status, passed) in rows {
        for (got, _, seen) in ask((&origin, &gateway), &mut client, target, fields).await {
            assert_eq!(got, *status, "{target} {fields:?}");
            let Some(seen) = seen else {
                assert_ne!(got, 200);
                continue;
            };
            for name in [auth, api_key, offer] {
                let wanted = passed.iter().find(|(passed, _)| *passed == name).map(|(_, value)| *value);
                let came = seen.iter().find(|(came, _)| came.eq_ignore_ascii_case(name));
                assert_eq!(came.map(|(_, value)| value.as_str()), wanted, "{target} {fields:?}: {seen:?}");
            }
        }
    }
    for (target, fields, headers) in [
        ("/usual", [(auth, bearer.as_str()), (api_key, "other")], [auth, api_key]),
        ("/basic", [(auth, basic(format!("{secret}:other")).as_str()), ("x-any", "1")], [auth, auth]),
    ] {
        for (got, data, seen) in ask((&origin, &gateway), &mut client, target, &fields).await {
            assert_eq!((got, seen.is_none()), (400, true), "{target}");
            assert_eq!(
                data,
                json!({"reason": "two_credentials", "headers": headers, "setting": "secret_from"})
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_names_the_schemes_that_the_route_takes() {
    let origin = Origin::start();
    let own = |places: &str| format!("secret_from = [{places}]\n");
    let config = upstream("app", origin.address)
        + &route("usual", "/usual", "app", "")
        + &route("other", "/other", "app", &own("\"header:x-api-key\""))
        + &route("basic", "/basic", "app", &own("\"basic:user\""))
        + &route("both", "/both", "app", &own("\"header:authorization\", \"basic:password\""))
        + H2C;
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(h2c(&gateway)).await;
    let (bearer, basic) = ("Bearer", "Basic realm=\"API key\"");
    let rows: [(&str, &[&str]); 4] =
        [("/usual", &[bearer]), ("/other", &[bearer]), ("/basic", &[basic]), ("/both", &[bearer, basic])];
    for (target, challenges) in rows {
        // None at all, and one that opens nothing.
        for secret in [None, Some("Basic bm90aGluZzpub3RoaW5n")] {
            let mut first = Request::get(target);
            let mut second = http::Request::get(format!("http://gateway.test{target}")).body(()).unwrap();
            if let Some(secret) = secret {
                first = first.header("Authorization", secret);
                second.headers_mut().insert("authorization", secret.parse().unwrap());
            }
            let answer = gateway.call(&first);
            let named =
                answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"));
            let named: Vec<_> = named.map(|(_, value)| value.as_str()).collect();
            assert_eq!((answer.status, named.as_slice()), (401, challenges), "{target}");
            let answer = client.call(second).await.unwrap();
            let named: Vec<_> = answer.headers.get_all("www-authenticate").iter().collect();
            assert_eq!(
                (answer.status.as_u16(), named.as_slice()),
                (
                    401,
                    &challenges
                        .iter()
                        .map(|c| http::HeaderValue::from_static(c))
                        .collect::<Vec<_>>()
                        .iter()
                        .collect::<Vec<_>>()[..]
                ),
                "{target}"
            );
        }
    }
    assert_eq!(origin.count(), 0);
}

#[test]
fn a_browsers_websocket_opens_by_a_subprotocol_and_gets_the_one_that_the_backend_chose() {
    let origin = Origin::start();
    origin.script_socket(|request, socket| {
        let offered = request.header("sec-websocket-protocol").unwrap_or_default();
        assert_eq!(offered, "realtime, v1");
        socket.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Protocol: realtime\r\n\r\n",
        )
    });
    let more = "secret_from = [\"subprotocol:openai-insecure-api-key\"]\n";
    let gateway = Gateway::start(&(upstream("app", origin.address) + &route("ws", "/ws", "app", more)));
    let secret = gateway.create_key(json!({})).secret;
    let mut client = gateway.connect();
    let request = Request::get("/ws")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Protocol", &format!("realtime, openai-insecure-api-key.{secret}"))
        .header("Sec-WebSocket-Protocol", "v1");
    client.send(&request.bytes());
    let head = client.response_head();
    assert_eq!((head.status, head.header("sec-websocket-protocol")), (101, Some("realtime")));
}
