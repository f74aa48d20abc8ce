//! Effects of a failed attempt: on the client, on its connection, on the next server.

use crate::group::Group;
use crate::support::{
    Gateway, Hold, Origin, Raw, Request, ReservedPort, eventually, eventually_true, route, upstream,
};
use serde_json::{Value, json};
use std::io;

const NO_EJECTION: &str = "[upstreams.eject]\nafter = 0\n";
const BAD_GATEWAY: (u16, u32, &str) = (502, 10003, "bad_gateway");

/// The final response, and the interim ones before it.
fn answer(connection: &mut Raw) -> (u16, Vec<u16>) {
    let mut interim = Vec::new();
    loop {
        let response = connection.response();
        if response.status >= 200 {
            return (response.status, interim);
        }
        interim.push(response.status);
    }
}

#[test]
fn an_interim_response_is_not_taken_for_the_response() {
    let group = Group::start(&[1], NO_EJECTION);
    let key = group.gateway.create_key(json!({"rate_limit": 1000}));
    for interim in ["100 Continue", "103 Early Hints"] {
        group.origins[0].script(move |_, out| {
            write!(out, "HTTP/1.1 {interim}\r\n\r\n")?;
            Err(io::Error::other("gone"))
        });
        let mut connection = group.gateway.connect();
        connection.send(&Request::post("/v1/app/x", "once").bearer(&key.secret).bytes());
        assert_eq!(connection.response().status, interim[..3].parse::<u16>().unwrap());
        let response = connection.response();
        assert_eq!(response.fault(), (BAD_GATEWAY.0, BAD_GATEWAY.1.into(), BAD_GATEWAY.2.into()));
    }
    let rows = group.gateway.wait_for_logs(&key, 2);
    let tells = |row: &serde_json::Value| row["status_code"] == 502 && row["outcome"] == "upstream_failed";
    assert!(rows.iter().all(tells), "{rows:#?}");
}

#[test]
fn a_request_that_got_only_an_interim_response_is_retried_elsewhere() {
    let group = Group::start(&[1, 1], NO_EJECTION);
    group.origins[0].script(|_, out| {
        out.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")?;
        Err(io::Error::other("gone"))
    });
    for _ in 0..2 {
        let mut connection = group.gateway.connect();
        connection.send(&Request::get("/v1/app/x").bearer(&group.secret).bytes());
        assert_eq!(answer(&mut connection).0, 200);
    }
    let counts = group.counts();
    assert!(counts[0] >= 1 && counts[1] == 2, "{counts:?}");
}

#[test]
fn a_backend_that_sends_only_interim_responses_times_out() {
    let group = Group::start(&[1], "first_byte_timeout = \"1s\"\n");
    let hold = Hold::new();
    let waits = hold.clone();
    group.origins[0].script(move |_, out| {
        out.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")?;
        waits.wait(1);
        Ok(())
    });
    let mut connection = group.gateway.connect();
    connection.send(&Request::get("/v1/app/x").bearer(&group.secret).bytes());
    assert_eq!(answer(&mut connection), (504, vec![103]));
    hold.release();
}

#[test]
fn a_client_that_asked_before_it_sent_its_body_is_answered_when_no_backend_is_there() {
    let port = ReservedPort::any();
    let by_body = "end_user = \"body:user\"\n";
    let gateway =
        Gateway::start(&(upstream("app", port.address) + &route("app", "/v1/app/{rest*}", "app", by_body)));
    let key = gateway.create_key(json!({"quota_limit": 1}));
    // It is not charged, so the second gets the same response.
    for _ in 0..2 {
        let mut connection = gateway.connect();
        let request = Request::post("/v1/app/x", "{\"user\":\"ann\"}")
            .bearer(&key.secret)
            .header("Expect", "100-continue");
        connection.send(&request.head());
        assert_eq!(connection.response().status, 100);
        connection.send(b"{\"user\":\"ann\"}");
        assert_eq!(connection.response().fault(), (502, 10003, "bad_gateway".into()));
    }
}

#[test]
fn a_connection_outlives_the_failure_of_a_backend() {
    let mut group = Group::start(&[1], "max_requests = 1\n[upstreams.eject]\nafter = 0\n");
    let request = Request::get("/v1/app/x").bearer(&group.secret);
    let mut connection = group.gateway.connect();
    let is_open = |response: &crate::support::Response| response.header("connection") == Some("keep-alive");
    assert_eq!(connection.call(&request).status, 200);
    // No response, from a connection that breaks.
    group.origins[0].script(|_, _| Err(io::Error::other("gone")));
    let response = connection.call(&Request::post("/v1/app/x", "once").bearer(&group.secret));
    assert!(response.status == 502 && is_open(&response), "{response:?}");
    // No free slot, while another request has it.
    let hold = Hold::new();
    group.origins[0].answer_after(&hold);
    let mut other = group.gateway.connect();
    other.send(&request.bytes());
    group.origins[0].wait_for_heads(3);
    let response = connection.call(&request);
    assert!(response.status == 503 && is_open(&response), "{response:?}");
    // Two at once; the second is read together with the first.
    let twice = [request.bytes(), request.bytes()].concat();
    connection.send(&twice);
    assert_eq!([connection.response().status, connection.response().status], [503, 503]);
    hold.release();
    assert_eq!(other.response().status, 200);
    eventually_true("the place is free", || connection.call(&request).status == 200);
    // No server there.
    let gone = group.origins.remove(0).stop();
    let response = connection.call(&request);
    assert!(response.status == 502 && is_open(&response), "{response:?}");
    // The connection of a client that asks for it is closed.
    let response = connection.call(&request.header("Connection", "close"));
    assert_eq!((response.status, response.header("connection")), (502, Some("close")));
    assert!(connection.is_closed());
    drop(gone);
}

#[test]
fn a_failure_amid_an_upload_says_that_the_connection_closes() {
    let group = Group::start(&[1], NO_EJECTION);
    group.origins[0].script_socket(|_, _| Ok(()));
    let port = ReservedPort::any();
    let alone = Group::start_with(&[port.address], NO_EJECTION);
    let mut connection = alone.gateway.connect();
    connection.send(&Request::post("/v1/app/x", vec![b'x'; 300_000]).bearer(&alone.secret).head());
    let response = connection.response();
    assert_eq!((response.status, response.header("connection")), (502, Some("close")));
}

#[test]
fn a_body_that_is_sent_again_is_not_counted_twice() {
    let origins = [Origin::start(), Origin::start()];
    origins[0].script(|_, _| Err(io::Error::other("gone")));
    let servers = origins.each_ref().map(|o| format!("\"{}\"", o.address)).join(", ");
    let config = format!("[[upstreams]]\nname = \"app\"\nservers = [{servers}]\n{NO_EJECTION}")
        + &route("app", "/v1/app/{rest*}", "app", "max_body_bytes = \"64KiB\"\n");
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    for _ in 0..2 {
        let request = Request::new("PUT", "/v1/app/x").bearer(&secret).body(vec![b'x'; 40_000]);
        assert_eq!(gateway.call(&request).status, 200);
        assert_eq!(origins[1].last().body.len(), 40_000);
    }
    assert!(origins[0].count() >= 1, "one of them was sent twice");
}

#[test]
fn a_retry_fits_a_per_server_limit_of_one() {
    let group = Group::start(&[1], "max_requests_per_server = 1\n[upstreams.eject]\nafter = 0\n");
    let request = Request::get("/v1/app/x").bearer(&group.secret);
    for _ in 0..3 {
        // A response, and then a close that the gateway notices with its next request.
        group.origins[0].script(|_, out| {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            Err(io::Error::other("gone"))
        });
        assert_eq!(group.gateway.call(&request).status, 200);
        // The client has its response a moment before the permit is released.
        let in_flight = || group.metric_of("keygate_upstream_requests_in_flight", 0, "");
        eventually_true("the place is free", || in_flight() == Some(0));
        group.origins[0].answer(200, &[], b"ok");
        assert_eq!(group.gateway.call(&request).status, 200);
        eventually_true("the place is free", || in_flight() == Some(0));
    }
}

#[test]
fn a_server_that_breaks_every_answer_is_ejected() {
    let group = Group::start(&[1, 1], "[upstreams.eject]\nafter = 3\nfirst = \"1m\"\n");
    group.origins[0].script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe begin")?;
        Err(io::Error::other("gone"))
    });
    let cut = |_| {
        !group
            .until_cut(&Request::get("/v1/app/x").bearer(&group.secret).header("Connection", "close"))
            .ends_with("}")
    };
    assert_eq!((0..20).filter(|n| cut(*n)).count(), 3);
    assert_eq!(group.metric_of("keygate_upstream_results_total", 0, "result=\"broke_off\","), Some(3));
    assert_eq!(group.metric_of("keygate_upstream_results_total", 0, "result=\"answered\","), Some(0));
    assert_eq!(group.gateway.stderr().matches("requests to upstream server are failing").count(), 1);
}

#[test]
fn the_log_says_why_a_server_fails_and_when_it_works_again() {
    let reserved = ReservedPort::any();
    let address = reserved.address;
    let config = upstream("app", address) + NO_EJECTION + &route("app", "/v1/app/{rest*}", "app", "");
    let gateway = Gateway::start(&(config + "[log]\nformat = \"json\"\n"));
    let secret = gateway.create_key(json!({})).secret;
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 502);
    let lines = |message: &str| -> Vec<Value> {
        let log = gateway.stderr();
        log.lines().filter(|l| l.contains(message)).map(|l| serde_json::from_str(l).expect("JSON")).collect()
    };
    let failing = eventually("the failure is logged", || {
        lines("requests to upstream server are failing").into_iter().next()
    });
    assert_eq!(
        (&failing["server"], &failing["failure"]),
        (&json!(address.to_string()), &json!("connect_failed"))
    );
    let cause = failing["cause"].as_str().expect("a cause");
    assert!(cause.starts_with("Connection refused"), "{failing}");
    drop(reserved);
    let _origin = Origin::start_at(address);
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    let again = eventually("the recovery is logged", || {
        lines("requests to upstream server succeed again").into_iter().next()
    });
    assert_eq!(again["server"], json!(address.to_string()));
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    assert_eq!(lines("succeed again").len(), 1, "once");
}
