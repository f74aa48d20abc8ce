//! Health of servers: probes, ejection, and the response when no server is left.

use crate::group::Group;
use crate::support::{Gateway, Origin, ReservedPort, eventually_true, one_route};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const UP: &str = "keygate_upstream_up";

/// An origin whose `/health` fails while the flag is false, and which serves everything else.
fn health_of(origin: &Origin) -> Arc<AtomicBool> {
    let well = Arc::new(AtomicBool::new(true));
    let looked_at = Arc::clone(&well);
    origin.script(move |request, out| {
        let sick = request.target.starts_with("/health") && !looked_at.load(Ordering::Acquire);
        let status = if sick { "500 Sick" } else { "200 OK" };
        write!(out, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    });
    well
}

#[test]
fn a_server_whose_probes_fail_gets_nothing_until_they_succeed() {
    let probes = "[upstreams.health]\ncheck = \"http\"\npath = \"/health?deep=1\"\ninterval = \"50ms\"\nup_after = 2\n";
    let group = Group::start(&[1, 1], probes);
    let well = health_of(&group.origins[0]);
    let _other = health_of(&group.origins[1]);
    let probed = || group.origins[0].requests().iter().any(|r| r.target == "/health?deep=1");
    eventually_true("probes come", probed);
    let head = group.origins[0].requests().into_iter().find(|r| r.target.starts_with("/health")).unwrap();
    assert_eq!(head.header("host"), Some(&*group.origins[0].address.to_string()));
    assert_eq!((head.method.as_str(), head.header("authorization")), ("GET", None));

    well.store(false, Ordering::Release);
    eventually_true("it is down", || group.metric_of(UP, 0, "") == Some(0));
    let served = |n: usize| group.origins[n].requests().iter().filter(|r| r.target == "/v1/app/x").count();
    let before = (served(0), served(1));
    group.get_many(10, ("X-Any", "1"));
    assert_eq!((served(0), served(1)), (before.0, before.1 + 10));

    well.store(true, Ordering::Release);
    eventually_true("it is up", || group.metric_of(UP, 0, "") == Some(1));
    group.get_many(10, ("X-Any", "1"));
    assert_eq!((served(0), served(1)), (before.0 + 5, before.1 + 15));
    let said = group.gateway.stderr();
    assert_eq!(
        said.matches("upstream server down: health checks fail").count(),
        1,
        "once for each change:\n{said}"
    );
    assert_eq!(said.matches("upstream server up: health checks pass").count(), 1, "{said}");
}

#[test]
fn with_no_server_left_the_answer_is_503_and_costs_nothing() {
    let port = ReservedPort::any();
    let probes = "[upstreams.health]\ncheck = \"tcp\"\ninterval = \"50ms\"\n";
    let config = one_route(port.address).replacen("[[routes]]", &format!("{probes}[[routes]]"), 1);
    let gateway = Gateway::start(&config);
    let key = gateway.create_key(json!({"rate_limit": 1000, "quota_limit": 3}));
    let down = || gateway.stderr().contains("no healthy server left in upstream");
    eventually_true("the only server is down", down);
    // More than the quota allows: each charge is returned.
    for _ in 0..5 {
        let response = gateway.get("/v1/app/x", &key.secret);
        assert_eq!(response.fault(), (503, 10003, "service_unavailable".into()));
        assert_eq!(response.header("retry-after"), Some("1"));
    }
    let rows = gateway.wait_for_logs(&key, 5);
    assert!(rows.iter().all(|r| r["outcome"] == "upstream_failed" && r["upstream"] == ""), "{rows:#?}");
}

#[test]
fn a_server_that_fails_requests_is_left_out_for_a_time() {
    let eject = "[upstreams.eject]\nafter = 3\nfirst = \"300ms\"\n";
    let group = Group::start(&[1, 1], eject);
    group.origins[0].answer(503, &[], b"busy");
    let statuses: Vec<_> = (0..6).map(|_| group.get()).collect();
    assert_eq!(statuses, [503, 200, 503, 200, 503, 200], "what a backend answers is passed on");
    assert_eq!(group.metric_of("keygate_upstream_ejections_total", 0, ""), Some(1));
    assert_eq!(group.metric_of("keygate_upstream_results_total", 0, "result=\"error_status\","), Some(3));
    // Both failed now, but only half of the group may be ejected.
    group.origins[1].answer(500, &[], b"broken");
    group.origins[0].answer(200, &[], b"well");
    let so_far = group.counts();
    eventually_true("it is back", || group.metric_of(UP, 0, "") == Some(1));
    eventually_true("it gets requests", || {
        group.get();
        group.counts()[0] > so_far[0]
    });
    let said = group.gateway.stderr();
    assert!(said.contains("upstream server readmitted after ejection"), "{said}");
}

#[test]
fn the_only_server_is_never_left_out() {
    let group = Group::start(&[1], "[upstreams.eject]\nafter = 1\nshare_percent = 50\n");
    group.origins[0].answer(500, &[], b"broken");
    assert_eq!([group.get(), group.get(), group.get()], [500; 3]);
    assert_eq!(group.counts(), [3]);
}

#[test]
fn a_name_is_looked_up_and_its_server_is_known_by_its_address() {
    let origin = Origin::start();
    let config = one_route(origin.address).replace("127.0.0.1:", "localhost:");
    let gateway = Gateway::start(&config);
    let key = gateway.create_key(json!({}));
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
    assert_eq!(gateway.wait_for_logs(&key, 1)[0]["upstream"], origin.address.to_string());
}
