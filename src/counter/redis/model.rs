//! Pools and the real script in a real Redis, with time, loss and crashes controlled by the test.

use super::pool::{
    FallbackState, LeaseGrant, LeaseRequest, OutstandingUnits, SubjectPool, TakenUnits, WINDOWS, Wanted,
    WindowReport,
};
use super::script::{self, ScriptCall, ScriptReply, ScriptTotals};
use crate::clock::{Now, Timestamp};
use crate::model::calendar::Calendar;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::{Measure, Per};
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::{Limit, LimitName, LimitRule, Limits};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::HashMap;
use std::time::Duration;

mod calendars;
mod calls;
mod changed_limits;
mod clock_steps;
mod demand;
mod explore;
mod holds;
#[expect(dead_code, reason = "the tests from outside also stop and question it")]
#[path = "../../../tests/counters/redis.rs"]
mod redis_server;
mod redis_side;
use redis_server::RedisServer;

/// Two seconds before a UTC day ends, so that every window ends within a run.
const START_US: i64 = 1_796_255_998_000_000;

/// The script, with the time set by the test.
fn timed_script() -> String {
    let (before, after) =
        script::SOURCE.split_once("redis.call('TIME')").expect("the script asks for the time once");
    // The age of the server would come from another clock.
    let after = after.replace(" or is_young() then", " then");
    format!(
        "{before}{{ tonumber(redis.call('GET', 'now:s')), tonumber(redis.call('GET', 'now:us')) }}{after}"
    )
}

struct World {
    redis: redis::Connection,
    script: String,
    key: KeyId,
    workspace: WorkspaceId,
    /// The ledger's total of each window.
    ledger: [u64; WINDOWS.len()],
    server: &'static str,
    calendar: Calendar,
    now_us: i64,
}

/// A node with one key and its workspace.
struct Node {
    key: SubjectPool,
    workspace: SubjectPool,
    name: String,
    /// The call in flight: when its answer arrives, when it was sent, the request and the answer.
    in_transit: Option<(u64, u64, [LeaseRequest; 2], Option<[LeaseGrant; 2]>)>,
    /// What running requests took, and when they were admitted.
    running: Vec<([TakenUnits; 2], i64)>,
}

#[derive(Clone, Debug)]
enum Act {
    /// So many requests arrive at a node.
    Requests(usize, u8),
    /// So many requests are decided without Redis by a node that has not heard from it in time.
    Fallback(usize, u8),
    /// The answer to a call takes so many µs, or is lost.
    Slow(usize, Option<u32>),
    /// A request of a node ends.
    End(usize),
    /// A request of a node is refunded.
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
        let redis = client.get_connection().expect("a connection");
        Self {
            redis,
            script: timed_script(),
            key,
            workspace: key.to_string().parse().expect("an id"),
            ledger: [0; WINDOWS.len()],
            server: "s1",
            calendar: Calendar::UTC,
            now_us: START_US,
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.now_us - START_US + 10_000_000).expect("not long before the start") * 1_000
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::from_micros(self.now_us), steady_ns: self.now_ns() }
    }

    /// One call for the key, and for the workspace if given.
    fn call(
        &mut self,
        node: &str,
        nodes: usize,
        key: &LeaseRequest,
        workspace: Option<&LeaseRequest>,
    ) -> Vec<ScriptTotals> {
        let mut asks = Vec::new();
        asks.extend(workspace.map(|ask| (format!("kg:{{{}}}:w", self.workspace), ask)));
        asks.push((format!("kg:{{{}}}:k:{}", self.workspace, self.key), key));
        let call = ScriptCall {
            node,
            nodes: nodes as u64,
            server: self.server,
            lag: Duration::from_secs(2),
            lost: None,
            at: Timestamp::from_micros(self.now_us),
            calendar: self.calendar,
            asks,
        };
        let command = script::command_with(&self.script, &call);
        let mut both = redis::pipe();
        both.cmd("SET").arg("now:s").arg(self.now_us.div_euclid(1_000_000)).ignore();
        both.cmd("SET").arg("now:us").arg(self.now_us.rem_euclid(1_000_000)).ignore();
        both.atomic().add_command(command);
        let values: Vec<redis::Value> = both.query(&mut self.redis).expect("the script runs");
        match script::read(&values[0], &call).expect("an answer of the script") {
            ScriptReply::Totals(now_us, told) => {
                assert_eq!(now_us, self.now_us);
                told
            }
            ScriptReply::OtherWindows(_) => panic!("the node goes by the same calendar"),
        }
    }

    /// The same; subjects that Redis does not know are filled from the ledger.
    fn filled(
        &mut self,
        node: &str,
        nodes: usize,
        key: &LeaseRequest,
        workspace: Option<&LeaseRequest>,
    ) -> Vec<ScriptTotals> {
        let told = self.call(node, nodes, key, workspace);
        if !told.contains(&ScriptTotals::Unknown) {
            return told;
        }
        let ledger = Some(self.ledger);
        // Only one of two subjects may have been unknown; the call was applied to the other one.
        let again = |ask: &LeaseRequest, told: &ScriptTotals| match told {
            ScriptTotals::Unknown => LeaseRequest { ledger, ..ask.clone() },
            _ => ask.clone(),
        };
        let mut first = told.iter();
        let of_workspace = workspace.map(|ask| again(ask, first.next().expect("an answer")));
        let of_key = again(key, first.next().expect("an answer"));
        let second = self.call(node, nodes, &of_key, of_workspace.as_ref());
        told.into_iter().zip(second).map(|(a, b)| if a == ScriptTotals::Unknown { b } else { a }).collect()
    }

    /// One call for the key alone, which must be granted.
    fn ask(&mut self, node: &str, nodes: usize, ask: &LeaseRequest) -> LeaseGrant {
        match self.filled(node, nodes, ask, None).remove(0) {
            ScriptTotals::Grant(grant) => grant,
            other => panic!("{other:?}"),
        }
    }
}

impl Node {
    fn new(name: String) -> Self {
        Self {
            key: SubjectPool::default(),
            workspace: SubjectPool::default(),
            name,
            in_transit: None,
            running: Vec::new(),
        }
    }

    fn attempt(&mut self, limits: &[Limits; 2]) {
        for (pool, limits) in [&mut self.key, &mut self.workspace].into_iter().zip(limits) {
            pool.set_limits(limits);
            pool.attempt(1);
        }
    }

    fn can_spend(&mut self, now_ns: u64) -> bool {
        self.key.can_spend(1, now_ns) && self.workspace.can_spend(1, now_ns)
    }
}

struct Run {
    world: World,
    nodes: Vec<Node>,
    limits: [Limits; 2],
    /// Instants in µs.
    admitted: Vec<i64>,
    /// The delay of the answer to the next call of each node.
    delay: Vec<Option<u32>>,
    born: usize,
}

impl Run {
    fn new(server: &RedisServer, nodes: usize, key: Limits, workspace: Limits) -> Self {
        let mut run = Self {
            world: World::new(server),
            nodes: Vec::new(),
            limits: [key, workspace],
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
            Act::Fallback(node, n) => {
                for _ in 0..*n {
                    self.spend_fallback(node % count);
                }
            }
            Act::Slow(node, delay) => self.delay[node % count] = *delay,
            Act::End(node) => {
                let node = &mut self.nodes[node % count];
                if node.running.pop().is_some() {
                    node.key.end();
                    node.workspace.end();
                }
            }
            Act::GiveBack(node) => {
                let node = &mut self.nodes[node % count];
                if let Some(([key, workspace], admitted_us)) = node.running.pop() {
                    node.key.give_back(&key);
                    node.workspace.give_back(&workspace);
                    let place = self.admitted.iter().rposition(|at| *at == admitted_us);
                    self.admitted.remove(place.expect("it was admitted"));
                }
            }
            Act::Crash(node) => {
                let dead = node % count;
                // It reports what it spent without Redis soon; if it dies before, this is lost.
                if self.nodes[dead].key.unreported_units() == 0 {
                    self.nodes[dead] = self.newborn();
                }
            }
            Act::Wait(us) => self.pass(i64::from(*us)),
        }
    }

    fn admit(&mut self, index: usize) {
        let now = self.world.now();
        let node = &mut self.nodes[index];
        let spent = [node.key.spend(1, now), node.workspace.spend(1, now)];
        node.running.push((spent, self.world.now_us));
        self.admitted.push(self.world.now_us);
    }

    /// A request: served from granted units, or Redis is called and answers later.
    fn request(&mut self, index: usize) {
        let now = self.world.now();
        let node = &mut self.nodes[index];
        node.attempt(&self.limits);
        if node.can_spend(now.steady_ns) {
            self.admit(index);
        } else if node.key.refusal(1, now.steady_ns).is_none()
            && node.workspace.refusal(1, now.steady_ns).is_none()
            && node.in_transit.is_none()
        {
            self.send(index, 1);
        }
    }

    /// A request that is decided without Redis, which works but was not heard in time.
    fn spend_fallback(&mut self, index: usize) {
        let now = self.world.now();
        let node = &mut self.nodes[index];
        node.attempt(&self.limits);
        let nodes = self.delay.len() as u64;
        let outage =
            FallbackState { nodes, share_unknown: false, gone_since_ns: None, well_ns: now.steady_ns };
        if node.key.may_spend_fallback(1, &outage, now).is_ok()
            && node.workspace.may_spend_fallback(1, &outage, now).is_ok()
        {
            let spent =
                [node.key.spend_fallback(1, &outage, now), node.workspace.spend_fallback(1, &outage, now)];
            node.running.push((spent, self.world.now_us));
            self.admitted.push(self.world.now_us);
        }
    }

    fn send(&mut self, index: usize, waiting: u64) {
        let (sent, count, calendar) = (self.world.now(), self.nodes.len(), self.world.calendar);
        let node = &mut self.nodes[index];
        let key = node.key.ask(requests(waiting), sent.steady_ns, sent.wall, calendar);
        let workspace = node.workspace.ask(requests(waiting), sent.steady_ns, sent.wall, calendar);
        let name = node.name.clone();
        let told = self.world.filled(&name, count, &key, Some(&workspace));
        let mut grants = told.into_iter().map(|told| match told {
            ScriptTotals::Grant(grant) => grant,
            other => panic!("{other:?}"),
        });
        let (of_workspace, of_key) = (grants.next().expect("two"), grants.next().expect("two"));
        let answer = self.delay[index].map(|_| [of_key, of_workspace]);
        // A call whose answer was lost is repeated after a while.
        let arrives_ns = sent.steady_ns + u64::from(self.delay[index].unwrap_or(100_000)) * 1_000;
        self.nodes[index].in_transit = Some((arrives_ns, sent.steady_ns, [key, workspace], answer));
        if self.delay[index].is_none() {
            self.delay[index] = Some(300);
        }
    }

    /// Time passes in small steps; answers arrive, and due reports are made.
    fn pass(&mut self, us: i64) {
        let until = self.world.now_us + us;
        while self.world.now_us < until {
            self.world.now_us = until.min(self.world.now_us + 5_000);
            let now_ns = self.world.now_ns();
            for index in 0..self.nodes.len() {
                self.arrive(index, now_ns);
                let node = &mut self.nodes[index];
                if node.in_transit.is_none()
                    && (node.key.needs_call(now_ns) || node.workspace.needs_call(now_ns))
                {
                    self.send(index, 0);
                }
            }
        }
    }

    fn arrive(&mut self, index: usize, now_ns: u64) {
        let node = &mut self.nodes[index];
        let Some((_, sent_ns, [key, workspace], answer)) = node.in_transit.take_if(|t| t.0 <= now_ns) else {
            return;
        };
        let Some([of_key, of_workspace]) = answer else {
            node.key.unanswered(&key);
            node.workspace.unanswered(&workspace);
            return;
        };
        node.key.answer(&key, &of_key, sent_ns, now_ns);
        node.workspace.answer(&workspace, &of_workspace, sent_ns, now_ns);
        if key.waiting > 0 && node.can_spend(now_ns) {
            self.admit(index);
        }
        let node = &mut self.nodes[index];
        node.key.retire_unless(key.ahead);
        node.workspace.retire_unless(workspace.ahead);
    }

    /// The most that was admitted in any window of `per`.
    fn most_in_a_window(&self, per: Per) -> u64 {
        let mut windows = HashMap::<Timestamp, u64>::new();
        for at_us in &self.admitted {
            let window = Window::of(per, self.world.calendar, Timestamp::from_micros(*at_us));
            *windows.entry(window.start).or_default() += 1;
        }
        windows.into_values().max().unwrap_or(0)
    }
}

/// What so many waiting requests want.
fn requests(count: u64) -> Wanted {
    Wanted { units: count, least: count.min(1) }
}

fn limit(name: LimitName, rule: LimitRule) -> Limit {
    Limit { name, count: Measure::Requests, rule }
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..3_usize, 1..40_u8).prop_map(|(n, k)| Act::Requests(n, k)),
        3 => (0..3_usize, 1..20_u8).prop_map(|(n, k)| Act::Fallback(n, k)),
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

/// Checks `law` with many inputs on one server.
fn always<S: Strategy>(inputs: &S, law: impl Fn(&RedisServer, S::Value) -> Result<(), TestCaseError>) {
    let server = RedisServer::start();
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    if let Err(error) = runner.run(inputs, |input| law(&server, input)) {
        panic!("{error}");
    }
}

/// Whatever is lost, late or dies, and whatever nodes decide without an answer: no window or lifetime limit is exceeded,
/// nor the number in flight by requests that Redis admitted.
#[test]
fn no_limit_is_exceeded_whatever_is_lost_late_or_crashes() {
    let inputs = (1..4_usize, acts(120), 1..300_u64, 1..600_u64, 1..500_u64, proptest::option::of(1..30_u64));
    always(&inputs, |server, (nodes, acts, minute, total, shared, places)| {
        let rate = LimitRule::Bucket { rate: 2_000, burst: 2_000 };
        let mut limits: Limits = [
            limit(LimitName::Rate { plan: false }, rate),
            limit(LimitName::Quota, LimitRule::of(Per::Total, total)),
            limit(LimitName::Key(0), LimitRule::of(Per::Minute, minute)),
        ]
        .into_iter()
        .collect();
        limits.extend(places.map(|max| limit(LimitName::Concurrency, LimitRule::InFlight { max })));
        let of_workspace =
            [limit(LimitName::Workspace(0), LimitRule::of(Per::Day, shared))].into_iter().collect();
        let mut run = Run::new(server, nodes, limits, of_workspace);
        for act in &acts {
            if places.is_some() && matches!(act, Act::Fallback(..)) {
                continue;
            }
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

/// In any interval a rate admits at most its burst and what refilled; the latency of an answer counts as time.
#[test]
fn a_rate_is_never_exceeded() {
    // Answers in this model take up to 30 ms and are checked every 5 ms.
    const WAY_US: i64 = 35_000;
    always(&(1..4_usize, 1..4_000_u64, 1..400_u64, acts(120)), |server, (nodes, rate, burst, acts)| {
        let limits = [limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate, burst })];
        let mut run = Run::new(server, nodes, limits.into_iter().collect(), unlimited());
        acts.iter().filter(|act| !matches!(act, Act::Fallback(..))).for_each(|act| run.play(act));
        for (i, from) in run.admitted.iter().enumerate() {
            for (n, to) in run.admitted[i..].iter().enumerate() {
                let refilled = u64::try_from(to - from + WAY_US).expect("ordered") * rate / 1_000_000;
                prop_assert!(n as u64 <= burst + refilled, "{} in {} us of {burst}", n + 1, to - from);
            }
        }
        Ok(())
    });
}

fn unlimited() -> Limits {
    [limit(LimitName::Workspace(0), LimitRule::of(Per::Total, 1_000_000_000))].into_iter().collect()
}

/// If nothing is lost, unspent and refunded units are returned, and every last unit can be spent.
#[test]
fn a_limit_is_reached_exactly() {
    always(&(1..4_usize, 1..400_u64, acts(60)), |server, (nodes, total, acts)| {
        let rate = limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 3_000, burst: 3_000 });
        let limits = [rate, limit(LimitName::Quota, LimitRule::of(Per::Total, total))];
        let mut run = Run::new(server, nodes, limits.into_iter().collect(), unlimited());
        let lossless = |act: &&Act| !matches!(act, Act::Crash(_) | Act::Slow(..));
        acts.iter().filter(lossless).for_each(|act| run.play(act));
        // Promises of inactive nodes expire after ten seconds.
        run.pass(10_000_000);
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

fn one_key(server: &RedisServer, nodes: usize, rule: Limit) -> Run {
    Run::new(server, nodes, [rule].into_iter().collect(), unlimited())
}

#[test]
fn a_key_that_redis_does_not_know_goes_on_where_the_ledger_stands() {
    let server = RedisServer::start();
    let mut run = one_key(&server, 2, limit(LimitName::Quota, LimitRule::of(Per::Total, 10)));
    run.world.ledger = [0, 0, 0, 0, 0, 7];
    for _ in 0..20 {
        run.play(&Act::Requests(0, 1));
        run.play(&Act::Requests(1, 1));
        run.pass(5_000);
    }
    assert_eq!(run.admitted.len(), 3);
}

#[test]
fn places_of_a_node_that_died_are_free_after_five_seconds() {
    let server = RedisServer::start();
    let mut run = one_key(&server, 2, limit(LimitName::Concurrency, LimitRule::InFlight { max: 2 }));
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
    let server = RedisServer::start();
    let mut run = one_key(&server, 2, limit(LimitName::Concurrency, LimitRule::InFlight { max: 1 }));
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

/// A call of a node that has spent nothing and calls for the first time.
fn plain_ask(limits: &[Limit], need: u64, ahead: u64) -> LeaseRequest {
    LeaseRequest {
        // Each call of these tests comes from another node.
        seq: 1,
        epoch: 0,
        limits: limits.iter().copied().collect(),
        waiting: need,
        need,
        least: 1,
        ahead,
        leaves: false,
        windows: [WindowReport { since: 1, ..WindowReport::default() }; WINDOWS.len()],
        holds: None,
        returned: (0, 0),
        untold: Vec::new(),
        ledger: None,
        places: None,
        ahead_places: 0,
        max_places: 0,
    }
}

/// What a node of this name is granted by its own call.
fn taken(world: &mut World, node: &str, limits: &[Limit], need: u64) -> u64 {
    world.ask(node, 2, &plain_ask(limits, need, 0)).units
}
