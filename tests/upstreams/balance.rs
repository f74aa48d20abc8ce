//! Load balancing: round robin with weights, least load, hashing by key, end user or header.

use crate::group::Group;
use crate::support::{Hold, Request, eventually_true};
use serde_json::json;

#[test]
fn servers_take_turns_by_weight() {
    let group = Group::start(&[3, 1], "");
    group.get_many(40, ("X-Any", "1"));
    assert_eq!(group.counts(), [30, 10]);
}

#[test]
fn least_connections_avoids_the_busy_server() {
    let group = Group::start(&[1, 1], "balance = \"least-connections\"");
    let hold = Hold::new();
    group.origins[0].answer_after(&hold);
    let mut held = Vec::new();
    // Until one waits at the first origin.
    while group.counts()[0] == 0 {
        let mut connection = group.gateway.connect();
        connection.send(&Request::get("/v1/app/x").bearer(&group.secret).bytes());
        held.push(connection);
        eventually_true("the request is somewhere", || group.counts().iter().sum::<usize>() == held.len());
    }
    let in_flight = |n: usize| group.metric_of("keygate_upstream_requests_in_flight", n, "");
    eventually_true("the others are answered", || in_flight(1) == Some(0));
    assert_eq!(in_flight(0), Some(1));
    let before = group.counts()[1];
    group.get_many(50, ("X-Any", "1"));
    assert_eq!(group.counts(), [1, before + 50], "nothing goes to the one that is busy");
    hold.release();
    for mut connection in held {
        assert_eq!(connection.response().status, 200);
    }
    eventually_true("nothing is in flight", || in_flight(0) == Some(0));
}

#[test]
fn a_name_stays_with_its_server_and_moves_only_when_that_is_gone() {
    let mut group = Group::start(&[1, 1, 1], "balance = \"hash:header:X-Session\"");
    // Ports differ on each run: the probability that no name maps to one of the servers is about 10⁻¹⁰.
    let names: Vec<_> = (0..60).map(|n| format!("session-{n}")).collect();
    let home_of = |group: &Group, name: &str| {
        group.origins.iter().for_each(crate::support::Origin::forget);
        group.get_many(3, ("X-Session", name));
        let counts = group.counts();
        let home = counts.iter().position(|n| *n == 3);
        home.unwrap_or_else(|| panic!("{name} is at more than one: {counts:?}"))
    };
    let homes: Vec<_> = names.iter().map(|name| home_of(&group, name)).collect();
    assert!((0..3).all(|n| homes.contains(&n)), "each server has some of the names: {homes:?}");
    let gone = group.origins.remove(2).stop();
    for (name, home) in names.iter().zip(homes) {
        let now = home_of(&group, name);
        assert!(home == 2 || now == home, "{name} was not at the one that left, and has moved");
    }
    drop(gone);
}

#[test]
fn requests_of_one_end_user_or_one_key_meet_one_server() {
    for (balance, header) in [("hash:end-user", "X-End-User-Id"), ("hash:key", "X-Any")] {
        let group = Group::start(&[1, 1, 1, 1], &format!("balance = \"{balance}\""));
        let other = group.gateway.create_key(json!({"rate_limit": 1000})).secret;
        group.get_many(8, (header, "u-1"));
        let mut counts = group.counts();
        counts.sort_unstable();
        assert_eq!(counts, [0, 0, 0, 8], "{balance}");
        let request = Request::get("/v1/app/x").bearer(&other).header(header, "u-1");
        assert_eq!(group.gateway.call(&request).status, 200);
    }
}
