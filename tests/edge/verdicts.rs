//! A request gets the same decision over HTTP/1.1 and HTTP/2.

use crate::http2::{Client, H2C, h2c};
use crate::support::{Raw, stand};
use http::HeaderValue;
use serde_json::{Value, json};

/// A request that can be written in both versions.
struct Asked {
    what: String,
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    /// Separate fields over HTTP/2, one field over HTTP/1.1.
    cookies: Vec<String>,
}

fn asked(what: &str) -> Asked {
    let (what, method, target) = (what.to_owned(), "GET".to_owned(), "/v1/app/x".to_owned());
    Asked { what, method, target, fields: Vec::new(), cookies: Vec::new() }
}

fn cookies(what: &str, n: usize, one: &str) -> Asked {
    Asked { cookies: vec![one.to_owned(); n], ..asked(what) }
}

fn fields(what: &str, n: usize, value: &str) -> Asked {
    Asked { fields: (0..n).map(|n| (format!("x-{n}"), value.to_owned())).collect(), ..asked(what) }
}

fn to(target: &str) -> Asked {
    Asked { target: target.to_owned(), ..asked(&format!("{target:.60}")) }
}

fn by(method: &str) -> Asked {
    Asked { method: method.to_owned(), ..asked(method) }
}

/// Limits as by default: 100 fields, 32 KiB of them, targets of 8 KiB.
fn all() -> Vec<Asked> {
    let mut all = vec![
        cookies("few cookies", 3, "a=b"),
        cookies("many cookies", 150, "name=value-of-a-cookie"),
        cookies("many small cookies", 2_000, "a=bcdefghij"),
        cookies("too many cookies", 3_000, "a=bcdefghij"),
        cookies("one large cookie", 1, &"c".repeat(30_000)),
        cookies("one cookie that is too large", 1, &"c".repeat(33_000)),
        // Besides `Host` and `Authorization`.
        fields("as many fields as may be", 98, "x"),
        fields("one more", 99, "x"),
        fields("many fields", 240, "x"),
        fields("large fields", 30, &"v".repeat(1_000)),
        fields("too large fields", 33, &"v".repeat(1_000)),
        to(&format!("/v1/app/{}", "x".repeat(8_000))),
        to(&format!("/v1/app/{}", "x".repeat(8_184))),
        to(&format!("/v1/app/{}", "x".repeat(8_185))),
        to(&format!("/v1/app/{}", "x".repeat(9_000))),
        to(&format!("/v1/app/x?{}", "x".repeat(8_200))),
        by("TRACE"),
        by("FROB"),
        by(&"M".repeat(32)),
        by(&"M".repeat(33)),
        by(&"M".repeat(200)),
    ];
    // Exactly as many bytes as allowed, and one more: names, values and four bytes each.
    let own = "host: gateway.test\r\n".len() + "authorization: Bearer \r\n".len();
    for (what, more) in [("all the bytes that may be", 0), ("a byte more", 1)] {
        let mut exact = fields(what, 0, "");
        exact.fields.push(("x-fill".into(), "SECRET".into()));
        exact.target = format!("/v1/app/{own}/{more}");
        all.push(exact);
    }
    for target in [
        "/v1/app//x",
        "/v1/app/%2e%2e/x",
        "/v1/app/x;y",
        "/v1/app/a%2Fb",
        "/v1/app/%zz",
        "/v1/app/x?%zz",
        "/v1/app/x?a[]=1",
    ] {
        all.push(to(target));
    }
    all
}

/// Status, and the envelope's error.
type Verdict = (u16, String);

fn verdict(status: u16, body: &[u8]) -> Verdict {
    let envelope: Value = serde_json::from_slice(body).unwrap_or_default();
    (status, envelope["error"].as_str().unwrap_or_default().to_owned())
}

fn over_http1(mut client: Raw, asked: &Asked, secret: &str) -> Verdict {
    let mut head = format!(
        "{} {} HTTP/1.1\r\nhost: gateway.test\r\nauthorization: Bearer {secret}\r\n",
        asked.method, asked.target
    );
    for (name, value) in &asked.fields {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if !asked.cookies.is_empty() {
        head.extend(["cookie: ", &asked.cookies.join("; "), "\r\n"]);
    }
    head.push_str("\r\n");
    client.try_send(head.as_bytes());
    let response = client.response();
    verdict(response.status, &response.body)
}

async fn over_http2(client: &mut Client, asked: &Asked, secret: &str) -> Verdict {
    let mut request = http::Request::builder()
        .method(asked.method.as_str())
        .uri(format!("http://gateway.test{}", asked.target))
        .version(http::Version::HTTP_2)
        .header("authorization", format!("Bearer {secret}"))
        .body(())
        .unwrap();
    let headers = request.headers_mut();
    for (name, value) in &asked.fields {
        headers.append(http::HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
    }
    for cookie in &asked.cookies {
        headers.append("cookie", HeaderValue::try_from(cookie).unwrap());
    }
    let answer = client.call(request).await.unwrap_or_else(|error| panic!("{}: {error}", asked.what));
    verdict(answer.status.as_u16(), &answer.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_and_http2_accept_and_refuse_the_same_requests() {
    let (origin, gateway) = stand(H2C);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let (mut differ, mut served) = (String::new(), 0);
    for mut asked in all() {
        if let Some(rest) = asked.fields.first_mut().filter(|field| field.1 == "SECRET") {
            let numbers: Vec<usize> =
                asked.target.split('/').filter_map(|number| number.parse().ok()).collect();
            let so_far = numbers[0] + secret.len() + "x-fill: \r\n".len();
            rest.1 = "f".repeat(32 * 1024 - so_far + numbers[1]);
        }
        let one = over_http1(gateway.connect(), &asked, &secret);
        let two = over_http2(&mut client, &asked, &secret).await;
        if one != two {
            differ += &format!("{}: {one:?} over HTTP/1.1, {two:?} over HTTP/2\n", asked.what);
        }
        served += usize::from(one.0 == 200);
    }
    assert!(differ.is_empty(), "{differ}");
    assert!(served > 10, "{served} are served");
    assert_eq!(origin.count(), 2 * served);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split_http2_cookies_all_reach_the_backend() {
    let (origin, gateway) = stand(H2C);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let mut client = Client::connect(h2c(&gateway)).await;
    let many = cookies("many", 2_000, "a=bcdefghij");
    assert_eq!(over_http2(&mut client, &many, &secret).await.0, 200);
    assert_eq!(origin.last().header("cookie"), Some(many.cookies.join("; ").as_str()));
    assert_eq!(origin.last().times("cookie"), 1);
}
