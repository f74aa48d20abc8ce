//! Nodes, leases and the real script in a real Redis, with time, loss and crashes in the test's hands.

use super::lease::{Ask, Grant, Lease, Take};
use super::script::{self, Answer, Ledgered, Subjects};
use crate::clock::Timestamp;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::key::{Count, Per};
use crate::policy::limit::{Limit, LimitName, Limits, Rule, window_start};
use crate::store::{SpentBy, SpentRow};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::HashMap;
use std::time::Duration;

mod changed_limits;
mod clock_steps;
#[expect(dead_code, reason = "the tests from outside also stop and question it")]
#[path = "../../tests/counters/redis.rs"]
mod redis_server;
use redis_server::RedisServer;

/// Two seconds before a UTC day ends, so that every window ends within a run.
const START_US: i64 = 1_796_255_998_000_000;

/// The script, told the time by the test.
fn timed_script() -> String {
    let (before, after) =
        script::SOURCE.split_once("redis.call('TIME')").expect("the script asks for the time once");
    format!(
        "{before}{{ tonumber(redis.call('GET', 'now:s')), tonumber(redis.call('GET', 'now:us')) }}{after}"
    )
}

struct World {
    redis: redis::Connection,
    script: String,
    key: KeyId,
    workspace: WorkspaceId,
    ledger: SpentRow,
    now_us: i64,
}

/// A node's clock is off by some time on the calendar and counts from its own start.
struct Node {
    lease: Lease,
    name: String,
    /// Questions on their way back: until when, what was asked, what was answered.
    in_transit: Vec<(u64, u64, Ask, Grant)>,
    /// When each was debited, by Redis's clock, and when it was admitted.
    running: Vec<(i64, i64)>,
}

#[derive(Clone, Debug)]
enum Act {
    /// So many requests arrive at a node.
    Requests(usize, u8),
    /// The answer to a question takes so many µs, or never comes.
    Slow(usize, Option<u32>),
    /// A request of a node ends.
    End(usize),
    /// A request of a node is given back.
    GiveBack(usize),
    /// A node dies and a new one takes its place.
    Crash(usize),
    /// Time passes, in µs.
    Wait(u32),
}

impl World {
    fn new(server: &RedisServer) -> Self {
        let client = redis::Client::open(format!("redis://{}/", server.address)).expect("a client");
        let key = KeyId::new(Timestamp::from_micros(START_US));
        let none = SpentRow { subject: SpentBy::Key(key), minute: 0, hour: 0, day: 0, month: 0, total: 0 };
        Self {
            redis: client.get_connection().expect("a connection"),
            script: timed_script(),
            key,
            workspace: key.to_string().parse().expect("an id"),
            ledger: none,
            now_us: START_US,
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.now_us - START_US).expect("after the start") * 1_000 + 10_000_000_000
    }

    fn ask(&mut self, node: &str, nodes: usize, ask: &Ask) -> Grant {
        let of_workspace = |l: &&Limit| matches!(l.name, LimitName::Workspace(_));
        let key_limits = ask.limits.iter().take_while(|l| !of_workspace(l)).count();
        let subjects = Subjects {
            key: self.key,
            workspace: (&self.workspace, key_limits < ask.limits.len()),
            key_limits,
            node,
            nodes: nodes as u64,
            server: "s1",
            lag: Duration::from_secs(2),
            heard: [None; 2],
        };
        let at = Timestamp::from_micros(self.now_us);
        let ledger = Ledgered { at, rows: vec![self.ledger.clone(), self.ledger.clone()] };
        for ledger in [None, Some(&ledger)] {
            let command = script::command_with(&self.script, &subjects, ask, ledger);
            let mut both = redis::pipe();
            both.cmd("SET").arg("now:s").arg(self.now_us / 1_000_000).ignore();
            both.cmd("SET").arg("now:us").arg(self.now_us % 1_000_000).ignore();
            both.atomic().add_command(command);
            let values: Vec<redis::Value> = both.query(&mut self.redis).expect("the script runs");
            match script::read(&values[0], ask, &subjects).expect("an answer of the script") {
                Answer::Grant(grant, _) => return grant,
                Answer::Unknown { .. } => {}
            }
        }
        panic!("Redis was filled and does not know the key");
    }
}

impl Node {
    fn new(name: String) -> Self {
        Self { lease: Lease::default(), name, in_transit: Vec::new(), running: Vec::new() }
    }
}

struct Run {
    world: World,
    nodes: Vec<Node>,
    limits: Limits,
    /// When, in µs.
    admitted: Vec<i64>,
    /// How long the answer to the next question of each node takes.
    delay: Vec<Option<u32>>,
    born: usize,
}

impl Run {
    fn new(server: &RedisServer, nodes: usize, limits: Limits) -> Self {
        let mut run = Self {
            world: World::new(server),
            nodes: Vec::new(),
            limits,
            admitted: Vec::new(),
            delay: vec![Some(300); nodes],
            born: 0,
        };
        for _ in 0..nodes {
            let node = run.newborn();
            run.nodes.push(node);
        }
        run
    }

    fn newborn(&mut self) -> Node {
        self.born += 1;
        Node::new(format!("n{}", self.born))
    }

    fn play(&mut self, act: &Act) {
        let count = self.nodes.len();
        match act {
            Act::Requests(node, n) => {
                for _ in 0..*n {
                    self.request(node % count);
                }
            }
            Act::Slow(node, delay) => self.delay[node % count] = *delay,
            Act::End(node) => {
                let node = &mut self.nodes[node % count];
                if node.running.pop().is_some() {
                    node.lease.end();
                }
            }
            Act::GiveBack(node) => {
                let node = &mut self.nodes[node % count];
                if let Some((at_us, admitted_us)) = node.running.pop() {
                    node.lease.give_back(at_us);
                    let place = self.admitted.iter().rposition(|at| *at == admitted_us);
                    self.admitted.remove(place.expect("it was admitted"));
                }
            }
            Act::Crash(node) => {
                let dead = node % count;
                self.nodes[dead] = self.newborn();
            }
            Act::Wait(us) => self.pass(i64::from(*us)),
        }
    }

    /// A request: from what is in hand, or Redis is asked, whose answer comes later.
    fn request(&mut self, index: usize) {
        let (now_ns, today_us) = (self.world.now_ns(), self.world.now_us);
        let node = &mut self.nodes[index];
        match node.lease.take(&self.limits, now_ns) {
            Take::Unit(at_us) => {
                node.running.push((at_us, today_us));
                self.admitted.push(today_us);
            }
            Take::Refused(_) => {}
            Take::Ask if !node.in_transit.is_empty() => {}
            Take::Ask => {
                let ask = node.lease.ask(1, now_ns);
                self.send(index, ask);
            }
        }
    }

    fn send(&mut self, index: usize, ask: Ask) {
        let name = self.nodes[index].name.clone();
        let (sent_ns, count) = (self.world.now_ns(), self.nodes.len());
        let grant = self.world.ask(&name, count, &ask);
        let node = &mut self.nodes[index];
        match self.delay[index] {
            Some(us) => node.in_transit.push((sent_ns + u64::from(us) * 1_000, sent_ns, ask, grant)),
            None => {
                node.lease.unanswered(&ask);
                self.delay[index] = Some(300);
            }
        }
    }

    /// Time passes in small steps; answers arrive, what is due is settled.
    fn pass(&mut self, us: i64) {
        let until = self.world.now_us + us;
        while self.world.now_us < until {
            self.world.now_us = until.min(self.world.now_us + 5_000);
            let (now_ns, today_us) = (self.world.now_ns(), self.world.now_us);
            for index in 0..self.nodes.len() {
                let node = &mut self.nodes[index];
                if let Some(first) = node.in_transit.first().filter(|t| t.0 <= now_ns).cloned() {
                    node.in_transit.remove(0);
                    let (_, sent_ns, ask, grant) = first;
                    node.lease.answer(&ask, &grant, sent_ns, now_ns);
                    if ask.need > 0
                        && let Some(at_us) = node.lease.spend(now_ns)
                    {
                        node.running.push((at_us, today_us));
                        self.admitted.push(today_us);
                    }
                    if ask.ahead == 0 {
                        node.lease.retire();
                    }
                } else if node.in_transit.is_empty()
                    && node.lease.is_due(now_ns)
                    && let Some(ask) = node.lease.settle(false, now_ns)
                {
                    self.send(index, ask);
                }
            }
        }
    }

    /// The most that any window of `per` admitted.
    fn most_in_a_window(&self, per: Per) -> u64 {
        let mut windows = HashMap::<Timestamp, u64>::new();
        for at_us in &self.admitted {
            *windows.entry(window_start(per, Timestamp::from_micros(*at_us))).or_default() += 1;
        }
        windows.into_values().max().unwrap_or(0)
    }
}

fn limit(name: LimitName, rule: Rule) -> Limit {
    Limit { name, count: Count::Requests, rule }
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..3_usize, 1..40_u8).prop_map(|(n, k)| Act::Requests(n, k)),
        6 => (100..40_000_u32).prop_map(Act::Wait),
        2 => (0..3_usize, proptest::option::weighted(0.8, 50..30_000_u32)).prop_map(|(n, d)| Act::Slow(n, d)),
        4 => (0..3_usize).prop_map(Act::End),
        1 => (0..3_usize).prop_map(Act::Crash),
        1 => (0..3_usize).prop_map(Act::GiveBack),
        1 => (40_000..1_500_000_u32).prop_map(Act::Wait),
    ]
}

fn acts(most: usize) -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec(any_act(), 1..most)
}

/// Holds `law` against many inputs on one server.
fn always<S: Strategy>(inputs: &S, law: impl Fn(&RedisServer, S::Value) -> Result<(), TestCaseError>) {
    let server = RedisServer::start();
    let mut runner = TestRunner::new(Config { cases: 64, ..Config::default() });
    if let Err(error) = runner.run(inputs, |input| law(&server, input)) {
        panic!("{error}");
    }
}

/// Whatever is lost, late or dies: no window, no life, no number in flight ever passes its limit.
#[test]
fn nothing_is_ever_passed() {
    let inputs = (1..4_usize, acts(120), 1..300_u64, 1..600_u64, 1..500_u64, proptest::option::of(1..30_u64));
    always(&inputs, |server, (nodes, acts, minute, total, shared, places)| {
        let rate = Rule::Bucket { rate: 2_000, burst: 2_000 };
        let mut limits: Limits = [
            limit(LimitName::Rate { plan: false }, rate),
            limit(LimitName::Quota, Rule::of(Per::Total, total)),
            limit(LimitName::Key(0), Rule::of(Per::Minute, minute)),
        ]
        .into_iter()
        .collect();
        limits.extend(places.map(|max| limit(LimitName::Concurrency, Rule::InFlight { max })));
        limits.push(limit(LimitName::Workspace(0), Rule::of(Per::Day, shared)));
        let mut run = Run::new(server, nodes, limits);
        for act in &acts {
            run.play(act);
            let running = run.nodes.iter().map(|n| n.running.len() as u64).sum::<u64>();
            prop_assert!(places.is_none_or(|max| running <= max), "{running} in flight of {places:?}");
        }
        prop_assert!(run.most_in_a_window(Per::Minute) <= minute);
        prop_assert!(run.most_in_a_window(Per::Total) <= total);
        prop_assert!(run.most_in_a_window(Per::Day) <= shared);
        Ok(())
    });
}

/// In any stretch of time a rate admits at most its burst and what refilled; an answer's way counts as time.
#[test]
fn a_rate_is_never_passed() {
    // Answers in this world take up to 30 ms and are looked at every 5 ms.
    const WAY_US: i64 = 35_000;
    always(&(1..4_usize, 1..4_000_u64, 1..400_u64, acts(120)), |server, (nodes, rate, burst, acts)| {
        let limits = [limit(LimitName::Rate { plan: false }, Rule::Bucket { rate, burst })];
        let mut run = Run::new(server, nodes, limits.into_iter().collect());
        acts.iter().for_each(|act| run.play(act));
        for (i, from) in run.admitted.iter().enumerate() {
            for (n, to) in run.admitted[i..].iter().enumerate() {
                let refilled = u64::try_from(to - from + WAY_US).expect("ordered") * rate / 1_000_000;
                prop_assert!(n as u64 <= burst + refilled, "{} in {} us of {burst}", n + 1, to - from);
            }
        }
        Ok(())
    });
}

/// When nothing is lost, what is unspent or given back comes back, and every last unit can be spent.
#[test]
fn a_limit_is_reached_exactly() {
    always(&(1..4_usize, 1..400_u64, acts(60)), |server, (nodes, total, acts)| {
        let rate = limit(LimitName::Rate { plan: false }, Rule::Bucket { rate: 3_000, burst: 3_000 });
        let limits = [rate, limit(LimitName::Quota, Rule::of(Per::Total, total))];
        let mut run = Run::new(server, nodes, limits.into_iter().collect());
        let lossless = |act: &&Act| !matches!(act, Act::Crash(_) | Act::Slow(..));
        acts.iter().filter(lossless).for_each(|act| run.play(act));
        for _ in 0..3 {
            run.pass(2_000_000);
            for _ in 0..total + 3 {
                run.play(&Act::Requests(0, 1));
                run.pass(5_000);
            }
        }
        prop_assert_eq!(run.admitted.len() as u64, total);
        Ok(())
    });
}

#[test]
fn a_key_that_redis_does_not_know_goes_on_where_the_ledger_stands() {
    let limits: Limits = [limit(LimitName::Quota, Rule::of(Per::Total, 10))].into_iter().collect();
    let server = RedisServer::start();
    let mut run = Run::new(&server, 2, limits);
    run.world.ledger = SpentRow { total: 7, ..run.world.ledger.clone() };
    for _ in 0..20 {
        run.play(&Act::Requests(0, 1));
        run.play(&Act::Requests(1, 1));
        run.pass(5_000);
    }
    assert_eq!(run.admitted.len(), 3);
}

#[test]
fn places_of_a_node_that_died_are_free_after_five_seconds() {
    let places = limit(LimitName::Concurrency, Rule::InFlight { max: 2 });
    let server = RedisServer::start();
    let mut run = Run::new(&server, 2, [places].into_iter().collect());
    for _ in 0..2 {
        run.play(&Act::Requests(0, 1));
        run.pass(5_000);
    }
    assert_eq!(run.admitted.len(), 2);
    run.play(&Act::Crash(0));
    run.pass(4_000_000);
    run.play(&Act::Requests(1, 1));
    run.pass(5_000);
    assert_eq!(run.admitted.len(), 2, "the dead node's places are still held");
    run.pass(1_100_000);
    run.play(&Act::Requests(1, 1));
    run.pass(5_000);
    assert_eq!(run.admitted.len(), 3);
}

#[test]
fn places_of_a_node_that_lives_are_renewed() {
    let places = limit(LimitName::Concurrency, Rule::InFlight { max: 1 });
    let server = RedisServer::start();
    let mut run = Run::new(&server, 2, [places].into_iter().collect());
    run.play(&Act::Requests(0, 1));
    run.pass(20_000_000);
    run.play(&Act::Requests(1, 1));
    run.pass(5_000);
    assert_eq!(run.admitted.len(), 1, "twenty seconds later its place is still its own");
    run.play(&Act::End(0));
    run.pass(200_000);
    run.play(&Act::Requests(1, 1));
    run.pass(5_000);
    assert_eq!(run.admitted.len(), 2, "and free soon after its request ended");
}

fn plain_ask(limits: &[Limit], need: u64, ahead: u64) -> Ask {
    Ask {
        limits: limits.iter().copied().collect(),
        need,
        have: 0,
        ahead,
        places: None,
        ahead_places: 0,
        max_places: 0,
        adjustments: Vec::new(),
        others_owe: 0,
    }
}

/// Units leased from a full bucket and spent at the end of their life meet a bucket that is not full again.
#[test]
fn what_is_spent_late_does_not_add_to_a_full_burst() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Rate { plan: false }, Rule::Bucket { rate: 1_000, burst: 100 })];
    let late = world.ask("a", 2, &plain_ask(&limits, 0, 50)).units;
    assert_eq!(late, 50);
    world.now_us += 49_000;
    let at_once = world.ask("b", 2, &plain_ask(&limits, 100, 0)).units;
    assert!(late + at_once <= 100, "{late} late and {at_once} at once from a burst of 100");
    // With nothing leased, the whole burst is there for whoever waits.
    world.now_us += 1_000_000;
    assert_eq!(world.ask("b", 2, &plain_ask(&limits, 200, 0)).units, 100);
}

/// A node that comes late tells only what the ledger could not know when Redis was filled from it.
#[test]
fn what_the_ledger_has_is_not_counted_twice() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [limit(LimitName::Quota, Rule::of(Per::Total, 100))];
    world.ledger.total = 50;
    assert_eq!(world.ask("a", 2, &plain_ask(&limits, 1, 0)).left[0].1.units, 49);
    let told = |at_us, units| Ask {
        adjustments: vec![super::lease::Adjustment { at_us, units }],
        ..plain_ask(&limits, 0, 0)
    };
    let before = START_US - 10_000_000;
    assert_eq!(world.ask("b", 2, &told(before, 7)).left[0].1.units, 49, "spent long before: in the ledger");
    assert_eq!(world.ask("b", 2, &told(before, -7)).left[0].1.units, 49, "never counted here");
    assert_eq!(
        world.ask("b", 2, &told(START_US - 1_000_000, 7)).left[0].1.units,
        42,
        "too young for the ledger"
    );
    assert_eq!(world.ask("b", 2, &told(START_US, -2)).left[0].1.units, 44);
}

/// What a node's other keys have spent by themselves is not there for this one, though Redis has not been told of it.
#[test]
fn what_other_keys_of_a_workspace_owe_is_not_granted() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits = [
        limit(LimitName::Daily, Rule::of(Per::Day, 10)),
        limit(LimitName::Workspace(0), Rule::of(Per::Day, 10)),
    ];
    let grant = world.ask("a", 1, &Ask { others_owe: 7, ..plain_ask(&limits, 5, 0) });
    assert_eq!(grant.units, 3);
    assert_eq!((grant.left[0].1.units, grant.left[1].1.units), (7, 0), "the key itself owes nothing");
    let (limit, _) = world
        .ask("a", 1, &Ask { others_owe: 7, ..plain_ask(&limits, 1, 0) })
        .refused
        .expect("nothing is left");
    assert_eq!(limit, limits[1]);
    assert_eq!(world.ask("a", 1, &plain_ask(&limits, 9, 0)).units, 7, "what was never spent is there again");
}

/// While nodes are upgraded, scripts of two versions run side by side: they count in the same fields, and admit one limit.
#[test]
fn two_versions_of_the_script_admit_one_limit() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let versions = [world.script.clone(), format!("{}\n-- the next version", world.script)];
    let limits = [limit(LimitName::Quota, Rule::of(Per::Total, 100))];
    let mut granted = 0;
    for n in 0..60 {
        world.script.clone_from(&versions[n % 2]);
        granted += world.ask(["old", "new"][n % 2], 2, &plain_ask(&limits, 3, 4)).units;
        world.now_us += 1_000;
    }
    assert_eq!(granted, 100);
}

/// An answer grants units to a node that has admitted a request by itself since it asked: with one of them that is paid.
#[test]
fn what_was_admitted_while_an_answer_was_late_is_paid_with_what_it_brings() {
    let server = RedisServer::start();
    let mut world = World::new(&server);
    let limits: Limits = [limit(LimitName::Quota, Rule::of(Per::Total, 5))].into_iter().collect();
    let (mut lease, now_ns) = (Lease::default(), 1_000_000_000);
    assert!(matches!(lease.take(&limits, now_ns), Take::Ask));
    let ask = Ask { ahead: 4, ..lease.ask(1, now_ns) };
    lease.owe(now_ns, Timestamp::from_micros(START_US));
    let grant = world.ask("a", 1, &ask);
    assert!(grant.units > 1, "{}", grant.units);
    lease.answer(&ask, &grant, now_ns, now_ns);
    assert_eq!(lease.units(), grant.units - 1);
    assert!(lease.settle(false, now_ns).is_none(), "and Redis knows of all of them");
}
