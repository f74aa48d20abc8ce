//! The state of servers while their group changes.

use super::*;
use crate::clock::{ManualClock, Timestamp};
use crate::policy::upstream::health::EjectRule;

const RULE: ProbeRule = ProbeRule { up_after: 1, down_after: 1 };

fn group(names: usize) -> (Upstream, Arc<ManualClock>, Arc<Metrics>) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1)));
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    (Upstream::new(settings(names), Arc::clone(&metrics), clock.clone()), clock, metrics)
}

fn settings(names: usize) -> UpstreamSettings {
    let named = |n: usize| ServerSpec { host: format!("h{n}").into(), port: 80, weight: 1 };
    let second = Duration::from_secs(1);
    UpstreamSettings {
        name: "app".into(),
        names: (0..names).map(named).collect(),
        balancing: Balancing::RoundRobin,
        hash_load_percent: 0,
        resolve_every: second,
        timeouts: Timeouts {
            first_byte: None,
            connect: second,
            read: second,
            write: second,
            idle: second,
            request: None,
            tunnel: second,
        },
        protocol: UpstreamProtocol::new(HttpVersion::Http1, None),
        most: ConcurrencyLimits { requests: 2, pending: 1, per_server: usize::MAX },
        attempts: 3,
        budget: RetryBudgetRule { percent: 0, per_second: 1 },
        probe: None,
        eject: EjectRule { after: 1, first: second, longest: second * 60, share_percent: 50 },
        credentials: Box::default(),
        stored: Arc::default(),
    }
}

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 80))
}

/// The servers that four requests in a row get, each once.
fn server_set(upstream: &Upstream) -> Vec<SocketAddr> {
    let context = PickContext { random: 0, name: 0, tried: &[] };
    let mut met: Vec<_> = (0..4).filter_map(|_| Some(upstream.pick(&context).ok()?.address)).collect();
    met.sort_unstable();
    met.dedup();
    met
}

#[test]
fn a_name_that_cannot_be_looked_up_keeps_its_servers() {
    let (upstream, ..) = group(2);
    assert_eq!(server_set(&upstream), []);
    upstream.apply_lookup(&[Some(vec![at(1), at(2)]), Some(vec![at(3)])]);
    assert_eq!(server_set(&upstream), [at(1), at(2), at(3)]);
    upstream.apply_lookup(&[None, Some(vec![at(4)])]);
    assert_eq!(server_set(&upstream), [at(1), at(2), at(4)]);
    upstream.apply_lookup(&[None, None]);
    assert_eq!(server_set(&upstream), [at(1), at(2), at(4)]);
    upstream.apply_lookup(&[Some(vec![at(4)]), Some(vec![at(4)])]);
    assert_eq!(server_set(&upstream), [at(4)], "two names for one server do not make it two");
}

#[test]
fn health_outlives_a_change_of_the_members() {
    let (upstream, clock, metrics) = group(1);
    upstream.apply_lookup(&[Some(vec![at(1), at(2), at(3), at(4)])]);
    let server =
        |n: u8| upstream.all_members().into_iter().find(|m| m.server.address == at(n)).expect("it").server;
    upstream.probed(&server(1), false, RULE, "it answered 500");
    upstream.failed(&server(2), ServerFailure::Connect);
    assert_eq!(server_set(&upstream), [at(3), at(4)]);
    let busy = upstream.pick(&PickContext { random: 0, name: 0, tried: &[server(4)] }).expect("the third");

    upstream.apply_lookup(&[Some(vec![at(1), at(2), at(3), at(5), at(6)])]);
    assert_eq!(server_set(&upstream), [at(3), at(5), at(6)]);
    assert_eq!((busy.address, server(3).in_flight()), (at(3), 1));
    assert!(!metrics.render().contains("10.0.0.4:80"), "who left is not shown any more");
    drop(busy);
    assert_eq!(server(3).in_flight(), 0);

    assert_eq!(upstream.readmit(clock.now()), Some(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(1));
    assert_eq!(upstream.readmit(clock.now()), None);
    upstream.probed(&server(1), true, RULE, "");
    assert_eq!(server_set(&upstream).len(), 4, "in one round of four: {:?}", server_set(&upstream));
    assert!(server(1).is_up() && server(2).is_up());
}

#[test]
fn a_tried_server_is_skipped_and_after_the_last_one_there_is_none() {
    let (upstream, ..) = group(1);
    upstream.apply_lookup(&[Some(vec![at(1), at(2)])]);
    let mut tried = Vec::new();
    for left in [true, false] {
        let busy = upstream.pick(&PickContext { random: 7, name: 7, tried: &tried }).expect("another");
        assert!(!tried.iter().any(|t: &Arc<Server>| t.address == busy.address));
        tried.push(Arc::clone(busy.server()));
        assert_eq!(upstream.has_another(&tried), left);
    }
    assert!(matches!(upstream.pick(&PickContext { random: 7, name: 7, tried: &tried }), Err(NoServer::Down)));
}

#[test]
fn requests_pending_and_per_server_limits_are_enforced() {
    let (mut upstream, ..) = group(1);
    upstream.settings.most.per_server = 1;
    let upstream = Arc::new(upstream);
    upstream.apply_lookup(&[Some(vec![at(1), at(2)])]);
    let permits = [upstream.enter(), upstream.enter()];
    assert!(permits.iter().all(Result::is_ok) && matches!(upstream.enter(), Err(NoServer::Requests)));
    let waiting = upstream.wait();
    assert!(waiting.is_ok() && matches!(upstream.wait(), Err(NoServer::Pending)));
    drop((permits, waiting));
    assert!(upstream.enter().is_ok() && upstream.wait().is_ok());

    let context = PickContext { random: 0, name: 0, tried: &[] };
    let busy = [upstream.pick(&context).expect("one"), upstream.pick(&context).expect("the other")];
    assert_ne!(busy[0].address, busy[1].address);
    assert!(matches!(upstream.pick(&context), Err(NoServer::Servers)));
    let [first, _second] = busy;
    let freed = first.address;
    drop(first);
    assert_eq!(upstream.pick(&context).expect("it again").address, freed);
}

#[test]
fn after_a_reload_failures_of_older_requests_still_eject() {
    let (old, clock, metrics) = group(2);
    old.apply_lookup(&[Some(vec![at(1), at(2)]), Some(vec![at(3)])]);
    let next = Arc::new(Upstream::new(settings(2), metrics, clock.clone()));
    // The second name can no longer be resolved.
    next.apply_lookup(&[Some(vec![at(2), at(4)]), None]);
    let old_server = old.all_members()[1].server.clone();
    next.take_over(&old);
    assert_eq!(server_set(&next), [at(2), at(3), at(4)], "and what was known of a name stays known");
    assert!(next.all_members().iter().any(|m| Arc::ptr_eq(&m.server, &old_server)), "it is the same server");

    old.failed(&old_server, ServerFailure::Broken);
    assert_eq!(server_set(&next), [at(3), at(4)], "a request from before ejects it");
    clock.advance(Duration::from_secs(1));
    assert_eq!(old.readmit(clock.now()), None, "and the new one lets it back in");
    assert_eq!(next.readmit(clock.now()), None);
    assert_eq!(server_set(&next), [at(2), at(3), at(4)]);
    // A probe by the old upstream's task, which may be about to end.
    old.probed(&old_server, false, RULE, "");
    old.apply_lookup(&[Some(vec![at(9)]), None]);
    assert_eq!(server_set(&next), [at(2), at(3), at(4)]);
}

#[test]
fn probe_results_survive_a_reload_only_with_the_same_probe() {
    let (old, clock, metrics) = group(1);
    old.apply_lookup(&[Some(vec![at(1), at(2)])]);
    for member in old.all_members() {
        old.probed(&member.server, false, RULE, "it answered 500");
    }
    let second = Duration::from_secs(1);
    let probe = Some(Probe { http: None, every: second, within: second, rule: RULE });
    let same = Arc::new(Upstream::new(settings(1), Arc::clone(&metrics), clock.clone()));
    same.apply_lookup(&[Some(vec![at(1), at(2)])]);
    same.take_over(&old);
    assert_eq!(server_set(&same), []);
    let other = Arc::new(Upstream::new(UpstreamSettings { probe, ..settings(1) }, metrics, clock));
    other.apply_lookup(&[Some(vec![at(1), at(2)])]);
    other.take_over(&same);
    assert_eq!(server_set(&other), [at(1), at(2)]);
}

#[test]
fn a_server_that_has_left_is_not_shown_again() {
    let (upstream, _, metrics) = group(1);
    upstream.apply_lookup(&[Some(vec![at(1), at(2)])]);
    let gone = upstream.pick(&PickContext { random: 0, name: 0, tried: &[] }).expect("one");
    upstream.apply_lookup(&[Some(vec![at(3)])]);
    upstream.failed(&gone, ServerFailure::Broken);
    assert!(!metrics.render().contains(&*gone.text));
}

#[test]
fn a_server_that_fails_now_and_then_is_logged_once_a_minute() {
    let (upstream, clock, _) = group(1);
    upstream.apply_lookup(&[Some(vec![at(1)])]);
    let server = upstream.all_members()[0].server.clone();
    let rule = EjectRule { after: 0, ..upstream.settings.eject };
    let mut told = 0;
    for _ in 0..100 {
        told += usize::from(server.should_log(clock.now()));
        server.failed(clock.now(), rule, 0, 1);
        server.answered();
        clock.advance(Duration::from_secs(10));
    }
    assert_eq!(told, 17, "in 990 seconds");
}

#[test]
fn no_success_is_forgotten_between_two_failures() {
    let (upstream, clock, _) = group(1);
    upstream.apply_lookup(&[Some(vec![at(1)])]);
    let server = upstream.all_members()[0].server.clone();
    let rule = EjectRule { after: 100, ..upstream.settings.eject };
    let fail = || server.failed(clock.now(), rule, 0, 1);
    let rounds = 20_000;
    let both = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..rounds {
                both.wait();
                server.answered();
                both.wait();
            }
        });
        for round in 0..rounds {
            fail();
            both.wait();
            fail();
            both.wait();
            // Whichever came first, this success comes after both.
            server.answered();
            assert_eq!(server.failures(), 0, "round {round}");
        }
    });
}
