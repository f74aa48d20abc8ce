//! Which requests are retried and which never are, time limits of a request, and concurrency limits.

use crate::group::Group;
use crate::support::{Hold, Request, ReservedPort, Response, eventually_true};
use serde_json::json;
use std::io;

const RETRIES: &str = "keygate_upstream_retries_total";

/// Ejection would disturb the counts.
const NO_EJECTION: &str = "[upstreams.eject]\nafter = 0\n";

/// Each origin closes the connection when it has read a request.
fn break_off(group: &Group, which: usize) {
    group.origins[which].script(|_, _| Err(io::Error::other("gone")));
}

fn call(group: &Group, method: &str) -> Response {
    let request = Request::new(method, "/v1/app/x").bearer(&group.secret);
    group.gateway.call(&if method == "POST" { request.body("twice is too much") } else { request })
}

#[test]
fn a_connection_that_breaks_before_the_answer_repeats_what_may_be_done_twice() {
    let group = Group::start(&[1, 1], NO_EJECTION);
    break_off(&group, 0);
    for method in ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"] {
        for _ in 0..2 {
            assert_eq!(call(&group, method).status, 200, "{method}");
        }
    }
    assert_eq!(group.counts(), [10, 10], "each went to the first in its turn, and from there to the second");
    let sent_again = format!("{RETRIES}{{outcome=\"sent_again\",upstream=\"app\"}}");
    assert_eq!(group.metric(&sent_again), Some(10));
    assert_eq!(group.metric_of("keygate_upstream_results_total", 0, "result=\"broke_off\","), Some(10));
}

#[test]
fn requests_that_may_have_been_processed_are_not_retried() {
    let group = Group::start(&[1, 1], NO_EJECTION);
    (0..2).for_each(|n| break_off(&group, n));
    let key = group.gateway.create_key(json!({"quota_limit": 10}));
    for method in ["POST", "PATCH"] {
        let before: usize = group.counts().iter().sum();
        let request = Request::new(method, "/v1/app/x").bearer(&key.secret).body("once");
        assert_eq!(group.gateway.call(&request).fault(), (502, 10003, "bad_gateway".into()));
        assert_eq!(group.counts().iter().sum::<usize>(), before + 1, "{method} was sent once");
    }
    let rows = group.gateway.wait_for_logs(&key, 2);
    assert!(rows.iter().all(|row| row["outcome"] == "upstream_failed"), "{rows:#?}");
    assert_eq!(group.gateway.stats(&key)["quota_used"], 2, "the backend may have done it, so it is paid for");
}

#[test]
fn nothing_is_repeated_once_a_part_of_the_answer_has_come() {
    let group = Group::start(&[1, 1], NO_EJECTION);
    for origin in &group.origins {
        origin.script(|_, out| {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe begin")?;
            Err(io::Error::other("gone"))
        });
    }
    let came = group.until_cut(&Request::get("/v1/app/x").bearer(&group.secret));
    assert!(came.starts_with("HTTP/1.1 200 OK") && came.ends_with("the begin"), "{came}");
    assert_eq!(group.counts().iter().sum::<usize>(), 1);
}

#[test]
fn a_body_that_is_still_there_goes_along_to_the_next_server() {
    let mut group = Group::start(&[1, 1], NO_EJECTION);
    let gone = group.origins.remove(0).stop();
    let body = vec![b'x'; 200_000];
    for _ in 0..2 {
        let request = Request::post("/v1/app/x", body.clone()).bearer(&group.secret);
        assert_eq!(group.gateway.call(&request).status, 200);
        assert_eq!(group.origins[0].last().body.len(), body.len());
    }
    drop(gone);
}

#[test]
fn attempts_and_the_budget_bound_what_is_sent_again() {
    let none = format!("[upstreams.retry]\nbudget_percent = 0\nbudget_per_second = 0\n{NO_EJECTION}");
    let one = format!("[upstreams.retry]\nattempts = 1\n{NO_EJECTION}");
    let two = format!("[upstreams.retry]\nattempts = 2\n{NO_EJECTION}");
    for (config, each, over) in [(none, 1, Some(6)), (one, 1, Some(0)), (two, 2, Some(0))] {
        let group = Group::start(&[1, 1, 1], &config);
        (0..3).for_each(|n| break_off(&group, n));
        assert!((0..6).all(|_| call(&group, "GET").status == 502));
        assert_eq!(group.counts().iter().sum::<usize>(), 6 * each, "{config}");
        assert_eq!(group.metric(&format!("{RETRIES}{{outcome=\"over_budget\",upstream=\"app\"}}")), over);
    }
    // A refused connection is one attempt and is not charged.
    let port = ReservedPort::any();
    let config = format!("[upstreams.retry]\nattempts = 1\n{NO_EJECTION}");
    let group = Group::start_with(&[port.address], &config);
    let key = group.gateway.create_key(json!({"quota_limit": 1}));
    for _ in 0..3 {
        let response = group.gateway.get("/v1/app/x", &key.secret);
        assert_eq!(response.fault(), (502, 10003, "bad_gateway".into()));
    }
}

#[test]
fn a_request_that_takes_too_long_in_all_is_504() {
    let group = Group::start(&[1], "request_timeout = \"1s\"\n");
    let hold = Hold::new();
    group.origins[0].answer_after(&hold);
    assert_eq!(call(&group, "GET").fault(), (504, 10003, "gateway_timeout".into()));
    assert_eq!(group.counts(), [1], "a slow server is not asked twice");
    hold.release();
    // A response that begins in time and never ends is cut at its first chunk after the deadline.
    group.origins[0].script(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            out.write_all(b"4\r\nmore\r\n")?;
        }
    });
    let came = group.until_cut(&Request::get("/v1/app/x").bearer(&group.secret));
    assert!(came.starts_with("HTTP/1.1 200 OK") && came.contains("more") && !came.ends_with("0\r\n\r\n"));
}

#[test]
fn a_backend_that_does_not_begin_to_answer_is_504_and_may_pause_for_longer_later() {
    let group = Group::start(&[1], "first_byte_timeout = \"1s\"\n");
    let hold = Hold::new();
    let waits = hold.clone();
    group.origins[0].script(move |request, out| {
        let late = request.target.ends_with("late");
        if late {
            waits.wait(1);
        }
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")?;
        if !late {
            waits.wait(1);
        }
        out.write_all(b"ay")
    });
    // The response that has begun is still waiting when the other request's time is over.
    let mut slow = group.gateway.connect();
    slow.send(&Request::get("/v1/app/slow").bearer(&group.secret).bytes());
    assert_eq!(slow.response_head().status, 200);
    for _ in 0..2 {
        let request = Request::post("/v1/app/late", "once").bearer(&group.secret);
        assert_eq!(group.gateway.call(&request).fault(), (504, 10003, "gateway_timeout".into()));
    }
    assert_eq!(
        group.metric_of("keygate_upstream_results_total", 0, "result=\"first_byte_timed_out\","),
        Some(2)
    );
    hold.release();
    assert_eq!(slow.exactly(4), b"okay");
}

#[test]
fn above_its_limit_an_upstream_refuses_at_once_and_for_nothing() {
    for (limit, servers, reason) in
        [("max_requests", 1, "max_requests"), ("max_requests_per_server", 2, "max_requests_per_server")]
    {
        let group = Group::start(&vec![1; servers], &format!("{limit} = 1\n"));
        let hold = Hold::new();
        group.origins.iter().for_each(|origin| origin.answer_after(&hold));
        let key = group.gateway.create_key(json!({"quota_limit": servers}));
        let request = Request::get("/v1/app/x").bearer(&key.secret);
        let mut held = Vec::new();
        for n in 1..=servers {
            let mut connection = group.gateway.connect();
            connection.send(&request.bytes());
            held.push(connection);
            eventually_true("it waits at a server", || group.counts().iter().sum::<usize>() == n);
        }
        // The quota is used up by those; requests refused by the upstream itself would not be charged.
        let other = group.gateway.create_key(json!({"quota_limit": 1}));
        for _ in 0..3 {
            let response = group.gateway.get("/v1/app/x", &other.secret);
            assert_eq!(response.fault(), (503, 10003, "service_unavailable".into()));
            assert_eq!(response.header("retry-after"), Some("1"));
        }
        let refused = format!("keygate_upstream_unavailable_total{{reason=\"{reason}\",upstream=\"app\"}}");
        assert_eq!(group.metric(&refused), Some(3));
        hold.release();
        for mut connection in held {
            assert_eq!(connection.response().status, 200);
        }
        eventually_true("there is room", || group.gateway.get("/v1/app/x", &other.secret).status == 200);
    }
}

#[test]
fn an_answer_whose_length_is_not_plain_is_502() {
    let group = Group::start(&[1], NO_EJECTION);
    for odd in [
        "Content-Length: 2, 2\r\n\r\nok",
        "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "Content-Length: +2\r\n\r\nok",
        "Content-Length: 02\r\n\r\nok",
        "Transfer-Encoding: gzip\r\n\r\nok",
        "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        group.origins[0].script(move |_, out| {
            write!(out, "HTTP/1.1 200 OK\r\nX-Internal: 1\r\n{odd}")?;
            Err(io::Error::other("gone"))
        });
        let response = group.gateway.get("/v1/app/x", &group.secret);
        assert_eq!(response.fault(), (502, 10003, "bad_gateway".into()), "{odd:?}");
        assert_eq!(response.header("x-internal"), None, "nothing of it is passed on");
    }
    for plain in [
        "Content-Length: 2\r\n\r\nok",
        "Content-Length: \t2 \r\n\r\nok",
        "Transfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "\r\nok",
    ] {
        group.origins[0].script(move |_, out| {
            write!(out, "HTTP/1.1 200 OK\r\n{plain}")?;
            Err(io::Error::other("gone"))
        });
        let response = group.gateway.get("/v1/app/x", &group.secret);
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{plain:?}");
    }
}
