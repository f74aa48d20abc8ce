//! Bodies are streamed without delay in both directions.

use crate::support::{Hold, Request, eventually_true, stand};
use serde_json::json;

#[test]
fn events_arrive_one_by_one() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let hold = Hold::new();
    let released = hold.clone();
    origin.script(move |_, out| {
        out.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        for n in 1..=5_u64 {
            released.wait(n);
            let event = format!("data: {n}\n\n");
            write!(out, "{:x}\r\n{event}\r\n", event.len())?;
        }
        out.write_all(b"0\r\n\r\n")
    });
    let mut client = gateway.connect();
    client.send(&Request::get("/v1/app/stream").bearer(&key.secret).bytes());
    let head = client.response_head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    for n in 1..=5 {
        // The next event is written only after this one has arrived.
        hold.release();
        assert_eq!(client.chunk(), Some(format!("data: {n}\n\n").into_bytes()));
    }
    assert_eq!(client.chunk(), None);
    let row = &gateway.wait_for_logs(&key, 1)[0];
    assert_eq!((row["outcome"].as_str(), row["bytes_out"].as_u64()), (Some("served"), Some(45)));
}

#[test]
fn a_small_answer_of_known_length_arrives_as_it_comes() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let mut client = gateway.connect();
    for body in ["", "a question"] {
        let hold = Hold::new();
        let released = hold.clone();
        origin.script(move |_, out| {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n")?;
            for n in 1..=5_u64 {
                released.wait(n);
                writeln!(out, "{n};")?;
            }
            Ok(())
        });
        client.send(&Request::post("/v1/app/slow", body).bearer(&key.secret).bytes());
        // No byte of the body is written before the head has arrived.
        let head = client.response_head();
        assert_eq!((head.status, head.header("content-length")), (200, Some("15")));
        for n in 1..=5 {
            hold.release();
            assert_eq!(client.exactly(3), format!("{n};\n").into_bytes());
        }
    }
}

#[test]
fn an_upload_in_chunks_passes_through_as_it_comes() {
    let (origin, gateway) = stand("");
    let key = gateway.create_key(json!({}));
    let mut client = gateway.connect();
    client.send(
        &Request::new("POST", "/v1/app/up").bearer(&key.secret).header("Transfer-Encoding", "chunked").head(),
    );
    let mut sent = Vec::new();
    for n in 0..5 {
        let part = format!("part {n};");
        client.send(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
        sent.extend_from_slice(part.as_bytes());
        eventually_true("the origin has this part before the next is sent", || origin.arriving() == sent);
    }
    assert_eq!(origin.count(), 0, "the request has not ended yet");
    client.send(b"0\r\n\r\n");
    assert_eq!(client.response().status, 200);
    assert_eq!(origin.last().body, sent);
    let row = &gateway.wait_for_logs(&key, 1)[0];
    assert_eq!(row["bytes_in"].as_u64(), Some(u64::try_from(sent.len()).unwrap()));
}

#[test]
fn a_large_answer_comes_through_whole() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({})).secret;
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    let expected = body.clone();
    origin.script(move |_, out| {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
        out.write_all(&body)
    });
    let mut client = gateway.connect();
    for _ in 0..3 {
        let response = client.call(&Request::get("/v1/app/large").bearer(&secret));
        assert!(response.body == expected, "{} bytes", response.body.len());
    }
}

#[test]
fn status_headers_and_body_of_the_origin_pass_unchanged() {
    let (origin, gateway) = stand("");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    for status in [200, 201, 202, 301, 400, 401, 403, 404, 418, 422, 429, 500, 502, 503] {
        origin.script(move |_, out| {
            write!(
                out,
                "HTTP/1.1 {status} Text\r\nX-Own: yes\r\nX-Own: twice\r\nContent-Length: 4\r\n\r\nbody"
            )
        });
        let response = gateway.get("/v1/app/x", &secret);
        assert_eq!((response.status, response.body.as_slice()), (status, b"body".as_slice()));
        assert_eq!(
            response.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("x-own")).count(),
            2,
            "{status}"
        );
    }
    for status in [204, 304] {
        origin.script(move |_, out| write!(out, "HTTP/1.1 {status} Text\r\nX-Own: yes\r\n\r\n"));
        assert_eq!(gateway.get("/v1/app/x", &secret).status, status);
    }
}
