//! Nodes that are asked for more than there is, on a clock that the test moves: all of a limit is reached, with few calls.
//!
//! The nodes decide as `Leases` does: a request takes what is in hand, or waits for the answer to the call on its way.

use super::*;

/// How long an answer takes.
const ANSWER_US: i64 = 300;
/// How often it is looked at answers, requests that are due, and what has to be settled.
const STEP_US: i64 = 100;

/// One node with one key.
struct Busy {
    pool: SubjectPool,
    name: String,
    /// Requests that wait for an answer.
    waiting: u64,
    is_called_for: bool,
    /// The call on its way, when it was sent and what it is answered.
    sent: Option<(LeaseRequest, i64, LeaseGrant)>,
    /// When the next request comes.
    due_us: i64,
}

/// Nodes that serve the same key.
struct Demand<'s> {
    world: World,
    nodes: Vec<Busy>,
    limits: &'s Limits,
    /// When requests were admitted.
    admitted_us: Vec<i64>,
    calls: u64,
}

impl<'s> Demand<'s> {
    fn new(server: &RedisServer, nodes: usize, limits: &'s Limits) -> Self {
        let world = World::new(server);
        let node = |n| Busy {
            pool: SubjectPool::default(),
            name: format!("n{n}"),
            waiting: 0,
            is_called_for: false,
            sent: None,
            due_us: world.now_us + 37 * i64::try_from(n).expect("few"),
        };
        let nodes = (0..nodes).map(node).collect();
        Self { world, nodes, limits, admitted_us: Vec::new(), calls: 0 }
    }

    /// So much time, in which each node is asked `per_second`.
    fn pass(&mut self, us: i64, per_second: i64) {
        let until = self.world.now_us + us;
        while self.world.now_us < until {
            self.world.now_us += STEP_US;
            for n in 0..self.nodes.len() {
                self.answer(n);
                while self.nodes[n].due_us <= self.world.now_us {
                    self.request(n);
                    self.nodes[n].due_us += 1_000_000 / per_second;
                }
                let now_ns = self.world.now_ns();
                let node = &mut self.nodes[n];
                let is_due = self.world.now_us % 10_000 == 0 && node.pool.needs_call(now_ns);
                if node.sent.is_none() && (node.waiting > 0 || node.is_called_for || is_due) {
                    self.send(n);
                }
            }
        }
    }

    fn request(&mut self, n: usize) {
        let now = self.world.now();
        let node = &mut self.nodes[n];
        node.pool.set_limits(self.limits);
        node.pool.attempt(1);
        if node.pool.can_spend(1, now.steady_ns) {
            node.pool.spend(1, now);
            node.is_called_for |= node.pool.wants_more();
            node.pool.end();
            self.admitted_us.push(self.world.now_us);
        } else if node.pool.refusal(1, now.steady_ns).is_none() {
            node.waiting += 1;
        }
    }

    fn send(&mut self, n: usize) {
        let now = self.world.now();
        let nodes = self.nodes.len();
        let node = &mut self.nodes[n];
        node.is_called_for = false;
        let ask = node.pool.ask(requests(node.waiting), now.steady_ns, now.wall, self.world.calendar);
        let grant = self.world.ask(&node.name, nodes, &ask);
        node.sent = Some((ask, self.world.now_us, grant));
        self.calls += 1;
    }

    fn answer(&mut self, n: usize) {
        let (now, now_us) = (self.world.now(), self.world.now_us);
        let node = &mut self.nodes[n];
        let Some((ask, sent_us, grant)) = node.sent.take_if(|sent| sent.1 + ANSWER_US <= now_us) else {
            return;
        };
        let sent_ns = now.steady_ns - u64::try_from(now_us - sent_us).expect("before") * 1_000;
        node.pool.answer(&ask, &grant, sent_ns, now.steady_ns);
        while node.waiting > 0 && node.pool.can_spend(1, now.steady_ns) {
            node.pool.spend(1, now);
            node.pool.end();
            node.waiting -= 1;
            self.admitted_us.push(now_us);
        }
        if node.pool.refusal(1, now.steady_ns).is_some() {
            node.waiting = 0;
        }
        if node.waiting == 0 {
            node.pool.retire_unless(ask.ahead);
        }
    }
}

/// Twice a rate is asked for. Once the burst is spent, at least 99 of a hundred units that refill are admitted, and one for the
/// edges; a busy key takes a call for 20 of them at the most.
#[test]
fn a_rate_of_which_twice_as_much_is_asked_is_reached() {
    const BURST_US: i64 = 1_500_000;
    const LONG_US: i64 = 4_000_000;
    let server = RedisServer::start();
    for (nodes, rate) in [(2, 5), (3, 5), (2, 100), (3, 100), (3, 5_000), (2, 10_000), (3, 10_000)] {
        let bucket = LimitRule::Bucket { rate, burst: rate };
        let limits = [limit(LimitName::Rate { plan: false }, bucket)].into_iter().collect();
        let mut demand = Demand::new(&server, nodes, &limits);
        let each = i64::try_from(2 * rate).expect("small") / i64::try_from(nodes).expect("few") + 1;
        let begin_us = demand.world.now_us;
        demand.pass(LONG_US, each);
        let behind = |at: &&i64| **at >= begin_us + BURST_US;
        let counted = demand.admitted_us.iter().filter(behind).count() as u64;
        let refilled = rate * u64::try_from(LONG_US - BURST_US).expect("positive") / 1_000_000;
        let calls = demand.calls;
        println!("{nodes} nodes, {rate} per second: {counted} of {refilled} after the burst, {calls} calls");
        assert!(
            counted * 100 + 100 >= refilled * 99,
            "{counted} of {refilled}: {nodes} nodes, {rate} per second"
        );
        let all = demand.admitted_us.len() as u64;
        assert!(
            rate < 1_000 || calls * 20 <= all,
            "{calls} calls for {all}: {nodes} nodes, {rate} per second"
        );
    }
}

/// Of a limit that all nodes want all of, at least 99 of a hundred are admitted while they ask, and soon the last one.
#[test]
fn a_window_of_which_twice_as_much_is_asked_is_reached() {
    let server = RedisServer::start();
    for (nodes, max) in [(2, 5), (3, 5), (2, 100), (3, 100), (2, 10_000), (3, 10_000)] {
        let rate = LimitRule::Bucket { rate: 1_000_000, burst: 1_000_000 };
        let total = limit(LimitName::Quota, LimitRule::of(Per::Total, max));
        let limits = [limit(LimitName::Rate { plan: false }, rate), total].into_iter().collect();
        let mut demand = Demand::new(&server, nodes, &limits);
        let each = i64::try_from(max).expect("small").max(100) / i64::try_from(nodes).expect("few");
        demand.pass(2_000_000, each);
        let admitted = demand.admitted_us.len() as u64;
        println!("{nodes} nodes, {max}: {admitted} in {} calls", demand.calls);
        assert!(admitted <= max && admitted * 100 + 100 >= max * 99, "{admitted} of {max}: {nodes} nodes");
        demand.pass(2_000_000, each);
        assert_eq!(demand.admitted_us.len() as u64, max, "{nodes} nodes");
    }
}
